//! Sources and datasets in an object store.

use super::*;
use crate::storage::PublishMode;

/// Copies a folder of this machine into a store.
fn upload(from: &Path, to: &Location) {
    for (name, bytes) in files(from) {
        to.join(&name).publish(bytes, PublishMode::Create).expect("uploaded");
    }
}

#[test]
fn a_folder_and_a_tar_in_a_store_give_the_dataset_of_the_local_folder() {
    let at = fixture();
    folder(&at.source);
    let local = ingest(&options(&at.source, &at.dest), &Quiet).expect("ingested");
    let store = Location::in_memory();
    upload(&at.source, &store.join("images"));
    let tar = at.dest.with_extension("tar");
    tar_of(&at.source, &tar);
    let packed = store.join("packed/images.tar");
    packed.publish(fs::read(&tar).expect("a tar"), PublishMode::Create).expect("uploaded");
    for (source, dest) in [(store.join("images"), "from-folder"), (packed, "from-tar")] {
        let remote =
            IngestOptions { sources: vec![source], dest: store.join(dest), ..options(&at.source, &at.dest) };
        let report = ingest(&remote, &Quiet).expect("ingested");
        assert_eq!(report.dataset_digest, local.dataset_digest, "{dest}");
        let manifest = Manifest::read(&remote.dest).expect("a manifest");
        verify(&remote.dest, &manifest, &Quiet).expect("whole");
        let names: Vec<String> =
            remote.dest.list().expect("a list").into_iter().map(|entry| entry.name).collect();
        let expected: Vec<String> = files(&at.dest).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, expected, "nothing else is left");
        assert!(ingest(&remote, &Quiet).expect("again").already_done);
    }
}

#[test]
fn a_place_where_nothing_is_is_said_so() {
    let at = fixture();
    let store = Location::in_memory();
    let nothing = IngestOptions { sources: vec![store.join("nothing")], ..options(&at.source, &at.dest) };
    let error = ingest(&nothing, &Quiet).expect_err("nothing there");
    // Another try would find no more.
    assert_eq!(error.failure(), crate::failure::Failure::Data);
    assert!(error.to_string().contains("memory://test/nothing: no such source"), "{error}");
}
