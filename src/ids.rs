//! Newtypes for integers that must not be confused: images, rows, classes and ranks.
//!
//! Inside the crate an id always has one of these types; only the file formats convert it to `int64` and back.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Number of an image within its split.
///
/// Invariants: a split of `n` images has exactly the ids `0..n`; an id never changes once the dataset is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub u32);

impl InstanceId {
    /// Returns the id as an index into a table with one row per image.
    pub fn row(self) -> usize {
        self.0 as usize
    }

    /// Converts an id from a file; `None` if it is negative or too large.
    pub fn from_stored(value: i64) -> Option<Self> {
        u32::try_from(value).ok().map(Self)
    }

    /// Converts the id for a file.
    pub fn to_stored(self) -> i64 {
        i64::from(self.0)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Row of an image in the tables of a job: in its source and in the memory bank.
///
/// For a whole split it equals the number of the image's [`InstanceId`]. For a sample (`--limit`), it is the
/// position in the sample's ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BankRow(pub u32);

impl BankRow {
    /// Returns the row as an index.
    pub fn row(self) -> usize {
        self.0 as usize
    }

    /// Converts a row from a tensor's number; `None` if it is negative or too large.
    pub fn from_index(value: i64) -> Option<Self> {
        u32::try_from(value).ok().map(Self)
    }

    /// Converts the row for a tensor.
    pub fn to_index(self) -> i64 {
        i64::from(self.0)
    }
}

/// Index of an image within a global batch, in the order of the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchIndex(pub u32);

impl BatchIndex {
    /// Returns the index into the batch.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Share of one rank in something that all ranks divide: a global batch, a split, the bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankShare {
    /// Rank, from 0.
    pub rank: usize,
    /// Number of ranks.
    pub ranks: usize,
}

impl RankShare {
    /// Everything, for a single rank.
    pub const WHOLE: Self = Self { rank: 0, ranks: 1 };

    /// Returns the rank's range of `0..len`.
    pub fn of(self, len: usize) -> Range<usize> {
        even_range(len, self.rank, self.ranks)
    }
}

/// Returns range `number` of `count` ranges of `0..len` whose lengths differ by at most one.
pub fn even_range(len: usize, number: usize, count: usize) -> Range<usize> {
    len * number / count..len * (number + 1) / count
}

/// Index of a class in the dataset's sorted list of class names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClassId(pub u16);

impl ClassId {
    /// Stored value for an image without a label.
    pub const UNLABELLED: i64 = -1;

    /// Returns the index into the list of class names.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Converts a label from a file: `Some(None)` for an unlabelled image, `None` for an invalid value.
    pub fn from_stored(value: i64) -> Option<Option<Self>> {
        if value == Self::UNLABELLED {
            return Some(None);
        }
        u16::try_from(value).ok().map(|class| Some(Self(class)))
    }

    /// Converts a label for a dataset.
    pub fn to_stored(label: Option<Self>) -> i64 {
        label.map_or(Self::UNLABELLED, |class| i64::from(class.0))
    }
}

impl fmt::Display for ClassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_survives_storage() {
        for label in [None, Some(ClassId(0)), Some(ClassId(u16::MAX))] {
            assert_eq!(ClassId::from_stored(ClassId::to_stored(label)), Some(label));
        }
    }

    #[test]
    fn numbers_that_cannot_be_ids_are_refused() {
        assert_eq!(ClassId::from_stored(-2), None);
        assert_eq!(ClassId::from_stored(65_536), None);
        assert_eq!(InstanceId::from_stored(-1), None);
        assert_eq!(InstanceId::from_stored(1 << 32), None);
    }
}
