//! Example queries: the surest right votes, the surest wrong ones, and some at random.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::eval::{vote, vote_weight};
use crate::feature_table::{FeatureTable, Table};
use crate::ids::ClassId;
use crate::rng::{Purpose, Stream};
use crate::search::Neighbours;
use crate::units::Temperature;

/// Queries of each kind in the gallery.
const OF_EACH_KIND: usize = 20;

/// Why a query is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExampleKind {
    /// The right class won by the widest margin.
    Best,
    /// A wrong class won by the widest margin.
    Worst,
    /// Chosen at random.
    Typical,
}

impl ExampleKind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Best => "best",
            Self::Worst => "worst",
            Self::Typical => "typical",
        }
    }
}

/// A query of the gallery.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Example {
    /// Its row in the queries' table.
    pub query: usize,
    /// Why it is shown.
    pub kind: ExampleKind,
    /// The class that won; none where nothing could vote or the query has no class.
    pub winner: Option<ClassId>,
    /// The share of the votes' weight that its own class has.
    pub own_share: f64,
    /// The share of the votes' weight that the winner has.
    pub winner_share: f64,
}

/// Chooses queries by the votes of their first `k` neighbours. The classes take turns, so that each is shown
/// before any is shown twice.
pub fn examples(
    bank: &dyn Table,
    queries: &FeatureTable,
    neighbours: &Neighbours,
    k: usize,
    temperature: Temperature,
) -> Vec<Example> {
    let labels = bank.labels();
    let voted = |query: usize| {
        let class = queries.labels[query]?;
        let voters = neighbours.of(query).take(k).filter_map(|(row, s)| Some((labels[row]?, s)));
        let winner = *vote(voters.clone(), temperature).first()?;
        let most = voters.clone().next()?.1;
        let weight = |s: f32| vote_weight(s, most, temperature);
        let sum = |of: Option<ClassId>| -> f64 {
            voters.clone().filter(|(class, _)| of.is_none_or(|of| of == *class)).map(|(_, s)| weight(s)).sum()
        };
        let total = sum(None).max(f64::MIN_POSITIVE);
        let (own_share, winner_share) = (sum(Some(class)) / total, sum(Some(winner)) / total);
        let kind = if winner == class { ExampleKind::Best } else { ExampleKind::Worst };
        Some((class, Example { query, kind, winner: Some(winner), own_share, winner_share }))
    };
    let mut all: Vec<(ClassId, Example)> = (0..queries.len()).filter_map(voted).collect();
    let key = |example: &Example| Stream::new(0, Purpose::Examples, example.query as u64, 0).bits();
    if all.is_empty() {
        let unvoted = |query| Example {
            query,
            kind: ExampleKind::Typical,
            winner: None,
            own_share: 0.0,
            winner_share: 0.0,
        };
        all.extend((0..queries.len()).map(|query| (ClassId(0), unvoted(query))));
        return in_turns(all.into_iter(), |a, b| key(a).cmp(&key(b)));
    }
    let nearest = |example: &Example| neighbours.of(example.query).next().map_or(0.0, |(_, s)| f64::from(s));
    // Of equal margins, the query whose neighbours are nearer is the surer one.
    let sureness = |example: &Example| {
        (example.winner_share - example.own_share.min(1.0 - example.winner_share), nearest(example))
    };
    let surest = |kind: ExampleKind| {
        let of_kind = all.iter().filter(|(_, example)| example.kind == kind).copied();
        in_turns(of_kind, |a, b| {
            let ((a, a_nearest), (b, b_nearest)) = (sureness(a), sureness(b));
            b.total_cmp(&a).then(b_nearest.total_cmp(&a_nearest))
        })
    };
    let mut chosen = surest(ExampleKind::Best);
    chosen.extend(surest(ExampleKind::Worst));
    let rest = all.iter().filter(|(_, example)| !chosen.iter().any(|other| other.query == example.query));
    let typical = rest.map(|&(class, example)| (class, Example { kind: ExampleKind::Typical, ..example }));
    let typical = in_turns(typical, |a, b| key(a).cmp(&key(b)));
    chosen.extend(typical);
    chosen
}

/// The first [`OF_EACH_KIND`]: the first of each class, then the second of each, and so on.
fn in_turns(
    examples: impl Iterator<Item = (ClassId, Example)>,
    order: impl Fn(&Example, &Example) -> std::cmp::Ordering,
) -> Vec<Example> {
    let mut classes = BTreeMap::<ClassId, Vec<Example>>::new();
    examples.for_each(|(class, example)| classes.entry(class).or_default().push(example));
    let mut turns = Vec::new();
    for examples in classes.values_mut() {
        examples.sort_by(|a, b| order(a, b).then(a.query.cmp(&b.query)));
        turns.extend(examples.iter().copied().enumerate());
    }
    turns.sort_by(|(turn, a), (other_turn, b)| {
        turn.cmp(other_turn).then_with(|| order(a, b)).then(a.query.cmp(&b.query))
    });
    turns.into_iter().map(|(_, example)| example).take(OF_EACH_KIND).collect()
}
