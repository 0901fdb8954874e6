//! Tests of the program as its users see it: the binary, its files, other people's readers of these files.

#![expect(clippy::disallowed_methods, reason = "tests make damaged and foreign files by hand")]

mod architecture;
mod augment;
mod compat;
mod english;
mod faults;
mod ingest;
mod knn;
mod path;
mod source_table;
mod sources;
mod stores;
mod support;
mod without_torch;

#[cfg(feature = "torch")]
mod distributed;
#[cfg(feature = "torch")]
mod encoder;
#[cfg(feature = "torch")]
mod finetune;
#[cfg(feature = "torch")]
mod linear;
#[cfg(feature = "torch")]
mod monitor;
#[cfg(feature = "torch")]
mod page;
#[cfg(feature = "torch")]
mod replay;
#[cfg(feature = "torch")]
mod resume;
#[cfg(feature = "torch")]
mod step;
#[cfg(feature = "torch")]
mod transfer;
