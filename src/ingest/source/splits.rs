//! The split of each record: one rule for all forms.
//!
//! The words `train`, `training`, `val`, `valid`, `validation`, `dev`, `test` and `testing` name splits as a whole
//! folder, between `-`, `_` and `.` in the name of a container, or in a column `split`. If every record has
//! one, they are the splits; if none has, there is one split; anything else is ambiguous, and an error.

use std::collections::{BTreeMap, BTreeSet};

use super::names::{
    MOST_SPLITS, examples, folder_order, split_like, split_meaning, split_of_folder, splits_of_container,
    without_container_ending,
};
use super::records::{Evidence, Record, Records, shown, whole_path};
use crate::ingest::{IngestError, IngestOptions};
use crate::storage::Location;
use crate::units::shell_word;

/// Number of patterns that an error suggests.
const SHOWN_PATTERNS: usize = 8;

/// Name of the split if neither the source nor the user names one.
const DEFAULT_SPLIT: &str = "train";

/// Assignment of a record to a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Assigned {
    /// Split, as an index into [`Splits::names`].
    pub split: u16,
    /// Start of the path below the split's folder, in bytes.
    pub below: u32,
}

/// Splits of a source.
#[derive(Debug, Default)]
pub(super) struct Splits {
    pub names: Vec<String>,
    /// Assignment of each record; `None` for one that was not requested.
    pub of: Vec<Option<Assigned>>,
    /// Origin of the splits, as a sentence.
    pub understood: String,
    pub warnings: Vec<String>,
}

impl Splits {
    /// Finds the split of each record.
    ///
    /// # Errors
    /// If the records are ambiguous, or a requested split does not exist.
    pub(super) fn find(records: &Records<'_>) -> Result<Self, IngestError> {
        if records.options.splits.is_empty() { by_words(records) } else { by_patterns(records) }
    }

    /// Returns a record's path below the folder of its split.
    pub(super) fn below<'a>(&self, records: &'a Records<'_>, number: usize) -> &'a str {
        let below = self.of[number].map_or(0, |assigned| assigned.below as usize);
        &records.list[number].path[below..]
    }

    /// Extends the split's folder by `bytes` bytes of a record's path.
    pub(super) fn descend(&mut self, number: usize, bytes: usize) {
        if let Some(assigned) = &mut self.of[number] {
            assigned.below += bytes as u32;
        }
    }

    /// Returns whether an option ignores the labels of a split.
    pub(super) fn is_unlabelled(&self, options: &IngestOptions, assigned: Assigned) -> bool {
        options.unlabelled || options.unlabelled_splits.contains(&self.names[usize::from(assigned.split)])
    }

    /// Returns the records whose folders are classes, by their numbers.
    pub(super) fn by_folders<'a>(
        &'a self,
        records: &'a Records<'_>,
    ) -> impl Iterator<Item = (usize, Assigned)> + 'a {
        let candidates = records.list.iter().zip(&self.of).enumerate();
        candidates.filter_map(|(number, (record, assigned))| {
            let assigned = (*assigned)?;
            let counts = record.evidence == Evidence::Folders
                && record.fault.is_none()
                && !self.is_unlabelled(records.options, assigned);
            counts.then_some((number, assigned))
        })
    }

    /// Assigns all records to one split.
    fn all(self, records: &Records<'_>, name: &str) -> Self {
        let of = vec![Some(Assigned { split: 0, below: 0 }); records.list.len()];
        Self { names: vec![name.to_owned()], of, ..self }
    }

    fn push(&mut self, split: &str, below: usize) {
        let known = self.names.iter().position(|name| name == split);
        let split = known.unwrap_or_else(|| {
            // One more than the limit suffices for the error of `check_split_names`.
            if self.names.len() <= MOST_SPLITS {
                self.names.push(split.to_owned());
            }
            self.names.len() - 1
        });
        let split = u16::try_from(split).expect("at most one more than MOST_SPLITS");
        self.of.push(Some(Assigned { split, below: below as u32 }));
    }
}

/// Finds the splits that `--splits NAME=GLOB` names.
fn by_patterns(records: &Records<'_>) -> Result<Splits, IngestError> {
    let patterns = &records.options.splits;
    let wanted = records.options.split.as_ref();
    let mut splits = Splits { understood: "splits: as `--splits` names them".into(), ..Splits::default() };
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
        if wanted.is_some_and(|wanted| wanted != name) {
            splits.of.push(None);
            continue;
        }
        let of_origin = parts(&records.origins[record.origin as usize]).count();
        let depth = glob.folders_of(&path).saturating_sub(of_origin);
        let folders = record.path.match_indices('/').map(|(at, _)| at + 1);
        splits.push(name, folders.take(depth).last().unwrap_or(0));
    }
    if !unmatched.is_empty() {
        let reason = format!(
            "{} of {} images match no pattern of `--splits` ({}): add a pattern, or leave them out with \
             `--ignore GLOB`",
            unmatched.len(),
            records.list.len(),
            examples(&unmatched)
        );
        return Err(records.wrong(reason));
    }
    if let Some((name, glob)) = patterns.iter().find(|(_, glob)| !glob.has_matched()) {
        return Err(records.wrong(format!("no image matches `--splits {name}={}`", glob.text())));
    }
    if let Some(wanted) = wanted.filter(|wanted| !splits.names.contains(wanted)) {
        let names: BTreeSet<&String> = patterns.iter().map(|(name, _)| name).collect();
        let names: Vec<&String> = names.into_iter().collect();
        let reason = format!("it has no split `{wanted}`; its splits are {}", examples(&names));
        return Err(records.wrong(reason));
    }
    Ok(splits)
}

/// Iterates over the parts of a path.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty())
}

/// Split's word of a record, and the start of the path below the word's folder.
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
    let variants = if has_column { Vec::new() } else { check_containers(records, &of_origins)? };
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (word, _) in found.iter().flatten() {
        *counts.entry(word).or_default() += 1;
    }
    let with: u64 = counts.values().sum();
    let wanted = records.options.split.as_deref();
    let is_wanted = |word: &str| wanted.is_some_and(|wanted| wanted.eq_ignore_ascii_case(word));
    let has_wanted = counts.keys().any(|word| is_wanted(word));
    let mut splits = Splits { warnings: variants, ..Splits::default() };
    if with == 0 {
        check_likely_splits(records)?;
        let name = single_split(records, &mut splits);
        return Ok(splits.all(records, &name));
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
    match wanted {
        None if !all => return Err(mixed(records, &found, &counts)),
        // The only word may be a class beside others; then `--split` is ambiguous.
        Some(_) if !all && has_wanted && counts.len() == 1 => return Err(mixed(records, &found, &counts)),
        Some(name) if !all && !has_wanted => {
            splits.understood = format!("splits: all images are `{name}`, by `--split`");
            return Ok(splits.all(records, name));
        }
        Some(name) if !has_wanted => {
            let names: Vec<&str> = counts.keys().copied().collect();
            return Err(records.wrong(format!(
                "it has no split `{name}`; its splits are {}. `--splits '{name}=**'` takes all images as `{name}`",
                examples(&names)
            )));
        }
        _ => {}
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

/// Rejects sibling folders or containers of which at least half have names similar to splits, such as `train2017`
/// beside `val2017`: they could be splits or classes.
fn check_likely_splits(records: &Records<'_>) -> Result<(), IngestError> {
    let Some(Likely { above, names, is_container }) = Likely::find(records) else { return Ok(()) };
    // A name of another meaning is that of all images.
    let meanings = likely_meanings(&names);
    if records.options.split.as_ref().is_some_and(|name| !meanings.contains(&split_meaning(name))) {
        return Ok(());
    }
    let mut patterns: Vec<String> = Vec::new();
    let mut others: Vec<&str> = Vec::new();
    for name in &names {
        let Some((word, through)) = split_like(name) else {
            others.push(name);
            continue;
        };
        let below = if is_container { "*" } else { "/**" };
        let name = if is_container { through } else { name };
        let glob = format!("{}{below}", globset::escape(&format!("{above}{name}")));
        patterns.push(format!("--splits {}", shell_word(&format!("{}={glob}", split_meaning(word)))));
    }
    patterns.dedup();
    let more = match patterns.len().saturating_sub(SHOWN_PATTERNS) {
        0 => String::new(),
        more => format!(", and {more} more such patterns,"),
    };
    patterns.truncate(SHOWN_PATTERNS);
    let rest = if others.is_empty() {
        String::new()
    } else {
        format!(" (and others, {}, by `--splits` or `--ignore`)", examples(&others))
    };
    Err(records.wrong(format!(
        "{} could be splits or classes: `{}`{more}{rest} takes them as splits, `--splits \
         '{DEFAULT_SPLIT}=**'` takes all images as one",
        examples(&names.iter().collect::<Vec<_>>()),
        patterns.join(" ")
    )))
}

/// Sibling names that probably mean splits.
struct Likely {
    /// Folders above the names, with a `/` at the end.
    above: String,
    names: BTreeSet<String>,
    is_container: bool,
}

impl Likely {
    /// Finds siblings of which at least half are similar to words, of at least two splits.
    fn find(records: &Records<'_>) -> Option<Self> {
        let folders = records.list.iter().map(|record| (record.origin, folder_order(&record.path).0));
        let folders: BTreeSet<(u32, &str)> = folders.collect();
        let mut beside: BTreeMap<String, (BTreeSet<String>, bool)> = BTreeMap::new();
        for (origin, folder) in folders {
            let container = &records.origins[origin as usize];
            let whole = shown(container, folder);
            let of_container = parts(container).count();
            let mut start = 0;
            for (depth, part) in whole.split('/').enumerate().filter(|(_, part)| !part.is_empty()) {
                let is_container = depth + 1 == of_container;
                let name = if is_container { without_container_ending(part) } else { part };
                let beside = beside.entry(whole[..start].to_owned());
                beside.or_insert_with(|| (BTreeSet::new(), is_container)).0.insert(name.to_owned());
                start += part.len() + 1;
            }
        }
        let mut beside =
            beside.into_iter().map(|(above, (names, is_container))| Self { above, names, is_container });
        beside.find(|Self { names, .. }| {
            let likely = likely_meanings(names);
            likely.iter().any(|meaning| *meaning != likely[0]) && likely.len() * 2 >= names.len()
        })
    }
}

/// Returns the probable split of each name that has one.
fn likely_meanings(names: &BTreeSet<String>) -> Vec<String> {
    names.iter().filter_map(|name| split_like(name)).map(|(word, _)| split_meaning(word)).collect()
}

/// Returns the name of the only split of a source without words.
fn single_split(records: &Records<'_>, splits: &mut Splits) -> String {
    if let Some(name) = &records.options.split {
        splits.understood = format!("splits: the source is one, `{name}`, by `--split`");
        return name.clone();
    }
    let own = own_name(&records.options.sources, &records.origins);
    match own.as_deref().and_then(split_of_folder).map(str::to_owned) {
        Some(word) => {
            splits.understood =
                format!("splits: the source is one, `{word}`, by its own name (`--split` names it)");
            word
        }
        None => {
            splits.understood = format!("splits: the source is one, `{DEFAULT_SPLIT}` (`--split` names it)");
            if let Some((own, word)) = own.as_deref().and_then(|own| Some((own, split_like(own)?.0))) {
                let split = split_meaning(word);
                if split != DEFAULT_SPLIT {
                    splits.warnings.push(format!(
                        "the source is called `{own}` and becomes the split `{DEFAULT_SPLIT}`; `--split \
                         {split}` names it so"
                    ));
                }
            }
            DEFAULT_SPLIT.to_owned()
        }
    }
}

/// Returns the name of the source's own folder: of the folder itself, or of the one around a file or all files.
fn own_name(sources: &[Location], origins: &[String]) -> Option<String> {
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
    match folder.local_path() {
        Some(path) => Some(path.file_name()?.to_str()?.to_owned()),
        None => Some(folder.file_name().to_owned()),
    }
}

/// Returns the word in the name of a container or of the folders around it.
fn word_of_origin<'a>(records: &Records<'_>, origin: &'a str) -> Result<Option<&'a str>, IngestError> {
    let (folders, name) = folder_order(origin);
    let mut words: Vec<&str> = folders.split('/').filter_map(split_of_folder).collect();
    words.extend(splits_of_container(name));
    match words.iter().find(|word| split_meaning(word) != split_meaning(words[0])) {
        Some(other) => Err(two_words(records, origin, words[0], other)),
        None => Ok(words.first().copied()),
    }
}

/// Returns the topmost folder of a record that is a word, or else the word of its container.
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

/// Checks that the folders above those named like a split are the same for all images.
fn check_above(records: &Records<'_>, found: &[Found<'_>]) -> Result<(), IngestError> {
    let mut above: BTreeSet<&str> = BTreeSet::new();
    for (record, found) in records.list.iter().zip(found) {
        if let Some((_, below)) = found.filter(|(_, below)| *below > 0) {
            above.insert(folder_order(&record.path[..below - 1]).0);
        }
    }
    if above.len() < 2 {
        return Ok(());
    }
    let shown: Vec<&str> = above.into_iter().filter(|folders| !folders.is_empty()).collect();
    Err(records.wrong(format!(
        "folders that are called like a split are below several others, such as {}: ingest one of those alone \
         (`--ignore GLOB`), or say what is a split: with `--splits 'train=*/train/**'` class folders are below it, \
         with `--splits 'train=**/train/**'` above it",
        examples(&shown)
    )))
}

/// Checks that the containers of each split are below one folder, since otherwise they are of several datasets. Returns
/// warnings of names that differ in more than numbers.
fn check_containers(records: &Records<'_>, words: &[Option<&str>]) -> Result<Vec<String>, IngestError> {
    let mut above: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut kinds: BTreeMap<String, BTreeMap<String, &str>> = BTreeMap::new();
    for (origin, word) in records.origins.iter().zip(words) {
        let Some(word) = word else { continue };
        let (folders, name) = folder_order(origin);
        let mut start = 0;
        let is_word = |part: &str| {
            let begin = start;
            start += part.len() + 1;
            split_of_folder(part).map(|_| begin)
        };
        let end = folders.split('/').find_map(is_word).map_or(folders.len(), |begin| begin.saturating_sub(1));
        above.entry(split_meaning(word)).or_default().insert(&folders[..end]);
        kinds.entry((*word).to_owned()).or_default().entry(without_numbers(name)).or_insert(origin);
    }
    let asked = records.options.split.as_deref().map(split_meaning);
    let is_asked = |split: &String| asked.as_ref().is_none_or(|asked| asked == split);
    let count = above.len();
    if let Some((split, above)) = above.into_iter().find(|(split, above)| above.len() > 1 && is_asked(split))
    {
        let shown: Vec<&str> = above.into_iter().filter(|folders| !folders.is_empty()).collect();
        let together = if count == 1 {
            format!("`--splits '{split}=**'` takes all as one")
        } else {
            "`--splits 'NAME=**/NAME*'`, once for each split with the beginning of its containers' names, takes them \
             together"
                .to_owned()
        };
        return Err(records.wrong(format!(
            "containers of the split `{split}` are below several folders, such as {}: ingest one of those \
             alone (`--ignore GLOB`), or {together}",
            examples(&shown)
        )));
    }
    let several = kinds.into_iter().filter(|(_, names)| names.len() > 1);
    Ok(several
        .map(|(split, names)| {
            let names: Vec<&str> = names.into_values().collect();
            format!("the split `{split}` is of containers of {} names, {}", names.len(), examples(&names))
        })
        .collect())
}

/// Removes the parts of a container's name that distinguish shards: numbers and digests.
fn without_numbers(name: &str) -> String {
    let is_digest = |part: &&str| part.len() >= 8 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts = without_container_ending(name).split(['-', '_', '.']).filter(|part| !is_digest(part));
    let plain = |part: &str| part.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    parts.map(plain).filter(|part| !part.is_empty() && part != "of").collect::<Vec<_>>().join("-")
}

fn two_words(records: &Records<'_>, path: &str, one: &str, other: &str) -> IngestError {
    records.wrong(format!(
        "`{path}` names two splits, `{one}` and `{other}`: `--splits NAME=GLOB` says which images are which split"
    ))
}

/// Makes the error of records of which only some have a word.
fn mixed(records: &Records<'_>, found: &[Found<'_>], counts: &BTreeMap<&str, u64>) -> IngestError {
    let shown = |with: bool| -> Vec<String> {
        let of_kind = records.list.iter().zip(found).filter(|(_, found)| found.is_some() == with);
        of_kind.take(4).map(|(record, _)| records.shown(record)).collect()
    };
    let words: Vec<&str> = counts.keys().copied().collect();
    let with: u64 = counts.values().sum();
    let without = records.list.len() as u64 - with;
    let alone = match words.as_slice() {
        // The word may be a class.
        [_] => "",
        _ => ". `--split NAME` takes one split that was found alone",
    };
    records.wrong(format!(
        "{with} images belong to a split by their folder or container ({}), such as {}; {without} do not, such as {}. \
         Either those are stray: leave them out with `--ignore GLOB`. Or the word is a class: `--splits \
         'train=**'` takes all images as one split. Or name each split: `--splits train=GLOB --splits \
         val=GLOB`{alone}",
        examples(&words),
        examples(&shown(true)),
        examples(&shown(false)),
    ))
}
