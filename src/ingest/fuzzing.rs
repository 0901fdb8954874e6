//! Ways in for the fuzzer: what reads bytes that somebody else wrote.

use super::{IngestOptions, screen, source};
use crate::picture::{Limits, check_is_libjpegs};
use crate::storage::Location;

/// Reads the headers of a tar and groups its members.
pub fn tar(bytes: &[u8]) -> usize {
    source::list_bytes(bytes)
}

/// Reads `meta.mat`.
pub fn synsets(bytes: &[u8]) -> bool {
    source::read_synsets(bytes).is_ok()
}

/// Checks a picture; the first byte chooses what is asked for.
pub fn picture(bytes: &[u8]) -> bool {
    let Some((&choice, bytes)) = bytes.split_first() else { return false };
    let here = Location::from_path(std::path::Path::new("/nowhere")).expect("a location");
    let mut options = IngestOptions::new(here.clone(), here);
    options.max_pixels = 1 << 22;
    options.baseline = choice & 1 == 1;
    options.tile_index = choice & 4 == 4;
    options.short_side = (choice & 2 == 2).then_some(32);
    let limits = Limits { max_pixels: options.max_pixels };
    assert!(check_is_libjpegs(bytes, &limits), "the quick check and libjpeg differ");
    screen::prepare(bytes, &options).is_ok()
}
