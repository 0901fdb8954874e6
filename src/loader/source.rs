//! Sources of encoded images.
//!
//! A [`Subset`] has some of the rows of a source: a run of them, or a share of the labels with the same number of each
//! class. The rows of a share are a function of (fraction, seed, ids, labels), and do not depend on the machine or the
//! order of the rows. With one seed, a smaller subset is part of each larger one.

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

/// Number of rows in a group of a source in memory.
const ROWS_OF_A_GROUP: usize = 256;

/// An image as it was read.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Encoded bytes.
    pub bytes: Bytes,
    /// Number of pixels, which decides the memory for decoding.
    pub pixels: u64,
    /// Entry points, at which decoding can start, if known.
    pub entry_points: Option<Bytes>,
}

impl Encoded {
    /// Returns the image of a row, which shares its memory.
    fn of(row: &Row) -> Self {
        let entry_points = row.entry_points.clone();
        Self { bytes: row.bytes.clone(), pixels: row.pixels(), entry_points }
    }

    /// Returns the number of bytes in memory.
    pub(super) fn held_bytes(&self) -> u64 {
        (self.bytes.len() + self.entry_points.as_ref().map_or(0, Bytes::len)) as u64
    }
}

/// A row that was read, or the error, which several rows may share.
pub type Fetched = Result<Encoded, Arc<LoaderError>>;

/// Signals and counters of a read.
#[derive(Clone, Debug, Default)]
pub struct ReadContext {
    /// Cancels pending reads.
    pub cancel: Cancel,
    /// Counters of reads.
    pub counters: Arc<Counters>,
}

/// Instances of a source.
#[derive(Clone, Debug)]
pub struct Instances {
    /// Instance at each bank row, in ascending order.
    pub ids: Vec<InstanceId>,
    /// Label at each bank row.
    pub labels: Vec<Option<ClassId>>,
    /// Row groups of the rows.
    pub layout: Layout,
    /// Whether EXIF orientation is applied to the images.
    pub exif_orientation: ExifOrientation,
    /// Size in bytes of the source's tables of instances and row groups.
    pub held_bytes: u64,
}

/// Source of images, which reads them by their bank rows.
pub trait Source: Send + Sync {
    /// Returns the instances of the source; their bank rows are `0..len`.
    fn instances(&self) -> &Instances;

    /// Names the record at a bank row, for errors.
    fn record(&self, bank_row: BankRow) -> String;

    /// Reads the whole rows at these bank rows, in their order; meant for a few rows, not for speed.
    ///
    /// # Errors
    /// If a row cannot be read.
    fn read(&self, bank_rows: &[BankRow]) -> Result<Vec<Row>, LoaderError>;

    /// Reads the images at these bank rows, in their order.
    fn fetch_rows(&self, bank_rows: &[BankRow], context: &ReadContext) -> Vec<Fetched>;

    /// Reads the images of a row group, in the order of the layout.
    fn fetch_group(&self, group: usize, context: &ReadContext) -> Vec<Fetched> {
        self.fetch_rows(self.instances().layout.members(group), context)
    }

    /// Returns whether reading a row alone costs no more than its share of a row group.
    fn reads_rows(&self) -> bool {
        true
    }

    /// Prepares to read rows alone with at most `memory` bytes; returns the number of bytes that the source will hold.
    ///
    /// # Errors
    /// [`LoaderError::Memory`] if `memory` is too small.
    fn prepare_rows(&self, _memory: u64) -> Result<u64, LoaderError> {
        Ok(0)
    }

    /// Announces the next use of a row group, so that a cache keeps those that are needed soonest.
    fn expect(&self, _group: usize, _next_use: u64) {}
}

impl std::fmt::Debug for dyn Source + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a source of {} images", self.len())
    }
}

impl dyn Source + '_ {
    /// Returns the number of instances.
    pub fn len(&self) -> usize {
        self.ids().len()
    }

    /// Returns whether there are no instances.
    pub fn is_empty(&self) -> bool {
        self.ids().is_empty()
    }

    /// Returns the instance at each bank row, in ascending order.
    pub fn ids(&self) -> &[InstanceId] {
        &self.instances().ids
    }

    /// Returns the label at each bank row.
    pub fn labels(&self) -> &[Option<ClassId>] {
        &self.instances().labels
    }

    /// Returns the row groups of the rows.
    pub fn layout(&self) -> &Layout {
        &self.instances().layout
    }
}

/// A source of rows in memory.
#[derive(Clone, Debug)]
pub struct MemorySource {
    rows: Vec<Row>,
    instances: Instances,
}

impl MemorySource {
    /// Makes a source of rows in the order of their ids.
    ///
    /// # Panics
    /// If the ids do not ascend.
    pub fn new(rows: Vec<Row>) -> Self {
        Self::in_groups(rows, ROWS_OF_A_GROUP)
    }

    /// Makes a source of rows in the order of their ids, with `rows_of_a_group` in each row group.
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

    /// Sets whether EXIF orientation is applied to the images.
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

/// Row groups of a source, each with its size and the bank rows of its rows.
///
/// Invariant: each bank row of the source is in exactly one group.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Group `g` has the slots `starts[g]..starts[g + 1]`.
    starts: Vec<u32>,
    /// By slot: bank row.
    members: Vec<BankRow>,
    bytes: Vec<u64>,
}

impl Layout {
    /// Makes a layout from the bank rows of each group, in the order of its rows, and the group's size in bytes.
    pub fn new(groups: impl IntoIterator<Item = (Vec<BankRow>, u64)>) -> Self {
        let mut layout = Self { starts: vec![0], ..Self::default() };
        for (members, bytes) in groups {
            layout.members.extend(members);
            layout.starts.push(layout.members.len() as u32);
            layout.bytes.push(bytes);
        }
        layout
    }

    /// Makes groups of equal length, in the order of the bank rows; `bytes` is their total size.
    pub fn regular(len: usize, rows: usize, bytes: u64) -> Self {
        let groups = (0..len).step_by(rows.max(1)).map(|start| {
            let members: Vec<_> =
                (start..len.min(start + rows.max(1))).map(|row| BankRow(row as u32)).collect();
            let share = bytes * members.len() as u64 / len.max(1) as u64;
            (members, share)
        });
        Self::new(groups)
    }

    /// Returns a digest of the bank rows of each group, in their order.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for number in self.starts.iter().copied().chain(self.members.iter().map(|bank_row| bank_row.0)) {
            hasher.update(&number.to_le_bytes());
        }
        hasher.finalize().into()
    }

    /// Returns the number of groups.
    pub fn groups(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the bank rows of a group.
    pub fn members(&self, group: usize) -> &[BankRow] {
        &self.members[self.slots(group)]
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.members.len()
    }

    /// Returns the number of bytes that reading a group fetches.
    pub fn bytes(&self, group: usize) -> u64 {
        self.bytes[group]
    }

    /// Returns the total size of all groups in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// Returns the mean size of a row in bytes, rounded up.
    pub(crate) fn mean_bytes(&self) -> u64 {
        self.total_bytes().div_ceil(self.rows().max(1) as u64)
    }

    /// Returns the size of the largest group in bytes.
    pub fn largest_group(&self) -> u64 {
        self.bytes.iter().copied().max().unwrap_or(0)
    }

    /// Returns, by bank row, its slot, counted through all groups.
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

/// A source with some rows of another, renumbered from 0.
pub struct Subset {
    inner: Arc<dyn Source>,
    /// By own bank row: bank row in the inner source.
    bank_rows: Vec<BankRow>,
    instances: Instances,
    /// By own group: inner group, and the indices of its rows that belong to the subset.
    groups: Vec<(usize, Vec<usize>)>,
}

impl Subset {
    /// Selects the rows of `inner` at these bank rows.
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

    /// Selects the rows of `inner` in a range of bank rows.
    pub fn of_range(inner: Arc<dyn Source>, bank_rows: Range<usize>) -> Self {
        Self::new(inner, bank_rows.map(|row| BankRow(row as u32)).collect())
    }

    /// Selects a share of the labelled rows by [`balanced_rows`].
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

/// Description of a subset, for reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubsetRecord {
    /// Number of rows.
    pub rows: usize,
    /// Number of rows of a class; a smaller class contributes all its rows.
    pub rows_per_class: usize,
    /// Blake3 digest of the ids, ascending, as little-endian 64-bit numbers.
    pub digest: Digest,
}

impl SubsetRecord {
    /// Describes these rows.
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

/// Returns the rows, ascending, of a share of the labels: the same number of each class, at least one, chosen at
/// random. A smaller class contributes all its rows; rows without a label are never chosen.
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
    // A fraction of 1 means all labels, however unequal the classes are.
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
        // 303 labels in three classes: a tenth is ten of each, but class 2 has only three.
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
