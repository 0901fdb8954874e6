//! Where encoded images come from.

pub(super) mod dataset;
pub(super) mod label_subset;
pub(super) mod row_group_cache;
pub(super) mod row_groups;
pub(super) mod subset;

use std::sync::Arc;

use bytes::Bytes;

use super::{Counters, LoaderError};
use crate::dataset::Row;
use crate::ids::{ClassId, InstanceId, Position};
use crate::image::ExifOrientation;
use crate::loader::plan::layout::Layout;
use crate::storage::Cancel;

/// Rows of a group where rows in memory are taken in groups.
const ROWS_OF_A_GROUP: usize = 256;

/// An image as it was read.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Its encoded bytes.
    pub bytes: Bytes,
    /// How many pixels it has, for the memory that decoding takes.
    pub pixels: u64,
}

/// What became of a row that was to be read; one error may be that of many rows.
pub type Fetched = Result<Encoded, Arc<LoaderError>>;

/// What a read takes note of.
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
    /// The instance at each position, in ascending order.
    pub ids: Vec<InstanceId>,
    /// The label at each position.
    pub labels: Vec<Option<ClassId>>,
    /// Which rows lie together.
    pub layout: Layout,
}

/// Gives images by their positions.
pub trait Source: Send + Sync {
    /// Which instances it has; their positions are `0..len`.
    fn instances(&self) -> &Instances;

    /// The number of instances.
    fn len(&self) -> usize {
        self.instances().ids.len()
    }

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The instance at each position, in ascending order.
    fn ids(&self) -> &[InstanceId] {
        &self.instances().ids
    }

    /// The label at each position.
    fn labels(&self) -> &[Option<ClassId>] {
        &self.instances().labels
    }

    /// Which rows lie together.
    fn layout(&self) -> &Layout {
        &self.instances().layout
    }

    /// Where a row lies, for errors.
    fn place(&self, position: Position) -> String;

    /// The whole rows at these positions, in their order: for a look at a few, not for speed.
    ///
    /// # Errors
    /// If a row cannot be read.
    fn read(&self, positions: &[Position]) -> Result<Vec<Row>, LoaderError>;

    /// The images at these positions, in their order.
    fn fetch_rows(&self, positions: &[Position], reading: &ReadContext) -> Vec<Fetched>;

    /// The images of a row group, in the order of the layout.
    fn fetch_group(&self, group: usize, reading: &ReadContext) -> Vec<Fetched> {
        self.fetch_rows(self.layout().members(group), reading)
    }

    /// Whether a row by itself costs no more than its share of a row group.
    fn reads_rows(&self) -> bool {
        true
    }

    /// Makes itself ready to read rows by themselves, holding at most so many bytes in memory for it; how
    /// many it will hold.
    ///
    /// # Errors
    /// [`LoaderError::Memory`] if it cannot.
    fn prepare_rows(&self, _memory: u64) -> Result<u64, LoaderError> {
        Ok(0)
    }

    /// Takes note of when a row group is needed next, so that a cache keeps what comes soonest.
    fn expect(&self, _group: usize, _next_use: u64) {}

    /// Whether its images are seen as EXIF says.
    fn exif_orientation(&self) -> ExifOrientation {
        ExifOrientation::Ignore
    }

    /// Bytes that it holds for each instance and row group as long as it lives.
    fn held_bytes(&self) -> u64 {
        0
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

    /// Likewise, with so many rows in a group.
    ///
    /// # Panics
    /// If the ids do not ascend.
    pub fn in_groups(rows: Vec<Row>, rows_of_a_group: usize) -> Self {
        let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "ids ascend");
        let labels = rows.iter().map(|row| row.label).collect();
        let bytes = rows.iter().map(|row| row.bytes.len() as u64).sum();
        let layout = Layout::regular(rows.len(), rows_of_a_group, bytes);
        Self { rows, instances: Instances { ids, labels, layout } }
    }
}

impl Source for MemorySource {
    fn instances(&self) -> &Instances {
        &self.instances
    }

    fn place(&self, position: Position) -> String {
        self.rows[position.row()].path.clone()
    }

    fn read(&self, positions: &[Position]) -> Result<Vec<Row>, LoaderError> {
        Ok(positions.iter().map(|position| self.rows[position.row()].clone()).collect())
    }

    fn fetch_rows(&self, positions: &[Position], _reading: &ReadContext) -> Vec<Fetched> {
        let encoded = |position: &Position| {
            let row = &self.rows[position.row()];
            Ok(Encoded { bytes: row.bytes.clone(), pixels: u64::from(row.width) * u64::from(row.height) })
        };
        positions.iter().map(encoded).collect()
    }
}
