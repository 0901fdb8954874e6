//! Some of the rows of a source.

use std::ops::Range;
use std::sync::Arc;

use super::label_subset::balanced_rows;
use crate::dataset::Row;
use crate::ids::Position;
use crate::image::ExifOrientation;
use crate::loader::plan::layout::Layout;
use crate::loader::{Fetched, Instances, LoaderError, ReadContext, Source};
use crate::units::Fraction;

/// A source that gives some rows of another, under positions of its own.
pub struct Subset {
    inner: Arc<dyn Source>,
    /// By own position: that in the inner source.
    positions: Vec<Position>,
    instances: Instances,
    /// By own group: the inner group, and the places in it of the rows that count.
    groups: Vec<(usize, Vec<usize>)>,
}

impl Subset {
    /// The rows of `inner` at these positions.
    ///
    /// # Panics
    /// If the positions do not ascend.
    pub fn new(inner: Arc<dyn Source>, positions: Vec<Position>) -> Self {
        assert!(positions.is_sorted_by(|a, b| a < b), "positions ascend");
        let mut own = vec![None; inner.len()];
        for (position, inner) in (0..).map(Position).zip(&positions) {
            own[inner.row()] = Some(position);
        }
        let (mut groups, mut members) = (Vec::new(), Vec::new());
        for group in 0..inner.layout().groups() {
            let rows = inner.layout().members(group).iter().enumerate();
            let (places, kept): (Vec<usize>, Vec<Position>) =
                rows.filter_map(|(place, position)| Some((place, own[position.row()]?))).unzip();
            if !kept.is_empty() {
                groups.push((group, places));
                members.push((kept, inner.layout().bytes(group)));
            }
        }
        let instances = Instances {
            ids: positions.iter().map(|position| inner.ids()[position.row()]).collect(),
            labels: positions.iter().map(|position| inner.labels()[position.row()]).collect(),
            layout: Layout::new(members),
        };
        Self { inner, positions, instances, groups }
    }

    /// The rows of `inner` at a run of positions.
    pub fn of_range(inner: Arc<dyn Source>, positions: Range<usize>) -> Self {
        Self::new(inner, positions.map(|row| Position(row as u32)).collect())
    }

    /// A share of the labels, chosen by [`balanced_rows`].
    pub fn of_labels(inner: Arc<dyn Source>, fraction: Fraction, seed: u64) -> Self {
        let rows = balanced_rows(inner.ids(), inner.labels(), fraction, seed);
        let positions = rows.into_iter().map(|row| Position(row as u32)).collect();
        Self::new(inner, positions)
    }

    fn inner_positions(&self, positions: &[Position]) -> Vec<Position> {
        positions.iter().map(|position| self.positions[position.row()]).collect()
    }
}

impl std::fmt::Debug for Subset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subset").field("positions", &self.positions).finish_non_exhaustive()
    }
}

impl Source for Subset {
    fn instances(&self) -> &Instances {
        &self.instances
    }

    fn place(&self, position: Position) -> String {
        self.inner.place(self.positions[position.row()])
    }

    fn read(&self, positions: &[Position]) -> Result<Vec<Row>, LoaderError> {
        self.inner.read(&self.inner_positions(positions))
    }

    fn fetch_rows(&self, positions: &[Position], reading: &ReadContext) -> Vec<Fetched> {
        self.inner.fetch_rows(&self.inner_positions(positions), reading)
    }

    fn fetch_group(&self, group: usize, reading: &ReadContext) -> Vec<Fetched> {
        let (inner, places) = &self.groups[group];
        let all = self.inner.fetch_group(*inner, reading);
        places.iter().map(|&place| all[place].clone()).collect()
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
    use crate::ids::{ClassId, InstanceId};
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
        };
        let inner = Arc::new(MemorySource::in_groups((0..20).map(row).collect(), 4));
        let subset = Subset::new(inner, [1, 5, 6, 18].map(Position).into());
        assert_eq!(subset.ids(), [1, 5, 6, 18].map(InstanceId));
        assert_eq!(subset.labels()[3], Some(ClassId(0)));
        assert_eq!((subset.layout().groups(), subset.layout().rows()), (3, 4));
        let bytes = |fetched: Vec<Fetched>| -> Vec<u8> {
            fetched.into_iter().map(|one| one.expect("read").bytes[0]).collect()
        };
        let reading = ReadContext::default();
        assert_eq!(bytes(subset.fetch_rows(&[3, 0].map(Position), &reading)), [18, 1]);
        assert_eq!(bytes(subset.fetch_group(1, &reading)), [5, 6]);
        assert_eq!(subset.read(&[Position(2)]).expect("read")[0].path, "6");
    }
}
