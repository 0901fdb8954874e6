//! The kNN search and vote against plain NumPy, and the errors of `instdisc knn`.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, FixedSizeListArray, Float16Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};

use instdisc::feature_table::{FeatureTable, Kind, TableMeta};
use instdisc::ids::ClassId;
use instdisc::rng::{Purpose, Stream};
use instdisc::storage::Location;

use super::support::{feature_table, instdisc, python, scratch, write_table};

struct Case {
    rows: usize,
    queries: usize,
    dim: usize,
    classes: usize,
    k: &'static str,
}

/// Unit vectors; `coarse` makes many of them equal, so that ties decide.
fn table(seed: u64, kind: Kind, rows: usize, case: &Case, coarse: bool) -> FeatureTable {
    let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
    let mut features = Vec::new();
    for _ in 0..rows {
        let mut drawn: Vec<f64> = (0..case.dim).map(|_| stream.normal()).collect();
        if coarse {
            drawn.iter_mut().for_each(|x| *x = x.clamp(-1.0, 1.0).round());
            drawn[0] = 1.0;
        }
        let length = drawn.iter().map(|x| x * x).sum::<f64>().sqrt();
        features.extend(drawn.iter().map(|x| (x / length) as f32));
    }
    let label = |stream: &mut Stream| {
        let labelled = !stream.chance(0.1);
        labelled.then(|| ClassId(stream.below(case.classes as u64) as u16))
    };
    let mut labels: Vec<_> = (0..rows).map(|_| label(&mut stream)).collect();
    labels[0] = Some(ClassId(0));
    feature_table(kind, case.classes, labels, features)
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
            let mut bank = table(seed, Kind::Embedding, case.rows, case, coarse);
            // Rows in another order than their ids.
            Stream::new(seed, Purpose::Test, 1, 0).shuffle(&mut bank.ids);
            write_table(&bank, &file("bank.arrow"));
            write_table(
                &table(seed + 1, Kind::Embedding, case.queries, case, coarse),
                &file("queries.arrow"),
            );
            instdisc(&format!("knn --temperature 0.07,1 --k {}", case.k))
                .arg("--bank", file("bank.arrow"))
                .arg("--queries", file("queries.arrow"))
                .arg("--neighbours", file("neighbours.parquet"))
                .arg("--output", file("report.json"))
                .ok();
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
    let case = Case { rows: 50, queries: 4, dim: 6, classes: 2, k: "5" };
    let mut bank = table(1, Kind::Bank, case.rows, &case, false);
    bank.features[6 * 31 + 2] = f32::NAN;
    write_table(&bank, &bank_at);
    write_table(&table(2, Kind::Embedding, case.queries, &case, false), &queries_at);
    let call = || instdisc("knn --k 5").arg("--bank", &bank_at).arg("--queries", &queries_at);
    let error = call().fails(65);
    assert!(error.contains("bank.arrow row 31: the feature is not finite"), "{error}");
}

#[test]
fn a_table_may_have_any_name() {
    let dir = scratch();
    let case = Case { rows: 50, queries: 10, dim: 6, classes: 2, k: "5" };
    let bank = table(1, Kind::Bank, case.rows, &case, false);
    let evaluate = |name: &str| {
        let (bank_at, queries_at) = (dir.path().join(name), dir.path().join("queries"));
        write_table(&bank, &bank_at);
        write_table(&table(2, Kind::Embedding, case.queries, &case, false), &queries_at);
        instdisc("knn --k 5").arg("--bank", &bank_at).arg("--queries", &queries_at).json()["top1"].clone()
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
    let case = Case { rows: 50, queries: 0, dim: 6, classes: 2, k: "5" };
    write_table(&table(1, Kind::Embedding, case.rows, &case, false), &table_at);
    let evaluated = |more: &str| {
        let call =
            instdisc(&format!("knn --k 5 {more}")).arg("--bank", &table_at).arg("--queries", &table_at);
        let (shown, output) = call.arg("--output", &report_at).output();
        assert!(output.status.success(), "{shown}");
        let report = std::fs::read(&report_at).expect("the report");
        let page = std::fs::read_to_string(dir.path().join("knn.html")).expect("the page");
        let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
        (report, page, String::from_utf8(output.stderr).expect("text"))
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
    let case = Case { rows: 50, queries: 4, dim: 6, classes: 2, k: "5" };
    write_table(&table(1, Kind::Bank, case.rows, &case, false), &bank);
    write_table(&table(2, Kind::Embedding, case.queries, &Case { dim: 7, ..case }, false), &queries);
    let error = instdisc("knn --k 5").arg("--bank", &bank).arg("--queries", &queries).fails(65);
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
    let case = Case { rows: 50, queries: 4, dim: 6, classes: 2, k: "5" };
    let mut rows = table(1, Kind::Embedding, case.rows, &case, false);
    write_table(&rows, &full);
    (rows.ids, rows.labels, rows.updated_step, rows.features) = Default::default();
    write_table(&rows, &empty);
    for (bank, queries) in [(&empty, &full), (&full, &empty)] {
        let error = instdisc("knn").arg("--bank", bank).arg("--queries", queries).fails(65);
        assert!(error.ends_with("empty.arrow: the table has no rows"), "{error}");
    }
}

/// A dump of features as other programs write it: text for ids and classes, vectors of any length.
fn write_dump(path: &Path, case: &Case, rows: usize, seed: u64) {
    let drawn = table(seed, Kind::Embedding, rows, case, false);
    let values = Float16Array::from_iter_values(drawn.features.iter().map(|&x| half::f16::from_f32(4.0 * x)));
    let item = Arc::new(Field::new("item", DataType::Float16, true));
    let class = |label: &Option<ClassId>| label.map(|class| format!("class {}", class.0));
    let columns: [(&str, ArrayRef); 3] = [
        ("file", Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("{row}.jpg"))))),
        ("embedding", Arc::new(FixedSizeListArray::new(item, case.dim as i32, Arc::new(values), None))),
        ("category", Arc::new(StringArray::from_iter(drawn.labels.iter().map(class)))),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("a batch");
    let file = std::fs::File::create(path).expect("a file");
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("written");
    writer.close().expect("closed");
}

#[test]
fn tables_of_other_programs_are_compared_by_names_and_say_what_was_understood() {
    let dir = scratch();
    let file = |name: &str| dir.path().join(name);
    let case = Case { rows: 60, queries: 60, dim: 6, classes: 3, k: "5" };
    write_dump(&file("bank.parquet"), &case, case.rows, 1);
    write_dump(&file("queries.parquet"), &case, case.queries, 1);
    let call = |more: &str| {
        let call = instdisc(&format!("knn --k 5 {more}"));
        call.arg("--bank", file("bank.parquet")).arg("--queries", file("queries.parquet"))
    };
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
    let (shown, output) = call.arg("--output", file("report.json")).output();
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{shown} {said}");
    let understood = "bank.parquet: 60 rows, vectors of 6 Float16 of `embedding`, 3 class names of \
                      `category`, ids of `file`, normalized";
    assert!(said.contains(understood), "{said}");
    let line = String::from_utf8(output.stdout).expect("text");
    assert!(
        line.contains("; recall@1 ") && line.contains(", recall@5 ") && line.contains(", mAP@5 "),
        "{line}"
    );
    let page = std::fs::read_to_string(file("report.html")).expect("the page");
    assert!(page.contains("recall@5</th>") && page.contains(".jpg"));
    let bytes = bytes::Bytes::from(std::fs::read(file("neighbours.parquet")).expect("neighbours"));
    let mut reader =
        parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(bytes, 60).expect("Parquet");
    let batch = reader.next().expect("a batch").expect("rows");
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
    let rgb = (0..3 * 32 * 24).map(|at| (at % 251) as u8).collect();
    let image = instdisc::image::DecodedImage { width: 32, height: 24, rgb };
    let jpeg = instdisc::image::encode_jpeg(&image, 90).expect("a JPEG");
    let exif = b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    std::fs::write(path, [&jpeg[..2], exif, &jpeg[2..]].concat()).expect("written");
}

#[cfg(feature = "torch")]
#[test]
fn an_image_of_the_dataset_finds_itself_first_and_its_neighbours_are_those_of_its_embedding() {
    use super::support::{contents, dataset, images, train};
    use arrow::datatypes::{Float32Type, Int64Type};

    let dir = scratch();
    let file = |name: &str| dir.path().join(name);
    // A high rate gives all images one embedding after so few steps.
    train(dataset(), &file("run"), "--epochs 1 --no-monitor --lr 0.001").ok();
    instdisc("embed --split val")
        .arg("--checkpoint", file("run"))
        .arg("--dataset", dataset())
        .arg("--output", file("val.arrow"))
        .ok();
    instdisc("knn --k 10")
        .arg("--bank", file("val.arrow"))
        .arg("--queries", file("val.arrow"))
        .arg("--neighbours", file("neighbours.parquet"))
        .ok();
    let before = (contents(&file("run")), contents(dataset()));
    let query = || instdisc("query").arg("--run", file("run"));
    let call = query().arg("--image", images().join("val")).arg("--bank", file("val.arrow"));
    let report = call.arg("--dataset", dataset()).arg("--page", file("page.html")).json();
    assert!(before == (contents(&file("run")), contents(dataset())), "both are only read");

    let queried = report["images"].as_array().expect("images");
    assert_eq!((queried.len(), report["k"].as_u64()), (40, Some(10)));
    let bytes = bytes::Bytes::from(std::fs::read(file("neighbours.parquet")).expect("neighbours"));
    let mut reader =
        parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(bytes, 40).expect("Parquet");
    let batch = reader.next().expect("a batch").expect("rows");
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
    let at = |name: &str| Location::from_path(&file(name)).expect("a location");
    let mut shifted = FeatureTable::read(&at("val.arrow")).expect("a table");
    shifted.ids.iter_mut().for_each(|id| id.0 += 36);
    shifted.write(&at("shifted.arrow")).expect("written");
    let call = query().arg("--image", images().join("val")).arg("--bank", file("shifted.arrow"));
    let (shown, output) = call.arg("--dataset", dataset()).arg("--page", file("shifted.html")).output();
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{shown} {said}");
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
    let output = more.word("--print").word("lines").arg("--page", file("more.html")).output().1;
    let said = String::from_utf8(output.stdout).expect("text");
    // Without the dataset an image has its number.
    assert_eq!(said.lines().filter(|line| line.contains("  image ")).count(), 40 * 25, "{said}");
    let page = std::fs::read_to_string(file("more.html")).expect("a page");
    let named = |caption: &str| caption.split(" <span>").next().is_some_and(|name| name.contains(", image "));
    assert_eq!(page.split("<figcaption>").skip(1).filter(|caption| named(caption)).count(), 40 * 25);
}

#[cfg(feature = "torch")]
#[test]
fn a_query_names_what_it_cannot_take_and_guesses_nothing() {
    use super::support::{dataset, images, train};

    let dir = scratch();
    let file = |name: &str| dir.path().join(name);
    // A high rate gives all images one embedding after so few steps.
    train(dataset(), &file("run"), "--epochs 1 --no-monitor --lr 0.001").ok();
    let query = || instdisc("query").arg("--run", file("run"));
    let files = walkdir::WalkDir::new(images().join("val")).into_iter().filter_map(Result::ok);
    let one = files.map(walkdir::DirEntry::into_path).find(|path| path.is_file()).expect("an image");
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
    let embed = instdisc("embed --split val").arg("--checkpoint", file("run")).arg("--dataset", dataset());
    embed.arg("--output", &bank).ok();
    train(dataset(), &file("other"), "--epochs 1 --no-monitor --seed 5 --lr 1").ok();
    // At such a rate all rows are one, which is said in the log, in the result and on the page.
    let page = file("other.html");
    let call = instdisc("query --print json").arg("--run", file("other")).arg("--image", &one);
    let output = call.arg("--page", &page).output().1;
    let [said, logged] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("text"));
    let note = "the features are nearly all alike: two rows of the bank have a mean cosine of";
    assert!(logged.contains(note), "{logged}");
    let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert!(report["notes"][0].as_str().is_some_and(|said| said.starts_with(note)), "{report}");
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains(note) && page.contains("more <code>--epochs</code> help"));
    assert!(page.contains("<h1>The neighbours of 1 image</h1>"));
    let call = instdisc("query").arg("--run", file("other")).arg("--image", &one);
    let error = call.arg("--bank", &bank).fails(65);
    assert!(error.contains("its features are by other weights"), "{error}");
    // Nor those of another run's bank, though of the same step.
    let call = instdisc("query").arg("--run", file("other")).arg("--image", &one);
    let error = call.arg("--bank", file("run")).fails(65);
    assert!(error.contains("whose weights are others"), "{error}");
    // A table that is read is not written over.
    let call = instdisc("knn --k 1 --leave-one-out").arg("--bank", &bank).arg("--queries", &bank);
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
    use super::support::{copy, images};
    let dir = scratch();
    let source = dir.path().join("images");
    copy(images(), &source);
    // A val image is in train too, under another class.
    let folders = |split: &str| {
        let mut names: Vec<_> = std::fs::read_dir(source.join(split))
            .expect("a folder")
            .map(|e| e.expect("one").path())
            .collect();
        names.sort();
        names
    };
    let first = |folder: &Path| {
        let mut files: Vec<_> =
            std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("one").path()).collect();
        files.sort();
        files.swap_remove(0)
    };
    let copy = first(&folders("val")[0]);
    std::fs::copy(&copy, folders("train")[1].join("zz-copy.png")).expect("copied");
    let dataset = dir.path().join("dataset");
    instdisc("ingest").arg("--source", &source).arg("--dest", &dataset).ok();
    let digest = {
        let manifest = std::fs::read(dataset.join("manifest.json")).expect("a manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
        manifest["dataset_digest"].as_str().expect("a digest").to_owned()
    };
    let case = Case { rows: 121, queries: 40, dim: 6, classes: 10, k: "5" };
    let named = |table: FeatureTable, split: &str| FeatureTable {
        meta: TableMeta { dataset_digest: digest.clone(), split: split.into(), ..table.meta },
        ..table
    };
    let (bank, queries) = (dir.path().join("bank.arrow"), dir.path().join("queries.arrow"));
    write_table(&named(table(1, Kind::Embedding, case.rows, &case, false), "train"), &bank);
    write_table(&named(table(2, Kind::Embedding, case.queries, &case, false), "val"), &queries);
    let knn = |more: &str| {
        let call = instdisc(&format!("knn --k 5 {more}")).arg("--bank", &bank).arg("--queries", &queries);
        call.arg("--dataset", &dataset).json()
    };
    assert!(knn("--exclude-duplicates")["excluded_duplicates"].as_u64() >= Some(1));
    assert!(knn("")["excluded_duplicates"].is_null());
    // Ids of another dataset are other images.
    let other = |table: FeatureTable, split: &str| FeatureTable {
        meta: TableMeta { dataset_digest: "d".into(), split: split.into(), ..table.meta },
        ..table
    };
    write_table(&other(table(1, Kind::Embedding, case.rows, &case, false), "train"), &bank);
    write_table(&other(table(2, Kind::Embedding, case.queries, &case, false), "val"), &queries);
    let call = || instdisc("knn --k 5").arg("--bank", &bank).arg("--queries", &queries);
    let error = call().arg("--dataset", &dataset).word("--exclude-duplicates").fails(65);
    assert!(
        error.contains("is of split `train` of the dataset d") && error.contains("that was embedded"),
        "{error}"
    );
    call().arg("--dataset", &dataset).ok();
}

#[cfg(feature = "torch")]
#[test]
fn a_watcher_evaluates_each_checkpoint_once_and_ends_with_the_run() {
    use super::support::{dataset, train};

    let dir = scratch();
    let run = dir.path().join("run");
    train(dataset(), &run, "--epochs 2 --no-monitor --checkpoint-every-epochs 1 --keep 0").ok();
    let watch = || {
        let call = instdisc("knn --watch --split val --k 5 --poll-interval 1");
        call.arg("--run", &run).arg("--dataset", dataset()).json()
    };
    assert_eq!(watch(), serde_json::json!({"evaluated": [0, 8, 16], "end": "finished"}));
    assert_eq!(watch(), serde_json::json!({"evaluated": [], "end": "finished"}));
    for step in [0, 8, 16] {
        let report = run.join(format!("eval/knn-val-k5-step-{step:08}.json"));
        let report: serde_json::Value =
            serde_json::from_slice(&std::fs::read(report).expect("a report")).expect("JSON");
        assert_eq!((&report["step"], &report["k"]), (&step.into(), &5.into()));
    }
}

#[cfg(feature = "torch")]
#[test]
fn a_watcher_passes_over_a_changed_bank_and_ends_with_wrong_data() {
    use super::support::{dataset, train};

    let dir = scratch();
    let run = dir.path().join("run");
    train(dataset(), &run, "--epochs 2 --no-monitor --checkpoint-every-epochs 1 --keep 0").ok();
    // Other labels and the same size: only the digest tells.
    let bank = run.join("checkpoints/step-00000008/bank.arrow");
    let location = Location::from_path(&bank).expect("a location");
    let mut table = FeatureTable::read(&location).expect("the bank");
    table.labels.rotate_left(1);
    table.write(&location).expect("written");
    let watch = instdisc("knn --watch --split val --k 5 --poll-interval 1");
    let (_, output) = watch.arg("--run", &run).arg("--dataset", dataset()).output();
    assert_eq!(output.status.code(), Some(65));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(summary, serde_json::json!({"evaluated": [0, 16], "failed": [8], "end": "finished"}));
    let has_report = |step: u32| run.join(format!("eval/knn-val-k5-step-{step:08}.json")).exists();
    assert!(has_report(0) && has_report(16) && !has_report(8));
    let call = instdisc("knn --k 5").arg("--bank", &bank).arg("--queries", &bank);
    assert!(call.fails(65).contains("bank.arrow: damaged"));
}

#[cfg(feature = "torch")]
#[test]
fn a_watcher_blames_a_wrong_dataset_and_not_the_checkpoints() {
    use super::support::{copy, damage, dataset, images, train};

    let dir = scratch();
    let (run, damaged, other) =
        (dir.path().join("run"), dir.path().join("damaged"), dir.path().join("other"));
    train(dataset(), &run, "--epochs 2 --no-monitor --checkpoint-every-epochs 1 --keep 0").ok();
    copy(dataset(), &damaged);
    let shard = damaged.join("val/shard-00000.parquet");
    damage(&shard);
    let watch = |data: &Path| {
        let call = instdisc("knn --watch --split val --k 5 --poll-interval 1").arg("--run", &run);
        call.arg("--dataset", data).fails(65)
    };
    let error = watch(&damaged);
    assert!(error.contains("val/shard-00000.parquet row group "), "{error}");
    instdisc("ingest --split val").arg("--source", images().join("val")).arg("--dest", &other).ok();
    let error = watch(&other);
    assert!(error.contains("was trained on the dataset"), "{error}");
}
