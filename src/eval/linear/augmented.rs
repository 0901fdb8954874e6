//! Linear probes on features of new crops in each epoch.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tch::Tensor;

use super::examples::{Batch, Examples};
use super::head::{Score, scores};
use super::sgd::{self, Cell, Passes};
use super::{
    Fitted, LinearOptions, ProbeReport, Solver, check, choose, no_labels, report, share, split_off,
    trained_on_note,
};
use crate::augment::{JitterStrength, Recipe};
use crate::distributed::ProcessGroup;
use crate::eval::distributed::gather_numbers;
use crate::eval::embed::{EmbedJob, load_encoder, select, to_host};
use crate::eval::{EmbedError, EvalError};
use crate::feature_table::{StoredTable, Table, TableMeta};
use crate::ids::{BankRow, ClassId};
use crate::loader::{Batch as LoadedBatch, Loader, LoaderOptions, Source, Subset, evaluation_epoch};
use crate::model::{Encoder, FeatureLayer};
use crate::progress::Progress;

/// Trains a probe for each layer on the job's split, with new crops and flips in each epoch, and evaluates it
/// on one table per layer. All layers use the same crops, from one pass. Several processes encode a share of
/// each batch; rank 0 takes the steps and returns the reports.
///
/// # Errors
/// If images or tables cannot be read or do not belong together, the solver is not `sgd`, or another process fails.
pub fn probe_augmented(
    job: &EmbedJob,
    layers: &[FeatureLayer],
    tests: &[StoredTable],
    options: &LinearOptions,
    group: &ProcessGroup,
    progress: &dyn Progress,
) -> Result<Option<Vec<ProbeReport>>, EvalError> {
    options.validate()?;
    if options.solver != Solver::Sgd || options.standardize {
        let reason = "other crops in each epoch go with --solver sgd, and without --standardize".into();
        return Err(EvalError::Options { reason });
    }
    let started = Instant::now();
    let device = select(options.device, options.local_rank, group)?;
    let EmbedJob { checkpoint, manifest, .. } = job;
    let encoder = load_encoder(checkpoint, device)?;
    let source = labelled(job.rows.open(&job.dataset, manifest, &job.split)?);
    let classes = manifest.classes.len();
    let passes = |source: &Arc<dyn Source>| CropPasses {
        encoder: &encoder,
        source: Arc::clone(source),
        layers,
        threads: job.threads,
        options,
        group,
        progress,
    };
    let fit = |source: &Arc<dyn Source>, cells: &[Vec<Cell>]| {
        sgd::fit(&mut passes(source), cells, classes, &[], options.epochs, device)
    };
    let cells = options.cells();
    let mut chosen = vec![(cells[0], Vec::new()); layers.len()];
    if cells.len() > 1 {
        let (kept, held_out) = split_off(source.ids(), source.labels(), options.seed)?;
        let heads = fit(&some(&source, &kept), &vec![cells.clone(); layers.len()])?;
        let mut scores = vec![vec![Score::default(); cells.len()]; layers.len()];
        passes(&some(&source, &held_out)).evaluation(&mut |batches| {
            for ((scores, heads), batch) in scores.iter_mut().zip(&heads).zip(batches) {
                scores.iter_mut().zip(heads).for_each(|(score, head)| head.add_to(score, batch, device));
            }
        })?;
        for (chosen, scores) in chosen.iter_mut().zip(scores) {
            *chosen = choose(&cells, &scores);
        }
    }
    let last: Vec<Vec<Cell>> = chosen.iter().map(|(cell, _)| vec![*cell]).collect();
    let heads = fit(&source, &last)?;
    if !group.is_first() {
        return Ok(None);
    }
    let mut reports = Vec::new();
    for ((((chosen, sweep), mut heads), test), layer) in chosen.into_iter().zip(heads).zip(tests).zip(layers)
    {
        let dim = test.meta().dim;
        let meta = TableMeta { layer: layer.to_string(), dim, unit_length: false, ..job.meta() };
        let names = [&job.split, &test.meta().split].map(|split| format!("split `{split}`"));
        check(&meta, test.meta(), names.each_ref().map(String::as_str))?;
        let rows = Examples::of(test, None).ok_or_else(|| no_labels(&names[1]))?;
        let score = scores(&heads, &rows, device, &ProcessGroup::alone())?.remove(0);
        let notes = trained_on_note(&meta, source.ids().iter().copied(), test).into_iter().collect();
        let fitted = Fitted { chosen, sweep, head: heads.remove(0), score, rows: source.len(), notes };
        let report = report(&meta, test.meta(), options, fitted, started);
        reports.push(ProbeReport { augmented: true, ..report });
    }
    Ok(Some(reports))
}

fn some(source: &Arc<dyn Source>, rows: &[usize]) -> Arc<dyn Source> {
    let positions = rows.iter().map(|&row| BankRow(row as u32)).collect();
    Arc::new(Subset::new(Arc::clone(source), positions))
}

/// Selects the rows that have a label.
fn labelled(source: Arc<dyn Source>) -> Arc<dyn Source> {
    let rows: Vec<usize> = (0..source.len()).filter(|&row| source.labels()[row].is_some()).collect();
    if rows.len() == source.len() { source } else { some(&source, &rows) }
}

/// Passes over images, which all processes embed batch by batch.
struct CropPasses<'a> {
    encoder: &'a Encoder,
    source: Arc<dyn Source>,
    layers: &'a [FeatureLayer],
    threads: usize,
    options: &'a LinearOptions,
    group: &'a ProcessGroup,
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
            share: share(self.group),
            ..LoaderOptions::default()
        }
    }

    /// Calls `see` with each image's features once, under the evaluation transform.
    fn evaluation(&self, see: &mut dyn FnMut(&[Batch])) -> Result<(), EvalError> {
        let transform = self.encoder.config().evaluation_transform();
        let mut loader = evaluation_epoch(Arc::clone(&self.source), transform, self.loader(0))?;
        self.progress.begin("evaluate the settings", self.source.len() as u64);
        self.batches(&mut loader, 0, see)
    }

    /// Calls `see` with the features of each batch of an epoch, on rank 0.
    fn batches(
        &self,
        loader: &mut Loader,
        epoch: u64,
        see: &mut dyn FnMut(&[Batch]),
    ) -> Result<(), EvalError> {
        static NEVER: AtomicBool = AtomicBool::new(false);
        while let Some(batch) = loader.next_of(epoch, &NEVER) {
            let batch = batch?;
            let mut own = Vec::new();
            if !batch.ids.is_empty() {
                let features = self.encoder.features(&self.encoder.images(&batch.pixels), self.layers);
                own = features.map_err(EmbedError::from)?;
            }
            let features = if self.group.world() == 1 { own } else { self.of_all(&batch, &own)? };
            let label = |row: &BankRow| self.source.labels()[row.row()];
            let labels: Vec<ClassId> = batch.global.bank_rows.iter().filter_map(label).collect();
            if self.group.is_first() {
                let batches = features.into_iter().map(|features| Batch::new(features, &labels));
                see(&batches.collect::<Vec<_>>());
            }
            self.progress.advance(batch.global.bank_rows.len() as u64);
            loader.give_back(batch);
        }
        self.progress.finish();
        Ok(())
    }

    /// Gathers the features of all processes by layer, in the order of the global batch.
    fn of_all(&self, batch: &LoadedBatch, own: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let rows = batch.global.bank_rows.len();
        // Batch indices of all processes' rows, ordered by rank.
        let places: Vec<i64> = batch.global.shares.iter().flatten().map(|index| i64::from(index.0)).collect();
        let places = Tensor::from_slice(&places);
        let of_layer = |layer: usize| {
            let numbers = own.get(layer).map(to_host).unwrap_or_default();
            let all = gather_numbers(self.group, &numbers)?.concat();
            let all = Tensor::from_slice(&all).view([rows as i64, -1]);
            Ok(all.zeros_like().index_copy(0, &places, &all))
        };
        (0..self.layers.len()).map(of_layer).collect()
    }
}

impl Passes for CropPasses<'_> {
    fn steps(&self) -> u64 {
        self.loader(0).steps(self.source.len())
    }

    fn epoch(&mut self, epoch: u64, see: &mut dyn FnMut(&[Batch])) -> Result<(), EvalError> {
        let side = self.encoder.config().image_size;
        // No colour jitter, as in the paper's protocol for linear classifiers.
        let jitter = JitterStrength { brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.0 };
        let recipe = Recipe { grayscale: 0.0, jitter, flip: 0.5, ..Recipe::imagenet(side) };
        let mut loader = Loader::start(Arc::clone(&self.source), recipe, self.loader(epoch))?;
        self.progress.begin(&format!("epoch {}", epoch + 1), self.source.len() as u64);
        self.batches(&mut loader, epoch, see)
    }
}
