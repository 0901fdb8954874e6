//! Labels of images that have no class folder: those of ILSVRC2012's validation images, or a csv of `--labels`.
//!
//! [`read_synsets`] reads the part of MATLAB's file format (level 5) that `meta.mat` of the development kit needs.
//!
//! # Source
//! MathWorks, "MAT-File Format", the chapter on level 5: tagged elements, small ones packed into the tag,
//! arrays as nested elements, a compressed element around each variable.

use std::collections::HashMap;
use std::io::Read;

use super::super::SourceFormat;
use super::super::archive::{SourceFile, Spool, compression, looks_like_tar};
use super::super::names::{examples, file_name, is_among};
use super::super::records::{Container, Records};
use super::list::{PATH_NAMES, SEPARATORS};
use super::{LABEL_NAMES, Tar, choose_column, unread_split};
use crate::ingest::{IngestError, IngestOptions};
use crate::storage::Location;

/// Name of the development kit as downloaded.
pub(super) const ARCHIVE: &str = "ILSVRC2012_devkit_t12.tar.gz";
/// Name of the csv as downloaded.
pub(super) const CSV: &str = "LOC_val_solution.csv";
/// Name of the file with the class number of each validation image, one in each line.
pub(super) const GROUND_TRUTH: &str = "ILSVRC2012_validation_ground_truth.txt";
/// Name of the file that maps numbers to WordNet ids.
const META: &str = "data/meta.mat";
/// Titles of columns with names of images that are not paths.
const ID_NAMES: [&str; 4] = ["id", "image_id", "imageid", "img"];
/// Prefix of the names of ILSVRC2012's validation images.
const VALIDATION_PREFIX: &str = "ILSVRC2012_val_";

/// Finds the labels of images without a class folder: from `--labels`, or from files beside ILSVRC2012's validation
/// images in a folder.
///
/// # Errors
/// If the file cannot be read, or contains no labels.
pub(crate) fn find_labels(
    records: &mut Records<'_>,
    format: SourceFormat,
    others: &[(String, Location)],
) -> Result<(), IngestError> {
    const WHOSE: &str = "labels of images outside class folders";
    if records.options.unlabelled {
        return Ok(());
    }
    if let Some(file) = &records.options.labels {
        return give_labels_of(records, file, WHOSE, file.file_name());
    }
    let has_validation =
        || records.list.iter().any(|record| file_name(&record.path).starts_with(VALIDATION_PREFIX));
    match others.iter().find(|(name, _)| [CSV, ARCHIVE].contains(&file_name(name))) {
        Some((name, file)) if format == SourceFormat::Imagefolder && has_validation() => {
            give_labels_of(records, file, WHOSE, name)
        }
        _ => Ok(()),
    }
}

/// Assigns the labels of a development kit or a csv to the records; `whose` describes these labels in messages.
pub(super) fn give_labels_of(
    records: &mut Records<'_>,
    file: &Location,
    whose: &str,
    name: &str,
) -> Result<(), IngestError> {
    let wrong = |reason| IngestError::layout(file, reason);
    let head = SourceFile::open(file)?.head(512)?;
    let compression = compression(&head).map_err(wrong)?;
    let labels = if compression.is_some() || looks_like_tar(&head) {
        let container = Container { location: file.clone(), name: file.file_name().to_owned(), compression };
        let spool = compression.map(|_| Spool::new()).transpose()?;
        labels_of_kit(&Tar::open(&container, spool.as_ref(), None)?)?
    } else {
        let (labels, warning) = labels_of_csv(&file.read()?, records.options).map_err(wrong)?;
        warning.into_iter().for_each(|warning| records.warn(warning));
        labels
    };
    give_labels(records, labels, whose, name);
    Ok(())
}

/// Assigns labels to the records by their names.
pub(super) fn give_labels(
    records: &mut Records<'_>,
    labels: HashMap<String, String>,
    whose: &str,
    name: &str,
) {
    records.note(format!("{whose}: `{name}`"));
    let words = labels.into_iter().map(|(name, class)| (name, records.word(&class))).collect();
    records.labels = Some(words);
}

/// Returns the class of each validation image in a development kit, by its name without the extension.
pub(super) fn labels_of_kit(kit: &Tar) -> Result<HashMap<String, String>, IngestError> {
    let wrong = |reason: String| IngestError::layout(&kit.location, reason);
    let read = |ending: &str| {
        let member = kit.index.members.iter().find(|member| member.path.ends_with(ending));
        kit.read(member.ok_or_else(|| wrong(format!("it does not hold `{ending}`")))?)
    };
    let synsets = read_synsets(&read(META)?).map_err(|reason| wrong(format!("{META}: {reason}")))?;
    let classes = synsets.iter().filter(|synset| synset.children == 0);
    let wnids: HashMap<u32, &str> = classes.map(|synset| (synset.id, synset.wnid.as_str())).collect();
    let truth = read(GROUND_TRUTH)?;
    let text = std::str::from_utf8(&truth).map_err(|_| wrong(format!("{GROUND_TRUTH} is not UTF-8 text")))?;
    let mut labels = HashMap::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim).filter(|line| !line.is_empty())) {
        let wnid = line.parse().ok().and_then(|id: u32| wnids.get(&id));
        let wnid = wnid.ok_or_else(|| {
            wrong(format!("{GROUND_TRUTH} line {number}: `{line}` is not a class of {META}"))
        })?;
        labels.insert(format!("{VALIDATION_PREFIX}{number:08}"), (*wnid).to_owned());
    }
    Ok(labels)
}

/// Returns the class of each image in a csv, by its path or name as written, and a warning. The columns are separated
/// by commas, tabs or semicolons. A first line of titles names the columns; without it there are two.
fn labels_of_csv(
    bytes: &[u8],
    options: &IngestOptions,
) -> Result<(HashMap<String, String>, Option<String>), String> {
    let (image_column, label_column) = (options.image_column.as_deref(), options.label_column.as_deref());
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let rows = csv_records(bytes, separator(bytes)?).collect::<Result<Vec<_>, _>>();
    let rows = rows.map_err(|error| error.to_string())?;
    let titles: Vec<&str> = rows.first().ok_or("it is empty")?.iter().collect();
    let is_of_image = |title: &str| is_among(title, &PATH_NAMES) || is_among(title, &ID_NAMES);
    let has_titles = image_column.is_some()
        || label_column.is_some()
        || titles.iter().any(|title| is_among(title, &LABEL_NAMES) || is_of_image(title));
    let (mut image, mut label) = (0, 1);
    if has_titles {
        let chosen = choose_column(&titles, "--label-column", label_column, &LABEL_NAMES)?;
        let only_other = (titles.len() == 2).then(|| usize::from(is_of_image(titles[0])));
        label = chosen.or(only_other).ok_or_else(|| {
            format!("no column of labels; its columns are {} (`--label-column`)", examples(&titles))
        })?;
        let others: Vec<&str> = (0..titles.len()).filter(|&at| at != label).map(|at| titles[at]).collect();
        let known: Vec<&str> = others.iter().copied().filter(|title| is_of_image(title)).collect();
        let chosen = match (image_column, known.as_slice(), others.as_slice()) {
            (Some(asked), ..) => asked,
            (None, [one], _) | (None, [], [one]) => one,
            (None, [], []) => return Err("it has no column of images beside that of labels".into()),
            _ => {
                return Err(format!(
                    "several columns could name the images, {}: `--image-column` names one",
                    examples(if known.is_empty() { &others } else { &known })
                ));
            }
        };
        image = choose_column(&titles, "--image-column", Some(chosen), &[])?.unwrap_or(0);
    }
    let mut labels: HashMap<String, String> = HashMap::new();
    for (line, row) in (1..).zip(&rows).skip(usize::from(has_titles)) {
        if has_titles && row.len() != titles.len() {
            return Err(format!(
                "line {line} has {} columns, the line of titles {}",
                row.len(),
                titles.len()
            ));
        }
        if !has_titles && row.len() > 2 {
            return Err(format!(
                "line {line} has {} columns, and no line of titles says which is which, such as `filename,label`",
                row.len()
            ));
        }
        let (Some(name), Some(text)) = (row.get(image).filter(|name| !name.is_empty()), row.get(label))
        else {
            return Err(format!("line {line}: expected an image and its class, as `1.jpg,cat`"));
        };
        // Kaggle's csv has a WordNet id and boxes in one field.
        let class = text.split_whitespace().next().filter(|first| is_wnid(first)).unwrap_or(text);
        let name = name.trim_start_matches("./");
        if let Some(other) = labels.insert(name.to_owned(), class.to_owned())
            && other != class
        {
            return Err(format!("line {line}: `{name}` has two classes, `{other}` and `{class}`"));
        }
    }
    Ok((labels, has_titles.then(|| unread_split(&titles, false)).flatten()))
}

/// Iterates over the lines of a csv; they may have different numbers of columns.
fn csv_records(bytes: &[u8], separator: char) -> impl Iterator<Item = csv::Result<csv::StringRecord>> {
    csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .delimiter(separator as u8)
        .from_reader(bytes)
        .into_records()
}

/// Returns the separator of a csv's columns, by its first line.
fn separator(bytes: &[u8]) -> Result<char, String> {
    let first = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    if first.trim_ascii_start().starts_with(b"{") {
        return Err(
            "it is jsonl; labels are read from a csv, or the jsonl, with its paths, is the source".into()
        );
    }
    let (mut found, mut titled) = (Vec::new(), Vec::new());
    for separator in SEPARATORS {
        let Some(Ok(columns)) = csv_records(first, separator).next() else { continue };
        let is_title = |text: &str| is_among(text, &LABEL_NAMES) || is_among(text, &PATH_NAMES);
        if columns.len() > 1 {
            found.push(separator);
            titled.extend(columns.iter().any(is_title).then_some(separator));
        }
    }
    match (found.as_slice(), titled.as_slice()) {
        ([], _) => Ok(','),
        ([one], _) | (_, [one]) => Ok(*one),
        ([one, other, ..], _) => Err(format!(
            "its first line has columns both by {one:?} and by {other:?}: add a line of titles before it, such as \
             `filename{one}label`"
        )),
    }
}

/// Returns whether a text is a WordNet id, such as n01440764.
pub(super) fn is_wnid(text: &str) -> bool {
    text.len() == 9 && text.starts_with('n') && text[1..].bytes().all(|byte| byte.is_ascii_digit())
}

/// Size in bytes of the header of a MATLAB file.
const HEADER_BYTES: usize = 128;
/// Maximum unpacked size in bytes of all compressed elements together.
const MOST_BYTES: u64 = 64 << 20;
/// Maximum number of structs in the array; the real one has 1676.
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
    /// Number in the challenge.
    pub id: u32,
    /// WordNet id.
    pub wnid: String,
    /// Number of synsets below this one; 0 for the classes.
    pub children: u32,
}

/// Reads the variable `synsets`.
///
/// # Errors
/// The reason, if the file is damaged or contains something else.
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
        let (mut kind, mut data) = element(&mut rest)?;
        let mut unpacked = Vec::new();
        if kind == COMPRESSED {
            let mut decoder = flate2::read::ZlibDecoder::new(data).take(left + 1);
            decoder.read_to_end(&mut unpacked).map_err(|error| error.to_string())?;
            let too_much = || format!("it unpacks to more than {} MiB", MOST_BYTES >> 20);
            left = left.checked_sub(unpacked.len() as u64).ok_or_else(too_much)?;
            (kind, data) = element(&mut unpacked.as_slice())?;
        }
        if kind == MATRIX
            && let Some(synsets) = synsets(data)?
        {
            return Ok(synsets);
        }
    }
    Err("it has no variable synsets".into())
}

/// Takes the next element; returns its type and its data.
fn element<'a>(rest: &mut &'a [u8]) -> Result<(u32, &'a [u8]), String> {
    let cut = || "it is cut".to_owned();
    let word = |at: usize| rest.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let first = word(0).ok_or_else(cut)?;
    if first >> 16 != 0 {
        // A small element has its length in the upper half of the first word, and its data in the second.
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

/// Parses the synsets, if the array is a struct array of that name.
fn synsets(mut matrix: &[u8]) -> Result<Option<Vec<Synset>>, String> {
    let (_, flags) = element(&mut matrix)?;
    let (_, dimensions) = element(&mut matrix)?;
    let (_, name) = element(&mut matrix)?;
    if flags.first() != Some(&STRUCT_CLASS) || name != b"synsets" {
        return Ok(None);
    }
    let mut sides = dimensions.as_chunks().0.iter().map(|&side| i32::from_le_bytes(side));
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

/// Returns the type and data of an array's real part.
fn real_part(mut matrix: &[u8]) -> Result<(u32, &[u8]), String> {
    for _ in ["flags", "dimensions", "name"] {
        element(&mut matrix)?;
    }
    element(&mut matrix)
}

/// Parses a number, whatever type it was saved in.
fn scalar(matrix: &[u8]) -> Option<u32> {
    let (kind, data) = real_part(matrix).ok()?;
    let value = match kind {
        INT8 => f64::from(data.first()?.cast_signed()),
        UINT8 => f64::from(*data.first()?),
        INT16 => f64::from(i16::from_le_bytes(*data.first_chunk()?)),
        UINT16 => f64::from(u16::from_le_bytes(*data.first_chunk()?)),
        INT32 => f64::from(i32::from_le_bytes(*data.first_chunk()?)),
        UINT32 => f64::from(u32::from_le_bytes(*data.first_chunk()?)),
        SINGLE => f64::from(f32::from_le_bytes(*data.first_chunk()?)),
        DOUBLE => f64::from_le_bytes(*data.first_chunk()?),
        _ => return None,
    };
    (value >= 0.0 && value <= f64::from(u32::MAX) && value.fract() == 0.0).then_some(value as u32)
}

fn text(matrix: &[u8]) -> Result<String, String> {
    let (kind, data) = real_part(matrix)?;
    let text = match kind {
        INT8 | UINT8 | UTF8 => String::from_utf8(data.to_vec()).ok(),
        UINT16 | UTF16 => {
            let units = data.as_chunks().0.iter().map(|&unit| u16::from_le_bytes(unit));
            char::decode_utf16(units).collect::<Result<String, _>>().ok()
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
        // Each element alone is within the limit.
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
