//! Commands as functions, from plain options to a report.
//!
//! Commands know neither the command line nor the terminal. Progress and notes go to a
//! [`Progress`](crate::progress::Progress), warnings to the log.

#[cfg(feature = "torch")]
mod embed;
mod error;
mod export;
#[cfg(feature = "torch")]
mod finetune;
mod inspect;
mod knn;
#[cfg(feature = "torch")]
mod linear;
#[cfg(feature = "torch")]
mod monitor;
#[cfg(feature = "torch")]
mod query;
mod render;
mod reports;
#[cfg(feature = "torch")]
mod run;
#[cfg(feature = "torch")]
mod watch;

#[cfg(feature = "torch")]
pub use embed::{EmbedReport, EmbeddedTable, embed, open_embedding};
pub use error::CommandError;
pub use export::{
    Hub, ProjectorJob, export_hub, export_parquet, export_projector, export_torchvision, preprocessing_of,
};
#[cfg(feature = "torch")]
pub use finetune::{FinetuneRun, Finetuned, Finetuning};
pub use inspect::inspect;
#[cfg(feature = "torch")]
pub use knn::of_run::{KnnFeature, KnnRun, knn_of_run, watch_run};
pub use knn::pair::KnnPair;
pub use knn::{Alone, DEFAULT_MAP_POINTS, KnnJob, KnnTables, Searchers, knn};
#[cfg(feature = "torch")]
pub use linear::{LinearJob, LinearRun, linear, linear_of_run};
#[cfg(feature = "torch")]
pub use monitor::{Monitor, OtherMonitor, all_or_none};
#[cfg(feature = "torch")]
pub use query::{FoundRow, QueriedImage, QueryJob, QueryReport, SkippedImage, query};
pub use render::{RenderOptions, RenderReport, RenderedEpoch, RenderedEpochs, render};
#[cfg(feature = "torch")]
pub use reports::Report;
#[cfg(feature = "torch")]
pub use run::{Machine, usual_memory_limit};
#[cfg(feature = "torch")]
pub use watch::{WatchEnd, WatchOptions, WatchSummary};
