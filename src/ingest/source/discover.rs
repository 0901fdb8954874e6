//! Recognises a source by its content.

use std::collections::HashSet;
use std::path::Path;

use super::SourceFormat;
use super::archive::{Compression, SourceFile, compression, first_bytes, looks_like_tar};
use super::formats::folder::{self, Listing};
use super::formats::list;
use super::names::{
    examples, file_name, is_image, is_list, is_other_archive, is_table, is_tar, missing_shard,
};
use super::records::{Container, Counts, count, ignored, passed_over_reason, whole_path};
use crate::ingest::{IngestError, IngestOptions, work_through};
use crate::storage::{Location, StorageError};

/// Number of bytes read to recognise a file.
const HEAD_BYTES: u64 = 4096;
/// Number of bytes read to recognise a compressed file: the first block of zstd is not longer.
const COMPRESSED_HEAD_BYTES: u64 = 192 << 10;
/// Number of files that are examined concurrently; each takes one or two requests to a store.
pub(super) const FILES_AT_ONCE: usize = 32;
/// Size of a tar's header in bytes.
const TAR_HEADER_BYTES: usize = 512;
/// Files of CIFAR's archives, binary and for Python.
const CIFAR_FILES: [&str; 4] = ["data_batch_1.bin", "data_batch_1", "test.bin", "batches.meta"];

/// Content of a source, and the files that are skipped.
#[derive(Debug)]
pub(super) struct Discovered {
    /// `Imagefolder`, `Tar`, `Parquet` or `List`; the layout of tars is decided later, by their members.
    pub form: SourceFormat,
    /// Files that contain images or name them; empty for a folder of images.
    pub containers: Vec<Container>,
    /// Files of a folder of images.
    pub listing: Listing,
    pub passed_over: Counts,
    /// Other files of the source, possibly with labels.
    pub others: Vec<(String, Location)>,
}

/// Kind of a file, by its first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Container(SourceFormat, Option<Compression>),
    /// An unsupported kind, with advice.
    Other(String),
}

/// Recognises the sources by their content.
///
/// # Errors
/// If they have no known format, two formats at once or another than requested, or if a store fails.
pub(super) fn discover(options: &IngestOptions) -> Result<Discovered, IngestError> {
    let found = match options.sources.as_slice() {
        [one] => discover_one(options, one),
        several => discover_files(options, several),
    };
    let found = found.map_err(|error| match error {
        IngestError::Storage(StorageError::NotFound { location, .. }) => {
            IngestError::layout(location, "no such source")
        }
        other => other,
    })?;
    if fits(found.form, options.format) {
        return Ok(found);
    }
    let shown = match found.form {
        SourceFormat::Tar => "a tar",
        SourceFormat::Parquet => "Parquet",
        SourceFormat::List => "a list",
        _ => "a folder of files",
    };
    let wanted = options.format.name();
    let reason = format!("`--format {wanted}` was asked for, but the source is {shown}");
    Err(IngestError::layout(&options.sources[0], reason))
}

/// Returns whether files of this form can have the requested format.
fn fits(form: SourceFormat, wanted: SourceFormat) -> bool {
    use SourceFormat::{Auto, Cifar, Imagenet, Tar, Webdataset};
    wanted == Auto || wanted == form || form == Tar && [Webdataset, Imagenet, Cifar].contains(&wanted)
}

fn discover_one(options: &IngestOptions, source: &Location) -> Result<Discovered, IngestError> {
    if source.local_path().is_some_and(Path::is_dir) {
        return discover_folder(options, source);
    }
    // A file that the user names does not count as hidden.
    let file = (source.clone(), source.file_name().trim_start_matches('.').to_owned());
    match of_containers(source, vec![file], Counts::new(), Vec::new()) {
        Err(IngestError::Storage(error)) if error.is_not_found() && source.local_path().is_none() => {
            discover_folder(options, source)
        }
        found => found,
    }
}

/// Recognises several files, such as the shards that a pattern matches.
fn discover_files(options: &IngestOptions, sources: &[Location]) -> Result<Discovered, IngestError> {
    if let Some(folder) = sources.iter().find(|file| file.local_path().is_some_and(Path::is_dir)) {
        let reason = "several sources must be files, this is a folder: ingest it with `--append`, or name the folder \
                      above";
        return Err(IngestError::layout(folder, reason));
    }
    let names = names_below_common_folder(sources);
    let mut known: HashSet<String> = HashSet::new();
    if let Some(twice) = sources.iter().find(|source| !known.insert(whole_path(source))) {
        return Err(IngestError::layout(twice, "it is named twice"));
    }
    let mut files = Vec::new();
    let mut passed_over = Counts::new();
    for (source, name) in sources.iter().zip(names) {
        match ignored(options, &name) {
            Some(reason) => count(&mut passed_over, reason, || name.clone()),
            None => files.push((source.clone(), name)),
        }
    }
    of_containers(&sources[0], files, passed_over, Vec::new())
}

/// Returns the names of files relative to their common folder, so that `train/0.tar` keeps its folder. Leading dots
/// are removed, since files that the user names do not count as hidden.
fn names_below_common_folder(sources: &[Location]) -> Vec<String> {
    let shown: Vec<String> = sources.iter().map(whole_path).collect();
    let first = shown.first().map_or("", String::as_str);
    let is_common = |folder: &&str| shown.iter().all(|name| name.starts_with(folder));
    let folders = first.match_indices('/').map(|(slash, _)| &first[..=slash]);
    let common = folders.take_while(is_common).last().unwrap_or("").len();
    let plain = |name: &String| {
        name[common..].split('/').map(|part| part.trim_start_matches('.')).collect::<Vec<_>>().join("/")
    };
    shown.iter().map(plain).collect()
}

/// Recognises a folder of images, or of files that contain them; both at once are ambiguous.
fn discover_folder(options: &IngestOptions, folder: &Location) -> Result<Discovered, IngestError> {
    let mut listing = folder::list(folder)?;
    if folder.local_path().is_none() && listing.files.is_empty() && listing.faults.is_empty() {
        return Err(StorageError::NotFound { location: folder.to_string(), local: false }.into());
    }
    let shards = listing.files.iter().map(|(path, _)| path.as_str());
    if let Some(missing) = missing_shard(shards.filter(|path| is_tar(path) || is_table(path))) {
        let reason = format!(
            "`{missing}` is not there, though others of its set are; name the files to ingest these alone"
        );
        return Err(IngestError::layout(folder, reason));
    }
    let mut passed_over = Counts::new();
    let mut keep = |path: &str| match passed_over_reason(options, path) {
        Some(reason) => {
            count(&mut passed_over, reason, || path.to_owned());
            false
        }
        None => true,
    };
    listing.files.retain(|(path, _)| keep(path));
    listing.faults.retain(|(path, _)| keep(path));
    type ByName = fn(&str) -> bool;
    let names = |is: ByName| -> Vec<&str> {
        listing.files.iter().map(|(path, _)| path.as_str()).filter(|path| is(path)).collect()
    };
    if let Some(archive) = names(is_other_archive).first() {
        let reason = format!(
            "it holds `{archive}`, an archive that is not read: unpack it, recompress it as `.tar.zst`, or \
             leave it out with `--ignore GLOB`"
        );
        return Err(IngestError::layout(folder, reason));
    }
    let forms: [(SourceFormat, ByName, &str); 4] = [
        (SourceFormat::Imagefolder, is_image, "images"),
        (SourceFormat::Tar, is_tar, "tars"),
        (SourceFormat::Parquet, is_table, "Parquet files"),
        (SourceFormat::List, is_list, "lists"),
    ];
    let found = forms.map(|(form, is, kind)| (form, is, kind, names(is)));
    let found: Vec<_> = found.into_iter().filter(|(.., names)| !names.is_empty()).collect();
    let mut present: Vec<_> = found.iter().filter(|(form, ..)| fits(*form, options.format)).collect();
    // Beside images, or anything else that is wanted, a list contains labels.
    if present.len() > 1 || found.first().is_some_and(|(form, ..)| *form == SourceFormat::Imagefolder) {
        present.retain(|(form, ..)| *form != SourceFormat::List);
    }
    if let [(one, _, kind, names), (other, _, other_kind, other_names), ..] = present.as_slice() {
        let reason = format!(
            "it holds {} {kind} ({}) and {} {other_kind} ({}): `--ignore GLOB` leaves files out, `--format {}` or \
             `--format {}` takes one kind",
            names.len(),
            examples(names),
            other_names.len(),
            examples(other_names),
            one.name(),
            other.name()
        );
        return Err(IngestError::layout(folder, reason));
    }
    // The caller reports a form that was not requested.
    let form = present.first().copied().or(found.first());
    let Some((_, is_packed, ..)) = form.filter(|(form, ..)| *form != SourceFormat::Imagefolder) else {
        if form.is_none() && listing.faults.iter().all(|(path, _)| !is_image(path)) {
            return Err(IngestError::layout(folder, nothing_to_read(folder, &listing)?));
        }
        let others = listing.files.iter().filter(|(path, _)| is_list(path) || path.ends_with(".tar.gz"));
        let others = others.map(|(path, _)| (path.clone(), folder.join(path))).collect();
        let form = SourceFormat::Imagefolder;
        return Ok(Discovered { form, containers: Vec::new(), listing, passed_over, others });
    };
    let (mut files, mut others) = (Vec::new(), Vec::new());
    for (path, _) in &listing.files {
        let location = folder.join(path);
        if is_packed(path) {
            files.push((location, path.clone()));
        } else {
            count(&mut passed_over, "files of another form", || path.clone());
            others.push((path.clone(), location));
        }
    }
    for (path, fault) in &listing.faults {
        if is_packed(path) {
            return Err(IngestError::layout(folder.join(path), fault.to_string()));
        }
        count(&mut passed_over, fault.to_string(), || path.clone());
    }
    of_containers(folder, files, passed_over, others)
}

/// Explains why nothing in a folder can be ingested.
fn nothing_to_read(folder: &Location, listing: &Listing) -> Result<String, IngestError> {
    let Some((path, _)) = listing.files.first() else { return Ok("there is no image in it".into()) };
    let is_of_cifar = |(path, _): &&(String, _)| CIFAR_FILES.contains(&file_name(path));
    if let Some((path, _)) = listing.files.iter().find(is_of_cifar) {
        return Ok(format!(
            "there is no image in it; `{path}` is of CIFAR's archive: ingest the binary one as it is downloaded \
             (`cifar-10-binary.tar.gz`, `cifar-100-binary.tar.gz`)"
        ));
    }
    let reason = match kind_of(&folder.join(path))? {
        Kind::Other(what) => format!("there is no image in it; `{path}`, for one: {what}"),
        _ => format!("there is no image in it; `{path}` can be a source by itself"),
    };
    Ok(reason)
}

fn of_containers(
    source: &Location,
    files: Vec<(Location, String)>,
    passed_over: Counts,
    others: Vec<(String, Location)>,
) -> Result<Discovered, IngestError> {
    let kinds = work_through(files.len(), FILES_AT_ONCE, |number| kind_of(&files[number].0))?;
    let mut containers = Vec::with_capacity(files.len());
    for ((location, name), kind) in files.into_iter().zip(kinds) {
        match kind {
            Kind::Container(form, compression) => {
                containers.push((form, Container { location, name, compression }));
            }
            Kind::Other(reason) => return Err(IngestError::layout(&location, reason)),
        }
    }
    let Some(&(form, ref first)) = containers.first() else {
        return Err(IngestError::layout(source, "`--ignore` leaves nothing of it"));
    };
    if let Some((_, other)) = containers.iter().find(|(other, _)| *other != form) {
        let names = examples(&[&first.name, &other.name]);
        let reason = format!("it mixes tars, Parquet files and lists ({names}): ingest one kind at a time");
        return Err(IngestError::layout(source, reason));
    }
    let containers = containers.into_iter().map(|(_, container)| container).collect();
    Ok(Discovered { form, containers, listing: Listing::default(), passed_over, others })
}

/// Recognises a file by its content.
fn kind_of(location: &Location) -> Result<Kind, IngestError> {
    let file = SourceFile::open(location)?;
    let head = file.head(HEAD_BYTES)?;
    if head.starts_with(b"PAR1") {
        return Ok(Kind::Container(SourceFormat::Parquet, None));
    }
    let compression = match compression(&head) {
        Ok(compression) => compression,
        Err(reason) => return Ok(Kind::Other(reason)),
    };
    let is_tar_inside = match compression {
        Some(compression) => {
            let head = file.head(COMPRESSED_HEAD_BYTES)?;
            looks_like_tar(&first_bytes(&head, compression, TAR_HEADER_BYTES))
        }
        None => looks_like_tar(&head),
    };
    if is_tar_inside {
        return Ok(Kind::Container(SourceFormat::Tar, compression));
    }
    if compression.is_some() {
        return Ok(Kind::Other("compressed, but not a tar; unpack it first".into()));
    }
    if is_tar(location.file_name()) && head.iter().all(|&byte| byte == 0) {
        let what = if head.is_empty() { "empty" } else { "a tar without members" };
        return Ok(Kind::Other(format!("{what}; leave it out with `--ignore`")));
    }
    if list::looks_like_list(&head) || is_list(location.file_name()) && std::str::from_utf8(&head).is_ok() {
        return Ok(Kind::Container(SourceFormat::List, None));
    }
    Ok(Kind::Other(describe(&head)))
}

/// Describes an unsupported file's probable kind, with advice.
fn describe(head: &[u8]) -> String {
    const KNOWN: [(&[u8], &str); 14] = [
        (b"PK\x03\x04", "a zip (or npz); unpack it and ingest the folder"),
        (b"PK\x05\x06", "an empty zip"),
        (b"BZh", "compressed with bzip2; recompress it: `bzip2 -dc FILE | zstd > FILE.tar.zst`"),
        (b"7z\xBC\xAF\x27\x1C", "a 7z archive; unpack it and ingest the folder"),
        (b"Rar!", "a rar archive; unpack it and ingest the folder"),
        (b"\x89HDF\r\n\x1A\n", "HDF5; export its images as files, WebDataset or Parquet"),
        (b"ARROW1", "an Arrow file; write it as Parquet: `pyarrow.parquet.write_table`"),
        (b"version https://git-lfs", "a git-lfs pointer, not the file itself; run `git lfs pull`"),
        (b"\xFF\xD8\xFF", "a single image; name the folder that holds it"),
        (b"\x89PNG", "a single image; name the folder that holds it"),
        (b"\x93NUMPY", "a numpy array; export its images as files, WebDataset or Parquet"),
        (b"<!DOCTYPE", "an HTML page; the download probably failed"),
        (b"<html", "an HTML page; the download probably failed"),
        (b"\x80", "a Python pickle; of CIFAR take the binary version, else export its images as files"),
    ];
    if head.is_empty() {
        return "empty".into();
    }
    match KNOWN.iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, what)) => (*what).into(),
        None => {
            "neither a folder, a tar, a Parquet file nor a list (a csv with a column `path`, or jsonl)".into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_from_their_common_folder_even_if_names_part_within_a_character() {
        let names = |paths: &[&str]| {
            let location = |path: &&str| Location::from_path(Path::new(path)).expect("a location");
            names_below_common_folder(&paths.iter().map(location).collect::<Vec<_>>())
        };
        assert_eq!(names(&["/data/train/0.tar", "/data/val/.0.tar"]), ["train/0.tar", "val/0.tar"]);
        assert_eq!(names(&["/data/ä.tar", "/data/å.tar"]), ["ä.tar", "å.tar"]);
    }
}
