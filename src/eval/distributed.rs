//! Search and embedding by several processes: each does a share, and the result equals that of one.

use std::ops::Range;

use rayon::ThreadPool;
use rayon::prelude::*;

use super::knn::{KnnOptions, evaluate_by};
use super::{EvalError, KnnReport};
use crate::distributed::{DistributedError, ProcessGroup};
use crate::feature_table::{FeatureTable, Table, TableError, UnitRows};
use crate::ids::{ClassId, InstanceId, RankShare};
use crate::search::{Neighbours, search};

/// Numbers that all processes together send at a time when tables are brought together: 64 MiB.
const NUMBERS_AT_ONCE: usize = 16 << 20;

/// The range of `rows` rows that this process has.
pub fn share(rows: usize, group: &ProcessGroup) -> Range<usize> {
    RankShare { rank: group.rank(), ranks: group.world() }.of(rows)
}

/// Scores a bank and gives the neighbours, with several processes that search a range of its rows each. The report is
/// the same in all of them, and equals that of one process.
///
/// `own` is the range of this process and `rows` are its rows. Of `bank`, only ids, labels and metadata are
/// read. `pool` searches, by default rayon's.
///
/// # Errors
/// As [`evaluate`](super::evaluate); if a collective fails.
pub fn evaluate_over(
    group: &ProcessGroup,
    bank: &dyn Table,
    (own, rows): (Range<usize>, &dyn Table),
    queries: &FeatureTable,
    options: &KnnOptions,
    pool: Option<&ThreadPool>,
) -> Result<(KnnReport, Neighbours), EvalError> {
    let rows = UnitRows::new(rows);
    let find = |queries: &FeatureTable, k: usize| {
        let here = |k| match pool {
            Some(pool) => pool.install(|| search(&rows, queries, k, false)),
            None => search(&rows, queries, k, false),
        };
        search_over(group, (bank, own.clone()), queries, (k, options.leave_one_out), here)
    };
    evaluate_by(bank, queries, options, &find)
}

/// The `k` most similar rows of a bank of which each process has some, for the same queries in all; with
/// `leave_one_out`, a row of the query's own id does not count.
///
/// `bank` has the ids of all rows, `own` is the range of this process's; `find` gives the most similar of these,
/// counted from the first, and leaves nothing out.
///
/// # Errors
/// If a vector cannot be read, or a collective fails.
///
/// # Panics
/// If `k` exceeds the rows that can be found.
fn search_over(
    group: &ProcessGroup,
    (bank, own): (&dyn Table, Range<usize>),
    queries: &FeatureTable,
    (k, leave_one_out): (usize, bool),
    find: impl FnOnce(usize) -> Result<Neighbours, TableError>,
) -> Result<Neighbours, EvalError> {
    // The own row is left out when all have been asked: only one of them has it.
    let wanted = (k + usize::from(leave_one_out)).min(own.len());
    let mut found = if wanted == 0 {
        // More processes than rows.
        Ok(Neighbours { k: 0, rows: Vec::new(), similarities: Vec::new() })
    } else {
        find(wanted)
    };
    if let Ok(found) = &mut found {
        let first = own.start;
        found.rows.iter_mut().for_each(|row| *row += first as u32);
    }
    // The others do not wait for one that could not search: they end by its failure.
    if let Err(error) = &found {
        group.fail(error.failure());
    }
    let found = group.gather_bytes(&to_bytes(&found?))?;
    let parts: Vec<Neighbours> = found.iter().map(|bytes| from_bytes(bytes)).collect();
    let left_out = |query: usize| leave_one_out.then(|| queries.ids[query]);
    Ok(merge(&parts, bank, queries.len(), k, left_out))
}

/// The best of what several found in different rows.
fn merge(
    parts: &[Neighbours],
    bank: &dyn Table,
    queries: usize,
    k: usize,
    left_out: impl Fn(usize) -> Option<InstanceId> + Sync,
) -> Neighbours {
    let best = |query: usize| {
        let mut all: Vec<(usize, f32)> = parts.iter().flat_map(|part| part.of(query)).collect();
        all.retain(|&(row, _)| Some(bank.id(row)) != left_out(query));
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(bank.id(a.0).cmp(&bank.id(b.0))));
        assert!(all.len() >= k, "the bank has k rows");
        all.truncate(k);
        all
    };
    let all: Vec<(usize, f32)> = (0..queries).into_par_iter().flat_map_iter(best).collect();
    Neighbours {
        k,
        rows: all.iter().map(|&(row, _)| row as u32).collect(),
        similarities: all.into_iter().map(|(_, similarity)| similarity).collect(),
    }
}

fn to_bytes(neighbours: &Neighbours) -> Vec<u8> {
    let k = (neighbours.k as u32).to_le_bytes();
    let rows = neighbours.rows.iter().flat_map(|row| row.to_le_bytes());
    let similarities = neighbours.similarities.iter().flat_map(|value| value.to_le_bytes());
    k.into_iter().chain(rows).chain(similarities).collect()
}

fn from_bytes(bytes: &[u8]) -> Neighbours {
    let words: &[[u8; 4]] = bytes.as_chunks().0;
    let (k, rest) = words.split_first().expect("a message begins with k");
    let (rows, similarities) = rest.split_at(rest.len() / 2);
    Neighbours {
        k: u32::from_le_bytes(*k) as usize,
        rows: rows.iter().map(|&word| u32::from_le_bytes(word)).collect(),
        similarities: similarities.iter().map(|&word| f32::from_le_bytes(word)).collect(),
    }
}

/// Makes one table of the parts that the processes have, in the order of the ranks, and gives it to every process.
///
/// # Errors
/// If a collective fails.
pub fn gather_table(
    group: &ProcessGroup,
    part: FeatureTable,
    whole: (&[InstanceId], &[Option<ClassId>]),
) -> Result<FeatureTable, DistributedError> {
    if group.world() == 1 {
        return Ok(part);
    }
    let mut of_ranks: Vec<Vec<f32>> = vec![Vec::new(); group.world()];
    let longest = whole.0.len().div_ceil(group.world()) * part.meta.dim;
    let at_once = NUMBERS_AT_ONCE / group.world();
    for start in (0..longest).step_by(at_once) {
        let end = (start + at_once).min(part.features.len());
        let own = part.features.get(start.min(end)..end).unwrap_or_default();
        let sent: Vec<u8> = own.iter().flat_map(|value| value.to_le_bytes()).collect();
        for (values, bytes) in of_ranks.iter_mut().zip(group.gather_bytes(&sent)?) {
            values.extend(bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)));
        }
    }
    Ok(FeatureTable {
        ids: whole.0.to_vec(),
        labels: whole.1.to_vec(),
        updated_step: vec![None; whole.0.len()],
        features: of_ranks.concat(),
        meta: part.meta,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature_table::TableSlice;
    use crate::search::{Shape, draw_tables};

    #[test]
    fn what_parts_of_the_bank_find_is_what_the_whole_finds() {
        let (bank, mut queries) = draw_tables(Shape::Uniform, 300, 40, 16, 1);
        // Some queries are rows of the bank, and some rows are equal.
        queries.features[..16].copy_from_slice(bank.feature(7));
        let mut bank = bank;
        let row = bank.feature(7).to_vec();
        bank.features[250 * 16..251 * 16].copy_from_slice(&row);
        for leave_one_out in [false, true] {
            for k in [1, 5, 120] {
                let whole = search(&bank, &queries, k, leave_one_out).expect("found");
                let edges = [0, 3, 100, 300];
                let part = |range: &[usize]| {
                    let slice = TableSlice::new(&bank, range[0]..range[1]);
                    let wanted = (k + usize::from(leave_one_out)).min(slice.rows());
                    let mut found = search(&slice, &queries, wanted, false).expect("found");
                    found.rows.iter_mut().for_each(|row| *row += range[0] as u32);
                    from_bytes(&to_bytes(&found))
                };
                let parts: Vec<_> = edges.windows(2).map(part).collect();
                let left_out = |query: usize| leave_one_out.then(|| queries.ids[query]);
                assert_eq!(merge(&parts, &bank, queries.len(), k, left_out), whole);
            }
        }
    }
}
