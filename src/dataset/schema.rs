//! The columns of a shard, and what its metadata says to other readers.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema};

/// The key of the metadata entry.
pub(super) const HUGGINGFACE: &str = "huggingface";

/// The leaf column of the encoded images.
pub(super) const IMAGE_BYTES: usize = 1;

/// Bytes of the length before each value of that column, in a plain page.
pub(super) const LENGTH_BYTES: usize = 4;

/// The columns. No value is ever null; they are declared as nullable because Hugging Face `datasets` takes its
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
    ])
}

/// The columns of a dataset with these classes. The Arrow schema holds the entry too, for pyarrow.
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
    }}})
    .to_string()
}
