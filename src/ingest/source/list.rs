//! A list of pictures: csv or jsonl of path and, optionally, label.
//!
//! Paths start at the folder of the list; on this machine they may be absolute. A list without labels is a
//! set of unlabelled pictures.

use std::collections::BTreeMap;

use super::archive::{Extent, failed};
use super::collect::{Collector, Label, Place};
use super::webdataset::number_or_name;
use super::wrong;
use crate::ingest::IngestError;
use crate::storage::Location;

/// Names of the column that holds the path.
const PATH_NAMES: [&str; 6] = ["path", "file", "filename", "file_name", "image", "filepath"];
/// Names of the column that holds the label.
const LABEL_NAMES: [&str; 5] = ["label", "class", "cls", "wnid", "target"];

/// Whether a file that begins so is a list: jsonl, or a csv whose first line names a column of paths.
pub(super) fn looks_like_list(head: &[u8]) -> bool {
    let first = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let Ok(first) = std::str::from_utf8(first) else { return false };
    let first = first.trim_start_matches('\u{FEFF}').trim();
    let is_header = first.split(',').any(|name| PATH_NAMES.contains(&clean(name).as_str()));
    is_header
        || (first.starts_with('{') && PATH_NAMES.iter().any(|name| first.contains(&format!("\"{name}\""))))
}

fn clean(name: &str) -> String {
    name.trim().trim_matches('"').to_ascii_lowercase()
}

/// The lines of a small file, without empty ones.
pub(super) fn read_lines(file: &Location) -> Result<Vec<String>, IngestError> {
    let bytes = file.read()?;
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong(file, "it is no text"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(str::to_owned).collect())
}

/// A line of a list.
struct Line {
    number: u64,
    path: String,
    label: Option<String>,
}

/// Adds the pictures of a list.
pub(super) fn collect(collector: &mut Collector<'_>, list: &Location) -> Result<(), IngestError> {
    let split = collector.default_split();
    let root = list.folder().unwrap_or_else(|| list.clone());
    let below = collector.containers.add_folder(root.clone());
    let mut absolute = None;
    let mut sizes = None;
    for Line { number, path, label } in lines(list)? {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if parts.is_empty() || parts.contains(&"..") {
            return Err(wrong(list, format!("line {number}: {path:?} is no path below the list's folder")));
        }
        let part = match (path.starts_with('/'), root.local_path()) {
            (true, Some(_)) => {
                let slash = Location::from_path(std::path::Path::new("/"))?;
                *absolute.get_or_insert_with(|| collector.containers.add_folder(slash))
            }
            (true, None) => return Err(wrong(list, format!("line {number}: {path:?} is an absolute path"))),
            (false, _) => below,
        };
        let path = parts.join("/");
        let bytes = size(&root, &path, part == below, &mut sizes)?
            .ok_or_else(|| wrong(list, format!("line {number}: {path:?} is not there")))?;
        let label = label.as_deref().map_or(Label::None, number_or_name);
        let place = Place { container: part, extent: Extent::Range { offset: 0 }, bytes };
        collector.add(&split, &path, label, place)?;
    }
    Ok(())
}

/// A file's size; an object store is listed once for all of them.
fn size(
    root: &Location,
    path: &str,
    is_below: bool,
    sizes: &mut Option<BTreeMap<String, u64>>,
) -> Result<Option<u64>, IngestError> {
    if let Some(folder) = root.local_path() {
        let file = if is_below { folder.join(path) } else { std::path::Path::new("/").join(path) };
        return match std::fs::metadata(&file) {
            Ok(found) => Ok(found.is_file().then_some(found.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("look up", file.display().to_string(), error).into()),
        };
    }
    if sizes.is_none() {
        *sizes = Some(root.list()?.into_iter().map(|entry| (entry.name, entry.bytes)).collect());
    }
    Ok(sizes.as_ref().and_then(|sizes| sizes.get(path).copied()))
}

fn lines(list: &Location) -> Result<Vec<Line>, IngestError> {
    let bytes = list.read()?;
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong(list, "it is no text"))?;
    let text = text.trim_start_matches('\u{FEFF}');
    if text.trim_start().starts_with('{') { jsonl(list, text) } else { csv(list, text) }
}

fn jsonl(list: &Location, text: &str) -> Result<Vec<Line>, IngestError> {
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |reason: &str| wrong(list, format!("line {number}: {reason}"));
        let value: serde_json::Value = serde_json::from_str(line).map_err(|error| bad(&error.to_string()))?;
        let field = |names: &[&str]| names.iter().find_map(|name| value.get(name)).cloned();
        let Some(serde_json::Value::String(path)) = field(&PATH_NAMES) else {
            return Err(bad("it has no path"));
        };
        let label = match field(&LABEL_NAMES) {
            None | Some(serde_json::Value::Null) => None,
            Some(serde_json::Value::String(name)) => Some(name).filter(|name| !name.is_empty()),
            Some(serde_json::Value::Number(number)) if number.is_u64() => Some(number.to_string()),
            Some(serde_json::Value::Number(number)) if number.as_i64() == Some(-1) => None,
            Some(_) => return Err(bad("its label is neither a name nor a number")),
        };
        lines.push(Line { number, path, label });
    }
    Ok(lines)
}

fn csv(list: &Location, text: &str) -> Result<Vec<Line>, IngestError> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let bad = |error: csv::Error| wrong(list, error.to_string());
    let header = reader.headers().map_err(bad)?.clone();
    let column = |names: &[&str]| header.iter().position(|name| names.contains(&clean(name).as_str()));
    let path = column(&PATH_NAMES)
        .ok_or_else(|| wrong(list, format!("its first line names no column of paths ({PATH_NAMES:?})")))?;
    let label = column(&LABEL_NAMES);
    let mut lines = Vec::new();
    for record in reader.records() {
        let record = record.map_err(bad)?;
        let number = record.position().map_or(0, csv::Position::line);
        let field = |at: usize| record.get(at).unwrap_or_default().to_owned();
        let label = label.map(field).filter(|label| !label.is_empty() && label != "-1");
        lines.push(Line { number, path: field(path), label });
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_known_by_its_first_line() {
        assert!(looks_like_list(b"path,label\na.jpg,1\n"));
        assert!(looks_like_list(b"\"Filename\" , x\n"));
        assert!(looks_like_list(b"{\"file_name\": \"a.jpg\"}\n"));
        assert!(!looks_like_list(b"no tar"));
        assert!(!looks_like_list(b"{\"a\": 1}"));
        assert!(!looks_like_list(&[0xFF, 0xFE, 0]));
    }
}
