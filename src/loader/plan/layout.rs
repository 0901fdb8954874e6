//! Which rows lie together: a source's row groups.

use std::ops::Range;

use crate::ids::Position;
use crate::storage::Digest;

/// The row groups of a source, each with the positions of its rows and its size.
///
/// Invariant: each position of the source is in exactly one group.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Of group `g`: the slots `starts[g]..starts[g + 1]`.
    starts: Vec<u32>,
    /// By slot: the position of the row that lies there.
    members: Vec<Position>,
    bytes: Vec<u64>,
}

impl Layout {
    /// A layout from the positions in each group, in the order in which they lie there, and the group's bytes.
    pub fn new(groups: impl IntoIterator<Item = (Vec<Position>, u64)>) -> Self {
        let mut layout = Self { starts: vec![0], ..Self::default() };
        for (members, bytes) in groups {
            layout.members.extend(members);
            layout.starts.push(layout.members.len() as u32);
            layout.bytes.push(bytes);
        }
        layout
    }

    /// Groups of equal length of a source whose positions lie in their order.
    pub fn regular(len: usize, rows: usize, bytes: u64) -> Self {
        let groups = (0..len).step_by(rows.max(1)).map(|start| {
            let members: Vec<_> =
                (start..len.min(start + rows.max(1))).map(|row| Position(row as u32)).collect();
            let share = bytes * members.len() as u64 / len.max(1) as u64;
            (members, share)
        });
        Self::new(groups)
    }

    /// A digest of which positions lie in which group, in which order.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for number in self.starts.iter().copied().chain(self.members.iter().map(|position| position.0)) {
            hasher.update(&number.to_le_bytes());
        }
        hasher.finalize().into()
    }

    /// The number of groups.
    pub fn groups(&self) -> usize {
        self.bytes.len()
    }

    /// The positions in a group.
    pub fn members(&self, group: usize) -> &[Position] {
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

    /// The bytes of the largest group.
    pub fn largest_group(&self) -> u64 {
        self.bytes.iter().copied().max().unwrap_or(0)
    }

    /// By position: the slot in which its row lies, counted through all groups.
    pub(in crate::loader) fn slots_by_position(&self) -> Vec<u32> {
        let mut slots = vec![0; self.members.len()];
        for (slot, position) in (0..).zip(&self.members) {
            slots[position.row()] = slot;
        }
        slots
    }

    /// The group of a slot.
    pub(in crate::loader) fn group_of_slot(&self, slot: u32) -> u32 {
        self.starts.partition_point(|&start| start <= slot) as u32 - 1
    }

    fn slots(&self, group: usize) -> Range<usize> {
        self.starts[group] as usize..self.starts[group + 1] as usize
    }
}
