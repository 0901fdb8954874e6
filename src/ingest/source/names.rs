//! What names of files say.

/// torchvision's `IMG_EXTENSIONS`, the other Netpbm kinds, and GIF.
const EXTENSIONS: [&str; 12] =
    ["jpg", "jpeg", "png", "ppm", "pgm", "pbm", "pnm", "bmp", "tif", "tiff", "webp", "gif"];
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
/// Words that name a split, in lower case.
const SPLIT_WORDS: [&str; 8] = ["train", "training", "val", "valid", "validation", "dev", "test", "testing"];
/// Endings of containers, which no split is called by.
const CONTAINER_ENDINGS: [&str; 12] = [
    ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json",
    ".txt",
];

/// Whether `ending`, which follows the last dot of a name, is that of an image.
pub(super) fn is_image_ending(ending: &str) -> bool {
    EXTENSIONS.iter().any(|extension| ending.eq_ignore_ascii_case(extension))
}

/// Whether the name is that of an image.
pub(in crate::ingest) fn is_image(path: &str) -> bool {
    file_name(path).rsplit_once('.').is_some_and(|(_, ending)| is_image_ending(ending))
}

/// The key by which `sorted(os.walk(...))` orders files: the folder first, then the name.
pub(super) fn folder_order(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// The part after the last `/`.
pub(super) fn file_name(path: &str) -> &str {
    folder_order(path).1
}

/// Whether the name is that of a tar, compressed or not.
pub(super) fn is_tar(path: &str) -> bool {
    [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"].iter().any(|end| ends_with(path, end))
}

/// Whether the name is that of a Parquet file.
pub(super) fn is_table(path: &str) -> bool {
    ends_with(path, ".parquet")
}

/// Whether the name is that of a csv or jsonl file.
pub(super) fn is_list(path: &str) -> bool {
    [".csv", ".tsv", ".jsonl", ".ndjson"].iter().any(|end| ends_with(path, end))
}

fn ends_with(path: &str, end: &str) -> bool {
    path.len() >= end.len() && path.as_bytes()[path.len() - end.len()..].eq_ignore_ascii_case(end.as_bytes())
}

/// The first part of a path that is hidden or litter, such as `.ipynb_checkpoints`, `._1.jpg` or `__MACOSX`.
pub(super) fn hidden(path: &str) -> Option<&str> {
    // A second dot makes an ordinary, if odd, name: `..a`.
    let is_hidden = |part: &&str| part.starts_with('.') && !part.starts_with("..") || LITTER.contains(part);
    path.split('/').find(is_hidden)
}

/// The word of a split that a whole folder name is: `val`, `Train`, `train.X1`, `split=test`.
pub(super) fn split_of_folder(name: &str) -> Option<&str> {
    let name = name.strip_prefix("split=").unwrap_or(name);
    let word = name.split('.').next().unwrap_or(name);
    is_split_word(word).then_some(word)
}

/// The words of splits between `-`, `_` and `.` in the name of a shard, a table, an archive or a list.
pub(super) fn splits_of_container(name: &str) -> Vec<&str> {
    let end = CONTAINER_ENDINGS.iter().filter(|end| ends_with(name, end)).map(|end| end.len()).max();
    let stem = &name[..name.len() - end.unwrap_or(0)];
    let mut words: Vec<&str> = stem.split(['-', '_', '.']).filter(|word| is_split_word(word)).collect();
    words.dedup_by(|a, b| a.eq_ignore_ascii_case(b));
    words
}

/// Whether this is a word that names a split.
pub(super) fn is_split_word(word: &str) -> bool {
    SPLIT_WORDS.iter().any(|split| split.eq_ignore_ascii_case(word))
}

/// Whether a class of this name is more likely a folder of the layout than a kind of thing.
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
    NAMES.iter().any(|layout| layout.eq_ignore_ascii_case(name))
}

/// A label as one part of a path: separators, control characters and names that lead elsewhere are replaced.
pub(in crate::ingest) fn as_path_part(label: &str) -> String {
    let part: String =
        label.chars().map(|c| if matches!(c, '/' | '\\') || c.is_control() { '_' } else { c }).collect();
    if part.chars().all(|c| c == '.') { "_".repeat(part.len().max(1)) } else { part }
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
    fn hidden_names_and_litter_are_known_at_any_depth() {
        for path in [".a.jpg", "a/.ipynb_checkpoints/b.jpg", "__MACOSX/a/._1.jpg", "a/Thumbs.db"] {
            assert!(hidden(path).is_some(), "{path}");
        }
        for path in ["a/b.jpg", "..a/b.jpg", "a.b/c.d.jpg"] {
            assert_eq!(hidden(path), None, "{path}");
        }
    }

    #[test]
    fn a_label_becomes_one_part_of_a_path() {
        assert_eq!(as_path_part("x, y"), "x, y");
        assert_eq!(as_path_part("a/b\\c\n"), "a_b_c_");
        assert_eq!(as_path_part(".."), "__");
        assert_eq!(as_path_part(""), "_");
    }
}
