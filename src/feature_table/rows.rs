//! Vectors of a table by ranges of rows, in memory or read from a file.

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

/// Name of a table in memory, for errors.
pub(super) const IN_MEMORY: &str = "a table in memory";
/// Bytes read at a time to complete a digest.
const CHUNK_BYTES: u64 = 8 << 20;
/// Largest gap between two parts that is read to continue a digest. After a larger gap the parts are out of
/// order, and the rest is read at the end.
const GAP_BYTES: u64 = 64 << 20;

/// Feature table whose vectors are in memory or in a file.
pub trait Table: Debug + Sync {
    /// Returns the metadata of the features.
    fn meta(&self) -> &TableMeta;

    /// Returns the number of rows.
    fn rows(&self) -> usize;

    /// Returns the instance of a row.
    fn id(&self, row: usize) -> InstanceId;

    /// Returns the class of a row, if it has one.
    fn label(&self, row: usize) -> Option<ClassId>;

    /// Divides all rows, in order, into ranges of at most `longest` rows, each readable at once.
    fn ranges(&self, longest: usize) -> Vec<Range<usize>>;

    /// Reads for each of these rows of a bank the training step that last wrote it. The rows must be one of
    /// [`Table::ranges`], or within one.
    ///
    /// # Errors
    /// If the store fails.
    fn updated_steps(&self, rows: Range<usize>) -> Result<Vec<Option<u64>>, TableError>;

    /// Starts to read the vectors of one of [`Table::ranges`], or of a range within one.
    fn start_read(&self, rows: Range<usize>) -> PendingVectors<'_>;

    /// Checks the digest of a table, if known. Call this after use: bytes that were already read are not read again.
    ///
    /// # Errors
    /// [`TableError::Damaged`], or if the store fails.
    fn verify(&self) -> Result<(), TableError> {
        Ok(())
    }
}

impl dyn Table + '_ {
    /// Iterates over the instances of all rows.
    pub fn ids(&self) -> impl Iterator<Item = InstanceId> + '_ {
        (0..self.rows()).map(|row| self.id(row))
    }

    /// Iterates over the classes of all rows, `None` for rows without one.
    pub fn labels(&self) -> impl Iterator<Item = Option<ClassId>> + '_ {
        (0..self.rows()).map(|row| self.label(row))
    }

    /// Returns whether any row has a class.
    pub fn has_labels(&self) -> bool {
        self.labels().any(|label| label.is_some())
    }

    /// Starts to read the vectors like [`Table::start_read`], and normalises them to unit length. Rows of a table whose
    /// metadata says unit length keep their bits, and rows of zeros are unchanged.
    pub fn start_unit_read(&self, rows: Range<usize>) -> PendingVectors<'_> {
        let mut read = self.start_read(rows);
        read.vectors.unit = !self.meta().unit_length;
        read
    }
}

/// Vectors that are being read.
#[derive(Debug)]
pub struct PendingVectors<'a> {
    /// The vectors; those of a file get their bytes when the read finishes.
    vectors: Vectors<'a>,
    read: Option<PendingRead>,
    /// Running digest of the file and offset of the bytes in it, if they count towards it.
    digest: Option<(&'a RunningDigest, u64)>,
}

/// Number of the first row of a range.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstRow {
    /// Number within the table.
    pub counted: usize,
    /// Number within its file, for errors.
    pub in_file: usize,
}

/// Number type of the vectors in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits: 11 significant bits, and magnitudes up to 65504.
    F16,
}

impl Dtype {
    /// Length of the longest vectors that are written as [`Dtype::F32`] by default.
    pub const LONGEST_F32: usize = 512;

    /// Returns the default type for vectors of this length.
    pub fn usual(dim: usize) -> Self {
        if dim > Self::LONGEST_F32 { Self::F16 } else { Self::F32 }
    }

    /// Returns the bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// Encodes numbers, rounded to nearest; a number beyond the type's range becomes infinite.
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
    /// Wraps vectors in memory, from row `first` on.
    pub(super) fn memory(features: &'a [f32], dim: usize, first: usize) -> Self {
        let first = FirstRow { counted: first, in_file: first };
        let vectors = Vectors { held: Held::Memory { features, dim }, first, unit: false };
        Self { vectors, read: None, digest: None }
    }

    /// Wraps vectors that are read from a file; with `digest`, their bytes at this offset in the file count towards it.
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

/// Iterates over items, each with its read, which starts while earlier items are processed. At most `ahead` further
/// reads are under way: starting all at once would take memory and a thread for each.
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
    /// Whether to normalise the vectors to unit length.
    unit: bool,
}

#[derive(Debug)]
enum Held<'a> {
    Memory { features: &'a [f32], dim: usize },
    File { bytes: Bytes, values: Dtype, table: &'a str, meta: &'a TableMeta },
}

impl Vectors<'_> {
    /// Returns the vectors of some rows, counted from the start of the table and checked against the format.
    ///
    /// # Errors
    /// If a row is not finite, or lacks unit length although the metadata says so: the first one, by its file
    /// and its number there.
    ///
    /// # Panics
    /// If a row is outside the read range.
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

/// Digest of a file, computed while parts of it are read in order for another purpose.
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
    /// Number of bytes hashed.
    at: u64,
}

impl RunningDigest {
    pub(super) fn new(location: &Location, bytes: u64, expected: Digest) -> Self {
        Self { location: location.clone(), bytes, expected, state: Mutex::default() }
    }

    /// Adds bytes that were read at this offset.
    fn add(&self, offset: u64, bytes: &Bytes) -> Result<(), TableError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if offset.saturating_sub(state.at) > GAP_BYTES {
            return Ok(());
        }
        self.read_to(&mut state, offset)?;
        // Bytes of a part that is read again were already hashed.
        if let Some(rest) = usize::try_from(state.at - offset).ok().and_then(|seen| bytes.get(seen..)) {
            state.hasher.update(rest);
            state.at += rest.len() as u64;
        }
        Ok(())
    }

    /// Reads the remaining bytes and compares the digest.
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

/// Computes the length of a vector; the sum is in f64 and in order, so the result is the same on every machine.
fn length(row: &[f32]) -> f64 {
    row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// Normalises rows of `dim` numbers to unit length; rows of zeros are unchanged.
pub fn normalise(features: &mut [f32], dim: usize) {
    for row in features.chunks_exact_mut(dim) {
        let length = length(row);
        if length > 0.0 {
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
}

/// Checks vectors against the format; `first` is the row of the first one.
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
        // Fast in f32, and accurate enough for rows that are clearly valid.
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

/// Returns the first row without unit length, and its length.
pub(super) fn first_not_of_unit_length(dim: usize, features: &[f32]) -> Option<(usize, f64)> {
    // False for NaN too.
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

/// Returns the sum of squares, by partial sums that a CPU computes in parallel.
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

/// Divides a range into parts of at most `longest`.
pub(super) fn split(range: Range<usize>, longest: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(longest).map(move |start| start..(start + longest).min(end))
}
