//! Exports a dataset's images as files: `<dest>/<split>/<class>/<file>`.
//!
//! Each file has the bytes that the ingest read. Images that the ingest changed (smaller, baseline) are exported
//! as they are stored. A repeated export changes nothing.
//!
//! Each image becomes one file, named by the path of its row. A labelled image is in the folder of its class, so
//! that an ingest of the files gives the same labels; if its path begins with another folder, only the file's
//! name is kept. A name without an image's extension gets that of the image's format. Three kinds of rows get
//! `-<instance id>` before the extension: all but the first of several rows with one path, a row whose path is a
//! folder of another row, and a row whose name is cut because it is too long for file systems. Control characters,
//! and a `#` before a number at the end, become `%` and two hexadecimal digits.

use std::collections::{BTreeMap, HashMap, HashSet};

use rayon::prelude::*;
use serde::Serialize;

use super::IngestError;
use super::job::overlap;
use super::source::{as_path_part, is_image};
use crate::dataset::{IndexRow, Manifest, Row, ShardEntry, ShardReader, Split, read_index};
use crate::ids::InstanceId;
use crate::image::format_of;
use crate::progress::Progress;
use crate::storage::{Location, PublishMode, StorageError, read_concurrently};

/// Maximum length of a folder's name in file systems.
const MOST_FOLDER_BYTES: usize = 255;
/// Maximum length of a file's name; it is staged under this name and `#` with a number.
const MOST_NAME_BYTES: usize = 250;
/// Length above which a class's folder name is cut, and gets the number of the class.
const MOST_CLASS_BYTES: usize = 240;
/// Number of bytes that suffice to recognise the format of an image.
const HEAD_BYTES: u64 = 1024;
/// Length from which an ending does not count as an extension.
const MOST_EXTENSION_BYTES: usize = 16;

/// Options of an export.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Folder of the dataset.
    pub dataset: Location,
    /// Folder for the files.
    pub dest: Location,
    /// Split to export; `None` for all.
    pub split: Option<String>,
}

/// Result of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// Results of the splits, by name.
    pub splits: BTreeMap<String, ExportedSplit>,
}

/// Result of exporting a split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExportedSplit {
    /// Number of files, including those that existed before.
    pub images: u64,
    /// Number of images whose bytes the ingest changed.
    pub not_original: u64,
    /// Number of images whose file name differs from their path.
    pub renamed: u64,
}

/// Writes the images of a dataset as files.
///
/// # Errors
/// If the dataset is damaged, the destination overlaps it, an image's path leads outside of its split's folder (then
/// nothing is written), another file has the name of one, or a store fails.
pub fn export(options: &ExportOptions, progress: &dyn Progress) -> Result<ExportReport, IngestError> {
    let manifest = Manifest::read(&options.dataset)?;
    let is_wanted = |name: &&String| options.split.as_ref().is_none_or(|wanted| wanted == *name);
    let wanted: Vec<_> = manifest.splits.iter().filter(|(name, _)| is_wanted(name)).collect();
    if let (Some(split), true) = (&options.split, wanted.is_empty()) {
        return Err(IngestError::layout(&options.dataset, format!("it has no split {split:?}")));
    }
    if wanted.iter().any(|(name, _)| overlap(&options.dest.join(name), &options.dataset)) {
        let reason = format!("it overlaps the dataset {}; give another folder", options.dataset);
        return Err(IngestError::layout(&options.dest, reason));
    }
    let classes = class_folders(&manifest.classes);
    let named = wanted.into_iter().map(|(name, split)| {
        let names = renamed(&options.dataset, split, &classes)?;
        Ok((name, split, names))
    });
    // All names are known before the first file is written.
    let named = named.collect::<Result<Vec<_>, IngestError>>()?;
    let mut splits = BTreeMap::new();
    for (name, split, names) in named {
        progress.begin(&format!("export {name}"), split.instances);
        let (folder, classes) = (options.dest.join(name), manifest.classes.len());
        let write = |shard: &ShardEntry| {
            let reader = ShardReader::open(&options.dataset, shard, classes, split.instances)?;
            (0..reader.row_groups()).try_for_each(|row_group| {
                write_images(&folder, &names, reader.read_row_group(row_group)?, reader.shown(), progress)
            })
        };
        split.shards.par_iter().try_for_each(write)?;
        progress.finish();
        let not_original = split.ingest.iter().map(|part| part.report.re_encoded).sum();
        let exported = ExportedSplit { images: split.instances, not_original, renamed: names.len() as u64 };
        splits.insert(name.clone(), exported);
    }
    Ok(ExportReport { splits })
}

/// Writes images to the folder of their split, with their names in `names`, or else at the paths of their rows.
fn write_images(
    folder: &Location,
    names: &HashMap<InstanceId, String>,
    rows: Vec<Row>,
    shard: &str,
    progress: &dyn Progress,
) -> Result<(), IngestError> {
    for row in rows {
        let path = match names.get(&row.id) {
            Some(name) => name.clone(),
            None => safe_path(&row.path).ok_or_else(|| leads_outside(shard, &row.path))?,
        };
        let file = folder.join(&path);
        match file.publish(row.bytes.clone(), PublishMode::Create) {
            Err(StorageError::AlreadyExists { .. }) if file.read()? == row.bytes => {}
            other => other?,
        }
        progress.advance(1);
    }
    Ok(())
}

/// A class: its name as the first part of a path, and its folder.
struct ClassFolder {
    part: String,
    folder: String,
}

/// Returns a folder for each class, with a name that an ingest does not skip.
fn class_folders(classes: &[String]) -> Vec<ClassFolder> {
    let mut taken: HashSet<String> = HashSet::with_capacity(classes.len());
    let folder = |(number, class): (usize, &String)| {
        let part = as_path_part(class);
        let mut folder = part.strip_prefix('.').map_or_else(|| part.clone(), |rest| format!("_{rest}"));
        if folder.len() > MOST_CLASS_BYTES {
            folder = format!("{}-{number}", cut(&folder, MOST_CLASS_BYTES));
        }
        while !taken.insert(folder.clone()) {
            folder = format!("{folder}-{number}");
        }
        ClassFolder { part, folder }
    };
    classes.iter().enumerate().map(folder).collect()
}

/// Moves the path of a row into the folder of its class.
fn below_class(path: String, class: Option<&ClassFolder>) -> String {
    let Some(ClassFolder { part, folder }) = class else { return path };
    match path.split_once('/') {
        Some((first, rest)) if first == part => format!("{folder}/{rest}"),
        _ => format!("{folder}/{}", last(&path)),
    }
}

/// Adds the extension of the image's format to names that have none of an image.
fn add_endings(
    dataset: &Location,
    split: &Split,
    rows: &[IndexRow],
    paths: &mut [String],
) -> Result<(), IngestError> {
    let (mut wanted, mut heads) = (Vec::new(), Vec::new());
    for (number, (row, _)) in rows.iter().zip(&*paths).enumerate().filter(|(_, (_, path))| !is_image(path)) {
        if let Some(shard) = split.shards.get(row.place.shard as usize) {
            let end = row.place.offset + HEAD_BYTES.min(row.place.bytes.into());
            heads.push((dataset.join(&shard.path), Some(row.place.offset..end)));
            wanted.push(number);
        }
    }
    for (number, head) in wanted.into_iter().zip(read_concurrently(heads)) {
        if let Some(format) = format_of(&head?) {
            paths[number].push_str(format.ending());
        }
    }
    Ok(())
}

/// Returns the file names of rows that differ from their paths; the module's documentation has the rules.
fn renamed(
    dataset: &Location,
    split: &Split,
    classes: &[ClassFolder],
) -> Result<HashMap<InstanceId, String>, IngestError> {
    let mut rows: Vec<IndexRow> = Vec::new();
    for part in &split.ingest {
        rows.extend(read_index(dataset, &part.index)?);
    }
    let clean = |row: &IndexRow| {
        let path = safe_path(&row.path).ok_or_else(|| leads_outside(dataset, &row.path))?;
        Ok(below_class(path, row.label.and_then(|label| classes.get(label.index()))))
    };
    let mut paths = rows.iter().map(clean).collect::<Result<Vec<String>, IngestError>>()?;
    add_endings(dataset, split, &rows, &mut paths)?;
    let folders: HashSet<&str> = paths.iter().flat_map(|path| ancestors(path)).collect();
    let mut taken: HashSet<&str> = HashSet::with_capacity(paths.len());
    let mut later = Vec::new();
    for (row, path) in rows.iter().zip(&paths) {
        let fits = last(path).len() <= MOST_NAME_BYTES
            && ancestors(path).all(|folder| last(folder).len() <= MOST_FOLDER_BYTES);
        if !fits || folders.contains(path.as_str()) || !taken.insert(path) {
            later.push((row, path));
        }
    }
    let cleaned = rows.iter().zip(&paths).filter(|(row, path)| row.path != **path);
    let mut names: HashMap<InstanceId, String> = cleaned.map(|(row, path)| (row.id, path.clone())).collect();
    let mut given: HashSet<String> = HashSet::with_capacity(later.len());
    for (row, path) in later {
        let mut name = numbered(path, row.id);
        // Another row may have this very path.
        while taken.contains(name.as_str()) || folders.contains(name.as_str()) || given.contains(&name) {
            name = numbered(&name, row.id);
        }
        given.insert(name.clone());
        names.insert(row.id, name);
    }
    Ok(names)
}

/// Returns the folders that contain a path, outermost first.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| &path[..end])
}

/// Inserts the instance's id before the path's extension, and cuts parts that are too long.
fn numbered(path: &str, id: InstanceId) -> String {
    let mut numbered: String =
        ancestors(path).map(|folder| cut(last(folder), MOST_FOLDER_BYTES).to_owned() + "/").collect();
    let (stem, extension) = match last(path).rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() && extension.len() < MOST_EXTENSION_BYTES => {
            (stem, format!(".{extension}"))
        }
        _ => (last(path), String::new()),
    };
    let end = format!("-{}{extension}", id.0);
    numbered.push_str(cut(stem, MOST_NAME_BYTES - end.len()));
    numbered + &end
}

/// Returns the part after the last `/`.
fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Returns the longest prefix of at most `bytes` bytes.
fn cut(text: &str, bytes: usize) -> &str {
    let ends = text.char_indices().map(|(start, character)| start + character.len_utf8());
    &text[..ends.take_while(|&end| end <= bytes).last().unwrap_or(0)]
}

/// Returns a path below the split's folder, with characters that are invalid in file names replaced. `None` if the path
/// is empty or leads out of the folder, also with `\\` as separator.
fn safe_path(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() || parts.iter().any(|part| part.split('\\').any(|part| part == "..")) {
        return None;
    }
    let clean = |character: char| match character {
        bad if bad.is_ascii_control() => format!("%{:02X}", u32::from(bad)),
        good => good.to_string(),
    };
    let clean: String = parts.join("/").chars().map(clean).collect();
    // The local store reserves `#` and a number for files that are being written.
    let number = last(&clean).split_once('#').map_or("", |(_, number)| number);
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(clean);
    }
    let name = &clean[..clean.len() - number.len() - 1];
    Some(format!("{name}%23{number}"))
}

fn leads_outside(location: impl std::fmt::Display, path: &str) -> IngestError {
    IngestError::layout(location, format!("the path {path:?} leads outside of the split"))
}
