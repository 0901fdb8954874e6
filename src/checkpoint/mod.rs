//! Checkpoints as files: what one holds, how it is published, which is the newest.
//!
//! A checkpoint is a folder `step-00005005` below `<run>/checkpoints`. Its `checkpoint.json` is written
//! last and names every other file with size and digest; a folder without it does not exist for a reader.
//! This module knows bytes and JSON, no tensors.
//!
//! Invariant: a checkpoint that [`Checkpoint::open`] returns was published whole.

mod run;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use run::{
    checkpoint_at, checkpoint_name, finished_step, list_checkpoints, list_unpublished, mark_finished,
    newest_state, newest_that, remove_checkpoint, run_of, unmark_finished,
};

use crate::failure::Failure;
use crate::run_config::TrainConfig;
use crate::storage::{Digest, Location, PublishMode, StorageError};

/// Weights and batch-norm statistics, under torchvision's names.
pub const MODEL: &str = "model.safetensors";
/// The optimiser's buffers.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// Of a run with a probe, its weights and momentum.
pub const PROBE: &str = "probe.safetensors";
/// The memory bank, a feature table.
pub const BANK: &str = "bank.arrow";
/// Everything else a run depends on; see [`TrainState`].
pub const STATE: &str = "state.json";
/// The list of the other files, written last.
pub const MANIFEST: &str = "checkpoint.json";

/// The version that this code writes and reads.
const FORMAT_VERSION: u32 = 1;

/// The file of the bank rows that one of `ranks` processes owns, named in the order of the rows: a feature table too.
pub fn bank_part(rank: usize, ranks: usize) -> String {
    if ranks == 1 { BANK.to_owned() } else { format!("bank-{rank:05}-of-{ranks:05}.arrow") }
}

/// The process and the number of processes of a file that [`bank_part`] named for one of several.
pub fn part_of_bank(name: &str) -> Option<(usize, usize)> {
    let (rank, ranks) = name.strip_prefix("bank-")?.strip_suffix(".arrow")?.split_once("-of-")?;
    let part = (rank.parse().ok()?, ranks.parse().ok()?);
    (part.1 > 1 && bank_part(part.0, part.1) == name).then_some(part)
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name within the folder.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The blake3 digest of its contents.
    pub digest: Digest,
}

/// What a run was trained on. A run is resumed and a checkpoint is used where the split is the same one;
/// other splits may have been added to the dataset since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainedOn {
    /// The digest of the dataset.
    pub dataset_digest: String,
    /// The split.
    pub split: String,
    /// The digest of the split.
    pub split_digest: String,
}

/// The contents of `checkpoint.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointManifest {
    /// The format's version.
    pub format_version: u32,
    /// Steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: u64,
    /// What the run was trained on.
    #[serde(flatten)]
    pub trained_on: TrainedOn,
    /// The other files.
    pub files: Vec<FileEntry>,
}

impl CheckpointManifest {
    /// A manifest of this version.
    pub fn new(step: u64, epoch: u64, trained_on: TrainedOn, files: Vec<FileEntry>) -> Self {
        Self { format_version: FORMAT_VERSION, step, epoch, trained_on, files }
    }

    /// Publishes the manifest, and with it the checkpoint.
    ///
    /// # Errors
    /// If the store fails.
    pub fn publish(&self, folder: &Location) -> Result<(), CheckpointError> {
        let text = serde_json::to_string_pretty(self).expect("a manifest is plain data");
        folder.join(MANIFEST).publish(text + "\n", PublishMode::Overwrite)?;
        Ok(())
    }
}

/// Publishes one of a checkpoint's files.
///
/// # Errors
/// If the store fails.
pub fn publish_file(folder: &Location, name: &str, contents: Vec<u8>) -> Result<FileEntry, CheckpointError> {
    let entry =
        FileEntry { name: name.to_owned(), bytes: contents.len() as u64, digest: Digest::of(&contents) };
    folder.join(name).publish(contents, PublishMode::Overwrite)?;
    Ok(entry)
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Steps done since the start of the run.
    pub step: u64,
    /// The epoch that is under way, from 0.
    pub epoch: u64,
    /// Steps done in this epoch.
    pub step_in_epoch: u64,
}

/// The contents of `state.json`.
///
/// Together with the checkpoint's other files it determines every later step; random numbers need no
/// state, they are functions of the seed and the cursor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainState {
    /// How far the run has come.
    pub cursor: Cursor,
    /// The natural logarithm of the partition constant Z of `nce`, once estimated.
    pub ln_partition: Option<f64>,
    /// Steps that the optimiser has taken: fewer than the cursor's where steps were skipped.
    #[serde(default)]
    pub optimizer_steps: Option<u64>,
    /// Steps that moved nothing, because a number was not finite.
    #[serde(default)]
    pub skipped_steps: u64,
    /// The loss scale of f16, and what it depends on; null in other precisions.
    #[serde(default)]
    pub loss_scale: serde_json::Value,
    /// The digest of which rows are in which row group, with `shuffle = windowed`: the order depends on it.
    #[serde(default)]
    pub layout: Option<String>,
    /// The number of instances trained on, and of rows in the bank.
    pub instances: u64,
    /// What the encoder is built from, for jobs that only embed.
    pub encoder: serde_json::Value,
    /// The resolved configuration, as in `config.toml`.
    pub config: serde_json::Value,
}

/// A published checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    folder: Location,
    manifest: CheckpointManifest,
}

impl Checkpoint {
    /// The digest of the weights, by which reports and feature tables name their encoder.
    pub fn weights_digest(&self) -> String {
        self.entry(MODEL).map_or_else(String::new, |entry| entry.digest.to_string())
    }

    /// Opens the checkpoint in this folder and checks that its files are there in their sizes.
    ///
    /// # Errors
    /// If there is none, it is of another version, or a file is missing or of another size.
    pub fn open(folder: &Location) -> Result<Self, CheckpointError> {
        let at = folder.join(MANIFEST);
        let text = match at.read() {
            Err(error) if error.is_not_found() => {
                return Err(CheckpointError::NotThere { folder: folder.to_string() });
            }
            other => other?,
        };
        let manifest: CheckpointManifest = serde_json::from_slice(&text)
            .map_err(|source| CheckpointError::Malformed { file: at.to_string(), source })?;
        if manifest.format_version != FORMAT_VERSION {
            return Err(CheckpointError::Version { file: at.to_string(), version: manifest.format_version });
        }
        // One request, where a look at each file would be as many as there are files.
        let there = folder.list()?;
        let is_there = |entry: &&FileEntry| {
            there.iter().any(|found| (&found.name, found.bytes) == (&entry.name, entry.bytes))
        };
        if let Some(entry) = manifest.files.iter().find(|entry| !is_there(entry)) {
            let file = folder.join(&entry.name).to_string();
            let is_other = there.iter().any(|found| found.name == entry.name);
            return Err(if is_other {
                CheckpointError::Damaged { file }
            } else {
                CheckpointError::Missing { file }
            });
        }
        Ok(Self { folder: folder.clone(), manifest })
    }

    /// The contents of its manifest.
    pub fn manifest(&self) -> &CheckpointManifest {
        &self.manifest
    }

    /// The files of its bank, in the order of their rows; one, unless several processes wrote it.
    ///
    /// # Errors
    /// If it has none.
    pub fn bank(&self) -> Result<Vec<Location>, CheckpointError> {
        Ok(self.bank_files()?.into_iter().map(|entry| self.folder.join(&entry.name)).collect())
    }

    /// Likewise, with sizes and digests; the names are those within the folder.
    ///
    /// # Errors
    /// If it has none.
    pub fn bank_files(&self) -> Result<Vec<&FileEntry>, CheckpointError> {
        let is_bank = |entry: &&FileEntry| entry.name.starts_with("bank") && entry.name.ends_with(".arrow");
        let mut files: Vec<_> = self.manifest.files.iter().filter(is_bank).collect();
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if files.is_empty() {
            return Err(CheckpointError::NoBank { folder: self.folder.to_string() });
        }
        Ok(files)
    }

    /// One of its files, if it has one of this name.
    pub fn entry(&self, name: &str) -> Option<&FileEntry> {
        self.manifest.files.iter().find(|entry| entry.name == name)
    }

    /// Its folder.
    pub fn folder(&self) -> &Location {
        &self.folder
    }

    /// The error of a file of it that does not fit.
    pub fn damaged(&self, name: &str) -> CheckpointError {
        CheckpointError::Damaged { file: self.folder.join(name).to_string() }
    }

    /// Reads one of its files and checks the digest.
    ///
    /// # Errors
    /// If the file is missing or not part of the checkpoint, cannot be read, or is damaged.
    pub fn read(&self, name: &str) -> Result<Bytes, CheckpointError> {
        let file = self.folder.join(name);
        let missing = || CheckpointError::Missing { file: file.to_string() };
        let contents = match file.read_checked(Location::read, self.entry(name).ok_or_else(missing)?.digest) {
            Err(error) if error.is_not_found() => return Err(missing()),
            other => other?,
        };
        contents.ok_or_else(|| CheckpointError::Damaged { file: file.to_string() })
    }

    /// Reads every file and checks its digest.
    ///
    /// # Errors
    /// The first file that is damaged.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        self.manifest.files.iter().try_for_each(|entry| self.read(&entry.name).map(drop))
    }

    /// Reads the state of the run.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn state(&self) -> Result<TrainState, CheckpointError> {
        serde_json::from_slice(&self.read(STATE)?).map_err(|source| self.malformed_state(source))
    }

    /// Reads the configuration of the run, which an older or newer program may have begun
    /// ([`TrainConfig::of_checkpoint`]).
    ///
    /// # Errors
    /// If the file is damaged, or a value is unknown to this program.
    pub fn run_config(&self) -> Result<TrainConfig, CheckpointError> {
        TrainConfig::of_checkpoint(&self.state()?.config).map_err(|source| self.malformed_state(source))
    }

    fn malformed_state(&self, source: serde_json::Error) -> CheckpointError {
        CheckpointError::Malformed { file: self.folder.join(STATE).to_string(), source }
    }
}

/// A checkpoint cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The folder holds no published checkpoint, and no run that has one.
    #[error("{folder}: no checkpoint is there, nor a run that has one; instdisc train makes one")]
    NotThere {
        /// The folder.
        folder: String,
    },
    /// A checkpoint is not below a run's folder, where results go.
    #[error(
        "{folder}: a checkpoint outside a run, into whose folder results would be written; `instdisc embed` \
         it and give its bank and the table to `knn --bank --queries`"
    )]
    OutsideRun {
        /// The folder.
        folder: String,
    },
    /// A JSON file does not say what it should.
    #[error("{file}: its contents are not understood")]
    Malformed {
        /// The file.
        file: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A classifier that was fine-tuned.
    #[error("{folder}: a classifier of `finetune`, which has no bank; `embed` makes tables of its features")]
    NoBank {
        /// The checkpoint's folder.
        folder: String,
    },
    /// A file is not there.
    #[error("{file}: missing, and the checkpoint needs it")]
    Missing {
        /// The file.
        file: String,
    },
    /// One of several files of a bank, given in the place of all.
    #[error(
        "{file}: part {} of {ranks} of a bank, one for each process of its run, and not the whole: give {}, the \
         checkpoint with all parts", rank + 1, whole.as_deref().unwrap_or("the folder")
    )]
    PartOfBank {
        /// The file.
        file: String,
        /// The process whose rows it has, from 0.
        rank: usize,
        /// The processes that have a part.
        ranks: usize,
        /// The checkpoint's folder, where the file is in it.
        whole: Option<String>,
    },
    /// Some checkpoints of a run, or all.
    #[error("{run}: {count} of {total} checkpoints cannot be used ({names}), the newest of these because of")]
    Several {
        /// The run's folder.
        run: String,
        /// How many.
        count: usize,
        /// The checkpoints of the run.
        total: usize,
        /// Their names, the newest first.
        names: String,
        /// The error of the newest of them.
        #[source]
        source: Box<CheckpointError>,
    },
    /// A file is cut or changed.
    #[error("{file}: damaged: it is not the file that was published")]
    Damaged {
        /// The file.
        file: String,
    },
    /// A number that is not finite: what was trained diverged.
    #[error("{checkpoint}: {name} is not finite")]
    NotFinite {
        /// The checkpoint.
        checkpoint: String,
        /// The weight, buffer or feature.
        name: String,
    },
    /// Another version of the format.
    #[error("{file}: format version {version} is not known to this program")]
    Version {
        /// The file.
        file: String,
        /// Its version.
        version: u32,
    },
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl CheckpointError {
    /// The error of those checkpoints of a run, the newest first, that cannot be used. A run of one checkpoint has that
    /// one's error.
    pub fn of_run(run: &Location, total: usize, wrong: Vec<(Location, Self)>) -> Option<Self> {
        let count = wrong.len();
        let names = wrong.iter().map(|(folder, _)| folder.file_name()).collect::<Vec<_>>().join(", ");
        let (_, source) = wrong.into_iter().next()?;
        if total == 1 {
            return Some(source);
        }
        Some(Self::Several { run: run.to_string(), count, total, names, source: source.into() })
    }

    /// The kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Storage(error) => error.failure(),
            Self::OutsideRun { .. } => Failure::Config,
            Self::Several { source, .. } => source.failure(),
            _ => Failure::Data,
        }
    }
}

#[cfg(test)]
mod tests {
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
        let opened = Checkpoint::open(&published(&root, 1)).expect("whole again");
        folder.join(MODEL).delete().expect("deleted");
        for error in [Checkpoint::open(&folder).map(drop), opened.read(MODEL).map(drop)] {
            let error = error.expect_err("the file is missing").to_string();
            assert!(error.ends_with("model.safetensors: missing, and the checkpoint needs it"), "{error}");
        }
    }

    #[test]
    fn a_file_of_one_of_several_processes_is_known_by_its_name() {
        assert_eq!(part_of_bank(&bank_part(1, 2)), Some((1, 2)));
        for whole in
            [&bank_part(0, 1), "bank-1-of-2.arrow", "train-00000-of-00002.arrow", "bank-x-of-2.arrow"]
        {
            assert_eq!(part_of_bank(whole), None, "{whole}");
        }
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
        std::fs::hard_link(
            dir.path().join("checkpoints/step-00000003").join(MODEL),
            staged.join("bank.arrow#1"),
        )
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
}
