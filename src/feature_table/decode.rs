//! Record batches of a file in memory: an Arrow IPC file or stream, or Parquet.
//!
//! Arrow messages are checked before arrow's decoder reads them: the decoder trusts offsets and lengths, and
//! a wrong one would end the process. Panics of the decoders over other damage become errors too.

use std::iter;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::convert::try_fb_to_schema;
use arrow::ipc::reader::{FileDecoder, read_footer_length};
use arrow::ipc::{Block, MessageHeader, MetadataVersion, root_as_footer, root_as_message};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::guard::guard;

/// Magic bytes at the start and end of an Arrow IPC file.
const ARROW: &[u8] = b"ARROW1";
/// Magic bytes at the start and end of a Parquet file.
const PARQUET: &[u8] = b"PAR1";
/// First bytes of a message in an Arrow IPC stream.
const CONTINUATION: [u8; 4] = [0xff; 4];
/// Bytes after the footer of an Arrow IPC file: its length and the magic bytes.
pub(super) const TRAILER_BYTES: usize = 10;
/// Largest compression factor that a buffer may claim; runs of zeros stay below it.
const COMPRESSION: u64 = 1 << 17;

/// Recognised file, with its columns.
pub(super) struct Contents {
    schema: SchemaRef,
    body: Body,
}

/// Record batches, or the error of one.
pub(super) type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

enum Body {
    /// Record batches and the dictionaries of their columns, each dictionary before the batches that need it.
    Arrow {
        bytes: Buffer,
        version: MetadataVersion,
        blocks: Vec<Block>,
    },
    Parquet(Bytes),
}

/// Contents of the footer of an Arrow IPC file.
pub(super) struct Footer {
    pub schema: Schema,
    version: MetadataVersion,
    /// Blocks of dictionaries, then of record batches.
    pub blocks: Vec<Block>,
}

impl Footer {
    /// Parses the footer's bytes, between the blocks and the trailer.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, ArrowError> {
        let footer = root_as_footer(bytes).map_err(|error| wrong(error.to_string()))?;
        let schema = try_fb_to_schema(footer.schema().ok_or_else(|| wrong("it has no schema"))?)?;
        let blocks = footer.dictionaries().into_iter().chain(footer.recordBatches()).flatten().copied();
        Ok(Self { schema, version: footer.version(), blocks: blocks.collect() })
    }
}

/// Converts panics to errors, as the readers of arrow and parquet panic on some damaged files.
fn guarded<T>(read: impl FnOnce() -> Result<T, ArrowError>) -> Result<T, ArrowError> {
    guard(read).unwrap_or_else(|_| Err(wrong("a column cannot be decoded")))
}

pub(super) fn wrong(reason: impl Into<String>) -> ArrowError {
    ArrowError::ParseError(reason.into())
}

impl Contents {
    /// Recognises the format of a file.
    pub(super) fn of(bytes: Bytes) -> Result<Self, ArrowError> {
        guarded(|| Self::recognise(bytes))
    }

    fn recognise(bytes: Bytes) -> Result<Self, ArrowError> {
        if bytes.starts_with(ARROW) {
            return Self::of_arrow_file(bytes);
        }
        if bytes.starts_with(PARQUET) {
            let builder = ParquetRecordBatchReaderBuilder::try_new(bytes.clone())?;
            return Ok(Self { schema: builder.schema().clone(), body: Body::Parquet(bytes) });
        }
        if bytes.starts_with(&CONTINUATION) {
            return Self::of_arrow_stream(bytes);
        }
        Err(wrong("expected an Arrow IPC file or stream, or a Parquet file"))
    }

    fn of_arrow_file(bytes: Bytes) -> Result<Self, ArrowError> {
        let cut = || wrong("it ends too early");
        let trailer_at = bytes.len().checked_sub(TRAILER_BYTES).ok_or_else(cut)?;
        let trailer = bytes[trailer_at..].first_chunk().ok_or_else(cut)?;
        let footer_at = trailer_at.checked_sub(read_footer_length(*trailer)?).ok_or_else(cut)?;
        let Footer { schema, version, blocks } = Footer::of(&bytes[footer_at..trailer_at])?;
        let body = Body::Arrow { bytes: Buffer::from(bytes), version, blocks };
        Ok(Self { schema: schema.into(), body })
    }

    /// Finds the messages of a stream.
    fn of_arrow_stream(bytes: Bytes) -> Result<Self, ArrowError> {
        const PREFIX: usize = 8;
        let cut = || wrong("it ends too early");
        let (mut schema, mut version) = (None, MetadataVersion::V5);
        let mut blocks = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let prefix = bytes.get(at..at + PREFIX).ok_or_else(cut)?;
            let (marker, length) = prefix.split_at(CONTINUATION.len());
            if marker != CONTINUATION {
                return Err(wrong("a message does not begin where the one before it ends"));
            }
            let length = i32::from_le_bytes(*length.first_chunk().ok_or_else(cut)?);
            let length = usize::try_from(length).map_err(|_| wrong("a message has a negative length"))?;
            if length == 0 {
                break;
            }
            let body_at =
                at.checked_add(PREFIX + length).filter(|end| *end <= bytes.len()).ok_or_else(cut)?;
            let message = &bytes[at + PREFIX..body_at];
            let message = root_as_message(message).map_err(|error| wrong(error.to_string()))?;
            let body_bytes = usize::try_from(message.bodyLength()).map_err(|_| cut())?;
            let end = body_at.checked_add(body_bytes).filter(|end| *end <= bytes.len()).ok_or_else(cut)?;
            match message.header_type() {
                MessageHeader::Schema => {
                    let header = message.header_as_schema().ok_or_else(|| wrong("it has no schema"))?;
                    (schema, version) = (Some(try_fb_to_schema(header)?), message.version());
                }
                MessageHeader::RecordBatch | MessageHeader::DictionaryBatch => {
                    let length = i32::try_from(body_at - at).map_err(|_| cut())?;
                    blocks.push(Block::new(at as i64, length, body_bytes as i64));
                }
                _ => {}
            }
            at = end;
        }
        let schema = schema.ok_or_else(|| wrong("it has no schema"))?;
        Ok(Self { schema: schema.into(), body: Body::Arrow { bytes: Buffer::from(bytes), version, blocks } })
    }

    /// Returns the columns and metadata of the whole file.
    pub(super) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Iterates over all batches, restricted to `columns`, which are in the order of the schema.
    pub(super) fn batches(self, columns: &[usize]) -> Result<Batches, ArrowError> {
        match self.body {
            Body::Arrow { bytes, version, blocks } => {
                let mut decoder = FileDecoder::new(self.schema, version).with_projection(columns.to_vec());
                let mut batch = move |block: &Block| {
                    let (message, is_dictionary) = checked_block(&bytes, block)?;
                    if is_dictionary {
                        return guarded(|| decoder.read_dictionary(block, &message)).map(|()| None);
                    }
                    guarded(|| decoder.read_record_batch(block, &message))
                };
                Ok(Box::new(blocks.into_iter().filter_map(move |block| batch(&block).transpose())))
            }
            Body::Parquet(bytes) => {
                let mut reader = guarded(|| {
                    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
                    let mask = ProjectionMask::roots(builder.parquet_schema(), columns.iter().copied());
                    Ok(builder.with_projection(mask).build()?)
                })?;
                Ok(Box::new(iter::from_fn(move || guarded(|| reader.next().transpose()).transpose())))
            }
        }
    }
}

/// Checks the offsets and lengths of a block. Returns its message and body, and whether it is a dictionary.
fn checked_block(bytes: &Buffer, block: &Block) -> Result<(Buffer, bool), ArrowError> {
    let size =
        |value: i64| usize::try_from(value).map_err(|_| wrong("a block has a negative offset or length"));
    let (at, head) = (size(block.offset())?, size(block.metaDataLength().into())?);
    let body = size(block.bodyLength())?;
    let length = head.checked_add(body);
    let end = length.and_then(|length| at.checked_add(length)).filter(|end| *end <= bytes.len());
    let (Some(length), Some(_)) = (length, end) else {
        return Err(wrong("a block reaches beyond the end of the file"));
    };
    let whole = bytes.slice_with_length(at, length);
    let prefix = if whole.starts_with(&CONTINUATION) { 8 } else { 4 };
    let message = whole.get(prefix..head).ok_or_else(|| wrong("a message is cut"))?;
    let message = root_as_message(message).map_err(|error| wrong(error.to_string()))?;
    let dictionary = message.header_as_dictionary_batch();
    let is_dictionary = dictionary.is_some();
    let batch = dictionary.map_or_else(|| message.header_as_record_batch(), |dictionary| dictionary.data());
    let batch = batch.ok_or_else(|| wrong("a block is not a record batch"))?;
    let body = &whole[head..];
    let is_compressed = batch.compression().is_some();
    let mut most_bytes = body.len() as u64;
    for buffer in batch.buffers().into_iter().flat_map(|buffers| buffers.iter()) {
        let range = u64::try_from(buffer.offset()).ok().zip(u64::try_from(buffer.length()).ok());
        let range = range.and_then(|(start, length)| Some(start..start.checked_add(length)?));
        let range = range.filter(|range| range.end <= body.len() as u64);
        let range = range.ok_or_else(|| wrong("a column reaches beyond its block"))?;
        let held = &body[range.start as usize..range.end as usize];
        if is_compressed && !held.is_empty() {
            let claimed = held.first_chunk().map(|length| i64::from_le_bytes(*length));
            let claimed = claimed.ok_or_else(|| wrong("a compressed column is cut"))?;
            if claimed > 0 && claimed as u64 / COMPRESSION > held.len() as u64 {
                return Err(wrong(format!("a column claims to hold {claimed} bytes")));
            }
            most_bytes = most_bytes.saturating_add(claimed.max(0) as u64);
        }
    }
    // A value takes at least one bit.
    let most_values = most_bytes.saturating_mul(8);
    let is_possible = |count: i64| u64::try_from(count).is_ok_and(|count| count <= most_values);
    let nodes = batch.nodes().into_iter().flat_map(|nodes| nodes.iter());
    let lengths = nodes.flat_map(|node| [node.length(), node.null_count()]);
    if !lengths.chain([batch.length()]).all(is_possible) {
        return Err(wrong("a batch claims to have more rows than its bytes can hold"));
    }
    Ok((whole, is_dictionary))
}
