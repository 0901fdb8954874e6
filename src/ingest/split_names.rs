//! Which names splits may have: each is the folder of its shards and the name of its index.

use super::source::first_of;

/// Splits of a source at most: more are a column that is not one of splits.
pub(super) const MOST_SPLITS: usize = 1000;
/// Bytes of a name at most: file systems take 255, endings included.
const MOST_BYTES: usize = 100;
/// What a dataset has for itself.
const OWN_NAMES: [&str; 4] = ["index", "rejects", "manifest.json", "duplicates.parquet"];
/// Splits that an error names.
const SHOWN: usize = 5;

/// Checks the names of a source's splits.
///
/// # Errors
/// What is wrong, with the names.
pub(super) fn check_split_names(names: &[String]) -> Result<(), String> {
    if names.len() > MOST_SPLITS {
        let first: Vec<String> =
            names.iter().take(SHOWN + 1).map(|name| name.escape_debug().to_string()).collect();
        return Err(format!(
            "it has more than {MOST_SPLITS} splits ({}); is the column one of splits? `--splits NAME=GLOB` names them",
            first_of(&first, SHOWN)
        ));
    }
    let found = names.iter().find_map(|name| Some((name, problem(name)?)));
    match found {
        Some((name, problem)) => {
            let shown: String = name.chars().take(MOST_BYTES).collect();
            Err(format!(
                "a split cannot be called `{}`: {problem}; `--splits NAME=GLOB` gives it another name",
                shown.escape_debug()
            ))
        }
        None => Ok(()),
    }
}

fn problem(name: &str) -> Option<&'static str> {
    match () {
        () if name.is_empty() => Some("the name is empty"),
        () if name.len() > MOST_BYTES => Some("the name has more than 100 bytes"),
        () if name.chars().any(char::is_control) => Some("the name has a control character"),
        () if name.contains(['/', '\\']) => Some("the name has a `/` or `\\`"),
        () if name.starts_with('.') => Some("the name begins with a dot"),
        () if OWN_NAMES.iter().any(|own| own.eq_ignore_ascii_case(name)) => {
            Some("a dataset has its own file or folder of that name")
        }
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_is_called_like_no_file_of_a_dataset_and_fits_a_file_name() {
        let long = "a".repeat(101);
        for bad in [
            "",
            ".",
            "..",
            ".work",
            "a/b",
            "a\\b",
            "a\nb",
            "index",
            "Rejects",
            "manifest.json",
            "duplicates.parquet",
            &long,
        ] {
            let reason = check_split_names(&["train".into(), bad.into()]).expect_err(bad);
            assert!(reason.starts_with("a split cannot be called `"), "{reason}");
        }
        for good in ["train", "train-0001", "val.1", "a b", "テスト", "index.parquet", "plan", "lock"] {
            assert_eq!(check_split_names(&[good.into()]), Ok(()), "{good}");
        }
    }

    #[test]
    fn more_than_a_thousand_splits_are_an_error_that_names_the_first() {
        let names: Vec<String> = (0..=MOST_SPLITS).map(|number| format!("s{number}")).collect();
        assert_eq!(check_split_names(&names[1..]), Ok(()));
        let reason = check_split_names(&names).expect_err("too many");
        assert!(reason.contains("more than 1000 splits (`s0`, `s1`, `s2`, `s3`, `s4`, …)"), "{reason}");
    }
}
