//! How long ago the rows of a bank were written.

use std::collections::BTreeMap;

use super::Section;
use super::text::{add, grouped};
use crate::feature_table::{Kind, Table, TableError};

/// Bars of the histogram.
const BARS: u64 = 24;
/// Rows whose steps are read together.
const ROWS: usize = 1 << 16;

pub(super) fn section(bank: &dyn Table) -> Result<Option<Section>, TableError> {
    let meta = bank.meta();
    if meta.kind != Kind::Bank {
        return Ok(None);
    }
    // Rows of one batch have one age, so the ages are few.
    let mut rows_of_age = BTreeMap::<u64, u64>::new();
    for range in bank.ranges(ROWS) {
        for step in bank.updated_steps(range)?.into_iter().flatten() {
            *rows_of_age.entry(meta.step.saturating_sub(step + 1)).or_default() += 1;
        }
    }
    let Some((&oldest, _)) = rows_of_age.last_key_value() else { return Ok(None) };
    let written: u64 = rows_of_age.values().sum();
    let never = bank.rows() as u64 - written;
    let mut younger = 0;
    let middle = rows_of_age.iter().find(|(_, rows)| {
        younger += **rows;
        younger > written / 2
    });
    let middle = middle.map_or(oldest, |(&age, _)| age);
    let width = (oldest + 1).div_ceil(BARS).max(1);
    let mut counts = vec![0_u64; ((oldest / width) + 1) as usize];
    rows_of_age.iter().for_each(|(age, rows)| counts[(age / width) as usize] += rows);
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    let mean = rows_of_age.iter().map(|(age, rows)| age * rows).sum::<u64>() as f64 / written as f64;
    let mut html = String::new();
    add!(
        html,
        "<p class=\"about\">Steps since a row was written, at step {}: {:.0} in the mean, {} in the middle, {} at most{}</p>\n",
        grouped(meta.step),
        mean,
        grouped(middle),
        grouped(oldest),
        if never > 0 { format!("; {} rows were never written.", grouped(never)) } else { ".".to_owned() }
    );
    add!(
        html,
        "<div class=\"histogram\" role=\"img\" aria-label=\"Histogram of the rows' ages, from 0 to {oldest} steps\">\n"
    );
    for (at, count) in (0..).zip(&counts) {
        let (from, to) = (at * width, ((at + 1) * width - 1).min(oldest));
        let range = if from == to { grouped(from) } else { format!("{} to {}", grouped(from), grouped(to)) };
        add!(
            html,
            "<span style=\"--share:{:.4}\" title=\"{range} steps: {} rows\"></span>",
            *count as f64 / most as f64,
            grouped(*count)
        );
    }
    add!(
        html,
        "\n</div>\n<p class=\"axis\"><span>written just now</span><span>{} steps ago</span></p>\n",
        grouped(oldest)
    );
    Ok(Some(Section { id: "ages", title: "Age of the bank", html }))
}
