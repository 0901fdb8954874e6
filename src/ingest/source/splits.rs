//! The split of each record: one rule for all forms.
//!
//! The words `train`, `training`, `val`, `valid`, `validation`, `dev`, `test` and `testing` name splits as a whole
//! folder, between `-`, `_` and `.` in the name of a container, or in a column `split`. If every record has
//! one, they are the splits; if none has, there is one split; anything else can be read in two ways and is an error.

use std::collections::{BTreeMap, BTreeSet};

use super::discover::{examples, whole_path};
use super::names::{file_name, split_like, split_meaning, split_of_folder, splits_of_container};
use super::records::{Record, Records};
use crate::ingest::IngestError;
use crate::ingest::split_names::MOST_SPLITS;
use crate::storage::Location;

/// Patterns that an error suggests.
const SHOWN_PATTERNS: usize = 4;

/// The split's name where neither the source nor the user names one.
pub(super) const DEFAULT_SPLIT: &str = "train";

/// Where a record belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Assigned {
    /// An index into [`Splits::names`].
    pub(super) split: u16,
    /// Where its path below the split's folder begins, in bytes.
    pub(super) below: u32,
}

/// The splits of a source.
#[derive(Debug)]
pub(super) struct Splits {
    pub(super) names: Vec<String>,
    /// For each record its split; `None` for one that was not asked for.
    pub(super) of: Vec<Option<Assigned>>,
    /// How the splits were found, for people.
    pub(super) understood: String,
}

impl Splits {
    /// Finds the split of each record.
    ///
    /// # Errors
    /// If the records can be read in two ways, or a split that was asked for does not exist.
    pub(super) fn find(records: &Records<'_>) -> Result<Self, IngestError> {
        if records.options.splits.is_empty() { by_words(records) } else { by_patterns(records) }
    }

    fn new() -> Self {
        Self { names: Vec::new(), of: Vec::new(), understood: String::new() }
    }

    fn push(&mut self, split: &str, below: usize) {
        let known = self.names.iter().position(|name| name == split);
        let split = known.unwrap_or_else(|| {
            // One more than may be is enough for the error of `check_split_names`.
            if self.names.len() <= MOST_SPLITS {
                self.names.push(split.to_owned());
            }
            self.names.len() - 1
        });
        let split = u16::try_from(split).expect("at most one more than MOST_SPLITS");
        self.of.push(Some(Assigned { split, below: below as u32 }));
    }
}

/// The splits that `--splits NAME=GLOB` names.
fn by_patterns(records: &Records<'_>) -> Result<Splits, IngestError> {
    let patterns = &records.options.splits;
    let mut splits = Splits::new();
    let mut unmatched = Vec::new();
    for record in &records.list {
        let path = records.shown(record);
        let mut matching = patterns.iter().filter(|(_, glob)| glob.matches(&path));
        let Some((name, glob)) = matching.next() else {
            unmatched.push(path);
            splits.of.push(None);
            continue;
        };
        if let Some((other, _)) = matching.find(|(other, _)| other != name) {
            let reason = format!("`{path}` matches the patterns of two splits, `{name}` and `{other}`");
            return Err(records.wrong(reason));
        }
        let origin = &records.origins[record.origin as usize];
        let depth =
            glob.folders_of(&path).saturating_sub(origin.split('/').filter(|part| !part.is_empty()).count());
        let folders: Vec<usize> = record.path.match_indices('/').map(|(at, _)| at + 1).collect();
        let below = depth.min(folders.len()).checked_sub(1).map_or(0, |last| folders[last]);
        splits.push(name, below);
    }
    if !unmatched.is_empty() {
        let reason = format!(
            "{} of {} images match no pattern of `--splits` ({}): add a pattern, or leave them out with `--ignore GLOB`",
            unmatched.len(),
            records.list.len(),
            examples(&unmatched)
        );
        return Err(records.wrong(reason));
    }
    if let Some((name, glob)) = patterns.iter().find(|(_, glob)| !glob.has_matched()) {
        return Err(records.wrong(format!("no image matches `--splits {name}={}`", glob.text())));
    }
    splits.understood = "splits: as `--splits` names them".into();
    select(records, splits)
}

/// The word of a record, and where its path below the word's folder begins.
type Found<'a> = Option<(&'a str, usize)>;

fn by_words(records: &Records<'_>) -> Result<Splits, IngestError> {
    let of_origins: Vec<Option<&str>> =
        records.origins.iter().map(|origin| word_of_origin(records, origin)).collect::<Result<_, _>>()?;
    let has_column = records.list.iter().any(|record| record.split.is_some());
    let mut found: Vec<Found<'_>> = Vec::with_capacity(records.list.len());
    for record in &records.list {
        let of_origin = of_origins[record.origin as usize];
        found.push(match record.split.map(|word| records.text(word)) {
            Some(word) => match of_origin.filter(|other| split_meaning(other) != split_meaning(word)) {
                Some(other) => return Err(two_words(records, &records.shown(record), other, word)),
                None => Some((word, 0)),
            },
            None if has_column => None,
            None => word_of(records, record, of_origin)?,
        });
    }
    check_above(records, &found)?;
    if !has_column {
        check_above_containers(records, &of_origins)?;
    }
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (word, _) in found.iter().flatten() {
        *counts.entry(word).or_default() += 1;
    }
    let with: u64 = counts.values().sum();
    let wanted = records.options.split.as_deref();
    let is_wanted = |word: &str| wanted.is_some_and(|wanted| wanted.eq_ignore_ascii_case(word));
    let has_wanted = counts.keys().any(|word| is_wanted(word));
    let mut splits = Splits::new();
    if with == 0 {
        check_likely_splits(records)?;
        let name = single_split(records, &mut splits);
        records.list.iter().for_each(|_| splits.push(&name, 0));
        return Ok(splits);
    }
    let mut meanings: BTreeMap<String, &str> = BTreeMap::new();
    for word in counts.keys() {
        if let Some(other) = meanings.insert(split_meaning(word), word) {
            return Err(records.wrong(format!(
                "the splits `{other}` and `{word}` mean the same, but are two names: `--splits NAME=GLOB` says which \
                 images are which split; in a column, write one of the names"
            )));
        }
    }
    let all = with == records.list.len() as u64;
    // A word that is the only one may be a class beside others: then `--split` does not say which is meant.
    if !all && has_wanted && counts.len() == 1 {
        return Err(mixed(records, &found, &counts));
    }
    if !all && !has_wanted {
        if let Some(name) = wanted {
            splits.understood = format!("splits: all images are `{name}`, by `--split`");
            records.list.iter().for_each(|_| splits.push(name, 0));
            return Ok(splits);
        }
        return Err(mixed(records, &found, &counts));
    }
    if all
        && !has_wanted
        && let Some(name) = wanted
    {
        let names: Vec<&str> = counts.keys().copied().collect();
        let reason = format!(
            "there is no split `{name}`; there are {}. `--splits '{name}=**'` takes all images as `{name}`",
            examples(&names)
        );
        return Err(records.wrong(reason));
    }
    let source = if has_column { "the column `split`" } else { "the names of folders and containers" };
    splits.understood = format!("splits: by {source}");
    for found in found {
        match found {
            // The name as the user spells it.
            Some((word, below)) if is_wanted(word) => splits.push(wanted.unwrap_or(word), below),
            Some((word, below)) if wanted.is_none() => splits.push(word, below),
            _ => splits.of.push(None),
        }
    }
    Ok(splits)
}

/// Of splits that were found, those that `--split` asks for.
fn select(records: &Records<'_>, mut splits: Splits) -> Result<Splits, IngestError> {
    let Some(wanted) = &records.options.split else { return Ok(splits) };
    let Some(number) = splits.names.iter().position(|name| name == wanted) else {
        let reason = format!("there is no split `{wanted}`; there are {}", examples(&splits.names));
        return Err(records.wrong(reason));
    };
    for assigned in &mut splits.of {
        *assigned = assigned
            .filter(|assigned| usize::from(assigned.split) == number)
            .map(|assigned| Assigned { split: 0, ..assigned });
    }
    splits.names = vec![wanted.clone()];
    Ok(splits)
}

/// Folders or containers of which most are called nearly like splits, such as `train2017` beside `val2017`, are either
/// splits or classes.
fn check_likely_splits(records: &Records<'_>) -> Result<(), IngestError> {
    if records.options.split.is_some() {
        return Ok(());
    }
    let of_folders: Vec<&str> =
        records.list.iter().filter_map(|record| Some(record.path.rsplit_once('/')?.0)).collect();
    let stems: Vec<&str> = records
        .origins
        .iter()
        .map(|origin| origin.split_once(".").map_or(origin.as_str(), |(stem, _)| stem))
        .collect();
    let found = likely_splits(&of_folders)
        .map(|found| (found, "/**"))
        .or_else(|| Some((likely_splits(&stems)?, "*")));
    let Some(((above, names), below)) = found else { return Ok(()) };
    let patterns: Vec<String> = names
        .iter()
        .filter_map(|name| {
            Some(format!("--splits '{}={above}{name}{below}'", split_meaning(split_like(name)?)))
        })
        .take(SHOWN_PATTERNS)
        .collect();
    Err(records.wrong(format!(
        "{} could be splits or classes: `{}` takes them as splits, `--splits '{DEFAULT_SPLIT}=**'` takes all images as one",
        examples(&names.into_iter().collect::<Vec<_>>()),
        patterns.join(" ")
    )))
}

/// Where paths first differ, the names there if most of them are nearly words of at least two splits, with the
/// folders above.
fn likely_splits<'a>(paths: &[&'a str]) -> Option<(String, BTreeSet<&'a str>)> {
    let mut rest: Vec<&str> = paths.to_vec();
    let mut above = String::new();
    loop {
        let names: BTreeSet<&str> = rest.iter().map(|path| path.split('/').next().unwrap_or(path)).collect();
        if let (1, Some(name)) = (names.len(), names.first()) {
            above = format!("{above}{name}/");
            rest = rest.iter().filter_map(|path| Some(path.split_once('/')?.1)).collect();
            continue;
        }
        let likely: Vec<String> =
            names.iter().filter_map(|name| split_like(name)).map(split_meaning).collect();
        let meanings: BTreeSet<&String> = likely.iter().collect();
        return (meanings.len() > 1 && likely.len() * 2 > names.len()).then_some((above, names));
    }
}

/// The name of the one split of a source without words.
fn single_split(records: &Records<'_>, splits: &mut Splits) -> String {
    if let Some(name) = &records.options.split {
        splits.understood = format!("splits: one, `{name}`, by `--split`");
        return name.clone();
    }
    match own_word(&records.options.sources, &records.origins) {
        Some(word) => {
            splits.understood =
                format!("splits: one, `{word}`, by the source's own name (`--split` names it)");
            word
        }
        None => {
            splits.understood = format!("splits: one, `{DEFAULT_SPLIT}` (`--split` names it)");
            DEFAULT_SPLIT.to_owned()
        }
    }
}

/// The word that the source's own folder is: that of a folder itself, that around a file or around all files.
fn own_word(sources: &[Location], origins: &[String]) -> Option<String> {
    let source = sources.first()?;
    let is_folder = origins.iter().any(String::is_empty)
        || sources.len() == 1 && source.local_path().is_some_and(std::path::Path::is_dir);
    let mut folder = if is_folder { source.clone() } else { source.folder()? };
    if sources.len() > 1 {
        let holds_all = |folder: &Location| {
            let prefix = whole_path(folder) + "/";
            sources.iter().all(|source| whole_path(source).starts_with(&prefix))
        };
        while !holds_all(&folder) {
            folder = folder.folder()?;
        }
    }
    let name = match folder.local_path() {
        Some(path) => path.file_name()?.to_str()?.to_owned(),
        None => folder.file_name().to_owned(),
    };
    split_of_folder(&name).map(str::to_owned)
}

/// The word in the name of a container and of the folders around it.
fn word_of_origin<'a>(records: &Records<'_>, origin: &'a str) -> Result<Option<&'a str>, IngestError> {
    let (folders, _) = origin.rsplit_once('/').unwrap_or(("", origin));
    let mut words: Vec<&str> = folders.split('/').filter_map(split_of_folder).collect();
    words.extend(splits_of_container(file_name(origin)));
    let differing = words.iter().find(|word| split_meaning(word) != split_meaning(words[0]));
    match differing {
        Some(other) => Err(two_words(records, origin, words[0], other)),
        None => Ok(words.first().copied()),
    }
}

/// The topmost folder of a record that is a word, or else the word of its container.
fn word_of<'a>(
    records: &'a Records<'_>,
    record: &'a Record,
    of_origin: Option<&'a str>,
) -> Result<Found<'a>, IngestError> {
    let mut start = 0;
    let mut found: Found<'_> = of_origin.map(|word| (word, 0));
    let mut is_folder = false;
    for (end, _) in record.path.match_indices('/') {
        if let Some(word) = split_of_folder(&record.path[start..end]) {
            match found {
                Some((other, _)) if split_meaning(other) != split_meaning(word) => {
                    return Err(two_words(records, &records.shown(record), other, word));
                }
                // The topmost folder counts; one of the same meaning below it may be a class.
                Some(_) if is_folder => {}
                _ => found = Some((of_origin.unwrap_or(word), end + 1)),
            }
            is_folder = true;
        }
        start = end + 1;
    }
    Ok(found)
}

/// Folders above those that are called like a split are the same for all images, or they mean something.
fn check_above(records: &Records<'_>, found: &[Found<'_>]) -> Result<(), IngestError> {
    let mut above: BTreeSet<&str> = BTreeSet::new();
    for (record, found) in records.list.iter().zip(found) {
        if let Some((_, below)) = found.filter(|(_, below)| *below > 0) {
            let folders = record.path[..below - 1].rsplit_once('/').map_or("", |(above, _)| above);
            above.insert(folders);
        }
    }
    if above.len() < 2 {
        return Ok(());
    }
    Err(below_several(records, above))
}

/// Containers of one split are below one folder, or they are of several datasets.
fn check_above_containers(records: &Records<'_>, words: &[Option<&str>]) -> Result<(), IngestError> {
    let mut above: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (origin, word) in records.origins.iter().zip(words) {
        let Some(word) = word else { continue };
        let folders = origin.rsplit_once('/').map_or("", |(folders, _)| folders);
        let mut start = 0;
        let is_word = |part: &str| {
            let begin = start;
            start += part.len() + 1;
            split_of_folder(part).map(|_| begin)
        };
        let end = folders.split('/').find_map(is_word).map_or(folders.len(), |begin| begin.saturating_sub(1));
        above.entry(split_meaning(word)).or_default().insert(&folders[..end]);
    }
    match above.into_values().find(|above| above.len() > 1) {
        Some(above) => Err(below_several(records, above)),
        None => Ok(()),
    }
}

fn below_several(records: &Records<'_>, above: BTreeSet<&str>) -> IngestError {
    let shown: Vec<&str> = above.into_iter().filter(|folders| !folders.is_empty()).collect();
    records.wrong(format!(
        "folders that are called like a split are below several others, such as {}: ingest one of those alone \
         (`--ignore GLOB`), or say what is a split: with `--splits 'train=*/train/**'` class folders are below it, \
         with `--splits 'train=**/train/**'` above it",
        examples(&shown)
    ))
}

fn two_words(records: &Records<'_>, path: &str, one: &str, other: &str) -> IngestError {
    records.wrong(format!(
        "`{path}` names two splits, `{one}` and `{other}`: `--splits NAME=GLOB` says which images are which split"
    ))
}

/// Some records have a word and some have none.
fn mixed(records: &Records<'_>, found: &[Found<'_>], counts: &BTreeMap<&str, u64>) -> IngestError {
    let shown = |with: bool| -> Vec<String> {
        let records_of_kind = records
            .list
            .iter()
            .zip(found)
            .filter(|(_, found)| found.is_some() == with)
            .map(|(record, _)| record);
        records_of_kind.take(4).map(|record| records.shown(record)).collect()
    };
    let words: Vec<&str> = counts.keys().copied().collect();
    let with: u64 = counts.values().sum();
    let without = records.list.len() as u64 - with;
    let alone = match words.as_slice() {
        // It may be a class.
        [_] => "",
        _ => ". `--split NAME` takes one split that was found alone",
    };
    records.wrong(format!(
        "{with} images belong to a split by their folder or container ({}), such as {}; {without} do not, such as {}. \
         Either those are stray: leave them out with `--ignore GLOB`. Or the word is a class: `--splits 'train=**'` takes \
         all images as one split. Or name each split: `--splits train=GLOB --splits val=GLOB`{alone}",
        examples(&words),
        examples(&shown(true)),
        examples(&shown(false)),
    ))
}
