//! What a source is, by what lies there.

use super::archive::{Compression, SourceFile, compression, first_bytes, looks_like_tar};
use super::folder::{self, Listing};
use super::names::{is_picture, is_tar};
use super::{SourceFormat, list, wrong};
use crate::ingest::IngestError;
use crate::storage::{Location, StorageError};

/// Bytes of a file that are looked at.
const HEAD_BYTES: u64 = 4096;
/// Bytes of a compressed file that are looked at: the first block of zstd is not longer.
const COMPRESSED_HEAD_BYTES: u64 = 192 << 10;
/// Bytes of a tar's header.
const TAR_HEADER_BYTES: usize = 512;

/// What was found.
#[derive(Debug)]
pub(super) enum Content {
    /// A folder of pictures.
    Folder { root: Location, listing: Listing },
    /// One tar or several.
    Tars(Vec<Packed>),
    /// One Parquet file or several; the names are for their splits.
    Parquet(Vec<Location>),
    /// A csv or jsonl file.
    List(Location),
}

/// A tar, perhaps compressed.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    pub(super) location: Location,
    pub(super) compression: Option<Compression>,
}

/// What a file is.
enum File {
    Tar(Option<Compression>),
    Parquet,
    List,
    Other,
}

/// Looks at the sources.
///
/// # Errors
/// If they are of no known form or not of the wanted one, or the store fails.
pub(super) fn look(sources: &[Location], wanted: SourceFormat) -> Result<Content, IngestError> {
    let found = match sources {
        [one] => look_at(one),
        [first, ..] => {
            let files = sources.iter().map(|file| Ok((file.clone(), kind(file)?)));
            files.collect::<Result<_, IngestError>>().and_then(|files| of_files(first, files))
        }
        [] => unreachable!("the command line asks for a source"),
    };
    let content = found.map_err(|error| match error {
        IngestError::Storage(StorageError::NotFound { location, .. }) => {
            IngestError::Layout { location, reason: "no such source is there".into() }
        }
        other => other,
    })?;
    let fits = matches!(
        (&content, wanted),
        (_, SourceFormat::Auto)
            | (Content::Folder { .. }, SourceFormat::Imagefolder)
            | (Content::Tars(_), SourceFormat::Tar | SourceFormat::Imagenet | SourceFormat::Cifar)
            | (Content::Parquet(_), SourceFormat::Parquet)
            | (Content::List(_), SourceFormat::List)
    );
    if fits {
        return Ok(content);
    }
    let found = match content {
        Content::Folder { .. } => "a folder of files",
        Content::Tars(_) => "a tar",
        Content::Parquet(_) => "Parquet",
        Content::List(_) => "a list",
    };
    Err(wrong(&sources[0], format!("--format asks for {wanted:?}, but it is {found}")))
}

fn look_at(location: &Location) -> Result<Content, IngestError> {
    if location.local_path().is_some_and(std::path::Path::is_dir) {
        return look_into(location);
    }
    match kind(location) {
        Ok(File::Other) => Err(wrong(location, "it is neither a folder, a tar, a Parquet file nor a list")),
        Ok(kind) => of_files(location, vec![(location.clone(), kind)]),
        Err(IngestError::Storage(error)) if error.is_not_found() && location.local_path().is_none() => {
            look_into(location)
        }
        Err(error) => Err(error),
    }
}

/// A folder holds pictures, or files that hold them.
fn look_into(folder: &Location) -> Result<Content, IngestError> {
    let listing = folder::list(folder)?;
    if folder.local_path().is_none() && listing.files.is_empty() {
        return Err(StorageError::NotFound { location: folder.to_string(), local: false }.into());
    }
    let is_packed = |path: &str| is_tar(path) || path.ends_with(".parquet");
    let holds_pictures = listing.files.iter().any(|(path, _)| is_picture(path));
    if holds_pictures || !listing.files.iter().any(|(path, _)| is_packed(path)) {
        return Ok(Content::Folder { root: folder.clone(), listing });
    }
    let packed = listing.files.iter().filter(|(path, _)| is_packed(path));
    let files = packed.map(|(path, _)| {
        let location = folder.join(path);
        let kind = kind(&location)?;
        Ok((location, kind))
    });
    of_files(folder, files.collect::<Result<_, IngestError>>()?)
}

fn of_files(source: &Location, files: Vec<(Location, File)>) -> Result<Content, IngestError> {
    let (mut tars, mut tables, mut lists) = (Vec::new(), Vec::new(), Vec::new());
    for (location, kind) in files {
        match kind {
            File::Tar(compression) => tars.push(Packed { location, compression }),
            File::Parquet => tables.push(location),
            File::List => lists.push(location),
            File::Other => return Err(wrong(&location, "it is neither a tar nor a Parquet file")),
        }
    }
    match (tars.is_empty(), tables.is_empty(), lists.as_slice()) {
        (false, true, []) => Ok(Content::Tars(tars)),
        (true, false, []) => Ok(Content::Parquet(tables)),
        (true, true, [list]) => Ok(Content::List(list.clone())),
        _ => Err(wrong(source, "it mixes tars, Parquet files and lists, or has several lists")),
    }
}

fn kind(location: &Location) -> Result<File, IngestError> {
    let file = SourceFile::open(location)?;
    let head = file.head(HEAD_BYTES)?;
    if head.starts_with(b"PAR1") {
        return Ok(File::Parquet);
    }
    if let Some(compression) = compression(&head) {
        if let Some(reason) = compression.unsupported() {
            return Err(wrong(location, reason));
        }
        let head = file.head(COMPRESSED_HEAD_BYTES)?;
        let inside = first_bytes(&head, compression, TAR_HEADER_BYTES);
        let is_tar = looks_like_tar(&inside);
        return Ok(if is_tar { File::Tar(Some(compression)) } else { File::Other });
    }
    if looks_like_tar(&head) {
        return Ok(File::Tar(None));
    }
    Ok(if list::looks_like_list(&head) { File::List } else { File::Other })
}
