//! Entry points beside an image: what a shard stores of them.
//!
//! A loader that reads one image alone sees no digest of the column that they are in, so each value ends with a part of
//! its own. What an image's entry points are, [`crate::image`] knows.

use bytes::Bytes;

use crate::storage::Digest;

/// Bytes of the digest.
const CHECK_BYTES: usize = 8;

/// The bytes that a shard stores.
pub(super) fn sealed(points: &[u8]) -> Vec<u8> {
    let mut stored = points.to_vec();
    stored.extend_from_slice(&Digest::of(points).0[..CHECK_BYTES]);
    stored
}

/// How many they are for entry points of this size.
pub(super) fn sealed_bytes(points: usize) -> usize {
    points + CHECK_BYTES
}

/// The entry points, if the stored bytes are those that were written.
pub fn unsealed(stored: Bytes) -> Option<Bytes> {
    let points = trusted(stored.clone())?;
    stored.ends_with(&Digest::of(&points).0[..CHECK_BYTES]).then_some(points)
}

/// The entry points of bytes that a digest has vouched for; `None` if there is not even the part of the digest.
pub(super) fn trusted(mut stored: Bytes) -> Option<Bytes> {
    let len = stored.len().checked_sub(CHECK_BYTES)?;
    stored.truncate(len);
    Some(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_bit_of_stored_entry_points_is_found() {
        let points = Bytes::from_static(b"entry points");
        let stored = sealed(&points);
        assert_eq!(stored.len(), sealed_bytes(points.len()));
        assert_eq!(unsealed(Bytes::from(stored.clone())), Some(points));
        for bit in 0..8 * stored.len() {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unsealed(damaged.into()), None);
        }
        assert_eq!(unsealed(Bytes::from_static(b"short")), None);
    }
}
