use proptest::prelude::*;

use super::vote::{Ballot, Outcome};
use super::*;
use crate::feature_table::{FeatureTable, Kind, StoredTable, Table, TableMeta};
use crate::ids::{ClassId, InstanceId};
use crate::rng::{Purpose, Stream};
use crate::storage::Location;
use crate::units::Temperature;

fn temperature(value: f64) -> Temperature {
    Temperature::new(value).expect("a temperature")
}

fn table(seed: u64, rows: usize, dim: usize, classes: usize) -> FeatureTable {
    let mut stream = Stream::new(seed, Purpose::Report, 0, 0);
    let mut features = Vec::new();
    for _ in 0..rows {
        let drawn: Vec<f64> = (0..dim).map(|_| stream.normal()).collect();
        let length = drawn.iter().map(|x| x * x).sum::<f64>().sqrt();
        features.extend(drawn.iter().map(|x| (x / length) as f32));
    }
    FeatureTable {
        meta: TableMeta {
            kind: Kind::Embedding,
            layer: "projection".into(),
            dim,
            dataset_digest: "d".into(),
            split: "val".into(),
            step: 1,
            unit_length: true,
            classes: (0..classes).map(|class| format!("class {class}")).collect(),
        },
        ids: (0..rows as u32).map(InstanceId).collect(),
        labels: (0..rows).map(|_| Some(ClassId(stream.below(classes as u64) as u16))).collect(),
        updated_step: vec![None; rows],
        features,
    }
}

fn options(k: usize) -> KnnOptions {
    KnnOptions { k: vec![k], ..KnnOptions::default() }
}

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
fn permuting_the_bank_does_not_change_the_report() {
    let (bank, queries) = (table(1, 700, 16, 5), table(2, 60, 16, 5));
    let mut order: Vec<usize> = (0..bank.len()).collect();
    Stream::new(3, Purpose::Report, 0, 0).shuffle(&mut order);
    let permuted = FeatureTable {
        ids: order.iter().map(|&row| bank.ids[row]).collect(),
        labels: order.iter().map(|&row| bank.labels[row]).collect(),
        features: order.iter().flat_map(|&row| bank.feature(row).to_vec()).collect(),
        ..bank.clone()
    };
    let [a, b] = [&bank, &permuted]
        .map(|bank| evaluate_with_neighbours(bank, &queries, &options(50)).expect("scored"));
    assert_eq!((a.0.top1, a.0.top5), (b.0.top1, b.0.top5));
    let ids = |bank: &FeatureTable, found: &Neighbours| {
        found.rows.iter().map(|&row| bank.ids[row as usize]).collect::<Vec<_>>()
    };
    assert_eq!(ids(&bank, &a.1), ids(&permuted, &b.1));
    assert_eq!(a.1.similarities, b.1.similarities);
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

#[test]
fn k_of_one_is_the_nearest_neighbour() {
    let bank = table(4, 300, 8, 3);
    let report = evaluate(&bank, &bank, &options(1)).expect("scored");
    assert_eq!(report.top1, 1.0);
    let left_out = evaluate(&bank, &bank, &KnnOptions { leave_one_out: true, ..options(1) }).expect("scored");
    assert!(left_out.top1 < 0.6);
}

#[test]
fn k_may_be_the_whole_bank_and_not_more() {
    let (bank, queries) = (table(5, 30, 8, 3), table(6, 1, 8, 3));
    assert!(evaluate(&bank, &queries, &options(30)).is_ok());
    let error = evaluate(&bank, &queries, &options(31)).expect_err("too many");
    assert_eq!(
        error.to_string(),
        "k = 31 is larger than the bank, which has 30 rows to vote; give --k 30 or less"
    );
    let all = KnnOptions { leave_one_out: true, ..options(30) };
    assert!(matches!(evaluate(&bank, &queries, &all), Err(EvalError::KTooLarge { rows: 29, .. })));
}

#[test]
fn one_class_and_few_classes_are_scored() {
    let (bank, queries) = (table(7, 20, 8, 1), table(8, 3, 8, 1));
    let report = evaluate(&bank, &queries, &options(5)).expect("scored");
    assert_eq!((report.top1, report.top5, report.chance), (1.0, 1.0, 1.0));
}

#[test]
fn unlabelled_rows_do_not_vote_and_unlabelled_queries_are_not_scored() {
    let (mut bank, mut queries) = (table(9, 50, 8, 2), table(10, 10, 8, 2));
    bank.labels[..40].fill(None);
    queries.labels[..4].fill(None);
    let report = evaluate(&bank, &queries, &options(50)).expect("scored");
    assert_eq!((report.queries, report.unlabelled_queries, report.bank_rows), (6, 4, 10));
    queries.labels.fill(None);
    assert!(matches!(evaluate(&bank, &queries, &options(5)), Err(EvalError::Mismatch { .. })));
}

#[test]
fn tables_of_other_datasets_or_lengths_are_refused() {
    let bank = table(11, 50, 8, 2);
    let mut other = table(12, 5, 8, 2);
    other.meta.dataset_digest = "e".into();
    assert!(matches!(evaluate(&bank, &other, &options(5)), Err(EvalError::Mismatch { .. })));
    assert!(matches!(evaluate(&bank, &table(12, 5, 9, 2), &options(5)), Err(EvalError::Mismatch { .. })));
}

#[test]
fn the_grid_has_every_k_with_every_temperature() {
    let (bank, queries) = (table(13, 100, 8, 4), table(14, 20, 8, 4));
    let both = KnnOptions {
        k: vec![10, 1],
        temperature: vec![temperature(0.07), temperature(1.0)],
        ..KnnOptions::default()
    };
    let report = evaluate(&bank, &queries, &both).expect("scored");
    let cells: Vec<_> = report.grid.iter().map(|cell| (cell.k, cell.temperature)).collect();
    assert_eq!(cells, [(10, 0.07), (10, 1.0), (1, 0.07), (1, 1.0)]);
    assert_eq!(
        report.grid[2],
        GridCell {
            k: 1,
            temperature: 0.07,
            ..evaluate(&bank, &queries, &options(1)).expect("scored").grid[0].clone()
        }
    );
}

#[test]
fn confusions_name_the_worst_pairs_and_add_up_with_the_scores() {
    let (bank, queries) = (table(17, 400, 8, 4), table(18, 200, 8, 4));
    let report = evaluate(&bank, &queries, &options(7)).expect("scored");
    let wrong: usize = report.confusions.iter().map(|pair| pair.queries).sum();
    assert_eq!(wrong, 200 - (200.0 * report.top1).round() as usize);
    assert!(report.confusions.windows(2).all(|pair| pair[0].queries >= pair[1].queries));
    assert!(report.confusions.iter().all(|pair| pair.class != pair.voted));
    let by_class: f64 = report.per_class.iter().map(|class| class.top1 * class.queries as f64).sum();
    assert!((by_class - 200.0 * report.top1).abs() < 1e-9);
    let [low, high] = report.top1_interval;
    assert!(low < report.top1 && report.top1 < high);
}

#[test]
fn a_bank_in_a_file_scores_as_one_in_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let location = Location::from_path(&dir.path().join("bank.arrow")).expect("a location");
    let (bank, queries) = (table(19, 3000, 16, 5), table(20, 30, 16, 5));
    bank.write(&location).expect("written");
    let stored = StoredTable::open(&location).expect("opened");
    let [a, b]: [(KnnReport, Neighbours); 2] = [&bank as &dyn Table, &stored]
        .map(|bank| evaluate_with_neighbours(bank, &queries, &options(9)).expect("scored"));
    assert_eq!(a.1, b.1);
    assert_eq!((a.0.grid, a.0.per_class), (b.0.grid, b.0.per_class));
}

#[test]
fn the_page_escapes_names_and_loads_nothing() {
    let (mut bank, queries) = (table(15, 40, 8, 2), table(16, 8, 8, 2));
    bank.meta.classes = vec!["<script>alert(1)</script>".into(), "a & \"b\"".into()];
    let (report, neighbours) = evaluate_with_neighbours(&bank, &queries, &options(5)).expect("scored");
    let cases = cases(&bank, &queries, &neighbours, 5, temperature(0.07));
    let map = map(&queries, 100).expect("mapped");
    let reports = KnnReports { first: report, other_features: Vec::new() };
    let input = PageInput {
        reports: &reports,
        bank: &bank,
        queries: &queries,
        neighbours: &neighbours,
        cases: &cases,
        history: &[],
        map: Some(&map),
    };
    let html = page(&input, &PagePictures::default());
    assert!(!html.contains("<script>alert") && html.contains("&lt;script&gt;alert"));
    assert!(!html.contains("http://") && !html.contains("https://"));
    assert_eq!(html.matches("<article").count(), 8);
}

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
    let twins = [
        duplicate(0, "train", 10),
        duplicate(0, "train", 200),
        duplicate(0, "val", 3),
        duplicate(1, "train", 77),
        duplicate(1, "val", 5),
        duplicate(2, "val", 0),
        duplicate(2, "val", 1),
    ];
    let duplicates = Duplicates::between(&twins, "val", "train");
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
    let twins = [duplicate(0, "train", 4), duplicate(0, "train", 9)];
    let duplicates = Duplicates::between(&twins, "train", "train");
    assert_eq!((duplicates.most(), duplicates.pairs(&[InstanceId(4), InstanceId(9)])), (1, 2));
}

#[test]
fn rows_that_are_not_of_unit_length_vote_by_their_cosines() {
    let dir = tempfile::tempdir().expect("a folder");
    let location = Location::from_path(&dir.path().join("bank.arrow")).expect("a location");
    let (bank, queries) = (table(23, 500, 8, 4), table(24, 40, 8, 4));
    let stretched = |table: &FeatureTable| {
        let mut longer = table.clone();
        longer.meta.unit_length = false;
        for (row, feature) in longer.features.chunks_exact_mut(8).enumerate() {
            // Powers of two: the numbers keep their digits.
            feature.iter_mut().for_each(|x| *x *= [0.25, 1.0, 8.0][row % 3]);
        }
        longer
    };
    let (long_bank, long_queries) = (stretched(&bank), stretched(&queries));
    long_bank.write(&location).expect("written");
    let stored = StoredTable::open(&location).expect("opened");
    let plain = evaluate(&bank, &queries, &options(15)).expect("scored");
    for bank in [&long_bank as &dyn Table, &stored] {
        let report = evaluate(bank, &long_queries, &options(15)).expect("scored");
        assert_eq!((report.top1, report.top5), (plain.top1, plain.top5));
    }
}

#[test]
fn the_gallery_shows_each_class_before_any_twice_and_the_surest_first() {
    let (bank, queries) = (table(25, 900, 8, 6), table(26, 400, 8, 6));
    let (_, found) = evaluate_with_neighbours(&bank, &queries, &options(21)).expect("scored");
    let cases = cases(&bank, &queries, &found, 9, temperature(0.07));
    let of = |kind: CaseKind| cases.iter().filter(|case| case.kind == kind).collect::<Vec<_>>();
    for kind in [CaseKind::Best, CaseKind::Worst, CaseKind::Typical] {
        let shown = of(kind);
        assert_eq!(shown.len(), 20, "{kind:?}");
        let class = |case: &&Case| queries.labels[case.query];
        let mut first: Vec<_> = shown.iter().take(6).map(class).collect();
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 6, "{kind:?}");
    }
    let mut queries_shown: Vec<usize> = cases.iter().map(|case| case.query).collect();
    queries_shown.sort_unstable();
    queries_shown.dedup();
    assert_eq!(queries_shown.len(), 60, "no query is shown twice");
    for case in of(CaseKind::Best) {
        assert_eq!(Some(case.winner), queries.labels[case.query]);
        assert!(case.own_share > 0.0 && case.own_share <= 1.0);
    }
    for case in of(CaseKind::Worst) {
        assert_ne!(Some(case.winner), queries.labels[case.query]);
        assert!(case.winner_share >= case.own_share);
    }
}

#[test]
fn the_history_has_the_reports_that_can_be_compared() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = Location::from_path(dir.path()).expect("a location");
    let (bank, queries) = (table(27, 100, 8, 4), table(28, 20, 8, 4));
    let report = evaluate(&bank, &queries, &options(5)).expect("scored");
    let publish = |step: u64, report: KnnReport| {
        let reports = KnnReports { first: report, other_features: Vec::new() };
        let text = serde_json::to_string(&reports).expect("JSON");
        let mode = crate::storage::PublishMode::Overwrite;
        report_location(&run, step).publish(text, mode).expect("published");
    };
    publish(40, KnnReport { step: 40, ..report.clone() });
    publish(20, KnnReport { step: 20, top1: 0.25, ..report.clone() });
    publish(30, KnnReport { step: 30, k: 7, ..report.clone() });
    publish(10, KnnReport { step: 10, feature: "another".into(), ..report.clone() });
    let newest = KnnReport { step: 60, ..report };
    let points = history(&run, &newest).expect("read");
    assert_eq!(points.iter().map(|point| point.step).collect::<Vec<_>>(), [20, 40, 60]);
    assert_eq!(points[0].top1, 0.25);
}
