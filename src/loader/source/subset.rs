//! Some of the rows of a source.

use std::ops::Range;
use std::sync::Arc;

use super::label_subset::balanced_rows;
use super::{Fetched, Instances, ReadContext, Source};
use crate::dataset::Row;
use crate::ids::{BankRow, ClassId, InstanceId};
use crate::image::ExifOrientation;
use crate::loader::error::LoaderError;
use crate::loader::plan::layout::Layout;
use crate::units::Fraction;

/// A source that gives some rows of another, under bank rows of its own.
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
        assert!(bank_rows.is_sorted_by(|a, b| a < b), "bank_rows ascend");
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
}
