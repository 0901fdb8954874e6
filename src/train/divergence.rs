//! A run that does not learn says so while it can still be helped.

/// The loss of an epoch may exceed the first's, or that of chance, by this factor.
const MOST_GROWTH: f64 = 1.5;

/// Holds the mean loss of an epoch against that of the first and that of chance.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Divergence {
    first: Option<f64>,
    /// The loss of which a run warned last.
    warned: f64,
}

impl Divergence {
    /// Warns where the loss of an epoch, in nats, is far above where it began; again only where it is far above that.
    pub(super) fn look(&mut self, loss: f64, chance: f64, advice: &str) -> Option<String> {
        let first = *self.first.get_or_insert(loss);
        let most = MOST_GROWTH * first.max(chance).max(self.warned);
        if loss <= most {
            return None;
        }
        self.warned = loss;
        Some(format!(
            "the loss grows: {loss:.2} in this epoch, {first:.2} in the first; features that tell nothing have \
             {chance:.2}. {advice}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_grows_is_warned_of_once_for_each_growth() {
        let mut divergence = Divergence::default();
        let mut warns = |loss| divergence.look(loss, 6.2, "try x").is_some();
        assert!(!warns(10.0) && !warns(14.9), "the first epoch's loss, and little more");
        assert!(warns(15.1) && !warns(20.0) && warns(23.0));
        let mut divergence = Divergence::default();
        assert!(divergence.look(2.0, 6.2, "").is_none() && divergence.look(9.0, 6.2, "").is_none());
        let warning = divergence.look(9.4, 6.2, "try x").expect("above 1.5 times chance");
        assert!(
            warning.contains("9.40") && warning.contains("6.20") && warning.ends_with("try x"),
            "{warning}"
        );
    }
}
