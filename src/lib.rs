//! Instance discrimination as a dataset-streaming batch system.
//!
//! The method is Wu et al., CVPR 2018 ("Unsupervised Feature Learning via Non-Parametric Instance
//! Discrimination"): every image is its own class, a memory bank keeps one unit vector for each, and the
//! learned space is evaluated by a weighted k-nearest-neighbour vote. Four jobs carry it: `ingest`, `train`,
//! `embed` and `knn`; each reads one published format and writes the next. docs/architecture.md has the
//! layers and what may import what.

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
pub mod config;
