//! Where encoded images come from.

mod split_rows;
pub(super) mod stored;
pub(super) mod subset;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::LoaderError;
use super::stats::Counters;
use crate::dataset::Row;
use crate::ids::{BankRow, ClassId, InstanceId};
use crate::image::ExifOrientation;
use crate::storage::{Cancel, Digest};

/// Rows of a group of a source in memory.
const ROWS_OF_A_GROUP: usize = 256;

/// An image as it was read.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Its encoded bytes.
    pub bytes: Bytes,
    /// The number of its pixels, which decides how much memory decoding takes.
    pub pixels: u64,
    /// Where decoding can start within it, if that is known.
    pub entry_points: Option<Bytes>,
}

impl Encoded {
    /// A row's, which shares its memory.
    fn of(row: &Row) -> Self {
        let entry_points = row.entry_points.clone();
        Self { bytes: row.bytes.clone(), pixels: row.pixels(), entry_points }
    }

    /// The memory that it holds, in bytes.
    pub(super) fn held_bytes(&self) -> u64 {
        (self.bytes.len() + self.entry_points.as_ref().map_or(0, Bytes::len)) as u64
    }
}

/// A row that was read, or why it was not; several rows may share an error.
pub type Fetched = Result<Encoded, Arc<LoaderError>>;

/// What a read observes and counts.
#[derive(Clone, Debug, Default)]
pub struct ReadContext {
    /// Ends reads under way.
    pub cancel: Cancel,
    /// What was read.
    pub counters: Arc<Counters>,
}

/// Which instances a source has.
#[derive(Clone, Debug)]
pub struct Instances {
    /// The instance at each bank row, in ascending order.
    pub ids: Vec<InstanceId>,
    /// The label at each bank row.
    pub labels: Vec<Option<ClassId>>,
    /// Which rows are in which row group.
    pub layout: Layout,
}

/// Gives images by their bank rows.
pub trait Source: Send + Sync {
    /// Which instances it has; their bank rows are `0..len`.
    fn instances(&self) -> &Instances;

    /// The number of instances.
    fn len(&self) -> usize {
        self.instances().ids.len()
    }

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The instance at each bank row, in ascending order.
    fn ids(&self) -> &[InstanceId] {
        &self.instances().ids
    }

    /// The label at each bank row.
    fn labels(&self) -> &[Option<ClassId>] {
        &self.instances().labels
    }

    /// Which rows are in which row group.
    fn layout(&self) -> &Layout {
        &self.instances().layout
    }

    /// Names the record at a bank row, for errors.
    fn record(&self, bank_row: BankRow) -> String;

    /// The whole rows at these bank rows, in their order: for a look at a few, not for speed.
    ///
    /// # Errors
    /// If a row cannot be read.
    fn read(&self, bank_rows: &[BankRow]) -> Result<Vec<Row>, LoaderError>;

    /// The images at these bank rows, in their order.
    fn fetch_rows(&self, bank_rows: &[BankRow], context: &ReadContext) -> Vec<Fetched>;

    /// The images of a row group, in the order of the layout.
    fn fetch_group(&self, group: usize, context: &ReadContext) -> Vec<Fetched> {
        self.fetch_rows(self.layout().members(group), context)
    }

    /// Whether reading a row alone costs no more than its share of a row group.
    fn reads_rows(&self) -> bool {
        true
    }

    /// Prepares to read rows by themselves with at most `memory` bytes; returns the bytes that it will hold.
    ///
    /// # Errors
    /// [`LoaderError::Memory`] if it cannot.
    fn prepare_rows(&self, _memory: u64) -> Result<u64, LoaderError> {
        Ok(0)
    }

    /// Announces when a row group is needed next, so that a cache keeps those that come soonest.
    fn expect(&self, _group: usize, _next_use: u64) {}

    /// Whether EXIF's orientation is applied to its images.
    fn exif_orientation(&self) -> ExifOrientation {
        ExifOrientation::Ignore
    }

    /// The bytes of its tables of instances and row groups.
    fn held_bytes(&self) -> u64 {
        0
    }
}

/// Rows that are in memory already.
#[derive(Clone, Debug)]
pub struct MemorySource {
    rows: Vec<Row>,
    instances: Instances,
    exif_orientation: ExifOrientation,
}

impl MemorySource {
    /// A source of rows in the order of their ids.
    ///
    /// # Panics
    /// If the ids do not ascend.
    pub fn new(rows: Vec<Row>) -> Self {
        Self::in_groups(rows, ROWS_OF_A_GROUP)
    }

    /// A source of rows in the order of their ids, with `rows_of_a_group` in each row group.
    ///
    /// # Panics
    /// If the ids do not ascend.
    pub fn in_groups(rows: Vec<Row>, rows_of_a_group: usize) -> Self {
        let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "ids ascend");
        let labels = rows.iter().map(|row| row.label).collect();
        let bytes = rows.iter().map(|row| row.bytes.len() as u64).sum();
        let layout = Layout::regular(rows.len(), rows_of_a_group, bytes);
        Self { rows, instances: Instances { ids, labels, layout }, exif_orientation: ExifOrientation::Ignore }
    }

    /// The same, whose images are turned as their EXIF says, or not.
    #[must_use]
    pub fn with_exif_orientation(self, exif_orientation: ExifOrientation) -> Self {
        Self { exif_orientation, ..self }
    }
}

impl Source for MemorySource {
    fn instances(&self) -> &Instances {
        &self.instances
    }

    fn record(&self, bank_row: BankRow) -> String {
        self.rows[bank_row.row()].path.clone()
    }

    fn read(&self, bank_rows: &[BankRow]) -> Result<Vec<Row>, LoaderError> {
        Ok(bank_rows.iter().map(|bank_row| self.rows[bank_row.row()].clone()).collect())
    }

    fn fetch_rows(&self, bank_rows: &[BankRow], _context: &ReadContext) -> Vec<Fetched> {
        let encoded = |bank_row: &BankRow| Ok(Encoded::of(&self.rows[bank_row.row()]));
        bank_rows.iter().map(encoded).collect()
    }

    fn exif_orientation(&self) -> ExifOrientation {
        self.exif_orientation
    }
}

/// The row groups of a source, each with the bank rows of its rows and its size.
///
/// Invariant: each bank row of the source is in exactly one group.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Of group `g`: the slots `starts[g]..starts[g + 1]`.
    starts: Vec<u32>,
    /// By slot: the bank row of its row.
    members: Vec<BankRow>,
    bytes: Vec<u64>,
}

impl Layout {
    /// A layout from the bank rows in each group, in the order of its rows, and the group's bytes.
    pub fn new(groups: impl IntoIterator<Item = (Vec<BankRow>, u64)>) -> Self {
        let mut layout = Self { starts: vec![0], ..Self::default() };
        for (members, bytes) in groups {
            layout.members.extend(members);
            layout.starts.push(layout.members.len() as u32);
            layout.bytes.push(bytes);
        }
        layout
    }

    /// Groups of equal length, in the order of the bank rows.
    pub fn regular(len: usize, rows: usize, bytes: u64) -> Self {
        let groups = (0..len).step_by(rows.max(1)).map(|start| {
            let members: Vec<_> =
                (start..len.min(start + rows.max(1))).map(|row| BankRow(row as u32)).collect();
            let share = bytes * members.len() as u64 / len.max(1) as u64;
            (members, share)
        });
        Self::new(groups)
    }

    /// A digest of which bank rows are in which group, in which order.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for number in self.starts.iter().copied().chain(self.members.iter().map(|bank_row| bank_row.0)) {
            hasher.update(&number.to_le_bytes());
        }
        hasher.finalize().into()
    }

    /// The number of groups.
    pub fn groups(&self) -> usize {
        self.bytes.len()
    }

    /// The bank rows in a group.
    pub fn members(&self, group: usize) -> &[BankRow] {
        &self.members[self.slots(group)]
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.members.len()
    }

    /// What reading a group fetches, in bytes.
    pub fn bytes(&self, group: usize) -> u64 {
        self.bytes[group]
    }

    /// The bytes of all groups.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// The mean bytes of a row, rounded up.
    pub(crate) fn mean_bytes(&self) -> u64 {
        self.total_bytes().div_ceil(self.rows().max(1) as u64)
    }

    /// The bytes of the largest group.
    pub fn largest_group(&self) -> u64 {
        self.bytes.iter().copied().max().unwrap_or(0)
    }

    /// By bank row: the slot of its row, counted through all groups.
    pub(crate) fn slots_by_bank_row(&self) -> Vec<u32> {
        let mut slots = vec![0; self.members.len()];
        for (slot, bank_row) in (0..).zip(&self.members) {
            slots[bank_row.row()] = slot;
        }
        slots
    }

    /// The group of a slot.
    pub(crate) fn group_of_slot(&self, slot: u32) -> u32 {
        self.starts.partition_point(|&start| start <= slot) as u32 - 1
    }

    fn slots(&self, group: usize) -> Range<usize> {
        self.starts[group] as usize..self.starts[group + 1] as usize
    }
}
