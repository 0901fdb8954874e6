//! The table of docs/formats.md, "what you have, and what becomes of it", line by line.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch};
use serde_json::Value;

use super::support::{self, instdisc, root, scratch, write_parquet};

/// A line of the table.
struct Line {
    files: Vec<String>,
    options: String,
    outcome: Vec<String>,
}

fn code_spans(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn table() -> Vec<Line> {
    let text = std::fs::read_to_string(root().join("docs/formats.md")).expect("the document");
    let lines = text.lines().skip_while(|line| !line.starts_with("| what you have |")).skip(2);
    lines
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            let [files, options, outcome] = cells.as_slice() else { panic!("three cells: {line}") };
            Line {
                files: code_spans(files),
                options: code_spans(options).concat(),
                outcome: code_spans(outcome),
            }
        })
        .collect()
}

/// Members of a tar: paths of images, or texts after `=`.
fn tar(members: &str, jpeg: &[u8]) -> Vec<u8> {
    support::tar(members.split(", ").map(|member| match member.split_once('=') {
        Some((path, text)) => (path.to_owned(), text.as_bytes()),
        None => (member.to_owned(), jpeg),
    }))
}

fn write_table(labels: &str, jpeg: &[u8], file: &Path) {
    let labels: Vec<Option<i64>> = labels.split(", ").map(|label| label.parse().ok()).collect();
    let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(labels.iter().map(|_| jpeg)));
    let labels: ArrayRef = Arc::new(Int64Array::from(labels));
    let batch = RecordBatch::try_from_iter([("image", images), ("label", labels)]).expect("a batch");
    write_parquet(&batch, file);
}

fn make(at: &Path, file: &str, jpeg: &[u8]) {
    let (name, contents) = file.split_once(": ").unwrap_or((file, ""));
    let path = at.join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let bytes = match name.rsplit('.').next() {
        Some("parquet") => return write_table(contents, jpeg, &path),
        Some("tar") => tar(contents, jpeg),
        Some("csv" | "txt" | "jsonl") => contents.replace(" / ", "\n").into_bytes(),
        _ => jpeg.to_vec(),
    };
    std::fs::write(path, bytes).expect("a file");
}

fn sum(counts: &Value) -> u64 {
    let counts = counts.as_object().expect("counts").values();
    counts.map(|counted| counted["count"].as_u64().expect("a number")).sum()
}

/// What one code span of an outcome says, and what the plan says of the same.
fn compare(span: &str, plan: &Value) -> (String, String) {
    let splits = plan["splits"].as_object().expect("splits");
    let number = |split: &Value, field: &str| split[field].as_u64().expect("a number");
    let found = match span.split_once(' ') {
        Some(("classes", _)) => {
            let mut names: Vec<&str> = plan["classes"]["first"]
                .as_array()
                .expect("names")
                .iter()
                .filter_map(Value::as_str)
                .collect();
            names.dedup();
            format!("classes {}", names.join(", "))
        }
        Some(("unlabelled", _)) => {
            format!("unlabelled {}", splits.values().map(|split| number(split, "unlabelled")).sum::<u64>())
        }
        Some(("rejected", _)) => format!("rejected {}", sum(&plan["rejected"])),
        Some(("passed", _)) => format!("passed over {}", sum(&plan["passed_over"])),
        Some(("warning", words)) => {
            let warnings = plan["warnings"].as_array().expect("warnings");
            let warnings: Vec<&str> = warnings.iter().filter_map(Value::as_str).collect();
            let has_words = warnings.iter().any(|warning| warning.contains(words));
            if has_words { span.to_owned() } else { format!("warnings {warnings:?}") }
        }
        _ => {
            let counts = splits.iter().map(|(name, split)| format!("{name} {}", number(split, "images")));
            counts.collect::<Vec<_>>().join(", ")
        }
    };
    (span.to_owned(), found)
}

#[test]
fn every_line_of_the_table_becomes_what_it_says() {
    let jpeg = support::jpeg();
    let lines = table();
    assert!(lines.len() > 40, "the table is found");
    let mut wrong = Vec::new();
    for line in lines {
        let dir = scratch();
        let source = dir.path().join("source");
        line.files.iter().for_each(|file| make(&source, file, &jpeg));
        let wants_list = line.options.contains("--format list");
        let list = line.files[0].split(": ").next().expect("a name");
        let source = if wants_list { source.join(list) } else { source };
        let mut call = instdisc("ingest --plan=json");
        let mut file_option = false;
        for word in line.options.split_whitespace() {
            let is_file = std::mem::replace(&mut file_option, matches!(word, "--labels" | "--classes"));
            if is_file {
                call = call.arg("", dir.path().join("source").join(word));
            } else {
                call = call.arg("", word);
            }
        }
        let call = call.arg("--source", &source);
        let shown = format!("{:?} {}", line.files, line.options);
        if let Some(reason) = line.outcome.first().and_then(|span| span.strip_prefix("error: ")) {
            let error = call.fails(65);
            if !error.contains(reason) {
                wrong.push(format!("{shown}: expected {reason:?} in {error}"));
            }
            continue;
        }
        let plan = call.json();
        for span in &line.outcome {
            let (expected, found) = compare(span, &plan);
            if expected != found {
                wrong.push(format!("{shown}: expected {expected:?}, found {found:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
