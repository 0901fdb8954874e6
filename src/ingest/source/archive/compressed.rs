//! Compressed tars: unpacked once into the spool, since their members can only be read in order.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use super::spool::Spool;
use super::{SourceFile, Window};
use crate::ingest::IngestError;
use crate::storage::StorageError;

/// Bytes that a compressed tar may unpack to for each of its bytes: encoded images hardly get smaller, and
/// plain pixels rarely to less than a tenth.
const MOST_RATIO: u64 = 16;
/// Bytes that are always allowed on top: a tar of small images is mostly padding.
const ALWAYS_ALLOWED: u64 = 1 << 30;

/// The kinds of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// `.gz`; several streams in a row are one.
    Gzip,
    /// `.zst`; several frames in a row are one.
    Zstd,
    /// One that is not supported, by its name.
    Unsupported(&'static str),
}

/// The compression of a file that begins so.
pub(crate) fn compression(head: &[u8]) -> Option<Compression> {
    match head {
        [0x1F, 0x8B, ..] => Some(Compression::Gzip),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => Some(Compression::Zstd),
        // A skippable frame, with which pzstd begins.
        [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Some(Compression::Zstd),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => {
            Some(Compression::Unsupported("bzip2"))
        }
        [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => Some(Compression::Unsupported("xz")),
        [0x04, 0x22, 0x4D, 0x18, ..] => Some(Compression::Unsupported("lz4")),
        [b'L', b'Z', b'I', b'P', 0 | 1, ..] => Some(Compression::Unsupported("lzip")),
        [0x1F, 0x9D, ..] => Some(Compression::Unsupported("compress")),
        _ => None,
    }
}

impl Compression {
    /// Why it cannot be read, if it cannot.
    pub(crate) fn unsupported(self) -> Option<String> {
        match self {
            Self::Gzip | Self::Zstd => None,
            Self::Unsupported(name) => {
                Some(format!("{name} is not supported; unpack it, or compress it with zstd or gzip instead"))
            }
        }
    }
}

/// The first bytes of what is compressed; none of an unsupported kind.
pub(crate) fn first_bytes(head: &[u8], compression: Compression, count: usize) -> Vec<u8> {
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
        Compression::Unsupported(_) => Ok(0),
    };
    bytes
}

/// Copies a file into the spool, unpacked if it is compressed.
///
/// # Errors
/// If the file is cut or damaged, of an unsupported kind or unpacks to too much, or the disk is full.
pub(crate) fn unpack(
    file: &SourceFile,
    compression: Option<Compression>,
    spool: &Arc<Spool>,
) -> Result<SourceFile, IngestError> {
    let limit = file.len().saturating_mul(MOST_RATIO).saturating_add(ALWAYS_ALLOWED);
    unpack_within(limit, file, compression, spool)
}

/// The same with a limit for the unpacked bytes.
pub(super) fn unpack_within(
    limit: u64,
    file: &SourceFile,
    compression: Option<Compression>,
    spool: &Arc<Spool>,
) -> Result<SourceFile, IngestError> {
    if let Some(reason) = compression.and_then(Compression::unsupported) {
        return Err(IngestError::layout(file.name(), reason));
    }
    spool.check_space(file.len())?;
    let reader = BufReader::with_capacity(1 << 20, Window::new(file)?.sequential());
    let mut reader = CountingReader { reader, position: 0 };
    let mut writer = spool.writer();
    let mut buffer = vec![0; 1 << 20];
    let mut copy = |decoder: &mut dyn Read| -> Result<(), Fault> {
        loop {
            let count = match decoder.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Fault::Read(error)),
            };
            if writer.len() + count as u64 > limit {
                return Err(Fault::TooLong);
            }
            writer.push(&buffer[..count]).map_err(Fault::Store)?;
        }
    };
    let copied = match compression {
        None => copy(&mut reader),
        Some(Compression::Gzip) => unpack_gzip(&mut reader, &mut copy),
        Some(Compression::Zstd) => zstd::Decoder::with_buffer(&mut reader)
            .map_err(Fault::Read)
            .and_then(|mut decoder| copy(&mut decoder)),
        Some(Compression::Unsupported(_)) => unreachable!("an error above"),
    };
    let position = reader.position;
    let wrong = |reason: String| IngestError::Tar { tar: file.name().to_owned(), offset: position, reason };
    match copied {
        Ok(()) if compression.is_some() => Ok(writer.finish(&format!("{} (unpacked)", file.name()))),
        Ok(()) => Ok(writer.finish(file.name())),
        Err(Fault::Store(error)) => Err(error.into()),
        Err(Fault::TooLong) => Err(wrong(format!(
            "unpacks to more than {limit} bytes, {MOST_RATIO} times its size and 1 GiB; \
             if that is right, unpack it yourself"
        ))),
        Err(Fault::Garbage) => Err(wrong("data after the end of the compressed stream".into())),
        Err(Fault::Read(error)) => match error.downcast::<StorageError>() {
            Ok(error) => Err(error.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(wrong("the compressed stream is cut; download or copy the file again".into()))
            }
            Err(error) => Err(wrong(format!(
                "the compressed stream is damaged ({error}); download or copy the file again"
            ))),
        },
    }
}

enum Fault {
    Read(io::Error),
    Store(StorageError),
    TooLong,
    Garbage,
}

/// Unpacks stream after stream. Zeros after the last are padding, as for gzip itself.
fn unpack_gzip(
    reader: &mut impl BufRead,
    copy: &mut impl FnMut(&mut dyn Read) -> Result<(), Fault>,
) -> Result<(), Fault> {
    loop {
        copy(&mut flate2::bufread::GzDecoder::new(&mut *reader))?;
        let next = reader.fill_buf().map_err(Fault::Read)?;
        if next.first().is_none_or(|&byte| byte == 0) {
            return skip_zeros(reader);
        }
        if next.first() != Some(&0x1F) {
            return Err(Fault::Garbage);
        }
    }
}

fn skip_zeros(reader: &mut impl BufRead) -> Result<(), Fault> {
    loop {
        let next = reader.fill_buf().map_err(Fault::Read)?;
        if next.is_empty() {
            return Ok(());
        }
        let zeros = next.iter().take_while(|&&byte| byte == 0).count();
        let all = zeros == next.len();
        reader.consume(zeros);
        if !all {
            return Err(Fault::Garbage);
        }
    }
}

/// Counts the bytes that were consumed.
struct CountingReader<R> {
    reader: R,
    position: u64,
}

impl<R: BufRead> Read for CountingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl<R: BufRead> BufRead for CountingReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.reader.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.position += count as u64;
        self.reader.consume(count);
    }
}
