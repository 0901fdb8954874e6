//! The labels of the ILSVRC2012 validation pictures.

use std::collections::HashMap;

use super::archive::{SourceFile, Spool, compression, looks_like_tar};
use super::recognise::Packed;
use super::tars::Tar;
use super::{mat, wrong};
use crate::ingest::IngestError;
use crate::storage::Location;

/// The development kit's name as it is downloaded.
pub(super) const ARCHIVE: &str = "ILSVRC2012_devkit_t12.tar.gz";
/// The csv's name as it is downloaded.
pub(super) const CSV: &str = "LOC_val_solution.csv";
/// The file with the class number of each validation picture, a line each.
pub(super) const GROUND_TRUTH: &str = "ILSVRC2012_validation_ground_truth.txt";
/// The file that gives numbers their WordNet ids.
const META: &str = "data/meta.mat";

/// The class of each picture, by its name without ending, from a development kit or a csv.
pub(super) fn labels_from(file: &Location) -> Result<HashMap<String, String>, IngestError> {
    let head = SourceFile::open(file)?.head(512)?;
    let compression = compression(&head);
    if compression.is_some() || looks_like_tar(&head) {
        return labels_of_kit(&Tar::open(&Packed { location: file.clone(), compression }, &Spool::new())?);
    }
    labels_of_csv(file)
}

/// The same from an open kit.
pub(super) fn labels_of_kit(kit: &Tar) -> Result<HashMap<String, String>, IngestError> {
    let read = |ending: &str| {
        let member = kit.index.members.iter().find(|member| member.path.ends_with(ending));
        kit.read(member.ok_or_else(|| wrong(&kit.location, format!("it holds no {ending}")))?)
    };
    let synsets = mat::read_synsets(&read(META)?)
        .map_err(|reason| wrong(&kit.location, format!("{META}: {reason}")))?;
    let wnids: HashMap<u32, &str> = synsets
        .iter()
        .filter(|synset| synset.children == 0)
        .map(|synset| (synset.id, synset.wnid.as_str()))
        .collect();
    let truth = read(GROUND_TRUTH)?;
    let text = std::str::from_utf8(&truth);
    let text = text.map_err(|_| wrong(&kit.location, format!("{GROUND_TRUTH} is no text")))?;
    let mut labels = HashMap::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim).filter(|line| !line.is_empty())) {
        let wnid = line.parse().ok().and_then(|id: u32| wnids.get(&id));
        let wnid = wnid.ok_or_else(|| {
            wrong(&kit.location, format!("{GROUND_TRUTH} line {number}: {line:?} is no class of {META}"))
        })?;
        labels.insert(format!("ILSVRC2012_val_{number:08}"), (*wnid).to_owned());
    }
    Ok(labels)
}

/// A csv of picture and WordNet id; what follows the id (Kaggle's boxes) is ignored.
fn labels_of_csv(file: &Location) -> Result<HashMap<String, String>, IngestError> {
    let bytes = file.read()?;
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bytes.as_ref());
    let mut labels = HashMap::new();
    for (line, record) in (1..).zip(reader.records()) {
        let record = record.map_err(|error| wrong(file, error.to_string()))?;
        let name = record.get(0).unwrap_or_default().trim();
        let class = record.get(1).unwrap_or_default().split_whitespace().next().unwrap_or_default();
        if line == 1 && !is_wnid(class) {
            continue;
        }
        if !is_wnid(class) {
            return Err(wrong(file, format!("line {line}: {class:?} is no WordNet id")));
        }
        let stem = super::names::file_name(name).split('.').next().unwrap_or(name);
        labels.insert(stem.to_owned(), class.to_owned());
    }
    Ok(labels)
}

fn is_wnid(text: &str) -> bool {
    text.len() > 1 && text.starts_with('n') && text[1..].bytes().all(|byte| byte.is_ascii_digit())
}
