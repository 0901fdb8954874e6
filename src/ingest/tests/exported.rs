//! Tests of exports: every row gets a file, whatever its path, and an ingest of the files gives the same labels and
//! names of classes.

use turbojpeg::Colorspace;

use super::*;
use crate::dataset::tests::publish;
use crate::ids::InstanceId;
use crate::storage::Digest;

/// Makes a dataset with rows of these paths, each with different bytes.
fn dataset(at: &Fixture, paths: &[String]) -> Location {
    let dataset = location(&at.dest);
    let row = |(id, path): (u32, &String)| Row {
        id: InstanceId(id),
        label: None,
        bytes: jpeg(id as u8).into(),
        path: path.clone(),
        width: 20,
        height: 16,
        entry_points: None,
    };
    publish(&dataset, &[(0..).zip(paths).map(row).collect()], 2, &["a"]);
    dataset
}

/// Returns the options that export a dataset to a folder.
fn export_to(dataset: &Location, dest: &Path) -> ExportOptions {
    ExportOptions { dataset: dataset.clone(), dest: location(dest), split: None }
}

/// Returns the names of the exported files by id, and how many differ from the rows' paths.
fn exported(paths: &[&str]) -> Result<(Vec<String>, u64), IngestError> {
    let at = fixture();
    let paths: Vec<String> = paths.iter().map(|&path| path.to_owned()).collect();
    let target = at.source.join("exported");
    let job = export_to(&dataset(&at, &paths), &target);
    let report = export(&job, &Quiet)?;
    assert_eq!(export(&job, &Quiet)?, report, "the same export again changes nothing");
    let files = walk(&target.join("train"));
    assert_eq!(files.len(), paths.len(), "a file for each row");
    let name = |id: usize| {
        let bytes = jpeg(id as u8);
        files.iter().find(|(_, found)| *found == bytes).expect("its file").0.clone()
    };
    Ok(((0..paths.len()).map(name).collect(), report.splits["train"].renamed))
}

/// Lists all files with their contents, unlike a store's list.
fn walk(root: &Path) -> Vec<(String, Vec<u8>)> {
    let files = walkdir::WalkDir::new(root).into_iter().filter_map(Result::ok);
    let files = files.filter(|entry| entry.file_type().is_file());
    let name = |path: &Path| path.strip_prefix(root).expect("below").to_str().expect("text").to_owned();
    files.map(|entry| (name(entry.path()), fs::read(entry.path()).expect("a file"))).collect()
}

#[test]
fn rows_with_one_path_get_files_of_their_own() {
    let paths = ["a/1.jpg", "a/1.jpg", "./a//1.jpg", "b/1.jpg", "noend", "noend"];
    let (names, renamed) = exported(&paths).expect("exported");
    assert_eq!(names, ["a/1.jpg", "a/1-1.jpg", "a/1-2.jpg", "b/1.jpg", "noend.jpg", "noend-5.jpg"]);
    assert_eq!(renamed, 4);
}

#[test]
fn a_name_that_another_row_has_is_not_given_twice() {
    let (names, _) = exported(&["a/1.jpg", "a/1.jpg", "a/1-1.jpg", "a/1-1-1.jpg"]).expect("exported");
    assert_eq!(names, ["a/1.jpg", "a/1-1-1-1.jpg", "a/1-1.jpg", "a/1-1-1.jpg"]);
}

#[test]
fn a_path_that_is_a_folder_of_another_row_gets_another_name() {
    let (names, _) = exported(&["x.jpg", "x.jpg/y.jpg", "x.jpg/y.jpg/z.jpg"]).expect("exported");
    assert_eq!(names, ["x-0.jpg", "x.jpg/y-1.jpg", "x.jpg/y.jpg/z.jpg"]);
}

#[test]
fn names_that_file_systems_do_not_take_are_cut_or_cleaned() {
    let long = format!("a/{}.jpg", "é".repeat(150));
    let folder = format!("{}/1.jpg", "b".repeat(300));
    let paths = ["a/line\nbreak\0.jpg", "a/shot#12", "a/shot#x", "a\\b.jpg", &long, &folder];
    let (names, renamed) = exported(&paths).expect("exported");
    assert_eq!(names[..4], ["a/line%0Abreak%00.jpg", "a/shot%2312.jpg", "a/shot#x.jpg", "a\\b.jpg"]);
    assert_eq!(names[4], format!("a/{}-4.jpg", "é".repeat(122)));
    assert_eq!(names[5], format!("{}/1-5.jpg", "b".repeat(255)));
    assert_eq!(renamed, 5);
}

#[test]
fn a_path_that_leads_outside_is_an_error_before_the_first_file() {
    for bad in ["../x.jpg", "../../x.jpg", "a/../../x.jpg", "a\\..\\..\\x.jpg", "/", ""] {
        let at = fixture();
        let dataset = dataset(&at, &["a/1.jpg".into(), bad.into()]);
        let error =
            export(&export_to(&dataset, &at.source.join("a/b")), &Quiet).expect_err("it leads outside");
        assert!(error.to_string().contains("leads outside of the split"), "{bad}: {error}");
        assert_eq!(walk(&at.source), [], "{bad}");
    }
}

#[test]
fn an_export_into_the_dataset_is_refused() {
    let at = fixture();
    let dataset = dataset(&at, &["a/1.jpg".into()]);
    let before = walk(&at.dest);
    for dest in [at.dest.clone(), at.dest.join("images")] {
        let error = export(&export_to(&dataset, &dest), &Quiet).expect_err("it overlaps").to_string();
        assert!(error.contains("it overlaps the dataset"), "{error}");
    }
    assert_eq!(walk(&at.dest), before);
}

/// Makes JPEGs of every kind and a PNG, with their names.
fn every_kind() -> Vec<(&'static str, Vec<u8>)> {
    let wide = detailed(203, 61);
    let mut images = vec![
        ("0-wide.jpg", encode_jpeg(&wide, 85).expect("encoded")),
        ("1-progressive.jpg", progressive()),
        ("2.png", encode_png(&detailed(50, 50)).expect("encoded")),
    ];
    let rgb = detailed(16, 16).rgb;
    for (name, subsampling) in
        [("3-full.jpg", Subsamp::None), ("4-half.jpg", Subsamp::Sub2x1), ("5-grey.jpg", Subsamp::Gray)]
    {
        let set = |compressor: &mut Compressor| {
            compressor.set_subsamp(subsampling).expect("subsampling");
        };
        images.push((name, compressed(&rgb, PixelFormat::RGB, set)));
    }
    let inks = compressed(&[9, 8, 7, 6].repeat(256), PixelFormat::CMYK, |compressor| {
        compressor.set_colorspace(Colorspace::CMYK).expect("a colour space");
    });
    images.push(("6-inks.jpg", inks));
    images
}

#[test]
fn an_export_gives_the_files_back_that_were_ingested() {
    let at = fixture();
    folder(&at.source.join("train"));
    for (name, bytes) in every_kind() {
        fs::write(at.source.join("train/dog breed").join(name), bytes).expect("a file");
    }
    at.ingest();
    let target = at.dest.with_file_name("exported");
    let job = export_to(&location(&at.dest), &target);
    for _ in 0..2 {
        let split = export(&job, &Quiet).expect("exported").splits["train"];
        assert_eq!(split, ExportedSplit { images: 19, not_original: 0, renamed: 0 });
        assert_eq!(files(&target), files(&at.source));
    }
    fs::write(target.join("train/cat/0.jpg"), b"another").expect("a file");
    let error = export(&job, &Quiet).expect_err("a file is in the way");
    assert!(error.to_string().contains("train/cat/0.jpg: already exists"), "{error}");
    let missing = ExportOptions { split: Some("test".into()), ..job };
    assert_eq!(export(&missing, &Quiet).expect_err("no split").failure(), crate::failure::Failure::Data);
}

/// Returns each image with its split and the name of its class, sorted.
fn labels(dataset: &Location) -> Vec<(String, Option<String>, Digest)> {
    let manifest = Manifest::read(dataset).expect("a manifest");
    let mut found = Vec::new();
    for (name, split) in &manifest.splits {
        for row in split.read_places(dataset).expect("an index") {
            let class = row.label.map(|label| manifest.classes[label.index()].clone());
            found.push((name.clone(), class, row.image));
        }
    }
    found.sort();
    found
}

/// Exports a dataset and ingests the files; returns their names.
fn round_trip(at: &Fixture) -> Vec<String> {
    let (exported, again) = (at.dest.with_file_name("exported"), at.dest.with_file_name("again"));
    export(&export_to(&location(&at.dest), &exported), &Quiet).expect("exported");
    ingest(&options(&exported, &again), &Quiet).expect("ingested again");
    assert_eq!(labels(&location(&again)), labels(&location(&at.dest)));
    files(&exported).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn an_exported_folder_is_the_folder_that_was_ingested() {
    let at = fixture();
    folder(&at.source.join("train"));
    folder(&at.source.join("val"));
    at.ingest();
    let names: Vec<String> = files(&at.source).into_iter().map(|(name, _)| name).collect();
    assert_eq!(round_trip(&at), names);
}

#[test]
fn images_of_a_list_are_exported_below_their_classes() {
    let at = fixture();
    for (number, name) in (1..).zip(["a/1.jpg", "b/1.jpg", "b/2.jpg", "3.jpg"]) {
        write(at.source.join("images").join(name), jpeg(number));
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
    // The class list has another order than the names.
    let images = [(1, jpeg(1)), (0, png()), (1, jpeg(3)), (2, jpeg(4))];
    fs::write(&table, parquet_table(&images, Some(&["zebra", "a/b", "cow"]))).expect("a table");
    ingest(&options(&table, &at.dest), &Quiet).expect("ingested");
    let paths: Vec<String> = at.rows().into_iter().map(|row| row.path).collect();
    let expected = [
        "zebra/train-00000001.png",
        "a_b/train-00000000.jpg",
        "a_b/train-00000002.jpg",
        "cow/train-00000003.jpg",
    ];
    assert_eq!(paths, expected);
    // Only a name that file systems do not take changes.
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
    let (exported, again) = (at.dest.with_file_name("exported"), at.dest.with_file_name("again"));
    export(&export_to(&location(&at.dest), &exported), &Quiet).expect("exported");
    ingest(&options(&exported, &again), &Quiet).expect("ingested again");
    let manifest = Manifest::read(&location(&again)).expect("a manifest");
    assert_eq!(manifest.classes, ["_git", "a_b", "a_b-1", "c#1"]);
    assert_eq!(manifest.splits["train"].instances, 4);
}
