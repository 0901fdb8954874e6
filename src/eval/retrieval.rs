//! Retrieval measures of ranked neighbours: recall@k and mean average precision.
//!
//! A row is relevant for a query with the same class, or with a common label if images have several. A row without a
//! label is never relevant, but has a rank. Sums follow the order of the queries, so threads change no bit.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::KnnOptions;
use super::report::score_interval;
use crate::feature_table::{FeatureTable, Table};
use crate::ids::{ClassId, InstanceId};
use crate::search::Neighbours;

/// Values of k for recall@k; those above the number of ranked neighbours are omitted.
const RECALL_AT: [usize; 4] = [1, 5, 10, 100];

/// Retrieval scores: how well neighbours find the rows that are relevant for a query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// Number of ranked neighbours per query: the largest `k` of the vote.
    pub k: usize,
    /// Labelled queries, over which the means are taken.
    pub queries: usize,
    /// Labelled queries without a relevant row, which count as 0 in each measure.
    pub without_relevant: usize,
    /// Recall at 1, 5, 10 and 100, up to `k`.
    pub recall: Vec<RecallAt>,
    /// mAP@k: mean over queries of `Σ P(i) / min(R, k)`, over the ranks `i` up to `k` with a relevant row. `P(i)` is
    /// the fraction of relevant rows among the first `i`, and `R` is the number of relevant rows in the bank.
    pub map: f64,
    /// mAP@R: mean of `Σ P(i) / R` over relevant ranks up to `R`; `None` if some `R` exceeds `k`.
    ///
    /// # Source
    /// Musgrave, Belongie and Lim, A Metric Learning Reality Check (2020), section 3.2.
    pub map_at_r: Option<f64>,
}

/// Fraction of queries with a relevant row among their `k` nearest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecallAt {
    /// Number of neighbours.
    pub k: usize,
    /// Fraction, in 0..1.
    pub recall: f64,
    /// Wilson's 95 % interval of the recall.
    pub interval: [f64; 2],
}

/// Labels of images that have several: each row's label numbers, ascending and distinct. A row without labels
/// has an empty list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSets {
    /// `[rows]`: labels of the bank's rows.
    pub bank: Vec<Vec<u32>>,
    /// `[queries]`: labels of the queries, with the same numbering.
    pub queries: Vec<Vec<u32>>,
}

/// Measures of one query's ranked neighbours.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ranked {
    /// Rank of the first relevant row, from 0.
    first: Option<usize>,
    average_precision: f64,
    average_precision_at_r: Option<f64>,
}

/// Measures the first `k` neighbours by their relevance; `all` is the number of relevant rows in the bank.
fn ranked(is_relevant: impl Iterator<Item = bool>, all: usize, k: usize) -> Ranked {
    let (mut hits, mut sum, mut sum_at_r, mut first) = (0_usize, 0.0, 0.0, None);
    for (rank, _) in is_relevant.take(k).enumerate().filter(|(_, is_relevant)| *is_relevant) {
        hits += 1;
        let precision = hits as f64 / (rank + 1) as f64;
        sum += precision;
        if rank < all {
            sum_at_r += precision;
        }
        first.get_or_insert(rank);
    }
    Ranked {
        first,
        average_precision: sum / all.min(k).max(1) as f64,
        average_precision_at_r: (all <= k).then(|| sum_at_r / all.max(1) as f64),
    }
}

/// Rule that makes a row relevant for a query.
enum Relevance<'a> {
    Class { bank: &'a dyn Table, queries: &'a [Option<ClassId>] },
    Shared(&'a LabelSets),
}

impl Relevance<'_> {
    fn is_labelled(&self, query: usize) -> bool {
        match self {
            Self::Class { queries, .. } => queries[query].is_some(),
            Self::Shared(sets) => !sets.queries[query].is_empty(),
        }
    }

    fn holds(&self, query: usize, row: usize) -> bool {
        match self {
            Self::Class { bank, queries } => queries[query].is_some() && queries[query] == bank.label(row),
            Self::Shared(sets) => {
                let labels = &sets.bank[row];
                sets.queries[query].iter().any(|label| labels.binary_search(label).is_ok())
            }
        }
    }

    /// Returns the number of relevant rows in the whole bank for each of some queries.
    fn count(&self, queries: &[usize]) -> Vec<usize> {
        match self {
            Self::Class { bank, queries: classes } => {
                let mut rows = vec![0_usize; usize::from(u16::MAX) + 1];
                bank.labels().flatten().for_each(|class| rows[class.index()] += 1);
                queries.iter().map(|&query| classes[query].map_or(0, |class| rows[class.index()])).collect()
            }
            Self::Shared(sets) => {
                // Rows with equal labels are counted together, and queries with equal labels once. The work
                // is linear in rows and queries, except for pairs of different sets that share a label.
                let mut rows = HashMap::<&[u32], usize>::new();
                sets.bank.iter().for_each(|labels| *rows.entry(labels).or_default() += 1);
                let rows: Vec<(&[u32], usize)> = rows.into_iter().collect();
                let mut sets_with = HashMap::<u32, Vec<usize>>::new();
                for (at, (labels, _)) in rows.iter().enumerate() {
                    labels.iter().for_each(|&label| sets_with.entry(label).or_default().push(at));
                }
                let wanted: HashSet<&[u32]> = queries.iter().map(|&query| &*sets.queries[query]).collect();
                let wanted: Vec<&[u32]> = wanted.into_iter().collect();
                // A set that shares several labels counts once: `counted` has the last wanted set that counted it.
                let count = |counted: &mut Vec<usize>, (number, labels): (usize, &&[u32])| {
                    let shared = labels.iter().filter_map(|label| sets_with.get(label)).flatten();
                    let new = shared.filter(|&&at| std::mem::replace(&mut counted[at], number) != number);
                    new.map(|&at| rows[at].1).sum::<usize>()
                };
                let counts = wanted.par_iter().enumerate().map_init(|| vec![usize::MAX; rows.len()], count);
                let counts: Vec<usize> = counts.collect();
                let counts: HashMap<&[u32], usize> = wanted.into_iter().zip(counts).collect();
                queries.iter().map(|&query| counts[&*sets.queries[query]]).collect()
            }
        }
    }
}

/// Scores the neighbours; `None` if the bank or the queries have no labels.
pub(super) fn retrieval(
    bank: &dyn Table,
    queries: &FeatureTable,
    neighbours: &Neighbours,
    options: &KnnOptions,
) -> Option<Retrieval> {
    let k = options.k.iter().copied().max()?;
    let (relevance, has_labels) = match &options.label_sets {
        Some(sets) => (Relevance::Shared(sets), sets.bank.iter().any(|labels| !labels.is_empty())),
        None => (Relevance::Class { bank, queries: &queries.labels }, bank.has_labels()),
    };
    let labelled: Vec<usize> =
        (0..queries.len()).filter(|&query| has_labels && relevance.is_labelled(query)).collect();
    if labelled.is_empty() {
        return None;
    }
    // Rows excluded from a query's neighbours do not count as relevant.
    let ids_left_out = |query: usize| {
        let id = queries.ids[query];
        let own = options.leave_one_out.then_some(id);
        let duplicates = options.exclude.as_ref().map_or(&[] as &[_], |duplicates| duplicates.of(id));
        own.into_iter().chain(duplicates.iter().copied().filter(move |&other| own != Some(other)))
    };
    let looked_up: HashSet<InstanceId> = labelled.iter().flat_map(|&query| ids_left_out(query)).collect();
    let row_of: HashMap<InstanceId, usize> =
        bank.ids().zip(0..).filter(|(id, _)| looked_up.contains(id)).collect();
    let left_out = |query: usize| {
        let rows = ids_left_out(query).filter_map(|id| row_of.get(&id));
        rows.filter(|&&row| relevance.holds(query, row)).count()
    };
    let score = |(&query, &relevant): (&usize, &usize)| {
        let all = relevant - left_out(query);
        let is_relevant = neighbours.of(query).map(|(row, _)| relevance.holds(query, row));
        (all, ranked(is_relevant, all, k))
    };
    let counts = relevance.count(&labelled);
    let scores: Vec<(usize, Ranked)> = labelled.par_iter().zip(&counts).map(score).collect();
    let mean = |sum: f64| sum / labelled.len() as f64;
    let recall_at = |k: usize| {
        let hits = scores.iter().filter(|(_, ranked)| ranked.first.is_some_and(|rank| rank < k)).count();
        RecallAt { k, recall: mean(hits as f64), interval: score_interval(hits, labelled.len()) }
    };
    let at_r: Option<f64> = scores.iter().map(|(_, ranked)| ranked.average_precision_at_r).sum();
    Some(Retrieval {
        k,
        queries: labelled.len(),
        without_relevant: scores.iter().filter(|(all, _)| *all == 0).count(),
        recall: RECALL_AT.into_iter().filter(|&at| at <= k).map(recall_at).collect(),
        map: mean(scores.iter().map(|(_, ranked)| ranked.average_precision).sum()),
        map_at_r: at_r.map(mean),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eval::tests::{duplicate, options, table};
    use crate::eval::{Duplicates, evaluate, evaluate_with_neighbours};

    #[test]
    fn a_ranking_worked_by_hand() {
        // Relevant at ranks 1, 3 and 6 of 6; 4 relevant rows in the bank.
        let ranks = [true, false, true, false, false, true];
        let sum = 1.0 + 2.0 / 3.0 + 3.0 / 6.0;
        let found = ranked(ranks.into_iter(), 4, 6);
        assert_eq!((found.first, found.average_precision), (Some(0), sum / 4.0));
        assert_eq!(found.average_precision_at_r, Some((1.0 + 2.0 / 3.0) / 4.0), "the first 4 ranks");
        // With 3 neighbours at most 3 rows can be found, and mAP@R is unknown.
        let found = ranked(ranks.into_iter(), 4, 3);
        assert_eq!((found.average_precision, found.average_precision_at_r), ((1.0 + 2.0 / 3.0) / 3.0, None));
        let none = ranked([false, false].into_iter(), 0, 2);
        assert_eq!((none.first, none.average_precision, none.average_precision_at_r), (None, 0.0, Some(0.0)));
    }

    /// Computes the definitions by plain loops over a full ranking of the bank.
    fn brute_force(
        bank: &FeatureTable,
        queries: &FeatureTable,
        k: usize,
        is_left_out: impl Fn(usize, usize) -> bool,
        shares: impl Fn(usize, usize) -> bool,
        is_labelled: impl Fn(usize) -> bool,
    ) -> (Vec<f64>, f64, Option<f64>, usize) {
        let (mut recalls, mut map, mut map_at_r, mut unmatched, mut scored) =
            ([0.0; 4], 0.0, Some(0.0), 0, 0.0);
        for query in (0..queries.len()).filter(|&query| is_labelled(query)) {
            scored += 1.0;
            let similarity = |row: usize| {
                let pairs = bank.feature(row).iter().zip(queries.feature(query));
                pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
            };
            let mut rows: Vec<usize> = (0..bank.len()).filter(|&row| !is_left_out(query, row)).collect();
            rows.sort_by(|&a, &b| {
                similarity(b).total_cmp(&similarity(a)).then(bank.ids[a].cmp(&bank.ids[b]))
            });
            let relevant: Vec<bool> = rows.iter().map(|&row| shares(query, row)).collect();
            let all = relevant.iter().filter(|&&is| is).count();
            for (at, recall) in RECALL_AT.into_iter().zip(&mut recalls) {
                *recall += f64::from(u8::from(relevant.iter().take(at).any(|&is| is)));
            }
            unmatched += usize::from(all == 0);
            let precision =
                |rank: usize| relevant[..=rank].iter().filter(|&&is| is).count() as f64 / (rank + 1) as f64;
            let sum = |most: usize| (0..most).filter(|&rank| relevant[rank]).map(precision).sum::<f64>();
            if all > 0 {
                map += sum(k) / all.min(k) as f64;
                map_at_r = map_at_r.filter(|_| all <= k).map(|total: f64| total + sum(all) / all as f64);
            }
        }
        let recalls = recalls.iter().zip(RECALL_AT).filter(|(_, at)| *at <= k).map(|(r, _)| r / scored);
        (recalls.collect(), map / scored, map_at_r.map(|sum| sum / scored), unmatched)
    }

    fn assert_is(found: &Retrieval, expected: &(Vec<f64>, f64, Option<f64>, usize)) {
        let (recalls, map, map_at_r, unmatched) = expected;
        assert_eq!(&found.recall.iter().map(|at| at.recall).collect::<Vec<_>>(), recalls);
        assert!((found.map - map).abs() < 1e-12, "{} {map}", found.map);
        assert_eq!(found.map_at_r.is_some(), map_at_r.is_some());
        assert!(found.map_at_r.zip(*map_at_r).is_none_or(|(a, b)| (a - b).abs() < 1e-12));
        assert_eq!(found.without_relevant, *unmatched);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn measures_are_those_of_plain_loops(
            seed in 0_u64..1000, rows in 30_usize..160, classes in 1_usize..12, k in 1_usize..25,
            own: bool, excluded: bool,
        ) {
            let (mut bank, mut queries) = (table(seed, rows, 6, classes), table(seed + 1, 25, 6, classes));
            // Some rows and queries have no label, and one class has queries only.
            bank.labels.iter_mut().step_by(7).for_each(|label| *label = None);
            bank.labels.iter_mut().filter(|label| **label == Some(ClassId(1))).for_each(|label| *label = None);
            bank.labels[1] = Some(ClassId(0));
            queries.labels.iter_mut().step_by(5).for_each(|label| *label = None);
            let pairs = [(2_u32, 5_u32), (2, 9), (3, 3), (4, 900)];
            let duplicates: Vec<_> = (0..).zip(pairs).flat_map(|(group, (query, row))| {
                [duplicate(group, "val", query), duplicate(group, "train", row)]
            }).collect();
            bank.meta.split = if own { "val" } else { "train" }.into();
            let exclude = (excluded && !own).then(|| Duplicates::between(&duplicates, "val", "train"));
            let is_left_out = |query: usize, row: usize| {
                own && query == row || exclude.is_some() && pairs.contains(&(query as u32, row as u32))
            };
            let expected = brute_force(&bank, &queries, k, is_left_out,
                |query, row| queries.labels[query].is_some() && queries.labels[query] == bank.labels[row],
                |query| queries.labels[query].is_some());
            // More neighbours for a page change no score.
            let asked = KnnOptions { leave_one_out: own, exclude: exclude.clone(), shown: k + 3, ..options(k) };
            let report = evaluate(&bank, &queries, &asked).expect("scored");
            let found = report.retrieval.expect("labels");
            assert_is(&found, &expected);
            prop_assert_eq!(found.queries, report.queries);
            let first = evaluate(&bank, &queries, &KnnOptions { k: vec![1], ..asked }).expect("scored");
            prop_assert_eq!(found.recall[0].recall, first.top1, "recall@1 is the vote of one neighbour");
        }

        #[test]
        fn rows_that_share_one_of_several_labels_are_relevant(seed in 0_u64..1000, k in 1_usize..40) {
            let (mut bank, mut queries) = (table(seed, 90, 6, 3), table(seed + 1, 20, 6, 3));
            bank.labels.fill(None);
            queries.labels.fill(None);
            let mut stream = crate::rng::Stream::new(seed, crate::rng::Purpose::Test, 1, 0);
            let mut drawn = |rows: usize| -> Vec<Vec<u32>> {
                (0..rows).map(|_| (0..8).filter(|_| stream.chance(0.15)).collect()).collect()
            };
            let mut sets = LabelSets { bank: drawn(90), queries: drawn(20) };
            sets.queries[0] = vec![1, 7];
            sets.bank[0] = vec![1, 7];
            let expected = brute_force(&bank, &queries, k, |_, _| false,
                |query, row| sets.queries[query].iter().any(|label| sets.bank[row].contains(label)),
                |query| !sets.queries[query].is_empty());
            let asked = KnnOptions { label_sets: Some(std::sync::Arc::new(sets)), ..options(k) };
            let (report, _) = evaluate_with_neighbours(&bank, &queries, &asked).expect("scored");
            assert_is(report.retrieval.as_ref().expect("labels"), &expected);
            prop_assert!(!report.has_scores() && report.top1.is_nan(), "nothing votes");
        }
    }

    #[test]
    fn without_labels_nothing_is_measured() {
        let (bank, mut queries) = (table(3, 40, 6, 3), table(4, 9, 6, 3));
        queries.labels.fill(None);
        assert_eq!(evaluate(&bank, &queries, &options(5)).expect("neighbours").retrieval, None);
        let mut unlabelled = bank.clone();
        unlabelled.labels.fill(None);
        assert_eq!(evaluate(&unlabelled, &bank, &options(5)).expect("neighbours").retrieval, None);
    }
}
