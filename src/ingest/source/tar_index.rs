//! The members of a tar: names, sizes and where their contents begin.
//!
//! Only headers are read; contents are fetched later by ranged reads. Links, devices and names that lead
//! outside of the tar are listed apart.

use std::io::{Read, Seek};

use super::webdataset::{self, LabelText};
use super::window::Window;
use crate::ingest::IngestError;

/// A tar's unit of length.
const BLOCK: u64 = 512;
/// A label is not longer than this; what is longer is something else.
const MOST_LABEL_BYTES: u64 = 1 << 20;

/// A file within a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) offset: u64,
    /// What it says, if its name is that of a label.
    pub(super) label: Option<LabelText>,
}

/// What a tar holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) members: Vec<Member>,
    /// What is not taken, with the reason.
    pub(super) others: Vec<(String, &'static str)>,
}

/// Whether these first bytes are those of a tar: a header's checksum is right.
pub(super) fn looks_like_tar(head: &[u8]) -> bool {
    let Some(header) = head.get(..BLOCK as usize) else { return false };
    let field = &header[148..156];
    let digits: String = field
        .iter()
        .map(|&byte| char::from(byte))
        .skip_while(|&c| c == ' ')
        .take_while(char::is_ascii_digit)
        .collect();
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    let own: u32 = field.iter().map(|&byte| u32::from(byte)).sum();
    header[0] != 0 && u32::from_str_radix(&digits, 8) == Ok(sum - own + 8 * u32::from(b' '))
}

/// Reads all headers of a tar in a file.
pub(super) fn read(name: &str, window: Window) -> Result<Index, IngestError> {
    let len = window.len();
    read_headers(name, window, len)
}

/// Reads all headers. Offsets count from the reader's beginning.
///
/// # Errors
/// If it is cut or damaged.
pub(super) fn read_headers(name: &str, reader: impl Read + Seek, len: u64) -> Result<Index, IngestError> {
    let wrong = |offset: u64, reason: String| IngestError::Tar { tar: name.to_owned(), offset, reason };
    let mut archive = tar::Archive::new(reader);
    let entries = archive.entries_with_seek().map_err(|error| wrong(0, error.to_string()))?;
    let (mut index, mut end) = (Index::default(), 0);
    for entry in entries {
        let mut entry = entry.map_err(|error| wrong(end, format!("it is cut or damaged ({error})")))?;
        let (offset, bytes) = (entry.raw_file_position(), entry.size());
        end = offset.saturating_add(bytes);
        let path = entry.path_bytes().into_owned();
        if end > len {
            let name = String::from_utf8_lossy(&path);
            let reason = format!("it is cut inside of {name:?}: {len} bytes are there, {end} needed");
            return Err(wrong(offset, reason));
        }
        let kind = entry.header().entry_type();
        match safe_path(&path) {
            Ok(path) if kind.is_file() => {
                let label = if bytes <= MOST_LABEL_BYTES && webdataset::is_label(&path) {
                    let mut text = Vec::new();
                    entry.read_to_end(&mut text).map_err(|error| wrong(offset, error.to_string()))?;
                    Some(webdataset::read_label(&path, &text))
                } else {
                    None
                };
                index.members.push(Member { path, bytes, offset, label });
            }
            _ if kind.is_dir() => {}
            Ok(path) => index.others.push((path, "not a file")),
            Err(reason) => index.others.push((String::from_utf8_lossy(&path).into_owned(), reason)),
        }
    }
    if end == 0 && index.members.is_empty() && len < 2 * BLOCK {
        return Err(wrong(0, "it has no members".into()));
    }
    // Two blocks of zeros end a tar; without them it may have been cut between two members.
    if len < end.next_multiple_of(BLOCK).saturating_add(BLOCK) {
        return Err(wrong(end, "it is cut: its end is missing".into()));
    }
    // A member that occurs again replaces the earlier one, as unpacking would.
    let mut last = std::collections::HashMap::new();
    for (place, member) in index.members.iter().enumerate() {
        last.insert(member.path.clone(), place);
    }
    if last.len() < index.members.len() {
        let mut place = 0;
        index.members.retain(|member| {
            place += 1;
            last[&member.path] == place - 1
        });
    }
    Ok(index)
}

/// The member's path without `./`, if it is text and stays inside of the tar.
fn safe_path(bytes: &[u8]) -> Result<String, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "its name is not UTF-8")?;
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if text.starts_with('/') || parts.contains(&"..") || parts.is_empty() {
        return Err("its name leads outside of the tar");
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tar_is_known_by_its_checksum() {
        let mut header = tar::Header::new_old();
        header.set_path("a.jpg").expect("a path");
        header.set_size(5);
        header.set_cksum();
        assert!(looks_like_tar(header.as_bytes()));
        assert!(!looks_like_tar(&[0; 512]));
        assert!(!looks_like_tar(&header.as_bytes()[..511]));
        let mut other = *header.as_bytes();
        other[3] ^= 1;
        assert!(!looks_like_tar(&other));
    }
}
