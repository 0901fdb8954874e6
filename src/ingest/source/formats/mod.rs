//! What a layout means: one file for each form in which people hold images.
//!
//! A form lists records and says what it knows of each; splits, classes and labels are decided over all records
//! together by [`super::arrange`].

pub(super) mod cifar;
mod columns;
pub(super) mod devkit;
pub(super) mod folder;
pub(super) mod imagenet;
pub(super) mod list;
pub(super) mod mat;
pub(super) mod parquet;
mod tar;
pub(super) mod tars;
pub(super) mod webdataset;

#[cfg(feature = "fuzzing")]
pub(in crate::ingest) use mat::read_synsets;
