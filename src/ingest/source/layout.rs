//! From paths to splits and classes, as torchvision's `ImageFolder` sees them.

use std::collections::BTreeSet;

use super::collect::{Collector, Label, Place};
use super::names::is_picture;
use crate::ingest::IngestError;

/// Names of first folders that are splits rather than classes, if all first folders are such.
const SPLIT_NAMES: [&str; 6] = ["train", "val", "valid", "validation", "test", "eval"];

/// A file by its path, with `/` between the parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) path: String,
    pub(super) place: Place,
}

/// Whether the first folders of these pictures are splits.
pub(super) fn has_splits<'a>(pictures: impl Iterator<Item = &'a str> + Clone) -> bool {
    let mut folders = pictures.clone().filter_map(|path| path.split_once('/')).peekable();
    folders.peek().is_some()
        && folders.all(|(first, _)| SPLIT_NAMES.contains(&first))
        && pictures.into_iter().all(|path| path.split('/').count() != 2)
}

/// Adds the pictures of a folder. `part_of` gives the part of the store for a split's folder, `None` where
/// places are complete.
///
/// # Errors
/// If there is no picture, no class folder, or not the wanted split.
pub(super) fn collect(
    collector: &mut Collector<'_>,
    files: &[Found],
    mut part_of: impl FnMut(&mut Collector<'_>, &str) -> Option<u32>,
) -> Result<(), IngestError> {
    let pictures: Vec<&Found> = files.iter().filter(|file| is_picture(&file.path)).collect();
    collector.passed_over += (files.len() - pictures.len()) as u64;
    if pictures.is_empty() {
        return Err(super::wrong(collector.location(), "there is no picture"));
    }
    let firsts: BTreeSet<&str> =
        pictures.iter().filter_map(|file| Some(file.path.split_once('/')?.0)).collect();
    if firsts.is_empty() && !collector.options.unlabelled {
        let reason = "there are pictures, but no class folders (--unlabelled takes them without classes)";
        return Err(super::wrong(collector.location(), reason));
    }
    let splits = has_splits(pictures.iter().map(|file| file.path.as_str()));
    let default = collector.default_split();
    let mut added = false;
    for file in pictures {
        let (split, path) = match file.path.split_once('/') {
            Some((first, rest)) if splits => (first, rest),
            _ => (default.as_str(), file.path.as_str()),
        };
        let label = match path.split_once('/') {
            Some((class, _)) => Label::Name(class),
            None if collector.options.unlabelled => Label::None,
            // A picture beside the class folders belongs to no class; ImageFolder does not see it either.
            None => {
                collector.passed_over += 1;
                continue;
            }
        };
        if !collector.wants(split) {
            continue;
        }
        let folder = if splits { split } else { "" };
        let container = part_of(collector, folder).unwrap_or(file.place.container);
        collector.add(split, path, label, Place { container, ..file.place.clone() })?;
        added = true;
    }
    if !added {
        let wanted = collector.options.split.clone().unwrap_or_default();
        let reason = format!("there is no split {wanted:?}; there are {firsts:?}");
        return Err(super::wrong(collector.location(), reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::source::{SourceFormat, archive::Extent};
    use crate::ingest::{IngestOptions, source::Entry};
    use crate::storage::Location;

    fn splits(paths: &[&str], wanted: Option<&str>) -> Result<Vec<(String, Vec<String>)>, IngestError> {
        let here = Location::from_path(std::path::Path::new("x")).expect("a location");
        let mut options = IngestOptions::new(here.clone(), here);
        options.split = wanted.map(str::to_owned);
        let place = Place { container: 0, extent: Extent::Range { offset: 0 }, bytes: 1 };
        let files: Vec<Found> =
            paths.iter().map(|path| Found { path: (*path).to_owned(), place: place.clone() }).collect();
        let mut collector = Collector::new(&options);
        collect(&mut collector, &files, |_, _| None)?;
        let found = collector.finish(SourceFormat::Imagefolder)?;
        let paths = |list: Vec<Entry>| list.into_iter().map(|entry| entry.path.into()).collect();
        Ok(found.splits.into_iter().map(|(name, list)| (name, paths(list))).collect())
    }

    #[test]
    fn a_folder_of_classes_is_one_split() {
        let found = splits(&["b/2.jpg", "a/x/1.png", "a/3.JPEG", "notes.txt"], None).expect("a layout");
        assert_eq!(found, [("train".into(), vec!["a/3.JPEG".into(), "a/x/1.png".into(), "b/2.jpg".into()])]);
        assert_eq!(splits(&["b/2.jpg"], Some("val")).expect("a layout")[0].0, "val");
    }

    #[test]
    fn folders_named_as_splits_are_splits_when_they_hold_classes() {
        let found = splits(&["train/a/1.jpg", "test/a/2.jpg"], None).expect("a layout");
        assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["test", "train"]);
        assert_eq!(splits(&["train/a/1.jpg", "test/a/2.jpg"], Some("test")).expect("a layout").len(), 1);
        // Classes may be called so too.
        assert_eq!(splits(&["train/1.jpg", "test/2.jpg"], None).expect("a layout")[0].1.len(), 2);
    }

    #[test]
    fn nothing_to_ingest_is_said_plainly() {
        for (paths, reason) in [
            (vec![], "there is no picture"),
            (vec!["a/readme.txt"], "there is no picture"),
            (vec!["1.jpg"], "no class folders"),
        ] {
            let error = splits(&paths, None).expect_err("nothing");
            assert!(error.to_string().contains(reason), "{error}");
        }
        let error = splits(&["train/a/1.jpg"], Some("val")).expect_err("no such split");
        assert!(error.to_string().contains("no split \"val\"; there are {\"train\"}"), "{error}");
    }
}
