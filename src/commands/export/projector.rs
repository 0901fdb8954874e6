//! Files for TensorBoard's embedding projector.

use std::fmt::Write;

use crate::commands::CommandError;
use crate::dataset::Manifest;
use crate::eval::{EvalError, SPRITE_SIDE, open_bank, sprite};
use crate::feature_table::ColumnNames;
use crate::image::encode_png;
use crate::rng::{Purpose, Stream};
use crate::storage::{Location, PublishMode};

/// Rows that are read at a time.
const ROWS_READ: usize = 1 << 16;

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

/// Publishes `tensors.tsv`, `metadata.tsv`, with a dataset `sprite.png`, and last `projector_config.pbtxt`. Returns the
/// number of rows.
///
/// # Errors
/// If the table or the dataset cannot be read or do not belong together, or the store fails.
pub fn export_projector(job: &ProjectorJob) -> Result<usize, CommandError> {
    let (table, _) = open_bank(&job.table, &ColumnNames::default())?;
    let meta = table.meta();
    let mut rows: Vec<usize> = (0..table.ids().len()).collect();
    if rows.len() > job.limit {
        Stream::new(0, Purpose::ProjectorSample, 0, 0).shuffle(&mut rows);
        rows.truncate(job.limit);
        rows.sort_unstable();
    }
    let mut tensors = String::new();
    let mut metadata = String::from("instance_id\tclass\n");
    let mut next = rows.iter().copied().peekable();
    for range in table.ranges(ROWS_READ) {
        let vectors = table.start_read(range.clone()).finish()?;
        while let Some(row) = next.next_if(|row| range.contains(row)) {
            let vector = vectors.rows(row..row + 1)?;
            let numbers: Vec<String> = vector.iter().map(ToString::to_string).collect();
            tensors += &numbers.join("\t");
            tensors.push('\n');
            let class = table.labels()[row].and_then(|class| meta.classes.get(class.index()));
            let class = class.map_or("", String::as_str).replace(['\t', '\n', '\r'], " ");
            writeln!(metadata, "{}\t{class}", table.ids()[row]).expect("a String takes everything");
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
        let ids: Vec<_> = rows.iter().map(|&row| table.ids()[row]).collect();
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
