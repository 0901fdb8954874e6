//! The records of pax's extended headers.

use super::header::decimal;

/// The records of extended headers that matter.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) sparse: Option<SparseRecords>,
    /// star's own way to say that a file is sparse.
    pub(super) is_star_sparse: bool,
}

/// What GNU tar writes of a sparse file, in its formats 0.0, 0.1 and 1.0.
#[derive(Clone, Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) count: Option<u64>,
    pub(super) map: Vec<(u64, u64)>,
    /// An offset whose length has not come yet.
    pub(super) offset: Option<u64>,
}

impl Records {
    /// Takes the records of one extended header; `None` if one is malformed.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Option<()> {
        for (key, value) in pax_records(bytes)? {
            // An empty value takes back an earlier one.
            let text = || (!value.is_empty()).then(|| value.to_vec());
            match key {
                b"path" => self.path = text(),
                b"linkpath" => self.link_path = text(),
                b"size" if value.is_empty() => self.size = None,
                b"size" => self.size = Some(decimal(value)?),
                b"SCHILY.filetype" => self.is_star_sparse = value == b"sparse",
                _ => {
                    if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        self.sparse.get_or_insert_default().take(key, value)?;
                    }
                }
            }
        }
        Some(())
    }
}

impl SparseRecords {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"numblocks" => self.count = Some(decimal(value)?),
            b"offset" => self.offset = Some(decimal(value)?),
            b"numbytes" => self.map.push((self.offset.take()?, decimal(value)?)),
            b"map" if value.is_empty() => {}
            b"map" => {
                let numbers: Option<Vec<u64>> = value.split(|&byte| byte == b',').map(decimal).collect();
                let numbers = numbers?;
                if !numbers.len().is_multiple_of(2) {
                    return None;
                }
                self.map.extend(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => {}
        }
        Some(())
    }
}

/// Takes the records of a header for all members that follow; `None` if it is malformed. Programs write comments
/// and times there. A name or a size for all members at once is not a tar that a program wrote.
pub(super) fn check_global(bytes: &[u8]) -> Option<()> {
    let sets_members = |key: &[u8]| {
        matches!(key, b"path" | b"linkpath" | b"size" | b"SCHILY.filetype") || key.starts_with(b"GNU.sparse.")
    };
    pax_records(bytes)?.iter().all(|(key, _)| !sets_members(key)).then_some(())
}

/// The records of an extended header, `length key=value` each; `None` if one is malformed.
fn pax_records(mut bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while bytes.iter().any(|&byte| byte != 0) {
        let blank = bytes.iter().take(20).position(|&byte| byte == b' ')?;
        let length: usize = decimal(&bytes[..blank])?.try_into().ok()?;
        let record = bytes.get(blank + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        records.push((&record[..equals], &record[equals + 1..]));
        bytes = &bytes[length..];
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_are_counted_not_split() {
        let records = pax_records(b"12 path=a\nb\n9 size=7\n\0\0").expect("records");
        assert_eq!(records, [(&b"path"[..], &b"a\nb"[..]), (b"size", b"7")]);
        for malformed in [
            &b"12 path=a\n"[..],
            b"6 path\n",
            b"0 a=b\n",
            b"99999999999999999999 a=b\n",
            b"x",
            b"3 \n",
            b"5 a=b\n",
        ] {
            assert_eq!(pax_records(malformed), None, "{}", malformed.escape_ascii());
        }
    }
}
