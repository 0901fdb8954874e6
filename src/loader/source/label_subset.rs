//! Few labels: a share of a split's labels, the same number of each class.
//!
//! Which these are is a function of (fraction, seed, ids, labels): the same on every machine and for every order
//! of the rows. With one seed, a smaller subset is part of each larger one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{ClassId, InstanceId};
use crate::rng::{Purpose, Stream};
use crate::storage::Digest;
use crate::units::Fraction;

/// A subset, for reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubsetRecord {
    /// Its rows.
    pub rows: usize,
    /// Rows of a class; a class that has fewer gives all it has.
    pub rows_per_class: usize,
    /// The blake3 digest of the ids, ascending, as little-endian 64-bit numbers.
    pub digest: Digest,
}

impl SubsetRecord {
    /// The record of these rows.
    pub fn new(ids: &[InstanceId], labels: &[Option<ClassId>]) -> Self {
        let mut sorted: Vec<i64> = ids.iter().map(|id| id.to_stored()).collect();
        sorted.sort_unstable();
        let bytes: Vec<u8> = sorted.iter().flat_map(|id| id.to_le_bytes()).collect();
        let mut counts = BTreeMap::<ClassId, usize>::new();
        labels.iter().flatten().for_each(|&class| *counts.entry(class).or_default() += 1);
        let rows_per_class = counts.into_values().max().unwrap_or(0);
        Self { rows: ids.len(), rows_per_class, digest: Digest::of(&bytes) }
    }
}

/// The rows, ascending, of a share of the labels: of each class the same number, at least one, chosen at
/// random. A class that has fewer gives all it has; rows without a label are never chosen.
pub fn balanced_rows(
    ids: &[InstanceId],
    labels: &[Option<ClassId>],
    fraction: Fraction,
    seed: u64,
) -> Vec<usize> {
    let mut classes = BTreeMap::<ClassId, Vec<(u64, InstanceId, usize)>>::new();
    for (row, (&id, label)) in ids.iter().zip(labels).enumerate() {
        if let Some(class) = label {
            let key = Stream::new(seed, Purpose::LabelSubset, u64::from(id.0), 0).bits();
            classes.entry(*class).or_default().push((key, id, row));
        }
    }
    let labelled: usize = classes.values().map(Vec::len).sum();
    let per_class = fraction.get() * labelled as f64 / classes.len().max(1) as f64;
    let per_class = (per_class.round() as usize).max(1);
    // All labels are all labels, however unequal the classes are.
    let per_class = if fraction.get() >= 1.0 { labelled } else { per_class };
    let mut rows = Vec::new();
    for mut members in classes.into_values() {
        members.sort_unstable();
        rows.extend(members.into_iter().take(per_class).map(|(_, _, row)| row));
    }
    rows.sort_unstable();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fraction(value: f64) -> Fraction {
        Fraction::new(value).expect("a share")
    }

    /// 200 rows of class 0, 100 of class 1, 3 of class 2; 7 without a label.
    fn rows() -> (Vec<InstanceId>, Vec<Option<ClassId>>) {
        let labels = [vec![Some(0); 200], vec![Some(1); 100], vec![Some(2); 3], vec![None; 7]].concat();
        let ids = (0..labels.len() as u32).map(|id| InstanceId(1000 - id)).collect();
        (ids, labels.into_iter().map(|label| label.map(ClassId)).collect())
    }

    fn chosen(share: f64, seed: u64) -> Vec<usize> {
        let (ids, labels) = rows();
        balanced_rows(&ids, &labels, fraction(share), seed)
    }

    #[test]
    fn a_subset_has_the_same_number_of_each_class() {
        let (_, labels) = rows();
        let count = |rows: &[usize], class| rows.iter().filter(|&&row| labels[row] == class).count();
        // 303 labels in three classes: a tenth is ten of each, of which class 2 has three.
        let tenth = chosen(0.1, 0);
        let counts = [Some(ClassId(0)), Some(ClassId(1)), Some(ClassId(2)), None];
        assert_eq!(counts.map(|class| count(&tenth, class)), [10, 10, 3, 0]);
        assert_eq!(counts.map(|class| count(&chosen(0.0001, 0), class)), [1, 1, 1, 0]);
        assert_eq!(chosen(1.0, 0).len(), 303);
    }

    #[test]
    fn a_subset_is_fixed_and_lies_within_the_larger_ones() {
        assert_eq!(chosen(0.1, 4), chosen(0.1, 4));
        assert_ne!(chosen(0.1, 4), chosen(0.1, 5));
        let large = chosen(0.3, 4);
        assert!(chosen(0.1, 4).iter().all(|row| large.contains(row)));
    }

    #[test]
    fn the_order_of_the_rows_does_not_change_which_instances_are_chosen() {
        let (ids, labels) = rows();
        let (mut backwards, mut labels_backwards) = (ids.clone(), labels.clone());
        backwards.reverse();
        labels_backwards.reverse();
        let instances = |ids: &[InstanceId], rows: Vec<usize>| {
            let mut chosen: Vec<_> = rows.into_iter().map(|row| ids[row]).collect();
            chosen.sort_unstable();
            chosen
        };
        let forwards = instances(&ids, balanced_rows(&ids, &labels, fraction(0.1), 0));
        let reversed = balanced_rows(&backwards, &labels_backwards, fraction(0.1), 0);
        assert_eq!(forwards, instances(&backwards, reversed));
    }
}
