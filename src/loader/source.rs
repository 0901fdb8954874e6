//! Where encoded images come from.
//!
//! A [`Subset`] has some of the rows of a source: a run of them, or a share of the labels, the same number of
//! each class. Which rows a share has is a function of (fraction, seed, ids, labels): the same on every
//! machine and for every order of the rows. With one seed, a smaller subset is part of each larger one.

mod split_rows;
pub(super) mod stored;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::LoaderError;
use super::stats::Counters;
use crate::dataset::Row;
use crate::ids::{BankRow, ClassId, InstanceId};
use crate::image::ExifOrientation;
use crate::rng::{Purpose, Stream};
use crate::storage::{Cancel, Digest};
use crate::units::Fraction;

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
    /// Whether EXIF's orientation is applied to their images.
    pub exif_orientation: ExifOrientation,
    /// The bytes of the source's tables of instances and row groups.
    pub held_bytes: u64,
}

/// Gives images by their bank rows.
pub trait Source: Send + Sync {
    /// Which instances it has; their bank rows are `0..len`.
    fn instances(&self) -> &Instances;

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
        self.fetch_rows(self.instances().layout.members(group), context)
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
}

impl std::fmt::Debug for dyn Source + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a source of {} images", self.len())
    }
}

impl dyn Source + '_ {
    /// The number of instances.
    pub fn len(&self) -> usize {
        self.ids().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ids().is_empty()
    }

    /// The instance at each bank row, in ascending order.
    pub fn ids(&self) -> &[InstanceId] {
        &self.instances().ids
    }

    /// The label at each bank row.
    pub fn labels(&self) -> &[Option<ClassId>] {
        &self.instances().labels
    }

    /// Which rows are in which row group.
    pub fn layout(&self) -> &Layout {
        &self.instances().layout
    }
}

/// Rows that are in memory already.
#[derive(Clone, Debug)]
pub struct MemorySource {
    rows: Vec<Row>,
    instances: Instances,
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
        let exif_orientation = ExifOrientation::Ignore;
        Self { rows, instances: Instances { ids, labels, layout, exif_orientation, held_bytes: 0 } }
    }

    /// The same, whose images are turned as their EXIF says, or not.
    #[must_use]
    pub fn with_exif_orientation(mut self, exif_orientation: ExifOrientation) -> Self {
        self.instances.exif_orientation = exif_orientation;
        self
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

    pub(crate) fn group_of_slot(&self, slot: u32) -> u32 {
        self.starts.partition_point(|&start| start <= slot) as u32 - 1
    }

    fn slots(&self, group: usize) -> Range<usize> {
        self.starts[group] as usize..self.starts[group + 1] as usize
    }
}

/// A source that gives some rows of another, numbered anew from 0.
pub struct Subset {
    inner: Arc<dyn Source>,
    /// By own bank row: that in the inner source.
    bank_rows: Vec<BankRow>,
    instances: Instances,
    /// By own group: the inner group, and which of its rows count.
    groups: Vec<(usize, Vec<usize>)>,
}

impl Subset {
    /// The rows of `inner` at these bank rows.
    ///
    /// # Panics
    /// If the bank rows do not ascend.
    pub fn new(inner: Arc<dyn Source>, bank_rows: Vec<BankRow>) -> Self {
        assert!(bank_rows.is_sorted_by(|a, b| a < b), "bank rows ascend");
        let mut own = vec![None; inner.len()];
        for (bank_row, inner) in (0..).map(BankRow).zip(&bank_rows) {
            own[inner.row()] = Some(bank_row);
        }
        let (mut groups, mut members) = (Vec::new(), Vec::new());
        for group in 0..inner.layout().groups() {
            let rows = inner.layout().members(group).iter().enumerate();
            let (indices, kept): (Vec<usize>, Vec<BankRow>) =
                rows.filter_map(|(index, bank_row)| Some((index, own[bank_row.row()]?))).unzip();
            if !kept.is_empty() {
                groups.push((group, indices));
                members.push((kept, inner.layout().bytes(group)));
            }
        }
        let instances = Instances {
            ids: bank_rows.iter().map(|bank_row| inner.ids()[bank_row.row()]).collect(),
            labels: bank_rows.iter().map(|bank_row| inner.labels()[bank_row.row()]).collect(),
            layout: Layout::new(members),
            ..*inner.instances()
        };
        Self { inner, bank_rows, instances, groups }
    }

    /// The rows of `inner` at a run of bank rows.
    pub fn of_range(inner: Arc<dyn Source>, bank_rows: Range<usize>) -> Self {
        Self::new(inner, bank_rows.map(|row| BankRow(row as u32)).collect())
    }

    /// A share of the labels, chosen by [`balanced_rows`].
    pub fn of_labels(inner: Arc<dyn Source>, fraction: Fraction, seed: u64) -> Self {
        let rows = balanced_rows(inner.ids(), inner.labels(), fraction, seed);
        let bank_rows = rows.into_iter().map(|row| BankRow(row as u32)).collect();
        Self::new(inner, bank_rows)
    }

    fn inner_rows(&self, bank_rows: &[BankRow]) -> Vec<BankRow> {
        bank_rows.iter().map(|bank_row| self.bank_rows[bank_row.row()]).collect()
    }
}

impl std::fmt::Debug for Subset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subset").field("bank_rows", &self.bank_rows).finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods)]
impl Source for Subset {
    fn instances(&self) -> &Instances {
        &self.instances
    }

    fn record(&self, bank_row: BankRow) -> String {
        self.inner.record(self.bank_rows[bank_row.row()])
    }

    fn read(&self, bank_rows: &[BankRow]) -> Result<Vec<Row>, LoaderError> {
        self.inner.read(&self.inner_rows(bank_rows))
    }

    fn fetch_rows(&self, bank_rows: &[BankRow], context: &ReadContext) -> Vec<Fetched> {
        self.inner.fetch_rows(&self.inner_rows(bank_rows), context)
    }

    fn fetch_group(&self, group: usize, context: &ReadContext) -> Vec<Fetched> {
        let (inner, indices) = &self.groups[group];
        let all = self.inner.fetch_group(*inner, context);
        indices.iter().map(|&index| all[index].clone()).collect()
    }

    fn reads_rows(&self) -> bool {
        self.inner.reads_rows()
    }

    fn prepare_rows(&self, memory: u64) -> Result<u64, LoaderError> {
        self.inner.prepare_rows(memory)
    }

    fn expect(&self, group: usize, next_use: u64) {
        self.inner.expect(self.groups[group].0, next_use);
    }
}

/// A subset, for reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubsetRecord {
    /// Its rows.
    pub rows: usize,
    /// Rows of a class; a class that has fewer gives all it has.
    pub rows_per_class: usize,
    /// The blake3 digest of the ids, ascending, as little-endian 64-bit numbers.
    pub digest: Digest,
}

impl SubsetRecord {
    /// The record of these rows.
    pub fn new(ids: &[InstanceId], labels: &[Option<ClassId>]) -> Self {
        let mut sorted: Vec<i64> = ids.iter().map(|id| id.to_stored()).collect();
        sorted.sort_unstable();
        let bytes: Vec<u8> = sorted.iter().flat_map(|id| id.to_le_bytes()).collect();
        let mut counts = BTreeMap::<ClassId, usize>::new();
        labels.iter().flatten().for_each(|&class| *counts.entry(class).or_default() += 1);
        let rows_per_class = counts.into_values().max().unwrap_or(0);
        Self { rows: ids.len(), rows_per_class, digest: Digest::of(&bytes) }
    }
}

/// The rows, ascending, of a share of the labels: of each class the same number, at least one, chosen at
/// random. A class that has fewer gives all it has; rows without a label are never chosen.
pub fn balanced_rows(
    ids: &[InstanceId],
    labels: &[Option<ClassId>],
    fraction: Fraction,
    seed: u64,
) -> Vec<usize> {
    let mut classes = BTreeMap::<ClassId, Vec<(u64, InstanceId, usize)>>::new();
    for (row, (&id, label)) in ids.iter().zip(labels).enumerate() {
        if let Some(class) = label {
            let key = Stream::new(seed, Purpose::LabelSubset, u64::from(id.0), 0).bits();
            classes.entry(*class).or_default().push((key, id, row));
        }
    }
    let labelled: usize = classes.values().map(Vec::len).sum();
    let per_class = fraction.get() * labelled as f64 / classes.len().max(1) as f64;
    let per_class = (per_class.round() as usize).max(1);
    // All labels are all labels, however unequal the classes are.
    let per_class = if fraction.get() >= 1.0 { labelled } else { per_class };
    let mut rows = Vec::new();
    for mut members in classes.into_values() {
        members.sort_unstable();
        rows.extend(members.into_iter().take(per_class).map(|(_, _, row)| row));
    }
    rows.sort_unstable();
    rows
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::loader::MemorySource;

    #[test]
    fn a_subset_gives_the_same_images_by_rows_and_by_groups() {
        let row = |id: u32| Row {
            id: InstanceId(id),
            label: Some(ClassId((id % 3) as u16)),
            bytes: Bytes::from(vec![id as u8]),
            path: id.to_string(),
            width: 1,
            height: 1,
            entry_points: None,
        };
        let inner = Arc::new(MemorySource::in_groups((0..20).map(row).collect(), 4));
        let subset: &dyn Source = &Subset::new(inner, [1, 5, 6, 18].map(BankRow).into());
        assert_eq!(subset.ids(), [1, 5, 6, 18].map(InstanceId));
        assert_eq!(subset.labels()[3], Some(ClassId(0)));
        assert_eq!((subset.layout().groups(), subset.layout().rows()), (3, 4));
        let bytes = |fetched: Vec<Fetched>| -> Vec<u8> {
            fetched.into_iter().map(|one| one.expect("read").bytes[0]).collect()
        };
        let context = ReadContext::default();
        assert_eq!(bytes(subset.fetch_rows(&[3, 0].map(BankRow), &context)), [18, 1]);
        assert_eq!(bytes(subset.fetch_group(1, &context)), [5, 6]);
        assert_eq!(subset.read(&[BankRow(2)]).expect("read")[0].path, "6");
    }

    fn fraction(value: f64) -> Fraction {
        Fraction::new(value).expect("a share")
    }

    /// 200 rows of class 0, 100 of class 1, 3 of class 2; 7 without a label.
    fn rows() -> (Vec<InstanceId>, Vec<Option<ClassId>>) {
        let labels = [vec![Some(0); 200], vec![Some(1); 100], vec![Some(2); 3], vec![None; 7]].concat();
        let ids = (0..labels.len() as u32).map(|id| InstanceId(1000 - id)).collect();
        (ids, labels.into_iter().map(|label| label.map(ClassId)).collect())
    }

    fn chosen(share: f64, seed: u64) -> Vec<usize> {
        let (ids, labels) = rows();
        balanced_rows(&ids, &labels, fraction(share), seed)
    }

    #[test]
    fn a_subset_has_the_same_number_of_each_class() {
        let (_, labels) = rows();
        let count = |rows: &[usize], class| rows.iter().filter(|&&row| labels[row] == class).count();
        // 303 labels in three classes: a tenth is ten of each, of which class 2 has three.
        let tenth = chosen(0.1, 0);
        let counts = [Some(ClassId(0)), Some(ClassId(1)), Some(ClassId(2)), None];
        assert_eq!(counts.map(|class| count(&tenth, class)), [10, 10, 3, 0]);
        assert_eq!(counts.map(|class| count(&chosen(0.0001, 0), class)), [1, 1, 1, 0]);
        assert_eq!(chosen(1.0, 0).len(), 303);
    }

    #[test]
    fn a_subset_is_fixed_and_lies_within_the_larger_ones() {
        assert_eq!(chosen(0.1, 4), chosen(0.1, 4));
        assert_ne!(chosen(0.1, 4), chosen(0.1, 5));
        let large = chosen(0.3, 4);
        assert!(chosen(0.1, 4).iter().all(|row| large.contains(row)));
    }

    #[test]
    fn the_order_of_the_rows_does_not_change_which_instances_are_chosen() {
        let (ids, labels) = rows();
        let (mut backwards, mut labels_backwards) = (ids.clone(), labels.clone());
        backwards.reverse();
        labels_backwards.reverse();
        let instances = |ids: &[InstanceId], rows: Vec<usize>| {
            let mut chosen: Vec<_> = rows.into_iter().map(|row| ids[row]).collect();
            chosen.sort_unstable();
            chosen
        };
        let forwards = instances(&ids, balanced_rows(&ids, &labels, fraction(0.1), 0));
        let reversed = balanced_rows(&backwards, &labels_backwards, fraction(0.1), 0);
        assert_eq!(forwards, instances(&backwards, reversed));
    }
}
