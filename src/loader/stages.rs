//! The stages of the loader: plan, read, gather, make. Each is a function that one or more threads run until
//! the channel before it ends or the one after it has no reader.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use rayon::prelude::*;

use super::budget::{Budget, Permit};
use super::plan::{Fetch, Planner, Step};
use super::source::{Encoded, ReadContext, Source};
use super::{Batch, LoaderError};
use crate::augment::view::{Seen, View};
use crate::ids::Position;
use crate::loader::plan::global_batch::GlobalBatch;

/// Bytes of memory that decoding and augmenting take for each pixel of the image: the decoded image,
/// the part that is cut out, and what the decoder holds of a progressive one.
const DECODE_BYTES_OF_A_PIXEL: u64 = 6;

/// What a read task does.
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

/// What a read task brought.
pub(super) struct Arrived {
    sequence: u64,
    epoch: u64,
    rows: Vec<(Position, Row)>,
}

/// A batch's images before they are decoded.
pub(super) struct Work {
    epoch: u64,
    step: u64,
    global: Arc<GlobalBatch>,
    rows: Vec<(Position, Row)>,
}

/// A batch, and what is missing from it.
pub(super) struct DecodedBatch {
    pub(super) batch: Batch,
    pub(super) missing: Vec<(Position, Arc<LoaderError>)>,
}

/// Goes through the plan as far ahead as the budget allows.
///
/// Memory is taken in the order of the plan, so what comes next never waits for what comes after it.
pub(super) fn plan(
    planner: Planner,
    source: &dyn Source,
    budget: &Budget,
    reading: &ReadContext,
    tasks: &Sender<Task>,
    steps: &Sender<Step>,
) {
    for (group, next_use) in planner.first_uses().into_iter().enumerate() {
        source.expect(group, next_use);
    }
    let mean = mean_bytes(source);
    let acquire = |bytes| reading.counters.plan_wait.time(|| budget.acquire(bytes));
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

/// The mean size of an image, rounded up.
pub(super) fn mean_bytes(source: &dyn Source) -> u64 {
    let layout = source.layout();
    layout.total_bytes().div_ceil(layout.rows().max(1) as u64)
}

/// The memory that a fetch takes: a row group is there twice for a moment, as it came and as rows.
fn size(fetch: &Fetch, source: &dyn Source, mean: u64) -> u64 {
    match fetch {
        Fetch::Rows(rows) => rows.len() as u64 * mean,
        Fetch::Group { group, .. } => 2 * source.layout().bytes(*group),
    }
}

/// Reads what the plan says.
pub(super) fn read(
    source: &dyn Source,
    reading: &ReadContext,
    tasks: &Receiver<Task>,
    arrived: &Sender<Arrived>,
) {
    let counters = &reading.counters;
    while let Ok(task) = counters.read_wait.time(|| tasks.recv()) {
        let Task { sequence, epoch, fetch, permit } = task;
        let (positions, rows) = counters.read_busy.time(|| match &fetch {
            Fetch::Rows(positions) => (positions.as_slice(), source.fetch_rows(positions, reading)),
            Fetch::Group { group, next_use } => {
                // Not when it is planned: until it is read, it is needed now.
                source.expect(*group, *next_use);
                (source.layout().members(*group), source.fetch_group(*group, reading))
            }
        });
        let bytes = |row: &Result<Encoded, _>| row.as_ref().map_or(0, |row| row.bytes.len() as u64);
        let sizes: Vec<u64> = rows.iter().map(bytes).collect();
        let held = rows.into_iter().zip(permit.split(&sizes));
        let held = held.map(|(row, permit)| row.map(|encoded| HeldImage { encoded, permit }));
        let rows = positions.iter().copied().zip(held).collect();
        if reading.cancel.is_cancelled() || arrived.send(Arrived { sequence, epoch, rows }).is_err() {
            return;
        }
    }
}

/// Brings the rows of each step together, and deals the steps to the workers in turn.
pub(super) fn gather(
    reading: &ReadContext,
    budget: &Budget,
    steps: &Receiver<Step>,
    arrived: &Receiver<Arrived>,
    workers: &[Sender<Work>],
) {
    let mut shelf: HashMap<(u64, Position), Row> = HashMap::new();
    let receive = |arrived: &Receiver<Arrived>| {
        reading.counters.gather_wait.time(|| budget.starve_for(|| arrived.recv()))
    };
    // Fetches below `complete` have arrived, and those in `beyond`.
    let (mut complete, mut beyond) = (0, BTreeSet::new());
    for (turn, step) in steps.iter().enumerate() {
        while complete < step.needs {
            let Ok(portion) = receive(arrived) else { return };
            let epoch = portion.epoch;
            shelf.extend(portion.rows.into_iter().map(|(position, row)| ((epoch, position), row)));
            beyond.insert(portion.sequence);
            while beyond.remove(&complete) {
                complete += 1;
            }
        }
        for &position in &step.discard {
            shelf.remove(&(step.epoch, position));
        }
        let mut take = |index: usize| shelf.remove(&(step.epoch, step.global.positions[index]));
        let brought = |index: usize, row: Option<Row>| {
            (step.global.positions[index], row.expect("a step's fetches bring its rows"))
        };
        let rows = step.own.iter().map(|&index| brought(index, take(index))).collect();
        if step.own.len() < step.global.positions.len() {
            // What comes with whole row groups is other ranks'.
            (0..step.global.positions.len()).for_each(|index| drop(take(index)));
        }
        let work = Work { epoch: step.epoch, step: step.step, global: step.global, rows };
        if workers[turn % workers.len()].send(work).is_err() {
            return;
        }
    }
}

/// What workers share.
pub(super) struct DecodeWorkers {
    pub(super) source: Arc<dyn Source>,
    pub(super) view: Box<dyn View>,
    pub(super) pool: rayon::ThreadPool,
    /// Memory for decoding.
    pub(super) memory: Budget,
    pub(super) reading: ReadContext,
    /// Buffers that the consumer gave back.
    pub(super) buffers: Receiver<Vec<u8>>,
}

/// Decodes and augments.
pub(super) fn make(workers: &DecodeWorkers, works: &Receiver<Work>, batches: &Sender<DecodedBatch>) {
    let counters = &workers.reading.counters;
    while let Ok(work) = counters.make_wait.time(|| works.recv()) {
        let made = make_batch(workers, work);
        if workers.reading.cancel.is_cancelled() {
            return;
        }
        if !counters.ready_wait.time(|| batches.send(made).is_ok()) {
            return;
        }
    }
}

fn make_batch(workers: &DecodeWorkers, work: Work) -> DecodedBatch {
    let image_bytes = 3 * (workers.view.side() as usize).pow(2);
    let positions: Vec<Position> = work.rows.iter().map(|(position, _)| *position).collect();
    let mut pixels = workers.buffers.try_recv().unwrap_or_default();
    pixels.resize(positions.len() * image_bytes, 0);
    let render = |((position, row), out): ((Position, Row), &mut [u8])| {
        let made = row.and_then(|row| render(workers, work.epoch, position, row, out));
        made.err().map(|error| (position, error))
    };
    let rows = work.rows.into_par_iter().zip(pixels.par_chunks_mut(image_bytes));
    let missing: Vec<Option<(Position, Arc<LoaderError>)>> =
        workers.pool.install(|| rows.map(render).collect());

    let kept: Vec<usize> = (0..positions.len()).filter(|&row| missing[row].is_none()).collect();
    if kept.len() < positions.len() {
        for (to, &from) in kept.iter().enumerate() {
            pixels.copy_within(from * image_bytes..(from + 1) * image_bytes, to * image_bytes);
        }
        pixels.truncate(kept.len() * image_bytes);
    }
    let positions: Vec<Position> = kept.into_iter().map(|row| positions[row]).collect();
    let source = workers.source.as_ref();
    let batch = Batch {
        epoch: work.epoch,
        step_in_epoch: work.step,
        global: work.global,
        ids: positions.iter().map(|position| source.ids()[position.row()]).collect(),
        labels: positions.iter().map(|position| source.labels()[position.row()]).collect(),
        positions,
        pixels,
    };
    workers.reading.counters.images.add(batch.ids.len() as u64);
    DecodedBatch { batch, missing: missing.into_iter().flatten().collect() }
}

fn render(
    workers: &DecodeWorkers,
    epoch: u64,
    position: Position,
    row: HeldImage,
    out: &mut [u8],
) -> Result<(), Arc<LoaderError>> {
    let HeldImage { encoded, permit } = row;
    let stopped = || Arc::new(LoaderError::Stopped);
    if workers.reading.cancel.is_cancelled() {
        return Err(stopped());
    }
    let needed = encoded.pixels.saturating_mul(DECODE_BYTES_OF_A_PIXEL);
    let _memory = workers.memory.acquire(needed).ok_or_else(stopped)?;
    let id = workers.source.ids()[position.row()];
    let seen = Seen { bytes: &encoded.bytes, orientation: workers.source.exif_orientation() };
    let rendered = workers.reading.counters.make_busy.time(|| workers.view.render(epoch, id, seen, out));
    drop((encoded, permit));
    rendered
        .map_err(|source| Arc::new(LoaderError::Image { id, place: workers.source.place(position), source }))
}
