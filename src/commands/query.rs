//! `query`: finds the most similar rows of a bank for images outside a dataset.
//!
//! The images use the same decoder, evaluation transform and encoder as those of a dataset. Run and dataset
//! are only read.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use rayon::prelude::*;
use serde::Serialize;

use super::CommandError;
use super::knn::check_dataset;
use super::run::BATCH_SIZE;
use crate::checkpoint::{Checkpoint, checkpoint_at};
use crate::dataset::{Manifest, Row, read_paths};
use crate::eval::{
    KnnOptions, KnnReports, Thumbnails, checkpoint_bank, checkpoint_of_bank, collapsed_rows, encode,
    evaluate_with_neighbours, load_encoder, open_bank,
};
use crate::feature_table::{ColumnNames, FeatureTable, Kind, Table, TableError, TableMeta};
use crate::ids::InstanceId;
use crate::image::{self, ExifOrientation, ImageError, Limits};
use crate::ingest::is_image;
use crate::loader::MemorySource;
use crate::model::{FeatureLayer, select_device_of};
use crate::page::{Example, ExampleKind, History, PageImages, PageInput, page};
use crate::progress::Progress;
use crate::run_config::{DeviceChoice, OnCorrupt};
use crate::storage::{Location, PublishMode};

/// Default number of neighbours of an image.
const DEFAULT_K: usize = 10;
/// Images in memory at a time.
const CHUNK: usize = 1024;
const CHUNK_BYTES: usize = 256 << 20;

/// Search options and images.
#[derive(Clone, Debug)]
pub struct QueryJob {
    /// Folder of the run, for its newest checkpoint, or of a checkpoint.
    pub run: Location,
    /// Images, and folders of images.
    pub images: Vec<Location>,
    /// Rows to search: a table of `embed`, or a checkpoint or run; by default the checkpoint's bank.
    pub bank: Option<Location>,
    /// Dataset of these rows, for their paths and the page's images.
    pub dataset: Option<Location>,
    /// Neighbours of an image; by default 10, or all if there are fewer rows.
    pub k: Option<usize>,
    /// Action at a corrupt image.
    pub on_corrupt: OnCorrupt,
    /// Handling of the EXIF orientation; by default as in the dataset.
    pub exif_orientation: Option<ExifOrientation>,
    /// Page of images and neighbours (`.html`).
    pub page: Option<Location>,
    /// Decoding threads; 0 for one per core.
    pub threads: usize,
    /// Device to compute on.
    pub device: DeviceChoice,
}

/// Neighbours of the queried images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryReport {
    /// Checkpoint whose encoder embedded the images.
    pub checkpoint: String,
    /// Step of the checkpoint.
    pub step: u64,
    /// Name of the compared feature.
    pub feature: String,
    /// Digest of the rows' dataset.
    pub dataset_digest: String,
    /// Split of the rows.
    pub split: String,
    /// Number of neighbours of an image.
    pub k: usize,
    /// Images, in the order given.
    pub images: Vec<QueriedImage>,
    /// Images that were skipped.
    pub skipped: Vec<SkippedImage>,
    /// Notes for readers of the neighbours, one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Image with its neighbours.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueriedImage {
    /// File of the image.
    pub image: String,
    /// Neighbours, most similar first; ties go to the lower id.
    pub neighbours: Vec<FoundRow>,
}

/// Row of the bank.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FoundRow {
    /// Instance of the row.
    pub id: InstanceId,
    /// Cosine between image and row.
    pub similarity: f32,
    /// Number of the row's class, if it has one.
    pub label: Option<u16>,
    /// Name of the class.
    pub class: Option<String>,
    /// Path in the dataset, if a dataset was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Image that was skipped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SkippedImage {
    /// File of the image.
    pub image: String,
    /// Reason why it was skipped.
    pub reason: String,
}

/// Embeds images with a run's encoder and finds the most similar rows of a bank.
///
/// # Errors
/// If the checkpoint, the bank or an image cannot be read, they do not belong together, or the store fails.
pub fn query(job: &QueryJob, progress: &dyn Progress) -> Result<QueryReport, CommandError> {
    if let Some(page) = job.page.as_ref().filter(|page| !page.file_name().ends_with(".html")) {
        return Err(CommandError::Usage(format!("--page {page}: a page is an .html file")));
    }
    let (_, folder) = checkpoint_at(&job.run)?;
    let checkpoint = Checkpoint::open(&folder)?;
    let bank = open_rows(job, &checkpoint, progress)?;
    let meta = bank.meta();
    let manifest = job.dataset.as_ref().map(Manifest::read).transpose()?;
    let dataset = job.dataset.as_ref().zip(manifest.as_ref());
    if let Some((dataset, manifest)) = dataset {
        check_dataset(dataset, manifest, &[("bank", meta)])?;
    }
    let split = manifest.as_ref().and_then(|manifest| manifest.splits.get(&meta.split));
    let of_dataset = split.map(|split| ExifOrientation::applied(split.applies_exif_orientation()));
    let orientation = job.exif_orientation.or(of_dataset);
    let k = job.k.unwrap_or_else(|| DEFAULT_K.min(bank.rows()));
    if k == 0 || k > bank.rows() {
        let rows = bank.rows();
        return Err(CommandError::Usage(format!("--k {k}: the bank has {rows} rows, so it is 1 to {rows}")));
    }
    let notes: Vec<String> = collapsed_rows(&*bank)?.into_iter().collect();
    notes.iter().for_each(|note| tracing::warn!("{note}"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(job.threads).build()?;
    let Embedded { queries, names, skipped, thumbnails } =
        pool.install(|| embed(job, &checkpoint, &*bank, orientation, progress))?;

    let options = KnnOptions { k: vec![k], ..KnnOptions::default() };
    let (mut report, neighbours) = pool.install(|| evaluate_with_neighbours(&*bank, &queries, &options))?;
    bank.verify()?;
    let found: BTreeSet<InstanceId> =
        neighbours.found.iter().map(|&(row, _)| bank.id(row as usize)).collect();
    let paths = match dataset {
        Some((dataset, manifest)) => {
            let paths = read_paths(dataset, manifest.split(dataset, &meta.split)?, &found)?;
            let lacking: Vec<_> = found.iter().filter(|id| !paths.contains_key(id)).collect();
            if let Some(first) = lacking.first() {
                let (lacking, found, split) = (lacking.len(), found.len(), &meta.split);
                tracing::warn!(
                    "split `{split}` of --dataset {dataset} lacks {lacking} of the {found} images that were found, the \
                     first with id {first}: they have no path"
                );
            }
            paths
        }
        None => Default::default(),
    };
    let row = |(row, similarity): (usize, f32)| {
        let (id, label) = (bank.id(row), bank.label(row));
        FoundRow {
            id,
            similarity,
            label: label.map(|class| class.0),
            class: label.and_then(|class| meta.classes.get(class.index()).cloned()),
            path: paths.get(&id).cloned(),
        }
    };
    let images = names
        .into_iter()
        .enumerate()
        .map(|(query, image)| QueriedImage { image, neighbours: neighbours.of(query).map(row).collect() });
    let queried = QueryReport {
        checkpoint: folder.to_string(),
        step: checkpoint.manifest().step,
        feature: report.feature.clone(),
        dataset_digest: meta.dataset_digest.clone(),
        split: meta.split.clone(),
        k,
        images: images.collect(),
        skipped,
        notes,
    };
    if let Some(location) = &job.page {
        // Images outside a dataset have no labels, which needs no note.
        report.notes.clone_from(&queried.notes);
        let example = |query| Example {
            query,
            kind: ExampleKind::Typical,
            winner: None,
            own_share: 0.0,
            winner_share: 0.0,
        };
        let examples: Vec<Example> = (0..queries.len()).map(example).collect();
        let input = PageInput {
            reports: &KnnReports { first: report, other_features: Vec::new() },
            bank: &*bank,
            queries: &queries,
            neighbours: &neighbours,
            shown: k,
            dataset: job.dataset.as_ref().map(Location::file_name),
            examples: &examples,
            history: &History::default(),
            map: None,
        };
        let of_bank =
            |(dataset, manifest)| Thumbnails::load(dataset, manifest, &meta.split, input.shown_neighbours());
        let of_bank = dataset.map(of_bank).transpose()?.unwrap_or_default();
        let images = PageImages { queries: thumbnails, bank: of_bank, sprite: None };
        location.publish(page(&input, &images)?, PublishMode::Overwrite)?;
        progress.note(&format!("page {location}"));
    }
    Ok(queried)
}

/// Opens the rows to search, which this checkpoint's encoder must have embedded.
fn open_rows(
    job: &QueryJob,
    checkpoint: &Checkpoint,
    progress: &dyn Progress,
) -> Result<Box<dyn Table>, CommandError> {
    let Some(place) = &job.bank else { return Ok(Box::new(checkpoint_bank(checkpoint)?)) };
    let (bank, foreign) = open_bank(place, &ColumnNames::default())?;
    let wrong = |reason: String| Err(CommandError::Data(format!("--bank {place}: {reason}")));
    if foreign.is_some() {
        return wrong("another program wrote it, expected a table of `embed`, a checkpoint or a run".into());
    }
    let (meta, step, folder) = (bank.meta(), checkpoint.manifest().step, checkpoint.folder());
    // A bank does not name its weights; the checkpoint has them.
    if let Some(own) = checkpoint_of_bank(place)? {
        if own.weights_digest() == checkpoint.weights_digest() {
            return Ok(bank);
        }
        return wrong(format!(
            "it is of {}, whose weights are others than those of {folder}; give that as --run",
            own.folder()
        ));
    }
    match &meta.weights {
        Some(weights) if *weights != checkpoint.weights_digest() => wrong(format!(
            "its features are by other weights (step {}) than those of {folder} (step {step}); give the \
             checkpoint that embedded it, or embed it again",
            meta.step
        )),
        None if meta.step != step => {
            wrong(format!("it is of step {}, and the encoder of {folder} of step {step}", meta.step))
        }
        Some(_) => Ok(bank),
        None => {
            progress.note(&format!(
                "--bank {place} does not name the weights that made it: taken as of {folder}"
            ));
            Ok(bank)
        }
    }
}

/// Embedded images.
struct Embedded {
    queries: FeatureTable,
    /// File of each query.
    names: Vec<String>,
    skipped: Vec<SkippedImage>,
    /// Images for the page, if one is requested.
    thumbnails: Thumbnails,
}

fn embed(
    job: &QueryJob,
    checkpoint: &Checkpoint,
    bank: &dyn Table,
    orientation: Option<ExifOrientation>,
    progress: &dyn Progress,
) -> Result<Embedded, CommandError> {
    let files = files(&job.images, progress)?;
    let meta = bank.meta();
    let layer: FeatureLayer = meta.layer.parse().map_err(|reason: String| CommandError::Data(reason))?;
    let selected = select_device_of(job.device, 0, 1).map_err(crate::eval::EmbedError::from)?;
    tracing::info!("device {selected}");
    let encoder = load_encoder(checkpoint, selected.device)?;
    let table_meta = TableMeta {
        kind: Kind::Embedding,
        split: String::new(),
        split_digest: None,
        weights: Some(checkpoint.weights_digest()),
        step: checkpoint.manifest().step,
        classes: Vec::new(),
        ..meta.clone()
    };
    let mut parts: Vec<FeatureTable> = Vec::new();
    let (mut names, mut skipped, mut thumbnails) = (Vec::<String>::new(), Vec::new(), Thumbnails::default());
    let mut left = files.as_slice();
    while !left.is_empty() {
        let (mut read, mut bytes) = (Vec::<Bytes>::new(), 0);
        while read.len() < left.len().min(CHUNK) && bytes < CHUNK_BYTES {
            read.push(left[read.len()].read()?);
            bytes += read.last().map_or(0, Bytes::len);
        }
        let (files, rest) = left.split_at(read.len());
        left = rest;
        let checked: Vec<_> = read.par_iter().map(|bytes| check(bytes)).collect();
        let mut rows = Vec::new();
        for ((file, bytes), checked) in files.iter().zip(read).zip(checked) {
            let (image, id) = (file.to_string(), InstanceId(names.len() as u32));
            let ((width, height), entry_points) = match checked {
                Ok(checked) => checked,
                Err(reason) if job.on_corrupt == OnCorrupt::Skip => {
                    tracing::warn!("{image}: {reason}: left out");
                    skipped.push(SkippedImage { image, reason: reason.to_string() });
                    continue;
                }
                Err(reason) => return Err(CommandError::Data(format!("{image}: {reason}"))),
            };
            if orientation.is_none()
                && ExifOrientation::Apply.of(&bytes) != ExifOrientation::Ignore.of(&bytes)
            {
                return Err(CommandError::Usage(format!(
                    "{image}: its EXIF asks to be turned: give --exif-orientation apply, or ignore to take it as it is \
                     stored, whichever the images of the run were ingested with; --dataset says it too"
                )));
            }
            if job.page.is_some() {
                thumbnails.add(id, &image, &bytes, orientation.unwrap_or_default());
            }
            names.push(image.clone());
            rows.push(Row { id, label: None, bytes, path: image, width, height, entry_points });
        }
        if rows.is_empty() {
            continue;
        }
        let source = MemorySource::new(rows).with_exif_orientation(orientation.unwrap_or_default());
        let sizes = (BATCH_SIZE, job.threads);
        parts.extend(encode(&encoder, Arc::new(source), &[layer], &table_meta, sizes, progress)?);
    }
    if parts.is_empty() {
        return Err(CommandError::Data(format!("all {} images are broken", skipped.len())));
    }
    let named = parts.into_iter().map(|part| Ok::<_, TableError>(("the images".to_owned(), part)));
    let queries = FeatureTable::join(named)?;
    let mut rows = queries.features.chunks(queries.meta.dim);
    if let Some(row) = rows.position(|row| row.iter().any(|x| !x.is_finite())) {
        let checkpoint = checkpoint.folder();
        let reason =
            format!("{}: the encoder of {checkpoint} gives a feature that is not finite", names[row]);
        return Err(CommandError::Data(reason));
    }
    Ok(Embedded { queries, names, skipped, thumbnails })
}

/// Decodes an image and checks it as `ingest` does. Returns its size and entry points.
fn check(bytes: &[u8]) -> Result<((u32, u32), Option<Bytes>), ImageError> {
    let (header, _, entry_points) = image::check(bytes, &Limits::default())?;
    Ok(((header.width, header.height), entry_points.map(Bytes::from)))
}

/// Lists the given images, and those in given folders, sorted by name.
fn files(given: &[Location], progress: &dyn Progress) -> Result<Vec<Location>, CommandError> {
    let mut files = Vec::new();
    for place in given {
        let is_file = match place.local_path() {
            Some(path) => !path.is_dir(),
            None => place.exists()?,
        };
        if is_file {
            files.push(place.clone());
            continue;
        }
        let entries = place.list()?;
        let images: Vec<_> = entries.iter().filter(|entry| is_image(&entry.name)).collect();
        if images.is_empty() {
            return Err(CommandError::Data(format!("{place}: no image, and no folder with images")));
        }
        if images.len() < entries.len() {
            let others = entries.len() - images.len();
            progress.note(&format!("{place}: {} images; {others} other files are passed over", images.len()));
        }
        files.extend(images.iter().map(|entry| place.join(&entry.name)));
    }
    Ok(files)
}
