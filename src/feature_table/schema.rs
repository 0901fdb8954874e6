//! The columns of a feature table.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema};

use super::meta::{Kind, TableMeta};

/// The columns, for vectors of this length and type.
pub(super) fn fields(dim: usize, value: DataType) -> Fields {
    let item = Arc::new(Field::new("item", value, false));
    Fields::from(vec![
        Field::new("instance_id", DataType::Int64, false),
        Field::new("feature", DataType::FixedSizeList(item, dim as i32), false),
        Field::new("label", DataType::Int64, true),
        Field::new("updated_step", DataType::Int64, true),
    ])
}

pub(super) fn schema(dim: usize, metadata: HashMap<String, String>) -> Schema {
    Schema::new_with_metadata(fields(dim, DataType::Float32), metadata)
}

/// The schema as text, as `schemas/feature_table.txt` holds it.
pub fn schema_text() -> String {
    let mut text = String::from("Feature table, version 1: an Arrow IPC file\n\ncolumns\n");
    for field in &fields(128, DataType::Float32) {
        let null = if field.is_nullable() { "nullable" } else { "required" };
        let kind = match field.data_type() {
            DataType::FixedSizeList(..) => "FixedSizeList<Float32 or Float16, dim>".to_owned(),
            other => other.to_string(),
        };
        text += &format!("  {} {kind} {null}\n", field.name());
    }
    text += "\nschema metadata\n";
    let meta = TableMeta {
        kind: Kind::Embedding,
        layer: "projection".into(),
        dim: 128,
        dataset_digest: "blake3 of the dataset".into(),
        split: "train".into(),
        split_digest: Some("blake3 of the split's labels and images".into()),
        weights: Some("blake3 of the encoder's weights".into()),
        device: Some("cpu".into()),
        precision: Some("f32".into()),
        step: 5004,
        unit_length: true,
        classes: vec!["first".into(), "second".into()],
    };
    let mut entries: Vec<_> = meta.to_metadata().into_iter().collect();
    entries.sort();
    for (name, example) in entries {
        text += &format!("  {name} (for example: {example})\n");
    }
    text
}
