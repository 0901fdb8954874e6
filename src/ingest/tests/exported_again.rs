//! What is exported can be ingested again, with the same labels and names of classes.

use super::support::parquet_table;
use super::*;
use crate::storage::Digest;

/// Each image with its split and the name of its class, sorted.
fn labels(dataset: &Location) -> Vec<(String, Option<String>, Digest)> {
    let manifest = Manifest::read(dataset).expect("a manifest");
    let mut found = Vec::new();
    for (name, split) in &manifest.splits {
        for part in &split.ingest {
            let rows = crate::dataset::read_index(dataset, &part.index).expect("an index");
            found.extend(rows.into_iter().map(|row| {
                let class = row.label.map(|label| manifest.classes[label.index()].clone());
                (name.clone(), class, row.image)
            }));
        }
    }
    found.sort_by(|a, b| (&a.0, &a.1, a.2.0).cmp(&(&b.0, &b.1, b.2.0)));
    found
}

/// Exports a dataset and ingests the files; gives their names.
fn round_trip(at: &Fixture) -> Vec<String> {
    let (exported, again) = (at.dest.with_file_name("exported"), at.dest.with_file_name("again"));
    let job = ExportOptions { dataset: location(&at.dest), dest: location(&exported), split: None };
    export(&job, &Quiet).expect("exported");
    ingest(&options(&exported, &again), &Quiet).expect("ingested again");
    assert_eq!(labels(&location(&again)), labels(&location(&at.dest)));
    files(&exported).into_iter().map(|(name, _)| name).collect()
}

fn png() -> Vec<u8> {
    encode_png(&DecodedImage { width: 2, height: 2, rgb: vec![9; 12] }).expect("encoded")
}

#[test]
fn an_exported_folder_is_the_folder_that_was_ingested() {
    let at = fixture();
    folder(&at.source.join("train"));
    folder(&at.source.join("val"));
    ingest(&options(&at.source, &at.dest), &Quiet).expect("ingested");
    let names: Vec<String> = files(&at.source).into_iter().map(|(name, _)| name).collect();
    assert_eq!(round_trip(&at), names);
}

#[test]
fn images_of_a_list_are_exported_below_their_classes() {
    let at = fixture();
    for (number, name) in ["a/1.jpg", "b/1.jpg", "b/2.jpg", "3.jpg"].iter().enumerate() {
        let file = at.source.join("images").join(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        fs::write(file, jpeg(number as u8 + 1)).expect("a file");
    }
    let rows = "images/a/1.jpg,cat\nimages/b/1.jpg,cat\nimages/b/2.jpg,dog\nimages/3.jpg,dog\n";
    let list = at.source.join("list.csv");
    fs::write(&list, format!("path,label\n{rows}")).expect("a list");
    ingest(&options(&list, &at.dest), &Quiet).expect("ingested");
    assert_eq!(
        round_trip(&at),
        ["train/cat/1-1.jpg", "train/cat/1.jpg", "train/dog/2.jpg", "train/dog/3.jpg"]
    );
}

#[test]
fn rows_of_a_parquet_table_are_exported_below_the_names_of_their_classes_with_endings() {
    let at = fixture();
    let table = at.source.join("train.parquet");
    // The order of the class list is not that of the names.
    let images = [(1, jpeg(1)), (0, png()), (1, jpeg(3)), (2, jpeg(4))];
    fs::write(&table, parquet_table(&images, Some(&["zebra", "a/b", "cow"]))).expect("a table");
    ingest(&options(&table, &at.dest), &Quiet).expect("ingested");
    let paths: Vec<String> = {
        let dataset = location(&at.dest);
        rows(&dataset, &Manifest::read(&dataset).expect("a manifest"))
            .into_iter()
            .map(|row| row.path)
            .collect()
    };
    let expected = [
        "zebra/train-00000001.png",
        "a_b/train-00000000.jpg",
        "a_b/train-00000002.jpg",
        "cow/train-00000003.jpg",
    ];
    assert_eq!(paths, expected);
    // A name that file systems do not take is the one that changes.
    fs::remove_dir_all(&at.dest).expect("removed");
    fs::write(&table, parquet_table(&images, Some(&["zebra", "ant", "cow"]))).expect("a table");
    ingest(&options(&table, &at.dest), &Quiet).expect("ingested");
    let mut expected = expected.map(|path| format!("train/{}", path.replace("a_b", "ant")));
    expected.sort();
    assert_eq!(round_trip(&at), expected);
}

#[test]
fn samples_of_a_webdataset_are_exported_below_their_classes() {
    for (labels_text, classes) in [(["ant", "bee"], None), (["1", "0"], Some("ant\nbee\n"))] {
        let at = fixture();
        let tar = at.source.join("train-00.tar");
        let mut builder = tar::Builder::new(fs::File::create(&tar).expect("a file"));
        for (number, label) in labels_text.iter().enumerate() {
            for (ending, bytes) in [("jpg", jpeg(number as u8 + 1)), ("cls", label.as_bytes().to_vec())] {
                let mut header = tar::Header::new_ustar();
                header.set_size(bytes.len() as u64);
                header.set_mode(0o644);
                builder.append_data(&mut header, format!("{number:04}.{ending}"), &*bytes).expect("packed");
            }
        }
        builder.into_inner().expect("finished");
        let mut options = options(&tar, &at.dest);
        if let Some(classes) = classes {
            let file = at.source.join("classes.txt");
            fs::write(&file, classes).expect("a file");
            options.classes = Some(location(&file));
        }
        ingest(&options, &Quiet).expect("ingested");
        let names = round_trip(&at);
        let [first, second] = if classes.is_some() { ["bee", "ant"] } else { ["ant", "bee"] };
        let mut expected = [format!("train/{first}/0000.jpg"), format!("train/{second}/0001.jpg")];
        expected.sort();
        assert_eq!(names, expected);
    }
}

#[test]
fn classes_whose_folders_would_be_one_or_hidden_get_folders_of_their_own() {
    let at = fixture();
    let table = at.source.join("train.parquet");
    let images = [(0, jpeg(1)), (1, jpeg(2)), (2, jpeg(3)), (3, jpeg(4))];
    fs::write(&table, parquet_table(&images, Some(&["a/b", "a_b", ".git", "c#1"]))).expect("a table");
    ingest(&options(&table, &at.dest), &Quiet).expect("ingested");
    let exported = at.dest.with_file_name("exported");
    let job = ExportOptions { dataset: location(&at.dest), dest: location(&exported), split: None };
    export(&job, &Quiet).expect("exported");
    let again = at.dest.with_file_name("again");
    ingest(&options(&exported, &again), &Quiet).expect("ingested again");
    let manifest = Manifest::read(&location(&again)).expect("a manifest");
    assert_eq!(manifest.classes, ["_git", "a_b", "a_b-1", "c#1"]);
    assert_eq!(manifest.splits["train"].instances, 4);
}
