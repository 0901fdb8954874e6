//! What will become of a source, before a byte is written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::SourceFormat;
use super::records::{Counts, Entry, count};

/// How a source was understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePlan {
    /// What the source is.
    pub form: SourceFormat,
    /// The splits.
    pub splits: BTreeMap<String, SplitPlan>,
    /// The classes of all splits together.
    pub classes: ClassesPlan,
    /// How splits, classes and labels were found, a sentence each.
    pub understood: Vec<String>,
    /// Entries that are not images by their names, or are hidden or ignored, by reason.
    pub passed_over: Counts,
    /// Entries with an image's name that cannot be taken, by reason. They count against `--max-reject-fraction`.
    pub rejected: Counts,
    /// What to check first.
    pub warnings: Vec<String>,
}

/// A split of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitPlan {
    /// Images by their names, those that cannot be taken left out.
    pub images: u64,
    /// Those with a label.
    pub labelled: u64,
    /// Those without one.
    pub unlabelled: u64,
    /// The encoded images' sizes together, in bytes; of Parquet an estimate from its metadata.
    pub bytes: u64,
    /// The classes that occur.
    pub classes: ClassesPlan,
}

/// A number of classes, and what some are called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassesPlan {
    /// Classes.
    pub count: u64,
    /// The first three.
    pub first: Vec<String>,
    /// The last.
    pub last: Option<String>,
}

impl ClassesPlan {
    fn of<'a>(mut names: impl ExactSizeIterator<Item = &'a String> + DoubleEndedIterator) -> Self {
        let count = names.len() as u64;
        let last = names.next_back().cloned();
        let mut first: Vec<String> = names.take(3).cloned().collect();
        if first.len() < 3 {
            first.extend(last.clone());
        }
        Self { count, first, last }
    }

    fn line(&self) -> String {
        let mut names: Vec<String> = self.first.iter().map(|name| format!("`{name}`")).collect();
        match &self.last {
            Some(last) if self.count > 4 => names.push(format!("… `{last}`")),
            Some(last) if self.count == 4 => names.push(format!("`{last}`")),
            _ => {}
        }
        let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        format!("{} {}{names}", self.count, if self.count == 1 { "class" } else { "classes" })
    }
}

impl SourcePlan {
    pub(super) fn new(
        form: SourceFormat,
        entries: &BTreeMap<String, Vec<Entry>>,
        classes: &[String],
        passed_over: Counts,
        understood: Vec<String>,
        warnings: Vec<String>,
    ) -> Self {
        let mut rejected = Counts::new();
        let mut splits = BTreeMap::new();
        for (name, list) in entries {
            let mut occurs = vec![false; classes.len()];
            let mut split = SplitPlan {
                images: 0,
                labelled: 0,
                unlabelled: 0,
                bytes: 0,
                classes: ClassesPlan::default(),
            };
            for entry in list {
                if let Some(fault) = entry.fault {
                    count(&mut rejected, fault.reason(), || format!("{name}: {}", entry.path));
                    continue;
                }
                split.images += 1;
                split.bytes += entry.bytes;
                match entry.class {
                    Some(class) => {
                        split.labelled += 1;
                        occurs[class.index()] = true;
                    }
                    None => split.unlabelled += 1,
                }
            }
            let names: Vec<&String> =
                classes.iter().zip(occurs).filter(|(_, occurs)| *occurs).map(|(name, _)| name).collect();
            split.classes = ClassesPlan::of(names.into_iter());
            splits.insert(name.clone(), split);
        }
        let classes = ClassesPlan::of(classes.iter());
        Self { form, splits, classes, understood, passed_over, rejected, warnings }
    }

    /// The plan as lines for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("source: {}", self.form.describe())];
        lines.extend(self.understood.iter().map(|sentence| format!("  {sentence}")));
        for (name, split) in &self.splits {
            let SplitPlan { images, labelled, unlabelled, bytes, classes } = split;
            lines.push(format!(
                "{name:>10}  {images} images, {labelled} labelled, {unlabelled} unlabelled, {}, {:.1} MB",
                classes.line(),
                *bytes as f64 / 1e6
            ));
        }
        for (title, counts) in [("passed over", &self.passed_over), ("rejected", &self.rejected)] {
            lines.extend(counts.iter().map(|(reason, counted)| {
                format!("{title}: {} {reason}, such as `{}`", counted.count, counted.example)
            }));
        }
        lines.extend(self.warnings.iter().map(|warning| format!("warning: {warning}")));
        lines
    }
}
