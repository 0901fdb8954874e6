//! What a run moves: encoder, optimiser, bank, objective, cursor.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tch::Tensor;

use super::TrainError;
use super::clock::Clock;
use super::optim::Optimizer;
use super::step::PendingStep;
use crate::bank::MemoryBank;
use crate::checkpoint::Cursor;
use crate::distributed::{DistributedError, GradientReducer, ProcessGroup};
use crate::ids::{BankRow, RankShare};
use crate::model::{Compute, ComputeType, Encoder};
use crate::objective::{LogZ, Objective, Queries};
use crate::run_config::{Precision, TrainConfig};
use crate::storage::Digest;
use crate::train::optim::loss_scale::LossScale;

/// The state of a run.
#[derive(Debug)]
pub(super) struct Trainer {
    pub(super) config: TrainConfig,
    /// The processes of the run. Encoder and optimiser are the same in all; of the bank each has some rows.
    pub(super) group: Rc<ProcessGroup>,
    /// What went wrong while batch norm summed over the processes: the passes through the network cannot say it.
    pub(super) failed: Rc<RefCell<Option<DistributedError>>>,
    pub(super) reducer: GradientReducer,
    pub(super) encoder: Encoder,
    pub(super) optimizer: Optimizer,
    pub(super) bank: MemoryBank,
    pub(super) objective: Objective,
    pub(super) cursor: Cursor,
    /// With `precision = f16` only.
    pub(super) loss_scale: Option<LossScale>,
    /// Steps that moved nothing, because a number was not finite.
    pub(super) skipped: u64,
    pub(super) skipped_in_a_row: u64,
    pub(super) clock: Clock,
    /// The last step, until its numbers are read.
    pub(super) pending: Option<PendingStep>,
    /// The features and positions of the last step's global batch, for whoever looks at the run.
    pub(super) last: Option<(Tensor, Vec<BankRow>)>,
    /// See [`BankHealth::drift`](crate::train::metrics::bank_health::BankHealth::drift).
    pub(super) warned_drift: Cell<f64>,
}

impl Trainer {
    /// The state before the first step, in one process.
    #[cfg(test)]
    pub(super) fn new(config: TrainConfig, instances: usize, device: tch::Device) -> Self {
        let alone = Rc::new(ProcessGroup::alone());
        Self::over(alone, config, instances, device).expect("one process waits for nobody")
    }

    /// The state before the first step, in one of several processes.
    ///
    /// # Errors
    /// If a collective fails.
    pub(super) fn over(
        group: Rc<ProcessGroup>,
        config: TrainConfig,
        instances: usize,
        device: tch::Device,
    ) -> Result<Self, TrainError> {
        // The fastest convolutions for the shapes of a run, which stay the same, found by trying them.
        tch::Cuda::cudnn_set_benchmark(device.is_cuda());
        let mut encoder = Encoder::new(config.encoder(), config.seed, device);
        encoder.set_compute(compute(&config));
        let failed: Rc<RefCell<Option<DistributedError>>> = Rc::default();
        if config.sync_batch_norm {
            let (group, failed) = (Rc::clone(&group), Rc::clone(&failed));
            let sum = move |values: &Tensor| {
                group.sum_with_gradient(values).unwrap_or_else(|error| {
                    failed.borrow_mut().get_or_insert(error);
                    values.shallow_clone()
                })
            };
            encoder.share_statistics(Rc::new(sum));
        }
        let optimizer = Optimizer::new(encoder.parameters(), &config);
        let parameters: Vec<Tensor> = encoder.parameters().into_iter().map(|(_, tensor)| tensor).collect();
        let reducer = GradientReducer::new(&group, &parameters)?;
        let owned = RankShare { rank: group.rank(), ranks: group.world() }.of(instances);
        let bank = MemoryBank::initial_rows(config.bank(instances), owned, config.seed, device);
        let objective = Objective::new(config.objective(), LogZ::Unset);
        let loss_scale = (config.precision == Precision::F16).then(LossScale::default);
        let cursor = Cursor::default();
        Ok(Self {
            config,
            group,
            failed,
            reducer,
            encoder,
            optimizer,
            bank,
            objective,
            cursor,
            loss_scale,
            skipped: 0,
            skipped_in_a_row: 0,
            clock: Clock::off(),
            pending: None,
            last: None,
            warned_drift: Cell::new(0.0),
        })
    }

    /// The last step's batch, as an objective sees it.
    pub(super) fn last_batch(&self) -> Option<Queries<'_>> {
        self.last.as_ref().map(|(features, positions)| Queries::whole(features, positions))
    }

    /// Steps of an epoch.
    pub(super) fn steps_per_epoch(&self) -> u64 {
        self.config.loader().steps(self.bank.instances())
    }
}

/// Gives every process rank 0's statistics of batch norm, and makes sure that all weights are the same.
///
/// # Errors
/// If weights differ, or a collective fails.
pub(super) fn make_replicas_equal(
    group: &ProcessGroup,
    encoder: &Encoder,
    step: u64,
) -> Result<(), TrainError> {
    if group.world() == 1 {
        return Ok(());
    }
    group.broadcast(&encoder.statistics(), 0)?;
    let digest = Digest::of(&encoder.weights().to_bytes()).to_string();
    Ok(group.agree(&format!("the weights' digest after step {step}"), &digest)?)
}

pub(super) fn compute(config: &TrainConfig) -> Compute {
    let kind = match config.precision {
        Precision::F32 | Precision::Tf32 => ComputeType::F32,
        Precision::Bf16 => ComputeType::Bf16,
        Precision::F16 => ComputeType::F16,
    };
    Compute { kind, channels_last: config.channels_last }
}
