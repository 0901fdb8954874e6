//! Instance discrimination as a dataset-streaming batch system.
//!
//! The method is that of Wu et al., CVPR 2018 ("Unsupervised Feature Learning via Non-Parametric Instance
//! Discrimination"): every image is its own class, a memory bank keeps one unit vector for each, and a
//! weighted k-nearest-neighbour vote evaluates the learned space. Four jobs implement it; each reads one
//! published format and writes the next:
//!
//! | job | reads | writes | module |
//! |---|---|---|---|
//! | `ingest` | images | a dataset: Parquet shards and a manifest | [`ingest`], [`dataset`] |
//! | `train` | a dataset, by the [`loader`] | checkpoints: encoder and memory bank | `train`, [`checkpoint`] |
//! | `embed` | a dataset, a checkpoint | a feature table (Arrow) | [`eval`], [`feature_table`] |
//! | `knn` | feature tables | a report, and a page of neighbours | [`eval`], [`search`], [`page`] |
//!
//! docs/architecture.md describes the layers and their allowed imports.
//!
//! # A dataset
//!
//! ```
//! use instdisc::dataset::Manifest;
//! use instdisc::ingest::{IngestOptions, SynthOptions, ingest, synth};
//! use instdisc::progress::Quiet;
//! use instdisc::storage::Location;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let images = folder.path().join("images");
//! let drawn = SynthOptions { dest: images.clone(), train_per_class: 4, val_per_class: 1, ..Default::default() };
//! synth(&drawn, &Quiet)?;
//!
//! let dataset = Location::from_path(&folder.path().join("dataset"))?;
//! ingest(&IngestOptions::new(Location::from_path(&images)?, dataset.clone()), &Quiet)?;
//!
//! let manifest = Manifest::read(&dataset)?;
//! assert_eq!(manifest.classes.len(), 10);
//! assert_eq!(manifest.splits["train"].instances, 40);
//! # Ok(())
//! # }
//! ```
//!
//! # Batches of a dataset
//!
//! The pixels depend only on seed, epoch and instance, not on threads or machines.
//!
//! ```
//! use instdisc::augment::Recipe;
//! # use instdisc::dataset::Manifest;
//! # use instdisc::ingest::{IngestOptions, SynthOptions, ingest, synth};
//! use instdisc::loader::{Loader, LoaderOptions, open_split};
//! # use instdisc::progress::Quiet;
//! # use instdisc::storage::Location;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let images = folder.path().join("images");
//! # let drawn = SynthOptions { dest: images.clone(), train_per_class: 4, val_per_class: 1, ..Default::default() };
//! # synth(&drawn, &Quiet)?;
//! # let dataset = Location::from_path(&folder.path().join("dataset"))?;
//! # ingest(&IngestOptions::new(Location::from_path(&images)?, dataset.clone()), &Quiet)?;
//! # let manifest = Manifest::read(&dataset)?;
//! let source = open_split(&dataset, &manifest, "train", None)?;
//! let options = LoaderOptions { batch_size: 16, epochs: 1, ..Default::default() };
//! let mut seen = 0;
//! for batch in Loader::start(source, Recipe::imagenet(32), options)? {
//!     let batch = batch?;
//!     assert_eq!(batch.pixels.len(), batch.ids.len() * 3 * 32 * 32);
//!     seen += batch.ids.len();
//! }
//! assert_eq!(seen, 40);
//! # Ok(())
//! # }
//! ```
//!
//! # Scoring features
//!
//! Any two tables of vectors work: a checkpoint's bank and embedded queries, or tables of other programs.
//!
//! ```
//! use instdisc::eval::{KnnOptions, evaluate};
//! use instdisc::search::{Shape, draw_tables};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (bank, queries) = draw_tables(Shape::Clusters, 5000, 100, 32, 0);
//! let report = evaluate(&bank, &queries, &KnnOptions { k: vec![5], ..KnnOptions::default() })?;
//! assert_eq!(report.queries, 100);
//! assert!(report.top1 > report.chance);
//! # Ok(())
//! # }
//! ```

pub mod failure;
mod guard;
pub mod ids;
pub mod progress;
pub mod rng;
pub mod simd;
pub mod storage;
pub mod units;

pub mod checkpoint;
pub mod dataset;
pub mod feature_table;
pub mod image;
pub mod run_config;

#[cfg(feature = "torch")]
pub mod bank;
#[cfg(feature = "torch")]
pub mod distributed;
#[cfg(feature = "torch")]
pub mod model;
#[cfg(feature = "torch")]
pub mod objective;

pub mod augment;
pub mod search;

pub mod eval;
pub mod ingest;
pub mod loader;
pub mod page;
#[cfg(feature = "torch")]
pub mod train;

pub mod cli;
pub mod commands;
