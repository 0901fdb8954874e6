//! What names of files say.

/// torchvision's `IMG_EXTENSIONS`, and GIF.
const EXTENSIONS: [&str; 10] = ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp", "gif"];

/// Whether the name is that of a picture.
pub(super) fn is_picture(path: &str) -> bool {
    let extension = path.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
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
    [".tar", ".tar.gz", ".tgz", ".tar.zst"].iter().any(|end| path.ends_with(end))
}

/// The split in a name by Hugging Face's habit: `train-00000-of-00294.parquet`.
pub(super) fn split_of_shard(path: &str) -> Option<&str> {
    let name = file_name(path);
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let (head, total) = stem.rsplit_once("-of-")?;
    let (split, number) = head.rsplit_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(number) && digits(total) && !split.is_empty()).then_some(split)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_read_from_the_names_of_shards() {
        assert_eq!(split_of_shard("data/train-00000-of-00294.parquet"), Some("train"));
        assert_eq!(split_of_shard("data/my-set-1-of-3.parquet"), Some("my-set"));
        assert_eq!(split_of_shard("data/pictures.parquet"), None);
        assert_eq!(split_of_shard("a-b-of-c.parquet"), None);
    }
}
