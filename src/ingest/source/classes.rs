//! The class of each image, decided over all records together: the meaning of labels as names or numbers, and the
//! choice of class folders.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use icu_normalizer::ComposingNormalizerBorrowed;

use super::names::{examples, file_name, folder_order, is_layout_folder, split_like};
use super::records::{ClassNames, Records};
use super::splits::Splits;
use super::{ClassFolder, LabelsAs};
use crate::ids::ClassId;
use crate::ingest::IngestError;

/// Maximum number of classes.
const MOST_CLASSES: usize = u16::MAX as usize - 1;
/// Minimum density of class numbers: below one in this many of those up to the highest, they are numbered by rank.
const LEAST_DENSITY: usize = 2;

/// Label of a record, before classes have numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Label<'a> {
    None,
    Name(&'a str),
    /// Text that is a name or a number, or a number that the source assigned.
    Text(&'a str),
}

/// The classes of a source.
#[derive(Debug, Default)]
pub(super) struct Classes {
    pub names: Vec<String>,
    of: HashMap<String, ClassId>,
    /// Interpretation of the labels, as a sentence; `None` without labels.
    pub understood: Option<String>,
    pub warnings: Vec<String>,
}

/// Kind of a label's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parsed {
    Absent,
    Number { value: u64, padded: bool },
    Negative,
    Name,
}

fn parse(text: &str) -> Parsed {
    let whole = text
        .split_once('.')
        .filter(|(_, fraction)| !fraction.is_empty() && fraction.bytes().all(|digit| digit == b'0'));
    let digits = whole.map_or(text, |(whole, _)| whole);
    if text.is_empty() || digits == "-1" || text.eq_ignore_ascii_case("nan") {
        return Parsed::Absent;
    }
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if digits.strip_prefix(['-', '+']).is_some_and(is_number) {
        return Parsed::Negative;
    }
    match digits.parse::<u64>() {
        Ok(value) if is_number(digits) => {
            Parsed::Number { value, padded: digits.len() > 1 && digits.starts_with('0') }
        }
        _ => Parsed::Name,
    }
}

/// Composes each letter and its accents into one character, if Unicode has one.
fn composed(name: &str) -> Cow<'_, str> {
    ComposingNormalizerBorrowed::new_nfc().normalize(name)
}

/// Returns the spellings of the first name that occurs twice, also in composed and decomposed Unicode.
pub fn one_name_twice(names: &[String]) -> Option<[&str; 2]> {
    let mut same: HashMap<Cow<'_, str>, &str> = HashMap::with_capacity(names.len());
    names.iter().find_map(|name| same.insert(composed(name), name).map(|other| [other, name.as_str()]))
}

/// Escapes characters beyond ASCII as numbers, to distinguish names that look the same.
fn shown(name: &str) -> String {
    format!("`{}`", name.escape_default())
}

impl Classes {
    /// Decides the meaning of the labels.
    ///
    /// # Errors
    /// If they are ambiguous, a number has no name, two classes have one name, or there are too many.
    pub(super) fn find(records: &Records<'_>, labels: &[Label<'_>]) -> Result<Self, IngestError> {
        let options = records.options;
        let (mut names, mut texts) = (BTreeSet::new(), BTreeSet::new());
        for label in labels {
            match *label {
                Label::Name(name) => names.insert(name),
                Label::Text(text) => texts.insert(text),
                Label::None => false,
            };
        }
        let (absent, texts): (BTreeSet<&str>, BTreeSet<&str>) =
            texts.into_iter().partition(|text| parse(text) == Parsed::Absent);
        let odd: Vec<&str> = absent.into_iter().filter(|text| text.eq_ignore_ascii_case("nan")).collect();
        let mut found = Self::default();
        if !odd.is_empty() {
            found.warnings.push(format!("the label {} is read as absent", examples(&odd)));
        }
        if options.labels_as != LabelsAs::Auto && texts.is_empty() {
            let reason = "`--labels-as` has no effect: the source has no labels that are text or numbers";
            return Err(records.wrong(reason));
        }
        let is_number = |text: &&str| matches!(parse(text), Parsed::Number { .. });
        let (numbers, others): (Vec<&str>, Vec<&str>) = texts.iter().copied().partition(is_number);
        let are_numbers = found.are_numbers(records, &numbers, &others)? && !texts.is_empty();
        let given = given_names(records, are_numbers)?;
        let is_auto = options.labels_as == LabelsAs::Auto;
        if let (true, false, false, Some(list)) =
            (is_auto, are_numbers, numbers.is_empty(), &records.class_names)
        {
            return Err(records.wrong(format!(
                "some labels are numbers ({}), which {} names, and some are names ({}): ingest one kind at a time, or \
                 `--labels-as names` takes digits as names",
                examples(&numbers),
                list.origin,
                examples(&others)
            )));
        }
        if are_numbers && !names.is_empty() {
            return Err(records.wrong(format!(
                "some labels are names ({}) and some are numbers ({})",
                examples(&names.iter().collect::<Vec<_>>()),
                examples(&numbers)
            )));
        }
        if are_numbers {
            found.number(records, &numbers, given)?;
        } else {
            found.names = names.union(&texts).map(|name| (*name).to_owned()).collect();
            found.of = found.names.iter().zip(0..).map(|(name, id)| (name.clone(), ClassId(id))).collect();
        }
        found.compare_names(records)?;
        if found.names.len() > MOST_CLASSES {
            let reason = format!("{} classes; a label counts at most {MOST_CLASSES}", found.names.len());
            return Err(records.wrong(reason));
        }
        Ok(found)
    }

    /// Returns the class of a label.
    pub(super) fn class(&self, label: &Label<'_>) -> Option<ClassId> {
        match label {
            Label::None => None,
            Label::Name(name) | Label::Text(name) => self.of.get(*name).copied(),
        }
    }

    /// Rejects names that are equal in Unicode, and warns of those that differ only in case.
    fn compare_names(&mut self, records: &Records<'_>) -> Result<(), IngestError> {
        if let Some([first, second]) = one_name_twice(&self.names) {
            return Err(records.wrong(format!(
                "the classes {} and {} are one name, composed and decomposed by Unicode: rename one as the other",
                shown(first),
                shown(second)
            )));
        }
        let mut lower: HashMap<String, &str> = HashMap::new();
        for name in &self.names {
            if let Some(other) = lower.insert(composed(name).to_lowercase(), name) {
                self.warnings.push(format!("the classes `{other}` and `{name}` differ in case alone"));
            }
        }
        Ok(())
    }

    /// Returns whether the texts are numbers rather than names; `others` are those that are not the number of a class.
    fn are_numbers(
        &mut self,
        records: &Records<'_>,
        numbers: &[&str],
        others: &[&str],
    ) -> Result<bool, IngestError> {
        match records.options.labels_as {
            LabelsAs::Names => return Ok(false),
            LabelsAs::Numbers if others.is_empty() => return Ok(true),
            LabelsAs::Numbers => {
                let reason =
                    format!("`--labels-as numbers`: {} is not the number of a class", examples(others));
                return Err(records.wrong(reason));
            }
            LabelsAs::Auto => {}
        }
        let (names, negative): (Vec<&str>, Vec<&str>) =
            others.iter().copied().partition(|text| parse(text) == Parsed::Name);
        if !names.is_empty() {
            if !numbers.is_empty() {
                self.warnings.push(format!(
                    "some labels are digits ({}) and some are not ({}): all are names",
                    examples(numbers),
                    examples(&names)
                ));
            }
            return Ok(false);
        }
        if !negative.is_empty() {
            return Err(records.wrong(format!(
                "the label {} is neither the number of a class, which counts from 0, nor -1 for none: \
                 `--labels-as names` makes every text a class",
                examples(&negative)
            )));
        }
        let mut spellings: BTreeMap<u64, &str> = BTreeMap::new();
        for text in numbers {
            let Parsed::Number { value, .. } = parse(text) else { continue };
            if let Some(other) = spellings.insert(value, text) {
                return Err(records.wrong(format!(
                    "the labels `{other}` and `{text}` are one number, but two names: `--labels-as numbers` \
                     makes them one class, `--labels-as names` makes them two"
                )));
            }
        }
        Ok(true)
    }

    fn number(
        &mut self,
        records: &Records<'_>,
        texts: &[&str],
        given: Option<ClassNames>,
    ) -> Result<(), IngestError> {
        let mut numbers: BTreeMap<u64, &str> = BTreeMap::new();
        let mut padded = false;
        for text in texts {
            let Parsed::Number { value, padded: is_padded } = parse(text) else { continue };
            numbers.insert(value, text);
            padded |= is_padded;
        }
        let highest = numbers.keys().next_back().copied().unwrap_or(0);
        let mut class_of: BTreeMap<u64, usize> =
            numbers.keys().map(|&number| (number, number as usize)).collect();
        if let Some(given) = given {
            if highest >= given.names.len() as u64 {
                let reason = format!(
                    "a label is {highest}, but {} names {} classes, 0 to {}",
                    given.origin,
                    given.names.len(),
                    given.names.len().saturating_sub(1)
                );
                return Err(records.wrong(reason));
            }
            self.understood = Some(format!("labels: numbers, named by {}", given.origin));
            if records.options.classes.is_some() && highest + 1 < given.names.len() as u64 {
                self.warnings.push(format!(
                    "{} names {} classes, but no label is above {highest}: is its first line a title?",
                    given.origin,
                    given.names.len()
                ));
            }
            self.names = given.names;
        } else if !padded && highest < (LEAST_DENSITY * numbers.len()) as u64 {
            self.understood = Some(format!("labels: numbers, 0 to {highest}"));
            self.names = (0..=highest).map(|number| number.to_string()).collect();
            let empty: Vec<String> = (0..=highest)
                .filter(|number| !numbers.contains_key(number))
                .map(|number| number.to_string())
                .collect();
            if !empty.is_empty() {
                let counts_from_one = if empty == ["0"] { "; labels seem to count from 1" } else { "" };
                self.warnings.push(format!(
                    "{} classes have no image: {}{counts_from_one}",
                    empty.len(),
                    examples(&empty)
                ));
            }
        } else {
            if !padded {
                self.warnings.push(format!(
                    "labels are far apart ({} numbers up to {highest}): classes are numbered by rank, and \
                     named by their number",
                    numbers.len()
                ));
            }
            self.understood = Some("labels: numbers, as classes by their rank".into());
            self.names = if padded {
                numbers.values().map(|text| (*text).to_owned()).collect()
            } else {
                numbers.keys().map(u64::to_string).collect()
            };
            class_of.values_mut().zip(0..).for_each(|(class, rank)| *class = rank);
        }
        for text in texts {
            let Parsed::Number { value, .. } = parse(text) else { continue };
            let class = class_of.get(&value).and_then(|&class| u16::try_from(class).ok());
            self.of.extend(class.map(|class| ((*text).to_owned(), ClassId(class))));
        }
        Ok(())
    }
}

/// Returns the names of numbered classes, from `--classes` or the source.
fn given_names(records: &Records<'_>, are_numbers: bool) -> Result<Option<ClassNames>, IngestError> {
    let given = match &records.options.classes {
        Some(_) if !are_numbers => {
            let reason = "`--classes` has no effect: it names classes that are numbers in the source, and \
                          there are none";
            return Err(records.wrong(reason));
        }
        Some(file) => {
            let wrong = |reason| IngestError::layout(file, reason);
            let names = parse_class_names(&file.read()?).map_err(wrong)?;
            Some(ClassNames { names, origin: format!("`--classes {}`", file.file_name()) })
        }
        None => records.class_names.clone().filter(|_| are_numbers),
    };
    if let Some(given) = &given {
        let mut first: HashMap<&str, usize> = HashMap::new();
        for (number, name) in given.names.iter().enumerate() {
            if let Some(other) = first.insert(name, number) {
                return Err(records.wrong(format!(
                    "classes {other} and {number} of {} have one name, `{name}`: give each class another name \
                     (`--classes FILE`, a line for each), such as its WordNet id",
                    given.origin
                )));
            }
        }
    }
    Ok(given)
}

/// Parses the names of classes in a file of `--classes`, one in each line.
///
/// # Errors
/// The reason, if the text is invalid.
pub fn parse_class_names(bytes: &[u8]) -> Result<Vec<String>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "not UTF-8 text")?;
    let lines: Vec<&str> = text.trim_start_matches('\u{FEFF}').trim_end().lines().map(str::trim).collect();
    if let Some(blank) = lines.iter().position(|line| line.is_empty()) {
        return Err(format!("line {} is blank, so the classes after it would have other numbers", blank + 1));
    }
    let is_numbered = |line: &&str| {
        let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
        rest.len() < line.len() && rest.starts_with([',', ';', '\t', ':'])
    };
    if lines.len() > 1 && lines[1..].iter().all(is_numbered) {
        return Err(format!(
            "line 2 is `{}`: expected names alone, a line for each class, the first one for class 0",
            lines[1]
        ));
    }
    Ok(lines.into_iter().map(str::to_owned).collect())
}

/// Descends in each split while all of its images are below one folder that contains folders, since such a folder is
/// not a class. Returns the folders above the classes, if any.
pub(super) fn strip_common_folders(records: &Records<'_>, splits: &mut Splits) -> BTreeSet<String> {
    let mut of_splits: Vec<Vec<usize>> = vec![Vec::new(); splits.names.len()];
    for (number, assigned) in splits.by_folders(records) {
        of_splits[usize::from(assigned.split)].push(number);
    }
    // A folder is a class if another split has it beside others.
    let mut classes: BTreeSet<&str> = BTreeSet::new();
    for images in &of_splits {
        let first =
            images.iter().filter_map(|&number| Some(splits.below(records, number).split_once('/')?.0));
        let first: BTreeSet<&str> = first.collect();
        if first.len() > 1 {
            classes.extend(first);
        }
    }
    of_splits.iter().filter_map(|images| strip_common_folder(records, splits, images, &classes)).collect()
}

/// Does the same for the images of one split.
fn strip_common_folder(
    records: &Records<'_>,
    splits: &mut Splits,
    images: &[usize],
    classes: &BTreeSet<&str>,
) -> Option<String> {
    let mut stripped: Option<String> = None;
    loop {
        let mut common: Option<&str> = None;
        let (mut deep, mut deeper, mut total) = (0_u64, 0_u64, 0_u64);
        let mut next: BTreeSet<&str> = BTreeSet::new();
        for &number in images {
            // Images beside the folders, such as in a flat `test/`, are handled later.
            let Some((first, rest)) = splits.below(records, number).split_once('/') else {
                continue;
            };
            if common.is_some_and(|common| common != first) {
                return stripped;
            }
            common = Some(first);
            total += 1;
            if let Some((folder, rest)) = rest.split_once('/') {
                deep += 1;
                deeper += u64::from(rest.contains('/'));
                if next.len() < 2 {
                    next.insert(folder);
                }
            }
        }
        let Some(common) = common.map(str::to_owned) else { return stripped };
        // `n01440764/images/*.JPEG` is one class, not a class called `images`.
        let is_class = deeper == 0 && next.len() == 1 && next.iter().all(|folder| is_layout_folder(folder));
        // A lone folder such as `images` is flat, unless other splits have classes and no labels are given.
        let is_flat = deep == 0
            && (is_layout_folder(&common) || split_like(&common).is_some())
            && (classes.is_empty() || records.labels.is_some());
        if deep * 2 <= total && !is_flat || is_class || classes.contains(common.as_str()) {
            return stripped;
        }
        for &number in images {
            if splits.below(records, number).contains('/') {
                splits.descend(number, common.len() + 1);
            }
        }
        stripped = Some(stripped.map_or(common.clone(), |above| format!("{above}/{common}")));
    }
}

/// Returns the folder that directly contains an image.
fn around(path: &str) -> &str {
    file_name(folder_order(path).0)
}

/// Contents of a folder below a split.
#[derive(Debug, Default)]
struct Contents<'a> {
    /// Number of images directly in the folder.
    images: u64,
    /// Subfolders, at most two.
    folders: BTreeSet<&'a str>,
    /// Whether subfolders contain folders, too.
    is_deeper: bool,
    /// Path of an image below them in a folder of another name than the first.
    example: Option<&'a str>,
}

/// Applies `--class-folder` to images that are deeper than one folder below their split; returns whether it had an
/// effect. A folder that directly contains images is a class, as is one whose only folder has a name like `images`;
/// any other is ambiguous.
pub(super) fn choose_class_folders(records: &Records<'_>, splits: &mut Splits) -> Result<bool, IngestError> {
    let mut contents: BTreeMap<(u16, &str), Contents<'_>> = BTreeMap::new();
    for (number, assigned) in splits.by_folders(records) {
        let path = splits.below(records, number);
        let Some((first, rest)) = path.split_once('/') else { continue };
        let contents = contents.entry((assigned.split, first)).or_default();
        match rest.split_once('/') {
            None => contents.images += 1,
            Some((folder, rest)) => {
                contents.is_deeper |= rest.contains('/');
                if around(path) != first {
                    contents.example.get_or_insert(path);
                }
                if contents.folders.len() < 2 {
                    contents.folders.insert(folder);
                }
            }
        }
    }
    contents.retain(|_, contents| {
        let is_layout = !contents.is_deeper
            && contents.folders.len() == 1
            && contents.folders.iter().all(|folder| is_layout_folder(folder));
        contents.images == 0 && !is_layout
    });
    // If no name differs, both readings agree.
    let found = contents.iter().find_map(|((_, first), contents)| Some((first, contents.example?)));
    let Some((first, example)) = found else { return Ok(false) };
    match records.options.class_folder {
        Some(ClassFolder::First) => Ok(true),
        Some(ClassFolder::Last) => {
            let deep: Vec<usize> = splits.by_folders(records).map(|(number, _)| number).collect();
            for number in deep {
                if let Some(slash) = folder_order(splits.below(records, number)).0.rfind('/') {
                    splits.descend(number, slash + 1);
                }
            }
            Ok(true)
        }
        None => {
            let last = around(example);
            Err(records.wrong(format!(
                "the class of `{example}` and of others could be `{first}`, the first folder below the split, or \
                 `{last}`, the folder around the image: `--class-folder first` or `--class-folder last` decides; \
                 `--splits NAME=GLOB` if `{first}` is a split, a csv of paths and labels if a class is several folders"
            )))
        }
    }
}

/// Warns of classes that merge folders of equal names in several places, by `--class-folder last`.
pub(super) fn merged_folders(records: &Records<'_>, splits: &Splits) -> Option<String> {
    if records.options.class_folder != Some(ClassFolder::Last) {
        return None;
    }
    let mut places: BTreeMap<(u16, &str), BTreeSet<&str>> = BTreeMap::new();
    for (number, assigned) in splits.by_folders(records) {
        let path = &records.list[number].path;
        if let Some((class, _)) = splits.below(records, number).split_once('/') {
            let place = &path[..assigned.below as usize + class.len()];
            places.entry((assigned.split, class)).or_default().insert(place);
        }
    }
    places.retain(|_, places| places.len() > 1);
    let ((_, class), folders) = places.first_key_value()?;
    let names: BTreeSet<&str> = places.keys().map(|(_, class)| *class).collect();
    let folders: Vec<&str> = folders.iter().copied().collect();
    Some(format!(
        "{} classes are folders of one name in several places; `{class}`, for one, is {}",
        names.len(),
        examples(&folders)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minus_one_null_and_empty_are_absent_and_whole_floats_are_numbers() {
        for text in ["", "-1", "-1.0", "nan", "NaN"] {
            assert_eq!(parse(text), Parsed::Absent, "{text}");
        }
        let number = |value, padded| Parsed::Number { value, padded };
        assert_eq!(
            [parse("0"), parse("10.0"), parse("007")],
            [number(0, false), number(10, false), number(7, true)]
        );
        assert_eq!([parse("+1"), parse("-2")], [Parsed::Negative, Parsed::Negative]);
        for text in ["1.5", "a", "1e3", "n01", "99999999999999999999999", "."] {
            assert_eq!(parse(text), Parsed::Name, "{text}");
        }
    }
}
