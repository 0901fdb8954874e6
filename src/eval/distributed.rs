//! Distributed search and embedding: each process does a share, and the result equals that of one process.

use std::ops::Range;

use rayon::ThreadPool;
use rayon::prelude::*;

use super::knn::{KnnOptions, evaluate_by};
use super::{EvalError, KnnReport};
use crate::distributed::{DistributedError, ProcessGroup};
use crate::feature_table::{FeatureTable, Table};
use crate::ids::{ClassId, InstanceId, RankShare};
use crate::search::{Neighbours, search_among};

/// Numbers that all processes together send at a time to gather a table: 64 MiB.
const NUMBERS_AT_ONCE: usize = 16 << 20;

/// Returns the range of `rows` rows that belongs to this process.
pub fn share(rows: usize, group: &ProcessGroup) -> Range<usize> {
    RankShare { rank: group.rank(), ranks: group.world() }.of(rows)
}

/// Scores a bank and returns the neighbours; each process searches its own range of rows. The report is the
/// same in all processes, and equals that of one process.
///
/// `own` is the range of this process. `part` has the rows of that range, if `bank` has only the ids, labels and
/// metadata of all rows. The search runs in `pool`, by default rayon's.
///
/// # Errors
/// As [`evaluate`](super::evaluate), or if a collective fails.
pub fn evaluate_over(
    group: &ProcessGroup,
    bank: &dyn Table,
    (own, part): (Range<usize>, Option<&dyn Table>),
    queries: &FeatureTable,
    options: &KnnOptions,
    pool: Option<&ThreadPool>,
) -> Result<(KnnReport, Neighbours), EvalError> {
    let find = |queries: &FeatureTable, k: usize| {
        // The own row is excluded after the merge, as only one process has it.
        let wanted = (k + usize::from(options.leave_one_out)).min(own.len());
        let here = || match part {
            Some(part) => search_among(part, 0..own.len(), queries, wanted),
            None => search_among(bank, own.clone(), queries, wanted),
        };
        let found = match pool {
            // There are more processes than rows.
            _ if wanted == 0 => Ok(Neighbours { k: 0, found: Vec::new() }),
            Some(pool) => pool.install(here),
            None => here(),
        };
        // Report a failed search, so that the others end too instead of waiting.
        if let Err(error) = &found {
            group.fail(error.failure());
        }
        let mut found = found?;
        if part.is_some() {
            found.found.iter_mut().for_each(|(row, _)| *row += own.start as u32);
        }
        let found = group.gather_bytes(&to_bytes(&found))?;
        let parts: Vec<Neighbours> = found.iter().map(|bytes| from_bytes(bytes, queries.len())).collect();
        let left_out = |query: usize| options.leave_one_out.then(|| queries.ids[query]);
        Ok(merge(&parts, bank, queries.len(), k, left_out))
    };
    evaluate_by(bank, queries, options, &find)
}

/// Merges the neighbours that several processes found in different rows.
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
        all.into_iter().take(k).map(|(row, similarity)| (row as u32, similarity))
    };
    Neighbours { k, found: (0..queries).into_par_iter().flat_map_iter(best).collect() }
}

fn to_bytes(neighbours: &Neighbours) -> Vec<u8> {
    let words = neighbours.found.iter().flat_map(|(row, value)| [row.to_le_bytes(), value.to_le_bytes()]);
    words.flatten().collect()
}

fn from_bytes(bytes: &[u8], queries: usize) -> Neighbours {
    let words: &[[u8; 4]] = bytes.as_chunks().0;
    let pair = |&[row, similarity]: &[[u8; 4]; 2]| (u32::from_le_bytes(row), f32::from_le_bytes(similarity));
    let found: Vec<(u32, f32)> = words.as_chunks().0.iter().map(pair).collect();
    Neighbours { k: found.len() / queries.max(1), found }
}

/// Gathers the numbers of every process, by rank; processes may have different counts.
///
/// # Errors
/// If a collective fails.
pub(super) fn gather_numbers<T: bytemuck::Pod>(
    group: &ProcessGroup,
    own: &[T],
) -> Result<Vec<Vec<T>>, DistributedError> {
    let bytes = group.gather_bytes(bytemuck::cast_slice(own))?;
    Ok(bytes.into_iter().map(|bytes| bytemuck::pod_collect_to_vec(&bytes)).collect())
}

/// Concatenates the table parts of all processes in the order of ranks. Every process gets the table.
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
        for (values, own) in of_ranks.iter_mut().zip(gather_numbers(group, own)?) {
            values.extend(own);
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
    use crate::feature_table::tests::{location, written_in_batches};
    use crate::feature_table::{Dtype, StoredTable};
    use crate::search::{Shape, draw_tables, search};

    #[test]
    fn what_parts_of_the_bank_find_is_what_the_whole_finds() {
        let (bank, mut queries) = draw_tables(Shape::Uniform, 300, 40, 16, 1);
        // Some queries are rows of the bank, and some rows are equal.
        queries.features[..16].copy_from_slice(bank.feature(7));
        let mut bank = bank;
        let row = bank.feature(7).to_vec();
        bank.features[250 * 16..251 * 16].copy_from_slice(&row);
        // In a file of several record batches, none of which begins where a part does.
        let (_dir, location) = location();
        written_in_batches(&location, &bank, 70, Dtype::F32).finish().expect("published");
        let stored = StoredTable::open(&location).expect("opened");
        for leave_one_out in [false, true] {
            for k in [1, 5, 120] {
                let whole = search(&bank, &queries, k, leave_one_out).expect("found");
                let edges = [0, 3, 100, 300];
                let part = |range: &[usize]| {
                    let wanted = (k + usize::from(leave_one_out)).min(range[1] - range[0]);
                    let found = search_among(&stored, range[0]..range[1], &queries, wanted).expect("found");
                    from_bytes(&to_bytes(&found), queries.len())
                };
                let parts: Vec<_> = edges.windows(2).map(part).collect();
                let left_out = |query: usize| leave_one_out.then(|| queries.ids[query]);
                assert_eq!(merge(&parts, &bank, queries.len(), k, left_out), whole);
            }
        }
    }
}
