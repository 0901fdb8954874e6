//! Weighted vote of neighbours.

use std::collections::BTreeMap;

use crate::ids::ClassId;
use crate::units::Temperature;

/// Ranks the classes of the neighbours by the sums of their weights `exp(s / τ)`, highest first; ties go to
/// the lower class.
///
/// The largest similarity is subtracted first, in f64, which keeps the ranking and avoids overflow.
///
/// # Source
/// Paper, section 3.4; reference `test.py`, `kNN`.
pub fn vote(
    neighbours: impl Iterator<Item = (ClassId, f32)> + Clone,
    temperature: Temperature,
) -> Vec<ClassId> {
    let most = neighbours.clone().map(|(_, similarity)| similarity).fold(f32::NEG_INFINITY, f32::max);
    let mut weights: BTreeMap<ClassId, f64> = BTreeMap::new();
    for (class, similarity) in neighbours {
        *weights.entry(class).or_default() += vote_weight(similarity, most, temperature);
    }
    let mut ranked: Vec<(ClassId, f64)> = weights.into_iter().collect();
    // The sort is stable and the map is sorted by class.
    ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    ranked.into_iter().map(|(class, _)| class).collect()
}

/// Returns the weight of a neighbour's vote, `exp((s - most) / τ)`; `most` is a query's largest similarity.
///
/// Uses the exponential of the crate libm, which gives the same bits on every machine, unlike the system's.
pub fn vote_weight(similarity: f32, most: f32, temperature: Temperature) -> f64 {
    // Equal infinities have no difference.
    let below = if similarity == most { 0.0 } else { f64::from(similarity) - f64::from(most) };
    libm::exp(below / temperature.get())
}

/// Outcome of a vote for the correct class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Class that won.
    pub winner: Option<ClassId>,
    /// Rank of the correct class, from 0; `None` if no neighbour has it.
    pub rank: Option<usize>,
}

/// Ballot box, reused for one query after another.
#[derive(Clone, Debug)]
pub(super) struct Ballot {
    /// Weight of each class; `None` without a vote.
    weights: Vec<Option<f64>>,
    /// Classes with votes.
    voted: Vec<ClassId>,
}

impl Ballot {
    /// Creates a box for classes below `classes`.
    pub(super) fn new(classes: usize) -> Self {
        Self { weights: vec![None; classes], voted: Vec::new() }
    }

    /// Returns the outcomes of votes by the first `k` neighbours, for each `k` of an ascending list. The neighbours are
    /// sorted, the most similar first; one without a class does not vote but counts towards `k`.
    ///
    /// Equals [`vote`] for each `k`, but counts each neighbour once.
    pub(super) fn outcomes(
        &mut self,
        neighbours: impl Iterator<Item = (Option<ClassId>, f32)>,
        right: ClassId,
        ks: &[usize],
        temperature: Temperature,
    ) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(ks.len());
        let mut ks = ks.iter().copied().peekable();
        let mut most = None;
        for (at, (class, similarity)) in neighbours.enumerate() {
            while ks.next_if_eq(&at).is_some() {
                outcomes.push(self.outcome(right));
            }
            let Some(class) = class else { continue };
            let most = *most.get_or_insert(similarity);
            let weight = vote_weight(similarity, most, temperature);
            match &mut self.weights[class.index()] {
                Some(sum) => *sum += weight,
                none => {
                    *none = Some(weight);
                    self.voted.push(class);
                }
            }
        }
        outcomes.extend(ks.map(|_| self.outcome(right)));
        for class in self.voted.drain(..) {
            self.weights[class.index()] = None;
        }
        outcomes
    }

    fn outcome(&self, right: ClassId) -> Outcome {
        let weight = |class: ClassId| self.weights.get(class.index()).copied().flatten();
        let heavier = |a: ClassId, b: ClassId| {
            weight(a).partial_cmp(&weight(b)).is_some_and(|order| order.then(b.cmp(&a)).is_gt())
        };
        let winner = self.voted.iter().copied().reduce(|a, b| if heavier(b, a) { b } else { a });
        let rank = weight(right).map(|_| self.voted.iter().filter(|&&other| heavier(other, right)).count());
        Outcome { winner, rank }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eval::tests::temperature;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]

        /// The ballot counts once for all k; `vote` counts again for each.
        #[test]
        fn a_ballot_gives_the_outcomes_of_separate_votes(
            drawn in prop::collection::vec((prop::option::weighted(0.9, 0_u16..6), -1.0_f32..1.0), 1..60),
            whole: bool,
            right in 0_u16..7,
            sharp: bool,
        ) {
            let mut neighbours: Vec<(Option<ClassId>, f32)> = drawn
                .into_iter()
                .map(|(class, s)| (class.map(ClassId), if whole { (2.0 * s).round() } else { s }))
                .collect();
            neighbours.sort_by(|a, b| b.1.total_cmp(&a.1));
            let temperature = temperature(if sharp { 1e-4 } else { 0.07 });
            let ks: Vec<usize> = [1, 2, 2, neighbours.len() / 2 + 1, neighbours.len()].into();
            let mut ks: Vec<usize> = ks.into_iter().filter(|&k| k <= neighbours.len()).collect();
            ks.sort_unstable();
            let mut ballot = Ballot::new(6);
            // Twice: the ballot box must be empty after each query.
            for _ in 0..2 {
                let outcomes = ballot.outcomes(neighbours.iter().copied(), ClassId(right), &ks, temperature);
                for (k, outcome) in ks.iter().zip(outcomes) {
                    let voters = neighbours.iter().take(*k).filter_map(|&(class, s)| Some((class?, s)));
                    let ranked = vote(voters, temperature);
                    let rank = ranked.iter().position(|&class| class == ClassId(right));
                    prop_assert_eq!(outcome, Outcome { winner: ranked.first().copied(), rank }, "k = {}", k);
                }
            }
        }
    }

    #[test]
    fn sharp_temperature_prefers_nearest_flat_prefers_majority() {
        let (a, b) = (ClassId(1), ClassId(0));
        let neighbours = [(a, 0.9), (b, 0.5), (b, 0.5)];
        assert_eq!(vote(neighbours.into_iter(), temperature(0.07))[0], a);
        assert_eq!(vote(neighbours.into_iter(), temperature(1.0))[0], b);
    }

    #[test]
    fn equal_votes_choose_the_lower_class() {
        let neighbours = [(ClassId(4), 0.5), (ClassId(2), 0.5)];
        assert_eq!(vote(neighbours.into_iter(), temperature(0.07)), [ClassId(2), ClassId(4)]);
    }

    #[test]
    fn a_tiny_temperature_does_not_overflow() {
        let neighbours = [(ClassId(0), 0.2), (ClassId(1), 1.0)];
        assert_eq!(vote(neighbours.into_iter(), temperature(1e-4)), [ClassId(1), ClassId(0)]);
    }

    #[test]
    fn a_constant_added_to_all_similarities_changes_nothing() {
        let neighbours = [(ClassId(0), 0.25), (ClassId(1), 0.5), (ClassId(0), 0.375)];
        let raised = neighbours.map(|(class, similarity)| (class, similarity + 2.0));
        assert_eq!(
            vote(neighbours.into_iter(), temperature(0.1)),
            vote(raised.into_iter(), temperature(0.1))
        );
    }
}
