//! Candidate rows that a query is compared with besides its positive, by tile.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::{Negatives, Queries};
use crate::bank::{BankShard, BatchRows};
use crate::units::Temperature;

/// Returns the bytes of a tile's logits or of its rows in f32, whichever are more. `gathered`: whether the rows
/// differ by query. On the CPU a tile should stay in a cache; on a GPU each operation should be worth its launch.
fn tile_bytes(device: Device, gathered: bool) -> usize {
    match (device.is_cuda(), gathered) {
        (true, false) => 256 << 20,
        (true, true) => 512 << 20,
        (false, false) => 4 << 20,
        (false, true) => 16 << 20,
    }
}

/// Selection of candidate rows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Candidates<'a> {
    /// Every row but the query's own.
    Others,
    /// Sampled rows.
    Sampled {
        negatives: &'a Negatives,
        /// Whether to mask the query's own row if it was drawn.
        exclude_own: bool,
    },
}

/// Tile of candidates for all queries.
#[derive(Debug)]
pub(super) struct Tile {
    /// `[batch, tile]` f32: similarities divided by the temperature; minus infinity for rows that are not candidates.
    pub logits: Tensor,
    /// `[tile, dim]` if the queries share the rows, else `[batch, tile, dim]`; f32, or on a GPU the bank's type.
    rows: Tensor,
}

impl Tile {
    /// Returns the sum of the rows with these weights.
    ///
    /// # Shape
    /// `[batch, tile]` f32 -> `[batch, dim]` f32
    pub(super) fn weighted(&self, weights: &Tensor) -> Tensor {
        // Weights may exceed f16's range.
        let rows = if self.rows.kind() == Kind::Half { &self.rows.to_kind(Kind::Float) } else { &self.rows };
        if rows.dim() == 2 {
            product(weights, rows)
        } else {
            product(&weights.unsqueeze(1), rows).squeeze_dim(1)
        }
    }
}

/// Multiplies matrices in the second factor's type, with sums and result in f32.
fn product(a: &Tensor, b: &Tensor) -> Tensor {
    match (b.kind(), b.dim()) {
        (Kind::Float, _) => a.matmul(b),
        (kind, 2) => a.to_kind(kind).mm_dtype(b, Kind::Float),
        (kind, _) => a.to_kind(kind).bmm_dtype(b, Kind::Float),
    }
}

/// Converts rows for products: on a GPU they keep the bank's type, whose products tensor cores sum in f32.
fn factors(rows: &Tensor) -> Tensor {
    if rows.device().is_cuda() { rows.shallow_clone() } else { rows.to_kind(Kind::Float) }
}

/// Calls `visit` with each tile of the candidates in this shard.
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
    let own = queries.rows_in(part);
    let row_bytes = queries.positions.len().max(part.dim()) * size_of::<f32>();
    let tile = (tile_bytes(scaled.device(), false) / row_bytes.max(1)).max(1);
    for start in (0..part.len()).step_by(tile) {
        let len = tile.min(part.len() - start);
        let rows = factors(&part.rows().narrow(0, start as i64, len as i64));
        let mut logits = product(scaled, &rows.tr());
        leave_out(&own, &mut logits, start..start + len);
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
    let numbers = if negatives.shared() { batch.max(dim) } else { batch * dim };
    let tile = (tile_bytes(device, !negatives.shared()) / (numbers * size_of::<f32>()).max(1)).max(1);
    let own = exclude_own.then(|| queries.rows_in(part).places().unsqueeze(1));
    let whole = part.len() == part.instances();
    for start in columns.clone().step_by(tile) {
        let drawn = negatives.columns(start..(start + tile).min(columns.end), device);
        let mut excluded = own.as_ref().map(|own| drawn.eq_tensor(own));
        let mut local = if part.first_row() == 0 { drawn } else { drawn - part.first_row() as i64 };
        if !whole {
            let elsewhere = local.lt(0).logical_or(&local.ge(part.len() as i64));
            local = local.clamp(0, part.len() as i64 - 1);
            excluded =
                Some(excluded.map_or_else(|| elsewhere.shallow_clone(), |own| own.logical_or(&elsewhere)));
        }
        let rows = factors(&part.rows().index_select(0, &local.reshape([-1])));
        let (mut logits, rows) = if negatives.shared() {
            (product(scaled, &rows.tr()), rows)
        } else {
            let rows = rows.view([batch as i64, -1, dim as i64]);
            let queries = scaled.unsqueeze(2).to_kind(rows.kind());
            let logits = if rows.kind() == Kind::Float {
                rows.bmm(&queries)
            } else {
                rows.bmm_dtype(&queries, Kind::Float)
            };
            (logits.squeeze_dim(2), rows)
        };
        if let Some(excluded) = excluded {
            let _ = logits.masked_fill_(&excluded, f64::NEG_INFINITY);
        }
        visit(Tile { logits, rows });
    }
}

/// Masks each query's own row in a tile.
fn leave_out(own: &BatchRows, logits: &mut Tensor, tile: Range<usize>) {
    let first = own.ascending().partition_point(|&row| row < tile.start);
    let after = own.ascending().partition_point(|&row| row < tile.end);
    if first < after {
        let part = |all: Tensor| all.narrow(0, first as i64, (after - first) as i64);
        let place = [Some(part(own.ascending_query())), Some(part(own.ascending_row()) - tile.start as i64)];
        let nothing = Tensor::full([1], f64::NEG_INFINITY, (logits.kind(), logits.device()));
        let _ = logits.index_put_(&place, &nothing, false);
    }
}
