//! What a table says of its features, kept in the schema's metadata.

use std::collections::HashMap;

use arrow::datatypes::Schema;
use serde::{Deserialize, Serialize};

/// The version that this code writes and reads.
const FORMAT_VERSION: &str = "1";

/// Where features come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The memory bank of a run.
    Bank,
    /// Pictures encoded by a checkpoint.
    Embedding,
}

/// What the features are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableMeta {
    /// Where they come from.
    pub kind: Kind,
    /// The layer of the encoder: `projection`, or the pooled feature's name.
    pub layer: String,
    /// The length of a vector.
    pub dim: usize,
    /// The digest of the dataset whose instances these are.
    pub dataset_digest: String,
    /// The split.
    pub split: String,
    /// The training step of the bank or of the encoder.
    pub step: u64,
    /// Whether every row is of unit length.
    pub unit_length: bool,
    /// The names of the classes.
    pub classes: Vec<String>,
}

impl TableMeta {
    /// The entries as they stand in the metadata of a schema.
    pub fn to_metadata(&self) -> HashMap<String, String> {
        let plain = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        let value = serde_json::to_value(self).expect("the metadata is plain data");
        let fields = value.as_object().expect("a struct is an object").clone();
        let mut metadata: HashMap<_, _> =
            fields.into_iter().map(|(name, value)| (format!("instdisc.{name}"), plain(value))).collect();
        metadata.insert("instdisc.format_version".into(), FORMAT_VERSION.into());
        metadata
    }

    /// Reads the metadata; the error says which entry is missing or wrong.
    pub(super) fn from_metadata(schema: &Schema) -> Result<Self, String> {
        let metadata = schema.metadata();
        let text = |name: &str| {
            metadata
                .get(&format!("instdisc.{name}"))
                .ok_or_else(|| format!("metadata instdisc.{name} is missing"))
        };
        let version = text("format_version")?;
        if version != FORMAT_VERSION {
            return Err(format!("format version {version} is not known to this program"));
        }
        let wrong = |name: &str| format!("metadata instdisc.{name} is not understood");
        let kind = match text("kind")?.as_str() {
            "bank" => Kind::Bank,
            "embedding" => Kind::Embedding,
            _ => return Err(wrong("kind")),
        };
        Ok(Self {
            kind,
            layer: text("layer")?.clone(),
            dim: text("dim")?.parse().map_err(|_| wrong("dim"))?,
            dataset_digest: text("dataset_digest")?.clone(),
            split: text("split")?.clone(),
            step: text("step")?.parse().map_err(|_| wrong("step"))?,
            unit_length: text("unit_length")?.parse().map_err(|_| wrong("unit_length"))?,
            classes: serde_json::from_str(text("classes")?).map_err(|_| wrong("classes"))?,
        })
    }
}
