//! Probes on features of other crops in each epoch.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::head::{Examples, Head, Score};
use super::sgd::{self, Cell, Passes};
use super::{
    Fitted, LinearError, LinearOptions, ProbeReport, Solver, check, choose, report, selected, split_off,
    trained_on_note,
};
use crate::augment::{JitterStrength, Recipe};
use crate::eval::embed::{EmbedJob, encode_layers, load_encoder};
use crate::eval::{EmbedError, EvalError};
use crate::feature_table::{FeatureTable, TableMeta};
use crate::ids::BankRow;
use crate::loader::{Loader, LoaderOptions, Source, Subset};
use crate::model::{Encoder, FeatureLayer};
use crate::progress::Progress;

/// Trains a probe for each layer on the job's split, with new crops and mirror images in each epoch, and evaluates it by
/// the tables of the evaluated split, one for each layer. All layers see the same crops, in one pass.
///
/// # Errors
/// If images or tables cannot be read or do not belong together, or the solver is not `sgd`.
pub fn probe_augmented(
    job: &EmbedJob,
    layers: &[FeatureLayer],
    tests: &[FeatureTable],
    options: &LinearOptions,
    progress: &dyn Progress,
) -> Result<Vec<ProbeReport>, LinearError> {
    options.validate()?;
    if options.solver != Solver::Sgd || options.standardize {
        let reason = "other crops in each epoch go with --solver sgd, and without --standardize".into();
        return Err(EvalError::Options { reason }.into());
    }
    let started = Instant::now();
    let device = selected(options)?;
    let EmbedJob { checkpoint, manifest, .. } = job;
    let encoder = load_encoder(checkpoint, device)?;
    let source = labelled(job.rows.open(&job.dataset, manifest, &job.split)?);
    let classes = manifest.classes.len();
    let fit = |source: &Arc<dyn Source>, cells: &[Vec<Cell>]| {
        let mut passes =
            CropPasses { encoder: &encoder, source, layers, threads: job.threads, options, progress };
        sgd::fit(&mut passes, cells, classes, &[], options.epochs, device)
    };
    let cells = options.cells();
    let mut chosen = vec![(cells[0], Vec::new()); layers.len()];
    if cells.len() > 1 {
        let (kept, held_out) = split_off(source.ids(), source.labels(), options.seed)?;
        let heads = fit(&some(&source, &kept), &vec![cells.clone(); layers.len()])?;
        let sizes = (job.batch_size, job.threads);
        let tables = encode_layers(&encoder, some(&source, &held_out), &job.meta(), layers, sizes, progress)?;
        for ((chosen, table), heads) in chosen.iter_mut().zip(&tables).zip(&heads) {
            let held_out = Examples::of(table)?;
            let scores: Vec<Score> = heads.iter().map(|head: &Head| head.score(&held_out, device)).collect();
            *chosen = choose(&cells, scores.into_iter());
        }
    }
    let last: Vec<Vec<Cell>> = chosen.iter().map(|(cell, _)| vec![*cell]).collect();
    let heads = fit(&source, &last)?;
    let mut reports = Vec::new();
    for ((((chosen, sweep), mut heads), test), layer) in chosen.into_iter().zip(heads).zip(tests).zip(layers)
    {
        let meta =
            TableMeta { layer: layer.to_string(), dim: test.meta.dim, unit_length: false, ..job.meta() };
        check(&meta, &test.meta)?;
        let head = heads.remove(0);
        let score = head.score(&Examples::of(test)?, device);
        let note = trained_on_note(&meta, source.ids(), test);
        let fitted = Fitted { chosen, sweep, head, score, rows: source.len(), note };
        let report = report(&meta, &test.meta, options, fitted, started);
        reports.push(ProbeReport { augmented: true, ..report });
    }
    Ok(reports)
}

fn some(source: &Arc<dyn Source>, rows: &[usize]) -> Arc<dyn Source> {
    let positions = rows.iter().map(|&row| BankRow(row as u32)).collect();
    Arc::new(Subset::new(Arc::clone(source), positions))
}

/// The rows that have a label.
fn labelled(source: Arc<dyn Source>) -> Arc<dyn Source> {
    let rows: Vec<usize> = (0..source.len()).filter(|&row| source.labels()[row].is_some()).collect();
    if rows.len() == source.len() { source } else { some(&source, &rows) }
}

/// Crops and mirror images, embedded as they come.
struct CropPasses<'a> {
    encoder: &'a Encoder,
    source: &'a Arc<dyn Source>,
    layers: &'a [FeatureLayer],
    threads: usize,
    options: &'a LinearOptions,
    progress: &'a dyn Progress,
}

impl CropPasses<'_> {
    fn loader(&self, epoch: u64) -> LoaderOptions {
        LoaderOptions {
            batch_size: self.options.batch_size,
            seed: self.options.seed,
            epoch,
            epochs: 1,
            threads: self.threads,
            ..LoaderOptions::default()
        }
    }
}

impl Passes for CropPasses<'_> {
    fn steps(&self) -> u64 {
        self.loader(0).steps(self.source.len())
    }

    fn epoch(&mut self, epoch: u64, see: &mut dyn FnMut(&[Examples])) -> Result<(), LinearError> {
        static NEVER: AtomicBool = AtomicBool::new(false);
        let side = self.encoder.config().image_size;
        // Colours stay, as in the paper's protocol for linear classifiers.
        let jitter = JitterStrength { brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.0 };
        let recipe = Recipe { grayscale: 0.0, jitter, flip: 0.5, ..Recipe::imagenet(side) };
        let mut loader = Loader::start(Arc::clone(self.source), recipe, self.loader(epoch))?;
        self.progress.begin(&format!("epoch {}", epoch + 1), self.source.len() as u64);
        while let Some(batch) = loader.next_of(epoch, &NEVER) {
            let batch = batch?;
            let pixels = self.encoder.images(&batch.pixels);
            let labels: Vec<_> = batch.labels.iter().flatten().copied().collect();
            let features = self.encoder.features(&pixels, self.layers);
            let features = features.map_err(EmbedError::from)?;
            let examples: Vec<Examples> =
                features.into_iter().map(|features| Examples::new(features, &labels)).collect();
            see(&examples);
            self.progress.advance(batch.ids.len() as u64);
            loader.give_back(batch);
        }
        self.progress.finish();
        Ok(())
    }
}
