//! How sure a share is.

/// The quantile of the normal distribution that leaves 2.5 % above it.
const QUANTILE: f64 = 1.959_963_984_540_054;

/// The 95 % interval of a share, `hits` of `trials`, after Wilson; also where all or none are hits. Not a number where
/// there are no trials.
///
/// # Source
/// Wilson 1927; Brown, Cai and DasGupta, Interval Estimation for a Binomial Proportion (2001), equation 4.
pub(in crate::eval) fn score_interval(hits: usize, trials: usize) -> [f64; 2] {
    if trials == 0 {
        return [f64::NAN; 2];
    }
    let (n, share) = (trials as f64, hits as f64 / trials as f64);
    let square = QUANTILE * QUANTILE;
    let middle = (share + square / (2.0 * n)) / (1.0 + square / n);
    let half = QUANTILE / (1.0 + square / n) * (share * (1.0 - share) / n + square / (4.0 * n * n)).sqrt();
    // Rounding must not put an end beside the share itself.
    [(middle - half).clamp(0.0, share), (middle + half).clamp(share, 1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From SciPy: `binomtest(hits, trials).proportion_ci(method="wilson")`.
    #[test]
    fn the_interval_is_that_of_other_libraries() {
        for (hits, trials, [low, high]) in [
            (3, 10, [0.107_791_267_4, 0.603_221_852_5]),
            (50, 200, [0.195_081_680_1, 0.314_340_983_1]),
            (0, 1, [0.0, 0.793_450_685_6]),
            (7, 7, [0.645_669_564_9, 1.0]),
        ] {
            let [found_low, found_high] = score_interval(hits, trials);
            assert!(
                (found_low - low).abs() < 1e-8 && (found_high - high).abs() < 1e-8,
                "{hits} of {trials}: {found_low} {found_high}"
            );
        }
    }

    #[test]
    fn nothing_is_known_of_no_trials() {
        assert!(score_interval(0, 0).iter().all(|end| end.is_nan()));
    }
}
