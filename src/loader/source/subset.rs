//! Some of the rows of a source: a run of them, or a share of the labels, the same number of each class.
//!
//! Which rows a share has is a function of (fraction, seed, ids, labels): the same on every machine and for every
//! order of the rows. With one seed, a smaller subset is part of each larger one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Fetched, Instances, Layout, ReadContext, Source};
use crate::dataset::Row;
use crate::ids::{BankRow, ClassId, InstanceId};
use crate::image::ExifOrientation;
use crate::loader::LoaderError;
use crate::rng::{Purpose, Stream};
use crate::storage::Digest;
use crate::units::Fraction;

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

    fn len(&self) -> usize {
        self.bank_rows.len()
    }

    fn is_empty(&self) -> bool {
        self.bank_rows.is_empty()
    }

    fn ids(&self) -> &[InstanceId] {
        &self.instances.ids
    }

    fn labels(&self) -> &[Option<ClassId>] {
        &self.instances.labels
    }

    fn layout(&self) -> &Layout {
        &self.instances.layout
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

    fn exif_orientation(&self) -> ExifOrientation {
        self.inner.exif_orientation()
    }

    fn held_bytes(&self) -> u64 {
        self.inner.held_bytes()
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
        let subset = Subset::new(inner, [1, 5, 6, 18].map(BankRow).into());
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
