//! Holds out a share of each class as another split, for a source without splits.

use std::collections::BTreeMap;

use super::names::{check_split_names, split_meaning};
use super::records::Entry;
use crate::ids::ClassId;

/// `NAME=SHARE`: the split that gets a share of a source's images.
#[derive(Clone, Debug, PartialEq)]
pub struct HoldOut {
    /// The split's name.
    pub split: String,
    /// The share of each class, more than 0 and less than 1.
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
    /// Each class gives its share, to within one image, and keeps one image at least. Within a class the paths decide which
    /// images these are, so that one more image changes the side of about one other. Both lists keep their order.
    ///
    /// # Errors
    /// If there are several splits or one of this meaning, or the share of so few images is none of them.
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
        // What is rejected stays where rejects are expected.
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
            return Err(format!("{option}: there is no image to take"));
        };
        if held.is_empty() {
            return Err(format!(
                "{option} is 0 of {all} images: each of {} classes gives its share of its own images, rounded, and keeps at \
                 least one. A larger share takes some where classes have several images; with --unlabelled it is a share of all \
                 images, without scores; --splits NAME=GLOB chooses by path",
                counts.len()
            ));
        }
        let of_each = match counts.len() {
            // One class, or none.
            1 => String::new(),
            _ if least == most => format!(", {least} of each class"),
            _ => format!(", {least} to {most} of each class"),
        };
        let summary =
            format!("splits: {} of {all} images are `{}`{of_each}, by {option}", held.len(), self.split);
        entries.insert(self.split.clone(), held);
        Ok(summary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::source::archive::Extent;

    fn entry(class: u16, path: String) -> Entry {
        let path = path.into_boxed_str();
        let class = Some(ClassId(class));
        Entry {
            path,
            class,
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
        // One more image of the first class changes the side of one other at most in each.
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
