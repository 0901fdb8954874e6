//! Rows by which they are evaluated themselves.

use std::collections::HashSet;

use crate::feature_table::FeatureTable;
use crate::ids::InstanceId;

/// How many of the queries, of the labelled ones where there are any, are among these rows of a split, in words; none where
/// no one is.
pub(super) fn common_rows(split: &str, ids: &[InstanceId], queries: &FeatureTable) -> Option<String> {
    if split != queries.meta.split {
        return None;
    }
    let ids: HashSet<_> = ids.iter().collect();
    let are_labelled = queries.labels.iter().any(Option::is_some);
    let labelled =
        queries.ids.iter().zip(&queries.labels).filter(|(_, label)| !are_labelled || label.is_some());
    let (all, common) = labelled
        .fold((0_usize, 0_usize), |(all, common), (id, _)| (all + 1, common + usize::from(ids.contains(id))));
    (common > 0).then(|| format!("{common} of {all} queries of split `{split}`"))
}
