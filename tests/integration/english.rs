//! Documents, errors and help read easily: short sentences, and no idioms that only their authors understand.

use std::path::{Path, PathBuf};

use super::support::root;

/// Words of a sentence on average, at most.
const MEAN_WORDS: f64 = 17.0;
/// A sentence of more words than this is long.
const LONG: usize = 35;
/// The share of long sentences, at most.
const LONG_SHARE: f64 = 0.05;
/// Phrases that have a plainer form, which documents no longer use.
const PHRASES_OF_DOCUMENTS: &[&str] = &[
    "whoever",
    "what it is of",
    "of its own",
    "so many",
    " lies ",
    " stands ",
    " is no ",
    " are no ",
    " is of ",
    "for ever ",
    "goes on",
    " go on",
    "going on",
    "anew",
];
/// Those that errors and help no longer use either. Move a phrase here from above once it has gone; none goes back.
const PHRASES: &[&str] = &[
    "what cannot",
    "of their own",
    "nobody",
    "somebody",
    "be had",
    "mended",
    " in the mean",
    " told ",
    "one says",
    "who wants",
    "knows no",
];
/// One that errors and help no longer use, unlike documents.
const PHRASE_OF_THE_PROGRAM: &str = "becomes of";

#[test]
fn documents_have_short_sentences_and_plain_phrases() {
    let mut wrong = Vec::new();
    for path in documents() {
        let text = std::fs::read_to_string(&path).expect("text");
        let lengths: Vec<usize> = paragraphs(&text, false).iter().flat_map(|text| sentences(text)).collect();
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
        let long = lengths.iter().filter(|&&words| words > LONG).count() as f64 / lengths.len() as f64;
        if mean > MEAN_WORDS || long > LONG_SHARE {
            let long = 100.0 * long;
            wrong.push(format!("{}: {mean:.1} words a sentence, {long:.1} % over {LONG}", path.display()));
        }
        wrong.extend(found(&[PHRASES_OF_DOCUMENTS, PHRASES].concat(), &path, &paragraphs(&text, true)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn errors_and_help_have_plain_phrases() {
    let mut wrong = Vec::new();
    let help = ["src/cli", "src/run_config"].map(|folder| root().join(folder));
    for path in files("src", "rs") {
        let text = std::fs::read_to_string(&path).expect("text");
        let (code, _) = text.split_once("#[cfg(test)]").unwrap_or((&text, ""));
        let with_help = help.iter().any(|folder| path.starts_with(folder));
        let phrases = [PHRASES, &[PHRASE_OF_THE_PROGRAM]].concat();
        wrong.extend(found(&phrases, &path, &messages(code, with_help)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A comment that begins with one of these hides its subject.
const HIDDEN_SUBJECTS: &[&str] = &["What", "How", "Who", "Where", "When", "Why"];

#[test]
fn doc_comments_begin_with_their_subject() {
    let mut wrong = Vec::new();
    for path in files("src", "rs") {
        let text = std::fs::read_to_string(&path).expect("text");
        wrong.extend(hidden_subjects(&text).map(|line| format!("{}: {line}", path.display())));
    }
    assert!(wrong.is_empty(), "begin with a noun or a verb: {wrong:#?}");
}

/// First lines of the paragraphs of doc comments that begin with a question's word.
fn hidden_subjects(text: &str) -> impl Iterator<Item = &str> {
    fn doc(line: &str) -> Option<&str> {
        let line = line.trim_start();
        line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).map(str::trim)
    }
    let before = std::iter::once("").chain(text.lines());
    before.zip(text.lines()).filter_map(|(before, line)| {
        let is_first = doc(before).is_none_or(str::is_empty);
        let word = doc(line)?.split([' ', ':', ',']).next()?;
        (is_first && HIDDEN_SUBJECTS.contains(&word)).then_some(line)
    })
}

#[test]
fn a_hidden_subject_is_found_in_the_first_line_of_a_paragraph_alone() {
    let text = "/// What a step measured.\n/// Loss of a step.\n/// Where it is NaN, the step is skipped.\n///\n\
                /// How it is drawn.\nlet x = 1; // What else\n    //! Who reads it.\n";
    let found: Vec<&str> = hidden_subjects(text).collect();
    assert_eq!(found, ["/// What a step measured.", "/// How it is drawn.", "    //! Who reads it."]);
}

/// Every Markdown document of the repository.
fn documents() -> Vec<PathBuf> {
    let top = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name));
    let documents: Vec<_> =
        top.into_iter().chain(files("docs", "md")).chain(files("tests/compat", "md")).collect();
    assert!(documents.len() > 9, "the documents are found");
    documents
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = walkdir::WalkDir::new(root().join(folder)).sort_by_file_name();
    let paths = entries.into_iter().map(|entry| entry.expect("readable").into_path());
    paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

/// Phrases in the texts, each with its file.
fn found(phrases: &[&str], path: &Path, texts: &[String]) -> Vec<String> {
    let of_text = |text: &String| {
        let lower = format!(" {} ", text.to_lowercase());
        let hits = phrases.iter().filter(|phrase| lower.contains(**phrase));
        hits.map(|phrase| format!("{}: `{phrase}` in: {text}", path.display())).collect::<Vec<_>>()
    };
    texts.iter().flat_map(of_text).collect()
}

/// The texts that users see: errors, and help where the file has some.
fn messages(code: &str, with_help: bool) -> Vec<String> {
    let errors = code.split("#[error(").skip(1).filter_map(|rest| rest.split_once(")]"));
    let mut texts: Vec<String> = errors.map(|(error, _)| words(error)).collect();
    if with_help {
        let docs = code.split("\n\n").map(|part| {
            let lines = part.lines().filter_map(|line| line.trim_start().strip_prefix("///"));
            words(&lines.collect::<String>())
        });
        let literals = code.lines().filter(|line| line.contains("help = \""));
        texts.extend(docs.chain(literals.map(words)));
    }
    texts
}

/// The text in one line, without the escapes of continued literals.
fn words(text: &str) -> String {
    text.split_whitespace().filter(|word| *word != "\\").collect::<Vec<_>>().join(" ")
}

/// The prose of a Markdown text: no code, headings or HTML, and the rows of tables on request. A code span is one word.
fn paragraphs(text: &str, with_tables: bool) -> Vec<String> {
    let (mut paragraphs, mut fenced) = (vec![String::new()], false);
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        let is_row = line.starts_with('|');
        let is_marked =
            line.starts_with(['#', '<', '\t']) || line.starts_with("```") || line.starts_with("    ");
        if fenced || is_marked || line.trim().is_empty() || is_row {
            paragraphs.push(if is_row && with_tables { line.to_owned() } else { String::new() });
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
    let text = "# A heading of many words\n\nOne two three. Four `a b c` six:\nseven eight.\n\n- Nine ten\n  \
                eleven.\n\n    code is skipped\n\n| a | table |\n";
    let lengths: Vec<usize> = paragraphs(text, false).iter().flat_map(|text| sentences(text)).collect();
    assert_eq!(lengths, [3, 5, 3]);
    assert!(paragraphs(text, true).contains(&"| a | table |".to_owned()));
}

#[test]
fn messages_are_errors_and_help() {
    let code = "#[error(\"one \\\n  {two}\")]\nThree,\n\n/// Four\n/// five\nsix: bool,\n";
    assert_eq!(messages(code, false), ["\"one {two}\""]);
    assert!(messages(code, true).contains(&"Four five".to_owned()));
}
