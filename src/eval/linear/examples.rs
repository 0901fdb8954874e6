//! The labelled rows of a table: held in memory, or read from the table whenever they are needed.
//!
//! Sums over rows are taken chunk by chunk. The chunks depend on the rows alone, so a table that is read
//! again and again gives the bits of one that is held. Several processes have a run of the chunks each.

use std::collections::VecDeque;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::eval::EvalError;
use crate::feature_table::{PendingVectors, Table, TableError};
use crate::ids::{ClassId, InstanceId, RankShare};

/// Rows of a chunk; they go to the device together.
const CHUNK: usize = 16_384;
/// Bytes of a read, and how many are under way.
const READ_BYTES: usize = 8 << 20;
const READS_AHEAD: usize = 4;
/// Bytes of numbers that are decoded together: small, so that memory does not become fragmented.
const DECODE_BYTES: usize = 256 << 10;

/// Labelled features that are in memory.
#[derive(Debug)]
pub(super) struct Batch {
    /// `[rows, dim]` f32.
    pub features: Tensor,
    /// `[rows]` i64.
    pub labels: Tensor,
}

impl Batch {
    /// Features on any device; rows without a label must have been left out.
    pub(super) fn new(features: Tensor, labels: &[ClassId]) -> Self {
        let labels: Vec<i64> = labels.iter().map(|class| i64::from(class.0)).collect();
        Self { features, labels: Tensor::from_slice(&labels) }
    }

    /// Rows at these places, in this order.
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
    rows: Rows,
    /// The examples of this process, counted from the first; a run of chunks.
    own: Range<usize>,
    /// `[own, dim]`: their features, where they are held.
    held: Option<Tensor>,
}

/// Rows of a table, ascending.
#[derive(Debug)]
enum Rows {
    /// All rows of the table, by their number; they take no memory.
    All(usize),
    /// Some.
    Some(Vec<u32>),
}

impl Rows {
    fn len(&self) -> usize {
        match self {
            Self::All(rows) => *rows,
            Self::Some(rows) => rows.len(),
        }
    }

    /// The row of an example.
    fn of(&self, place: usize) -> usize {
        match self {
            Self::All(_) => place,
            Self::Some(rows) => rows[place] as usize,
        }
    }
}

impl<'a> Examples<'a> {
    /// The labelled rows of a table, or those among some of its rows, which ascend.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn of(table: &'a dyn Table, among: Option<&[usize]>) -> Result<Self, EvalError> {
        let is_labelled = |row: &usize| table.label(*row).is_some();
        let to_u32 = |row: usize| row as u32;
        let rows = match among {
            Some(rows) => Rows::Some(rows.iter().copied().filter(is_labelled).map(to_u32).collect()),
            None if (0..table.rows()).all(|row| is_labelled(&row)) => Rows::All(table.rows()),
            None => Rows::Some((0..table.rows()).filter(is_labelled).map(to_u32).collect()),
        };
        if rows.len() == 0 {
            return Err(EvalError::Mismatch {
                reason: "one of them has no labels; ingest the split with its classes".into(),
            });
        }
        Ok(Self { table, own: 0..rows.len(), rows, held: None })
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The instance of each.
    pub(super) fn ids(&self) -> impl Iterator<Item = InstanceId> + '_ {
        (0..self.len()).map(|place| self.table.id(self.rows.of(place)))
    }

    /// The class of each.
    pub(super) fn labels(&self) -> impl Iterator<Item = Option<ClassId>> + '_ {
        (0..self.len()).map(|place| self.table.label(self.rows.of(place)))
    }

    pub(super) fn dim(&self) -> usize {
        self.table.meta().dim
    }

    /// The bytes of a row in memory.
    pub(super) fn row_bytes(&self) -> u64 {
        4 * self.dim() as u64
    }

    /// Some of the examples, ascending; all of them are this process's, and none is held.
    pub(super) fn select(&self, places: &[usize]) -> Self {
        Self {
            table: self.table,
            rows: Rows::Some(places.iter().map(|&place| self.rows.of(place) as u32).collect()),
            own: 0..places.len(),
            held: None,
        }
    }

    /// Leaves this process the chunks of its share.
    pub(super) fn shared(self, share: RankShare) -> Self {
        let chunks = share.of(self.len().div_ceil(CHUNK));
        let own = (chunks.start * CHUNK).min(self.len())..(chunks.end * CHUNK).min(self.len());
        Self { own, held: None, ..self }
    }

    /// Reads the features of this process's examples into memory, if they take no more bytes than this.
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

    /// The chunks of this process, in order.
    pub(super) fn chunks(&self) -> impl Iterator<Item = Result<Batch, TableError>> + '_ {
        let Range { start, end } = self.own;
        (start..end).step_by(CHUNK).map(move |first| self.batch(first..(first + CHUNK).min(end)))
    }

    /// A run of this process's examples.
    ///
    /// # Errors
    /// If the table cannot be read, or a feature is not finite.
    pub(super) fn batch(&self, places: Range<usize>) -> Result<Batch, TableError> {
        let class = |place: usize| {
            let class = self.table.label(self.rows.of(place)).expect("rows without a label were left out");
            i64::from(class.0)
        };
        let labels = Tensor::from_slice(&places.clone().map(class).collect::<Vec<_>>());
        let features = match &self.held {
            Some(held) => {
                let first = places.start - self.own.start;
                held.narrow(0, first as i64, places.len() as i64)
            }
            None => self.read(places)?,
        };
        Ok(Batch { features, labels })
    }

    /// Reads features: `[places, dim]`.
    fn read(&self, places: Range<usize>) -> Result<Tensor, TableError> {
        let (table, dim) = (self.table, self.dim());
        let wanted = &*places.map(|place| self.rows.of(place)).collect::<Vec<_>>();
        let features = Tensor::empty([wanted.len() as i64, dim as i64], (Kind::Float, Device::Cpu));
        let mut rest = wanted;
        let mut reads = VecDeque::new();
        let mut filled = 0;
        let mut fill = |read: PendingVectors<'_>, rows: &[usize]| {
            let vectors = read.finish()?;
            let runs = rows.chunk_by(|row, next| row + 1 == *next);
            for run in runs.flat_map(|run| run.chunks((DECODE_BYTES / (4 * dim)).max(1))) {
                let numbers = vectors.rows(run[0]..run[0] + run.len())?;
                let numbers = Tensor::from_slice(&numbers).view([-1, dim as i64]);
                features.narrow(0, filled, run.len() as i64).copy_(&numbers);
                filled += run.len() as i64;
            }
            Ok::<_, TableError>(())
        };
        for range in table.ranges((READ_BYTES / (4 * dim)).max(1)) {
            let (rows, later) = rest.split_at(rest.partition_point(|&row| row < range.end));
            rest = later;
            let (Some(&first), Some(&last)) = (rows.first(), rows.last()) else { continue };
            reads.push_back((table.start_read(first..last + 1), rows));
            if reads.len() > READS_AHEAD
                && let Some((read, rows)) = reads.pop_front()
            {
                fill(read, rows)?;
            }
            if rest.is_empty() {
                break;
            }
        }
        reads.into_iter().try_for_each(|(read, rows)| fill(read, rows))?;
        Ok(features)
    }
}
