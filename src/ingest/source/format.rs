//! The forms of sources, and how labels and folders are read.

use serde::{Deserialize, Serialize};
use strum::{EnumMessage, VariantArray};

/// The forms of sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, EnumMessage, VariantArray)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
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
    /// Its name as an option.
    pub(in crate::ingest) fn name(self) -> &'static str {
        self.get_serializations()[0]
    }

    /// What it is, for people.
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

/// How the text of labels is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumMessage, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum LabelsAs {
    /// Digits are numbers, everything else is a name; what can be both is an error.
    #[default]
    Auto,
    /// Every text is the name of a class, digits too.
    Names,
    /// Every text is the number of a class.
    Numbers,
}

/// Which folder is the class of an image that has several between itself and its split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumMessage, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum ClassFolder {
    /// The first one below the split, as torchvision's ImageFolder has it.
    First,
    /// The one around the image.
    Last,
}
