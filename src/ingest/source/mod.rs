//! Sources of images in all supported layouts, as one kind of list.
//!
//! A [`Source`] lists every image with its split, class and location, in the order of a sorted ImageFolder, and reads
//! the bytes of any image on demand. It is made in three steps:
//!
//! 1. [`mod@discover`] recognises the source by its content.
//! 2. [`formats`] interprets the layout, on top of [`archive`], which reads the bytes. Every format gives the same
//!    list of [`records`], with its evidence of each image's class.
//! 3. [`arrange`] decides [`splits`] and [`classes`] over all records together, and makes the [`SourcePlan`], which is
//!    shown before any work begins. Ambiguity is an error that names both readings.
//!
//! No image is decoded here.

mod archive;
mod arrange;
mod classes;
mod discover;
mod formats;
mod names;
mod records;
mod splits;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use strum::{EnumMessage, VariantArray};

pub use arrange::HoldOut;
pub use classes::{one_name_twice, parse_class_names};
#[cfg(feature = "fuzzing")]
pub(super) use formats::read_synsets;
pub use names::{PathGlob, is_image};
pub(super) use names::{as_path_part, first_of, split_meaning};
pub use records::Counted;
pub(super) use records::Entry;

use super::{IngestError, IngestOptions};
use crate::progress::Progress;
use crate::storage::StorageError;
use archive::{Containers, Request};
use discover::{Discovered, discover};
use formats::parquet::Table;
use records::{Counts, Records, Stamps, count};

/// Formats of sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, EnumMessage, VariantArray)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum SourceFormat {
    /// The format that the source's content indicates.
    #[default]
    Auto,
    /// A folder: `<class>/<file>`, or `<split>/<class>/<file>`.
    Imagefolder,
    /// The official ILSVRC2012 archives: one of them, or the folder that contains them.
    Imagenet,
    /// WebDataset shards, or a tar that contains an ImageFolder.
    Tar,
    /// WebDataset shards, whatever folders their images are in.
    Webdataset,
    /// Hugging Face image datasets, one file or a folder of them.
    Parquet,
    /// The binary archives of CIFAR-10 and CIFAR-100.
    Cifar,
    /// A csv or jsonl file of paths and, optionally, labels.
    List,
}

impl SourceFormat {
    /// Returns the format's name as an option.
    pub(super) fn name(self) -> &'static str {
        self.get_serializations()[0]
    }

    /// Describes the format for messages.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Auto => "unknown",
            Self::Imagefolder => "a folder of images",
            Self::Imagenet => "the ILSVRC2012 archives",
            Self::Tar | Self::Webdataset => "tars",
            Self::Parquet => "Parquet tables",
            Self::Cifar => "CIFAR's binary archives",
            Self::List => "a list of images",
        }
    }
}

/// Interpretation of the text of labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumMessage, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum LabelsAs {
    /// Digits are numbers, everything else is a name; ambiguity is an error.
    #[default]
    Auto,
    /// Every text is the name of a class, including digits.
    Names,
    /// Every text is the number of a class.
    Numbers,
}

/// Folder that is the class of an image with several folders between itself and its split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumMessage, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum ClassFolder {
    /// The first folder below the split, as in torchvision's ImageFolder.
    First,
    /// The folder around the image.
    Last,
}

/// A listed source.
#[derive(Debug)]
pub(super) struct Source {
    /// Format; never [`SourceFormat::Auto`].
    pub format: SourceFormat,
    /// Images by split, each split in the order of a sorted ImageFolder.
    pub splits: BTreeMap<String, Vec<Entry>>,
    /// Names of the classes, sorted by their bytes unless the source gives them an order.
    pub classes: Vec<String>,
    /// Interpretation of the source.
    pub plan: SourcePlan,
    /// Stamps that reveal changes of the files.
    pub stamps: Stamps,
    containers: Containers,
    /// Tables whose images have not been copied yet; see [`Source::fetch`].
    tables: Vec<Table>,
}

impl Source {
    /// Lists a source and interprets it.
    ///
    /// # Errors
    /// If the source is missing, of no known format, damaged or ambiguous, an option has no effect, or the store
    /// fails.
    pub(super) fn open(options: &IngestOptions) -> Result<Self, IngestError> {
        let Discovered { form, containers, listing, passed_over, others } = discover(options)?;
        let mut records = Records::new(options, passed_over);
        records.stamps.add_containers(&containers)?;
        let mut tables = Vec::new();
        let mut format = form;
        match form {
            SourceFormat::Tar => format = formats::collect_tars(&mut records, &containers, &others)?,
            SourceFormat::Parquet => tables = formats::parquet::collect(&mut records, &containers)?,
            SourceFormat::List => formats::list::collect(&mut records, &containers)?,
            _ => formats::folder::collect(&mut records, &options.sources[0], listing),
        }
        refuse_idle_options(options, format)?;
        formats::devkit::find_labels(&mut records, format, &others)?;
        let source = arrange::arrange(records, format)?;
        Ok(Self { tables, ..source })
    }

    /// Copies images that can only be read in order, those of Parquet tables, to this machine.
    ///
    /// # Errors
    /// If a table is damaged, or a store or the folder for temporary files fails.
    pub(super) fn fetch(&mut self, progress: &dyn Progress) -> Result<(), IngestError> {
        let tables = std::mem::take(&mut self.tables);
        if tables.is_empty() {
            return Ok(());
        }
        formats::parquet::fetch(&tables, &mut self.splits, &mut self.containers, progress)
    }

    /// Reads one image as it is in the source.
    ///
    /// # Errors
    /// If the image changed since it was listed, or the store fails.
    pub(super) fn read(&self, entry: &Entry) -> Result<Bytes, StorageError> {
        self.containers.read(entry.request())
    }

    /// Reads several images, concurrently from an object store.
    ///
    /// # Errors
    /// If an image changed since it was listed, or the store fails.
    pub(super) fn read_all(&self, entries: &[&Entry]) -> Result<Vec<Bytes>, StorageError> {
        let requests: Vec<Request<'_>> = entries.iter().map(|entry| entry.request()).collect();
        self.containers.read_all(&requests)
    }
}

/// Checks that no option is without effect on this format.
fn refuse_idle_options(options: &IngestOptions, format: SourceFormat) -> Result<(), IngestError> {
    use SourceFormat::{Imagefolder, Imagenet, List, Parquet, Tar};
    let (has_labels, unlabelled) = (options.labels.is_some(), options.unlabelled);
    let is = |formats: &[SourceFormat]| formats.contains(&format);
    let no_labels = "`--unlabelled` takes no labels";
    let idle = [
        (has_labels && unlabelled, "--labels", no_labels),
        (options.classes.is_some() && unlabelled, "--classes", no_labels),
        (options.label_column.is_some() && unlabelled, "--label-column", no_labels),
        (
            !options.unlabelled_splits.is_empty() && unlabelled,
            "--unlabelled-split",
            "`--unlabelled` takes no labels of any split",
        ),
        (
            options.class_folder.is_some() && (unlabelled || !is(&[Imagefolder, Tar])),
            "--class-folder",
            "it says which folder is the class",
        ),
        (
            has_labels && !is(&[Imagenet, Imagefolder, Tar]),
            "--labels",
            "it labels images without class folders, and this form has its own labels",
        ),
        (
            options.hold_out.is_some() && options.append,
            "--hold-out",
            "with `--append` images could change sides; give those to add a split by `--split` or `--splits`",
        ),
        (
            options.image_column.is_some() && !has_labels && !is(&[Parquet, List]),
            "--image-column",
            "only Parquet, lists and `--labels FILE` have columns of images",
        ),
        (
            options.label_column.is_some() && !has_labels && !is(&[Parquet, List, Tar]),
            "--label-column",
            "only Parquet, lists, `--labels FILE` and WebDataset's json have columns of labels",
        ),
    ];
    match idle.into_iter().find(|(is_idle, ..)| *is_idle) {
        Some((_, option, why)) => {
            let reason = format!("`{option}` has no effect on {}: {why}", format.describe());
            Err(IngestError::layout(&options.sources[0], reason))
        }
        None => Ok(()),
    }
}

/// Interpretation of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePlan {
    /// Format of the source.
    pub form: SourceFormat,
    /// Splits by name.
    pub splits: BTreeMap<String, SplitPlan>,
    /// Classes of all splits together.
    pub classes: ClassesPlan,
    /// Sentences that state the origin of splits, classes and labels.
    pub understood: Vec<String>,
    /// Entries that are hidden, ignored, or not images by their names, counted by reason.
    pub passed_over: Counts,
    /// Entries with an image's name that cannot be taken, by reason. They count against `--max-reject-fraction`.
    pub rejected: Counts,
    /// Warnings to check before an ingest.
    pub warnings: Vec<String>,
}

/// A split of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitPlan {
    /// Number of images by their names, without those that cannot be taken.
    pub images: u64,
    /// Number of images with a label.
    pub labelled: u64,
    /// Number of images without a label.
    pub unlabelled: u64,
    /// Total size of the encoded images in bytes; for Parquet an estimate from its metadata.
    pub bytes: u64,
    /// Classes that occur.
    pub classes: ClassesPlan,
}

/// Number of classes, with some of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassesPlan {
    /// Number of classes.
    pub count: u64,
    /// Names of the first three classes.
    pub first: Vec<String>,
    /// Name of the last class; `None` if there are no classes.
    pub last: Option<String>,
}

impl ClassesPlan {
    fn of(names: &[&String]) -> Self {
        let first = names.iter().take(3).copied().cloned().collect();
        Self { count: names.len() as u64, first, last: names.last().copied().cloned() }
    }

    fn line(&self) -> String {
        let mut names: Vec<String> = self.first.iter().map(|name| format!("`{name}`")).collect();
        match &self.last {
            Some(last) if self.count > 4 => names.push(format!("… `{last}`")),
            Some(last) if self.count == 4 => names.push(format!("`{last}`")),
            _ => {}
        }
        let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        format!("{} {}{names}", self.count, if self.count == 1 { "class" } else { "classes" })
    }
}

impl SourcePlan {
    fn new(
        form: SourceFormat,
        entries: &BTreeMap<String, Vec<Entry>>,
        classes: &[String],
        passed_over: Counts,
        understood: Vec<String>,
        warnings: Vec<String>,
    ) -> Self {
        let mut rejected = Counts::new();
        let mut splits = BTreeMap::new();
        for (name, list) in entries {
            let mut occurs = vec![false; classes.len()];
            let mut split = SplitPlan::default();
            for entry in list {
                if let Some(fault) = entry.fault {
                    count(&mut rejected, fault.to_string(), || format!("{name}: {}", entry.path));
                    continue;
                }
                split.images += 1;
                split.bytes += entry.bytes;
                match entry.class {
                    Some(class) => {
                        split.labelled += 1;
                        occurs[class.index()] = true;
                    }
                    None => split.unlabelled += 1,
                }
            }
            let names = classes.iter().zip(occurs).filter(|(_, occurs)| *occurs);
            split.classes = ClassesPlan::of(&names.map(|(name, _)| name).collect::<Vec<_>>());
            splits.insert(name.clone(), split);
        }
        let classes = ClassesPlan::of(&classes.iter().collect::<Vec<_>>());
        Self { form, splits, classes, understood, passed_over, rejected, warnings }
    }

    /// Formats the plan as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("source: {}", self.form.describe())];
        lines.extend(self.understood.iter().map(|sentence| format!("  {sentence}")));
        for (name, split) in &self.splits {
            let SplitPlan { images, labelled, unlabelled, bytes, classes } = split;
            lines.push(format!(
                "{name:>10}  {images} images, {labelled} labelled, {unlabelled} unlabelled, {}, {:.1} MB",
                classes.line(),
                *bytes as f64 / 1e6
            ));
        }
        for (title, counts) in [("passed over", &self.passed_over), ("rejected", &self.rejected)] {
            lines.extend(counts.iter().map(|(reason, counted)| {
                format!("{title}: {} {reason}, such as `{}`", counted.count, counted.example)
            }));
        }
        lines.extend(self.warnings.iter().map(|warning| format!("warning: {warning}")));
        lines
    }
}
