//! From paths to splits and classes, as torchvision's `ImageFolder` sees them.

use std::collections::{BTreeMap, BTreeSet};

use super::IngestError;
use super::source::SourceFile;

/// Names of first folders that are splits rather than classes, if all first folders are such.
const SPLIT_NAMES: [&str; 6] = ["train", "val", "valid", "validation", "test", "eval"];
/// torchvision's `IMG_EXTENSIONS`, and GIF.
const EXTENSIONS: [&str; 10] = ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp", "gif"];
/// The split's name where neither the source nor the user names one.
const DEFAULT_SPLIT: &str = "train";

/// A picture with its place in the class order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) file: SourceFile,
    /// `<class>/<file>`.
    pub(super) path: String,
    pub(super) class: String,
}

/// The pictures of a source by split, each split in the order of a sorted ImageFolder.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) splits: BTreeMap<String, Vec<Candidate>>,
    /// Files that are no pictures by their names.
    pub(super) other_files: usize,
}

/// Tells splits and classes by the paths.
pub(super) fn layout(
    location: &str,
    files: &[SourceFile],
    wanted: Option<&str>,
) -> Result<Layout, IngestError> {
    let wrong = |reason: String| IngestError::Layout { location: location.to_owned(), reason };
    let (pictures, others): (Vec<_>, Vec<_>) = files.iter().partition(|file| has_picture_name(&file.path));
    if pictures.is_empty() {
        return Err(wrong("there is no picture".into()));
    }
    let firsts: BTreeSet<&str> =
        pictures.iter().filter_map(|file| Some(file.path.split_once('/')?.0)).collect();
    if firsts.is_empty() {
        return Err(wrong("there are pictures, but no class folders".into()));
    }
    let has_splits = firsts.iter().all(|first| SPLIT_NAMES.contains(first))
        && pictures.iter().all(|file| file.path.split('/').count() != 2);
    let mut layout = Layout { splits: BTreeMap::new(), other_files: others.len() };
    for file in pictures {
        let (split, path) = if has_splits {
            match file.path.split_once('/') {
                Some((split, path)) => (split, path),
                None => ("", file.path.as_str()),
            }
        } else {
            (wanted.unwrap_or(DEFAULT_SPLIT), file.path.as_str())
        };
        // A picture beside the class folders belongs to no class; ImageFolder does not see it either.
        let Some((class, _)) = path.split_once('/') else {
            layout.other_files += 1;
            continue;
        };
        if wanted.is_some_and(|wanted| wanted != split) {
            continue;
        }
        let candidate = Candidate { file: file.clone(), path: path.to_owned(), class: class.to_owned() };
        layout.splits.entry(split.to_owned()).or_default().push(candidate);
    }
    if layout.splits.is_empty() {
        return Err(wrong(format!(
            "there is no split {:?}; there are {firsts:?}",
            wanted.unwrap_or_default()
        )));
    }
    for pictures in layout.splits.values_mut() {
        pictures.sort_by(|a, b| (&a.class, folder_order(&a.path)).cmp(&(&b.class, folder_order(&b.path))));
    }
    Ok(layout)
}

/// The key by which `sorted(os.walk(...))` orders files: the folder first, then the name.
fn folder_order(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn has_picture_name(path: &str) -> bool {
    let extension = path.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splits(paths: &[&str], wanted: Option<&str>) -> Result<Vec<(String, Vec<String>)>, IngestError> {
        let files: Vec<SourceFile> = paths.iter().map(|path| SourceFile::named(path)).collect();
        let layout = layout("x", &files, wanted)?;
        let paths = |list: Vec<Candidate>| list.into_iter().map(|candidate| candidate.path).collect();
        Ok(layout.splits.into_iter().map(|(name, list)| (name, paths(list))).collect())
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
