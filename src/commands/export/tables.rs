//! Feature tables in the formats of other programs: Parquet, and files for TensorBoard's embedding projector.

use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::commands::CommandError;
use crate::commands::knn::are_one_file;
use crate::dataset::Manifest;
use crate::eval::{EvalError, SPRITE_SIDE, checkpoint_of_bank, open_bank, sprite};
use crate::feature_table::{ColumnNames, Table, open_table};
use crate::ids::ClassId;
use crate::image::encode_png;
use crate::rng::{Purpose, Stream};
use crate::storage::{Location, PublishMode, StorageError, Upload};

/// Rows that are read at a time, and those of a row group.
const ROW_GROUP: usize = 1 << 16;

/// What to export.
#[derive(Clone, Debug)]
pub struct ProjectorJob {
    /// The feature table, or a checkpoint or run for its bank.
    pub table: Location,
    /// The dataset, for the images.
    pub dataset: Option<Location>,
    /// The folder to open in TensorBoard.
    pub output: Location,
    /// Rows at most; of more, a uniform sample.
    pub limit: usize,
}

/// Opens the bank of a checkpoint or run, or a table with the columns of the format: of other columns it would not be known
/// what the exports have of them.
fn open(place: &Location) -> Result<Box<dyn Table>, CommandError> {
    Ok(match checkpoint_of_bank(place)? {
        Some(_) => open_bank(place, &ColumnNames::default())?.0,
        None => open_table(place, None)?.0,
    })
}

/// Publishes `tensors.tsv`, `metadata.tsv`, with a dataset `sprite.png`, and last `projector_config.pbtxt`. Returns the
/// number of rows.
///
/// # Errors
/// If the table or the dataset cannot be read or do not belong together, or the store fails.
pub fn export_projector(job: &ProjectorJob) -> Result<usize, CommandError> {
    let table = open(&job.table)?;
    let meta = table.meta();
    let mut rows: Vec<usize> = (0..table.rows()).collect();
    if rows.len() > job.limit {
        Stream::new(0, Purpose::ProjectorSample, 0, 0).shuffle(&mut rows);
        rows.truncate(job.limit);
        rows.sort_unstable();
    }
    let mut tensors = String::new();
    let mut metadata = String::from("instance_id\tclass\n");
    let mut next = rows.iter().copied().peekable();
    for range in table.ranges(ROW_GROUP) {
        let vectors = table.start_read(range.clone()).finish()?;
        while let Some(row) = next.next_if(|row| range.contains(row)) {
            let vector = vectors.rows(row..row + 1)?;
            let numbers: Vec<String> = vector.iter().map(ToString::to_string).collect();
            tensors += &numbers.join("\t");
            tensors.push('\n');
            let class = table.label(row).and_then(|class| meta.classes.get(class.index()));
            let class = class.map_or("", String::as_str).replace(['\t', '\n', '\r'], " ");
            writeln!(metadata, "{}\t{class}", table.id(row)).expect("a String takes everything");
        }
    }
    table.verify()?;
    let name = format!("{}, {}, step {}", meta.split, meta.layer, meta.step);
    let mut config = format!(
        "embeddings {{\n  tensor_name: {}\n  tensor_path: \"tensors.tsv\"\n  metadata_path: \"metadata.tsv\"\n",
        serde_json::Value::from(name)
    );
    let publish =
        |name: &str, contents: Vec<u8>| job.output.join(name).publish(contents, PublishMode::Overwrite);
    if let Some(dataset) = &job.dataset {
        let manifest = Manifest::read(dataset)?;
        let split = manifest.split(dataset, &meta.split)?;
        if !meta.is_of(&split.digest.to_string(), &manifest.dataset_digest.to_string()) {
            let reason = format!("{dataset} is another dataset than that of {}", job.table);
            return Err(EvalError::Mismatch { reason }.into());
        }
        let ids: Vec<_> = rows.iter().map(|&row| table.id(row)).collect();
        let images = sprite(dataset, &manifest, &meta.split, &ids)?;
        let png = encode_png(&images).map_err(|error| EvalError::Options { reason: error.to_string() })?;
        publish("sprite.png", png)?;
        write!(
            config,
            "  sprite {{\n    image_path: \"sprite.png\"\n    single_image_dim: {SPRITE_SIDE}\n    single_image_dim: {SPRITE_SIDE}\n  }}\n"
        )
        .expect("a String takes everything");
    }
    config.push_str("}\n");
    publish("tensors.tsv", tensors.into_bytes())?;
    publish("metadata.tsv", metadata.into_bytes())?;
    publish("projector_config.pbtxt", config.into_bytes())?;
    Ok(rows.len())
}

/// Publishes a feature table, or the bank of a checkpoint or run, with columns `instance_id`, `feature` (a list of the table's length), `label`, `class` and
/// `updated_step`, and returns the number of rows.
///
/// # Errors
/// If the table cannot be read, or the store fails.
pub fn export_parquet(place: &Location, output: &Location) -> Result<usize, CommandError> {
    if are_one_file(place, output) {
        return Err(CommandError::Usage(format!(
            "--output {output}: that is the table to read; name another file"
        )));
    }
    let table = open(place)?;
    let failed = |source: ParquetError| StorageError::Failed {
        operation: "write",
        location: output.to_string(),
        local: output.local_path().is_some(),
        source: Box::new(source),
    };
    let dim = table.meta().dim as i32;
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let schema = Arc::new(Schema::new_with_metadata(
        vec![
            Field::new("instance_id", DataType::Int64, false),
            Field::new("feature", DataType::FixedSizeList(Arc::clone(&item), dim), false),
            Field::new("label", DataType::Int64, true),
            Field::new("class", DataType::Utf8, true),
            Field::new("updated_step", DataType::Int64, true),
        ],
        table.meta().to_metadata(),
    ));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_column_dictionary_enabled("feature.list.element".into(), false)
        .build();
    let upload = Upload::start(output)?;
    let mut writer = ArrowWriter::try_new(upload, Arc::clone(&schema), Some(properties)).map_err(failed)?;
    let name = |class: ClassId| table.meta().classes.get(class.index()).map(String::as_str);
    for rows in table.ranges(ROW_GROUP) {
        let vectors = table.start_read(rows.clone()).finish()?;
        let values = Float32Array::from(vectors.rows(rows.clone())?.into_owned());
        let feature = FixedSizeListArray::new(Arc::clone(&item), dim, Arc::new(values), None);
        let labels: Vec<Option<ClassId>> = rows.clone().map(|row| table.label(row)).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(rows.clone().map(|row| table.id(row).to_stored()))),
            Arc::new(feature),
            Arc::new(Int64Array::from_iter(labels.iter().map(|label| label.map(|class| i64::from(class.0))))),
            Arc::new(StringArray::from_iter(labels.iter().map(|label| label.and_then(name)))),
            Arc::new(Int64Array::from_iter(
                table.updated_steps(rows)?.into_iter().map(|step| step.map(|step| step as i64)),
            )),
        ];
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).expect("the columns are the schema's");
        writer.write(&batch).and_then(|()| writer.flush()).map_err(failed)?;
    }
    table.verify()?;
    writer.into_inner().map_err(failed)?.finish()?;
    Ok(table.rows())
}
