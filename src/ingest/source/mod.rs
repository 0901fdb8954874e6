//! The forms in which people hold pictures, as one kind of list.
//!
//! A [`Source`] is every picture with its split, class and place, in the order of a sorted ImageFolder, and
//! the bytes of any of them on demand. What a source is, its content decides. No picture is decoded here.

mod archive;
mod cifar;
mod collect;
mod devkit;
mod folder;
mod imagenet;
mod layout;
mod list;
mod mat;
mod names;
mod parquet;
mod recognise;
mod tars;
mod webdataset;

use std::collections::BTreeMap;

use bytes::Bytes;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{IngestError, IngestOptions};
use crate::ids::ClassId;
use crate::storage::{Location, StorageError};
use archive::{Containers, Extent, Request};
use collect::Collector;
use recognise::Content;

#[cfg(fuzzing)]
pub(super) use {mat::read_synsets, tars::list_bytes};

/// The forms of sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SourceFormat {
    /// What the source's content says it is.
    #[default]
    Auto,
    /// A folder: `<class>/<file>`, or `<split>/<class>/<file>`.
    Imagefolder,
    /// The official ILSVRC2012 archives, one of them or the folder that holds them.
    Imagenet,
    /// WebDataset shards, or a tar that holds an ImageFolder.
    Tar,
    /// Hugging Face image datasets, one file or a folder of them.
    Parquet,
    /// The binary archives of CIFAR-10 and CIFAR-100.
    Cifar,
    /// A csv or jsonl file of paths and, optionally, labels.
    List,
}

/// A picture of a source that nobody has looked at yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// `<class>/<file>`, or the path within the source.
    pub(super) path: Box<str>,
    /// Its class: an index into the source's list.
    pub(super) class: Option<ClassId>,
    /// Its size in bytes, as it lies in the source.
    pub(super) bytes: u64,
    /// The container that holds it.
    container: u32,
    /// Where in the container it is.
    extent: Extent,
}

impl Entry {
    fn request(&self) -> Request<'_> {
        Request { container: self.container, extent: &self.extent, path: &self.path, bytes: self.bytes }
    }
}

/// A source that was listed.
#[derive(Debug)]
pub(super) struct Source {
    /// What it is; never [`SourceFormat::Auto`].
    pub(super) format: SourceFormat,
    /// Its pictures by split, each split in the order of a sorted ImageFolder.
    pub(super) splits: BTreeMap<String, Vec<Entry>>,
    /// The names of its classes, sorted by their bytes unless the source gives them an order.
    pub(super) classes: Vec<String>,
    /// Entries that are no pictures by their names.
    pub(super) passed_over: u64,
    /// Entries with a picture's name that are not taken, with the reason: links, names that lead outside.
    pub(super) refused: Vec<(String, String)>,
    containers: Containers,
}

impl Source {
    /// Lists what is there.
    ///
    /// # Errors
    /// If nothing is there, it is of no known form, it is cut, or the store fails.
    pub(super) fn open(options: &IngestOptions) -> Result<Self, IngestError> {
        let content = recognise::look(&options.sources, options.format)?;
        let mut collector = Collector::new(options);
        let format = match content {
            Content::Folder { root, listing } => {
                folder::collect(&mut collector, &root, listing)?;
                SourceFormat::Imagefolder
            }
            Content::Tars(tars) => tars::collect(&mut collector, &tars)?,
            Content::Parquet(files) => {
                parquet::collect(&mut collector, &files)?;
                SourceFormat::Parquet
            }
            Content::List(list) => {
                list::collect(&mut collector, &list)?;
                SourceFormat::List
            }
        };
        collector.finish(format)
    }

    /// Reads one picture as it lies in the source.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) fn read(&self, entry: &Entry) -> Result<Bytes, StorageError> {
        self.containers.read(entry.request())
    }

    /// Reads several pictures, from an object store at the same time.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) fn read_all(&self, entries: &[&Entry]) -> Result<Vec<Bytes>, StorageError> {
        let requests: Vec<_> = entries.iter().map(|entry| entry.request()).collect();
        self.containers.read_all(&requests)
    }
}

/// The source is not what it should be.
fn wrong(location: &Location, reason: impl Into<String>) -> IngestError {
    IngestError::Layout { location: location.to_string(), reason: reason.into() }
}
