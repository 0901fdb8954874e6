//! WebDataset shards, in which members with one key and several endings are one sample.
//!
//! A key ends at the first dot of the file name, as in webdataset. `key.jpg` is the image; its label is in
//! `key.cls` (a number or a name) or in `key.json`. Other members of a sample, such as a mask `key.seg.png`, are
//! not separate images.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::super::SourceFormat;
use super::super::archive::Member;
use super::super::names::{examples, file_name, is_among, is_image, is_image_ending};
use super::super::records::{Evidence, Fault, ImageBytes, Naming, Record, Records, shown};
use super::{LABEL_NAMES, SPLIT_NAME, Tar, choose_column, push_others};
use crate::ingest::{IngestError, IngestOptions};

/// Content of a label's member.
#[derive(Clone, Debug, PartialEq, Eq)]
enum LabelText {
    /// A number or a name, and the json field that contained it.
    Text(String, Option<String>),
    /// An explicit statement that the image has no label.
    Absent,
    /// A description of an image without a label.
    None,
    /// Unreadable content, with the reason.
    Unreadable(String),
}

/// Splits a path at the first dot after the last slash into key and ending.
fn split_name(path: &str) -> (&str, &str) {
    let name = path.len() - file_name(path).len();
    match path[name..].find('.') {
        Some(dot) => (&path[..name + dot], &path[name + dot + 1..]),
        None => (path, ""),
    }
}

/// Returns whether a member's name is that of a label.
pub(super) fn is_label(path: &str) -> bool {
    is_label_ending(split_name(path).1)
}

fn is_label_ending(ending: &str) -> bool {
    is_among(ending, &["cls", "json"])
}

/// Keeps only the fields of a json member that may contain a label, since millions of descriptions would fill the
/// memory. Invalid JSON is kept for its error.
pub(super) fn keep_labels(member: &mut Member, column: Option<&str>) {
    let Some(text) = &member.text else { return };
    if !split_name(&member.path).1.eq_ignore_ascii_case("json") {
        return;
    }
    if let Ok(serde_json::Value::Object(mut fields)) = serde_json::from_slice(text) {
        match column {
            // The names of the other fields are kept for an error.
            Some(column) => fields.iter_mut().filter(|(name, _)| *name != column).for_each(|(_, value)| {
                value.take();
            }),
            None => fields.retain(|name, _| is_among(name, &LABEL_NAMES) || is_among(name, &[SPLIT_NAME])),
        }
        let kept = serde_json::to_vec(&fields).expect("JSON is written as JSON");
        member.text = Some(kept.into());
    }
}

/// Reads the label of a member; `column` names the field of a `.json`.
fn read_label(member: &Member, column: Option<&str>) -> LabelText {
    let unreadable = |reason: &str| LabelText::Unreadable(format!("holds no label: {reason}"));
    let Some(bytes) = &member.text else { return unreadable("it is too long for one") };
    let Ok(text) = std::str::from_utf8(bytes).map(str::trim) else {
        return unreadable("it is not UTF-8 text");
    };
    if split_name(&member.path).1.eq_ignore_ascii_case("cls") {
        return match text {
            "" => unreadable("it is empty"),
            text => LabelText::Text(text.to_owned(), None),
        };
    }
    let Ok(value) = serde_json::from_str::<serde_json::Value>(text) else {
        return unreadable("it is not JSON");
    };
    let names: Vec<&str> =
        value.as_object().into_iter().flat_map(|fields| fields.keys().map(String::as_str)).collect();
    let field = match column {
        Some(column) => Some(column),
        None => match choose_column(&names, "--label-column", None, &LABEL_NAMES) {
            Ok(found) => found.map(|at| names[at]),
            Err(reason) => return LabelText::Unreadable(format!("can be read in several ways: {reason}")),
        },
    };
    match field.and_then(|field| Some((field, value.get(field)?))) {
        Some((field, serde_json::Value::String(name))) if !name.is_empty() => {
            LabelText::Text(name.clone(), Some(field.to_owned()))
        }
        Some((field, serde_json::Value::Number(number))) => {
            LabelText::Text(number.to_string(), Some(field.to_owned()))
        }
        Some((_, serde_json::Value::Null)) => LabelText::Absent,
        None => LabelText::None,
        Some(_) => unreadable("it is neither a name nor a number"),
    }
}

/// Returns whether a json member has a field `split`.
fn names_split(text: &[u8]) -> bool {
    let fields = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(text);
    fields.is_ok_and(|fields| fields.keys().any(|name| name.eq_ignore_ascii_case(SPLIT_NAME)))
}

/// Returns whether a tar contains samples with labels, or, if no image has a folder, samples of several members.
pub(super) fn has_samples(tar: &Tar, options: &IngestOptions) -> bool {
    let taken = || tar.index.members.iter().filter(|member| !is_ignored(options, tar, member));
    let labelled: HashSet<&str> =
        taken().filter(|member| member.text.is_some()).map(|member| split_name(&member.path).0).collect();
    let images = || taken().filter(|member| is_image(&member.path));
    if images().any(|image| labelled.contains(split_name(&image.path).0)) {
        return true;
    }
    // `1.jpg` beside `1.seg.jpg`, if no folder can be a class.
    let (plain, other): (Vec<&Member>, Vec<&Member>) =
        images().partition(|image| is_image_ending(split_name(&image.path).1));
    let keys: HashSet<&str> = plain.iter().map(|image| split_name(&image.path).0).collect();
    let has_folders = images().any(|image| below_a_folder("", image).is_some());
    !has_folders && other.iter().any(|image| keys.contains(split_name(&image.path).0))
}

/// Returns whether `--ignore` leaves a member out.
fn is_ignored(options: &IngestOptions, tar: &Tar, member: &Member) -> bool {
    if options.ignore.is_empty() {
        return false;
    }
    let path = shown(&tar.name, &member.path);
    // Each pattern is tried, so that each records its match.
    options.ignore.iter().filter(|glob| glob.matches(&path)).count() > 0
}

/// Members of a tar, by their role.
#[derive(Debug, Default)]
struct Samples<'a> {
    /// Images, each with its label's member.
    images: Vec<(&'a Member, Option<&'a Member>)>,
    /// Members with an image's name whose sample has no image, since its key ends at an earlier dot.
    lost: Vec<&'a Member>,
    others: Vec<&'a Member>,
}

/// Groups members by key.
///
/// # Errors
/// The names of two images of one sample.
fn samples(members: &[Member]) -> Result<Samples<'_>, (&str, &str)> {
    let mut labels: HashMap<&str, &Member> = HashMap::new();
    let mut images: HashMap<&str, &Member> = HashMap::new();
    for member in members {
        let (key, ending) = split_name(&member.path);
        if is_label_ending(ending) {
            // A `.cls` beats a `.json`.
            let known = labels.entry(key).or_insert(member);
            if ending.eq_ignore_ascii_case("cls") {
                *known = member;
            }
        } else if is_image_ending(ending)
            && let Some(other) = images.insert(key, member)
        {
            return Err((&other.path, &member.path));
        }
    }
    let mut samples = Samples::default();
    for member in members {
        let (key, ending) = split_name(&member.path);
        if is_image_ending(ending) {
            samples.images.push((member, labels.get(key).copied()));
        } else if is_image(&member.path) && !images.contains_key(key) {
            samples.lost.push(member);
        } else if !is_label_ending(ending) {
            samples.others.push(member);
        }
    }
    Ok(samples)
}

/// Returns the image's path, if it has a folder in its tar.
fn below_a_folder(tar_name: &str, image: &Member) -> Option<String> {
    image.path.trim_start_matches("./").contains('/').then(|| shown(tar_name, &image.path))
}

/// Properties of the labels of all samples.
#[derive(Default)]
struct Found {
    /// Fields of json members that contain labels.
    fields: BTreeSet<String>,
    labelled: u64,
    /// Number of json members without such a field; `known` is one of them.
    without_field: u64,
    known: Option<Arc<[u8]>>,
    /// An image that has no label but a folder.
    in_folder: Option<String>,
    has_split: bool,
}

impl Found {
    /// Returns the evidence of an image's class.
    ///
    /// # Errors
    /// If the label's member cannot be read.
    fn evidence(
        &mut self,
        records: &mut Records<'_>,
        tar: &Tar,
        image: &Member,
        label: Option<&Member>,
    ) -> Result<Evidence, IngestError> {
        let options = records.options;
        if let Some(member) = label {
            self.has_split = self.has_split || member.text.as_deref().is_some_and(names_split);
            match read_label(member, options.label_column.as_deref()) {
                LabelText::Unreadable(reason) if !options.unlabelled => {
                    let reason = format!("its member `{}` {reason}", member.path);
                    return Err(IngestError::layout(&tar.location, reason));
                }
                LabelText::Text(text, field) => {
                    self.labelled += 1;
                    self.fields.extend(field);
                    return Ok(Evidence::Text(records.word(&text)));
                }
                LabelText::Absent => return Ok(Evidence::Absent),
                LabelText::Unreadable(_) | LabelText::None => {
                    self.without_field += 1;
                    self.known = self.known.take().or_else(|| member.text.clone());
                }
            }
        }
        self.in_folder = self.in_folder.take().or_else(|| below_a_folder(&tar.name, image));
        Ok(Evidence::Absent)
    }

    /// Notes the origin of the labels.
    ///
    /// # Errors
    /// If the labels are ambiguous, or `--label-column` has no effect.
    fn tell(self, records: &mut Records<'_>) -> Result<(), IngestError> {
        let Self { fields, labelled, without_field, known, in_folder, has_split } = self;
        let options = records.options;
        if has_split {
            let warning = "the field `split` of the json members is not read; names of tars and `--splits` say \
                           what is which split";
            records.warn(warning.into());
        }
        if options.unlabelled {
            return Ok(());
        }
        if let Some(example) = in_folder.filter(|_| options.format != SourceFormat::Webdataset) {
            return Err(records.wrong(format!(
                "{labelled} images have a label in a member beside them and `{example}`, for one, has none, \
                 but a folder: `--format webdataset` takes it without a label, `--ignore '*.cls'` or \
                 `'*.json'` takes the folders as classes"
            )));
        }
        if let Some(column) = options.label_column.as_ref().filter(|_| fields.is_empty()) {
            let known = known.and_then(|text| serde_json::from_slice(&text).ok());
            let known: serde_json::Map<String, serde_json::Value> = known.unwrap_or_default();
            let known: Vec<&String> = known.keys().collect();
            let known =
                if known.is_empty() { String::new() } else { format!("; one has {}", examples(&known)) };
            return Err(records.wrong(format!(
                "`--label-column {column}` has no effect: no json member has such a field{known}"
            )));
        }
        if !fields.is_empty() {
            let all: Vec<&String> = fields.iter().collect();
            let names = examples(&all);
            if fields.len() > 1 {
                let reason = format!(
                    "labels are in different fields of the json members, {names}: `--label-column` names one"
                );
                return Err(records.wrong(reason));
            }
            records.note(format!("labels: from the field {names} of the json members"));
        }
        if without_field > 0 {
            records.warn(format!(
                "{without_field} json members have none of the fields {} (`--label-column` names another)",
                options.label_column.as_deref().map_or_else(|| LABEL_NAMES.join(", "), str::to_owned)
            ));
        }
        Ok(())
    }
}

/// Adds the samples.
pub(super) fn collect(records: &mut Records<'_>, tars: Vec<Tar>) -> Result<(), IngestError> {
    records.naming = Naming::ByLabel;
    let options = records.options;
    let mut found = Found::default();
    for mut tar in tars {
        let origin = records.add_origin(&tar.name);
        push_others(records, origin, &tar.index);
        let members: Vec<Member> = std::mem::take(&mut tar.index.members);
        // One of two images of a sample may be ignored.
        let (ignored, members): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| is_ignored(options, &tar, member));
        for member in &ignored {
            records.pass_over(origin, "ignored", &member.path);
        }
        let samples = samples(&members).map_err(|(one, other)| {
            let reason =
                format!("one sample has two images, `{one}` and `{other}`: `--ignore GLOB` leaves one out");
            IngestError::layout(&tar.location, reason)
        })?;
        let container = records.containers.add_file(tar.file.clone());
        for (image, label) in samples.images {
            let evidence = found.evidence(records, &tar, image, label)?;
            let place = ImageBytes { container, extent: image.extent.clone(), bytes: image.bytes };
            records.push(Record::new(origin, image.path.as_str(), evidence, place));
        }
        for member in samples.lost {
            records.push(Record::rejected(origin, &member.path, Fault::KeyEndsAtFirstDot));
        }
        for member in samples.others {
            records.pass_over(origin, "other members of a sample", &member.path);
        }
    }
    found.tell(records)
}

#[cfg(test)]
mod tests {
    use super::super::super::archive::Extent;
    use super::*;

    fn member(path: &str, text: &[u8]) -> Member {
        let text = is_label(path).then(|| text.into());
        Member { path: path.into(), bytes: 1, extent: Extent::Range { offset: 0 }, text }
    }

    #[test]
    fn a_cls_wins_over_a_json_and_masks_are_not_images() {
        let members = [
            "1.cls",
            "1.jpg",
            "1.json",
            "1.seg.png",
            "2.jpg",
            "3.txt",
            "4.5kg.jpg",
            "5",
            "a.b/6.png",
            "a.b/6.cls",
        ];
        let members = members.map(|path| member(path, b"1"));
        let found = samples(&members).expect("one image each");
        let images: Vec<_> = found
            .images
            .iter()
            .map(|(image, label)| (image.path.as_str(), label.map(|member| member.path.as_str())))
            .collect();
        assert_eq!(
            images,
            [("1.jpg", Some("1.cls")), ("2.jpg", None), ("a.b/6.png", Some("a.b/6.cls"))],
            "a key ends at the first dot of the file's name"
        );
        let names =
            |members: &[&Member]| members.iter().map(|member| member.path.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&found.lost), names(&found.others)),
            (vec!["4.5kg.jpg".into()], vec!["1.seg.png".into(), "3.txt".into(), "5".into()])
        );
        let twice = ["1.jpg", "1.png"].map(|path| member(path, b""));
        assert_eq!(samples(&twice).expect_err("two images"), ("1.jpg", "1.png"));
    }

    #[test]
    fn labels_are_read_from_text_and_from_json() {
        let read = |path: &str, text: &[u8]| {
            let mut member = member(path, text);
            keep_labels(&mut member, None);
            read_label(&member, None)
        };
        let text = |text: &str, field: Option<&str>| LabelText::Text(text.into(), field.map(str::to_owned));
        assert_eq!(read("1.cls", b" 17\n"), text("17", None));
        assert_eq!(read("1.CLS", b"n01440764"), text("n01440764", None));
        assert_eq!(read("1.JSON", br#"{"label": 3}"#), text("3", Some("label")));
        assert_eq!(read("1.json", br#"{"label": 3, "caption": "x"}"#), text("3", Some("label")));
        assert_eq!(read("1.json", br#"{"label": -1}"#), text("-1", Some("label")));
        assert_eq!(read("1.json", br#"{"Class_Name": "fish"}"#), text("fish", Some("Class_Name")));
        let LabelText::Unreadable(reason) = read("1.json", br#"{"wnid": "n1", "class": "fish"}"#) else {
            panic!("two fields could be meant");
        };
        assert!(reason.contains("`wnid`, `class`: `--label-column` names one"), "{reason}");
        assert_eq!(read("1.json", br#"{"caption": "x"}"#), LabelText::None);
        for bytes in [&b"{"[..], br#"{"label": [1]}"#, &[0xFF]] {
            assert!(matches!(read("1.json", bytes), LabelText::Unreadable(_)));
        }
        assert!(matches!(read("1.cls", b" "), LabelText::Unreadable(_)));
        let named = read_label(&member("1.json", br#"{"label": 3, "kind": "x"}"#), Some("kind"));
        assert_eq!(named, text("x", Some("kind")));
    }
}
