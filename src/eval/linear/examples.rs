//! Labelled rows of a table: held in memory, or read from the table when needed.
//!
//! Sums over rows are taken by chunk. Chunks depend on the rows alone, so a table that is read in every pass
//! gives the same bits as one held in memory. Each of several processes has a range of the chunks.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::feature_table::{Table, TableError, read_ahead};
use crate::ids::{ClassId, InstanceId, RankShare};

/// Rows of a chunk, which go to the device together.
const CHUNK: usize = 16_384;
/// Bytes of a read, and number of reads ahead of the current one.
const READ_BYTES: usize = 8 << 20;
const READS_AHEAD: usize = 4;
/// Bytes of numbers decoded together: few, so that memory does not become fragmented.
const DECODE_BYTES: usize = 256 << 10;

/// Labelled features in memory.
#[derive(Debug)]
pub(super) struct Batch {
    /// `[rows, dim]` f32.
    pub features: Tensor,
    /// `[rows]` i64.
    pub labels: Tensor,
}

impl Batch {
    /// Creates a batch of features on any device; all rows must have labels.
    pub(super) fn new(features: Tensor, labels: &[ClassId]) -> Self {
        let labels: Vec<i64> = labels.iter().map(|class| i64::from(class.0)).collect();
        Self { features, labels: Tensor::from_slice(&labels) }
    }

    /// Selects rows by index, in this order.
    pub(super) fn select(&self, places: &[usize]) -> Self {
        let places: Vec<i64> = places.iter().map(|&place| place as i64).collect();
        let places = Tensor::from_slice(&places);
        Self {
            features: self.features.index_select(0, &places),
            labels: self.labels.index_select(0, &places),
        }
    }
}

/// Labelled rows of a table, in its order.
#[derive(Debug)]
pub(super) struct Examples<'a> {
    table: &'a dyn Table,
    /// Rows of the examples in the table.
    rows: Vec<u32>,
    /// Range of this process's examples, made of whole chunks.
    own: Range<usize>,
    /// `[own, dim]`: features, if held in memory.
    held: Option<Tensor>,
}

impl<'a> Examples<'a> {
    /// Selects the labelled rows of a table, or those within `among`, which ascends; `None` if there are none.
    pub(super) fn of(table: &'a dyn Table, among: Option<&[usize]>) -> Option<Self> {
        let is_labelled = |row: &usize| table.label(*row).is_some();
        let rows: Vec<u32> = match among {
            Some(rows) => rows.iter().copied().filter(is_labelled).map(|row| row as u32).collect(),
            None => (0..table.rows()).filter(is_labelled).map(|row| row as u32).collect(),
        };
        (!rows.is_empty()).then(|| Self { table, own: 0..rows.len(), rows, held: None })
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns the instance of each example.
    pub(super) fn ids(&self) -> impl Iterator<Item = InstanceId> + '_ {
        self.rows.iter().map(|&row| self.table.id(row as usize))
    }

    /// Returns the class of each example.
    pub(super) fn labels(&self) -> impl Iterator<Item = Option<ClassId>> + '_ {
        self.rows.iter().map(|&row| self.table.label(row as usize))
    }

    pub(super) fn dim(&self) -> usize {
        self.table.meta().dim
    }

    /// Returns the bytes of a row in memory.
    pub(super) fn row_bytes(&self) -> u64 {
        4 * self.dim() as u64
    }

    /// Selects some examples, ascending; this process gets all of them, and holds none in memory.
    pub(super) fn select(&self, places: &[usize]) -> Self {
        Self {
            table: self.table,
            rows: places.iter().map(|&place| self.rows[place]).collect(),
            own: 0..places.len(),
            held: None,
        }
    }

    /// Restricts this process to the chunks of its share.
    pub(super) fn shared(self, share: RankShare) -> Self {
        let chunks = share.of(self.len().div_ceil(CHUNK));
        let own = (chunks.start * CHUNK).min(self.len())..(chunks.end * CHUNK).min(self.len());
        Self { own, held: None, ..self }
    }

    /// Reads this process's features into memory, unless they exceed `memory_limit` bytes.
    ///
    /// # Errors
    /// If the table cannot be read, or a feature is not finite.
    pub(super) fn hold(mut self, memory_limit: u64) -> Result<Self, TableError> {
        if self.own.len() as u64 * self.row_bytes() <= memory_limit {
            self.held = Some(self.read(self.own.clone())?);
        }
        Ok(self)
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Iterates over this process's chunks, in order.
    pub(super) fn chunks(&self) -> impl Iterator<Item = Result<Batch, TableError>> + '_ {
        let Range { start, end } = self.own;
        (start..end).step_by(CHUNK).map(move |first| self.batch(first..(first + CHUNK).min(end)))
    }

    /// Returns a range of this process's examples.
    ///
    /// # Errors
    /// If the table cannot be read, or a feature is not finite.
    pub(super) fn batch(&self, places: Range<usize>) -> Result<Batch, TableError> {
        let class = |&row: &u32| {
            let class = self.table.label(row as usize).expect("rows without a label were left out");
            i64::from(class.0)
        };
        let labels = Tensor::from_slice(&self.rows[places.clone()].iter().map(class).collect::<Vec<_>>());
        let features = match &self.held {
            Some(held) => {
                let first = places.start - self.own.start;
                held.narrow(0, first as i64, places.len() as i64)
            }
            None => self.read(places)?,
        };
        Ok(Batch { features, labels })
    }

    /// Reads features, `[places, dim]`.
    fn read(&self, places: Range<usize>) -> Result<Tensor, TableError> {
        let (table, dim) = (self.table, self.dim());
        let mut rest = &self.rows[places];
        let features = Tensor::empty([rest.len() as i64, dim as i64], (Kind::Float, Device::Cpu));
        // The selected rows of each range.
        let parts = table.ranges((READ_BYTES / (4 * dim)).max(1)).into_iter().filter_map(|range| {
            let (rows, later) = rest.split_at(rest.partition_point(|&row| (row as usize) < range.end));
            rest = later;
            (!rows.is_empty()).then_some(rows)
        });
        let start = |rows: &&[u32]| table.start_read(rows[0] as usize..rows[rows.len() - 1] as usize + 1);
        let mut filled = 0;
        for (rows, read) in read_ahead(parts, READS_AHEAD, start) {
            let vectors = read.finish()?;
            let runs = rows.chunk_by(|row, next| row + 1 == *next);
            for run in runs.flat_map(|run| run.chunks((DECODE_BYTES / (4 * dim)).max(1))) {
                let first = run[0] as usize;
                let numbers = vectors.rows(first..first + run.len())?;
                let numbers = Tensor::from_slice(&numbers).view([-1, dim as i64]);
                features.narrow(0, filled, run.len() as i64).copy_(&numbers);
                filled += run.len() as i64;
            }
        }
        Ok(features)
    }
}
