//! Vectors of rows that come in any order, until they are read in the order of the rows.
//!
//! They are in memory, or in a file of the folder for temporary files (`TMPDIR`). The file has no name:
//! nothing is left of it, however the process ends.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

/// `[rows]` vectors as bytes, each of the same length.
#[derive(Debug)]
pub(super) struct Scratch {
    row_bytes: usize,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Memory(Vec<u8>),
    File(File),
}

impl Scratch {
    /// Room for rows of this length.
    ///
    /// # Errors
    /// If the disk has no room for them.
    pub(super) fn new(rows: usize, row_bytes: usize, in_memory: bool) -> io::Result<Self> {
        let held = if in_memory {
            Held::Memory(vec![0; rows * row_bytes])
        } else {
            let file = tempfile::tempfile()?;
            let bytes = (rows * row_bytes) as u64;
            // A full disk is found now, not after hours. Some file systems cannot reserve.
            match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
                Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes)?,
                reserved => reserved?,
            }
            Held::File(file)
        };
        Ok(Self { row_bytes, held })
    }

    /// Keeps the vector of a row.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn put(&mut self, row: usize, vector: &[u8]) -> io::Result<()> {
        assert_eq!(vector.len(), self.row_bytes, "rows are of one length");
        let start = row * self.row_bytes;
        match &mut self.held {
            Held::Memory(bytes) => bytes[start..start + self.row_bytes].copy_from_slice(vector),
            Held::File(file) => file.write_all_at(vector, start as u64)?,
        }
        Ok(())
    }

    /// The vectors of a run of rows.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) fn read(&self, rows: Range<usize>, into: &mut [u8]) -> io::Result<()> {
        let (start, end) = (rows.start * self.row_bytes, rows.end * self.row_bytes);
        match &self.held {
            Held::Memory(bytes) => into.copy_from_slice(&bytes[start..end]),
            Held::File(file) => file.read_exact_at(into, start as u64)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_come_in_any_order_are_read_in_their_own() {
        for in_memory in [true, false] {
            let mut scratch = Scratch::new(5, 3, in_memory).expect("room");
            for row in [3_u8, 0, 4, 2, 1] {
                scratch.put(row.into(), &[row, 10 + row, 20 + row]).expect("kept");
            }
            let mut read = [0; 9];
            scratch.read(1..4, &mut read).expect("read");
            assert_eq!(read, [1, 11, 21, 2, 12, 22, 3, 13, 23]);
        }
    }

    #[test]
    fn more_than_the_disk_has_is_refused_before_anything_is_kept() {
        // More than any file system takes.
        Scratch::new(1 << 40, 1 << 22, false).expect_err("no room");
    }
}
