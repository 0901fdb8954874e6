//! Meaning of file names, patterns of `--ignore GLOB` and `--splits NAME=GLOB`, valid names of splits, and lists of
//! names in messages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use globset::{GlobBuilder, GlobMatcher};

/// torchvision's `IMG_EXTENSIONS`, other extensions of the same formats, and formats that are rejected by name.
const EXTENSIONS: [&str; 20] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "ppm", "pgm", "pbm", "pnm", "bmp", "tif", "tiff", "webp", "gif",
    "heic", "heif", "avif", "jp2", "j2k", "jxl",
];
/// Endings of archives that are not read.
const OTHER_ARCHIVES: [&str; 6] = [".zip", ".7z", ".rar", ".tar.xz", ".txz", ".tar.bz2"];
/// Names that operating systems and tools leave beside files.
const LITTER: [&str; 8] = [
    "__MACOSX",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "lost+found",
    "@eaDir",
    "$RECYCLE.BIN",
    "System Volume Information",
];
/// Words that name a split, in lower case; those of a group have the same meaning.
const SPLIT_WORDS: [&[&str]; 4] =
    [&["train", "training"], &["val", "valid", "validation"], &["dev"], &["test", "testing"]];
/// Suffixes of such a word in a name that probably has its meaning: `trainset`.
const SPLIT_SUFFIXES: [&str; 5] = ["set", "sets", "data", "images", "imgs"];
/// Endings of containers, which are no part of a split's name.
const CONTAINER_ENDINGS: [&str; 12] = [
    ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json",
    ".txt",
];

/// Maximum number of splits of a source; with more, the column is probably not one of splits.
pub(super) const MOST_SPLITS: usize = 1000;
/// Maximum length of a split's name in bytes: file systems take 255, including endings.
const MOST_SPLIT_BYTES: usize = 100;
/// Names that a dataset uses itself.
const DATASET_NAMES: [&str; 4] = ["index", "rejects", "manifest.json", "duplicates.parquet"];
/// Number of splits that an error names.
const SHOWN_SPLITS: usize = 5;

/// Returns whether a name is one of `known`, ignoring case.
pub(super) fn is_among(name: &str, known: &[&str]) -> bool {
    known.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// Returns whether `ending`, the part after the last dot of a name, is that of an image.
pub(super) fn is_image_ending(ending: &str) -> bool {
    is_among(ending, &EXTENSIONS)
}

/// Returns whether the name is that of an image.
pub fn is_image(path: &str) -> bool {
    file_name(path).rsplit_once('.').is_some_and(|(_, ending)| is_image_ending(ending))
}

/// Removes an image's extension from a path.
pub(super) fn without_image_ending(path: &str) -> &str {
    path.rsplit_once('.').filter(|(_, ending)| is_image_ending(ending)).map_or(path, |(stem, _)| stem)
}

/// Returns the key by which `sorted(os.walk(...))` orders files: the folder first, then the name.
pub(super) fn folder_order(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Returns the part after the last `/`.
pub(super) fn file_name(path: &str) -> &str {
    folder_order(path).1
}

/// Returns whether the name is that of a tar, compressed or not.
pub(super) fn is_tar(path: &str) -> bool {
    ends_with(path, &[".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"])
}

/// Returns whether the name is that of a Parquet file.
pub(super) fn is_table(path: &str) -> bool {
    ends_with(path, &[".parquet"])
}

/// Returns whether the name is that of an archive that is not read.
pub(super) fn is_other_archive(path: &str) -> bool {
    ends_with(path, &OTHER_ARCHIVES)
}

/// Returns whether the name is that of a csv or jsonl file.
pub(super) fn is_list(path: &str) -> bool {
    ends_with(path, &[".csv", ".tsv", ".jsonl", ".ndjson"])
}

fn ends_with(path: &str, endings: &[&str]) -> bool {
    let tail = |bytes: usize| path.get(path.len().checked_sub(bytes)?..);
    endings.iter().any(|end| tail(end.len()).is_some_and(|tail| tail.eq_ignore_ascii_case(end)))
}

/// Returns whether a part of a path is hidden or litter, such as `.ipynb_checkpoints`, `._1.jpg` or `__MACOSX`.
pub(super) fn hidden(path: &str) -> bool {
    // A second dot makes an ordinary, if odd, name: `..a`.
    path.split('/').any(|part| part.starts_with('.') && !part.starts_with("..") || LITTER.contains(&part))
}

/// Returns the split's word, if a whole folder name is one: `val`, `Train`, `train.X1`, `split=test`.
pub(super) fn split_of_folder(name: &str) -> Option<&str> {
    let name = name.strip_prefix("split=").unwrap_or(name);
    let word = name.split('.').next().unwrap_or(name);
    is_split_word(word).then_some(word)
}

/// Returns the words of splits between `-`, `_` and `.` in the name of a shard, table, archive or list.
pub(super) fn splits_of_container(name: &str) -> Vec<&str> {
    let mut words: Vec<&str> =
        without_container_ending(name).split(['-', '_', '.']).filter(|word| is_split_word(word)).collect();
    words.dedup_by(|a, b| a.eq_ignore_ascii_case(b));
    words
}

/// Returns the split that a name probably means without being its word, and the name up to the end of the part with
/// that meaning: `train2017`, `trainA`, `test_set`, `images_val`.
pub(super) fn split_like(name: &str) -> Option<(&str, &str)> {
    const SEPARATORS: [char; 4] = ['-', '_', '.', ' '];
    let first = &name[..name.find(SEPARATORS).unwrap_or(name.len())];
    let last = name.rfind(SEPARATORS).map_or(0, |at| at + 1);
    [0, last].into_iter().zip([first, &name[last..]]).find_map(|(start, part)| {
        let words = SPLIT_WORDS.iter().copied().flatten();
        let begins = words.filter_map(|word| {
            let (start, rest) = part.split_at_checked(word.len())?;
            let ends = rest.chars().next().is_none_or(|next| !next.is_lowercase());
            (start.eq_ignore_ascii_case(word) && (ends || SPLIT_SUFFIXES.contains(&rest))).then_some(start)
        });
        let word = begins.max_by_key(|word| word.len())?;
        Some((word, &name[..start + part.len()]))
    })
}

/// Removes the ending of a container from a file's name.
pub(super) fn without_container_ending(name: &str) -> &str {
    let end = CONTAINER_ENDINGS.iter().filter(|end| ends_with(name, &[end])).map(|end| end.len()).max();
    &name[..name.len() - end.unwrap_or(0)]
}

/// Returns the first shard missing from a set of files named `NAME-00000-of-00010…`.
pub(super) fn missing_shard<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut sets: BTreeMap<(&str, &str), BTreeSet<u64>> = BTreeMap::new();
    for name in names {
        let Some((before, after)) = name.split_once("-of-") else { continue };
        let Some((prefix, number)) = before.rsplit_once('-') else { continue };
        let total = &after[..after.bytes().take_while(u8::is_ascii_digit).count()];
        if let (Ok(number), false) = (number.parse(), total.is_empty()) {
            sets.entry((prefix, total)).or_default().insert(number);
        }
    }
    sets.into_iter().find_map(|((prefix, total), numbers)| {
        let missing = (0..total.parse().ok()?).find(|number| !numbers.contains(number))?;
        Some(format!("{prefix}-{missing:0width$}-of-{total}", width = total.len()))
    })
}

/// Returns whether a word names a split.
pub(super) fn is_split_word(word: &str) -> bool {
    SPLIT_WORDS.iter().any(|words| is_among(word, words))
}

/// Returns the meaning of a split's name: the same for all words of one meaning, in any case.
pub(crate) fn split_meaning(name: &str) -> String {
    let name = name.to_lowercase();
    let same = SPLIT_WORDS.iter().find(|words| words.contains(&name.as_str()));
    same.map_or(name, |words| words[0].to_owned())
}

/// Checks the names of a source's splits.
///
/// # Errors
/// The reason, with the names.
pub(super) fn check_split_names(names: &[String]) -> Result<(), String> {
    if names.len() > MOST_SPLITS {
        let first: Vec<String> =
            names.iter().take(SHOWN_SPLITS + 1).map(|name| name.escape_debug().to_string()).collect();
        return Err(format!(
            "it has more than {MOST_SPLITS} splits ({}); is the column one of splits? `--splits NAME=GLOB` names them",
            first_of(&first, SHOWN_SPLITS)
        ));
    }
    let found = names.iter().find_map(|name| Some((name, problem(name)?)));
    let Some((name, problem)) = found else { return Ok(()) };
    let shown: String = name.chars().take(MOST_SPLIT_BYTES).collect();
    Err(format!(
        "a split cannot be called `{}`: {problem}; `--splits NAME=GLOB` gives it another name",
        shown.escape_debug()
    ))
}

/// Returns why a split cannot have this name, which is also that of its shards' folder and its index.
fn problem(name: &str) -> Option<&'static str> {
    match () {
        () if name.is_empty() => Some("the name is empty"),
        () if name.len() > MOST_SPLIT_BYTES => Some("the name has more than 100 bytes"),
        () if name.chars().any(char::is_control) => Some("the name has a control character"),
        () if name.contains(['/', '\\']) => Some("the name has a `/` or `\\`"),
        () if name.starts_with('.') => Some("the name begins with a dot"),
        () if is_among(name, &DATASET_NAMES) => Some("a dataset has its own file or folder of that name"),
        () => None,
    }
}

/// Returns whether a class of this name is more likely a folder of the layout than a kind of thing.
pub(super) fn is_layout_folder(name: &str) -> bool {
    const NAMES: [&str; 12] = [
        "image",
        "images",
        "img",
        "imgs",
        "data",
        "dataset",
        "jpg",
        "jpeg",
        "jpegimages",
        "photos",
        "pictures",
        "files",
    ];
    is_among(name, &NAMES)
}

/// Converts a label to one part of a path: replaces separators, control characters and names that lead elsewhere.
pub(crate) fn as_path_part(label: &str) -> String {
    let part: String =
        label.chars().map(|c| if matches!(c, '/' | '\\') || c.is_control() { '_' } else { c }).collect();
    if part.chars().all(|c| c == '.') { "_".repeat(part.len().max(1)) } else { part }
}

/// Formats up to three names.
pub(super) fn examples(names: &[impl AsRef<str>]) -> String {
    first_of(names, 3)
}

/// Formats the first `count` names.
pub(crate) fn first_of(names: &[impl AsRef<str>], count: usize) -> String {
    let shown: Vec<String> = names.iter().take(count).map(|name| format!("`{}`", name.as_ref())).collect();
    let more = if names.len() > count { ", …" } else { "" };
    shown.join(", ") + more
}

/// A pattern for paths below a source.
///
/// A pattern without `/` matches the name of a file or folder at any depth; one with `/` matches from the source's
/// root. Paths below a matched folder match, too. `*` stays within a name, `**` crosses folders.
#[derive(Clone, Debug)]
pub struct PathGlob {
    text: String,
    glob: GlobMatcher,
    any_depth: bool,
    has_matched: Arc<AtomicBool>,
}

impl PathGlob {
    /// Parses a pattern.
    ///
    /// # Errors
    /// The reason, if the pattern is invalid.
    pub fn new(text: &str) -> Result<Self, String> {
        let plain = text.trim_start_matches("./").trim_end_matches('/');
        if plain.is_empty() {
            return Err(format!("the pattern `{text}` is empty"));
        }
        let glob =
            GlobBuilder::new(plain).literal_separator(true).build().map_err(|error| error.to_string())?;
        Ok(Self {
            text: text.to_owned(),
            glob: glob.compile_matcher(),
            any_depth: !plain.contains('/') && plain != "**",
            has_matched: Arc::default(),
        })
    }

    /// Returns whether a path, or a folder above it, matches.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let folders = path.match_indices('/').map(|(end, _)| &path[..end]);
        let is_match = folders
            .chain([path])
            .any(|prefix| self.glob.is_match(if self.any_depth { file_name(prefix) } else { prefix }));
        if is_match {
            self.has_matched.store(true, Ordering::Relaxed);
        }
        is_match
    }

    /// Returns whether any path has matched so far.
    pub(crate) fn has_matched(&self) -> bool {
        self.has_matched.load(Ordering::Relaxed)
    }

    /// Returns the pattern as given.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Returns how many leading folders of a matching path the pattern names; class folders are below them.
    pub(super) fn folders_of(&self, path: &str) -> usize {
        let folders = path.matches('/').count();
        if self.any_depth {
            // With `*`, any folder is a class.
            let is_named = |part| self.text != "*" && self.glob.is_match(part);
            return path.split('/').take(folders).position(is_named).map_or(0, |at| at + 1);
        }
        let parts: Vec<&str> = self.text.trim_start_matches("./").trim_end_matches('/').split('/').collect();
        let of_folders = path.match_indices('/').any(|(end, _)| self.glob.is_match(&path[..end]));
        let mut named = &parts[..parts.len() - usize::from(!of_folders)];
        // Any folder is a class.
        while let [above @ .., "*"] = named {
            named = above;
        }
        named.iter().take_while(|part| !part.contains("**")).count().min(folders)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_whole_folder_names_or_words_between_separators() {
        for (name, word) in [
            ("train", Some("train")),
            ("Train", Some("Train")),
            ("train.X1", Some("train")),
            ("split=test", Some("test")),
            ("bullet_train", None),
            ("train2017", None),
            ("trains", None),
        ] {
            assert_eq!(split_of_folder(name), word, "{name}");
        }
        for (name, word) in [
            ("train2017", Some("train")),
            ("Test_set", Some("Test")),
            ("images_val", Some("val")),
            ("train_256_places", Some("train")),
            ("trainA", Some("train")),
            ("testset", Some("test")),
            ("valley", None),
            ("trains", None),
            ("n01440764", None),
        ] {
            assert_eq!(split_like(name).map(|(word, _)| word), word, "{name}");
        }
        assert_eq!(split_like("contest_test1"), Some(("test", "contest_test1")));
        assert_eq!(split_like("train2017_00"), Some(("train", "train2017")));
        for (name, words) in [
            ("train-00000-of-00010-a09b.parquet", vec!["train"]),
            ("imagenet1k-validation-00.tar", vec!["validation"]),
            ("ILSVRC2012_img_val.tar", vec!["val"]),
            ("test.parquet", vec!["test"]),
            ("latest-0.tar.gz", vec![]),
            ("train_train.csv", vec!["train"]),
            ("train-test.csv", vec!["train", "test"]),
        ] {
            assert_eq!(splits_of_container(name), words, "{name}");
        }
    }

    #[test]
    fn a_shard_that_is_missing_from_its_set_is_named() {
        let missing = |names: &[&str]| missing_shard(names.iter().copied());
        assert_eq!(missing(&["a-00000-of-00002.parquet", "a-00001-of-00002-x.parquet", "b.parquet"]), None);
        let names = ["d/a-00000-of-00003.parquet", "d/a-00002-of-00003.parquet", "e/a-00000-of-00001.tar"];
        assert_eq!(missing(&names), Some("d/a-00001-of-00003".into()));
        assert_eq!(missing(&["best-of-2.tar", "x-1-of-y.tar"]), None);
    }

    #[test]
    fn hidden_names_and_litter_are_known_at_any_depth() {
        for path in [".a.jpg", "a/.ipynb_checkpoints/b.jpg", "__MACOSX/a/._1.jpg", "a/Thumbs.db"] {
            assert!(hidden(path), "{path}");
        }
        for path in ["a/b.jpg", "..a/b.jpg", "a.b/c.d.jpg"] {
            assert!(!hidden(path), "{path}");
        }
    }

    #[test]
    fn a_label_becomes_one_part_of_a_path() {
        assert_eq!(as_path_part("x, y"), "x, y");
        assert_eq!(as_path_part("a/b\\c\n"), "a_b_c_");
        assert_eq!(as_path_part(".."), "__");
        assert_eq!(as_path_part(""), "_");
    }

    #[test]
    fn a_split_is_called_like_no_file_of_a_dataset_and_fits_a_file_name() {
        let long = "a".repeat(101);
        let of_dataset = ["index", "Rejects", "manifest.json", "duplicates.parquet"];
        let odd = ["", ".", "..", ".work", "a/b", "a\\b", "a\nb", &long];
        for bad in odd.into_iter().chain(of_dataset) {
            let reason = check_split_names(&["train".into(), bad.into()]).expect_err(bad);
            assert!(reason.starts_with("a split cannot be called `"), "{reason}");
        }
        for good in ["train", "train-0001", "val.1", "a b", "テスト", "index.parquet", "plan", "lock"] {
            assert_eq!(check_split_names(&[good.into()]), Ok(()), "{good}");
        }
    }

    #[test]
    fn patterns_match_names_at_any_depth_or_paths_from_the_root() {
        let matches = |glob: &str, path: &str| PathGlob::new(glob).expect("a pattern").matches(path);
        assert!(matches("*.png", "a/b/c.png") && matches("samples", "a/samples/c.jpg"));
        assert!(matches("samples/", "samples/c.jpg") && matches("val_images/**", "val_images/a/c.jpg"));
        assert!(matches("a/*", "a/b/c.png") && matches("**", "a/b") && matches("*", "a"));
        assert!(!matches("b/*.png", "a/b/c.png") && !matches("sample", "samples/c.jpg"));
        assert!(PathGlob::new("a[").is_err() && PathGlob::new("/").is_err());
    }

    #[test]
    fn class_folders_begin_below_the_folders_of_a_pattern() {
        let folders = |glob: &str, path: &str| PathGlob::new(glob).expect("a pattern").folders_of(path);
        assert_eq!([folders("**", "a/b/1.png"), folders("val/**", "val/cat/1.png")], [0, 1]);
        assert_eq!([folders("a/b/*.png", "a/b/1.png"), folders("a/b/", "a/b/cat/1.png")], [2, 2]);
        assert_eq!(
            [folders("fold[12]/**", "fold1/cat/1.png"), folders("*/train/**", "x/train/cat/1.png")],
            [1, 2]
        );
        assert_eq!([folders("imgs", "data/imgs/cat/1.png"), folders("*.png", "data/1.png")], [2, 0]);
        assert_eq!(
            [folders("**/train/**", "x/train/cat/1.png"), folders("a/*/*.png", "a/cat/1.png")],
            [0, 1]
        );
        assert_eq!([folders("d/[ac]", "d/a/cat/1.png"), folders("d/[ac]/**", "d/a/cat/1.png")], [2, 2]);
        assert_eq!([folders("*", "cat/1.png"), folders("*", "1.png")], [0, 0]);
        assert_eq!([folders("d/*", "d/cat/1.png"), folders("d/*", "d/1.png")], [1, 1]);
    }
}
