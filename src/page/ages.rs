//! How long ago the rows of a bank were written.

use super::Section;
use super::text::{add, grouped};
use crate::feature_table::{Kind, Table};

/// Bars of the histogram.
const BARS: u64 = 24;

pub(super) fn section(bank: &dyn Table) -> Option<Section> {
    let (meta, steps) = (bank.meta(), bank.updated_steps());
    let mut ages: Vec<u64> = steps.iter().flatten().map(|step| meta.step.saturating_sub(step + 1)).collect();
    if meta.kind != Kind::Bank || ages.is_empty() {
        return None;
    }
    ages.sort_unstable();
    let never = steps.len() - ages.len();
    let oldest = ages.last().copied().unwrap_or(0);
    let width = (oldest + 1).div_ceil(BARS).max(1);
    let mut counts = vec![0_u64; ((oldest / width) + 1) as usize];
    ages.iter().for_each(|age| counts[(age / width) as usize] += 1);
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    let mean = ages.iter().sum::<u64>() as f64 / ages.len() as f64;
    let mut html = String::new();
    add!(
        html,
        "<p class=\"about\">Steps since a row was written, at step {}: {:.0} in the mean, {} in the middle, {} at most{}</p>\n",
        grouped(meta.step),
        mean,
        grouped(ages[ages.len() / 2]),
        grouped(oldest),
        if never > 0 {
            format!("; {} rows were never written.", grouped(never as u64))
        } else {
            ".".to_owned()
        }
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
    Some(Section { id: "ages", title: "Age of the bank", html })
}
