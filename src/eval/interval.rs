//! How sure a share is.

/// The share of replicates that lie below an interval, and above it.
const TAIL: f64 = 0.025;
/// Counts this much less likely than the likeliest one are left out.
const NEGLIGIBLE: f64 = 1e-20;

/// The 95 % percentile bootstrap interval of a share: `hits` of `trials`.
///
/// A replicate draws `trials` outcomes with replacement, so that its number of hits is binomial. The
/// quantiles are therefore computed, not drawn: this is the interval of infinitely many replicates, and
/// needs no seed.
///
/// # Source
/// Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
pub(super) fn bootstrap_interval(hits: usize, trials: usize) -> [f64; 2] {
    let (n, share) = (trials as f64, hits as f64 / trials.max(1) as f64);
    if hits == 0 || hits >= trials {
        return [share, share];
    }
    let odds = share / (1.0 - share);
    // Probabilities relative to that of `hits`, the mode.
    let up = std::iter::successors(Some((hits, 1.0)), |&(count, p)| {
        let p = p * (n - count as f64) / (count as f64 + 1.0) * odds;
        (count < trials && p > NEGLIGIBLE).then_some((count + 1, p))
    });
    let down = std::iter::successors(Some((hits, 1.0)), |&(count, p)| {
        let p = p * count as f64 / (n - count as f64 + 1.0) / odds;
        (count > 0 && p > NEGLIGIBLE).then(|| (count - 1, p))
    });
    let mut counts: Vec<(usize, f64)> = down.skip(1).collect();
    counts.reverse();
    counts.extend(up);
    let total: f64 = counts.iter().map(|(_, p)| p).sum();
    let quantile = |least: f64| {
        let mut below = 0.0;
        let reaches = |&&(_, p): &&(usize, f64)| {
            below += p;
            below >= least * total
        };
        counts.iter().find(reaches).map_or(share, |(count, _)| *count as f64 / n)
    };
    [quantile(TAIL), quantile(1.0 - TAIL)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    #[test]
    fn the_interval_is_that_of_many_drawn_replicates() {
        let mut stream = Stream::new(1, Purpose::Report, 0, 0);
        for (hits, trials) in [(3, 10), (50, 200), (199, 200), (640, 1000)] {
            let mut drawn: Vec<usize> = (0..4000)
                .map(|_| (0..trials).filter(|_| stream.below(trials as u64) < hits as u64).count())
                .collect();
            drawn.sort_unstable();
            let [low, high] = bootstrap_interval(hits, trials);
            let spread = 0.15 * (high - low) + 1.0 / trials as f64;
            assert!((low - drawn[100] as f64 / trials as f64).abs() <= spread, "{hits} of {trials}");
            assert!((high - drawn[3900] as f64 / trials as f64).abs() <= spread, "{hits} of {trials}");
        }
    }

    /// By hand: of Binomial(4, 1/2) the cumulated chances are 1/16, 5/16, 11/16, 15/16, 1.
    #[test]
    fn a_small_interval_is_that_of_the_table() {
        assert_eq!(bootstrap_interval(2, 4), [0.0, 1.0]);
        // Binomial(10, 1/2): P(X ≤ 1) = 0.0107, P(X ≤ 2) = 0.0547, P(X ≤ 7) = 0.9453, P(X ≤ 8) = 0.9893.
        assert_eq!(bootstrap_interval(5, 10), [0.2, 0.8]);
    }

    #[test]
    fn a_share_of_nothing_or_all_has_no_width() {
        assert_eq!(bootstrap_interval(0, 7), [0.0, 0.0]);
        assert_eq!(bootstrap_interval(7, 7), [1.0, 1.0]);
    }
}
