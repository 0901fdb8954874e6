//! As much of MATLAB's file format (level 5) as `meta.mat` of the development kit needs.
//!
//! # Source
//! MathWorks, "MAT-File Format", the chapter on level 5: tagged elements, small ones packed into the tag,
//! arrays as nested elements, a compressed element around each variable.

use std::io::Read;

/// Bytes of the file's header.
const HEADER_BYTES: usize = 128;
/// What the compressed elements together may unpack to.
const MOST_BYTES: u64 = 64 << 20;
/// Structs of the array; the real one has 1676.
const MOST_STRUCTS: usize = 1 << 20;

const INT8: u32 = 1;
const UINT8: u32 = 2;
const INT16: u32 = 3;
const UINT16: u32 = 4;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const SINGLE: u32 = 7;
const DOUBLE: u32 = 9;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
const UTF8: u32 = 16;
const UTF16: u32 = 17;
const STRUCT_CLASS: u8 = 2;

/// A synset of ILSVRC2012.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Synset {
    /// Its number in the challenge.
    pub id: u32,
    /// Its WordNet id.
    pub wnid: String,
    /// The number of synsets below it; the classes have none.
    pub children: u32,
}

/// Reads the variable `synsets`.
///
/// # Errors
/// The reason, if the file is damaged or holds something else.
pub(crate) fn read_synsets(file: &[u8]) -> Result<Vec<Synset>, String> {
    if file.len() < HEADER_BYTES || !file.starts_with(b"MATLAB 5.0 MAT-file") {
        return Err("it is not a MATLAB file of level 5".into());
    }
    if file[126..128] != *b"IM" {
        return Err("its byte order is not little-endian".into());
    }
    let mut rest = &file[HEADER_BYTES..];
    let mut left = MOST_BYTES;
    while !rest.is_empty() {
        let (kind, data) = element(&mut rest)?;
        let unpacked;
        let matrix = if kind == COMPRESSED {
            let mut bytes = Vec::new();
            let mut decoder = flate2::read::ZlibDecoder::new(data).take(left + 1);
            decoder.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
            let too_much = || format!("it unpacks to more than {} MiB", MOST_BYTES >> 20);
            left = left.checked_sub(bytes.len() as u64).ok_or_else(too_much)?;
            unpacked = bytes;
            let (kind, data) = element(&mut unpacked.as_slice())?;
            (kind == MATRIX).then_some(data)
        } else {
            (kind == MATRIX).then_some(data)
        };
        if let Some(synsets) = matrix.map(synsets).transpose()?.flatten() {
            return Ok(synsets);
        }
    }
    Err("it has no variable synsets".into())
}

/// Takes the next element: its type and its data.
fn element<'a>(rest: &mut &'a [u8]) -> Result<(u32, &'a [u8]), String> {
    let cut = || "it is cut".to_owned();
    let word = |at: usize| {
        rest.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    };
    let first = word(0).ok_or_else(cut)?;
    if first >> 16 != 0 {
        // A small element: its length is in the upper half of the first word, its data in the second.
        let length = (first >> 16) as usize;
        let data = rest.get(4..4 + length).filter(|_| length <= 4).ok_or_else(cut)?;
        *rest = rest.get(8..).ok_or_else(cut)?;
        return Ok((first & 0xFFFF, data));
    }
    let length = word(4).ok_or_else(cut)? as usize;
    let end = length.checked_add(8).ok_or_else(cut)?;
    let data = rest.get(8..end).ok_or_else(cut)?;
    // Compressed elements are not padded, and the last element may lack its padding.
    let next = if first == COMPRESSED { end } else { end.next_multiple_of(8) };
    *rest = rest.get(next..).unwrap_or_default();
    Ok((first, data))
}

/// The synsets, if the array is a struct array of that name.
fn synsets(mut matrix: &[u8]) -> Result<Option<Vec<Synset>>, String> {
    let (_, flags) = element(&mut matrix)?;
    let (_, dimensions) = element(&mut matrix)?;
    let (_, name) = element(&mut matrix)?;
    if flags.first() != Some(&STRUCT_CLASS) || name != b"synsets" {
        return Ok(None);
    }
    let mut sides =
        dimensions.chunks_exact(4).map(|side| i32::from_le_bytes(side.try_into().expect("four bytes")));
    let count = sides.try_fold(1_usize, |count, side| count.checked_mul(usize::try_from(side).ok()?));
    let count = count.filter(|&count| count <= MOST_STRUCTS).ok_or("its size makes no sense")?;
    let (_, length) = element(&mut matrix)?;
    let length = length.first().copied().filter(|&length| length > 0).ok_or("it names no fields")?;
    let (_, names) = element(&mut matrix)?;
    let fields: Vec<&[u8]> = names
        .chunks_exact(usize::from(length))
        .map(|name| name.split(|&byte| byte == 0).next().unwrap_or_default())
        .collect();
    let place = |name: &str| {
        let found = fields.iter().position(|field| *field == name.as_bytes());
        found.ok_or_else(|| format!("its structs have no field {name}"))
    };
    let (id, wnid, children) = (place("ILSVRC2012_ID")?, place("WNID")?, place("num_children")?);
    let mut synsets = Vec::new();
    for _ in 0..count {
        let mut values = Vec::with_capacity(fields.len());
        for _ in &fields {
            values.push(element(&mut matrix)?.1);
        }
        let number = |at: usize| scalar(values[at]).ok_or("a number is missing");
        synsets.push(Synset { id: number(id)?, wnid: text(values[wnid])?, children: number(children)? });
    }
    Ok(Some(synsets))
}

/// The data of an array's real part, with its type.
fn real_part(mut matrix: &[u8]) -> Result<(u32, &[u8]), String> {
    for _ in ["flags", "dimensions", "name"] {
        element(&mut matrix)?;
    }
    element(&mut matrix)
}

/// A number, whatever type it was saved in.
fn scalar(matrix: &[u8]) -> Option<u32> {
    let (kind, data) = real_part(matrix).ok()?;
    let value = match kind {
        INT8 => f64::from(data.first()?.cast_signed()),
        UINT8 => f64::from(*data.first()?),
        INT16 => f64::from(i16::from_le_bytes(data.get(..2)?.try_into().ok()?)),
        UINT16 => f64::from(u16::from_le_bytes(data.get(..2)?.try_into().ok()?)),
        INT32 => f64::from(i32::from_le_bytes(data.get(..4)?.try_into().ok()?)),
        UINT32 => f64::from(u32::from_le_bytes(data.get(..4)?.try_into().ok()?)),
        SINGLE => f64::from(f32::from_le_bytes(data.get(..4)?.try_into().ok()?)),
        DOUBLE => f64::from_le_bytes(data.get(..8)?.try_into().ok()?),
        _ => return None,
    };
    (value >= 0.0 && value <= f64::from(u32::MAX) && value.fract() == 0.0).then_some(value as u32)
}

fn text(matrix: &[u8]) -> Result<String, String> {
    let (kind, data) = real_part(matrix)?;
    let text = match kind {
        INT8 | UINT8 | UTF8 => String::from_utf8(data.to_vec()).ok(),
        UINT16 | UTF16 => {
            let units: Vec<u16> =
                data.as_chunks::<2>().0.iter().map(|&unit| u16::from_le_bytes(unit)).collect();
            String::from_utf16(&units).ok()
        }
        _ => None,
    };
    text.ok_or_else(|| "a text is missing".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by SciPy: see tests/golden/generate_meta.py.
    const COMPRESSED_FILE: &[u8] = include_bytes!("../../../../tests/golden/meta_compressed.mat");
    const PLAIN_FILE: &[u8] = include_bytes!("../../../../tests/golden/meta_plain.mat");

    #[test]
    fn synsets_are_read_compressed_and_plain() {
        for file in [COMPRESSED_FILE, PLAIN_FILE] {
            let synsets = read_synsets(file).expect("read");
            let expected =
                [(1, "n00000020", 0), (2, "n00000010", 0), (3, "n00000030", 0), (4, "n00000001", 3)];
            let found: Vec<_> =
                synsets.iter().map(|synset| (synset.id, synset.wnid.as_str(), synset.children)).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_an_error_and_no_panic() {
        for cut in 0..PLAIN_FILE.len() - 8 {
            assert!(read_synsets(&PLAIN_FILE[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn elements_that_unpack_to_too_much_together_are_refused() {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        // Each alone is within the limit.
        let zeros = vec![0; MOST_BYTES as usize / 2];
        std::io::Write::write_all(&mut encoder, &zeros).expect("written");
        let packed = encoder.finish().expect("finished");
        let mut file = PLAIN_FILE[..HEADER_BYTES].to_vec();
        for _ in 0..3 {
            file.extend(COMPRESSED.to_le_bytes());
            file.extend((packed.len() as u32).to_le_bytes());
            file.extend(&packed);
        }
        assert_eq!(read_synsets(&file), Err("it unpacks to more than 64 MiB".into()));
    }
}
