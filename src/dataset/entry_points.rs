//! Entry points beside an image: what a shard stores of them.
//!
//! A loader that reads one image alone sees no digest of the column that they are in, and entry points of another image
//! would give wrong pixels. So each value ends with a part of a digest of its own, which covers the image too: its size
//! and its last bytes. What an image's entry points are, [`crate::image`] knows.

use bytes::Bytes;

/// Bytes of the digest.
const CHECK_BYTES: usize = 8;
/// Bytes at the end of an image that the digest covers.
const LAST_BYTES: usize = 64;

/// The bytes that a shard stores of an image's entry points.
pub(super) fn sealed(points: &[u8], image: &[u8]) -> Vec<u8> {
    let mut stored = points.to_vec();
    stored.extend_from_slice(&check(points, image));
    stored
}

/// How many they are for entry points of this size.
pub(super) fn sealed_bytes(points: usize) -> usize {
    points + CHECK_BYTES
}

/// The entry points, if the stored bytes are those that were written for this image.
pub fn unsealed(mut stored: Bytes, image: &[u8]) -> Option<Bytes> {
    let len = stored.len().checked_sub(CHECK_BYTES)?;
    let found = stored.split_off(len);
    (found[..] == check(&stored, image)).then_some(stored)
}

fn check(points: &[u8], image: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(points);
    hasher.update(&(image.len() as u64).to_le_bytes());
    hasher.update(&image[image.len().saturating_sub(LAST_BYTES)..]);
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK_BYTES]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_bit_of_stored_entry_points_and_another_image_are_found() {
        let (points, image) = (Bytes::from_static(b"entry points"), [7; 100]);
        let stored = sealed(&points, &image);
        assert_eq!(stored.len(), sealed_bytes(points.len()));
        assert_eq!(unsealed(Bytes::from(stored.clone()), &image), Some(points));
        for bit in 0..8 * stored.len() {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unsealed(damaged.into(), &image), None);
        }
        let mut other = image;
        other[99] = 8;
        assert_eq!(unsealed(Bytes::from(stored.clone()), &other), None, "other last bytes");
        assert_eq!(unsealed(stored.into(), &image[1..]), None, "another size");
        assert_eq!(unsealed(Bytes::from_static(b"short"), &image), None);
    }
}
