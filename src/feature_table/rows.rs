//! Vectors of a table by ranges of rows, in memory or as they come from a file.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt::Debug;
use std::iter;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use arrow::datatypes::DataType;
use bytes::Bytes;
use half::f16;

use super::schema::TableMeta;
use super::{TableError, UNIT_TOLERANCE};
use crate::ids::{ClassId, InstanceId};
use crate::storage::{Digest, Location, PendingRead};

/// The name of a table in memory, for errors.
pub(super) const IN_MEMORY: &str = "a table in memory";
/// Bytes that are read at a time where they were not read for another purpose.
const CHUNK_BYTES: u64 = 8 << 20;
/// Bytes between two parts that are read in between; where more are missing, the parts came out of order, and
/// the rest is read at the end.
const GAP_BYTES: u64 = 64 << 20;

/// A feature table whose vectors are in memory or in a file.
pub trait Table: Debug + Sync {
    /// What the features are.
    fn meta(&self) -> &TableMeta;

    /// The number of rows.
    fn rows(&self) -> usize;

    /// The instance of a row.
    fn id(&self, row: usize) -> InstanceId;

    /// The class of a row, where it has one.
    fn label(&self, row: usize) -> Option<ClassId>;

    /// All rows in order, in ranges of at most `longest` that can each be read in one go.
    fn ranges(&self, longest: usize) -> Vec<Range<usize>>;

    /// Reads of each of these rows the training step that last wrote it, in a bank. They are one of
    /// [`Table::ranges`], or within it.
    ///
    /// # Errors
    /// If the store fails.
    fn updated_steps(&self, rows: Range<usize>) -> Result<Vec<Option<u64>>, TableError>;

    /// Starts to read the vectors of one of [`Table::ranges`], or of a range within it.
    fn start_read(&self, rows: Range<usize>) -> PendingVectors<'_>;

    /// Checks the digest of a table whose digest is known, once it has been used: what was read by then is not
    /// read again. Other tables have nothing to check.
    ///
    /// # Errors
    /// [`TableError::Damaged`], or if the store fails.
    fn verify(&self) -> Result<(), TableError> {
        Ok(())
    }
}

impl dyn Table + '_ {
    /// `[rows]`: the instance of each row.
    pub fn ids(&self) -> impl Iterator<Item = InstanceId> + '_ {
        (0..self.rows()).map(|row| self.id(row))
    }

    /// `[rows]`: its class, where it has one.
    pub fn labels(&self) -> impl Iterator<Item = Option<ClassId>> + '_ {
        (0..self.rows()).map(|row| self.label(row))
    }

    /// Whether any row has a class.
    pub fn has_labels(&self) -> bool {
        self.labels().any(|label| label.is_some())
    }

    /// Starts to read the vectors as [`Table::start_read`], and brings them to unit length. Rows of a table that says
    /// that they are of unit length keep their bits, and a row of zeros stays.
    pub fn start_unit_read(&self, rows: Range<usize>) -> PendingVectors<'_> {
        let mut read = self.start_read(rows);
        read.vectors.unit = !self.meta().unit_length;
        read
    }
}

/// Vectors that are being read.
#[derive(Debug)]
pub struct PendingVectors<'a> {
    /// Of a file still without their bytes.
    vectors: Vectors<'a>,
    read: Option<PendingRead>,
    /// Where the bytes begin in the file, if they count towards its digest.
    digest: Option<(&'a RunningDigest, u64)>,
}

/// The number of the first row of a range.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstRow {
    /// In the table.
    pub counted: usize,
    /// In its file, which errors name.
    pub in_file: usize,
}

/// How a file holds the numbers of its vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits: 11 significant bits, and numbers up to 65504.
    F16,
}

impl Dtype {
    /// Vectors of more numbers are written as [`Dtype::F16`] where nothing else is asked for.
    pub const LONGEST_F32: usize = 512;

    /// The type in which vectors of this length are written where nothing else is asked for.
    pub fn usual(dim: usize) -> Self {
        if dim > Self::LONGEST_F32 { Self::F16 } else { Self::F32 }
    }

    /// The bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// Numbers as a file holds them, rounded to the nearest; one beyond the type's range becomes infinite.
    pub fn encode(self, numbers: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
            Self::F16 => numbers.iter().flat_map(|&number| f16::from_f32(number).to_le_bytes()).collect(),
        }
    }

    pub(super) fn of_arrow(self) -> DataType {
        match self {
            Self::F32 => DataType::Float32,
            Self::F16 => DataType::Float16,
        }
    }
}

impl std::str::FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::F32, Self::F16]
            .into_iter()
            .find(|dtype| dtype.to_string() == text)
            .ok_or_else(|| format!("invalid type `{text}`, expected f32 or f16"))
    }
}

impl<'a> PendingVectors<'a> {
    /// Vectors in memory, from row `first` on.
    pub(super) fn memory(features: &'a [f32], dim: usize, first: usize) -> Self {
        let first = FirstRow { counted: first, in_file: first };
        let vectors = Vectors { held: Held::Memory { features, dim }, first, unit: false };
        Self { vectors, read: None, digest: None }
    }

    /// Vectors that are read from a file; with `digest` their bytes, which begin there in the file, count towards it.
    pub(super) fn file(
        read: PendingRead,
        values: Dtype,
        table: &'a str,
        meta: &'a TableMeta,
        first: FirstRow,
        digest: Option<(&'a RunningDigest, u64)>,
    ) -> Self {
        let held = Held::File { bytes: Bytes::new(), values, table, meta };
        Self { vectors: Vectors { held, first, unit: false }, read: Some(read), digest }
    }

    /// Waits for the vectors.
    ///
    /// # Errors
    /// If the store fails.
    pub fn finish(mut self) -> Result<Vectors<'a>, TableError> {
        if let (Some(read), Held::File { bytes, .. }) = (self.read, &mut self.vectors.held) {
            *bytes = read.finish()?;
            if let Some((digest, offset)) = self.digest {
                digest.add(offset, bytes)?;
            }
        }
        Ok(self.vectors)
    }
}

/// Goes through items, each with a read of it that was started while those before it were waited for. At most `ahead`
/// reads are under way beside: all at once would take memory, and threads, for each item.
pub fn read_ahead<I, R>(
    items: impl IntoIterator<Item = I>,
    ahead: usize,
    start: impl Fn(&I) -> R,
) -> impl Iterator<Item = (I, R)> {
    let mut items = items.into_iter().map(move |item| {
        let read = start(&item);
        (item, read)
    });
    let mut started = VecDeque::new();
    iter::from_fn(move || {
        started.extend(items.by_ref().take(1 + ahead - started.len()));
        started.pop_front()
    })
}

/// Vectors of a range of rows.
#[derive(Debug)]
pub struct Vectors<'a> {
    held: Held<'a>,
    first: FirstRow,
    /// Whether they are brought to unit length.
    unit: bool,
}

#[derive(Debug)]
enum Held<'a> {
    Memory { features: &'a [f32], dim: usize },
    File { bytes: Bytes, values: Dtype, table: &'a str, meta: &'a TableMeta },
}

impl Vectors<'_> {
    /// The vectors of some rows, counted from the start of the table and checked as the format promises.
    ///
    /// # Errors
    /// The first row that is not finite, or not of unit length where the table says so: by its file and its
    /// number there.
    ///
    /// # Panics
    /// If a row is outside the range that was read.
    pub fn rows(&self, rows: Range<usize>) -> Result<Cow<'_, [f32]>, TableError> {
        let (start, end) = (rows.start - self.first.counted, rows.end - self.first.counted);
        let row = self.first.in_file + start;
        let (mut features, dim) = match &self.held {
            Held::Memory { features, dim } => {
                let features = &features[start * dim..end * dim];
                check_finite(IN_MEMORY, *dim, row, features)?;
                (Cow::Borrowed(features), *dim)
            }
            Held::File { bytes, values, table, meta } => {
                let size = meta.dim * values.bytes();
                let features = decode(&bytes[start * size..end * size], *values);
                check_vectors(table, meta, row, &features)?;
                (Cow::Owned(features), meta.dim)
            }
        };
        if self.unit {
            normalise(features.to_mut(), dim);
        }
        Ok(features)
    }
}

/// The digest of a file, taken as its parts are read in order for another purpose.
#[derive(Debug)]
pub(super) struct RunningDigest {
    location: Location,
    bytes: u64,
    expected: Digest,
    state: Mutex<Hashed>,
}

#[derive(Debug, Default)]
struct Hashed {
    hasher: blake3::Hasher,
    /// Bytes that the hasher has seen.
    at: u64,
}

impl RunningDigest {
    pub(super) fn new(location: &Location, bytes: u64, expected: Digest) -> Self {
        Self { location: location.clone(), bytes, expected, state: Mutex::default() }
    }

    /// Takes bytes that were read at this offset.
    fn add(&self, offset: u64, bytes: &Bytes) -> Result<(), TableError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if offset.saturating_sub(state.at) > GAP_BYTES {
            return Ok(());
        }
        self.read_to(&mut state, offset)?;
        // Where a part is read again, it has been seen.
        if let Some(rest) = usize::try_from(state.at - offset).ok().and_then(|seen| bytes.get(seen..)) {
            state.hasher.update(rest);
            state.at += rest.len() as u64;
        }
        Ok(())
    }

    /// Reads what has not been seen, and compares.
    pub(super) fn verify(&self) -> Result<(), TableError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.read_to(&mut state, self.bytes)?;
        if Digest::from(state.hasher.finalize()) == self.expected {
            return Ok(());
        }
        Err(TableError::Damaged { table: self.location.to_string() })
    }

    fn read_to(&self, state: &mut Hashed, end: u64) -> Result<(), TableError> {
        while state.at < end {
            let bytes = self.location.start_read_range(state.at..end.min(state.at + CHUNK_BYTES)).finish()?;
            state.hasher.update(&bytes);
            state.at += bytes.len() as u64;
        }
        Ok(())
    }
}

fn decode(bytes: &[u8], values: Dtype) -> Vec<f32> {
    match values {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
    }
}

/// The length of a vector; the sum runs in f64 and in order, so the result is the same on every machine.
fn length(row: &[f32]) -> f64 {
    row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// Brings rows of `dim` numbers to unit length; one of zeros stays.
pub fn normalise(features: &mut [f32], dim: usize) {
    for row in features.chunks_exact_mut(dim) {
        let length = length(row);
        if length > 0.0 {
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
}

/// Checks what the format promises of vectors; `first` is the row of the first one.
pub(super) fn check_vectors(
    table: &str,
    meta: &TableMeta,
    first: usize,
    features: &[f32],
) -> Result<(), TableError> {
    if !meta.unit_length {
        return check_finite(table, meta.dim, first, features);
    }
    for (row, feature) in features.chunks_exact(meta.dim).enumerate() {
        // In f32 it is quick, and good enough for rows that are clearly right.
        let quick = f64::from(square_length(feature)).sqrt();
        if (quick - 1.0).abs() < UNIT_TOLERANCE / 2.0 {
            continue;
        }
        check_finite(table, meta.dim, first + row, feature)?;
        let length = length(feature);
        if (length - 1.0).abs() > UNIT_TOLERANCE {
            return Err(TableError::NotUnit { table: table.into(), row: first + row, length });
        }
    }
    Ok(())
}

/// The first row that is not of unit length, with its length.
pub(super) fn first_not_of_unit_length(dim: usize, features: &[f32]) -> Option<(usize, f64)> {
    // Where it is not a number, neither is the row.
    let is_unit = |length: &f64| (length - 1.0).abs() <= UNIT_TOLERANCE;
    features.chunks_exact(dim).map(length).enumerate().find(|(_, length)| !is_unit(length))
}

/// Checks that vectors are finite.
fn check_finite(table: &str, dim: usize, first: usize, features: &[f32]) -> Result<(), TableError> {
    let is_finite = |values: &[f32]| values.iter().fold(true, |all, value| all & value.is_finite());
    if is_finite(features) {
        return Ok(());
    }
    let row = features.chunks_exact(dim).position(|row| !is_finite(row)).unwrap_or(0);
    Err(TableError::NotFinite { table: table.into(), row: first + row })
}

/// The sum of squares, by partial sums that a CPU takes side by side.
fn square_length(feature: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let (chunks, rest) = feature.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value * value;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|value| value * value).sum::<f32>()
}

/// A range in parts of at most `longest`.
pub(super) fn split(range: Range<usize>, longest: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(longest).map(move |start| start..(start + longest).min(end))
}
