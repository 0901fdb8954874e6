//! WebDataset shards: members with one key and several endings are one sample.
//!
//! `key.jpg` is the picture; its label is in `key.cls` (a number or a name) or in `key.json`.

use std::collections::HashMap;

use super::archive::Member;
use super::collect::{Collector, Label, Place};
use super::names::{file_name, is_picture};
use super::tars::Tar;
use super::wrong;
use crate::ingest::IngestError;

/// The endings of labels.
const LABEL_ENDINGS: [&str; 2] = ["cls", "json"];
/// The fields of a `.json` in which a label is looked for, in this order.
const LABEL_FIELDS: [&str; 6] = ["cls", "label", "class_id", "wnid", "synset", "class"];

/// What a label's member holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LabelText {
    /// A number or a name.
    Text(Box<str>),
    /// A description of a picture that has no label.
    None,
    /// Neither.
    Unreadable,
}

/// Key and ending: the name is cut at the first dot after the last slash.
fn split_name(path: &str) -> (&str, &str) {
    let name = path.len() - file_name(path).len();
    match path[name..].find('.') {
        Some(dot) => (&path[..name + dot], &path[name + dot + 1..]),
        None => (path, ""),
    }
}

/// Whether a member's name is that of a label.
pub(super) fn is_label(path: &str) -> bool {
    LABEL_ENDINGS.contains(&split_name(path).1)
}

/// Reads a label's member.
pub(super) fn read_label(path: &str, bytes: &[u8]) -> LabelText {
    let Ok(text) = std::str::from_utf8(bytes).map(str::trim) else { return LabelText::Unreadable };
    if split_name(path).1 == "cls" {
        return if text.is_empty() { LabelText::Unreadable } else { LabelText::Text(text.into()) };
    }
    let Ok(value) = serde_json::from_str::<serde_json::Value>(text) else { return LabelText::Unreadable };
    match LABEL_FIELDS.iter().find_map(|name| value.get(name)) {
        Some(serde_json::Value::String(name)) if !name.is_empty() => LabelText::Text(name.as_str().into()),
        Some(serde_json::Value::Number(number)) if number.is_u64() => {
            LabelText::Text(number.to_string().into())
        }
        None | Some(serde_json::Value::Null) => LabelText::None,
        Some(_) => LabelText::Unreadable,
    }
}

/// Whether a tar holds samples with labels.
pub(super) fn is_shard(tar: &Tar) -> bool {
    samples(&tar.index.members).any(|(_, label)| label.is_some())
}

/// Each picture with its label's member.
pub(super) fn samples(members: &[Member]) -> impl Iterator<Item = (&Member, Option<&Member>)> {
    let mut labels: HashMap<&str, &Member> = HashMap::new();
    for member in members.iter().filter(|member| member.text.is_some()) {
        let (key, ending) = split_name(&member.path);
        // A `.cls` beside a `.json` is the label.
        let known = labels.entry(key).or_insert(member);
        if ending == "cls" {
            *known = member;
        }
    }
    let pictures = members.iter().filter(|member| is_picture(&member.path));
    pictures.map(move |picture| (picture, labels.get(split_name(&picture.path).0).copied()))
}

/// Adds the samples.
pub(super) fn collect(collector: &mut Collector<'_>, tars: &mut [Tar]) -> Result<(), IngestError> {
    let split = collector.default_split();
    for tar in tars {
        let container = tar.keep(collector);
        let members = &tar.index.members;
        let others = members.iter().filter(|member| !is_picture(&member.path) && member.text.is_none());
        collector.passed_over += others.count() as u64;
        for (picture, label) in samples(members) {
            let label =
                label.and_then(|member| Some((member, read_label(&member.path, member.text.as_ref()?))));
            let label = match &label {
                Some((_, LabelText::Text(text))) => number_or_name(text),
                Some((member, LabelText::Unreadable)) if !collector.options.unlabelled => {
                    let reason = format!("its member {} holds no label", member.path);
                    return Err(wrong(&tar.location, reason));
                }
                _ => Label::None,
            };
            let name = file_name(&picture.path);
            let path = match label {
                Label::None => picture.path.clone(),
                Label::Name(class) => format!("{class}/{name}"),
                Label::Number(class) => format!("{class}/{name}"),
            };
            let place = Place { container, extent: picture.extent.clone(), bytes: picture.bytes };
            collector.add(&split, &path, label, place)?;
        }
    }
    Ok(())
}

/// A label of digits is a number.
pub(super) fn number_or_name(text: &str) -> Label<'_> {
    match text.parse::<u64>() {
        Ok(number) if text.bytes().all(|byte| byte.is_ascii_digit()) => Label::Number(number),
        _ => Label::Name(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::source::archive::Extent;

    #[test]
    fn a_key_ends_at_the_first_dot_of_the_name() {
        assert_eq!(split_name("a.b/key.seg.png"), ("a.b/key", "seg.png"));
        assert_eq!(split_name("key"), ("key", ""));
    }

    #[test]
    fn a_cls_wins_over_a_json() {
        let member = |path: &str| {
            let text = is_label(path).then(|| b"1"[..].into());
            Member { path: path.into(), bytes: 1, extent: Extent::Range { offset: 0 }, text }
        };
        let members = [member("1.cls"), member("1.jpg"), member("1.json"), member("2.jpg"), member("3.txt")];
        let found: Vec<_> = samples(&members)
            .map(|(picture, label)| (picture.path.as_str(), label.map(|member| member.path.as_str())))
            .collect();
        assert_eq!(found, [("1.jpg", Some("1.cls")), ("2.jpg", None)]);
    }

    #[test]
    fn labels_are_read_from_text_and_from_json() {
        let text = |text: &str| LabelText::Text(text.into());
        assert_eq!(read_label("1.cls", b" 17\n"), text("17"));
        assert_eq!(read_label("1.cls", b"n01440764"), text("n01440764"));
        assert_eq!(read_label("1.json", br#"{"label": 3, "caption": "x"}"#), text("3"));
        assert_eq!(read_label("1.json", br#"{"wnid": "n1", "class": "fish"}"#), text("n1"));
        assert_eq!(read_label("1.json", br#"{"caption": "x"}"#), LabelText::None);
        for bytes in [&b"{"[..], br#"{"label": -1}"#, br#"{"label": [1]}"#, &[0xFF]] {
            assert_eq!(read_label("1.json", bytes), LabelText::Unreadable);
        }
        assert_eq!(read_label("1.cls", b" "), LabelText::Unreadable);
    }
}
