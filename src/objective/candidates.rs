//! The rows against which a query stands beside its own, tile by tile.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::{Negatives, Queries};
use crate::bank::BankShard;
use crate::units::Temperature;

/// Bytes of a tile, of its logits or of its rows in f32, whichever are more.
struct TileBytes {
    /// Where rows are taken as they lie.
    dense: usize,
    /// Where they are gathered for each query.
    gathered: usize,
}

/// On the CPU a tile should stay in a cache; on a GPU each of its few operations should be worth a launch.
fn tile_bytes(device: Device) -> TileBytes {
    if device.is_cuda() {
        TileBytes { dense: 256 << 20, gathered: 512 << 20 }
    } else {
        TileBytes { dense: 4 << 20, gathered: 16 << 20 }
    }
}

/// Which rows those are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Candidates<'a> {
    /// Every row but the query's own.
    Others,
    /// Sampled rows.
    Sampled {
        negatives: &'a Negatives,
        /// Without the query's own row, where it was drawn.
        exclude_own: bool,
    },
}

/// Some candidates of every query.
#[derive(Debug)]
pub(super) struct Tile {
    /// `[batch, tile]` f32: similarities over the temperature; minus infinity for what is no candidate.
    pub(super) logits: Tensor,
    /// `[tile, dim]` where the queries share the rows, else `[batch, tile, dim]`; f32.
    rows: Tensor,
}

impl Tile {
    /// The sum of the rows with these weights.
    ///
    /// # Shape
    /// `[batch, tile]` -> `[batch, dim]`
    pub(super) fn weighted(&self, weights: &Tensor) -> Tensor {
        if self.rows.dim() == 2 {
            weights.matmul(&self.rows)
        } else {
            weights.unsqueeze(1).bmm(&self.rows).squeeze_dim(1)
        }
    }
}

/// Calls `visit` with one tile after the other of the candidates that lie in this part of the bank.
pub(super) fn for_each_tile(
    queries: Queries<'_>,
    temperature: Temperature,
    part: &BankShard,
    candidates: Candidates<'_>,
    visit: impl FnMut(Tile),
) {
    let scaled = queries.features / temperature.get();
    match candidates {
        Candidates::Others => others(queries, &scaled, part, visit),
        Candidates::Sampled { negatives, exclude_own } => {
            sampled(queries, &scaled, part, negatives, exclude_own, visit);
        }
    }
}

fn others(queries: Queries<'_>, scaled: &Tensor, part: &BankShard, mut visit: impl FnMut(Tile)) {
    let own = PositiveRows::new(queries, part);
    let row_bytes = queries.positions.len().max(part.dim()) * size_of::<f32>();
    let tile = (tile_bytes(scaled.device()).dense / row_bytes.max(1)).max(1);
    for start in (0..part.len()).step_by(tile) {
        let len = tile.min(part.len() - start);
        let rows = part.rows().narrow(0, start as i64, len as i64).to_kind(Kind::Float);
        let mut logits = scaled.matmul(&rows.tr());
        own.leave_out(&mut logits, start..start + len);
        visit(Tile { logits, rows });
    }
}

fn sampled(
    queries: Queries<'_>,
    scaled: &Tensor,
    part: &BankShard,
    negatives: &Negatives,
    exclude_own: bool,
    mut visit: impl FnMut(Tile),
) {
    let (batch, dim) = (queries.positions.len(), part.dim());
    let device = scaled.device();
    let columns = negatives.columns_for(part);
    let TileBytes { dense, gathered } = tile_bytes(device);
    let (bytes, numbers) = if negatives.shared() { (dense, batch.max(dim)) } else { (gathered, batch * dim) };
    let tile = (bytes / (numbers * size_of::<f32>()).max(1)).max(1);
    let own = exclude_own.then(|| index(queries.positions.iter().map(|p| p.to_index()), device).unsqueeze(1));
    let whole = part.len() == part.instances();
    for start in columns.clone().step_by(tile) {
        let drawn = negatives.columns(start..(start + tile).min(columns.end), device);
        let mut excluded = own.as_ref().map(|own| drawn.eq_tensor(own));
        let mut local = drawn - part.first_row() as i64;
        if !whole {
            let elsewhere = local.lt(0).logical_or(&local.ge(part.len() as i64));
            local = local.clamp(0, part.len() as i64 - 1);
            excluded =
                Some(excluded.map_or_else(|| elsewhere.shallow_clone(), |own| own.logical_or(&elsewhere)));
        }
        let rows = part.rows().index_select(0, &local.reshape([-1])).to_kind(Kind::Float);
        let (mut logits, rows) = if negatives.shared() {
            (scaled.matmul(&rows.tr()), rows)
        } else {
            let rows = rows.view([batch as i64, -1, dim as i64]);
            (rows.bmm(&scaled.unsqueeze(2)).squeeze_dim(2), rows)
        };
        if let Some(excluded) = excluded {
            let _ = logits.masked_fill_(&excluded, f64::NEG_INFINITY);
        }
        visit(Tile { logits, rows });
    }
}

/// The queries' own rows within a part, in the order of the rows: a tile holds a run of them.
struct PositiveRows {
    /// Ascending, within the part.
    rows: Vec<usize>,
    /// `rows` and the number of each one's query, on the queries' device.
    row: Tensor,
    query: Tensor,
}

impl PositiveRows {
    fn new(queries: Queries<'_>, part: &BankShard) -> Self {
        let mut pairs: Vec<_> = part.owned(queries.positions).collect();
        pairs.sort_unstable_by_key(|&(_, row)| row);
        let device = queries.features.device();
        Self {
            row: index(pairs.iter().map(|&(_, row)| row as i64), device),
            query: index(pairs.iter().map(|&(query, _)| query as i64), device),
            rows: pairs.into_iter().map(|(_, row)| row).collect(),
        }
    }

    /// Takes each query's own row out of a tile.
    fn leave_out(&self, logits: &mut Tensor, tile: Range<usize>) {
        let first = self.rows.partition_point(|&row| row < tile.start);
        let after = self.rows.partition_point(|&row| row < tile.end);
        if first < after {
            let part = |all: &Tensor| all.narrow(0, first as i64, (after - first) as i64);
            let place = [Some(part(&self.query)), Some(part(&self.row) - tile.start as i64)];
            let nothing = Tensor::full([1], f64::NEG_INFINITY, (Kind::Float, logits.device()));
            let _ = logits.index_put_(&place, &nothing, false);
        }
    }
}

/// Indices as a tensor.
pub(super) fn index(values: impl Iterator<Item = i64>, device: Device) -> Tensor {
    Tensor::from_slice(&values.collect::<Vec<_>>()).to_device(device)
}
