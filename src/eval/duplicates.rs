//! Rows of the bank that show a query's own image: its duplicates, which may be left out, and its own row.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::dataset::DuplicateRow;
use crate::feature_table::Table;
use crate::ids::InstanceId;
use crate::search::Neighbours;

/// For each query, the instances of the bank that are its duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Duplicates(BTreeMap<InstanceId, Vec<InstanceId>>);

impl Duplicates {
    /// The duplicates that `ingest` found, between queries of one split and a bank of one split. A query's own
    /// row is not its duplicate.
    pub fn between(rows: &[DuplicateRow], query_split: &str, bank_split: &str) -> Self {
        let mut groups = BTreeMap::<u64, Vec<&DuplicateRow>>::new();
        rows.iter().for_each(|row| groups.entry(row.group).or_default().push(row));
        // A query may be in several groups.
        let mut all = BTreeMap::<InstanceId, BTreeSet<InstanceId>>::new();
        for group in groups.values() {
            for query in group.iter().filter(|row| row.split == query_split) {
                let is_other = |id: InstanceId| query_split != bank_split || id != query.id;
                for row in group.iter().filter(|row| row.split == bank_split && is_other(row.id)) {
                    all.entry(query.id).or_default().insert(row.id);
                }
            }
        }
        Self(all.into_iter().map(|(query, own)| (query, own.into_iter().collect())).collect())
    }

    /// The duplicates of a query.
    pub(super) fn of(&self, query: InstanceId) -> &[InstanceId] {
        self.0.get(&query).map_or(&[], Vec::as_slice)
    }

    /// The most duplicates that any query has.
    pub fn most(&self) -> usize {
        self.0.values().map(Vec::len).max().unwrap_or(0)
    }

    /// Pairs of one of these queries and a duplicate.
    pub fn pairs(&self, queries: &[InstanceId]) -> usize {
        queries.iter().map(|&query| self.of(query).len()).sum()
    }

    /// The `k` nearest that are no duplicates, of neighbours that were found with [`Duplicates::most`] more.
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

/// In words, how many queries are among these rows of a split; `None` for none. Where any query has a label, only the
/// labelled ones count.
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
        // Tables of other programs: each may count its rows from 0.
        "" => format!("{common} of {all} queries, if equal ids mean the same image,"),
        split => format!("{common} of {all} queries of split `{split}`"),
    })
}
