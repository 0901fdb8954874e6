//! A rank's images of one step.

use std::sync::Arc;

use super::plan::global_batch::GlobalBatch;
use crate::ids::{BankRow, ClassId, InstanceId};

/// Images of one step, ready for the encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The step within the epoch, from 0.
    pub step_in_epoch: u64,
    /// The global batch, of which this one has the images of its rank.
    pub global: Arc<GlobalBatch>,
    /// `[batch]`: the instances.
    pub ids: Vec<InstanceId>,
    /// `[batch]`: their bank rows in the source.
    pub bank_rows: Vec<BankRow>,
    /// `[batch]`: their labels.
    pub labels: Vec<Option<ClassId>>,
    /// `[batch, 3, side, side]`, row after row.
    pub pixels: Vec<u8>,
}
