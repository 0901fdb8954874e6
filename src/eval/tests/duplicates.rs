//! What copies of a query do not do.

use super::*;

fn duplicate(group: u64, split: &str, id: u32) -> crate::dataset::DuplicateRow {
    let path = format!("{split}/{id}");
    crate::dataset::DuplicateRow {
        group,
        split: split.into(),
        id: InstanceId(id),
        path,
        identical: true,
        distance: None,
    }
}

/// Leaving duplicates out is the same as a bank without them, query by query.
#[test]
fn a_duplicate_does_not_vote_and_the_rest_is_as_if_it_were_not_there() {
    let (mut bank, queries) = (table(21, 300, 8, 4), table(22, 12, 8, 4));
    bank.meta.split = "train".into();
    // Query 3 is there twice, query 5 once.
    for (row, query) in [(10, 3), (200, 3), (77, 5)] {
        bank.features[row * 8..][..8].copy_from_slice(queries.feature(query));
    }
    let rows = [
        duplicate(0, "train", 10),
        duplicate(0, "train", 200),
        duplicate(0, "val", 3),
        duplicate(1, "train", 77),
        duplicate(1, "val", 5),
        duplicate(2, "val", 0),
        duplicate(2, "val", 1),
    ];
    let duplicates = Duplicates::between(&rows, "val", "train");
    assert_eq!((duplicates.most(), duplicates.pairs(&queries.ids)), (2, 3));
    let excluding = KnnOptions { exclude: Some(duplicates), ..options(20) };
    let (report, found) = evaluate_with_neighbours(&bank, &queries, &excluding).expect("scored");
    assert_eq!(report.excluded_duplicates, Some(3));
    for query in 0..queries.len() {
        let gone: &[usize] = match query {
            3 => &[10, 200],
            5 => &[77],
            _ => &[],
        };
        let kept: Vec<usize> = (0..bank.len()).filter(|row| !gone.contains(row)).collect();
        let rest = FeatureTable {
            ids: kept.iter().map(|&row| bank.ids[row]).collect(),
            labels: kept.iter().map(|&row| bank.labels[row]).collect(),
            updated_step: vec![None; kept.len()],
            features: kept.iter().flat_map(|&row| bank.feature(row)).copied().collect(),
            meta: bank.meta.clone(),
        };
        let expected = search(&rest, &queries, 20, false).expect("found");
        let expected: Vec<_> = expected.of(query).map(|(row, s)| (rest.ids[row], s)).collect();
        let own: Vec<_> = found.of(query).map(|(row, s)| (bank.ids[row], s)).collect();
        assert_eq!(own, expected, "query {query}");
    }
    let all = evaluate_with_neighbours(&bank, &queries, &options(20)).expect("scored");
    assert_eq!(all.1.of(3).next().map(|(row, _)| row), Some(10));
    assert_eq!(all.0.excluded_duplicates, None);
}

#[test]
fn within_one_split_a_query_is_no_duplicate_of_itself() {
    let rows = [duplicate(0, "train", 4), duplicate(0, "train", 9)];
    let duplicates = Duplicates::between(&rows, "train", "train");
    assert_eq!((duplicates.most(), duplicates.pairs(&[InstanceId(4), InstanceId(9)])), (1, 2));
}
