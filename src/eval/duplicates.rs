//! Bank rows with a query's own image: its duplicates, which may be excluded, and its own row.

use std::collections::{BTreeMap, HashSet};

use crate::dataset::DuplicateRow;
use crate::feature_table::Table;
use crate::ids::InstanceId;
use crate::search::Neighbours;

/// Duplicates of each query among the instances of the bank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Duplicates(BTreeMap<InstanceId, Vec<InstanceId>>);

impl Duplicates {
    /// Selects the duplicates that `ingest` found between queries of one split and a bank of one split. A
    /// query's own row is not its duplicate.
    pub fn between(rows: &[DuplicateRow], query_split: &str, bank_split: &str) -> Self {
        let mut groups = BTreeMap::<u64, Vec<&DuplicateRow>>::new();
        rows.iter().for_each(|row| groups.entry(row.group).or_default().push(row));
        // A query may be in several groups.
        let mut all = BTreeMap::<InstanceId, Vec<InstanceId>>::new();
        for group in groups.values() {
            let of_split = |split: &str| -> Vec<InstanceId> {
                group.iter().filter(|row| row.split == split).map(|row| row.id).collect()
            };
            let rows = of_split(bank_split);
            for query in of_split(query_split) {
                let others = rows.iter().filter(|&&id| query_split != bank_split || id != query);
                all.entry(query).or_default().extend(others);
            }
        }
        all.retain(|_, own| !own.is_empty());
        for own in all.values_mut() {
            own.sort_unstable();
            own.dedup();
        }
        Self(all)
    }

    /// Returns the duplicates of a query.
    pub(super) fn of(&self, query: InstanceId) -> &[InstanceId] {
        self.0.get(&query).map_or(&[], Vec::as_slice)
    }

    /// Returns the largest number of duplicates of a query.
    pub fn most(&self) -> usize {
        self.0.values().map(Vec::len).max().unwrap_or(0)
    }

    /// Counts pairs of one of these queries and a duplicate.
    pub fn pairs(&self, queries: &[InstanceId]) -> usize {
        queries.iter().map(|&query| self.of(query).len()).sum()
    }

    /// Selects the `k` nearest neighbours besides duplicates, from a search for [`Duplicates::most`] more.
    pub(super) fn leave_out(
        &self,
        found: Neighbours,
        k: usize,
        bank: &dyn Table,
        queries: &[InstanceId],
    ) -> Neighbours {
        if found.k == k {
            return found;
        }
        let kept = |(at, query): (usize, &InstanceId)| {
            let own = self.of(*query);
            let others = found.of(at).filter(|(row, _)| !own.contains(&bank.id(*row))).take(k);
            others.map(|(row, similarity)| (row as u32, similarity)).collect::<Vec<_>>()
        };
        Neighbours { k, found: queries.iter().enumerate().flat_map(kept).collect() }
    }
}

/// Describes for an error or note how many queries are among these rows of a split; `None` if no query is. If
/// any query has a label, only labelled ones count.
pub(super) fn common_rows(
    split: &str,
    ids: impl Iterator<Item = InstanceId>,
    queries: &dyn Table,
) -> Option<String> {
    if split != queries.meta().split {
        return None;
    }
    let are_labelled = queries.has_labels();
    let labelled = queries.ids().zip(queries.labels()).filter(|(_, label)| !are_labelled || label.is_some());
    let queried: HashSet<InstanceId> = labelled.map(|(id, _)| id).collect();
    let (all, common) = (queried.len(), ids.filter(|id| queried.contains(id)).count());
    (common > 0).then(|| match split {
        // Tables of other programs may each count their rows from 0.
        "" => format!("{common} of {all} queries, if equal ids mean the same image,"),
        split => format!("{common} of {all} queries of split `{split}`"),
    })
}
