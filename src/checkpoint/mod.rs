//! Checkpoints as files: contents, publication, and search for the newest.
//!
//! A checkpoint is a folder such as `step-00005005` below `<run>/checkpoints`. Its `checkpoint.json` is
//! written last and names every other file with size and digest; a folder without it does not exist for
//! readers. This module handles bytes and JSON, no tensors.
//!
//! Invariant: a checkpoint that [`Checkpoint::open`] returns was published as a whole.

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
/// Buffers of the optimiser.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// Weights and momentum of the probe, in runs that have one.
pub const PROBE: &str = "probe.safetensors";
/// Memory bank, a feature table.
pub const BANK: &str = "bank.arrow";
/// All other state that a run depends on; see [`TrainState`].
pub const STATE: &str = "state.json";
/// List of the other files, written last.
pub const MANIFEST: &str = "checkpoint.json";

/// Format version that this code writes and reads.
const FORMAT_VERSION: u32 = 1;

/// Returns the file name of one process's bank rows, a feature table too; sorted names follow the order of the rows.
pub fn bank_part(rank: usize, ranks: usize) -> String {
    if ranks == 1 { BANK.to_owned() } else { format!("bank-{rank:05}-of-{ranks:05}.arrow") }
}

/// Returns the rank and the number of ranks from a file name that [`bank_part`] made for several.
pub fn part_of_bank(name: &str) -> Option<(usize, usize)> {
    let (rank, ranks) = name.strip_prefix("bank-")?.strip_suffix(".arrow")?.split_once("-of-")?;
    let part = (rank.parse().ok()?, ranks.parse().ok()?);
    (part.1 > 1 && bank_part(part.0, part.1) == name).then_some(part)
}

/// Entry of a checkpoint's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name of the file within the folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// blake3 digest of the contents.
    pub digest: Digest,
}

/// Identity of a run's training data. Resuming a run and using a checkpoint require the same split; other
/// splits may have been added to the dataset since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainedOn {
    /// Digest of the dataset.
    pub dataset_digest: String,
    /// Name of the split.
    pub split: String,
    /// Digest of the split.
    pub split_digest: String,
}

/// Contents of `checkpoint.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointManifest {
    /// Version of the format.
    pub format_version: u32,
    /// Steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: u64,
    /// Training data of the run.
    #[serde(flatten)]
    pub trained_on: TrainedOn,
    /// All other files.
    pub files: Vec<FileEntry>,
}

impl CheckpointManifest {
    /// Creates a manifest of the current version.
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

/// Publishes one file of a checkpoint.
///
/// # Errors
/// If the store fails.
pub fn publish_file(folder: &Location, name: &str, contents: Vec<u8>) -> Result<FileEntry, CheckpointError> {
    let entry =
        FileEntry { name: name.to_owned(), bytes: contents.len() as u64, digest: Digest::of(&contents) };
    folder.join(name).publish(contents, PublishMode::Overwrite)?;
    Ok(entry)
}

/// Progress of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Steps done since the start of the run.
    pub step: u64,
    /// Current epoch, from 0.
    pub epoch: u64,
    /// Steps done in this epoch.
    pub step_in_epoch: u64,
}

/// Contents of `state.json`.
///
/// Together with the checkpoint's other files this determines every later step. Random numbers need no state:
/// they are functions of the seed and the cursor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainState {
    /// Progress of the run.
    pub cursor: Cursor,
    /// Natural logarithm of the partition constant Z of `nce`, once estimated.
    pub ln_partition: Option<f64>,
    /// Steps that the optimiser has taken; fewer than the cursor's if steps were skipped.
    #[serde(default)]
    pub optimizer_steps: Option<u64>,
    /// Steps that changed nothing because a number was not finite.
    #[serde(default)]
    pub skipped_steps: u64,
    /// Loss scale of f16 with its state; null in other precisions.
    #[serde(default)]
    pub loss_scale: serde_json::Value,
    /// Digest of the row groups' contents, with `shuffle = windowed`, whose order depends on them.
    #[serde(default)]
    pub layout: Option<String>,
    /// Number of instances trained on, which is also that of bank rows.
    pub instances: u64,
    /// Configuration of the encoder, for jobs that only embed.
    pub encoder: serde_json::Value,
    /// Resolved configuration, as in `config.toml`.
    pub config: serde_json::Value,
}

/// Published checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    folder: Location,
    manifest: CheckpointManifest,
}

impl Checkpoint {
    /// Returns the digest of the weights, which identifies the encoder in reports and feature tables.
    pub fn weights_digest(&self) -> String {
        self.entry(MODEL).map_or_else(String::new, |entry| entry.digest.to_string())
    }

    /// Opens the checkpoint in this folder and checks that its files exist with their sizes.
    ///
    /// # Errors
    /// If there is none, its version is unknown, or a file is missing or has another size.
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
        // One request, instead of one per file.
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

    /// Returns the manifest.
    pub fn manifest(&self) -> &CheckpointManifest {
        &self.manifest
    }

    /// Returns the bank's files in the order of their rows: one, unless several processes wrote them.
    ///
    /// # Errors
    /// If the checkpoint has no bank.
    pub fn bank(&self) -> Result<Vec<Location>, CheckpointError> {
        Ok(self.bank_files()?.into_iter().map(|entry| self.folder.join(&entry.name)).collect())
    }

    /// Returns the bank's files with sizes and digests; names are relative to the folder.
    ///
    /// # Errors
    /// If the checkpoint has no bank.
    pub fn bank_files(&self) -> Result<Vec<&FileEntry>, CheckpointError> {
        let is_bank = |entry: &&FileEntry| entry.name.starts_with("bank") && entry.name.ends_with(".arrow");
        let mut files: Vec<_> = self.manifest.files.iter().filter(is_bank).collect();
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if files.is_empty() {
            return Err(CheckpointError::NoBank { folder: self.folder.to_string() });
        }
        Ok(files)
    }

    /// Returns the entry of the file with this name, if there is one.
    pub fn entry(&self, name: &str) -> Option<&FileEntry> {
        self.manifest.files.iter().find(|entry| entry.name == name)
    }

    /// Returns the checkpoint's folder.
    pub fn folder(&self) -> &Location {
        &self.folder
    }

    /// Returns the error of a damaged file of this checkpoint.
    pub fn damaged(&self, name: &str) -> CheckpointError {
        CheckpointError::Damaged { file: self.folder.join(name).to_string() }
    }

    /// Reads one file and checks its digest.
    ///
    /// # Errors
    /// If the file is missing, unreadable, damaged or not in the manifest.
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
    /// If a file is damaged, with the first one.
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

    /// Reads the configuration of the run, which an older or newer program may have started
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

/// Error of reading or writing a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The folder has no published checkpoint, nor a run with one.
    #[error("{folder}: no checkpoint is there, nor a run that has one; instdisc train makes one")]
    NotThere {
        /// Name of the folder.
        folder: String,
    },
    /// The checkpoint is outside a run's folder, where results would go.
    #[error(
        "{folder}: a checkpoint outside a run, into whose folder results would be written; `instdisc embed` \
         it and give its bank and the table to `knn --bank --queries`"
    )]
    OutsideRun {
        /// Name of the folder.
        folder: String,
    },
    /// A JSON file has invalid contents.
    #[error("{file}: its contents are not understood")]
    Malformed {
        /// Name of the file.
        file: String,
        /// Underlying error.
        #[source]
        source: serde_json::Error,
    },
    /// The checkpoint has no bank, as that of a fine-tuned classifier.
    #[error("{folder}: a classifier of `finetune`, which has no bank; `embed` makes tables of its features")]
    NoBank {
        /// Folder of the checkpoint.
        folder: String,
    },
    /// A file is missing.
    #[error("{file}: missing, and the checkpoint needs it")]
    Missing {
        /// Name of the file.
        file: String,
    },
    /// One of several files of a bank was given instead of all.
    #[error(
        "{file}: part {} of {ranks} of a bank, one for each process of its run, and not the whole: give {}, the \
         checkpoint with all parts", rank + 1, whole.as_deref().unwrap_or("the folder")
    )]
    PartOfBank {
        /// Name of the file.
        file: String,
        /// Rank of the process that owns its rows, from 0.
        rank: usize,
        /// Number of processes that have a shard.
        ranks: usize,
        /// Folder of the checkpoint, if the file is in one.
        whole: Option<String>,
    },
    /// Several checkpoints of a run are unusable.
    #[error("{run}: {count} of {total} checkpoints cannot be used ({names}), the newest of these because of")]
    Several {
        /// Folder of the run.
        run: String,
        /// Number of unusable checkpoints.
        count: usize,
        /// Number of the run's checkpoints.
        total: usize,
        /// Names of the unusable ones, the newest first.
        names: String,
        /// Error of the newest one.
        #[source]
        source: Box<CheckpointError>,
    },
    /// A file is truncated or changed.
    #[error("{file}: damaged: it is not the file that was published")]
    Damaged {
        /// Name of the file.
        file: String,
    },
    /// A number is not finite, as the training diverged.
    #[error("{checkpoint}: {name} is not finite")]
    NotFinite {
        /// Name of the checkpoint.
        checkpoint: String,
        /// Name of the weight, buffer or feature.
        name: String,
    },
    /// The format version is unknown.
    #[error("{file}: format version {version} is not known to this program")]
    Version {
        /// Name of the file.
        file: String,
        /// Version in the file.
        version: u32,
    },
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl CheckpointError {
    /// Returns the error of a run with `wrong` checkpoints, the newest first; `None` if there are none. A run with one
    /// checkpoint has that checkpoint's error.
    pub fn of_run(run: &Location, total: usize, wrong: Vec<(Location, Self)>) -> Option<Self> {
        let count = wrong.len();
        let names = wrong.iter().map(|(folder, _)| folder.file_name()).collect::<Vec<_>>().join(", ");
        let (_, source) = wrong.into_iter().next()?;
        if total == 1 {
            return Some(source);
        }
        Some(Self::Several { run: run.to_string(), count, total, names, source: source.into() })
    }

    /// Returns the kind of failure, which selects the exit code.
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
        // Remains of a file from a killed writer, which the store's listing skips.
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
