//! Threads that make batches ahead of need.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::prelude::*;

use super::apply::{EvalTransform, augment, evaluate_pixels};
use super::{EpochOrder, LoaderError, Recipe, Source};
use crate::dataset::Row;
use crate::ids::{ClassId, InstanceId, Position};
use crate::picture::PictureError;

/// Batches made ahead when a split is evaluated.
const EVALUATION_PREFETCH: usize = 2;

/// Pictures of one step, ready for the encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The step within the epoch, from 0.
    pub step_in_epoch: u64,
    /// `[batch]`: the instances.
    pub ids: Vec<InstanceId>,
    /// `[batch]`: their positions in the source.
    pub positions: Vec<Position>,
    /// `[batch]`: their labels.
    pub labels: Vec<Option<ClassId>>,
    /// `[batch, 3, side, side]`, row after row.
    pub pixels: Vec<u8>,
}

/// How an epoch is loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoaderOptions {
    /// Pictures of a batch.
    pub batch_size: usize,
    /// The seed of order and pixels.
    pub seed: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The first step that is needed; earlier ones are not read.
    pub first_step: u64,
    /// Leave out the last batch if it is short.
    pub drop_last: bool,
    /// Threads that decode and augment; 0 for one on each core.
    pub threads: usize,
    /// Batches that are made ahead of need.
    pub prefetch: usize,
}

/// Which instances a step has, and what is done to a picture.
trait Plan: Send + Sync + 'static {
    /// The instances of a step; none after the last.
    fn positions(&self, step: u64) -> Vec<Position>;
    /// The side of the square that comes out.
    fn side(&self) -> u32;
    /// Writes the pixels of one encoded picture.
    fn render(&self, id: InstanceId, bytes: &[u8], out: &mut [u8]) -> Result<(), PictureError>;
}

struct TrainingPlan {
    order: EpochOrder,
    recipe: Recipe,
    options: LoaderOptions,
    instances: usize,
}

impl Plan for TrainingPlan {
    fn positions(&self, step: u64) -> Vec<Position> {
        let start = (step as usize).saturating_mul(self.options.batch_size);
        let end = start.saturating_add(self.options.batch_size);
        if self.options.drop_last && end > self.instances {
            return Vec::new();
        }
        (start..end.min(self.instances)).map(|position| self.order.at(position)).collect()
    }

    fn side(&self) -> u32 {
        self.recipe.image_size
    }

    fn render(&self, id: InstanceId, bytes: &[u8], out: &mut [u8]) -> Result<(), PictureError> {
        let LoaderOptions { seed, epoch, .. } = self.options;
        let draw = |width, height| self.recipe.draw_for(seed, epoch, id, width, height);
        augment(bytes, draw, self.recipe.image_size, out).map(drop)
    }
}

struct EvaluationPlan {
    transform: EvalTransform,
    batch_size: usize,
    instances: usize,
}

impl Plan for EvaluationPlan {
    fn positions(&self, step: u64) -> Vec<Position> {
        let start = (step as usize).saturating_mul(self.batch_size).min(self.instances);
        let end = (start + self.batch_size).min(self.instances);
        (start as u32..end as u32).map(Position).collect()
    }

    fn side(&self) -> u32 {
        self.transform.side()
    }

    fn render(&self, _id: InstanceId, bytes: &[u8], out: &mut [u8]) -> Result<(), PictureError> {
        evaluate_pixels(bytes, self.transform, out)
    }
}

/// The batches of an epoch, made by threads of its own, in order.
#[derive(Debug)]
pub struct Loader {
    batches: Option<Receiver<Result<Batch, LoaderError>>>,
    producer: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    waited: Duration,
}

impl Loader {
    /// Starts to load an epoch from `first_step` on.
    ///
    /// # Errors
    /// If threads cannot be started.
    ///
    /// # Panics
    /// If the batch size is 0.
    pub fn start(
        source: Arc<dyn Source>,
        recipe: Recipe,
        options: LoaderOptions,
    ) -> Result<Self, LoaderError> {
        assert!(options.batch_size > 0, "a batch has pictures");
        let instances = source.len();
        let order = EpochOrder::new(options.seed, options.epoch, instances);
        let plan = TrainingPlan { order, recipe, options, instances };
        Self::spawn(source, plan, options.first_step, options.threads, options.prefetch)
    }

    /// How long the consumer has waited for batches so far.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    fn spawn(
        source: Arc<dyn Source>,
        plan: impl Plan,
        first_step: u64,
        threads: usize,
        prefetch: usize,
    ) -> Result<Self, LoaderError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("loader-{index}"))
            .build()
            .map_err(|error| LoaderError::Threads(error.into()))?;
        let (sender, receiver) = bounded(prefetch.max(1));
        let stop = Arc::new(AtomicBool::new(false));
        let producer = {
            let stop = Arc::clone(&stop);
            let produce = move || produce(source.as_ref(), &plan, &pool, first_step, &sender, &stop);
            let thread = std::thread::Builder::new().name("loader".into());
            thread.spawn(produce).map_err(|error| LoaderError::Threads(error.into()))?
        };
        Ok(Self { batches: Some(receiver), producer: Some(producer), stop, waited: Duration::ZERO })
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, LoaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        let asked = Instant::now();
        let batch = self.batches.as_ref()?.recv();
        self.waited += asked.elapsed();
        let Ok(batch) = batch else {
            // The producer is done, or it panicked: then so does the consumer.
            self.batches = None;
            if let Some(producer) = self.producer.take()
                && let Err(panic) = producer.join()
            {
                std::panic::resume_unwind(panic);
            }
            return None;
        };
        if batch.is_err() {
            self.batches = None;
        }
        Some(batch)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Without a receiver a producer that waits to send gives up.
        self.batches = None;
        if let Some(producer) = self.producer.take() {
            // A panic of the producer was for the consumer, who does not want batches any more.
            let _ = producer.join();
        }
    }
}

/// Every picture of a source exactly once, in the order of the ids, under the evaluation transform.
///
/// # Errors
/// If threads cannot be started.
///
/// # Panics
/// If the batch size is 0.
pub fn evaluation_batches(
    source: Arc<dyn Source>,
    transform: EvalTransform,
    batch_size: usize,
    threads: usize,
) -> Result<Loader, LoaderError> {
    assert!(batch_size > 0, "a batch has pictures");
    let plan = EvaluationPlan { transform, batch_size, instances: source.len() };
    Loader::spawn(source, plan, 0, threads, EVALUATION_PREFETCH)
}

fn produce(
    source: &dyn Source,
    plan: &impl Plan,
    pool: &rayon::ThreadPool,
    first_step: u64,
    batches: &Sender<Result<Batch, LoaderError>>,
    stop: &AtomicBool,
) {
    for step in first_step.. {
        let positions = plan.positions(step);
        if positions.is_empty() || stop.load(Ordering::Relaxed) {
            return;
        }
        let rows = source.read(&positions);
        let batch = rows.and_then(|rows| make_batch(plan, pool, step, positions, rows, stop));
        let failed = batch.is_err();
        if batches.send(batch).is_err() || failed {
            return;
        }
    }
}

fn make_batch(
    plan: &impl Plan,
    pool: &rayon::ThreadPool,
    step: u64,
    positions: Vec<Position>,
    rows: Vec<Row>,
    stop: &AtomicBool,
) -> Result<Batch, LoaderError> {
    let picture_bytes = 3 * (plan.side() as usize).pow(2);
    let mut pixels = vec![0; rows.len() * picture_bytes];
    let render = |(row, out): (&Row, &mut [u8])| -> Result<(), LoaderError> {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        plan.render(row.id, &row.bytes, out).map_err(|source| LoaderError::Picture {
            id: row.id,
            path: row.path.clone(),
            source,
        })
    };
    pool.install(|| rows.par_iter().zip(pixels.par_chunks_mut(picture_bytes)).try_for_each(render))?;
    Ok(Batch {
        step_in_epoch: step,
        ids: rows.iter().map(|row| row.id).collect(),
        positions,
        labels: rows.iter().map(|row| row.label).collect(),
        pixels,
    })
}
