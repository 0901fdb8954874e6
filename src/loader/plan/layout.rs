//! Which rows are in which row group.

use std::ops::Range;

use crate::ids::BankRow;
use crate::storage::Digest;

/// The row groups of a source, each with the bank rows of its rows and its size.
///
/// Invariant: each bank row of the source is in exactly one group.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Of group `g`: the slots `starts[g]..starts[g + 1]`.
    starts: Vec<u32>,
    /// By slot: the bank row of its row.
    members: Vec<BankRow>,
    bytes: Vec<u64>,
}

impl Layout {
    /// A layout from the bank rows in each group, in the order of its rows, and the group's bytes.
    pub fn new(groups: impl IntoIterator<Item = (Vec<BankRow>, u64)>) -> Self {
        let mut layout = Self { starts: vec![0], ..Self::default() };
        for (members, bytes) in groups {
            layout.members.extend(members);
            layout.starts.push(layout.members.len() as u32);
            layout.bytes.push(bytes);
        }
        layout
    }

    /// Groups of equal length, in the order of the bank rows.
    pub fn regular(len: usize, rows: usize, bytes: u64) -> Self {
        let groups = (0..len).step_by(rows.max(1)).map(|start| {
            let members: Vec<_> =
                (start..len.min(start + rows.max(1))).map(|row| BankRow(row as u32)).collect();
            let share = bytes * members.len() as u64 / len.max(1) as u64;
            (members, share)
        });
        Self::new(groups)
    }

    /// A digest of which bank rows are in which group, in which order.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for number in self.starts.iter().copied().chain(self.members.iter().map(|bank_row| bank_row.0)) {
            hasher.update(&number.to_le_bytes());
        }
        hasher.finalize().into()
    }

    /// The number of groups.
    pub fn groups(&self) -> usize {
        self.bytes.len()
    }

    /// The bank rows in a group.
    pub fn members(&self, group: usize) -> &[BankRow] {
        &self.members[self.slots(group)]
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.members.len()
    }

    /// What reading a group fetches, in bytes.
    pub fn bytes(&self, group: usize) -> u64 {
        self.bytes[group]
    }

    /// The bytes of all groups.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// The mean bytes of a row, rounded up.
    pub(crate) fn mean_bytes(&self) -> u64 {
        self.total_bytes().div_ceil(self.rows().max(1) as u64)
    }

    /// The bytes of the largest group.
    pub fn largest_group(&self) -> u64 {
        self.bytes.iter().copied().max().unwrap_or(0)
    }

    /// By bank row: the slot of its row, counted through all groups.
    pub(crate) fn slots_by_bank_row(&self) -> Vec<u32> {
        let mut slots = vec![0; self.members.len()];
        for (slot, bank_row) in (0..).zip(&self.members) {
            slots[bank_row.row()] = slot;
        }
        slots
    }

    /// The group of a slot.
    pub(crate) fn group_of_slot(&self, slot: u32) -> u32 {
        self.starts.partition_point(|&start| start <= slot) as u32 - 1
    }

    fn slots(&self, group: usize) -> Range<usize> {
        self.starts[group] as usize..self.starts[group + 1] as usize
    }
}
