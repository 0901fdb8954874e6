//! Which folder is the class of an image, decided over all images of a split together.

use std::collections::{BTreeMap, BTreeSet};

use super::ClassFolder;
use super::names::{examples, file_name, is_layout_folder, split_like};
use super::records::Records;
use super::splits::Splits;
use crate::ingest::IngestError;

/// Goes down in each split while all of its images are below one folder with folders in it: such a folder is not a class.
/// Returns the folders above the classes, if there are any.
pub(super) fn strip_common_folders(records: &Records<'_>, splits: &mut Splits) -> BTreeSet<String> {
    let mut of_splits: Vec<Vec<usize>> = vec![Vec::new(); splits.names.len()];
    for (number, assigned) in splits.by_folders(records) {
        of_splits[usize::from(assigned.split)].push(number);
    }
    // A folder is a class where another split has it beside others.
    let mut classes: BTreeSet<&str> = BTreeSet::new();
    for images in &of_splits {
        let first =
            images.iter().filter_map(|&number| Some(splits.below(records, number).split_once('/')?.0));
        let first: BTreeSet<&str> = first.collect();
        if first.len() > 1 {
            classes.extend(first);
        }
    }
    // What is in a lone `images` is flat, unless that would lose what other splits say of their classes.
    let is_flat = |name: &str| {
        (is_layout_folder(name) || split_like(name).is_some())
            && (classes.is_empty() || records.labels.is_some())
    };
    of_splits
        .iter()
        .filter_map(|images| strip_common_folder(records, splits, images, &classes, &is_flat))
        .collect()
}

/// The same for the images of one split.
fn strip_common_folder(
    records: &Records<'_>,
    splits: &mut Splits,
    images: &[usize],
    classes: &BTreeSet<&str>,
    is_flat: &dyn Fn(&str) -> bool,
) -> Option<String> {
    let mut stripped: Option<String> = None;
    loop {
        let mut common: Option<&str> = None;
        let (mut deep, mut deeper, mut total) = (0_u64, 0_u64, 0_u64);
        let mut next: BTreeSet<&str> = BTreeSet::new();
        for &number in images {
            // What is beside the folders, such as a flat `test/`, is handled later.
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
        let is_flat = deep == 0 && is_flat(&common);
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

/// The folder around an image.
fn around(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folders, _)| file_name(folders))
}

/// What a folder below a split holds.
#[derive(Debug, Default)]
struct Contents<'a> {
    /// Images without a folder between.
    images: u64,
    /// Two of its own folders at most.
    folders: BTreeSet<&'a str>,
    /// Whether those have folders too.
    is_deeper: bool,
    /// An image below them, if there is one in a folder of another name than the first.
    example: &'a str,
    /// Whether there is one.
    differs: bool,
}

/// Where images are deeper than one folder below their split, the class is the folder that `--class-folder` says. A
/// folder that holds images itself is a class, and so is one whose only folder is called like `images`; any other can
/// be read in two ways. Whether the option has an effect.
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
                let differs = around(path) != first;
                if contents.example.is_empty() || differs && !contents.differs {
                    contents.example = path;
                }
                contents.differs |= differs;
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
    // Where no name differs, both readings are one.
    let Some(((_, first), Contents { example, .. })) = contents.iter().find(|(_, contents)| contents.differs)
    else {
        return Ok(false);
    };
    match records.options.class_folder {
        Some(ClassFolder::First) => Ok(true),
        Some(ClassFolder::Last) => {
            let deep: Vec<usize> = splits.by_folders(records).map(|(number, _)| number).collect();
            for number in deep {
                let path = splits.below(records, number);
                let start = path.rsplit_once('/').and_then(|(folders, _)| Some(folders.rfind('/')? + 1));
                if let Some(start) = start {
                    splits.descend(number, start);
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

/// Warns of classes that are folders of several places, of one name by `--class-folder last`.
pub(super) fn merged_folders(records: &Records<'_>, splits: &Splits) -> Option<String> {
    if records.options.class_folder != Some(ClassFolder::Last) {
        return None;
    }
    let mut places: BTreeMap<(u16, &str), BTreeSet<&str>> = BTreeMap::new();
    for (number, assigned) in splits.by_folders(records) {
        let path = &records.list()[number].path;
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
