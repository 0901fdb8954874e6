//! From what a form finds to one list: classes interned, pictures sorted.

use std::collections::{BTreeMap, HashMap};

use super::archive::{Containers, Extent};
use super::names::{folder_order, is_picture};
use super::{Entry, Source, SourceFormat};
use crate::ids::ClassId;
use crate::ingest::{IngestError, IngestOptions};
use crate::storage::Location;

/// The split's name where neither the source nor the user names one.
pub(super) const DEFAULT_SPLIT: &str = "train";

/// Folders of a dataset that are no splits.
const OWN_FOLDERS: [&str; 2] = ["index", "rejects"];

/// What a form says of a picture's class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label<'a> {
    /// Nothing.
    None,
    /// Its name.
    Name(&'a str),
    /// Its number, in an order that the source gives.
    Number(u64),
}

/// Where an image is: a container, and a place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) container: u32,
    pub(super) extent: Extent,
    pub(super) bytes: u64,
}

/// Collects the pictures of a source.
#[derive(Debug)]
pub(super) struct Collector<'a> {
    pub(super) options: &'a IngestOptions,
    pub(super) containers: Containers,
    pub(super) passed_over: u64,
    /// Entries with a picture's name that are not taken, with the reason.
    refused: Vec<(String, String)>,
    splits: BTreeMap<String, Vec<Entry>>,
    names: Vec<String>,
    numbers: HashMap<String, u16>,
    /// The names of classes that are numbers in the source.
    given: Option<Vec<String>>,
    highest: Option<u16>,
}

/// Whether a split may have this name: that of one folder, and of none that a dataset has for itself.
fn is_split_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/') && !OWN_FOLDERS.contains(&name)
}

impl<'a> Collector<'a> {
    pub(super) fn new(options: &'a IngestOptions) -> Self {
        Self {
            options,
            containers: Containers::default(),
            passed_over: 0,
            refused: Vec::new(),
            splits: BTreeMap::new(),
            names: Vec::new(),
            numbers: HashMap::new(),
            given: None,
            highest: None,
        }
    }

    /// The first source, for errors.
    pub(super) fn location(&self) -> &Location {
        &self.options.sources[0]
    }

    /// The split of pictures for which the source names none.
    pub(super) fn default_split(&self) -> String {
        self.options.split.clone().unwrap_or_else(|| DEFAULT_SPLIT.to_owned())
    }

    /// Whether pictures of this split are wanted.
    pub(super) fn wants(&self, split: &str) -> bool {
        self.options.split.as_deref().is_none_or(|wanted| wanted == split)
    }

    /// Leaves an entry out: with its reason if its name is that of a picture.
    pub(super) fn pass_over(&mut self, path: &str, reason: impl Into<String>) {
        if is_picture(path) {
            self.refused.push((path.to_owned(), reason.into()));
        } else {
            self.passed_over += 1;
        }
    }

    /// The names of the classes that [`Label::Number`] counts, where the source has them.
    pub(super) fn give_names(&mut self, names: Vec<String>) {
        self.given.get_or_insert(names);
    }

    /// Adds a picture.
    ///
    /// # Errors
    /// If there are more classes than a label can count, or names and numbers are mixed.
    pub(super) fn add(
        &mut self,
        split: &str,
        path: &str,
        label: Label<'_>,
        place: Place,
    ) -> Result<(), IngestError> {
        let class = match label {
            _ if self.options.unlabelled => None,
            Label::None => None,
            Label::Name(name) => Some(self.intern(name)?),
            Label::Number(number) => {
                let number = u16::try_from(number).ok().filter(|&number| number < u16::MAX);
                let number = number.ok_or_else(|| self.too_many_classes())?;
                self.highest = self.highest.max(Some(number));
                Some(number)
            }
        };
        if self.highest.is_some() && !self.names.is_empty() {
            return Err(super::wrong(self.location(), "some labels are names and some are numbers"));
        }
        let entry = Entry {
            path: path.into(),
            class: class.map(ClassId),
            bytes: place.bytes,
            container: place.container,
            extent: place.extent,
        };
        match self.splits.get_mut(split) {
            Some(entries) => entries.push(entry),
            None => drop(self.splits.insert(split.to_owned(), vec![entry])),
        }
        Ok(())
    }

    fn intern(&mut self, name: &str) -> Result<u16, IngestError> {
        if let Some(&number) = self.numbers.get(name) {
            return Ok(number);
        }
        let number = u16::try_from(self.names.len()).ok().filter(|&number| number < u16::MAX);
        let number = number.ok_or_else(|| self.too_many_classes())?;
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        Ok(number)
    }

    fn too_many_classes(&self) -> IngestError {
        super::wrong(self.location(), format!("a label counts at most {} classes", u16::MAX))
    }

    /// Sorts classes and pictures.
    ///
    /// # Errors
    /// If there is no picture, or a number has no name.
    pub(super) fn finish(mut self, format: SourceFormat) -> Result<Source, IngestError> {
        if self.splits.is_empty() {
            let reason = match &self.options.split {
                Some(split) => format!("there is no picture of a split {split:?}"),
                None => "there is no picture".into(),
            };
            return Err(super::wrong(self.location(), reason));
        }
        if let Some(split) = self.splits.keys().find(|split| !is_split_name(split)) {
            let reason = format!("a split cannot be called {split:?}: it is a folder of the dataset");
            return Err(super::wrong(self.location(), reason));
        }
        let classes = match self.highest {
            Some(highest) => self.number_classes(highest)?,
            None => self.sort_classes(),
        };
        for entries in self.splits.values_mut() {
            // Pictures without a label come last; a stable sort keeps the source's order of equal paths.
            entries.sort_by(|a, b| {
                let key = |entry: &Entry| entry.class.map_or(u32::MAX, |class| u32::from(class.0));
                (key(a), folder_order(&a.path)).cmp(&(key(b), folder_order(&b.path)))
            });
        }
        let Self { containers, splits, passed_over, refused, .. } = self;
        Ok(Source { format, splits, classes, passed_over, refused, containers })
    }

    fn number_classes(&self, highest: u16) -> Result<Vec<String>, IngestError> {
        let given = match &self.options.classes {
            Some(file) => Some(super::list::read_lines(file)?),
            None => self.given.clone(),
        };
        let Some(names) = given else {
            return Ok((0..=highest).map(|number| number.to_string()).collect());
        };
        if usize::from(highest) >= names.len() {
            let reason = format!("a label is {highest}, but there are names for {} classes", names.len());
            return Err(super::wrong(self.location(), reason));
        }
        Ok(names)
    }

    fn sort_classes(&mut self) -> Vec<String> {
        let mut order: Vec<usize> = (0..self.names.len()).collect();
        order.sort_by(|&a, &b| self.names[a].cmp(&self.names[b]));
        let mut rank = vec![0_u16; order.len()];
        for (place, &name) in (0..).zip(&order) {
            rank[name] = place;
        }
        for entry in self.splits.values_mut().flatten() {
            entry.class = entry.class.map(|class| ClassId(rank[class.index()]));
        }
        let mut names = std::mem::take(&mut self.names);
        names.sort_unstable();
        names
    }
}
