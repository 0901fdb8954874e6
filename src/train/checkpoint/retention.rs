//! Which checkpoints of a run stay.

use crate::checkpoint::{list_checkpoints, list_unpublished, remove_checkpoint};
use crate::storage::Location;
use crate::train::TrainError;

/// The rule.
#[derive(Clone, Copy, Debug)]
pub(in crate::train) struct Retention {
    /// So many of the newest stay; 0 for all.
    pub(in crate::train) newest: usize,
    /// One of every so many steps stays for ever; 0 for none.
    pub(in crate::train) every_steps: u64,
}

impl Retention {
    /// The steps, ascending, whose checkpoints go. The initial one always stays.
    fn superfluous(self, steps: &[u64]) -> Vec<u64> {
        let old = if self.newest == 0 { 0 } else { steps.len().saturating_sub(self.newest) };
        let for_ever =
            |step: u64| step == 0 || (self.every_steps > 0 && step.is_multiple_of(self.every_steps));
        steps[..old].iter().copied().filter(|&step| !for_ever(step)).collect()
    }

    /// Removes what need not stay.
    ///
    /// # Errors
    /// If the store fails.
    pub(in crate::train) fn apply(self, run: &Location) -> Result<(), TrainError> {
        let all = list_checkpoints(run)?;
        let steps: Vec<u64> = all.iter().map(|(step, _)| *step).collect();
        let superfluous = self.superfluous(&steps);
        for (_, folder) in all.iter().filter(|(step, _)| superfluous.contains(step)) {
            remove_checkpoint(folder)?;
        }
        Ok(())
    }
}

/// Removes what writers that were killed left behind. Only for who alone writes to the run.
///
/// # Errors
/// If the store fails.
pub(in crate::train) fn remove_unpublished(run: &Location) -> Result<(), TrainError> {
    for folder in list_unpublished(run)? {
        tracing::info!("{folder}: an unfinished checkpoint, removed");
        remove_checkpoint(&folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_and_the_first_stay() {
        let rule = Retention { newest: 2, every_steps: 0 };
        assert_eq!(rule.superfluous(&[0, 10, 20, 30, 40]), [10, 20]);
        assert_eq!(rule.superfluous(&[0, 10]), [0_u64; 0]);
        assert_eq!(Retention { newest: 0, ..rule }.superfluous(&[0, 10, 20]), [0_u64; 0]);
    }

    #[test]
    fn one_of_every_so_many_steps_stays_for_ever() {
        let rule = Retention { newest: 1, every_steps: 20 };
        assert_eq!(rule.superfluous(&[0, 10, 20, 25, 30, 40, 50]), [10, 25, 30]);
    }
}
