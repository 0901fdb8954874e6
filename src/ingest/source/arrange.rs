//! Arranges records into a source: each image's split, class and path, decided over all records together.
//!
//! [`HoldOut`] then makes another split of a share of each class, for a source without splits.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::classes::{Classes, Label, choose_class_folders, merged_folders, strip_common_folders};
use super::names::{
    as_path_part, check_split_names, examples, file_name, folder_order, is_layout_folder, is_split_word,
    split_meaning, without_image_ending,
};
use super::records::{Entry, Evidence, Fault, ImageBytes, Naming, Records};
use super::splits::Splits;
use super::{ClassFolder, Source, SourceFormat, SourcePlan};
use crate::ids::ClassId;
use crate::ingest::{IngestError, IngestOptions};

/// Decides splits, classes and paths.
///
/// # Errors
/// If there is no image, the source is ambiguous, or an option has no effect.
pub(super) fn arrange(mut records: Records<'_>, format: SourceFormat) -> Result<Source, IngestError> {
    let options = records.options;
    if let Some(glob) = options.ignore.iter().find(|glob| !glob.has_matched()) {
        return Err(records.wrong(format!("`--ignore {}` matches nothing", glob.text())));
    }
    if records.list.iter().all(|record| record.fault.is_some()) {
        let reason = match records.list.first() {
            Some(record) => format!(
                "none of its {} images can be taken; `{}`: {}",
                records.list.len(),
                records.shown(record),
                record.fault.map_or_else(String::new, |fault| fault.to_string())
            ),
            None => "there is no image in it".into(),
        };
        return Err(records.wrong(reason));
    }
    let mut splits = Splits::find(&records)?;
    check_split_names(&splits.names).map_err(|reason| records.wrong(reason))?;
    if let Some(name) = options.unlabelled_splits.iter().find(|name| !splits.names.contains(name)) {
        let reason = format!("`--unlabelled-split {name}`: there are {}", examples(&splits.names));
        return Err(records.wrong(reason));
    }
    let mut understood = vec![std::mem::take(&mut splits.understood)];
    let above: Vec<String> = strip_common_folders(&records, &mut splits).into_iter().collect();
    if !above.is_empty() {
        understood.push(format!("class folders: below {}, with all images of a split", examples(&above)));
    }
    let is_deep = choose_class_folders(&records, &mut splits)?;
    if let Some(folder) = options.class_folder {
        if !is_deep {
            let reason = "`--class-folder` has no effect: no class can be read in two ways from folders";
            return Err(records.wrong(reason));
        }
        let which = match folder {
            ClassFolder::First => "the first folder below the split",
            ClassFolder::Last => "the folder around the image",
        };
        understood.push(format!("class folders: {which}, by `--class-folder`"));
    }
    let unused_labels = check_given_labels(&records, &splits)?;
    find_stray_images(&mut records, &splits)?;
    let labels = labels_of(&records, &splits);
    let classes = Classes::find(&records, &labels)?;
    check_lone_classes(&records, &splits, &labels)?;
    understood.extend(classes.understood.clone());
    understood.extend_from_slice(&records.understood);
    let mut warnings = records.warnings.clone();
    warnings.append(&mut splits.warnings);
    warnings.extend(merged_folders(&records, &splits));
    warnings.extend(
        classes.warnings.iter().cloned().chain(unused_labels).chain(double_labels(&records, &labels)),
    );
    let image_of = |(number, label): (usize, &Label<'_>)| {
        let class = classes.class(label);
        let folder = class.map(|class| as_path_part(&classes.names[class.index()]));
        (path(&records, &splits, number, folder), class)
    };
    let images: Vec<(String, Option<ClassId>)> = labels.iter().enumerate().map(image_of).collect();
    drop(labels);
    let (mut entries, other_splits) = entries_of(&mut records, &splits, images);
    if other_splits > 0 {
        understood.push(format!("{other_splits} images of other splits are left out"));
    }
    if let Some(hold_out) = &options.hold_out {
        // Appended to the first sentence, since it changes the splits.
        let held_out = hold_out.apply(&mut entries).map_err(|reason| records.wrong(reason))?;
        understood[0] += &format!("; {held_out}");
    }
    warn(&mut warnings, options, &entries, &classes.names);
    let Records { containers, passed_over, stamps, .. } = records;
    let plan = SourcePlan::new(format, &entries, &classes.names, passed_over, understood, warnings);
    Ok(Source {
        format,
        splits: entries,
        classes: classes.names,
        plan,
        containers,
        stamps,
        tables: Vec::new(),
    })
}

/// Returns the images of each split, by class and path, and the number of images of splits that were not requested;
/// `images` has path and class of each record.
fn entries_of(
    records: &mut Records<'_>,
    splits: &Splits,
    images: Vec<(String, Option<ClassId>)>,
) -> (BTreeMap<String, Vec<Entry>>, u64) {
    let mut entries: BTreeMap<String, Vec<Entry>> =
        splits.names.iter().map(|name| (name.clone(), Vec::new())).collect();
    let mut folders: HashMap<String, u32> = HashMap::new();
    let mut other_splits = 0_u64;
    let rows = std::mem::take(&mut records.list).into_iter().zip(&splits.of).zip(images);
    for ((record, assigned), (path, class)) in rows {
        let Some(assigned) = assigned else {
            other_splits += 1;
            records.leave_out(record.origin, "of another split than asked for", &record.path);
            continue;
        };
        let mut container = record.place.container;
        let mut read_path = None;
        if let Some((folder, root)) = &records.folder
            && container == *folder
            && *record.path != *path
        {
            match record.path.strip_suffix(&*path).filter(|prefix| prefix.ends_with('/')) {
                // The files of a split have one folder above them, whose name is not stored with each.
                Some(prefix) => {
                    container = *folders.entry(prefix.to_owned()).or_insert_with(|| {
                        records.containers.add_folder(root.join(prefix.trim_end_matches('/')))
                    });
                }
                None => read_path = Some(record.path.clone()),
            }
        }
        let name = &splits.names[usize::from(assigned.split)];
        let list = entries.get_mut(name).expect("every split has a list");
        let path = path.into_boxed_str();
        let ImageBytes { bytes, extent, .. } = record.place;
        list.push(Entry { path, class, bytes, fault: record.fault, container, extent, read_path });
    }
    for list in entries.values_mut() {
        // Images without a label come last; a stable sort keeps the source's order of equal paths.
        list.sort_by(|a, b| {
            let key = |entry: &Entry| entry.class.map_or(u32::MAX, |class| u32::from(class.0));
            (key(a), folder_order(&a.path)).cmp(&(key(b), folder_order(&b.path)))
        });
    }
    (entries, other_splits)
}

/// Sets a fault on images beside class folders; fails for splits without any class.
fn find_stray_images(records: &mut Records<'_>, splits: &Splits) -> Result<(), IngestError> {
    let mut in_class = vec![0_u64; splits.names.len()];
    let mut labelled = in_class.clone();
    let mut flat: Vec<Vec<usize>> = vec![Vec::new(); splits.names.len()];
    for (number, assigned) in splits.by_folders(records) {
        let split = usize::from(assigned.split);
        if splits.below(records, number).contains('/') {
            in_class[split] += 1;
        } else if given_labels(records, splits, number).next().is_some() {
            labelled[split] += 1;
        } else {
            flat[split].push(number);
        }
    }
    let labelled_by_list: u64 = labelled.iter().sum();
    if records.options.labels.is_some() && labelled_by_list == 0 {
        let listed = records.labels.iter().flatten().map(|(name, _)| name).min().map_or("", String::as_str);
        let image = flat.iter().flatten().next().map(|&number| records.shown(&records.list[number]));
        let there = match image {
            Some(image) => format!("it names `{listed}`, for one, and an image is `{image}`"),
            None => "all images are in class folders".into(),
        };
        let reason = format!("`--labels` has no effect: it labels images outside class folders; {there}");
        return Err(records.wrong(reason));
    }
    if in_class.iter().sum::<u64>() + labelled_by_list == 0 {
        let Some(&number) = flat.iter().flatten().next() else { return Ok(()) };
        let reason = format!(
            "there are images, such as `{}`, but no class folders: `--unlabelled` takes them without classes, \
             `--labels FILE` names their classes",
            records.shown(&records.list[number])
        );
        return Err(records.wrong(reason));
    }
    for (split, flat) in flat.into_iter().enumerate() {
        if let (Some(&number), true) = (flat.first(), labelled[split] > 0) {
            let reason = format!(
                "{} images, such as `{}`, are not in the list of labels, which names {} of their split",
                flat.len(),
                records.shown(&records.list[number]),
                labelled[split]
            );
            return Err(records.wrong(reason));
        }
        // A split without class folders, such as a flat `test/`, is unlabelled.
        if in_class[split] > 0 {
            flat.into_iter().for_each(|number| records.list[number].fault = Some(Fault::OutsideClasses));
        }
    }
    Ok(())
}

/// Returns the labels that a list gives an image, each with the list's name of the image: its path from the source or
/// from its split, or its file name, each with or without the image's extension.
fn given_labels<'a>(
    records: &'a Records<'_>,
    splits: &Splits,
    number: usize,
) -> impl Iterator<Item = (String, &'a str)> {
    let record = &records.list[number];
    let below = splits.below(records, number).to_owned();
    let names = [records.shown(record), below, file_name(&record.path).to_owned()];
    let spellings = names.into_iter().flat_map(|name| {
        let stem = without_image_ending(&name).to_owned();
        [name, stem]
    });
    let labels = records.labels.as_ref();
    spellings.filter_map(move |name| {
        let word = *labels?.get(&name)?;
        Some((name, records.text(word)))
    })
}

/// Checks that names of the list are unambiguous, and give each image one label. Warns of names that belong to no
/// image.
fn check_given_labels(records: &Records<'_>, splits: &Splits) -> Result<Option<String>, IngestError> {
    let Some(labels) = &records.labels else { return Ok(None) };
    let mut named: HashMap<String, usize> = HashMap::new();
    for (number, _) in splits.by_folders(records) {
        if splits.below(records, number).contains('/') {
            continue;
        }
        let record = &records.list[number];
        let mut first: Option<(String, &str)> = None;
        for (words, label) in given_labels(records, splits, number) {
            if let Some((other, of_other)) = &first
                && *of_other != label
            {
                let reason = format!(
                    "the list of labels names `{}` twice, as `{other}` ({of_other}) and as `{words}` ({label})",
                    records.shown(record)
                );
                return Err(records.wrong(reason));
            }
            first.get_or_insert((words.clone(), label));
            if let Some(other) = named.insert(words.clone(), number).filter(|other| *other != number) {
                return Err(records.wrong(format!(
                    "`{words}` of the list of labels is the name of `{}` and of `{}`: write paths below the \
                     source into the list, or take one split alone (`--split NAME`), or no labels of the \
                     other (`--unlabelled-split NAME`)",
                    records.shown(&records.list[other]),
                    records.shown(record)
                )));
            }
        }
    }
    let unused: Vec<&String> = labels.keys().filter(|name| !named.contains_key(*name)).collect();
    let example = unused.iter().min().filter(|_| !named.is_empty());
    Ok(example.map(|example| {
        format!(
            "{} of {} names of the list of labels are of no image, such as `{example}`",
            unused.len(),
            labels.len()
        )
    }))
}

fn labels_of<'a>(records: &'a Records<'_>, splits: &Splits) -> Vec<Label<'a>> {
    let all = records.list.iter().zip(&splits.of).enumerate();
    all.map(|(number, (record, assigned))| {
        let Some(assigned) = assigned else { return Label::None };
        // An image that is not taken makes no class.
        if record.fault.is_some() || splits.is_unlabelled(records.options, *assigned) {
            return Label::None;
        }
        match record.evidence {
            Evidence::Absent => Label::None,
            Evidence::Text(word) => Label::Text(records.text(word).trim()),
            Evidence::Folders => match splits.below(records, number).split_once('/') {
                Some((class, _)) => Label::Name(class),
                None => {
                    let given = given_labels(records, splits, number).next();
                    given.map_or(Label::None, |(_, text)| Label::Text(text.trim()))
                }
            },
        }
    })
    .collect()
}

/// Rejects a split whose only class folder is a class of no other split: it is probably flat, in one more folder.
fn check_lone_classes(
    records: &Records<'_>,
    splits: &Splits,
    labels: &[Label<'_>],
) -> Result<(), IngestError> {
    let mut classes: Vec<BTreeSet<&str>> = vec![BTreeSet::new(); splits.names.len()];
    for (label, assigned) in labels.iter().zip(&splits.of) {
        if let (Label::Name(name), Some(assigned)) = (label, assigned) {
            classes[usize::from(assigned.split)].insert(name);
        }
    }
    let of_several: BTreeSet<&str> = classes.iter().filter(|own| own.len() > 1).flatten().copied().collect();
    for (name, own) in splits.names.iter().zip(&classes) {
        if let (1, Some(class), false) = (own.len(), own.first(), of_several.is_empty())
            && !of_several.contains(class)
        {
            return Err(records.wrong(format!(
                "all images of split `{name}` are in one folder `{class}`, which is not a class of any other split: \
                 `--unlabelled-split {name}` takes them without classes, `--labels FILE` names their \
                 classes, `--split NAME` takes another split alone, `--ignore GLOB` leaves them out"
            )));
        }
    }
    Ok(())
}

/// Warns of files that a list names with several labels, since each line counts as one image.
fn double_labels(records: &Records<'_>, labels: &[Label<'_>]) -> Option<String> {
    if records.naming != Naming::AsIs {
        return None;
    }
    let mut known: HashMap<&str, &Label<'_>> = HashMap::new();
    let mut first = None;
    let mut count = 0_u64;
    for (record, label) in records.list.iter().zip(labels) {
        let other = known.insert(&record.path, label).filter(|other| *other != label);
        count += u64::from(other.is_some());
        first = first.or_else(|| other.map(|other| (&record.path, other, label)));
    }
    let (path, other, label) = first?;
    let text = |label: &Label<'_>| match label {
        Label::None => "none".to_owned(),
        Label::Name(text) | Label::Text(text) => format!("`{text}`"),
    };
    Some(format!(
        "{count} times a file has another label than before; `{path}` has two labels, {} and {}: each line \
         is an image of its own",
        text(other),
        text(label)
    ))
}

/// Returns the path of an image in the dataset.
fn path(records: &Records<'_>, splits: &Splits, number: usize, class: Option<String>) -> String {
    let record = &records.list[number];
    match (records.naming, class) {
        (Naming::AsIs, _) | (Naming::ByLabel, None) => record.path.to_string(),
        (Naming::ByLabel, Some(class)) => format!("{class}/{}", file_name(&record.path)),
        (Naming::BelowSplit, class) => {
            let below = splits.below(records, number);
            match class {
                // A list of labels gives the class.
                Some(class) if !below.contains('/') => format!("{class}/{below}"),
                _ => below.to_owned(),
            }
        }
    }
}

/// Adds warnings that a user should read before an ingest.
fn warn(
    warnings: &mut Vec<String>,
    options: &IngestOptions,
    entries: &BTreeMap<String, Vec<Entry>>,
    classes: &[String],
) {
    let labelled = entries.values().flatten().filter(|entry| entry.class.is_some()).count();
    if labelled == 0 && !options.unlabelled {
        warnings.push("no image has a label".into());
    }
    if let ([class], true) = (classes, labelled > 0) {
        warnings.push(format!("there is one class only, `{class}`"));
    }
    let named: BTreeSet<_> = entries.values().flatten().filter_map(|entry| entry.class.as_ref()).collect();
    if named.len() > 1 && named.len() == labelled {
        warnings.push(format!(
            "each of the {labelled} classes has one image: no vote can find a second of its class"
        ));
    }
    for class in classes {
        let word = class.trim_end_matches(|c: char| c.is_ascii_digit());
        if is_split_word(word) {
            warnings.push(format!("the class `{class}` is called like a split"));
        } else if is_layout_folder(class) {
            warnings.push(format!("the class `{class}` is called like a folder of a layout"));
        }
    }
    let of_split =
        |list: &[Entry]| -> BTreeSet<u16> { list.iter().filter_map(|entry| Some(entry.class?.0)).collect() };
    let sets = entries.iter().map(|(name, list)| (name, of_split(list)));
    let sets: Vec<(&String, BTreeSet<u16>)> = sets.filter(|(_, classes)| !classes.is_empty()).collect();
    let mut disjoint = Vec::new();
    for (place, (one, own)) in sets.iter().enumerate() {
        let others = sets[place + 1..].iter().filter(|(_, others)| own.is_disjoint(others));
        disjoint.extend(others.map(|(other, _)| (one, other)));
    }
    if let [(one, other), rest @ ..] = disjoint.as_slice() {
        let more = match rest.len() {
            0 => String::new(),
            more => format!(", nor have {more} other pairs"),
        };
        warnings.push(format!("the splits `{one}` and `{other}` have no class in common{more}"));
    }
    for (name, list) in entries {
        let mut paths: Vec<&str> = list.iter().map(|entry| &*entry.path).collect();
        paths.sort_unstable();
        let double: Vec<&str> =
            paths.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        if !double.is_empty() {
            warnings.push(format!(
                "{} paths of split `{name}` occur more than once ({}): each counts as one image",
                double.len(),
                examples(&double)
            ));
        }
    }
}

/// Split that gets a share of a source's images, given as `NAME=SHARE`.
#[derive(Clone, Debug, PartialEq)]
pub struct HoldOut {
    /// Name of the split.
    pub split: String,
    /// Share of each class, more than 0 and less than 1.
    pub share: f64,
}

impl std::str::FromStr for HoldOut {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (split, share) =
            text.split_once('=').ok_or("expected NAME=SHARE, such as test=0.1 or test=10%")?;
        let number = share.strip_suffix('%').unwrap_or(share);
        let value: f64 = number.parse().map_err(|_| format!("`{share}` is not a number"))?;
        let share = if number.len() < share.len() { value / 100.0 } else { value };
        if !(share > 0.0 && share < 1.0) {
            return Err(format!("expected a share between 0 and 1 (or 0% and 100%), not {value}"));
        }
        check_split_names(&[split.to_owned()])
            .map_err(|_| format!("`{}` is not a name for a split", split.escape_debug()))?;
        Ok(Self { split: split.to_owned(), share })
    }
}

impl HoldOut {
    /// Moves the share of the only split into another; returns a summary.
    ///
    /// Each class gives its share, to within one image, and keeps at least one image. Within a class the paths decide
    /// which images these are, so one more image moves about one other between the sides. Both lists keep their order.
    ///
    /// # Errors
    /// If there are several splits or one of this meaning, or the share rounds to no image.
    pub(super) fn apply(&self, entries: &mut BTreeMap<String, Vec<Entry>>) -> Result<String, String> {
        let option = format!("`--hold-out {}={}%`", self.split, (1e8 * self.share).round() / 1e6);
        let names: Vec<String> = entries.keys().map(|name| format!("`{name}`")).collect();
        let mut lists = entries.iter_mut();
        let (Some((name, list)), None) = (lists.next(), lists.next()) else {
            let names = names.join(", ");
            return Err(format!(
                "{option} divides a source without splits, and this one has {names}; `--split NAME` takes one of them"
            ));
        };
        if split_meaning(name) == split_meaning(&self.split) {
            return Err(format!("{option}: the images themselves are the split `{name}`; give another name"));
        }
        // Images with faults remain in the source's split.
        let mut order: Vec<usize> = (0..list.len()).filter(|&at| list[at].fault.is_none()).collect();
        let key = |entry: &Entry| -> (Option<ClassId>, [u8; 32]) {
            (entry.class, *blake3::hash(entry.path.as_bytes()).as_bytes())
        };
        order.sort_by_cached_key(|&at| key(&list[at]));
        let share_of = |images: usize| (images as f64 * self.share).round() as usize;
        let mut is_held = vec![false; list.len()];
        let (mut before, mut counts) = (0, Vec::new());
        for class in order.chunk_by(|&a, &b| list[a].class == list[b].class) {
            let own = share_of(before + class.len()) - share_of(before);
            let own = own.min(class.len() - 1);
            class[..own].iter().for_each(|&at| is_held[at] = true);
            before += class.len();
            counts.push(own);
        }
        let all = list.len();
        let mut flags = is_held.into_iter();
        let held: Vec<Entry> = list.extract_if(.., |_| flags.next().unwrap_or(false)).collect();
        let (Some(least), Some(most)) = (counts.iter().min(), counts.iter().max()) else {
            return Err(format!("{option}: no images to draw from"));
        };
        if held.is_empty() {
            return Err(format!(
                "{option} is 0 of {all} images: each of {} classes gives its share of its own images, \
                 rounded, and keeps at least one. A larger share takes some where classes have several \
                 images; with --unlabelled it is a share of all images, without scores; --splits NAME=GLOB \
                 chooses by path",
                counts.len()
            ));
        }
        let of_each = match counts.len() {
            // One class, or no labels.
            1 => String::new(),
            _ if least == most => format!(", {least} of each class"),
            _ => format!(", {least} to {most} of each class"),
        };
        let summary = format!(
            "{option} moves {} of the {all} images of `{name}` to `{}`{of_each}",
            held.len(),
            self.split
        );
        entries.insert(self.split.clone(), held);
        Ok(summary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::source::archive::Extent;

    fn entry(class: u16, path: String) -> Entry {
        Entry {
            path: path.into(),
            class: Some(ClassId(class)),
            bytes: 1,
            fault: None,
            container: 0,
            extent: Extent::Range { offset: 0 },
            read_path: None,
        }
    }

    fn source(images: &[usize]) -> BTreeMap<String, Vec<Entry>> {
        let each = images.iter().zip(0..);
        let list = each
            .flat_map(|(&count, class)| (0..count).map(move |n| entry(class, format!("{class}/{n}.jpg"))));
        BTreeMap::from([("train".to_owned(), list.collect())])
    }

    fn held(hold_out: &HoldOut, images: &[usize]) -> Vec<String> {
        let mut entries = source(images);
        let all = entries["train"].len();
        hold_out.apply(&mut entries).expect("held out");
        assert_eq!(entries["train"].len() + entries["test"].len(), all);
        for list in entries.values() {
            assert!(list.is_sorted_by_key(|entry| entry.class), "the order stays");
        }
        entries["test"].iter().map(|entry| entry.path.to_string()).collect()
    }

    #[test]
    fn each_class_gives_its_share_and_the_order_stays() {
        let hold_out: HoldOut = "test=10%".parse().expect("a share");
        assert_eq!(hold_out, HoldOut { split: "test".into(), share: 0.1 });
        let of = |paths: &[String], class: &str| paths.iter().filter(|path| path.starts_with(class)).count();
        let paths = held(&hold_out, &[100, 40, 60]);
        assert_eq!(["0/", "1/", "2/"].map(|class| of(&paths, class)), [10, 4, 6]);
        assert_eq!(held(&hold_out, &[100, 40, 60]), paths, "the same images each time");
        let odd = held(&HoldOut { share: 0.25, ..hold_out.clone() }, &[3, 3, 3]);
        assert!(["0/", "1/", "2/"].iter().all(|class| of(&odd, class) <= 1) && odd.len() == 2, "{odd:?}");
        // One more image of the first class moves at most one other between the sides in each class.
        let more = held(&hold_out, &[101, 40, 60]);
        let changed = |class: &str| {
            let new = more.iter().filter(|path| path.starts_with(class) && !paths.contains(path)).count();
            let old = paths.iter().filter(|path| path.starts_with(class) && !more.contains(path)).count();
            new.max(old)
        };
        assert!(["0/", "1/", "2/"].iter().all(|class| changed(class) <= 1), "{paths:?} {more:?}");
        assert_eq!(held(&HoldOut { share: 0.9, ..hold_out }, &[1, 2]).len(), 1, "each class keeps an image");
    }

    #[test]
    fn a_share_that_cannot_be_taken_is_refused() {
        for (text, reason) in [
            ("test", "NAME=SHARE"),
            ("test=x", "not a number"),
            ("test=10", "between"),
            ("a/b=0.1", "`a/b` is not a name"),
        ] {
            let error = text.parse::<HoldOut>().expect_err(text);
            assert!(error.contains(reason), "{error}");
        }
        let refused = |text: &str, mut entries: BTreeMap<String, Vec<Entry>>| {
            text.parse::<HoldOut>().expect("a share").apply(&mut entries).expect_err(text)
        };
        assert!(refused("training=0.5", source(&[9])).contains("another name"));
        assert!(refused("test=0.1", source(&[3])).contains("test=10%` is 0 of 3 images"));
        let mut two = source(&[9]);
        two.insert("val".into(), Vec::new());
        assert!(refused("test=0.1", two).contains("`train`, `val`"));
    }
}
