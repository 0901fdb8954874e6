//! The same images in every form in which people hold them give the same dataset.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Schema};
use serde_json::Value;

use super::support::{self, contents, images, instdisc, location, root, scratch, tar, write_parquet};

/// Classes of tests/golden/meta_*.mat: WordNet id and the challenge's number.
const CLASSES: [(&str, u32); 3] = [("n00000010", 2), ("n00000020", 1), ("n00000030", 3)];
const PER_CLASS: usize = 4;

/// An image: class, name, contents.
type Named = (usize, String, Vec<u8>);

fn jpegs(count: usize) -> Vec<Vec<u8>> {
    let all = contents(images()).into_iter();
    let jpegs = all.filter(|(path, _)| path.extension().is_some_and(|ending| ending == "jpg"));
    jpegs.map(|(_, bytes)| bytes).take(count).collect()
}

/// Training images under ImageNet's names, sorted as an ImageFolder is.
fn training() -> Vec<Named> {
    let named = |(place, bytes): (usize, Vec<u8>)| {
        let (class, number) = (place / PER_CLASS, place % PER_CLASS);
        (class, format!("{}_{number}.JPEG", CLASSES[class].0), bytes)
    };
    jpegs(CLASSES.len() * PER_CLASS).into_iter().enumerate().map(named).collect()
}

/// Validation images: the class goes round with the number.
fn validation() -> Vec<Named> {
    let named = |(place, bytes): (usize, Vec<u8>)| {
        (place % CLASSES.len(), format!("ILSVRC2012_val_{:08}.JPEG", place + 1), bytes)
    };
    jpegs(30).into_iter().skip(20).take(6).enumerate().map(named).collect()
}

fn wnid(class: usize) -> &'static str {
    CLASSES[class].0
}

fn folder(at: &Path, images: &[Named]) {
    for (class, name, bytes) in images {
        std::fs::create_dir_all(at.join(wnid(*class))).expect("a folder");
        std::fs::write(at.join(wnid(*class)).join(name), bytes).expect("an image");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("packed");
    encoder.finish().expect("packed")
}

fn ingest(source: &Path, dest: &Path, more: &str) -> Value {
    support::ingest(more, source, dest).json()
}

fn digest(report: &Value) -> String {
    report["dataset_digest"].as_str().expect("a digest").to_owned()
}

/// What the dataset is, from a plain folder of both splits.
fn expected(dir: &Path) -> String {
    folder(&dir.join("folder/train"), &training());
    folder(&dir.join("folder/val"), &validation());
    let report = ingest(&dir.join("folder"), &dir.join("expected"), "");
    assert_eq!(report["format"], "imagefolder");
    assert_eq!(report["splits"]["train"]["instances"], 12);
    assert_eq!(report["splits"]["val"]["instances"], 6);
    digest(&report)
}

/// The same of the training images alone.
fn expected_training(dir: &Path) -> String {
    folder(&dir.join("images"), &training());
    digest(&ingest(&dir.join("images"), &dir.join("expected-training"), ""))
}

/// The official archives; gives the folder that holds them.
fn archives(dir: &Path) -> PathBuf {
    let at = dir.join("archives");
    std::fs::create_dir(&at).expect("a folder");
    let files = |images: Vec<Named>| images.into_iter().map(|(_, name, bytes)| (name, bytes));
    let of_class = |class: usize| {
        let own = training().into_iter().filter(|(of, ..)| *of == class).collect();
        (format!("{}.tar", wnid(class)), tar(files(own)))
    };
    let train = tar((0..CLASSES.len()).map(of_class));
    std::fs::write(at.join("ILSVRC2012_img_train.tar"), train).expect("a tar");
    std::fs::write(at.join("ILSVRC2012_img_val.tar"), tar(files(validation()))).expect("a tar");
    at
}

fn devkit(meta: &str) -> Vec<u8> {
    let meta = std::fs::read(root().join("tests/golden").join(meta)).expect("the golden file");
    let truth: String = validation().iter().map(|(class, ..)| format!("{}\n", CLASSES[*class].1)).collect();
    let folder = "ILSVRC2012_devkit_t12/data";
    gzip(&tar([
        (format!("{folder}/ILSVRC2012_validation_ground_truth.txt"), truth.as_bytes()),
        (format!("{folder}/meta.mat"), meta.as_slice()),
    ]))
}

#[test]
fn the_official_archives_give_the_dataset_of_the_folder() {
    let dir = scratch();
    let expected = expected(dir.path());
    let archives = archives(dir.path());
    let kit = archives.join("ILSVRC2012_devkit_t12.tar.gz");
    for meta in ["meta_compressed.mat", "meta_plain.mat"] {
        std::fs::write(&kit, devkit(meta)).expect("the kit");
        let report = ingest(&archives, &dir.path().join(meta), "");
        assert_eq!((&report["format"], digest(&report)), (&"imagenet".into(), expected.clone()));
    }
    // One after the other, the labels from a csv in Kaggle's form.
    std::fs::remove_file(&kit).expect("removed");
    let dest = dir.path().join("one-by-one");
    ingest(&archives.join("ILSVRC2012_img_train.tar"), &dest, "--format imagenet");
    let val = || support::ingest("", archives.join("ILSVRC2012_img_val.tar"), &dest);
    let error = val().fails(65);
    assert!(error.contains("the validation images have no labels"), "{error}");
    let mut csv = String::from("ImageId,PredictionString\n");
    for (class, name, _) in validation().iter().rev() {
        let (name, wnid) = (name.trim_end_matches(".JPEG"), wnid(*class));
        csv += &format!("{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8\n");
    }
    std::fs::write(dir.path().join("labels.csv"), csv).expect("a csv");
    let report = val().arg("--labels", dir.path().join("labels.csv")).json();
    assert_eq!(digest(&report), expected);
    instdisc("inspect --verify").arg("", &dest).ok();
}

#[test]
fn webdataset_shards_give_the_dataset_of_the_folder() {
    let dir = scratch();
    let expected = expected_training(dir.path());
    let all = training();
    // The samples lie in any order over the shards; labels as names, numbers and json.
    let label = |form: &str, class: usize| match form {
        "names" => ("cls", wnid(class).to_owned()),
        "numbers" => ("cls", format!("{class}\n")),
        _ => ("json", format!("{{\"width\": 1, \"label\": {class}}}")),
    };
    std::fs::write(dir.path().join("wnids.txt"), "n00000010\nn00000020\nn00000030\n").expect("names");
    for form in ["names", "numbers", "json"] {
        for shard in 0..3 {
            let mut members = Vec::new();
            for (class, name, bytes) in all.iter().skip(shard).step_by(3) {
                let key = format!("./some/{}", name.trim_end_matches(".JPEG"));
                let (ending, text) = label(form, *class);
                members.push((format!("{key}.{ending}"), text.into_bytes()));
                members.push((format!("{key}.jpg"), bytes.clone()));
            }
            std::fs::write(dir.path().join(format!("{form}-{shard:03}.tar")), tar(members)).expect("a tar");
        }
        let pattern = dir.path().join(format!("{form}-{{000..002}}.tar"));
        let call = support::ingest("", pattern, dir.path().join(form));
        // Only numbers want names.
        let names = dir.path().join("wnids.txt");
        let report = if form == "names" { call } else { call.arg("--classes", names) }.json();
        assert_eq!((&report["format"], digest(&report)), (&"tar".into(), expected.clone()), "{form}");
    }
}

#[test]
fn tars_of_the_folder_plain_and_compressed_give_its_dataset() {
    let dir = scratch();
    let expected = expected(dir.path());
    let mut members = Vec::new();
    for (split, images) in [("train", training()), ("val", validation())] {
        for (class, name, bytes) in images {
            members.push((format!("imagenet/{split}/{}/{name}", wnid(class)), bytes));
        }
    }
    members.reverse();
    let plain = tar(members);
    let forms = [
        ("plain.tar", plain.clone()),
        ("gzip.tar.gz", gzip(&plain)),
        ("zstd.tar.zst", zstd::encode_all(plain.as_slice(), 3).expect("packed")),
        // The content decides, not the name.
        ("misnamed.bin", gzip(&plain)),
    ];
    for (name, bytes) in forms {
        let source = dir.path().join(name);
        std::fs::write(&source, bytes).expect("a tar");
        assert_eq!(digest(&ingest(&source, &dir.path().join(format!("{name}-out")), "")), expected, "{name}");
    }
}

/// Writes a table of images as Hugging Face has it.
fn write_table(images: &[Named], names: &[&str], file: &Path) {
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(images.iter().map(|(_, _, bytes)| bytes)));
    let paths: ArrayRef = Arc::new(StringArray::from_iter_values(images.iter().map(|(_, name, _)| name)));
    let fields = vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)];
    let image: ArrayRef = Arc::new(StructArray::new(fields.into(), vec![bytes, paths], None));
    let labels = images.iter().map(|(class, ..)| *class as i64);
    let mut schema = Schema::new(vec![
        Field::new("image", image.data_type().clone(), true),
        Field::new("label", DataType::Int64, true),
    ]);
    let entry = serde_json::json!({"info": {"features": {
        "image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}});
    schema.metadata.insert("huggingface", entry.to_string());
    let batch =
        RecordBatch::try_new(Arc::new(schema), vec![image, Arc::new(Int64Array::from_iter_values(labels))]);
    write_parquet(&batch.expect("a batch"), file);
}

#[test]
fn hugging_face_tables_give_the_dataset_of_the_folder() {
    let dir = scratch();
    let expected = expected(dir.path());
    let data = dir.path().join("hub/data");
    std::fs::create_dir_all(&data).expect("a folder");
    let names: Vec<&str> = CLASSES.iter().map(|(wnid, _)| *wnid).collect();
    let (mut train, val) = (training(), validation());
    train.reverse();
    let (first, second) = train.split_at(5);
    let files =
        [("train-00000-of-00002", first), ("train-00001-of-00002", second), ("val-00000-of-00001", &val)];
    for (name, images) in files {
        write_table(images, &names, &data.join(format!("{name}.parquet")));
    }
    let report = ingest(&dir.path().join("hub"), &dir.path().join("out"), "");
    assert_eq!((&report["format"], digest(&report)), (&"parquet".into(), expected.clone()));
    // Our own shards are such tables too.
    let again = ingest(&dir.path().join("out/train"), &dir.path().join("again"), "--split train");
    assert_eq!(digest(&again), expected_training(dir.path()));
}

#[test]
fn lists_give_the_dataset_of_the_folder_and_may_have_no_labels() {
    let dir = scratch();
    let expected = expected_training(dir.path());
    let all = training();
    let path = |class: usize, name: &str| format!("images/{}/{name}", wnid(class));
    let csv: String =
        all.iter().map(|(class, name, _)| format!("{},{}\n", wnid(*class), path(*class, name))).collect();
    let absolute = dir.path().join("images");
    let jsonl: String = all
        .iter()
        .rev()
        .map(|(class, name, _)| {
            let path = absolute.join(wnid(*class)).join(name);
            serde_json::json!({"file_name": path, "label": wnid(*class)}).to_string() + "\n"
        })
        .collect();
    for (name, text) in [("list.csv", format!("label,path\n{csv}")), ("list.jsonl", jsonl)] {
        std::fs::write(dir.path().join(name), text).expect("a list");
        let report = ingest(&dir.path().join(name), &dir.path().join(format!("{name}-out")), "");
        assert_eq!((&report["format"], digest(&report)), (&"list".into(), expected.clone()), "{name}");
    }
    let unlabelled: String = all.iter().map(|(class, name, _)| path(*class, name) + "\n").collect();
    std::fs::write(dir.path().join("plain.csv"), format!("path\n{unlabelled}")).expect("a list");
    let out = dir.path().join("unlabelled");
    ingest(&dir.path().join("plain.csv"), &out, "");
    let summary = instdisc("inspect --verify").arg("", &out).json();
    assert_eq!(summary["splits"]["train"]["labelled"], 0);
    assert_eq!((&summary["splits"]["train"]["instances"], &summary["classes"]), (&12.into(), &0.into()));
    // The same without a list.
    let flat = ingest(&dir.path().join("images"), &dir.path().join("flat"), "--unlabelled");
    assert_eq!(flat["dataset_digest"], summary["dataset_digest"]);
}

#[test]
fn cifar_archives_become_lossless_images_in_their_own_class_order() {
    let dir = scratch();
    let pixels = |seed: u8| (0..3072_u32).map(move |at| (at as u8).wrapping_mul(seed).wrapping_add(seed));
    let record = |label: u8, seed: u8| std::iter::once(label).chain(pixels(seed)).collect::<Vec<u8>>();
    let train: Vec<u8> =
        [(1, 3), (0, 5), (1, 7)].iter().flat_map(|&(label, seed)| record(label, seed)).collect();
    let test = record(0, 11);
    // The names are not in the order of the alphabet.
    let names = b"zebra\nant\n\n";
    let archive = gzip(&tar([
        ("cifar-10-batches-bin/data_batch_1.bin".to_owned(), train.as_slice()),
        ("cifar-10-batches-bin/test_batch.bin".to_owned(), test.as_slice()),
        ("cifar-10-batches-bin/batches.meta.txt".to_owned(), names.as_slice()),
    ]));
    let source = dir.path().join("cifar-10-binary.tar.gz");
    std::fs::write(&source, archive).expect("an archive");
    let out = dir.path().join("out");
    let report = ingest(&source, &out, "");
    assert_eq!((&report["format"], &report["splits"]["train"]["png rgb"]), (&"cifar".into(), &Value::Null));
    assert_eq!(report["splits"]["train"]["kinds"]["png rgb"], 3);
    let location = location(&out);
    let manifest = instdisc::dataset::Manifest::read(&location).expect("a manifest");
    assert_eq!(manifest.classes, ["zebra", "ant"]);
    let split = &manifest.splits["train"];
    let reader = instdisc::dataset::ShardReader::open(&location, &split.shards[0], 2, 3).expect("a shard");
    let mut rows = reader.read_row_group(0).expect("rows");
    rows.sort_by_key(|row| row.id);
    // Class 0 first, then class 1 in the order of the archive.
    for (row, (label, seed)) in rows.iter().zip([(0, 5), (1, 3), (1, 7)]) {
        let image = instdisc::image::decode(&row.bytes, &Default::default()).expect("a PNG");
        let planes: Vec<u8> = pixels(seed).collect();
        let rgb: Vec<u8> =
            (0..1024).flat_map(|at| [planes[at], planes[1024 + at], planes[2048 + at]]).collect();
        assert_eq!((image.rgb, row.label.map(|class| class.index())), (rgb, Some(label)));
    }
    let fine = [9_u8, 1].into_iter().chain(pixels(13)).collect::<Vec<u8>>();
    let archive = tar([
        ("cifar-100-binary/train.bin".to_owned(), fine.as_slice()),
        ("cifar-100-binary/fine_label_names.txt".to_owned(), b"apple\nbear\n".as_slice()),
    ]);
    std::fs::write(dir.path().join("hundred.tar"), archive).expect("an archive");
    let report = ingest(&dir.path().join("hundred.tar"), &dir.path().join("hundred"), "");
    assert_eq!((&report["format"], &report["classes"]), (&"cifar".into(), &2.into()));
}

#[test]
fn appended_images_get_new_ids_and_old_shards_stay() {
    let dir = scratch();
    let all = training();
    folder(&dir.path().join("first"), &all[..8]);
    folder(&dir.path().join("second"), &all[8..]);
    let out = dir.path().join("out");
    ingest(&dir.path().join("first"), &out, "");
    let before = contents(&out);
    let append = |more: &str| support::ingest(&format!("--append {more}"), dir.path().join("second"), &out);
    let report = append("").json();
    assert_eq!(report["splits"]["train"]["instances"], 4);
    let after = contents(&out);
    for (path, bytes) in
        before.iter().filter(|(path, _)| path.ends_with(".parquet") && path.starts_with("train"))
    {
        assert!(after.contains(&(path.clone(), bytes.clone())), "{path:?}");
    }
    let summary = instdisc("inspect --verify").arg("", &out).json();
    assert_eq!((&summary["splits"]["train"]["instances"], &summary["classes"]), (&12.into(), &3.into()));
    // The third class comes last by name too, so the result is that of one ingest.
    assert_eq!(summary["dataset_digest"].as_str(), Some(expected_training(dir.path()).as_str()));
    assert_eq!(append("").json()["already_done"], true);
    assert_eq!(contents(&out), after);
    assert!(append("--split val").fails(65).contains("no split `val` to append to"));
}

#[test]
fn leaks_are_found_and_can_be_left_out() {
    let (dir, outside) = (scratch(), scratch());
    let (train, mut val) = (training(), validation());
    folder(&dir.path().join("train"), &train);
    // A byte-identical copy of training image 2, and training image 5 re-encoded.
    val[0].2 = train[2].2.clone();
    let image = instdisc::image::decode(&train[5].2, &Default::default()).expect("an image");
    val[1].2 = instdisc::image::encode_jpeg(&image, 90).expect("encoded");
    folder(&dir.path().join("val"), &val);
    let report = ingest(dir.path(), &outside.path().join("out"), "");
    let found = |report: &Value| {
        [&report["duplicates"]["leaks"], &report["splits"]["train"]["instances"]].map(|count| count.as_u64())
    };
    assert_eq!(found(&report), [Some(2), Some(12)]);
    let dropped = ingest(dir.path(), &outside.path().join("dropped"), "--drop-leaks");
    assert_eq!(found(&dropped), [Some(0), Some(10)]);
    assert_eq!(dropped["splits"]["train"]["dropped_leaks"], 2);
    let rejects =
        std::fs::read_to_string(outside.path().join("dropped/rejects/train.jsonl")).expect("rejects");
    assert!(rejects.contains("a near-duplicate of val n00000010/ILSVRC2012_val_00000001.JPEG"), "{rejects}");
}

#[test]
fn a_source_of_another_form_than_asked_for_is_refused() {
    let dir = scratch();
    folder(&dir.path().join("folder"), &training());
    let refused = |more: &str, source: &str| {
        support::ingest(more, dir.path().join(source), dir.path().join("out")).fails(65)
    };
    let error = refused("--format parquet", "folder");
    assert!(
        error.contains("`--format parquet` was asked for, but the source is a folder of files"),
        "{error}"
    );
    std::fs::write(dir.path().join("text"), b"no tar").expect("a file");
    let error = refused("", "text");
    assert!(error.contains("neither a folder, a tar, a Parquet file nor a list"), "{error}");
    assert!(!dir.path().join("out").exists());
}
