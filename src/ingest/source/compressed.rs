//! Compressed tars: unpacked once into a file without a name, since their members can only be read in order.

use std::fs::File;
use std::io::{self, BufReader, Read};

use super::store::Spool;
use super::window::Window;
use crate::ingest::IngestError;
use crate::storage::Location;

/// Bytes that a compressed tar may have for each byte of its own: pictures do not get smaller, so more than
/// this is no picture set.
const MOST_RATIO: u64 = 1 << 12;
/// Bytes that are always allowed: a tar of small pictures is mostly padding.
const ALWAYS_ALLOWED: u64 = 1 << 30;

/// The kinds of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Zstd,
}

/// The compression of a file that begins so.
pub(super) fn compression(head: &[u8]) -> Option<Compression> {
    match head {
        [0x1F, 0x8B, ..] => Some(Compression::Gzip),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => Some(Compression::Zstd),
        _ => None,
    }
}

/// The first bytes of what is compressed.
pub(super) fn first_bytes(head: &[u8], compression: Compression, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    // The head is cut, so an error at its end is expected; what came before it counts.
    let _ = match compression {
        Compression::Gzip => {
            flate2::read::MultiGzDecoder::new(head).take(count as u64).read_to_end(&mut bytes)
        }
        Compression::Zstd => match zstd::Decoder::new(head) {
            Ok(decoder) => decoder.take(count as u64).read_to_end(&mut bytes),
            Err(error) => Err(error),
        },
    };
    bytes
}

/// Copies a file, unpacked, to this machine; the copy is gone with the process.
///
/// # Errors
/// If the file is cut or damaged, or the disk for temporary files is full.
pub(super) fn unpack(
    location: &Location,
    compression: Option<Compression>,
) -> Result<(File, u64), IngestError> {
    let packed = Window::new(location)?.sequential();
    let limit = packed.len().saturating_mul(MOST_RATIO).max(ALWAYS_ALLOWED);
    let reader = BufReader::with_capacity(1 << 20, packed);
    let damaged = |error: io::Error| IngestError::Tar {
        tar: location.to_string(),
        offset: 0,
        reason: format!("it is cut or damaged ({error})"),
    };
    let decoder: Box<dyn Read> = match compression {
        None => Box::new(reader),
        Some(Compression::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Some(Compression::Zstd) => Box::new(zstd::Decoder::with_buffer(reader).map_err(damaged)?),
    };
    let mut spool = Spool::new()?;
    let mut decoder = decoder.take(limit + 1);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = decoder.read(&mut buffer).map_err(damaged)?;
        if count == 0 {
            break;
        }
        spool.push(&buffer[..count])?;
    }
    let (file, written) = spool.finish();
    if written > limit {
        return Err(damaged(io::Error::other(format!("it unpacks to more than {limit} bytes"))));
    }
    Ok((file, written))
}
