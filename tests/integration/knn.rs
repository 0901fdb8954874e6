//! The kNN search and vote against plain NumPy, and the errors of `instdisc knn`.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, FixedSizeListArray, Float16Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};

use instdisc::feature_table::{FeatureTable, Kind, TableMeta};
use instdisc::ids::ClassId;
use instdisc::rng::{Purpose, Stream};

use super::support::{
    self, Call, copy, entries, feature_table, images, ingest, instdisc, python, read_json, read_parquet,
    scratch, write_parquet, write_table,
};
#[cfg(feature = "torch")]
use super::support::{checkpoint, contents, damage, dataset, embed, jpeg, read_table, trained};

struct Case {
    rows: usize,
    queries: usize,
    dim: usize,
    classes: usize,
    k: &'static str,
}

/// A call that compares two tables by five neighbours.
fn knn(bank: &Path, queries: &Path, more: &str) -> Call {
    support::knn(&format!("--k 5 {more}"), bank, queries)
}

/// Vectors of six numbers and two classes.
fn small(seed: u64, kind: Kind, rows: usize) -> FeatureTable {
    table(seed, kind, rows, 6, 2, false)
}

/// Unit vectors; `coarse` makes many of them equal, so that ties decide.
fn table(seed: u64, kind: Kind, rows: usize, dim: usize, classes: usize, coarse: bool) -> FeatureTable {
    let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
    let mut features = Vec::new();
    for _ in 0..rows {
        let mut drawn: Vec<f64> = (0..dim).map(|_| stream.normal()).collect();
        if coarse {
            drawn.iter_mut().for_each(|x| *x = x.clamp(-1.0, 1.0).round());
            drawn[0] = 1.0;
        }
        let length = drawn.iter().map(|x| x * x).sum::<f64>().sqrt();
        features.extend(drawn.iter().map(|x| (x / length) as f32));
    }
    let label = |stream: &mut Stream| {
        let labelled = !stream.chance(0.1);
        labelled.then(|| ClassId(stream.below(classes as u64) as u16))
    };
    let mut labels: Vec<_> = (0..rows).map(|_| label(&mut stream)).collect();
    labels[0] = Some(ClassId(0));
    feature_table(kind, classes, labels, features)
}

#[test]
fn neighbours_and_scores_are_those_of_plain_numpy() {
    let test = "neighbours_and_scores_are_those_of_plain_numpy";
    let cases = [
        Case { rows: 1, queries: 1, dim: 1, classes: 1, k: "1" },
        Case { rows: 33, queries: 1, dim: 5, classes: 1, k: "33,1" },
        Case { rows: 97, queries: 13, dim: 17, classes: 3, k: "5,97,1" },
        Case { rows: 2500, queries: 25, dim: 30, classes: 7, k: "200,1,20" },
        Case { rows: 3001, queries: 37, dim: 128, classes: 40, k: "10,3001" },
    ];
    let dir = scratch();
    let file = |name: &str| dir.path().join(name);
    for (number, case) in cases.iter().enumerate() {
        for coarse in [false, true] {
            let seed = 2 * number as u64;
            let table = |seed, rows| table(seed, Kind::Embedding, rows, case.dim, case.classes, coarse);
            let mut bank = table(seed, case.rows);
            // Rows in another order than their ids.
            Stream::new(seed, Purpose::Test, 1, 0).shuffle(&mut bank.ids);
            write_table(&bank, &file("bank.arrow"));
            write_table(&table(seed + 1, case.queries), &file("queries.arrow"));
            let words = format!("--temperature 0.07,1 --k {}", case.k);
            let call = support::knn(&words, &file("bank.arrow"), &file("queries.arrow"));
            call.arg("--neighbours", file("neighbours.parquet")).arg("--output", file("report.json")).ok();
            let names = ["bank.arrow", "queries.arrow", "neighbours.parquet", "report.json"].map(file);
            let names = names.each_ref().map(|name| name.as_path());
            let Some(output) = python(test, "tests/python/neighbours.py", &names) else { return };
            assert!(output.starts_with("checked"), "{output}");
        }
    }
}

#[test]
fn a_row_that_is_not_a_number_is_named_with_its_file() {
    let dir = scratch();
    let (bank_at, queries_at) = (dir.path().join("bank.arrow"), dir.path().join("queries.arrow"));
    let mut bank = small(1, Kind::Bank, 50);
    bank.features[6 * 31 + 2] = f32::NAN;
    write_table(&bank, &bank_at);
    write_table(&small(2, Kind::Embedding, 4), &queries_at);
    let error = knn(&bank_at, &queries_at, "").fails(65);
    assert!(error.contains("bank.arrow row 31: the feature is not finite"), "{error}");
}

#[test]
fn a_table_may_have_any_name() {
    let dir = scratch();
    let queries_at = dir.path().join("queries");
    write_table(&small(2, Kind::Embedding, 10), &queries_at);
    let evaluate = |name: &str| {
        let bank_at = dir.path().join(name);
        write_table(&small(1, Kind::Bank, 50), &bank_at);
        knn(&bank_at, &queries_at, "").json()["top1"].clone()
    };
    let expected = evaluate("bank.arrow");
    for name in ["bank.feather", "bank.parquet", "bank"] {
        assert_eq!(evaluate(name), expected, "{name}");
    }
}

#[test]
fn queries_that_find_themselves_are_warned_of() {
    let dir = scratch();
    let (table_at, report_at) = (dir.path().join("train.arrow"), dir.path().join("knn.json"));
    write_table(&small(1, Kind::Embedding, 50), &table_at);
    let evaluated = |more: &str| {
        let said = knn(&table_at, &table_at, more).arg("--output", &report_at).said();
        let page = std::fs::read_to_string(dir.path().join("knn.html")).expect("the page");
        (read_json(&report_at), page, said)
    };
    // Four have no label.
    let (report, page, said) = evaluated("");
    let note = "46 of 46 queries of split `train` find themselves in the bank";
    assert!(report["notes"][0].as_str().is_some_and(|text| text.starts_with(note)), "{report}");
    assert!(said.contains("WARN") && said.contains(note) && said.contains("--leave-one-out"), "{said}");
    assert!(page.contains("<p class=\"warning\" role=\"note\">46 of 46 queries"));
    let (report, page, said) = evaluated("--leave-one-out");
    // Features that were drawn tell nothing, which is what the only note says.
    let notes = report["notes"].as_array().expect("notes");
    assert!(notes.len() == 1 && notes[0].as_str().is_some_and(|text| text.contains("most frequent class")));
    let about = |text: &str| text.contains("find themselves");
    assert!(!about(&page) && !about(&said), "{said}");
}

#[test]
fn vectors_of_another_length_do_not_vote() {
    let dir = scratch();
    let (bank, queries) = (dir.path().join("bank.arrow"), dir.path().join("queries.arrow"));
    write_table(&small(1, Kind::Bank, 50), &bank);
    write_table(&table(2, Kind::Embedding, 4, 7, 2, false), &queries);
    let error = knn(&bank, &queries, "").fails(65);
    assert!(
        error.contains("bank.arrow and --queries ") && error.contains("queries.arrow do not fit"),
        "{error}"
    );
    assert!(error.contains("6 and 7"), "{error}");
}

#[test]
fn a_table_without_rows_is_named_as_a_bank_and_as_queries() {
    let dir = scratch();
    let [full, empty] = ["full.arrow", "empty.arrow"].map(|name| dir.path().join(name));
    let mut rows = small(1, Kind::Embedding, 50);
    write_table(&rows, &full);
    (rows.ids, rows.labels, rows.updated_step, rows.features) = Default::default();
    write_table(&rows, &empty);
    for (bank, queries) in [(&empty, &full), (&full, &empty)] {
        let error = support::knn("", bank, queries).fails(65);
        assert!(error.ends_with("empty.arrow: the table has no rows"), "{error}");
    }
}

/// A dump of sixty features as other programs write it: text for ids and classes, vectors of any length.
fn write_dump(path: &Path) {
    let drawn = table(1, Kind::Embedding, 60, 6, 3, false);
    let values = Float16Array::from_iter_values(drawn.features.iter().map(|&x| half::f16::from_f32(4.0 * x)));
    let item = Arc::new(Field::new("item", DataType::Float16, true));
    let class = |label: &Option<ClassId>| label.map(|class| format!("class {}", class.0));
    let columns: [(&str, ArrayRef); 3] = [
        ("file", Arc::new(StringArray::from_iter_values((0..60).map(|row| format!("{row}.jpg"))))),
        ("embedding", Arc::new(FixedSizeListArray::new(item, 6, Arc::new(values), None))),
        ("category", Arc::new(StringArray::from_iter(drawn.labels.iter().map(class)))),
    ];
    write_parquet(&RecordBatch::try_from_iter(columns).expect("a batch"), path);
}

#[test]
fn tables_of_other_programs_are_compared_by_names_and_say_what_was_understood() {
    let dir = scratch();
    let file = |name: &str| dir.path().join(name);
    write_dump(&file("bank.parquet"));
    write_dump(&file("queries.parquet"));
    let call = |more: &str| knn(&file("bank.parquet"), &file("queries.parquet"), more);
    let error = call("").fails(65);
    let refused =
        error.contains("bank.parquet row 0: the vector has length ") && error.contains("--normalize");
    assert!(refused, "{error}");
    let error = call("--normalize --label-column kind").fails(65);
    assert!(
        error.contains("column `kind` is missing, the table has `file`, `embedding`, `category`"),
        "{error}"
    );
    let call = call("--normalize --leave-one-out").arg("--neighbours", file("neighbours.parquet"));
    let (line, said) = call.arg("--output", file("report.json")).run();
    let understood = "bank.parquet: 60 rows, vectors of 6 Float16 of `embedding`, 3 class names of \
                      `category`, ids of `file`, normalized";
    assert!(said.contains(understood), "{said}");
    assert!(
        line.contains("; recall@1 ") && line.contains(", recall@5 ") && line.contains(", mAP@5 "),
        "{line}"
    );
    let page = std::fs::read_to_string(file("report.html")).expect("the page");
    assert!(page.contains("recall@5</th>") && page.contains(".jpg"));
    let batch = read_parquet(&file("neighbours.parquet"));
    let (queries, found) = (batch.column(0).as_string::<i32>(), batch.column(1).as_list::<i32>());
    for row in 0..60 {
        assert_eq!(queries.value(row), format!("{row}.jpg"));
        let found = found.value(row);
        let found: Vec<&str> = found.as_string::<i32>().iter().flatten().collect();
        assert!(found.len() == 5 && !found.contains(&queries.value(row)), "{found:?}");
    }
}

/// A JPEG whose EXIF asks for a quarter turn.
#[cfg(feature = "torch")]
fn write_turned(path: &Path) {
    let jpeg = jpeg();
    let exif = b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    std::fs::write(path, [&jpeg[..2], exif, &jpeg[2..]].concat()).expect("written");
}

#[cfg(feature = "torch")]
#[test]
fn an_image_of_the_dataset_finds_itself_first_and_its_neighbours_are_those_of_its_embedding() {
    use arrow::datatypes::{Float32Type, Int64Type};

    let dir = scratch();
    let file = |name: &str| dir.path().join(name);
    // A high rate gives all images one embedding after so few steps.
    let run = trained(&dir, "--epochs 1 --no-monitor --lr 0.001");
    embed("val", &run, &file("val.arrow")).ok();
    let call = support::knn("--k 10", &file("val.arrow"), &file("val.arrow"));
    call.arg("--neighbours", file("neighbours.parquet")).ok();
    let before = (contents(&run), contents(dataset()));
    let query = || instdisc("query").arg("--run", &run);
    let call = query().arg("--image", images().join("val")).arg("--bank", file("val.arrow"));
    let report = call.arg("--dataset", dataset()).arg("--page", file("page.html")).json();
    assert!(before == (contents(&run), contents(dataset())), "both are only read");

    let queried = report["images"].as_array().expect("images");
    assert_eq!((queried.len(), report["k"].as_u64()), (40, Some(10)));
    let batch = read_parquet(&file("neighbours.parquet"));
    let (ids, similarities) = (batch.column(1).as_list::<i32>(), batch.column(2).as_list::<i32>());
    // Ids follow the sorted folders, as the images of a folder do.
    for (row, image) in queried.iter().enumerate() {
        let found = image["neighbours"].as_array().expect("neighbours");
        let path = found[0]["path"].as_str().expect("a path");
        assert!(
            image["image"].as_str().is_some_and(|image| image.ends_with(&format!("val/{path}"))),
            "{image}"
        );
        assert_eq!(found[0]["class"].as_str(), path.split('/').next());
        assert_eq!(found[0]["id"], row as u64);
        let (ids, expected) = (ids.value(row), similarities.value(row));
        assert_eq!(ids.as_primitive::<Int64Type>().values()[0], row as i64);
        for (found, similarity) in found.iter().zip(expected.as_primitive::<Float32Type>().values()) {
            let own = found["similarity"].as_f64().expect("a number");
            assert!((own - f64::from(*similarity)).abs() < 1e-5, "{own} {similarity}");
        }
    }
    let page = std::fs::read_to_string(file("page.html")).expect("a page");
    assert!(page.matches("<article").count() == 40 && page.contains("<h1>The neighbours of 40 images"));
    let shown = |side: &str| page.matches(&format!("\n.{side}")).count();
    assert!(page.matches("{background-image:url(data:image/jpeg").count() > 40 && shown("q") >= 39);

    // A table that names this split, with ids of which the split has four.
    let mut shifted = read_table(&file("val.arrow"));
    shifted.ids.iter_mut().for_each(|id| id.0 += 36);
    write_table(&shifted, &file("shifted.arrow"));
    let call = query().arg("--image", images().join("val")).arg("--bank", file("shifted.arrow"));
    let said = call.arg("--dataset", dataset()).arg("--page", file("shifted.html")).said();
    assert!(
        said.contains("lacks 36 of the 40 images that were found, the first with id 40: they have no path"),
        "{said}"
    );

    // Each neighbour is there, with its file.
    let captions: Vec<&str> = page.split("<figcaption>").skip(1).collect();
    assert_eq!(captions.len(), 40 * 10);
    let path = queried[0]["neighbours"][9]["path"].as_str().expect("a path").replace('_', "_<wbr>");
    assert!(captions[9].starts_with(&path), "{path}: {}", captions[9]);
    assert!(page.contains("dataset <b>dataset</b> (<code"), "the dataset's name");
    let more = query().arg("--image", images().join("val")).word("--k").word("25");
    let lines = more.word("--print").word("lines").arg("--page", file("more.html")).ok();
    // Without the dataset an image has its number.
    assert_eq!(lines.lines().filter(|line| line.contains("  image ")).count(), 40 * 25, "{lines}");
    let page = std::fs::read_to_string(file("more.html")).expect("a page");
    let named = |caption: &str| caption.split(" <span>").next().is_some_and(|name| name.contains(", image "));
    assert_eq!(page.split("<figcaption>").skip(1).filter(|caption| named(caption)).count(), 40 * 25);
}

#[cfg(feature = "torch")]
#[test]
fn a_query_names_what_it_cannot_take_and_guesses_nothing() {
    let dir = scratch();
    let file = |name: &str| dir.path().join(name);
    // A high rate gives all images one embedding after so few steps.
    let run = trained(&dir, "--epochs 1 --no-monitor --lr 0.001");
    let query = || instdisc("query").arg("--run", &run);
    let (one, _) = contents(&images().join("val")).swap_remove(0);
    let one = images().join("val").join(one);
    // The run's own bank has the training images.
    let report = query().arg("--image", &one).word("--k").word("3").json();
    let found = report["images"][0]["neighbours"].as_array().expect("neighbours");
    assert_eq!((&report["split"], found.len()), (&"train".into(), 3));
    assert!(found[0]["class"].is_string() && found[0].get("path").is_none());
    let error = query().arg("--image", &one).word("--k").word("500").fails(2);
    assert!(error.contains("--k 500: the bank has"), "{error}");
    let photo = file("photo.png");
    std::fs::copy(&one, &photo).expect("copied");
    let error = query().arg("--image", &photo).arg("--page", &photo).fails(2);
    assert!(error.contains(".html") && std::fs::read(&photo).ok() == std::fs::read(&one).ok(), "{error}");

    // A broken image ends it with its name, or is left out and named.
    std::fs::create_dir(file("mixed")).expect("a folder");
    std::fs::copy(&one, file("mixed/good.png")).expect("copied");
    std::fs::write(file("mixed/bad.jpg"), "no image").expect("written");
    std::fs::write(file("mixed/notes.txt"), "no image").expect("written");
    let mixed = || query().arg("--image", file("mixed"));
    let error = mixed().fails(65);
    assert!(error.contains("mixed/bad.jpg: "), "{error}");
    let report = mixed().word("--on-corrupt").word("skip").json();
    let images = |key: &str| report[key].as_array().map(Vec::len);
    assert_eq!((images("images"), images("skipped")), (Some(1), Some(1)));
    assert!(
        report["skipped"][0]["image"].as_str().is_some_and(|image| image.ends_with("bad.jpg")),
        "{report}"
    );
    let error = query().arg("--image", file("mixed/bad.jpg")).word("--on-corrupt").word("skip").fails(65);
    assert!(error.contains("all 1 images are broken"), "{error}");
    let error = query().arg("--image", file("nothing.jpg")).fails(65);
    assert!(error.contains("nothing.jpg"), "{error}");

    // Whether EXIF turns an image is not guessed.
    write_turned(&file("turned.jpg"));
    let turned = || query().arg("--image", file("turned.jpg"));
    let error = turned().fails(2);
    assert!(error.contains("turned.jpg") && error.contains("--exif-orientation apply, or ignore"), "{error}");
    let neighbours = |report: serde_json::Value| report["images"][0]["neighbours"].clone();
    let [stored, upright] =
        ["ignore", "apply"].map(|how| neighbours(turned().word("--exif-orientation").word(how).json()));
    assert_ne!(stored, upright);
    assert_eq!(
        neighbours(turned().arg("--dataset", dataset()).json())[0]["similarity"],
        stored[0]["similarity"]
    );

    // Vectors of another encoder are not compared.
    let bank = file("val.arrow");
    embed("val", &run, &bank).ok();
    let another = scratch();
    let other = trained(&another, "--epochs 1 --no-monitor --seed 5 --lr 1");
    let query_other = || instdisc("query --print json").arg("--run", &other).arg("--image", &one);
    // At such a rate all rows are one, which is said in the log, in the result and on the page.
    let page = file("other.html");
    let (said, logged) = query_other().arg("--page", &page).run();
    let note = "the features are nearly all alike: two rows of the bank have a mean cosine of";
    assert!(logged.contains(note), "{logged}");
    let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert!(report["notes"][0].as_str().is_some_and(|said| said.starts_with(note)), "{report}");
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains(note) && page.contains("more <code>--epochs</code> help"));
    assert!(page.contains("<h1>The neighbours of 1 image</h1>"));
    let error = query_other().arg("--bank", &bank).fails(65);
    assert!(error.contains("its features are by other weights"), "{error}");
    // Nor those of another run's bank, though of the same step.
    let error = query_other().arg("--bank", &run).fails(65);
    assert!(error.contains("whose weights are others"), "{error}");
    // A table that is read is not written over.
    let call = support::knn("--k 1 --leave-one-out", &bank, &bank);
    assert!(call.arg("--neighbours", &bank).fails(2).contains("a table to read"));
}

#[test]
fn bench_knn_tells_its_times_as_json() {
    let report = instdisc("bench knn --rows 3000 --query-rows 20 --dim 16 --k 10 --repeat 2").json();
    assert_eq!((&report["rows"], &report["queries"], &report["k"]), (&3000.into(), &20.into(), &10.into()));
    assert_eq!(report["search_seconds"].as_array().map(Vec::len), Some(2));
}

/// Near-duplicates that ingest finds do not vote with --exclude-duplicates.
#[test]
fn duplicates_that_ingest_found_do_not_vote() {
    let dir = scratch();
    let source = dir.path().join("images");
    copy(images(), &source);
    // A val image is in train too, under another class.
    let [val, train] = ["val", "train"].map(|split| entries(&source.join(split)));
    std::fs::copy(&entries(&val[0])[0], train[1].join("zz-copy.png")).expect("copied");
    let dataset = dir.path().join("dataset");
    ingest("", &source, &dataset).ok();
    let manifest = read_json(&dataset.join("manifest.json"));
    let (bank, queries) = (dir.path().join("bank.arrow"), dir.path().join("queries.arrow"));
    let write_tables = |digest: &str| {
        for (seed, rows, split, file) in [(1, 121, "train", &bank), (2, 40, "val", &queries)] {
            let table = table(seed, Kind::Embedding, rows, 6, 10, false);
            let meta = TableMeta { dataset_digest: digest.into(), split: split.into(), ..table.meta };
            write_table(&FeatureTable { meta, ..table }, file);
        }
    };
    let call = |more: &str| knn(&bank, &queries, more).arg("--dataset", &dataset);
    write_tables(manifest["dataset_digest"].as_str().expect("a digest"));
    assert!(call("--exclude-duplicates").json()["excluded_duplicates"].as_u64() >= Some(1));
    assert!(call("").json()["excluded_duplicates"].is_null());
    // Ids of another dataset are other images.
    write_tables("d");
    let error = call("--exclude-duplicates").fails(65);
    assert!(
        error.contains("is of split `train` of the dataset d") && error.contains("that was embedded"),
        "{error}"
    );
    call("").ok();
}

/// A run with three checkpoints.
#[cfg(feature = "torch")]
const THREE_CHECKPOINTS: &str = "--epochs 2 --no-monitor --checkpoint-every-epochs 1 --keep 0";

#[cfg(feature = "torch")]
fn watch(run: &Path, dataset: &Path) -> Call {
    let call = instdisc("knn --watch --split val --k 5 --poll-interval 1");
    call.arg("--run", run).arg("--dataset", dataset)
}

#[cfg(feature = "torch")]
#[test]
fn a_watcher_evaluates_each_checkpoint_once_but_a_changed_bank_and_ends_with_wrong_data() {
    let dir = scratch();
    let run = trained(&dir, THREE_CHECKPOINTS);
    // Other labels and the same size: only the digest tells.
    let bank = checkpoint(&run, 8).join("bank.arrow");
    let mut table = read_table(&bank);
    table.labels.rotate_left(1);
    write_table(&table, &bank);
    for evaluated in [vec![0, 16], vec![]] {
        let (_, output) = watch(&run, dataset()).output();
        assert_eq!(output.status.code(), Some(65));
        let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(summary, serde_json::json!({"evaluated": evaluated, "failed": [8], "end": "finished"}));
    }
    let report_of = |step: u32| run.join(format!("eval/knn-val-k5-step-{step:08}.json"));
    for step in [0, 16] {
        let report = read_json(&report_of(step));
        assert_eq!((&report["step"], &report["k"]), (&step.into(), &5.into()));
    }
    assert!(!report_of(8).exists());
    assert!(knn(&bank, &bank, "").fails(65).contains("bank.arrow: damaged"));
}

#[cfg(feature = "torch")]
#[test]
fn a_watcher_blames_a_wrong_dataset_and_not_the_checkpoints() {
    let dir = scratch();
    let (damaged, other) = (dir.path().join("damaged"), dir.path().join("other"));
    let run = trained(&dir, THREE_CHECKPOINTS);
    copy(dataset(), &damaged);
    damage(&damaged.join("val/shard-00000.parquet"));
    let error = watch(&run, &damaged).fails(65);
    assert!(error.contains("val/shard-00000.parquet row group "), "{error}");
    ingest("--split val", images().join("val"), &other).ok();
    let error = watch(&run, &other).fails(65);
    assert!(error.contains("was trained on the dataset"), "{error}");
}
