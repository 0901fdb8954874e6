//! The binary archives of CIFAR-10 and CIFAR-100.
//!
//! A record is one label byte (CIFAR-100: coarse, then fine) and three planes of 32×32 bytes, red first. A
//! picture becomes a PNG, which loses nothing.

use bytes::Bytes;

use super::archive::Member;
use super::collect::{Collector, Label, Place};
use super::names::file_name;
use super::tars::Tar;
use super::wrong;
use crate::ingest::IngestError;
use crate::picture::{Picture, encode_png};

/// The side of a picture in pixels.
const SIDE: usize = 32;
/// Bytes of a picture.
const PIXEL_BYTES: u64 = 3 * (SIDE * SIDE) as u64;

/// A file of records.
struct Records {
    split: &'static str,
    /// Bytes before the pixels; the last of them is the label.
    labels: u64,
    /// The file with the names of the classes.
    names: &'static str,
}

/// What the file's name says, by the authors' description of the archives.
fn records(name: &str) -> Option<Records> {
    let ten = |split| Some(Records { split, labels: 1, names: "batches.meta.txt" });
    let hundred = |split| Some(Records { split, labels: 2, names: "fine_label_names.txt" });
    match name {
        "test_batch.bin" => ten("test"),
        "train.bin" => hundred("train"),
        "test.bin" => hundred("test"),
        name if name.starts_with("data_batch_") && name.ends_with(".bin") => ten("train"),
        _ => None,
    }
}

/// Whether a tar holds files of records.
pub(super) fn is_archive(tar: &Tar) -> bool {
    tar.index.members.iter().any(|member| records(file_name(&member.path)).is_some())
}

/// Adds all records, under the numbers that they have in the archive.
pub(super) fn collect(collector: &mut Collector<'_>, tars: &mut [Tar]) -> Result<(), IngestError> {
    for tar in tars {
        let members: Vec<Member> = tar.index.members.clone();
        let mut names_file = "";
        let mut batches = Vec::new();
        for member in &members {
            let name = file_name(&member.path);
            let Some(records) = records(name) else { continue };
            let record_bytes = records.labels + PIXEL_BYTES;
            if member.bytes == 0 || !member.bytes.is_multiple_of(record_bytes) {
                let reason = format!("{} is no whole number of {record_bytes}-byte records", member.path);
                return Err(wrong(&tar.location, reason));
            }
            names_file = records.names;
            let labels = read_labels(tar, member, &records)?;
            batches.push((member, records, labels));
        }
        let names = members.iter().find(|member| file_name(&member.path) == names_file);
        if let Some(member) = names {
            let text = String::from_utf8_lossy(&tar.read(member)?).into_owned();
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            collector.give_names(lines.map(str::to_owned).collect());
        }
        let container = tar.keep_records(collector)?;
        for (member, records, labels) in batches {
            if !collector.wants(records.split) {
                continue;
            }
            let stem = file_name(&member.path).trim_end_matches(".bin");
            for (row, label) in (0_u64..).zip(labels) {
                let start = row * (records.labels + PIXEL_BYTES) + records.labels;
                let extent = member.extent.slice(start..start + PIXEL_BYTES);
                let place = Place { container, extent, bytes: PIXEL_BYTES };
                let path = format!("{label}/{stem}-{row:05}.png");
                collector.add(records.split, &path, Label::Number(u64::from(label)), place)?;
            }
        }
    }
    Ok(())
}

fn read_labels(tar: &Tar, member: &Member, records: &Records) -> Result<Vec<u8>, IngestError> {
    // A piece of the member at a time: the whole of CIFAR-100's training file is 150 MB.
    const RECORDS_AT_ONCE: u64 = 1000;
    let record_bytes = records.labels + PIXEL_BYTES;
    let mut labels = Vec::new();
    let mut at = 0;
    while at < member.bytes {
        let bytes = (RECORDS_AT_ONCE * record_bytes).min(member.bytes - at);
        let extent = member.extent.slice(at..at + bytes);
        let piece = Member { path: member.path.clone(), bytes, extent, text: None };
        let read = tar.read(&piece)?;
        labels.extend(
            read.chunks_exact(record_bytes as usize).map(|record| record[records.labels as usize - 1]),
        );
        at += bytes;
    }
    Ok(labels)
}

/// The pixels of a record as a PNG.
pub(super) fn png(planes: &[u8]) -> Bytes {
    let side = SIDE as u32;
    let plane = SIDE * SIDE;
    let rgb = (0..plane).flat_map(|at| [planes[at], planes[plane + at], planes[2 * plane + at]]).collect();
    encode_png(&Picture { width: side, height: side, rgb }).expect("a small picture fits in memory").into()
}
