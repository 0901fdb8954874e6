//! Vectors of several layers: encoded by batch, kept by row, and written in the order of the ids.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use tch::Tensor;

use super::{EmbedError, EmbedJob, for_each_batch, layer_meta, to_host};
use crate::distributed::ProcessGroup;
use crate::eval::distributed::gather_numbers;
use crate::feature_table::{Dtype, RowColumns, TableMeta, TableWriter};
use crate::ids::{ClassId, InstanceId, RankShare};
use crate::loader::Source;
use crate::model::{Encoder, FeatureLayer};
use crate::progress::Progress;
use crate::storage::Location;
use crate::units::ByteSize;

/// Vectors of this process's rows, by layer; no layers in a process without rows.
pub(super) struct EncodedRows {
    /// Size of all vectors, in bytes.
    bytes: u64,
    layers: Vec<EncodedLayer>,
}

struct EncodedLayer {
    dim: usize,
    dtype: Dtype,
    vectors: Scratch,
}

fn scratch_error(bytes: u64, source: io::Error) -> EmbedError {
    EmbedError::Scratch { folder: std::env::temp_dir().display().to_string(), bytes, source }
}

/// Encodes each image of a source once, and checks that all numbers are finite in the type of the table.
pub(super) fn encode_rows(
    job: &EmbedJob,
    encoder: &Encoder,
    source: Arc<dyn Source>,
    layers: &[FeatureLayer],
    progress: &dyn Progress,
) -> Result<EncodedRows, EmbedError> {
    let rows = source.len();
    let mut encoded = EncodedRows { bytes: 0, layers: Vec::new() };
    progress.begin("embed", rows as u64);
    for_each_batch(encoder, source, (job.batch_size, job.threads), progress, |batch, images| {
        let features = encoder.features(images, layers)?;
        if encoded.layers.is_empty() {
            let dims: Vec<usize> = features.iter().map(|features| features.size()[1] as usize).collect();
            encoded = room_for(job, rows, &dims, progress)?;
        }
        for ((layer, features), encoded_layer) in layers.iter().zip(features).zip(&mut encoded.layers) {
            let EncodedLayer { dim, dtype, vectors } = encoded_layer;
            let numbers = to_host(&features);
            // Batches follow the order of the shards, not of the ids.
            let places = batch.ids.iter().zip(&batch.bank_rows);
            for ((id, row), vector) in places.zip(numbers.chunks_exact(*dim)) {
                let largest = vector.iter().fold(0.0_f32, |largest, x| {
                    if x.is_finite() { largest.max(x.abs()) } else { f32::INFINITY }
                });
                if largest.is_infinite() {
                    let checkpoint = job.checkpoint.folder().to_string();
                    return Err(EmbedError::NotFinite { checkpoint, instance: id.0 });
                }
                if *dtype == Dtype::F16 && half::f16::from_f32(largest).is_infinite() {
                    return Err(EmbedError::BeyondF16 { layer: *layer, instance: id.0 });
                }
                let kept = vectors.put(row.row(), &dtype.encode(vector));
                kept.map_err(|source| scratch_error(encoded.bytes, source))?;
            }
        }
        Ok(())
    })?;
    progress.finish();
    Ok(encoded)
}

/// Reserves space for the vectors of some layers.
fn room_for(
    job: &EmbedJob,
    rows: usize,
    dims: &[usize],
    progress: &dyn Progress,
) -> Result<EncodedRows, EmbedError> {
    let dtype = |dim: usize| job.dtype.unwrap_or_else(|| Dtype::usual(dim));
    let bytes: u64 = dims.iter().map(|&dim| (rows * dim * dtype(dim).bytes()) as u64).sum();
    let in_memory = bytes <= job.memory_limit;
    if !in_memory {
        let (folder, limit) = (std::env::temp_dir(), ByteSize(job.memory_limit));
        progress.note(&format!(
            "the features take {bytes} bytes, above the memory limit of {limit}: until they are written they are in a \
             temporary file in {}",
            folder.display()
        ));
    }
    let long = dims.iter().filter(|&&dim| job.dtype.is_none() && dtype(dim) == Dtype::F16);
    if let Some(dim) = long.max() {
        let longest = Dtype::LONGEST_F32;
        progress.note(&format!(
            "vectors of more than {longest} numbers, here up to {dim}, are written as float16; embed --dtype f32 keeps \
             all digits"
        ));
    }
    let layer = |&dim: &usize| {
        let dtype = dtype(dim);
        let vectors = Scratch::new(rows, dim * dtype.bytes(), in_memory)?;
        Ok(EncodedLayer { dim, dtype, vectors })
    };
    let layers: io::Result<Vec<_>> = dims.iter().map(layer).collect();
    Ok(EncodedRows { bytes, layers: layers.map_err(|source| scratch_error(bytes, source))? })
}

/// Writes the rows of all processes, in the order of the ids, to a table for each layer. Rank 0 gets the
/// tables, not yet published.
pub(super) fn write_tables(
    job: &EmbedJob,
    encoder: &Encoder,
    encoded: &EncodedRows,
    (ids, labels): (&[InstanceId], &[Option<ClassId>]),
    outputs: &[&(FeatureLayer, Location)],
    group: &ProcessGroup,
    progress: &dyn Progress,
) -> Result<Vec<TableWriter>, EmbedError> {
    // A process without rows has seen no feature, and does not know the features' length.
    let own: Vec<usize> = encoded.layers.iter().map(|layer| layer.dim).collect();
    let dims = gather_numbers(group, &own)?.into_iter().find(|dims| !dims.is_empty()).unwrap_or_default();
    let mut tables = Vec::new();
    progress.begin("write", (outputs.len() * ids.len()) as u64);
    for (at, (layer, location)) in outputs.iter().enumerate() {
        let dim = dims.get(at).copied().unwrap_or(encoder.config().dim);
        let dtype = job.dtype.unwrap_or_else(|| Dtype::usual(dim));
        let meta = TableMeta { dim, ..layer_meta(&job.meta(), encoder, *layer) };
        let mut table = None;
        if group.is_first() {
            table = Some(TableWriter::start(location, &meta, dtype)?);
        }
        let at_once = TableWriter::batch_rows(dim, dtype);
        for start in (0..ids.len()).step_by(at_once) {
            let rows = start..(start + at_once).min(ids.len());
            let values = batch_of_ranks(encoded, at, (ids.len(), rows.clone()), dim * dtype.bytes(), group)?;
            if let Some(table) = &mut table {
                let columns = RowColumns {
                    ids: &ids[rows.clone()],
                    labels: &labels[rows.clone()],
                    updated_steps: &vec![None; rows.len()],
                };
                table.append(columns, values)?;
            }
            progress.advance(rows.len() as u64);
        }
        tables.extend(table);
    }
    progress.finish();
    Ok(tables)
}

/// Returns a range of a layer's `all` rows, on rank 0; the ranks that have them send them in turn.
fn batch_of_ranks(
    encoded: &EncodedRows,
    layer: usize,
    (all, rows): (usize, Range<usize>),
    row_bytes: usize,
    group: &ProcessGroup,
) -> Result<Vec<u8>, EmbedError> {
    let mut values = vec![0; if group.is_first() { rows.len() * row_bytes } else { 0 }];
    for rank in 0..group.world() {
        let share = RankShare { rank, ranks: group.world() }.of(all);
        let (start, end) = (share.start.max(rows.start), share.end.min(rows.end));
        if start >= end {
            continue;
        }
        let own = |into: &mut [u8]| {
            let read = encoded.layers[layer].vectors.read(start - share.start..end - share.start, into);
            read.map_err(|source| scratch_error(encoded.bytes, source))
        };
        let place = (start - rows.start) * row_bytes..(end - rows.start) * row_bytes;
        if rank == 0 {
            if group.is_first() {
                own(&mut values[place])?;
            }
            continue;
        }
        let mut sent = vec![0; place.len()];
        if rank == group.rank() {
            own(&mut sent)?;
        }
        let travelling = Tensor::from_slice(&sent);
        group.broadcast(std::slice::from_ref(&travelling), rank)?;
        if group.is_first() {
            travelling.copy_data(&mut values[place.clone()], place.len());
        }
    }
    Ok(values)
}

/// Storage of `[rows]` vectors as bytes, all of the same length, written in any order and read in row order.
///
/// The vectors are in memory, or in a file in the folder for temporary files (`TMPDIR`). The file has no name, so
/// nothing remains of it, however the process ends.
#[derive(Debug)]
struct Scratch {
    row_bytes: usize,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Memory(Vec<u8>),
    File(File),
}

impl Scratch {
    /// Reserves space for rows of this length.
    ///
    /// # Errors
    /// If the disk has too little space.
    fn new(rows: usize, row_bytes: usize, in_memory: bool) -> io::Result<Self> {
        let held = if in_memory {
            Held::Memory(vec![0; rows * row_bytes])
        } else {
            let file = tempfile::tempfile()?;
            let bytes = (rows * row_bytes) as u64;
            // Detects a full disk now, not after hours. Some file systems cannot reserve.
            match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
                Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes)?,
                reserved => reserved?,
            }
            Held::File(file)
        };
        Ok(Self { row_bytes, held })
    }

    /// Stores the vector of a row.
    ///
    /// # Errors
    /// If the vector cannot be written.
    fn put(&mut self, row: usize, vector: &[u8]) -> io::Result<()> {
        assert_eq!(vector.len(), self.row_bytes, "rows are of one length");
        let start = row * self.row_bytes;
        match &mut self.held {
            Held::Memory(bytes) => bytes[start..start + self.row_bytes].copy_from_slice(vector),
            Held::File(file) => file.write_all_at(vector, start as u64)?,
        }
        Ok(())
    }

    /// Reads the vectors of a range of rows.
    ///
    /// # Errors
    /// If the vectors cannot be read.
    fn read(&self, rows: Range<usize>, into: &mut [u8]) -> io::Result<()> {
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
        // More than any file system accepts.
        Scratch::new(1 << 40, 1 << 22, false).expect_err("no room");
    }
}
