//! `export`: weights and features in the formats of other programs. Images are the work of
//! [`ingest::export`](crate::ingest::export).

mod tables;
mod weights;

pub use tables::{ProjectorJob, export_parquet, export_projector};
pub use weights::{Hub, export_hub, export_torchvision};
