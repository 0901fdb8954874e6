//! One listed tar, whatever dataset it holds.

use std::sync::Arc;

use bytes::Bytes;

use super::super::archive::{Index, Member, Skipped, SourceFile, Spool, read_index, unpack};
use super::super::names::is_image;
use super::super::records::{Container, Evidence, Fault, ImageBytes, Record, Records};
use super::webdataset;
use crate::ingest::IngestError;
use crate::storage::Location;

/// A member that holds words, not pixels, is not longer than this.
const MOST_TEXT_BYTES: u64 = 16 << 20;

/// A tar that was listed.
#[derive(Debug)]
pub(super) struct Tar {
    pub location: Location,
    /// Its name below the source.
    pub name: String,
    /// Its bytes: a copy, if it was compressed.
    pub file: SourceFile,
    pub index: Index,
}

impl Tar {
    /// Lists a tar. Of its json members only what may be a label is kept, `label_column` among it.
    pub(super) fn open(
        container: &Container,
        spool: &Arc<Spool>,
        label_column: Option<&str>,
    ) -> Result<Self, IngestError> {
        let file = SourceFile::open(&container.location)?;
        let file = match container.compression {
            None => file,
            compression => unpack(&file, compression, spool)?,
        };
        let mut index = read_index(&file, &webdataset::is_label)?;
        index.members.iter_mut().for_each(|member| webdataset::keep_labels(member, label_column));
        Ok(Self { location: container.location.clone(), name: container.name.clone(), file, index })
    }

    /// Reads a small member.
    pub(super) fn read(&self, member: &Member) -> Result<Bytes, IngestError> {
        if member.bytes > MOST_TEXT_BYTES {
            return Err(IngestError::layout(
                &self.location,
                format!("its member `{}` is too long", member.path),
            ));
        }
        Ok(self.file.read(&member.extent, member.bytes)?)
    }

    /// Adds its entries that cannot be taken.
    pub(super) fn push_skipped(&self, records: &mut Records<'_>, origin: u32) {
        push_skipped(records, origin, &self.index.others);
    }
}

/// Adds the entries of a tar that are not files.
pub(super) fn push_skipped(records: &mut Records<'_>, origin: u32, others: &[(String, Skipped)]) {
    for (path, skipped) in others {
        let fault = match skipped {
            Skipped::Directory => continue,
            Skipped::Replaced => {
                records.pass_over(&skipped.to_string(), path);
                continue;
            }
            Skipped::SymbolicLink => Fault::SymbolicLink,
            Skipped::HardLinkWithoutTarget(_) => Fault::DanglingHardLink,
            Skipped::NotUtf8 => Fault::NotUtf8,
            Skipped::LeadsOutside => Fault::LeadsOutside,
            Skipped::TooManyHoles(_) | Skipped::SparseFormat => Fault::Sparse,
            Skipped::Device | Skipped::Pipe | Skipped::Continuation | Skipped::UnknownType(_) => {
                Fault::NotAFile
            }
        };
        if is_image(path) {
            let path = path.as_str().into();
            let record = Record {
                origin,
                path,
                evidence: Evidence::Folders,
                split: None,
                place: ImageBytes::NONE,
                fault: Some(fault),
            };
            records.push(record);
        } else {
            records.pass_over(&skipped.to_string(), path);
        }
    }
}
