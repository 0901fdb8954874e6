//! Reports of random banks and queries, and of copies of a query.

use super::*;
use crate::checkpoint::{BANK, CheckpointManifest, FileEntry, TrainedOn, bank_part, checkpoint_name};
use crate::dataset::DuplicateRow;
use crate::feature_table::tests::{location, meta};
use crate::feature_table::{ColumnNames, FeatureTable, Kind, StoredTable, Table, TableMeta};
use crate::ids::{ClassId, InstanceId};
use crate::rng::{Purpose, Stream};
use crate::search::{Neighbours, search};
use crate::storage::{Location, PublishMode};
use crate::units::Temperature;

pub(crate) fn temperature(value: f64) -> Temperature {
    Temperature::new(value).expect("a temperature")
}

pub(crate) fn table(seed: u64, rows: usize, dim: usize, classes: usize) -> FeatureTable {
    let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
    let mut features = Vec::new();
    for _ in 0..rows {
        let drawn: Vec<f64> = (0..dim).map(|_| stream.normal()).collect();
        let length = drawn.iter().map(|x| x * x).sum::<f64>().sqrt();
        features.extend(drawn.iter().map(|x| (x / length) as f32));
    }
    FeatureTable {
        meta: TableMeta {
            split: "val".into(),
            classes: (0..classes).map(|class| format!("class {class}")).collect(),
            ..meta(Kind::Embedding, dim)
        },
        ids: (0..rows as u32).map(InstanceId).collect(),
        labels: (0..rows).map(|_| Some(ClassId(stream.below(classes as u64) as u16))).collect(),
        updated_step: vec![None; rows],
        features,
    }
}

pub(crate) fn options(k: usize) -> KnnOptions {
    KnnOptions { k: vec![k], ..KnnOptions::default() }
}

#[test]
fn k_of_one_is_the_nearest_neighbour() {
    let bank = table(4, 300, 8, 3);
    let report = evaluate(&bank, &bank, &options(1)).expect("scored");
    assert_eq!(report.top1, 1.0);
    let left_out = evaluate(&bank, &bank, &KnnOptions { leave_one_out: true, ..options(1) }).expect("scored");
    assert!(left_out.top1 < 0.6);
}

/// Equal ids in two splits are two images.
#[test]
fn only_queries_of_the_banks_split_can_be_left_out() {
    let (mut bank, mut queries) = (table(4, 300, 8, 3), table(5, 20, 8, 3));
    let leave_one_out = KnnOptions { leave_one_out: true, ..options(5) };
    bank.meta.split = "train".into();
    let error = evaluate(&bank, &queries, &leave_one_out).expect_err("another split");
    assert!(matches!(error, EvalError::Options { .. }), "{error}");
    assert!(error.to_string().contains("`val`") && error.to_string().contains("`train`"), "{error}");
    assert!(evaluate(&bank, &queries, &options(5)).is_ok());
    // Equal digests mean the same images, whatever the names.
    bank.meta.split_digest = Some("s".into());
    queries.meta.split_digest = Some("s".into());
    assert!(evaluate(&bank, &queries, &leave_one_out).is_ok());
    queries.meta.split_digest = Some("t".into());
    assert!(evaluate(&bank, &queries, &leave_one_out).is_err());
    // Tables of other programs may lack the split.
    (queries.meta.split, queries.meta.split_digest) = (String::new(), None);
    assert!(evaluate(&bank, &queries, &leave_one_out).is_ok());
}

#[test]
fn a_report_names_the_dataset_of_the_queries() {
    let (mut bank, mut queries) = (table(4, 300, 8, 3), table(5, 20, 8, 3));
    (bank.meta.split, bank.meta.split_digest) = ("train".into(), Some("s".into()));
    (queries.meta.dataset_digest, queries.meta.split_digest) = ("e".into(), Some("t".into()));
    assert_eq!(evaluate(&bank, &queries, &options(5)).expect("scored").dataset_digest, "e");
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
    let report = evaluate(&bank, &queries, &options(5)).expect("neighbours");
    assert!(!report.has_scores() && report.top1.is_nan() && report.top5_interval[0].is_nan());
    let [own, labels] = report.notes.as_slice() else { panic!("{:?}", report.notes) };
    assert!(own.ends_with("in the bank: give --leave-one-out"), "{own}");
    assert!(labels.contains("the queries have no labels"), "{labels}");
    let lopsided = table(8, 3, 8, 1);
    let report = evaluate(&table(7, 20, 8, 4), &lopsided, &options(5)).expect("scored");
    assert_eq!((report.chance, report.most_frequent_class), (0.25, 1.0));
}

#[test]
fn the_headline_is_that_of_the_most_neighbours() {
    let (bank, queries) = (table(13, 100, 8, 4), table(14, 20, 8, 4));
    let ks = KnnOptions { k: vec![1, 50, 7], ..KnnOptions::default() };
    let (several, alone) = (evaluate(&bank, &queries, &ks), evaluate(&bank, &queries, &options(50)));
    let (several, alone) = (several.expect("scored"), alone.expect("scored"));
    assert_eq!((several.k, several.top1), (50, alone.top1));
    assert_eq!((several.per_class, several.confusions), (alone.per_class, alone.confusions));
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
fn rows_that_are_not_of_unit_length_vote_by_their_cosines_from_memory_and_from_a_file() {
    let (_dir, location) = location();
    let (bank, queries) = (table(23, 3000, 8, 4), table(24, 40, 8, 4));
    let stretched = |table: &FeatureTable| {
        let mut longer = table.clone();
        longer.meta.unit_length = false;
        for (row, feature) in longer.features.chunks_exact_mut(8).enumerate() {
            // Scaling by powers of two is exact.
            feature.iter_mut().for_each(|x| *x *= [0.25, 1.0, 8.0][row % 3]);
        }
        longer
    };
    let (long_bank, long_queries) = (stretched(&bank), stretched(&queries));
    long_bank.write(&location).expect("written");
    let stored = StoredTable::open(&location).expect("opened");
    let plain = evaluate(&bank, &queries, &options(15)).expect("scored");
    let [a, b]: [(KnnReport, Neighbours); 2] = [&long_bank as &dyn Table, &stored]
        .map(|bank| evaluate_with_neighbours(bank, &long_queries, &options(15)).expect("scored"));
    assert_eq!((a.0.top1, a.0.top5), (plain.top1, plain.top5));
    assert_eq!(a.1, b.1);
    assert_eq!((a.0.grid, a.0.per_class), (b.0.grid, b.0.per_class));
}

/// Creates a run and its checkpoint's folder with these tables.
fn checkpoint_with(tables: Vec<(String, FeatureTable)>) -> (tempfile::TempDir, [Location; 2]) {
    let dir = tempfile::tempdir().expect("a folder");
    let run = Location::from_path(dir.path()).expect("a location");
    let folder = run.join("checkpoints").join(&checkpoint_name(3));
    let entry = |(name, table): (String, FeatureTable)| {
        let written = table.write(&folder.join(&name)).expect("written");
        FileEntry { name, bytes: written.bytes, digest: written.digest }
    };
    let trained_on =
        TrainedOn { dataset_digest: "d".into(), split: "train".into(), split_digest: "s".into() };
    let files = tables.into_iter().map(entry).collect();
    CheckpointManifest::new(3, 0, trained_on, files).publish(&folder).expect("published");
    (dir, [run, folder])
}

#[test]
fn a_bank_that_is_not_the_one_its_checkpoint_names_is_refused() {
    let mut bank = table(25, 60, 8, 3);
    bank.meta.split = "train".into();
    let (_dir, [run, folder]) = checkpoint_with(vec![(BANK.into(), bank.clone())]);

    let queries = table(26, 10, 8, 3);
    let names = ColumnNames::default();
    for place in [&run, &folder, &folder.join(BANK)] {
        let (opened, _) = open_bank(place, &names).expect("opened");
        assert_eq!(opened.meta().split_digest.as_deref(), Some("s"), "the checkpoint knows it");
        evaluate(&*opened, &queries, &options(5)).expect("scored");
        opened.verify().expect("the bank of the checkpoint");
    }
    bank.labels.rotate_left(1);
    bank.write(&folder.join(BANK)).expect("written");
    for place in [&run, &folder, &folder.join(BANK)] {
        let (opened, _) = open_bank(place, &names).expect("of the same size");
        evaluate(&*opened, &queries, &options(5)).expect("scored");
        assert!(matches!(opened.verify(), Err(TableError::Damaged { .. })));
    }
}

#[test]
fn one_part_of_a_bank_is_not_taken_for_the_whole() {
    let part = |rank: usize| {
        let mut part = table(25, 30, 8, 3);
        part.meta.kind = Kind::Bank;
        part.ids.iter_mut().for_each(|id| id.0 += 30 * rank as u32);
        (bank_part(rank, 2), part)
    };
    let (_dir, [run, folder]) = checkpoint_with(vec![part(0), part(1)]);
    let names = ColumnNames::default();
    assert_eq!(open_bank(&folder, &names).expect("the whole").0.rows(), 60);
    let copied = run.join(&bank_part(1, 2));
    copied
        .publish(folder.join(&bank_part(1, 2)).read().expect("bytes"), PublishMode::Overwrite)
        .expect("copied");
    for (part, whole) in [(folder.join(&bank_part(1, 2)), folder.to_string()), (copied, "the folder".into())]
    {
        let error = open_bank(&part, &names).expect_err("refused");
        assert_eq!(error.failure(), crate::failure::Failure::Data);
        let error = error.to_string();
        assert!(error.starts_with(&format!("{part}: part 2 of 2 of a bank")), "{error}");
        assert!(error.contains(&format!("give {whole}, the checkpoint")), "{error}");
    }
    // In another kind of table the name means nothing.
    let embedding = run.join(&bank_part(0, 2));
    table(25, 30, 8, 3).write(&embedding).expect("written");
    open_bank(&embedding, &names).expect("a table as any other");
}

pub(crate) fn duplicate(group: u64, split: &str, id: u32) -> DuplicateRow {
    let path = format!("{split}/{id}");
    DuplicateRow { group, split: split.into(), id: InstanceId(id), path, identical: true, distance: None }
}

/// Excluding duplicates equals a bank without them, for each query.
#[test]
fn a_duplicate_does_not_vote_and_the_rest_is_as_if_it_were_not_there() {
    let (mut bank, queries) = (table(21, 300, 8, 4), table(22, 12, 8, 4));
    bank.meta.split = "train".into();
    // Query 3 occurs twice, query 5 once.
    for (row, query) in [(10, 3), (200, 3), (77, 5)] {
        bank.features[row * 8..][..8].copy_from_slice(queries.feature(query));
    }
    let twice = [(0, "val", 3), (0, "train", 200), (1, "val", 3), (1, "train", 10)];
    let twice = twice.map(|(group, split, id)| duplicate(group, split, id));
    let both = Duplicates::between(&twice, "val", "train");
    assert_eq!(both.of(InstanceId(3)), [InstanceId(10), InstanceId(200)], "of two groups");
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

#[test]
fn pairs_of_one_feature_are_told_apart_by_split_and_dataset_or_by_their_number() {
    let report = |split: &str, digest: &str| {
        let (bank, mut queries) = (table(1, 30, 4, 3), table(2, 9, 4, 3));
        (queries.meta.split, queries.meta.dataset_digest) = (split.into(), bank.meta.dataset_digest.clone());
        let report = evaluate(&bank, &queries, &options(3)).expect("scored");
        KnnReport { dataset_digest: digest.into(), ..report }
    };
    let names = |reports: Vec<KnnReport>| {
        let mut reports = reports.into_iter();
        let first = reports.next().expect("one");
        KnnReports { first, other_features: reports.collect() }.names()
    };
    let feature = report("val", "a").feature;
    assert_eq!(names(vec![report("val", "a")]), std::slice::from_ref(&feature));
    let found = names(vec![report("val", "0123456789abcdef"), report("test", "b"), report("test", "c")]);
    let expected =
        [", split val, dataset 0123456789ab", ", split test, dataset b", ", split test, dataset c"];
    assert_eq!(found, expected.map(|more| format!("{feature}{more}")));
    let found = names(vec![report("", ""), report("", "")]);
    assert_eq!(found, [", pair 1", ", pair 2"].map(|more| format!("{feature}{more}")));
}

/// Rows are sorted by class, so neighbouring rows are more alike than all rows.
#[test]
fn a_bank_is_collapsed_where_all_of_it_is_alike() {
    let mut bank = table(31, 5000, 8, 4);
    bank.meta.step = 10;
    assert!(bank.meta.unit_length, "a cosine is compared");
    let first = bank.features[..8].to_vec();
    let alike = |bank: &mut FeatureTable, rows: usize| {
        bank.features.chunks_exact_mut(8).take(rows).for_each(|row| row.copy_from_slice(&first));
    };
    alike(&mut bank, 2048);
    assert_eq!(collapsed_rows(&bank).expect("read"), None);
    alike(&mut bank, 5000);
    let note = collapsed_rows(&bank).expect("read").expect("a note");
    assert!(note.contains("two rows of the bank have a mean cosine of 1.000"), "{note}");
    bank.meta.step = 0;
    assert_eq!(collapsed_rows(&bank).expect("read"), None, "an untrained encoder's are");
}
