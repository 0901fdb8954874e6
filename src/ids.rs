//! Integers that must not be mixed up: which image, which row, which class, which rank.
//!
//! Inside the crate an id is one of these types; only the file formats turn it into an `int64` and back.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The image's number within its split.
///
/// Invariants: a split of `n` images holds exactly the ids `0..n`; an id never changes once the dataset is
/// published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub u32);

impl InstanceId {
    /// The id as an index into a table with one row for each image.
    pub fn row(self) -> usize {
        self.0 as usize
    }

    /// Reads an id as a file holds it; `None` where it is negative or too large.
    pub fn from_stored(value: i64) -> Option<Self> {
        u32::try_from(value).ok().map(Self)
    }

    /// The id as a file holds it.
    pub fn to_stored(self) -> i64 {
        i64::from(self.0)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An image's row in the tables of a job: in its source and in the memory bank.
///
/// For a whole split it is the number of the image's [`InstanceId`]. For a sample (`--limit`), the sample's ids are
/// numbered in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BankRow(pub u32);

impl BankRow {
    /// The row as an index.
    pub fn row(self) -> usize {
        self.0 as usize
    }

    /// Reads a row from a tensor's number; `None` where it is negative or too large.
    pub fn from_index(value: i64) -> Option<Self> {
        u32::try_from(value).ok().map(Self)
    }

    /// The row as a tensor's number.
    pub fn to_index(self) -> i64 {
        i64::from(self.0)
    }
}

/// An image's index within a global batch, in the order of the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchIndex(pub u32);

impl BatchIndex {
    /// The number as an index into the batch.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What one rank of several does of something that all share: a global batch, a split, the bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankShare {
    /// The rank, from 0.
    pub rank: usize,
    /// The number of ranks.
    pub ranks: usize,
}

impl RankShare {
    /// All, by one rank.
    pub const WHOLE: Self = Self { rank: 0, ranks: 1 };

    /// The rank's range of `0..len`.
    pub fn of(self, len: usize) -> Range<usize> {
        even_range(len, self.rank, self.ranks)
    }
}

/// Range `number` of `count` ranges of `0..len` that differ in length by one at most.
pub fn even_range(len: usize, number: usize, count: usize) -> Range<usize> {
    len * number / count..len * (number + 1) / count
}

/// The position of a class in the dataset's sorted list of class names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClassId(pub u16);

impl ClassId {
    /// The value that a dataset stores for an image without a label.
    pub const UNLABELLED: i64 = -1;

    /// The class as an index into the list of class names.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Reads a label as a file holds it: `Some(None)` for an unlabelled image, `None` for any
    /// other value.
    pub fn from_stored(value: i64) -> Option<Option<Self>> {
        if value == Self::UNLABELLED {
            return Some(None);
        }
        u16::try_from(value).ok().map(|class| Some(Self(class)))
    }

    /// A label as a dataset stores it.
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
