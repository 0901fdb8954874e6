//! Results in other programs' forms.

mod parquet;
mod projector;
mod torchvision;

pub use parquet::export_parquet;
pub use projector::{ProjectorJob, export_projector};
pub use torchvision::export_torchvision;
