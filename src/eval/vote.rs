//! The weighted vote of neighbours.

use std::collections::BTreeMap;

use crate::ids::ClassId;
use crate::units::Temperature;

/// Ranks the classes among the neighbours by the sums of their weights `exp(s / τ)`, heaviest first; of
/// equal sums the lower class comes first.
///
/// The largest similarity is subtracted first, in f64: the ranking is the same and nothing overflows.
///
/// # Source
/// Paper, section 3.4; reference `test.py`, `kNN`.
pub fn vote(
    neighbours: impl Iterator<Item = (ClassId, f32)> + Clone,
    temperature: Temperature,
) -> Vec<ClassId> {
    let most =
        neighbours.clone().map(|(_, similarity)| f64::from(similarity)).fold(f64::NEG_INFINITY, f64::max);
    let mut weights: BTreeMap<ClassId, f64> = BTreeMap::new();
    for (class, similarity) in neighbours {
        *weights.entry(class).or_default() += ((f64::from(similarity) - most) / temperature.get()).exp();
    }
    let mut ranked: Vec<(ClassId, f64)> = weights.into_iter().collect();
    // The sort is stable and the map is sorted by class.
    ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    ranked.into_iter().map(|(class, _)| class).collect()
}
