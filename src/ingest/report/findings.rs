//! What was found out about the images of a part, as reports and `rejects/` say it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::dataset::PartReport;
use crate::ingest::part::write::Instance;
use crate::ingest::plan::PartPlan;
use crate::ingest::source::Source;
use crate::ingest::validate::rewrite::Changes;
use crate::ingest::validate::{ImageInfo, Validation};
use crate::storage::{Location, PublishMode, StorageError};

/// How many reasons an error or a report shows.
const SHOWN_REJECTS: usize = 5;
/// The kind of reason of a training image that another split holds too.
pub(in crate::ingest) const LEAK: &str = "leak";
/// How the reason of such an image begins; the other image follows.
pub(in crate::ingest) const LEAK_REASON: &str = "a near-duplicate of ";

/// Whether an image was left out because another split holds it too, by the reason in `rejects/`.
pub(in crate::ingest) fn is_leak(reason: &str) -> bool {
    // Earlier versions had another word.
    [LEAK_REASON, "a twin of "].iter().any(|start| reason.starts_with(start))
}

/// A line of `rejects/<split>.jsonl`.
#[derive(Serialize)]
struct Reject<'a> {
    path: &'a str,
    reason: &'a str,
}

/// The validations on a part's images.
pub(in crate::ingest) struct Findings<'a> {
    pub(in crate::ingest) source: &'a Source,
    pub(in crate::ingest) part: &'a PartPlan<'a>,
    pub(in crate::ingest) validations: &'a [Validation],
}

impl Findings<'_> {
    /// Rejected images with their reasons.
    fn rejects(&self) -> impl Iterator<Item = Reject<'_>> {
        let contents = self.part.entries.iter().zip(self.validations);
        contents.filter_map(|(entry, validation)| {
            Some(Reject { path: &entry.path, reason: &validation.as_ref().err()?.reason })
        })
    }

    /// The first refused images and why.
    pub(in crate::ingest) fn first_rejects(&self) -> Vec<String> {
        let show = |reject: Reject<'_>| format!("{}: {}", reject.path, reject.reason);
        self.rejects().take(SHOWN_REJECTS).map(show).collect()
    }

    /// Writes the list of refused images.
    ///
    /// # Errors
    /// If the store fails.
    pub(in crate::ingest) fn publish_rejects(&self, dest: &Location) -> Result<(), StorageError> {
        let file = dest.join(&self.part.rejects_file());
        let line =
            |reject: Reject<'_>| serde_json::to_string(&reject).expect("a reject is plain data") + "\n";
        file.publish(self.rejects().map(line).collect::<String>(), PublishMode::Overwrite)
    }

    /// How ids relate to the order of the source.
    pub(in crate::ingest) fn describe_ids(&self) -> String {
        let rejected = self.validations.iter().position(Result::is_err);
        match (rejected, self.part.number) {
            (None, 0) => "0 to n-1 in the order of a sorted ImageFolder of these images".into(),
            (None, _) => {
                "after those before, in the order of a sorted ImageFolder of the appended images".into()
            }
            (Some(index), _) => format!(
                "in the order of a sorted ImageFolder without the rejected images, of which the first is its number {index}"
            ),
        }
    }

    /// Counts; `instances` are the accepted images.
    pub(in crate::ingest) fn report(&self, instances: &[Instance<'_>]) -> PartReport {
        let validations = self.validations;
        let mut refused: BTreeMap<String, u64> = BTreeMap::new();
        let kinds =
            validations.iter().filter_map(|validation| Some(validation.as_ref().err()?.kind.as_str()));
        kinds.for_each(|kind| *refused.entry(kind.to_owned()).or_default() += 1);
        let mut images: BTreeMap<String, u64> = BTreeMap::new();
        for instance in instances {
            let kind = format!("{:?} {:?}", instance.info.format, instance.info.colour).to_lowercase();
            *images.entry(kind).or_default() += 1;
        }
        let range = |of: fn(&ImageInfo) -> u64| {
            let values = || instances.iter().map(|instance| of(instance.info));
            let mean = values().sum::<u64>() / values().count().max(1) as u64;
            [values().min().unwrap_or(0), mean, values().max().unwrap_or(0)]
        };
        let changed = |is: fn(&Changes) -> bool| {
            instances.iter().filter(|instance| is(&instance.info.changes)).count() as u64
        };
        PartReport {
            looked_at: validations.len() as u64,
            dropped_leaks: refused.get(LEAK).copied().unwrap_or(0),
            refused,
            passed_over: self.source.plan.passed_over.values().map(|counted| counted.count).sum(),
            kinds: images,
            encoded_bytes: range(|info| info.bytes),
            short_side: range(|info| u64::from(info.width.min(info.height))),
            long_side: range(|info| u64::from(info.width.max(info.height))),
            re_encoded: changed(|changes| changes.smaller || changes.baseline),
            tiled: 0,
            source_stamp: (self.source.stamps.without() == 0).then(|| self.source.stamps.digest()),
            plan: serde_json::to_value(&self.source.plan).ok(),
        }
    }
}
