//! Stages of the loader: plan, read, gather, make. Each is a function that one or more threads run until the channel
//! before it ends or the one after it loses its receiver.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use rayon::prelude::*;

use super::LoaderError;
use super::options::{Budget, Permit};
use super::plan::{Batch, Fetch, Planner, Step};
use super::source::{Encoded, ReadContext, Source};
use crate::augment::{EvalTransform, Recipe, augment, evaluate};
use crate::ids::{BankRow, BatchIndex, InstanceId};
use crate::image::{self, ImageError};

/// Bytes that decoding and augmenting take for each pixel of the image: the decoded image, the region that is cut
/// out, and the decoder's buffers for a progressive one.
const DECODE_BYTES_OF_A_PIXEL: u64 = 6;

pub(super) struct Task {
    sequence: u64,
    epoch: u64,
    fetch: Fetch,
    permit: Permit,
}

/// An image in memory, which its permit accounts for.
pub(super) struct HeldImage {
    encoded: Encoded,
    permit: Permit,
}

type Row = Result<HeldImage, Arc<LoaderError>>;

pub(super) struct Arrived {
    sequence: u64,
    epoch: u64,
    rows: Vec<(BankRow, Row)>,
}

/// Images of a batch before they are decoded.
pub(super) struct Work {
    step: Step,
    rows: Vec<(BankRow, Row)>,
}

/// A batch, and the images missing from it.
pub(super) struct DecodedBatch {
    pub batch: Batch,
    pub missing: Vec<(BankRow, Arc<LoaderError>)>,
}

/// Follows the plan as far ahead as the budget allows.
///
/// Memory is taken in the order of the plan, so a fetch never waits for a later one.
pub(super) fn plan(
    planner: Planner,
    source: &dyn Source,
    budget: &Budget,
    context: &ReadContext,
    tasks: &Sender<Task>,
    steps: &Sender<Step>,
) {
    for (group, next_use) in planner.first_uses().into_iter().enumerate() {
        source.expect(group, next_use);
    }
    let mean = source.layout().mean_bytes();
    let acquire = |bytes| context.counters.plan_wait.time(|| budget.acquire(bytes));
    let mut sequence = 0;
    for (fetches, step) in planner {
        for fetch in fetches {
            let Some(permit) = acquire(size(&fetch, source, mean)) else { return };
            budget.started();
            if tasks.send(Task { sequence, epoch: step.epoch, fetch, permit }).is_err() {
                return;
            }
            sequence += 1;
        }
        if steps.send(step).is_err() {
            return;
        }
    }
}

/// Returns the bytes that a fetch takes: a row group is briefly in memory twice, as read and as rows.
fn size(fetch: &Fetch, source: &dyn Source, mean: u64) -> u64 {
    match fetch {
        Fetch::Rows(rows) => rows.len() as u64 * mean,
        Fetch::Group { group, .. } => 2 * source.layout().bytes(*group),
    }
}

pub(super) fn read(
    source: &dyn Source,
    context: &ReadContext,
    tasks: &Receiver<Task>,
    arrived: &Sender<Arrived>,
) {
    let counters = &context.counters;
    while let Ok(task) = counters.read_wait.time(|| tasks.recv()) {
        let Task { sequence, epoch, fetch, permit } = task;
        let (bank_rows, rows) = counters.read_busy.time(|| match &fetch {
            Fetch::Rows(bank_rows) => (bank_rows.as_slice(), source.fetch_rows(bank_rows, context)),
            Fetch::Group { group, next_use } => {
                // Announced only now: until it is read, the group is needed for this use.
                source.expect(*group, *next_use);
                (source.layout().members(*group), source.fetch_group(*group, context))
            }
        });
        let bytes = |row: &Result<Encoded, _>| row.as_ref().map_or(0, Encoded::held_bytes);
        let sizes: Vec<u64> = rows.iter().map(bytes).collect();
        let held = rows.into_iter().zip(permit.split(&sizes));
        let held = held.map(|(row, permit)| row.map(|encoded| HeldImage { encoded, permit }));
        let rows = bank_rows.iter().copied().zip(held).collect();
        if context.cancel.is_cancelled() || arrived.send(Arrived { sequence, epoch, rows }).is_err() {
            return;
        }
    }
}

/// Collects the rows of each step, and assigns the steps to the workers in turn.
pub(super) fn gather(
    context: &ReadContext,
    budget: &Budget,
    steps: &Receiver<Step>,
    arrived: &Receiver<Arrived>,
    workers: &[Sender<Work>],
) {
    let mut shelf: HashMap<(u64, BankRow), Row> = HashMap::new();
    let receive = |arrived: &Receiver<Arrived>| {
        context.counters.gather_wait.time(|| budget.starve_for(|| arrived.recv()))
    };
    // All fetches below `complete` have arrived, and those in `beyond`.
    let (mut complete, mut beyond) = (0, BTreeSet::new());
    for (turn, step) in steps.iter().enumerate() {
        while complete < step.needs {
            let Ok(portion) = receive(arrived) else { return };
            let epoch = portion.epoch;
            shelf.extend(portion.rows.into_iter().map(|(bank_row, row)| ((epoch, bank_row), row)));
            beyond.insert(portion.sequence);
            while beyond.remove(&complete) {
                complete += 1;
            }
        }
        for &bank_row in &step.discard {
            shelf.remove(&(step.epoch, bank_row));
        }
        let mut take = |bank_row: BankRow| shelf.remove(&(step.epoch, bank_row));
        let brought = |index: &BatchIndex| {
            let bank_row = step.global.bank_rows[index.index()];
            (bank_row, take(bank_row).expect("a step's fetches bring its rows"))
        };
        let rows = step.own.iter().map(brought).collect();
        if step.own.len() < step.global.bank_rows.len() {
            // Whole row groups also bring images of other ranks.
            step.global.bank_rows.iter().for_each(|&bank_row| drop(shelf.remove(&(step.epoch, bank_row))));
        }
        if workers[turn % workers.len()].send(Work { step, rows }).is_err() {
            return;
        }
    }
}

/// Transform of encoded images to the pixels of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum View {
    /// Augmentation; the pixels are a function of (seed, epoch, instance).
    Training { recipe: Recipe, seed: u64 },
    /// Evaluation transform, the same in every epoch.
    Evaluation(EvalTransform),
}

impl View {
    /// Returns the side of the square output in pixels.
    pub(super) fn side(self) -> u32 {
        match self {
            Self::Training { recipe, .. } => recipe.image_size,
            Self::Evaluation(transform) => transform.side(),
        }
    }

    /// Writes all pixels of one image.
    ///
    /// # Shape
    /// `out: [3 * side * side]`, planar
    fn render(
        self,
        epoch: u64,
        id: InstanceId,
        image: &image::Encoded,
        out: &mut [u8],
    ) -> Result<(), ImageError> {
        match self {
            Self::Training { recipe, seed } => {
                let draw = |width, height| recipe.draw_for(seed, epoch, id, width, height);
                augment(image, draw, recipe.image_size, out).map(drop)
            }
            Self::Evaluation(transform) => evaluate(image, transform, out),
        }
    }
}

/// State that the threads which make batches share.
pub(super) struct DecodeWorkers {
    pub source: Arc<dyn Source>,
    pub view: View,
    pub pool: rayon::ThreadPool,
    /// Budget of memory for decoding.
    pub memory: Budget,
    pub context: ReadContext,
    /// Buffers that the consumer returned.
    pub buffers: Receiver<Vec<u8>>,
}

/// Decodes and augments the images of batches.
pub(super) fn make(workers: &DecodeWorkers, works: &Receiver<Work>, batches: &Sender<DecodedBatch>) {
    let counters = &workers.context.counters;
    while let Ok(work) = counters.make_wait.time(|| works.recv()) {
        let made = make_batch(workers, work);
        if workers.context.cancel.is_cancelled() {
            return;
        }
        if !counters.ready_wait.time(|| batches.send(made).is_ok()) {
            return;
        }
    }
}

fn make_batch(workers: &DecodeWorkers, work: Work) -> DecodedBatch {
    let epoch = work.step.epoch;
    let image_bytes = 3 * (workers.view.side() as usize).pow(2);
    let bank_rows: Vec<BankRow> = work.rows.iter().map(|(bank_row, _)| *bank_row).collect();
    let mut pixels = workers.buffers.try_recv().unwrap_or_default();
    pixels.resize(bank_rows.len() * image_bytes, 0);
    let render = |((bank_row, row), out): ((BankRow, Row), &mut [u8])| {
        let made = row.and_then(|row| render(workers, epoch, bank_row, row, out));
        made.err().map(|error| (bank_row, error))
    };
    let rows = work.rows.into_par_iter().zip(pixels.par_chunks_mut(image_bytes));
    let missing: Vec<Option<(BankRow, Arc<LoaderError>)>> =
        workers.pool.install(|| rows.map(render).collect());

    let kept: Vec<usize> = (0..bank_rows.len()).filter(|&row| missing[row].is_none()).collect();
    if kept.len() < bank_rows.len() {
        for (to, &from) in kept.iter().enumerate() {
            pixels.copy_within(from * image_bytes..(from + 1) * image_bytes, to * image_bytes);
        }
        pixels.truncate(kept.len() * image_bytes);
    }
    let bank_rows: Vec<BankRow> = kept.into_iter().map(|row| bank_rows[row]).collect();
    let source = workers.source.as_ref();
    let batch = Batch {
        epoch,
        step_in_epoch: work.step.step,
        global: work.step.global,
        ids: bank_rows.iter().map(|bank_row| source.ids()[bank_row.row()]).collect(),
        labels: bank_rows.iter().map(|bank_row| source.labels()[bank_row.row()]).collect(),
        bank_rows,
        pixels,
    };
    workers.context.counters.images.add(batch.ids.len() as u64);
    DecodedBatch { batch, missing: missing.into_iter().flatten().collect() }
}

fn render(
    workers: &DecodeWorkers,
    epoch: u64,
    bank_row: BankRow,
    row: HeldImage,
    out: &mut [u8],
) -> Result<(), Arc<LoaderError>> {
    let HeldImage { encoded, permit } = row;
    let stopped = || Arc::new(LoaderError::Stopped);
    if workers.context.cancel.is_cancelled() {
        return Err(stopped());
    }
    let needed = encoded.pixels.saturating_mul(DECODE_BYTES_OF_A_PIXEL);
    let _memory = workers.memory.acquire(needed).ok_or_else(stopped)?;
    let id = workers.source.ids()[bank_row.row()];
    let orientation = workers.source.instances().exif_orientation;
    let rendered = workers.context.counters.make_busy.time(|| {
        let image = image::Encoded::ingested(&encoded.bytes, orientation)?;
        let image = image.with_entry_points(encoded.entry_points.as_deref());
        workers.view.render(epoch, id, &image, out)
    });
    drop((encoded, permit));
    rendered.map_err(|source| {
        Arc::new(LoaderError::Image { id, record: workers.source.record(bank_row), source })
    })
}
