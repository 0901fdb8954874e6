use super::*;

fn published(root: &Location, step: u64) -> Location {
    let folder = root.join("checkpoints").join(&checkpoint_name(step));
    let entry = publish_file(&folder, MODEL, vec![1, 2, 3]).expect("a file");
    let trained_on =
        TrainedOn { dataset_digest: "d".into(), split: "train".into(), split_digest: "s".into() };
    CheckpointManifest::new(step, 0, trained_on, vec![entry]).publish(&folder).expect("a manifest");
    folder
}

fn root() -> (tempfile::TempDir, Location) {
    let dir = tempfile::tempdir().expect("a folder");
    let root = Location::from_path(dir.path()).expect("a location");
    (dir, root)
}

#[test]
fn checkpoints_are_listed_by_step_and_only_when_published() {
    let (_dir, root) = root();
    for step in [20, 3, 100_000_000] {
        published(&root, step);
    }
    publish_file(&root.join("checkpoints/step-00000007"), MODEL, vec![1]).expect("a lone file");
    let steps: Vec<u64> =
        list_checkpoints(&root).expect("a list").into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [3, 20, 100_000_000]);
}

#[test]
fn a_changed_byte_is_found() {
    let (_dir, root) = root();
    let folder = published(&root, 1);
    folder.join(MODEL).publish(vec![1, 2, 4], PublishMode::Overwrite).expect("a change");
    let checkpoint = Checkpoint::open(&folder).expect("same size");
    assert!(matches!(checkpoint.read(MODEL), Err(CheckpointError::Damaged { .. })));
}

#[test]
fn a_cut_or_missing_file_is_found_at_once() {
    let (_dir, root) = root();
    let folder = published(&root, 1);
    folder.join(MODEL).publish(vec![1, 2], PublishMode::Overwrite).expect("a cut");
    assert!(matches!(Checkpoint::open(&folder), Err(CheckpointError::Damaged { .. })));
    folder.join(MODEL).delete().expect("deleted");
    assert!(matches!(Checkpoint::open(&folder), Err(CheckpointError::Damaged { .. })));
}

#[test]
fn a_folder_without_manifest_is_no_checkpoint() {
    let (_dir, root) = root();
    let folder = published(&root, 1);
    remove_checkpoint(&folder).expect("removed");
    assert!(matches!(Checkpoint::open(&folder), Err(CheckpointError::NotThere { .. })));
    assert!(folder.list().expect("a list").is_empty());
}

#[test]
fn the_state_keeps_every_bit_of_the_partition() {
    let state = TrainState {
        cursor: Cursor { step: 7, epoch: 1, step_in_epoch: 2 },
        ln_partition: Some(14.860_123_456_789_012),
        optimizer_steps: Some(6),
        skipped_steps: 1,
        loss_scale: serde_json::Value::Null,
        layout: Some("a digest".into()),
        instances: 10,
        encoder: serde_json::json!({"arch": "resnet18"}),
        config: serde_json::json!({"lr": 0.1}),
    };
    let text = serde_json::to_string(&state).expect("JSON");
    let read: TrainState = serde_json::from_str(&text).expect("our own JSON");
    assert_eq!(read.ln_partition.map(f64::to_bits), state.ln_partition.map(f64::to_bits));
    assert_eq!(read, state);
}

#[test]
fn unfinished_checkpoints_are_listed_and_removed_with_what_is_half_written() {
    let (dir, root) = root();
    published(&root, 3);
    publish_file(&root.join("checkpoints/step-00000007"), MODEL, vec![1]).expect("a lone file");
    // What a killed writer leaves of a file: the store's listing passes it over.
    let staged = dir.path().join("checkpoints/step-00000009");
    std::fs::create_dir_all(&staged).expect("a folder");
    std::fs::hard_link(dir.path().join("checkpoints/step-00000003").join(MODEL), staged.join("bank.arrow#1"))
        .expect("a staged file");
    let found = list_unpublished(&root).expect("a list");
    let names: Vec<_> = found.iter().map(Location::file_name).collect();
    assert_eq!(names, ["step-00000007", "step-00000009"]);
    for folder in &found {
        remove_checkpoint(folder).expect("removed");
    }
    assert!(!staged.exists() && list_unpublished(&root).expect("a list").is_empty());
    assert_eq!(list_checkpoints(&root).expect("a list").len(), 1);
}
