//! A dataset with a tile index, from `ingest` to the batches that training sees.

use std::path::Path;
use std::sync::Arc;

use instdisc::augment::Recipe;
use instdisc::dataset::Manifest;
use instdisc::loader::{Batch, DatasetSource, Loader, LoaderOptions};
use instdisc::storage::Location;

use super::support::{contents, instdisc, scratch};

/// The batches of two epochs.
fn batches(dataset: &Path) -> Vec<Batch> {
    let dataset = Location::from_path(dataset).expect("a location");
    let manifest = Manifest::read(&dataset).expect("a manifest");
    let source = DatasetSource::open(&dataset, &manifest, "train", None).expect("opened");
    let options =
        LoaderOptions { batch_size: 16, seed: 3, epochs: 2, threads: 2, ..LoaderOptions::default() };
    let loader = Loader::start(Arc::new(source), Recipe::imagenet(96), options).expect("started");
    loader.collect::<Result<_, _>>().expect("batches")
}

#[test]
fn a_tile_index_changes_no_pixel_of_a_training_batch_and_can_be_taken_out() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name);
    instdisc("synth --train-per-class 4 --val-per-class 1 --image-size 200")
        .arg("--dest", path("images"))
        .ok();
    instdisc("ingest --row-group 8").arg("--source", path("images")).arg("--dest", path("plain")).ok();
    let report = instdisc("ingest --row-group 8 --tile-index")
        .arg("--source", path("images"))
        .arg("--dest", path("tiled"))
        .json();
    assert_eq!(report["splits"]["train"]["tiled"], 40);

    let (plain, tiled) = (batches(&path("plain")), batches(&path("tiled")));
    assert_eq!(plain.len(), 6);
    assert!(plain == tiled, "the batches differ");

    instdisc("export images").arg("--dataset", path("tiled")).arg("--dest", path("exported")).ok();
    let files = |name: &str| {
        let all = contents(&path(name)).into_iter();
        all.filter(|(path, _)| path.extension().is_some_and(|end| end == "jpg")).collect::<Vec<_>>()
    };
    assert_eq!(files("exported").len(), 50);
    assert!(files("exported") == files("images"), "the files differ");
}
