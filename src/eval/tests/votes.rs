//! How neighbours vote.

use proptest::prelude::*;

use super::super::vote::{Ballot, Outcome};
use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    /// The ballot counts once for all k; `vote` counts anew for each.
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
        // Twice: a ballot box is empty after each query.
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
    assert_eq!(vote(neighbours.into_iter(), temperature(0.1)), vote(raised.into_iter(), temperature(0.1)));
}
