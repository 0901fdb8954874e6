//! `export`: weights and features in the formats of other programs. Images are the work of
//! [`ingest::export`](crate::ingest::export).

mod hub;
mod parquet;
mod projector;
mod torchvision;

pub use hub::{Hub, export_hub};
pub use parquet::export_parquet;
pub use projector::{ProjectorJob, export_projector};
pub use torchvision::export_torchvision;
