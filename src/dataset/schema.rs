//! The columns of a shard, and what its metadata says to other readers.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema};

/// The key of the metadata entry.
pub(super) const HUGGINGFACE: &str = "huggingface";

/// The leaf columns of the encoded images and of their entry points.
pub(super) const IMAGE_BYTES: usize = 1;
pub(super) const ENTRY_POINTS: usize = 6;

/// The columns. Of entry points alone a value may be null; all are declared as nullable because Hugging Face `datasets` takes its
/// features from the metadata only where the declared type is its own, which is.
pub(super) fn schema() -> Schema {
    let image = Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]);
    Schema::new(vec![
        Field::new("instance_id", DataType::Int64, true),
        Field::new("image", DataType::Struct(image), true),
        Field::new("label", DataType::Int64, true),
        Field::new("width", DataType::Int32, true),
        Field::new("height", DataType::Int32, true),
        Field::new("entry_points", DataType::Binary, true),
    ])
}

/// The columns of a shard from before there were entry points.
pub(super) fn schema_without_entry_points() -> Schema {
    let fields = schema().fields;
    Schema::new(fields[..fields.len() - 1].to_vec())
}

/// The columns of a dataset with these classes. The entry lies in the Arrow schema too, where pyarrow looks.
pub(super) fn labelled_schema(classes: &[String]) -> Arc<Schema> {
    let metadata = HashMap::from([(HUGGINGFACE.to_owned(), huggingface_entry(classes))]);
    Arc::new(schema().with_metadata(metadata))
}

/// The value of the `huggingface` metadata entry, by which `datasets` and pandas see images and classes.
pub(super) fn huggingface_entry(classes: &[String]) -> String {
    let value = |dtype: &str| serde_json::json!({"dtype": dtype, "_type": "Value"});
    serde_json::json!({"info": {"features": {
        "instance_id": value("int64"),
        "image": {"_type": "Image"},
        "label": {"names": classes, "_type": "ClassLabel"},
        "width": value("int32"),
        "height": value("int32"),
        "entry_points": value("binary"),
    }}})
    .to_string()
}

/// The schemas of the dataset's files as text, as `schemas/dataset.txt` holds them.
pub fn schema_text() -> String {
    fn lines(text: &mut String, fields: &Fields, indent: &str, nulls: bool) {
        for field in fields {
            let (kind, children) = match field.data_type() {
                DataType::Struct(children) => ("struct".to_owned(), Some(children)),
                other => (other.to_string(), None),
            };
            let nulls = if (nulls || field.name() == "entry_points") && field.is_nullable() {
                "nullable"
            } else {
                "without nulls"
            };
            *text += &format!("{indent}{} {kind} {nulls}\n", field.name());
            if let Some(children) = children {
                lines(text, children, &format!("{indent}  "), false);
            }
        }
    }
    let mut text =
        String::from("Dataset shard, version 1: a Parquet file, PLAIN and uncompressed\n\ncolumns\n");
    lines(&mut text, schema().fields(), "  ", false);
    text += "\nkey-value metadata\n  huggingface (for two classes a and b):\n    ";
    text += &huggingface_entry(&["a".into(), "b".into()]);
    text += "\n\nindex/<split>.parquet: a Parquet file\n\ncolumns\n";
    lines(&mut text, super::index::schema().fields(), "  ", true);
    text += "\nduplicates.parquet: a Parquet file\n\ncolumns\n";
    lines(&mut text, super::duplicates::schema().fields(), "  ", true);
    text
}
