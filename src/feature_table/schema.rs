//! Schema of a feature table: its columns, and metadata that describes the features.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::TableError;
use super::rows::{IN_MEMORY, check_vectors};

/// Format version that this code writes and reads.
const FORMAT_VERSION: &str = "1";
/// Prefix of the metadata's keys.
const PREFIX: &str = "instdisc.";

/// Origin of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Memory bank of a run.
    Bank,
    /// Images encoded by a checkpoint.
    #[default]
    Embedding,
}

/// Metadata of the features in a table.
///
/// For a table of another program, missing entries are derived from the data (`dim`, `unit_length`,
/// `classes`) or unknown: digests, split and layer are then empty, and the step is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableMeta {
    /// Origin of the features.
    pub kind: Kind,
    /// Layer of the encoder: `projection`, or the pooled feature's name.
    pub layer: String,
    /// Length of a vector.
    pub dim: usize,
    /// Digest of the dataset that the instances belong to.
    pub dataset_digest: String,
    /// Name of the split.
    pub split: String,
    /// Digest of the split, which does not change when another split is added to the dataset; `None` in
    /// tables of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_digest: Option<String>,
    /// Digest of the encoder's weights, for an embedding; `None` in banks and older tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Device that computed an embedding, `cpu` or `cuda`; `None` in banks and older tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Precision of that computation: `f32`, `tf32`, `bf16` or `f16`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Training step of the bank or of the encoder.
    pub step: u64,
    /// Whether every row has unit length.
    pub unit_length: bool,
    /// Names of the classes.
    pub classes: Vec<String>,
}

impl TableMeta {
    /// Returns the entries of the schema's metadata.
    pub fn to_metadata(&self) -> HashMap<String, String> {
        let plain = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        let value = serde_json::to_value(self).expect("the metadata is plain data");
        let fields = value.as_object().expect("a struct is an object").clone();
        let mut metadata: HashMap<_, _> =
            fields.into_iter().map(|(name, value)| (format!("{PREFIX}{name}"), plain(value))).collect();
        metadata.insert(format!("{PREFIX}format_version"), FORMAT_VERSION.into());
        metadata
    }

    /// Checks that vectors are finite, and have unit length if the metadata says so. `first` is the row of
    /// the first vector.
    ///
    /// # Errors
    /// If a row is invalid, with the first one.
    pub fn check(&self, first: usize, vectors: &[f32]) -> Result<(), TableError> {
        check_vectors(IN_MEMORY, self, first, vectors)
    }

    /// Returns the reason why two tables do not belong to one dataset; `None` if their metadata agree.
    ///
    /// A split added later changes the dataset's digest, but neither the digests of other splits nor their
    /// classes. So splits and classes are compared if both tables know the digest of their split, and the
    /// datasets' digests otherwise. Entries that another program's table lacks are not compared.
    pub fn conflict(&self, other: &Self) -> Option<String> {
        let known = |a: &str, b: &str| !a.is_empty() && !b.is_empty();
        if self.dim != other.dim {
            return Some(format!("their vectors have lengths {} and {}", self.dim, other.dim));
        }
        let (a, b) = (&self.dataset_digest, &other.dataset_digest);
        if a == b && known(a, b) {
            return None;
        }
        match (&self.split_digest, &other.split_digest) {
            (Some(a), Some(b)) if self.split == other.split && a != b => {
                return Some(format!("split `{}` has digests {a:.12}… and {b:.12}…", self.split));
            }
            (Some(_), Some(_)) => {}
            _ if known(a, b) => return Some(format!("they are of the datasets {a:.12}… and {b:.12}…")),
            _ => {}
        }
        // Classes without names are named by their numbers.
        let is_numbered =
            |classes: &[String]| classes.iter().enumerate().all(|(class, name)| *name == class.to_string());
        if is_numbered(&self.classes) || is_numbered(&other.classes) {
            return None;
        }
        // Classes from a split added later follow the existing ones.
        let differing = self.classes.iter().zip(&other.classes).find(|(a, b)| a != b);
        differing.map(|(a, b)| format!("their classes differ: `{a}` and `{b}` have the same number"))
    }

    /// Returns whether the rows belong to this split of a dataset: by the split's digest, or for tables of
    /// older versions by the dataset's.
    pub fn is_of(&self, split_digest: &str, dataset_digest: &str) -> bool {
        match &self.split_digest {
            Some(own) => own == split_digest,
            None => self.dataset_digest == dataset_digest,
        }
    }
}

/// Entries without which metadata are incomplete: those of a table of the first version.
const NEEDED: [&str; 8] =
    ["kind", "layer", "dim", "dataset_digest", "split", "step", "unit_length", "classes"];

/// Entries found in a schema's metadata.
#[derive(Debug)]
pub(super) struct NamedMeta {
    /// Whether this program, or one that knows the format, wrote the table.
    pub is_ours: bool,
    /// Whether all of [`NEEDED`] are present.
    is_whole: bool,
    dim: Option<usize>,
    pub unit_length: Option<bool>,
    classes: Option<Vec<String>>,
    /// Other entries; a missing one has its default.
    others: TableMeta,
}

/// Reads an entry of the metadata: text as it is, other values as JSON.
fn entry<T: DeserializeOwned>(schema: &Schema, name: &str) -> Result<Option<T>, String> {
    let Some(text) = schema.metadata().get(&format!("{PREFIX}{name}")) else { return Ok(None) };
    let value = serde_json::from_value(text.as_str().into()).or_else(|_| serde_json::from_str(text));
    value.map(Some).map_err(|_| format!("metadata `{PREFIX}{name}` is `{text}`, which is not understood"))
}

impl NamedMeta {
    /// Reads the metadata; the error names the invalid entry.
    pub(super) fn of(schema: &Schema) -> Result<Self, String> {
        let version: Option<String> = entry(schema, "format_version")?;
        if let Some(version) = version.as_deref().filter(|version| *version != FORMAT_VERSION) {
            return Err(format!("format version `{version}` is unknown, expected {FORMAT_VERSION}"));
        }
        let others = TableMeta {
            kind: entry(schema, "kind")?.unwrap_or_default(),
            layer: entry(schema, "layer")?.unwrap_or_default(),
            dataset_digest: entry(schema, "dataset_digest")?.unwrap_or_default(),
            split: entry(schema, "split")?.unwrap_or_default(),
            split_digest: entry(schema, "split_digest")?,
            weights: entry(schema, "weights")?,
            device: entry(schema, "device")?,
            precision: entry(schema, "precision")?,
            step: entry(schema, "step")?.unwrap_or_default(),
            ..TableMeta::default()
        };
        Ok(Self {
            is_ours: version.is_some(),
            is_whole: NEEDED.iter().all(|name| schema.metadata().contains_key(&format!("{PREFIX}{name}"))),
            dim: entry(schema, "dim")?,
            unit_length: entry(schema, "unit_length")?,
            classes: entry(schema, "classes")?,
            others,
        })
    }

    /// Returns the length of the vectors: as read, which the metadata must not contradict, or else from the metadata.
    pub(super) fn dim(&self, read: Option<usize>) -> Result<usize, String> {
        let dim = read.or(self.dim).filter(|dim| *dim > 0).ok_or("its vectors have no length")?;
        match self.dim {
            Some(said) if said != dim => {
                Err(format!("its vectors have {dim} numbers, its metadata says {said}"))
            }
            _ => Ok(dim),
        }
    }

    /// Completes the metadata from the data.
    pub(super) fn complete(self, dim: usize, unit_length: bool, classes: usize) -> TableMeta {
        TableMeta {
            dim,
            unit_length: self.unit_length.unwrap_or(unit_length),
            classes: self.classes.unwrap_or_else(|| (0..classes).map(|class| class.to_string()).collect()),
            ..self.others
        }
    }

    /// Returns the metadata as they are, if they are complete.
    pub(super) fn whole(self) -> Option<TableMeta> {
        let dim = self.dim.filter(|_| self.is_whole)?;
        Some(self.complete(dim, false, 0))
    }
}

/// Returns the columns for vectors of this length and type.
pub(super) fn fields(dim: usize, value: DataType) -> Fields {
    let item = Arc::new(Field::new("item", value, false));
    Fields::from(vec![
        Field::new("instance_id", DataType::Int64, false),
        Field::new("feature", DataType::FixedSizeList(item, dim as i32), false),
        Field::new("label", DataType::Int64, true),
        Field::new("updated_step", DataType::Int64, true),
    ])
}

/// Returns the schema of a table whose vectors have this type.
pub(super) fn schema(meta: &TableMeta, value: DataType) -> Schema {
    Schema::new_with_metadata(fields(meta.dim, value), meta.to_metadata())
}
