//! Which bytes of a file a member is.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// The position of a member's bytes in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// One range, from this offset on.
    Range {
        /// Its first byte.
        offset: u64,
    },
    /// Several pieces; holes between them are zeros.
    Sparse(Arc<SparseMap>),
}

/// The pieces of a sparse member, ascending and without overlap.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SparseMap {
    pieces: Box<[Piece]>,
}

/// A run of stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Its offset in the member.
    pub logical: u64,
    /// Its offset in the file.
    pub physical: u64,
    /// Its length; never 0.
    pub bytes: u64,
}

impl Extent {
    /// The extent of a member of `bytes` bytes. The pieces ascend without overlap and end within the member.
    pub(super) fn of_pieces(mut pieces: Vec<Piece>, bytes: u64) -> Self {
        pieces.retain(|piece| piece.bytes > 0);
        // Neighbours in both the member and the file are one piece.
        pieces.dedup_by(|next, piece| {
            let adjoins =
                piece.logical + piece.bytes == next.logical && piece.physical + piece.bytes == next.physical;
            if adjoins {
                piece.bytes += next.bytes;
            }
            adjoins
        });
        match pieces.as_slice() {
            [piece] if piece.logical == 0 && piece.bytes == bytes => Self::Range { offset: piece.physical },
            [] if bytes == 0 => Self::Range { offset: 0 },
            _ => Self::Sparse(Arc::new(SparseMap { pieces: pieces.into() })),
        }
    }

    /// A part of it.
    pub(crate) fn slice(&self, range: Range<u64>) -> Self {
        let map = match self {
            Self::Range { offset } => return Self::Range { offset: offset + range.start },
            Self::Sparse(map) => map,
        };
        let first = map.pieces.partition_point(|piece| piece.logical + piece.bytes <= range.start);
        let inside = map.pieces[first..].iter().take_while(|piece| piece.logical < range.end);
        let pieces = inside.map(|piece| {
            let start = piece.logical.max(range.start);
            let end = (piece.logical + piece.bytes).min(range.end);
            Piece {
                logical: start - range.start,
                physical: piece.physical + (start - piece.logical),
                bytes: end - start,
            }
        });
        Self::of_pieces(pieces.collect(), range.end - range.start)
    }

    /// Where in this extent's file a member is that has `bytes` bytes at `inner` of this extent.
    pub(crate) fn within(&self, inner: &Self, bytes: u64) -> Self {
        let map = match inner {
            Self::Range { offset } => return self.slice(*offset..offset + bytes),
            Self::Sparse(map) => map,
        };
        let pieces = map.pieces.iter().flat_map(|inner| {
            let outer = self.slice(inner.physical..inner.physical + inner.bytes);
            outer
                .pieces(inner.bytes)
                .into_iter()
                .map(|piece| Piece { logical: inner.logical + piece.logical, ..piece })
        });
        Self::of_pieces(pieces.collect(), bytes)
    }

    /// The pieces of a member of `bytes` bytes.
    pub(super) fn pieces(&self, bytes: u64) -> Vec<Piece> {
        match self {
            Self::Range { offset } => vec![Piece { logical: 0, physical: *offset, bytes }],
            Self::Sparse(map) => map.pieces.to_vec(),
        }
    }

    /// Reads the member, `read_at` for each piece; holes are zeros.
    pub(super) fn read<E>(
        &self,
        bytes: u64,
        mut read_at: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        let mut buffer = vec![0; bytes as usize];
        match self {
            _ if bytes == 0 => {}
            Self::Range { offset } => read_at(*offset, &mut buffer)?,
            Self::Sparse(map) => {
                for piece in &map.pieces {
                    let start = piece.logical as usize;
                    read_at(piece.physical, &mut buffer[start..start + piece.bytes as usize])?;
                }
            }
        }
        Ok(buffer.into())
    }
}

/// Reads a member of a local file.
pub(super) fn read_local(file: &std::fs::File, extent: &Extent, bytes: u64) -> io::Result<Bytes> {
    use std::os::unix::fs::FileExt;
    extent.read(bytes, |offset, buffer| file.read_exact_at(buffer, offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse(pieces: &[(u64, u64, u64)], bytes: u64) -> Extent {
        let piece = |&(logical, physical, bytes): &(u64, u64, u64)| Piece { logical, physical, bytes };
        Extent::of_pieces(pieces.iter().map(piece).collect(), bytes)
    }

    fn read(extent: &Extent, bytes: u64, file: &[u8]) -> Vec<u8> {
        let read = extent.read(bytes, |offset, buffer| {
            buffer.copy_from_slice(&file[offset as usize..offset as usize + buffer.len()]);
            Ok::<_, io::Error>(())
        });
        read.expect("in memory").to_vec()
    }

    #[test]
    fn holes_are_zeros() {
        let extent = sparse(&[(2, 0, 2), (6, 2, 1), (9, 3, 0)], 9);
        assert_eq!(read(&extent, 9, b"abc"), b"\0\0ab\0\0c\0\0");
    }

    #[test]
    fn one_piece_without_holes_is_a_range() {
        assert_eq!(sparse(&[(0, 7, 3), (3, 10, 2)], 5), Extent::Range { offset: 7 });
        assert_eq!(sparse(&[], 0), Extent::Range { offset: 0 });
        assert!(matches!(sparse(&[(0, 7, 3)], 5), Extent::Sparse(_)));
    }

    #[test]
    fn a_slice_reads_what_the_whole_has_there() {
        let file = b"abcdefgh";
        let extent = sparse(&[(1, 4, 3), (4, 0, 2), (9, 7, 1)], 12);
        let whole = read(&extent, 12, file);
        for start in 0..=12 {
            for end in start..=12 {
                let slice = extent.slice(start..end);
                let expected = &whole[start as usize..end as usize];
                assert_eq!(read(&slice, end - start, file), expected, "{start}..{end}");
            }
        }
    }

    #[test]
    fn a_sparse_member_of_a_sparse_file_reads_through_both_maps() {
        let file = b"abcdefgh";
        let outer = sparse(&[(1, 4, 3), (4, 0, 2), (9, 7, 1)], 12);
        let unpacked = read(&outer, 12, file);
        let inner = sparse(&[(0, 2, 3), (5, 8, 3)], 9);
        assert_eq!(read(&outer.within(&inner, 9), 9, file), read(&inner, 9, &unpacked));
        let plain = Extent::Range { offset: 3 };
        assert_eq!(read(&outer.within(&plain, 7), 7, file), &unpacked[3..10]);
    }
}
