//! Common output of all formats of sources: a list of records, before any decision about them, and the files that
//! contain the images or name them.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::archive::{Compression, Containers, Extent, Request};
use super::names::{hidden, is_image};
use crate::ids::ClassId;
use crate::ingest::{IngestError, IngestOptions};
use crate::storage::{Digest, Location, Stamp, StorageError};

/// A file that contains images or names them.
#[derive(Clone, Debug)]
pub(super) struct Container {
    pub location: Location,
    /// Name below the source.
    pub name: String,
    /// Compression of a tar; `None` for other files.
    pub compression: Option<Compression>,
}

/// Digest of the modification times of a source's files, or of their ETags in a store, to detect changes.
///
/// It decides whether interrupted work may continue, but never the contents of a dataset.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stamps {
    hasher: blake3::Hasher,
    without: u64,
}

impl Stamps {
    /// Adds a file; the order matters.
    pub(super) fn add(&mut self, path: &str, stamp: Option<Stamp>) {
        self.hasher.update(&(path.len() as u64).to_le_bytes());
        self.hasher.update(path.as_bytes());
        self.hasher.update(&stamp.map_or(0, |stamp| stamp.0).to_le_bytes());
        self.without += u64::from(stamp.is_none());
    }

    /// Adds files that contain images or name them.
    pub(super) fn add_containers(&mut self, files: &[Container]) -> Result<(), StorageError> {
        let stamp = |file: &Container| file.location.stamp();
        let found: Vec<Option<Stamp>> = files.par_iter().map(stamp).collect::<Result<_, _>>()?;
        files.iter().zip(found).for_each(|(file, stamp)| self.add(&file.name, stamp));
        Ok(())
    }

    /// Returns the digest over all files, equal for the same files at the same times.
    pub(crate) fn digest(&self) -> Digest {
        self.hasher.finalize().into()
    }

    /// Returns how many files have neither a time nor an ETag, so that only their names and sizes count.
    pub(crate) fn without(&self) -> u64 {
        self.without
    }
}

/// Evidence of an image's class from a format; its meaning is decided over all records together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// Folders of the path.
    Folders,
    /// A label field that is empty, null or −1.
    Absent,
    /// Text that is a name or a number.
    Text(Word),
}

/// A frequent text, stored once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Word(u32);

/// Reason why an entry with an image's name is not taken; `rejects/` lists it, and it counts as rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Fault {
    #[error("a link that leads nowhere or to itself")]
    BrokenLink,
    /// The target of the link is listed already.
    #[error("a link to a folder above it")]
    LinkAbove,
    #[error("a symbolic link (archive the files themselves: `tar -h`)")]
    SymbolicLink,
    #[error("a hard link to a file that the archive does not hold")]
    DanglingHardLink,
    #[error("not a file, but a device, a pipe or an unknown type")]
    NotAFile,
    #[error("its name is not UTF-8")]
    NotUtf8,
    #[error("its name leads outside of the archive")]
    LeadsOutside,
    /// An image beside the class folders, which torchvision's ImageFolder does not read either.
    #[error("outside the class folders")]
    OutsideClasses,
    #[error("WebDataset keys end at the first dot of the file name, so its sample has no image")]
    KeyEndsAtFirstDot,
    #[error(
        "the row has a path, but no bytes; store the bytes (Hugging Face: `embed_table_storage`), or ingest the files \
         by a list"
    )]
    NoBytes,
    #[error("a sparse file whose map cannot be read, or with too many holes")]
    Sparse,
    #[error("the list names it, but there is no such file")]
    NotThere,
}

/// Position of an image's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageBytes {
    pub container: u32,
    pub extent: Extent,
    pub bytes: u64,
}

impl ImageBytes {
    /// Position of an entry that is not taken.
    pub(super) const NONE: Self = Self { container: u32::MAX, extent: Extent::Range { offset: 0 }, bytes: 0 };
}

/// An entry with an image's name.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// Container that names the entry, as an index into [`Records::origins`].
    pub origin: u32,
    /// Path within the container.
    pub path: Box<str>,
    pub evidence: Evidence,
    /// Split that the format found in a column or an archive's structure.
    pub split: Option<Word>,
    pub place: ImageBytes,
    pub fault: Option<Fault>,
}

impl Record {
    pub(super) fn new(origin: u32, path: impl Into<Box<str>>, evidence: Evidence, place: ImageBytes) -> Self {
        Self { origin, path: path.into(), evidence, split: None, place, fault: None }
    }

    /// Makes the record of an entry that is not taken.
    pub(super) fn rejected(origin: u32, path: &str, fault: Fault) -> Self {
        Self { fault: Some(fault), ..Self::new(origin, path, Evidence::Folders, ImageBytes::NONE) }
    }
}

/// An image of a source, not validated yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// `<class>/<file>`, or the path within the source.
    pub path: Box<str>,
    /// Class, as an index into the source's list.
    pub class: Option<ClassId>,
    /// Size in bytes, as in the source.
    pub bytes: u64,
    /// Reason why the image cannot be taken, if any; it is rejected unread.
    pub fault: Option<Fault>,
    pub container: u32,
    pub extent: Extent,
    /// Path of the file below its container, if it differs from `path`.
    pub read_path: Option<Box<str>>,
}

impl Entry {
    pub(super) fn request(&self) -> Request<'_> {
        let path = self.read_path.as_deref().unwrap_or(&self.path);
        Request { container: self.container, extent: &self.extent, path, bytes: self.bytes }
    }
}

/// Number of entries that were skipped for one reason, with an example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Number of entries.
    pub count: u64,
    /// The first of them.
    pub example: String,
}

/// Counts by reason.
pub(super) type Counts = BTreeMap<String, Counted>;

/// Counts an entry under a reason.
pub(super) fn count(counts: &mut Counts, reason: impl Into<String>, path: impl FnOnce() -> String) {
    let counted = counts.entry(reason.into()).or_insert_with(|| Counted { count: 0, example: path() });
    counted.count += 1;
}

/// Composition of an image's path in the dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// The path below the split's folder.
    BelowSplit,
    /// The class, then the file's name; the whole path for an image without a class.
    ByLabel,
    /// The record's path.
    AsIs,
}

/// Names of the classes that a format identifies by numbers.
#[derive(Clone, Debug)]
pub(super) struct ClassNames {
    pub names: Vec<String>,
    /// Origin of the names.
    pub origin: String,
}

/// Records of a source.
#[derive(Debug)]
pub(super) struct Records<'a> {
    pub options: &'a IngestOptions,
    pub containers: Containers,
    /// Names of the containers below the source; empty for the source itself.
    pub origins: Vec<String>,
    /// Records in the order of the source.
    pub list: Vec<Record>,
    pub class_names: Option<ClassNames>,
    /// Labels of images without a class folder, by path or name as in their list, with or without the extension.
    pub labels: Option<HashMap<String, Word>>,
    pub naming: Naming,
    /// Folder whose files the images are, and its number among the containers.
    pub folder: Option<(u32, Location)>,
    pub passed_over: Counts,
    /// Stamps of the files that contain images.
    pub stamps: Stamps,
    /// Interpretation of the source so far, a sentence each.
    pub understood: Vec<String>,
    pub warnings: Vec<String>,
    words: Vec<Box<str>>,
    numbers: HashMap<Box<str>, u32>,
}

impl<'a> Records<'a> {
    /// Makes an empty list of records for a source in which these files are `passed_over`.
    pub(super) fn new(options: &'a IngestOptions, passed_over: Counts) -> Self {
        Self {
            options,
            containers: Containers::default(),
            origins: Vec::new(),
            list: Vec::new(),
            class_names: None,
            labels: None,
            naming: Naming::BelowSplit,
            folder: None,
            passed_over,
            stamps: Stamps::default(),
            understood: Vec::new(),
            warnings: Vec::new(),
            words: Vec::new(),
            numbers: HashMap::new(),
        }
    }

    /// Adds a container by its name below the source.
    pub(super) fn add_origin(&mut self, name: &str) -> u32 {
        self.origins.push(name.to_owned());
        u32::try_from(self.origins.len() - 1).expect("fewer containers than records")
    }

    /// Stores a text once.
    pub(super) fn word(&mut self, text: &str) -> Word {
        if let Some(&number) = self.numbers.get(text) {
            return Word(number);
        }
        let number = u32::try_from(self.words.len()).expect("fewer words than records");
        self.words.push(text.into());
        self.numbers.insert(text.into(), number);
        Word(number)
    }

    /// Returns the text of a word.
    pub(super) fn text(&self, word: Word) -> &str {
        &self.words[word.0 as usize]
    }

    /// Returns a record's path from the source's root, for messages and patterns.
    pub(super) fn shown(&self, record: &Record) -> String {
        shown(&self.origins[record.origin as usize], &record.path)
    }

    /// Adds a record, unless its path is hidden or ignored.
    pub(super) fn push(&mut self, record: Record) {
        match passed_over_reason(self.options, &self.shown(&record)) {
            Some(reason) => self.leave_out(record.origin, &reason, &record.path),
            None => self.list.push(record),
        }
    }

    /// Adds a row of a table or a line of a list, unless its path is ignored; hidden names are allowed there.
    pub(super) fn push_row(&mut self, record: Record) {
        match ignored(self.options, &self.shown(&record)) {
            Some(reason) => self.leave_out(record.origin, &reason, &record.path),
            None => self.list.push(record),
        }
    }

    /// Adds a file whose folders are its class, if it has the name of an image.
    pub(super) fn push_file(&mut self, origin: u32, path: String, split: Option<Word>, place: ImageBytes) {
        if is_image(&path) {
            self.push(Record { split, ..Record::new(origin, path, Evidence::Folders, place) });
        } else {
            self.pass_over(origin, "not an image by its name", &path);
        }
    }

    /// Adds an entry that cannot be taken, if it has the name of an image or is a broken link.
    pub(super) fn push_fault(&mut self, origin: u32, path: &str, fault: Fault) {
        // The target of a broken link is unknown; it may have been a class.
        if is_image(path) || fault == Fault::BrokenLink {
            self.push(Record::rejected(origin, path, fault));
        } else {
            self.pass_over(origin, &fault.to_string(), path);
        }
    }

    /// Counts an entry that is not taken for this reason, unless it is hidden or ignored.
    pub(super) fn pass_over(&mut self, origin: u32, reason: &str, path: &str) {
        let by_name = passed_over_reason(self.options, &shown(&self.origins[origin as usize], path));
        self.leave_out(origin, by_name.as_deref().unwrap_or(reason), path);
    }

    /// Counts an entry that is not taken, whatever its name.
    pub(super) fn leave_out(&mut self, origin: u32, reason: &str, path: &str) {
        count(&mut self.passed_over, reason, || shown(&self.origins[origin as usize], path));
    }

    /// Notes an interpretation of the source, once for all files that lead to it.
    pub(super) fn note(&mut self, sentence: String) {
        if !self.understood.contains(&sentence) {
            self.understood.push(sentence);
        }
    }

    /// Adds a warning, once.
    pub(super) fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// Makes the error of a source that is not as expected.
    pub(super) fn wrong(&self, reason: impl Into<String>) -> IngestError {
        IngestError::layout(&self.options.sources[0], reason)
    }
}

/// Returns the reason why a path is skipped by its name alone; `None` if it is not.
pub(super) fn passed_over_reason(options: &IngestOptions, path: &str) -> Option<String> {
    ignored(options, path).or_else(|| hidden(path).then(|| "hidden or litter of a system".to_owned()))
}

/// Returns the `--ignore` pattern that leaves a path out.
pub(super) fn ignored(options: &IngestOptions, path: &str) -> Option<String> {
    let glob = options.ignore.iter().find(|glob| glob.matches(path))?;
    Some(format!("--ignore {}", glob.text()))
}

/// Joins a path within a container to the container's name below the source.
pub(super) fn shown(origin: &str, path: &str) -> String {
    if origin.is_empty() { path.to_owned() } else { format!("{origin}/{path}") }
}

/// Returns a location from the root of its machine or store.
pub(super) fn whole_path(location: &Location) -> String {
    location.local_path().map_or_else(|| location.to_string(), |path| path.display().to_string())
}
