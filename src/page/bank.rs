//! Sections about a run's bank: spread of its rows after each epoch, and age of the rows.

use std::collections::BTreeMap;

use serde_json::Value;

use super::text::{SmallChart, add, grouped};
use super::{PageInput, Section};
use crate::feature_table::{Kind, Table, TableError};

/// Bars of the age histogram.
const BARS: u64 = 24;
/// Rows whose steps are read together.
const ROWS: usize = 1 << 16;
/// The effective rank's scale ends at a multiple of this.
const RANK_SCALE: f64 = 5.0;

/// Spread of a bank's rows after an epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BankSpread {
    /// Steps done.
    pub step: u64,
    /// Number of directions that the rows use, from 1 to their length.
    pub effective_rank: f64,
    /// `ln mean exp(-2 ‖x - y‖²)` over pairs of rows: 0 if all are one point.
    pub uniformity: f64,
}

impl BankSpread {
    /// Parses the spread after each epoch from the lines of `metrics.jsonl`, ordered by step.
    pub(super) fn of_metrics(text: &str) -> Vec<Self> {
        let of_line = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            let (step, bank) = (line["step"].as_u64()?, &line["bank"]);
            let (rank, uniformity) = (bank["effective_rank"].as_f64()?, bank["uniformity"].as_f64()?);
            Some((step, Self { step, effective_rank: rank, uniformity }))
        };
        text.lines().filter_map(of_line).collect::<BTreeMap<_, _>>().into_values().collect()
    }
}

/// Renders the spread of the rows over training; `None` without metrics of it.
pub(super) fn spread(input: &PageInput<'_>) -> Option<Section> {
    let spreads = &input.history.spread;
    let steps = (spreads.first()?.step, spreads.last()?.step);
    let dim = input.history.dim;
    let whole =
        dim.map_or_else(|| "the length of the embedding".to_owned(), |dim| format!("{dim}, all of them"));
    let mut html = format!(
        "<p class=\"about\">How the rows of the run's bank are spread after each epoch. The effective rank \
         counts the directions that they use, from 1 to {whole}. It may fall for some epochs and should then \
         grow; a run that stays near 1 has collapsed. Uniformity is 0 where all rows are one point, and \
         falls as they spread{}.</p>\n<div class=\"multiples\">\n",
        if dim.is_some() { "; the broken line is that of random rows" } else { "" }
    );
    let points = |of: fn(&BankSpread) -> f64| -> Vec<(u64, f64)> {
        spreads.iter().map(|spread| (spread.step, of(spread))).collect()
    };
    let ranks = points(|spread| spread.effective_rank);
    let most = ranks.iter().map(|(_, rank)| *rank).fold(RANK_SCALE, f64::max);
    SmallChart {
        name: "Effective rank",
        about: "higher is better",
        note: dim.map_or_else(String::new, |dim| format!("of {dim}")),
        points: &ranks,
        steps,
        scale: (0.0, (most / RANK_SCALE).ceil() * RANK_SCALE),
        broken: None,
        text: |rank| format!("{rank:.1}"),
        tick: |rank| format!("{rank:.0}"),
    }
    .write(&mut html);
    // For two random directions, ‖x - y‖² = 2 - 2 x·y, and x·y has mean 0 and variance 1/dim.
    let random = dim.map(|dim| -4.0 + 8.0 / dim as f64);
    let uniformities = points(|spread| spread.uniformity);
    let least = uniformities.iter().map(|(_, value)| *value).fold(random.unwrap_or(0.0), f64::min);
    SmallChart {
        name: "Uniformity",
        about: "lower is better",
        note: random.map_or_else(String::new, |random| format!("random rows {random:.2}")),
        points: &uniformities,
        steps,
        scale: (least.floor().min(-1.0), 0.0),
        broken: random,
        // Numbers that round to 0 get no sign.
        text: |value| format!("{:.2}", (100.0 * value).round() / 100.0 + 0.0),
        tick: |value| format!("{value:.0}"),
    }
    .write(&mut html);
    html.push_str("</div>\n");
    Some(Section { id: "spread", title: "Spread of the bank", html })
}

/// Renders the ages of the rows; `None` for a table that is not a bank.
///
/// # Errors
/// If the steps of the rows cannot be read.
pub(super) fn ages(bank: &dyn Table) -> Result<Option<Section>, TableError> {
    let meta = bank.meta();
    if meta.kind != Kind::Bank {
        return Ok(None);
    }
    // Rows of one batch have the same age, so there are few ages.
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
        "<p class=\"about\">Steps since a row was written, at step {}: {:.0} in the mean, {} in the middle, \
         {} at most{}</p>\n",
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
