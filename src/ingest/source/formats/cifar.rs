//! The binary archives of CIFAR-10 and CIFAR-100.
//!
//! A record is one label byte (CIFAR-100: coarse, then fine) and three planes of 32×32 bytes, red first. Images are
//! converted to PNG, which is lossless.

use bytes::Bytes;

use super::super::archive::Member;
use super::super::names::file_name;
use super::super::records::{ClassNames, Evidence, ImageBytes, Naming, Record, Records};
use super::Tar;
use crate::image::{DecodedImage, encode_png};
use crate::ingest::IngestError;

/// Side of an image in pixels.
const SIDE: usize = 32;
/// Size of an image in bytes.
const PIXEL_BYTES: u64 = 3 * (SIDE * SIDE) as u64;

/// A file of records.
struct Batch {
    split: &'static str,
    /// Number of bytes before the pixels; the last of them is the label.
    labels: u64,
    /// Name of the file with the names of the classes.
    names: &'static str,
}

/// Returns the file's properties from its name, by the authors' description of the archives.
fn batch(name: &str) -> Option<Batch> {
    let ten = |split| Some(Batch { split, labels: 1, names: "batches.meta.txt" });
    let hundred = |split| Some(Batch { split, labels: 2, names: "fine_label_names.txt" });
    match name {
        "test_batch.bin" => ten("test"),
        "train.bin" => hundred("train"),
        "test.bin" => hundred("test"),
        name if name.starts_with("data_batch_") && name.ends_with(".bin") => ten("train"),
        _ => None,
    }
}

/// Returns whether a tar contains files of records.
pub(super) fn is_archive(tar: &Tar) -> bool {
    tar.index.members.iter().any(|member| batch(file_name(&member.path)).is_some())
}

/// Returns whether a tar is the version for Python, whose pickles are not read.
pub(super) fn is_pickled(tar: &Tar) -> bool {
    tar.index.members.iter().any(|member| member.path.starts_with("cifar-10") && member.path.contains("-py/"))
}

/// Adds all records, numbered as in the archive.
pub(super) fn collect(records: &mut Records<'_>, tars: &[Tar]) -> Result<(), IngestError> {
    records.naming = Naming::ByLabel;
    for tar in tars {
        let origin = records.add_origin(&tar.name);
        let container = records.containers.add_records(tar.file.clone(), png);
        for member in &tar.index.members {
            let name = file_name(&member.path);
            let Some(batch) = batch(name) else { continue };
            let record_bytes = batch.labels + PIXEL_BYTES;
            if member.bytes == 0 || !member.bytes.is_multiple_of(record_bytes) {
                let reason =
                    format!("`{}` is not a whole number of {record_bytes}-byte records", member.path);
                return Err(IngestError::layout(&tar.location, reason));
            }
            let names = tar.index.members.iter().find(|member| file_name(&member.path) == batch.names);
            if let (Some(names), None) = (names, &records.class_names) {
                let text = String::from_utf8_lossy(&tar.read(names)?).into_owned();
                let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
                let origin = format!("`{}`", names.path);
                records.class_names = Some(ClassNames { names: lines.map(str::to_owned).collect(), origin });
            }
            let split = Some(records.word(batch.split));
            let stem = name.trim_end_matches(".bin");
            for (row, label) in (0_u64..).zip(read_labels(tar, member, &batch)?) {
                let offset = row * record_bytes + batch.labels;
                let extent = member.extent.slice(offset..offset + PIXEL_BYTES);
                let place = ImageBytes { container, extent, bytes: PIXEL_BYTES };
                let evidence = Evidence::Text(records.word(&label.to_string()));
                let path = format!("{stem}-{row:05}.png");
                records.push(Record { split, ..Record::new(origin, path, evidence, place) });
            }
        }
    }
    Ok(())
}

fn read_labels(tar: &Tar, member: &Member, batch: &Batch) -> Result<Vec<u8>, IngestError> {
    // Read in pieces, since all of CIFAR-100's training file is 150 MB.
    const RECORDS_AT_ONCE: u64 = 1000;
    let record_bytes = batch.labels + PIXEL_BYTES;
    let mut labels = Vec::new();
    let mut at = 0;
    while at < member.bytes {
        let bytes = (RECORDS_AT_ONCE * record_bytes).min(member.bytes - at);
        let extent = member.extent.slice(at..at + bytes);
        let read = tar.file.read(&extent, bytes)?;
        labels
            .extend(read.chunks_exact(record_bytes as usize).map(|record| record[batch.labels as usize - 1]));
        at += bytes;
    }
    Ok(labels)
}

/// Encodes the pixels of a record as a PNG.
fn png(planes: Bytes) -> Bytes {
    let side = SIDE as u32;
    let plane = SIDE * SIDE;
    let rgb = (0..plane).flat_map(|at| [planes[at], planes[plane + at], planes[2 * plane + at]]).collect();
    encode_png(&DecodedImage { width: side, height: side, rgb }).expect("a small image fits in memory").into()
}
