//! Labels of images that have no class folder: those of ILSVRC2012's validation images, or a csv of `--labels`.

use std::collections::HashMap;

use super::super::SourceFormat;
use super::super::archive::{SourceFile, Spool, compression, looks_like_tar};
use super::super::names::{examples, file_name};
use super::super::records::{Container, Records};
use super::Tar;
use super::columns::{self, LABEL_NAMES, is_label_name};
use super::list::{PATH_NAMES, SEPARATORS};
use super::mat;
use crate::ingest::{IngestError, IngestOptions};
use crate::storage::Location;

/// The development kit's name as it is downloaded.
pub(super) const ARCHIVE: &str = "ILSVRC2012_devkit_t12.tar.gz";
/// The csv's name as it is downloaded.
pub(super) const CSV: &str = "LOC_val_solution.csv";
/// The file with the class number of each validation image, a line each.
pub(super) const GROUND_TRUTH: &str = "ILSVRC2012_validation_ground_truth.txt";
/// The file that gives numbers their WordNet ids.
const META: &str = "data/meta.mat";
/// Titles of a column of images that are not paths.
const ID_NAMES: [&str; 4] = ["id", "image_id", "imageid", "img"];
/// How ILSVRC2012's validation images are called.
const VALIDATION_PREFIX: &str = "ILSVRC2012_val_";

/// Finds the labels of images without a class folder: `--labels`, or what is beside ILSVRC2012's validation images
/// of a folder.
///
/// # Errors
/// If the file cannot be read, or is not one of labels.
pub(crate) fn find_labels(
    records: &mut Records<'_>,
    format: SourceFormat,
    others: &[(String, Location)],
) -> Result<(), IngestError> {
    if records.options.unlabelled {
        return Ok(());
    }
    if let Some(file) = &records.options.labels {
        let LabelList { labels, warning } = labels_from(file, records.options)?;
        records.note(format!("labels of images outside class folders: `{}`", file.file_name()));
        warning.into_iter().for_each(|warning| records.warn(warning));
        give_labels(records, labels);
        return Ok(());
    }
    let has_validation =
        || records.list().iter().any(|record| file_name(&record.path).starts_with(VALIDATION_PREFIX));
    if format != SourceFormat::Imagefolder || !has_validation() {
        return Ok(());
    }
    let known = [CSV, ARCHIVE];
    if let Some((name, file)) = others.iter().find(|(name, _)| known.contains(&file_name(name))) {
        let LabelList { labels, .. } = labels_from(file, records.options)?;
        records.note(format!("labels of images outside class folders: `{name}`"));
        give_labels(records, labels);
    }
    Ok(())
}

/// Gives the records labels by their names.
pub(super) fn give_labels(records: &mut Records<'_>, labels: HashMap<String, String>) {
    let words = labels.into_iter().map(|(name, class)| (name, records.word(&class))).collect();
    records.labels = Some(words);
}

/// What a file says of labels.
pub(super) struct LabelList {
    /// The class of each image, by its path or name as they are written.
    pub labels: HashMap<String, String>,
    warning: Option<String>,
}

/// The labels of a development kit or a csv.
pub(super) fn labels_from(location: &Location, options: &IngestOptions) -> Result<LabelList, IngestError> {
    let head = SourceFile::open(location)?.head(512)?;
    let compression = compression(&head);
    if compression.is_some() || looks_like_tar(&head) {
        let container =
            Container { location: location.clone(), name: location.file_name().to_owned(), compression };
        let labels = labels_of_kit(&Tar::open(&container, &Spool::new(), None)?)?;
        return Ok(LabelList { labels, warning: None });
    }
    labels_of_csv(location, options)
}

/// The same from an open kit.
pub(super) fn labels_of_kit(kit: &Tar) -> Result<HashMap<String, String>, IngestError> {
    let read = |ending: &str| {
        let member = kit.index.members.iter().find(|member| member.path.ends_with(ending));
        kit.read(
            member
                .ok_or_else(|| IngestError::layout(&kit.location, format!("it does not hold `{ending}`")))?,
        )
    };
    let synsets = mat::read_synsets(&read(META)?)
        .map_err(|reason| IngestError::layout(&kit.location, format!("{META}: {reason}")))?;
    let wnids: HashMap<u32, &str> = synsets
        .iter()
        .filter(|synset| synset.children == 0)
        .map(|synset| (synset.id, synset.wnid.as_str()))
        .collect();
    let truth = read(GROUND_TRUTH)?;
    let text = std::str::from_utf8(&truth);
    let text =
        text.map_err(|_| IngestError::layout(&kit.location, format!("{GROUND_TRUTH} is not UTF-8 text")))?;
    let mut labels = HashMap::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim).filter(|line| !line.is_empty())) {
        let wnid = line.parse().ok().and_then(|id: u32| wnids.get(&id));
        let wnid = wnid.ok_or_else(|| {
            IngestError::layout(
                &kit.location,
                format!("{GROUND_TRUTH} line {number}: `{line}` is not a class of {META}"),
            )
        })?;
        labels.insert(format!("ILSVRC2012_val_{number:08}"), (*wnid).to_owned());
    }
    Ok(labels)
}

/// A csv of image and class, its columns separated by commas, tabs or semicolons. A first line of titles says which columns these are; without it there are two.
fn labels_of_csv(file: &Location, options: &IngestOptions) -> Result<LabelList, IngestError> {
    let (image_column, label_column) = (options.image_column.as_deref(), options.label_column.as_deref());
    let bytes = file.read()?;
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .delimiter(separator(bytes).map_err(|reason| IngestError::layout(file, reason))?)
        .from_reader(bytes);
    let rows: Vec<csv::StringRecord> = reader
        .records()
        .collect::<Result<_, _>>()
        .map_err(|error| IngestError::layout(file, error.to_string()))?;
    let Some(first) = rows.first() else { return Err(IngestError::layout(file, "it is empty")) };
    let titles: Vec<&str> = first.iter().collect();
    let is_of_image =
        |title: &str| PATH_NAMES.iter().chain(&ID_NAMES).any(|known| title.eq_ignore_ascii_case(known));
    let has_titles = image_column.is_some()
        || label_column.is_some()
        || titles.iter().any(|title| is_label_name(title) || is_of_image(title));
    let (mut image, mut label) = (0, 1);
    if has_titles {
        let chosen = columns::choose(&titles, "--label-column", label_column, &LABEL_NAMES);
        let only_other =
            (titles.len() == 2).then(|| usize::from(titles.first().is_some_and(|it| is_of_image(it))));
        label =
            chosen.map_err(|reason| IngestError::layout(file, reason))?.or(only_other).ok_or_else(|| {
                let reason =
                    format!("no column of labels; its columns are {} (`--label-column`)", examples(&titles));
                IngestError::layout(file, reason)
            })?;
        let others: Vec<&str> = (0..titles.len()).filter(|&at| at != label).map(|at| titles[at]).collect();
        let known: Vec<&str> = others.iter().copied().filter(|title| is_of_image(title)).collect();
        let chosen = match (image_column, known.as_slice(), others.as_slice()) {
            (Some(asked), ..) => asked,
            (None, [one], _) | (None, [], [one]) => one,
            (None, [], []) => {
                return Err(IngestError::layout(file, "it has no column of images beside that of labels"));
            }
            _ => {
                let reason = format!(
                    "several columns could name the images, {}: `--image-column` names one",
                    examples(if known.is_empty() { &others } else { &known })
                );
                return Err(IngestError::layout(file, reason));
            }
        };
        let at = columns::choose(&titles, "--image-column", Some(chosen), &[]);
        image = at.map_err(|reason| IngestError::layout(file, reason))?.unwrap_or(0);
    }
    let mut labels: HashMap<String, String> = HashMap::new();
    for (line, row) in (1..).zip(&rows).skip(usize::from(has_titles)) {
        if has_titles && row.len() != titles.len() {
            let reason =
                format!("line {line} has {} columns, the line of titles {}", row.len(), titles.len());
            return Err(IngestError::layout(file, reason));
        }
        if !has_titles && row.len() > 2 {
            let reason = format!(
                "line {line} has {} columns, and no line of titles says which is which, such as `filename,label`",
                row.len()
            );
            return Err(IngestError::layout(file, reason));
        }
        let (Some(name), Some(text)) = (row.get(image).filter(|name| !name.is_empty()), row.get(label))
        else {
            return Err(IngestError::layout(
                file,
                format!("line {line}: expected an image and its class, as `1.jpg,cat`"),
            ));
        };
        // Kaggle's csv has a WordNet id and boxes in one field.
        let class = text.split_whitespace().next().filter(|first| is_wnid(first)).unwrap_or(text);
        let name = name.trim_start_matches("./");
        if let Some(other) = labels.insert(name.to_owned(), class.to_owned())
            && other != class
        {
            return Err(IngestError::layout(
                file,
                format!("line {line}: `{name}` has two classes, `{other}` and `{class}`"),
            ));
        }
    }
    let warning = if has_titles { columns::unread_split(&titles, false) } else { None };
    Ok(LabelList { labels, warning })
}

/// What separates the columns of a csv, by its first line.
fn separator(bytes: &[u8]) -> Result<u8, String> {
    let first = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    if first.trim_ascii_start().starts_with(b"{") {
        return Err(
            "it is jsonl; labels are read from a csv, or the jsonl, with its paths, is the source".into()
        );
    }
    let columns = |separator: char| -> Vec<String> {
        let builder =
            csv::ReaderBuilder::new().has_headers(false).delimiter(separator as u8).from_reader(first);
        let record = builder.into_records().next().and_then(Result::ok);
        record.iter().flatten().map(|title| title.trim().to_lowercase()).collect()
    };
    let found: Vec<(char, Vec<String>)> = SEPARATORS
        .into_iter()
        .map(|separator| (separator, columns(separator)))
        .filter(|(_, columns)| columns.len() > 1)
        .collect();
    let is_title = |text: &String| is_label_name(text) || PATH_NAMES.contains(&text.as_str());
    let titled: Vec<char> = found
        .iter()
        .filter(|(_, columns)| columns.iter().any(is_title))
        .map(|(separator, _)| *separator)
        .collect();
    match (found.as_slice(), titled.as_slice()) {
        ([], _) => Ok(b','),
        ([(one, _)], _) | (_, [one]) => Ok(*one as u8),
        ([(one, _), (other, _), ..], _) => Err(format!(
            "its first line has columns both by {one:?} and by {other:?}: add a line of titles before it, such as \
             `filename{one}label`"
        )),
    }
}

/// Whether a text is a WordNet id, such as n01440764.
pub(super) fn is_wnid(text: &str) -> bool {
    text.len() == 9 && text.starts_with('n') && text[1..].bytes().all(|byte| byte.is_ascii_digit())
}
