//! Patterns that name what is below a source: `--ignore GLOB` and `--splits NAME=GLOB`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use globset::{GlobBuilder, GlobMatcher};

use super::names::file_name;

/// A pattern for paths below a source.
///
/// One without `/` matches the name of a file or folder at any depth, one with `/` matches from the source's
/// root; what is below a matched folder is matched too. `*` stays within a name, `**` crosses folders.
#[derive(Clone, Debug)]
pub struct PathGlob {
    text: String,
    glob: GlobMatcher,
    any_depth: bool,
    has_matched: Arc<AtomicBool>,
}

impl PathGlob {
    /// Reads a pattern.
    ///
    /// # Errors
    /// The reason, if it is not a pattern.
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

    /// Whether a path, or a folder above it, matches.
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

    /// Whether any path has matched so far.
    pub(crate) fn has_matched(&self) -> bool {
        self.has_matched.load(Ordering::Relaxed)
    }

    /// The pattern as it was given.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// How many folders at the beginning of a matching path the pattern names: below them are the class folders.
    pub(super) fn folders_of(&self, path: &str) -> usize {
        let folders = path.matches('/').count();
        if self.any_depth && self.text == "*" {
            // Any folder at all is a class.
            return 0;
        }
        if self.any_depth {
            let found = path.split('/').take(folders).position(|part| self.glob.is_match(part));
            return found.map_or(0, |at| at + 1);
        }
        let parts: Vec<&str> = self.text.trim_start_matches("./").trim_end_matches('/').split('/').collect();
        let of_folders = path.match_indices('/').any(|(end, _)| self.glob.is_match(&path[..end]));
        let mut named = &parts[..parts.len() - usize::from(!of_folders)];
        // Any folder at all is a class.
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
