//! One part of a split: checked, numbered, written.

use std::collections::BTreeMap;

use serde::Serialize;

use super::plan::{PartPlan, Plan};
use super::remake::Changes;
use super::report::SplitReport;
use super::screen::{Facts, Refusal, Verdict, screen};
use super::source::Source;
use super::work::Work;
use super::write::{Instance, ShardJob, deal};
use super::{IngestError, IngestOptions, PROGRAM};
use crate::dataset::{ContentDigest, IndexRow, IngestRecord, PartReport, ShardEntry, Split, write_index};
use crate::ids::InstanceId;
use crate::progress::Progress;
use crate::storage::{PublishMode, StorageError};

/// How many reasons an error or a report shows.
const SHOWN_REJECTS: usize = 5;
/// The kind of reason of a training picture that another split holds too.
const LEAK: &str = "leak";

/// A line of `rejects/<split>.jsonl`.
#[derive(Serialize)]
struct Reject<'a> {
    path: &'a str,
    reason: &'a str,
}

/// The verdicts on a part's pictures, in their order.
#[derive(Debug)]
pub(super) struct Checked(Vec<Verdict>);

impl Checked {
    /// The accepted pictures with their places.
    pub(super) fn accepted(&self) -> Vec<(usize, Facts)> {
        self.0
            .iter()
            .enumerate()
            .filter_map(|(place, verdict)| Some((place, *verdict.as_ref().ok()?)))
            .collect()
    }

    /// Leaves a picture out because it has a twin in another split.
    pub(super) fn drop_leak(&mut self, place: usize, twin: &str) {
        self.0[place] = Err(Refusal { kind: LEAK.into(), reason: format!("a twin of {twin}") });
    }
}

/// The work on one part.
pub(super) struct PartJob<'a> {
    pub(super) options: &'a IngestOptions,
    pub(super) source: &'a Source,
    pub(super) plan: &'a Plan<'a>,
    pub(super) part: &'a PartPlan<'a>,
    pub(super) work: Work,
    /// The split as it is, if the part is appended.
    pub(super) before: Option<&'a Split>,
}

impl PartJob<'_> {
    /// Looks at every picture.
    ///
    /// # Errors
    /// If too many are refused, or a store fails.
    pub(super) fn check(&self, progress: &dyn Progress) -> Result<Checked, IngestError> {
        progress.begin(&format!("check {}", self.part.split), self.part.entries.len() as u64);
        let verdicts = screen(self.source, self.part.entries, self.options, &self.work, progress)?;
        progress.finish();
        let (rejected, total) = (verdicts.iter().filter(|verdict| verdict.is_err()).count(), verdicts.len());
        let allowed = self.options.max_reject_fraction.get() * total as f64;
        if rejected < total && rejected as f64 <= allowed {
            return Ok(Checked(verdicts));
        }
        let first = self.first_rejects(&verdicts).join("; ");
        Err(IngestError::TooManyRejects { split: self.part.split.into(), rejected, total, first })
    }

    /// Gives the accepted pictures their ids and writes shards, index and rejects.
    ///
    /// `rows` are those of the split so far. All rows come back.
    ///
    /// # Errors
    /// If the source changed, there are more pictures than ids, or a store fails.
    pub(super) fn write(
        &self,
        checked: &Checked,
        rows: &[IndexRow],
        progress: &dyn Progress,
    ) -> Result<(Split, Vec<IndexRow>, SplitReport), IngestError> {
        let accepted = checked.accepted();
        let instances = self.number(&accepted, rows.len())?;
        progress.begin(&format!("write {}", self.part.split), instances.len() as u64);
        let number = self.part.number as u64;
        let dealt = deal(&instances, self.options.shuffle_seed, number, self.options.shard_bytes);
        let first = self.before.map_or(0, |split| split.shards.len());
        let job = ShardJob {
            source: self.source,
            options: self.options,
            dest: &self.options.dest,
            split: self.part.split,
            classes: &self.plan.classes,
            first,
        };
        let shards = job.write(&dealt, &self.work, progress)?;
        progress.finish();
        let new_rows = index_rows(&dealt, first, rows.len());
        let path = format!("index/{}.parquet", self.part.name());
        let index = write_index(&self.options.dest, &path, &new_rows)?;
        self.publish_rejects(&checked.0)?;

        let found = self.report(&checked.0, &instances);
        let report = SplitReport {
            instances: instances.len() as u64,
            rejected: found.refused.values().sum(),
            first_rejects: self.first_rejects(&checked.0),
            ids: self.describe_ids(&checked.0),
            image_bytes: instances.iter().map(|instance| instance.facts.bytes).sum(),
            shards: shards.len(),
            found: found.clone(),
        };
        let record = IngestRecord {
            program: PROGRAM.into(),
            format: format!("{:?}", self.source.format).to_lowercase(),
            source_fingerprint: self.part.fingerprint,
            options: self.plan.options.clone(),
            instances: report.instances,
            index,
            report: found,
        };
        let mut rows = rows.to_vec();
        rows.extend(new_rows);
        let split = self.split(&rows, shards, record, &report);
        Ok((split, rows, report))
    }

    fn number<'b>(
        &'b self,
        accepted: &'b [(usize, Facts)],
        first: usize,
    ) -> Result<Vec<Instance<'b>>, IngestError> {
        if u32::try_from(first + accepted.len()).is_err() {
            let reason = "it has more pictures than there are ids (2^32)".into();
            return Err(IngestError::Layout { location: self.options.sources[0].to_string(), reason });
        }
        let instance = |(id, (place, facts)): (u32, &'b (usize, Facts))| {
            let entry = &self.part.entries[*place];
            Instance { id: InstanceId(id), class: self.plan.class(entry), entry, facts }
        };
        Ok((first as u32..).zip(accepted).map(instance).collect())
    }

    fn split(
        &self,
        rows: &[IndexRow],
        shards: Vec<ShardEntry>,
        record: IngestRecord,
        report: &SplitReport,
    ) -> Split {
        let mut digest = ContentDigest::default();
        rows.iter().for_each(|row| digest.add(row.id, row.label, row.picture));
        let before = self.before.cloned();
        let (mut all_shards, mut ingest, bytes, rejected) = before
            .map_or((Vec::new(), Vec::new(), 0, 0), |split| {
                (split.shards, split.ingest, split.image_bytes, split.rejected)
            });
        all_shards.extend(shards);
        ingest.push(record);
        Split {
            instances: rows.len() as u64,
            labelled: rows.iter().filter(|row| row.label.is_some()).count() as u64,
            image_bytes: bytes + report.image_bytes,
            rejected: rejected + report.rejected,
            digest: digest.finish(),
            shards: all_shards,
            ingest,
        }
    }

    /// Refused pictures with their reasons: by their names first, then by their contents.
    fn rejects<'b>(&'b self, verdicts: &'b [Verdict]) -> impl Iterator<Item = Reject<'b>> {
        // Names that are not taken belong to no split; the first of the source lists them.
        let is_first = self.source.splits.keys().next().is_some_and(|first| first == self.part.split);
        let names = self.source.refused.iter().filter(move |_| is_first);
        let names = names.map(|(path, reason)| Reject { path, reason });
        let contents = self.part.entries.iter().zip(verdicts);
        names.chain(contents.filter_map(|(entry, verdict)| {
            Some(Reject { path: &entry.path, reason: &verdict.as_ref().err()?.reason })
        }))
    }

    fn first_rejects(&self, verdicts: &[Verdict]) -> Vec<String> {
        let show = |reject: Reject<'_>| format!("{}: {}", reject.path, reject.reason);
        self.rejects(verdicts).take(SHOWN_REJECTS).map(show).collect()
    }

    fn publish_rejects(&self, verdicts: &[Verdict]) -> Result<(), StorageError> {
        let file = self.options.dest.join(&format!("rejects/{}.jsonl", self.part.name()));
        let line =
            |reject: Reject<'_>| serde_json::to_string(&reject).expect("a reject is plain data") + "\n";
        file.publish(self.rejects(verdicts).map(line).collect::<String>(), PublishMode::Overwrite)
    }

    /// How ids and the places in the sorted folder hang together.
    fn describe_ids(&self, verdicts: &[Verdict]) -> String {
        let refused = verdicts.iter().position(Result::is_err);
        match (refused, self.part.number) {
            (None, 0) => "those of the sorted ImageFolder".into(),
            (None, _) => {
                "the appended pictures follow those before, in the order of their sorted ImageFolder".into()
            }
            (Some(place), _) => format!(
                "the places in the sorted ImageFolder, less the refused pictures before; the first refused one has place {place}"
            ),
        }
    }

    fn report(&self, verdicts: &[Verdict], instances: &[Instance<'_>]) -> PartReport {
        let mut refused: BTreeMap<String, u64> = BTreeMap::new();
        let kinds = verdicts.iter().filter_map(|verdict| Some(verdict.as_ref().err()?.kind.as_str()));
        kinds.for_each(|kind| *refused.entry(kind.to_owned()).or_default() += 1);
        let names = self.rejects(verdicts).count() as u64 - refused.values().sum::<u64>();
        if names > 0 {
            refused.insert("name or kind of entry".into(), names);
        }
        let mut pictures: BTreeMap<String, u64> = BTreeMap::new();
        for instance in instances {
            let kind = format!("{:?} {:?}", instance.facts.format, instance.facts.colour).to_lowercase();
            *pictures.entry(kind).or_default() += 1;
        }
        let range = |of: fn(&Facts) -> u64| {
            let values = || instances.iter().map(|instance| of(instance.facts));
            let mean = values().sum::<u64>() / values().count().max(1) as u64;
            [values().min().unwrap_or(0), mean, values().max().unwrap_or(0)]
        };
        let changed = |is: fn(&Changes) -> bool| {
            instances.iter().filter(|instance| is(&instance.facts.changes)).count() as u64
        };
        PartReport {
            looked_at: verdicts.len() as u64,
            dropped_leaks: refused.get(LEAK).copied().unwrap_or(0),
            refused,
            passed_over: self.source.passed_over,
            kinds: pictures,
            picture_bytes: range(|facts| facts.bytes),
            short_side: range(|facts| u64::from(facts.width.min(facts.height))),
            long_side: range(|facts| u64::from(facts.width.max(facts.height))),
            re_encoded: changed(|changes| changes.smaller || changes.baseline),
            tiled: changed(|changes| changes.tiled),
        }
    }
}

/// The rows of the index, in the order of the ids.
fn index_rows(shards: &[Vec<Instance<'_>>], first_shard: usize, first_id: usize) -> Vec<IndexRow> {
    let count = shards.iter().map(Vec::len).sum();
    let mut rows: Vec<Option<IndexRow>> = vec![None; count];
    for (shard, instances) in shards.iter().enumerate() {
        for (row, instance) in (0..).zip(instances) {
            rows[instance.id.row() - first_id] = Some(IndexRow {
                id: instance.id,
                label: instance.class,
                path: instance.entry.path.to_string(),
                shard: (first_shard + shard) as u32,
                row,
                picture: instance.facts.digest,
                view: instance.facts.view,
            });
        }
    }
    rows.into_iter().map(|row| row.expect("every instance was dealt")).collect()
}
