//! Which column of a table or list is meant.

use super::super::names::examples;

/// Names of the column that holds the label.
pub(super) const LABEL_NAMES: [&str; 12] = [
    "label",
    "labels",
    "fine_label",
    "class",
    "cls",
    "wnid",
    "synset",
    "target",
    "category",
    "label_name",
    "class_name",
    "class_id",
];
/// The name of the column that holds the split.
pub(super) const SPLIT_NAME: &str = "split";

/// Names of columns that may hold the split as well, but are not read.
const OTHER_SPLIT_NAMES: [&str; 6] = ["splits", "set", "subset", "partition", "data_split", "phase"];

/// A warning of a column that may hold the split and is not read; `split` itself where `reads_split` is not set.
pub(super) fn unread_split(names: &[&str], reads_split: bool) -> Option<String> {
    let has_split = names.iter().any(|name| name.eq_ignore_ascii_case(SPLIT_NAME));
    if has_split && reads_split {
        return None;
    }
    let is_one = |name: &&&str| {
        OTHER_SPLIT_NAMES.iter().any(|other| name.eq_ignore_ascii_case(other))
            || name.eq_ignore_ascii_case(SPLIT_NAME)
    };
    let found = names.iter().find(is_one)?;
    let instead = if reads_split {
        "a column `split` is"
    } else {
        "folders, names of containers and `--splits` say what is which split"
    };
    Some(format!("the column `{found}` is not read as the split; {instead}"))
}

/// Whether a column of this name may hold the label.
pub(super) fn is_label_name(name: &str) -> bool {
    LABEL_NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// The column that was asked for, or the only one with a known name, in any case; `None` if there is none.
///
/// # Errors
/// The reason, if the column that was asked for does not exist, or several could be meant.
pub(super) fn choose(
    names: &[&str],
    option: &str,
    asked: Option<&str>,
    known: &[&str],
) -> Result<Option<usize>, String> {
    if let Some(asked) = asked {
        let found = names.iter().position(|name| *name == asked);
        return found.map(Some).ok_or_else(|| {
            let all: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            format!("`{option} {asked}`: there is no such column; there are {}", all.join(", "))
        });
    }
    let is_known = |name: &&str| known.iter().any(|known| name.eq_ignore_ascii_case(known));
    let found: Vec<usize> = (0..names.len()).filter(|&at| is_known(&names[at])).collect();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        several => {
            let several: Vec<&str> = several.iter().map(|&at| names[at]).collect();
            Err(format!("several columns could be meant, {}: `{option}` names one", examples(&several)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_that_may_be_the_split_is_warned_of() {
        assert_eq!(unread_split(&["path", "split", "set"], true), None);
        assert!(unread_split(&["path", "Subset"], true).expect("unread").contains("a column `split` is"));
        assert!(unread_split(&["path", "split"], false).expect("unread").contains("`--splits`"));
        assert_eq!(unread_split(&["path", "label"], false), None);
    }

    #[test]
    fn one_known_name_is_meant_and_several_are_refused() {
        let choose = |names: &[&str], asked| choose(names, "--label-column", asked, &LABEL_NAMES);
        assert_eq!(choose(&["image", "Label"], None), Ok(Some(1)));
        assert_eq!(choose(&["image"], None), Ok(None));
        assert_eq!(choose(&["label", "class"], Some("class")), Ok(Some(1)));
        assert!(
            choose(&["label", "class"], None)
                .expect_err("two")
                .contains("`label`, `class`: `--label-column`")
        );
        assert!(choose(&["a", "b"], Some("c")).expect_err("none").contains("there are `a`, `b`"));
    }
}
