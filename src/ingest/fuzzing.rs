//! Entry points for the fuzzer: everything that reads foreign bytes.

use super::source::{Source, read_synsets};
use super::{IngestOptions, validate};
use crate::image::{Limits, check_is_libjpegs};
use crate::progress::Quiet;
use crate::storage::Location;

/// Lists a source that is one file of this name, and decides what it means.
#[expect(clippy::disallowed_methods, reason = "the source is a foreign file")]
fn source(name: &str, bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join(name);
    std::fs::write(&file, bytes).expect("written");
    let here = Location::from_path(&file).expect("a location");
    let options = IngestOptions::new(here.clone(), here);
    let opened = Source::open(&options);
    opened.is_ok_and(|mut source| source.fetch(&Quiet).is_ok())
}

/// Reads a tar, and what its members mean.
pub fn tar(bytes: &[u8]) -> bool {
    source("x.tar", bytes)
}

/// Reads a Parquet file, its images too.
pub fn parquet(bytes: &[u8]) -> bool {
    source("x.parquet", bytes)
}

/// Reads a csv or jsonl list.
pub fn csv(bytes: &[u8]) -> bool {
    source("x.csv", bytes)
}

/// Reads `meta.mat`.
pub fn synsets(bytes: &[u8]) -> bool {
    read_synsets(bytes).is_ok()
}

/// Checks an image; the first byte chooses what is asked for.
pub fn image(bytes: &[u8]) -> bool {
    let Some((&choice, bytes)) = bytes.split_first() else { return false };
    let here = Location::from_path(std::path::Path::new("/nowhere")).expect("a location");
    let mut options = IngestOptions::new(here.clone(), here);
    options.max_pixels = 1 << 22;
    options.baseline = choice & 1 == 1;
    options.short_side = (choice & 2 == 2).then_some(32);
    let limits = Limits { max_pixels: options.max_pixels };
    assert!(check_is_libjpegs(bytes, &limits), "the quick check and libjpeg differ");
    validate::prepare(bytes, &options).is_ok()
}
