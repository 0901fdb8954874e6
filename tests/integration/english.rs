//! The documents read easily: short sentences, and no idioms that only their authors understand.

use super::support::root;

/// Words of a sentence on average, at most.
const MEAN_WORDS: f64 = 17.0;
/// A sentence of more words than this is long.
const LONG: usize = 35;
/// The share of long sentences, at most.
const LONG_SHARE: f64 = 0.05;
/// References that are looked up more than read; their sentences are still too long.
const REFERENCES: [&str; 2] = ["formats.md", "performance.md"];
/// Phrases that have a plainer form.
const PHRASES: [&str; 8] =
    ["whoever", "what cannot", "of its own", "so many", " lies ", " stands ", " is no ", "for ever "];

#[test]
fn documents_have_short_sentences_and_plain_phrases() {
    let mut wrong = Vec::new();
    let documents = std::fs::read_dir(root().join("docs"))
        .expect("a folder")
        .map(|entry| entry.expect("readable").path());
    let documents = documents.chain(["README.md", "CONTRIBUTING.md"].map(|name| root().join(name)));
    let is_held = |path: &std::path::PathBuf| {
        path.extension().is_some_and(|extension| extension == "md")
            && !REFERENCES.iter().any(|reference| path.ends_with(reference))
    };
    for path in documents.filter(is_held) {
        let paragraphs = paragraphs(&std::fs::read_to_string(&path).expect("text"));
        let lengths: Vec<usize> = paragraphs.iter().flat_map(|text| sentences(text)).collect();
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
        let long = lengths.iter().filter(|&&words| words > LONG).count() as f64 / lengths.len() as f64;
        if mean > MEAN_WORDS || long > LONG_SHARE {
            let long = 100.0 * long;
            wrong.push(format!("{}: {mean:.1} words a sentence, {long:.1} % over {LONG}", path.display()));
        }
        for (paragraph, phrase) in paragraphs.iter().flat_map(|text| PHRASES.map(|phrase| (text, phrase))) {
            if paragraph.to_lowercase().contains(phrase) {
                wrong.push(format!("{}: `{phrase}` in: {paragraph}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The prose of a Markdown text: no code, tables, headings or HTML. A code span counts as one word.
fn paragraphs(text: &str) -> Vec<String> {
    let (mut paragraphs, mut fenced) = (vec![String::new()], false);
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        let is_marked =
            line.starts_with(['|', '#', '<', '\t']) || line.starts_with("```") || line.starts_with("    ");
        if fenced || is_marked || line.trim().is_empty() {
            paragraphs.push(String::new());
            continue;
        }
        let item = line.trim_start();
        let number = item.trim_start_matches(|c: char| c.is_ascii_digit());
        let is_item = item.starts_with("- ")
            || item.starts_with("* ")
            || number.len() < item.len() && number.starts_with(". ");
        if is_item {
            paragraphs.push(String::new());
        }
        let paragraph = paragraphs.last_mut().expect("one is there");
        paragraph.push(' ');
        paragraph.push_str(if is_item { item.split_once(' ').map_or("", |(_, rest)| rest) } else { item });
    }
    let plain = paragraphs.into_iter().map(|text| {
        let spans = text.split('`').enumerate().map(|(at, part)| if at % 2 == 1 { "code" } else { part });
        spans.collect::<String>()
    });
    plain.filter(|text| !text.trim().is_empty()).collect()
}

/// The number of words of each sentence.
fn sentences(text: &str) -> Vec<usize> {
    let mut lengths = vec![0];
    for word in text.split_whitespace() {
        if word.chars().any(char::is_alphanumeric) {
            *lengths.last_mut().expect("one is there") += 1;
        }
        if word.trim_end_matches([')', '"', '*', '_']).ends_with(['.', '!', '?']) {
            lengths.push(0);
        }
    }
    lengths.retain(|&words| words > 1);
    lengths
}

#[test]
fn sentences_are_counted_in_prose_alone() {
    let text = "# A heading of many words\n\nOne two three. Four `a b c` six:\nseven eight.\n\n- Nine ten\n  eleven.\n\n    code is skipped\n\n| a | table |\n";
    let lengths: Vec<usize> = paragraphs(text).iter().flat_map(|text| sentences(text)).collect();
    assert_eq!(lengths, [3, 5, 3]);
}
