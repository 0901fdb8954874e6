//! Lists of images: csv or jsonl of path and, optionally, label and split.
//!
//! Paths start at the folder of the list; on this machine they may be absolute. Without a column of labels the images
//! are unlabelled.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use super::super::archive::{Extent, failed};
use super::super::names::{examples, is_among};
use super::super::records::{Container, Evidence, Fault, ImageBytes, Naming, Record, Records};
use super::folder::{self, ListedFile};
use super::{LABEL_NAMES, SPLIT_NAME, choose_column, unread_split};
use crate::ingest::IngestError;
use crate::storage::{Location, Stamp};

/// Names of the column that contains the path.
pub(super) const PATH_NAMES: [&str; 9] =
    ["path", "file", "filename", "file_name", "image", "filepath", "file_path", "image_path", "img_path"];
/// Separators of the columns of a csv, tried in this order.
pub(super) const SEPARATORS: [char; 3] = [',', '\t', ';'];

/// Returns whether the first bytes are those of a list: jsonl, or a csv whose first line names a column of paths.
pub(crate) fn looks_like_list(head: &[u8]) -> bool {
    let first = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    // The head may end within a character.
    let first = match std::str::from_utf8(first) {
        Ok(first) => first,
        Err(error) if first.len() == head.len() && error.error_len().is_none() => {
            std::str::from_utf8(&first[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    let first = first.trim_start_matches('\u{FEFF}').trim();
    let is_header = |&separator: &char| {
        reader(first, separator).headers().is_ok_and(|names| names.iter().any(|it| is_among(it, &PATH_NAMES)))
    };
    SEPARATORS.iter().any(is_header)
        || (first.starts_with('{') && PATH_NAMES.iter().any(|name| first.contains(&format!("\"{name}\""))))
}

/// Makes a reader of a csv, in which quoted text contains no separators.
fn reader(text: &str, separator: char) -> csv::Reader<&[u8]> {
    csv::ReaderBuilder::new().trim(csv::Trim::All).delimiter(separator as u8).from_reader(text.as_bytes())
}

/// A line of a list.
struct Line {
    number: u64,
    path: String,
    label: Option<String>,
    split: Option<String>,
}

/// Adds the images of the lists.
pub(crate) fn collect(records: &mut Records<'_>, lists: &[Container]) -> Result<(), IngestError> {
    records.naming = Naming::AsIs;
    let mut folders = Folders::new();
    for container in lists {
        let list = &container.location;
        let origin = records.add_origin(&container.name);
        let root = list.folder().unwrap_or_else(|| list.clone());
        for Line { number, path, label, split } in lines(records, list)? {
            let bad = |reason: String| IngestError::layout(list, format!("line {number}: {reason}"));
            let plain = path.strip_prefix("file://").unwrap_or(&path);
            if plain.contains("://") {
                return Err(bad(format!("`{path}` is a URL; a list names files below its folder")));
            }
            let parts: Vec<&str> = plain.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
            if parts.is_empty() || parts.contains(&"..") {
                return Err(bad(format!("`{path}` is not a path below the folder of the list")));
            }
            let absolute = plain.starts_with('/');
            if absolute && root.local_path().is_none() {
                return Err(bad(format!("`{path}` is an absolute path, and the list is in an object store")));
            }
            let relative = parts.join("/");
            let folder = if absolute { Location::from_path(Path::new("/"))? } else { root.clone() };
            let found = find(&mut folders, records, &folder, &relative)?;
            let fault = found.is_none().then_some(Fault::NotThere);
            let evidence = label.map_or(Evidence::Absent, |label| Evidence::Text(records.word(&label)));
            let split = split.map(|split| records.word(&split));
            let place = found.unwrap_or(ImageBytes::NONE);
            records.push_row(Record { split, fault, ..Record::new(origin, relative, evidence, place) });
        }
    }
    Ok(())
}

/// Folders of the files that lists name: the container of each and, in an object store, its files.
type Folders = HashMap<String, (u32, BTreeMap<String, ListedFile>)>;

/// Looks up a file; `None` if it does not exist.
fn find(
    folders: &mut Folders,
    records: &mut Records<'_>,
    root: &Location,
    path: &str,
) -> Result<Option<ImageBytes>, IngestError> {
    let (container, files) = match folders.entry(root.to_string()) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(new) => {
            let files = match root.local_path() {
                Some(_) => BTreeMap::new(),
                None => folder::list(root)?.files.into_iter().collect(),
            };
            new.insert((records.containers.add_folder(root.clone()), files))
        }
    };
    let found = match root.local_path() {
        Some(local) => {
            let file = local.join(path);
            match std::fs::metadata(&file) {
                Ok(found) => found.is_file().then(|| (found.len(), Stamp::of_time(&found))),
                Err(error) if is_not_there(&error) => None,
                Err(error) => return Err(failed("look up", file.display().to_string(), error).into()),
            }
        }
        None => files.get(path).copied(),
    };
    Ok(found.map(|(bytes, stamp)| {
        records.stamps.add(path, stamp);
        ImageBytes { container: *container, extent: Extent::Range { offset: 0 }, bytes }
    }))
}

fn is_not_there(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | InvalidFilename)
}

fn lines(records: &mut Records<'_>, list: &Location) -> Result<Vec<Line>, IngestError> {
    let bytes = list.read()?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| IngestError::layout(list, "not UTF-8 text; convert it: `iconv -f UTF-16 -t UTF-8`"))?;
    let text = text.trim_start_matches('\u{FEFF}');
    if text.trim_start().starts_with('{') { jsonl(records, list, text) } else { csv(records, list, text) }
}

fn jsonl(records: &mut Records<'_>, list: &Location, text: &str) -> Result<Vec<Line>, IngestError> {
    let mut objects = Vec::new();
    let mut names: Vec<String> = Vec::new();
    let mut known: HashSet<String> = HashSet::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |reason: String| IngestError::layout(list, format!("line {number}: {reason}"));
        let value: serde_json::Value = serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
        let serde_json::Value::Object(object) = value else { return Err(bad("not a JSON object".into())) };
        for name in object.keys() {
            if !known.contains(name) {
                known.insert(name.clone());
                names.push(name.clone());
            }
        }
        objects.push((number, object));
    }
    // The meaning of a field is decided over all lines together.
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let Columns { path, label, split } = find_columns(records, list, &names)?;
    let mut lines = Vec::with_capacity(objects.len());
    for (number, object) in objects {
        let bad = |reason: String| IngestError::layout(list, format!("line {number}: {reason}"));
        let Some(serde_json::Value::String(path)) = object.get(names[path]) else {
            return Err(bad(format!("its field `{}` holds no path", names[path])));
        };
        let text = |at: Option<usize>, what: &str| match at.and_then(|at| object.get(names[at])) {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(serde_json::Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Some(serde_json::Value::Number(number)) => Ok(Some(number.to_string())),
            Some(_) => Err(bad(format!("its {what} is neither a name nor a number"))),
        };
        lines.push(Line {
            number,
            path: path.clone(),
            label: text(label, "label")?,
            split: text(split, "split")?,
        });
    }
    Ok(lines)
}

/// Columns with the path, the label and the split.
struct Columns {
    path: usize,
    label: Option<usize>,
    split: Option<usize>,
}

/// Finds the columns, notes the origin of labels, and warns of a column that may contain the split.
fn find_columns(records: &mut Records<'_>, list: &Location, names: &[&str]) -> Result<Columns, IngestError> {
    let options = records.options;
    let find = |option, asked: &Option<String>, known: &[&str]| {
        choose_column(names, option, asked.as_deref(), known)
            .map_err(|reason| IngestError::layout(list, reason))
    };
    let path = find("--image-column", &options.image_column, &PATH_NAMES)?.ok_or_else(|| {
        IngestError::layout(list, format!("no field of paths; its fields are {}", examples(names)))
    })?;
    let label = find("--label-column", &options.label_column, &LABEL_NAMES)?;
    let split = names.iter().position(|name| name.eq_ignore_ascii_case(SPLIT_NAME));
    records.note(match label {
        Some(label) => format!("labels: from the column `{}`", names[label]),
        None => "labels: none, since no column is called like one (`--label-column` names one)".into(),
    });
    unread_split(names, true).into_iter().for_each(|warning| records.warn(warning));
    Ok(Columns { path, label, split })
}

fn csv(records: &mut Records<'_>, list: &Location, text: &str) -> Result<Vec<Line>, IngestError> {
    let options = records.options;
    let wrong = |reason: String| IngestError::layout(list, reason);
    let bad = |error: csv::Error| wrong(error.to_string());
    let names_path = |header: &csv::StringRecord| {
        header.iter().any(|name| match &options.image_column {
            Some(asked) => name == asked,
            None => is_among(name, &PATH_NAMES),
        })
    };
    let mut headers = Vec::new();
    for separator in SEPARATORS {
        headers.push((separator, reader(text, separator).headers().map_err(bad)?.clone()));
    }
    let columns = headers[0].1.clone();
    headers.retain(|(_, header)| names_path(header));
    let (separator, header) = match headers.as_slice() {
        [] => {
            return Err(wrong(format!(
                "its first line names no column of paths, but {}: add one, such as `path,label`, or name it with \
                 `--image-column`",
                examples(&columns.iter().collect::<Vec<_>>())
            )));
        }
        // A header of one name is the same with each separator.
        [(one, header), (other, _), ..] if header.len() > 1 => {
            return Err(wrong(format!(
                "its first line names a column of paths both by {one:?} and by {other:?} between columns: put a name \
                 that holds one of them in quotes"
            )));
        }
        [(separator, header), ..] => (*separator, header),
    };
    let mut reader = reader(text, separator);
    let names: Vec<&str> = header.iter().collect();
    let Columns { path, label, split } = find_columns(records, list, &names)?;
    let mut lines = Vec::new();
    for record in reader.records() {
        let record = record.map_err(bad)?;
        let number = record.position().map_or(0, csv::Position::line);
        let field = |at: usize| record.get(at).unwrap_or_default().to_owned();
        let some = |at: Option<usize>| at.map(field).filter(|text| !text.is_empty());
        lines.push(Line { number, path: field(path), label: some(label), split: some(split) });
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
        assert!(looks_like_list(b"label;path\n"));
        assert!(looks_like_list(b"\xEF\xBB\xBF\"a, b\"\t\"path\"\r\n"));
        assert!(!looks_like_list(b"\"a,path\",label\n"));
        assert!(looks_like_list(b"{\"file_name\": \"a.jpg\"}\n"));
        assert!(!looks_like_list(b"no tar"));
        assert!(!looks_like_list(b"{\"a\": 1}"));
        assert!(!looks_like_list(&[0xFF, 0xFE, 0]));
        let mut cut = b"path,".to_vec();
        cut.extend("ü".as_bytes().iter().take(1));
        assert!(looks_like_list(&cut));
    }
}
