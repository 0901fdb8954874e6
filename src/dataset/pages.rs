//! The pages of a row group: where its images are, without a copy.
//!
//! The columns are PLAIN and uncompressed, so the file holds an image's bytes as they are, after a length of four bytes:
//! a reader with the offset can read one image alone.

use std::io::Cursor;
use std::sync::Arc;

use bytes::Bytes;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::basic::Encoding;
use parquet::column::page::{Page, PageReader};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use super::schema::IMAGE_BYTES;

/// Bytes of the length before each image.
const LENGTH_BYTES: usize = 4;

/// The images of a row group, each a slice of `part`.
///
/// # Errors
/// If an image is missing, or the pages are not those of a dataset.
pub(super) fn images(
    metadata: &ArrowReaderMetadata,
    row_group: usize,
    part: &FilePart,
) -> Result<Vec<Bytes>, ParquetError> {
    let group = metadata.metadata().row_group(row_group);
    let wrong = |reason: &str| ParquetError::General(reason.into());
    let rows = usize::try_from(group.num_rows()).map_err(|_| wrong("it has a negative number of rows"))?;
    // Each image has its length before it.
    if rows > part.bytes.len() / LENGTH_BYTES {
        return Err(wrong("it claims more rows than its bytes can hold"));
    }
    let column = group.column(IMAGE_BYTES);
    let mut pages = SerializedPageReader::new(Arc::new(part.clone()), column, rows, None)?;
    let mut images = Vec::with_capacity(rows);
    while let Some(page) = pages.get_next_page()? {
        let Page::DataPage { buf, num_values, encoding: Encoding::PLAIN, .. } = page else {
            return Err(wrong("its images are not in plain pages"));
        };
        let values = values(&buf).ok_or_else(|| wrong("a page of images is cut"))?;
        let before = images.len();
        split(values, &mut images).ok_or_else(|| wrong("an image reaches beyond its page"))?;
        if images.len() - before != num_values as usize {
            return Err(wrong("a value is missing"));
        }
    }
    if images.len() != rows {
        return Err(wrong("it has more or fewer images than rows"));
    }
    Ok(images)
}

/// What follows the definition levels, which a page of version 1 begins with.
fn values(page: &Bytes) -> Option<Bytes> {
    let levels = u32::from_le_bytes(page.get(..4)?.try_into().ok()?) as usize;
    let start = levels.checked_add(4).filter(|&start| start <= page.len())?;
    Some(page.slice(start..))
}

/// Splits PLAIN byte arrays, each after its length.
fn split(mut values: Bytes, images: &mut Vec<Bytes>) -> Option<()> {
    while !values.is_empty() {
        let len = u32::from_le_bytes(values.get(..4)?.try_into().ok()?) as usize;
        let end = len.checked_add(4).filter(|&end| end <= values.len())?;
        images.push(values.slice(4..end));
        values = values.slice(end..);
    }
    Some(())
}

/// A part of a file that stands for the whole: reads outside of it are errors.
#[derive(Clone)]
pub(super) struct FilePart {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) bytes: Bytes,
}

impl FilePart {
    fn slice(&self, start: u64, len: usize) -> parquet::errors::Result<Bytes> {
        let outside = || ParquetError::General("it points outside of its row group".into());
        let from =
            usize::try_from(start.checked_sub(self.start).ok_or_else(outside)?).map_err(|_| outside())?;
        let to = from.checked_add(len).filter(|&to| to <= self.bytes.len()).ok_or_else(outside)?;
        Ok(self.bytes.slice(from..to))
    }
}

impl Length for FilePart {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for FilePart {
    type T = Cursor<Bytes>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        let rest = self.bytes.len() as u64 - start.saturating_sub(self.start).min(self.bytes.len() as u64);
        Ok(Cursor::new(self.slice(start, rest as usize)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.slice(start, length)
    }
}
