//! Logistic regression by stochastic gradient descent: every setting of a sweep and every layer in the same
//! passes over the data.

use tch::{Device, Kind, Tensor, no_grad};

use super::LinearOptions;
use super::examples::{Batch, Examples};
use super::head::{Head, Scale};
use crate::eval::EvalError;
use crate::progress::Progress;
use crate::rng::{Purpose, Stream};

const MOMENTUM: f64 = 0.9;
/// Bytes of consecutive rows that are read together.
const RUN_BYTES: u64 = 1 << 20;

/// One setting of a sweep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cell {
    /// Learning rate; `None` for a solver without one.
    pub lr: Option<f64>,
    pub weight_decay: f64,
}

/// Passes over batches, for one or several layers.
pub(super) trait Passes {
    /// Returns the number of steps in an epoch.
    fn steps(&self) -> u64;

    /// Calls `see` with each batch of an epoch: its features for each layer.
    fn epoch(&mut self, epoch: u64, see: &mut dyn FnMut(&[Batch])) -> Result<(), EvalError>;
}

/// Passes over the rows of a table, each in another order.
///
/// Rows in memory are shuffled as a whole. Otherwise runs of consecutive rows are shuffled and read in
/// windows of about the memory limit, and the rows of each window are shuffled.
pub(super) struct TablePasses<'a> {
    pub rows: &'a Examples<'a>,
    pub options: &'a LinearOptions,
    pub progress: &'a dyn Progress,
}

impl TablePasses<'_> {
    /// Shuffles items for an epoch; `number` identifies the shuffle within the epoch.
    fn shuffle<T>(&self, epoch: u64, number: u64, items: &mut [T]) {
        Stream::new(self.options.seed, Purpose::ProbeOrder, epoch, number).shuffle(items);
    }
}

/// Returns the number of rows of a window: whole batches.
pub(super) fn window_rows(row_bytes: u64, batch_size: usize, memory_limit: u64) -> usize {
    (memory_limit / row_bytes) as usize / batch_size.max(1) * batch_size.max(1)
}

impl Passes for TablePasses<'_> {
    fn steps(&self) -> u64 {
        self.rows.len().div_ceil(self.options.batch_size) as u64
    }

    fn epoch(&mut self, epoch: u64, see: &mut dyn FnMut(&[Batch])) -> Result<(), EvalError> {
        let count = self.rows.len();
        let LinearOptions { batch_size, memory_limit, .. } = *self.options;
        if self.rows.is_held() {
            let all = self.rows.batch(0..count)?;
            let mut order: Vec<usize> = (0..count).collect();
            self.shuffle(epoch, 0, &mut order);
            order.chunks(batch_size).for_each(|places| see(&[all.select(places)]));
        } else {
            let run = (RUN_BYTES / self.rows.row_bytes()).max(1) as usize;
            let mut runs: Vec<usize> = (0..count).step_by(run).collect();
            self.shuffle(epoch, 0, &mut runs);
            let mut rest = runs.into_iter().flat_map(|at| at..(at + run).min(count));
            let window = window_rows(self.rows.row_bytes(), batch_size, memory_limit);
            for number in 1.. {
                let mut places: Vec<usize> = rest.by_ref().take(window.max(batch_size)).collect();
                if places.is_empty() {
                    break;
                }
                places.sort_unstable();
                let held = self.rows.select(&places).batch(0..places.len())?;
                let mut order: Vec<usize> = (0..places.len()).collect();
                self.shuffle(epoch, number, &mut order);
                order.chunks(batch_size).for_each(|places| see(&[held.select(places)]));
            }
        }
        self.progress.advance(1);
        Ok(())
    }
}

/// Probes of one layer, stacked.
struct Stack {
    /// `[cells, dim, classes]`
    weight: Tensor,
    /// `[cells, 1, classes]`
    bias: Tensor,
    momenta: [Tensor; 2],
    /// `[cells, 1, 1]`
    lr: Tensor,
    weight_decay: Tensor,
}

impl Stack {
    fn new(cells: &[Cell], dim: i64, classes: usize, device: Device) -> Self {
        let (count, classes) = (cells.len() as i64, classes as i64);
        let zeros = |shape: [i64; 3]| Tensor::zeros(shape, (Kind::Float, device));
        let column = |value: &dyn Fn(&Cell) -> f64| {
            let values: Vec<f32> = cells.iter().map(|cell| value(cell) as f32).collect();
            Tensor::from_slice(&values).view([count, 1, 1]).to_device(device)
        };
        Self {
            weight: zeros([count, dim, classes]),
            bias: zeros([count, 1, classes]),
            momenta: [zeros([count, dim, classes]), zeros([count, 1, classes])],
            lr: column(&|cell| cell.lr.unwrap_or(0.0)),
            weight_decay: column(&|cell| cell.weight_decay),
        }
    }

    /// Takes one step of all probes, as in `torch.optim.SGD`; `share` is the fraction of the full rate.
    fn step(&mut self, features: &Tensor, labels: &Tensor, share: f64) {
        let rows = labels.size()[0];
        // All probes use the same features.
        let shared = features.unsqueeze(0);
        let logits = shared.matmul(&self.weight) + &self.bias;
        let labels = labels.view([1, rows, 1]).expand([logits.size()[0], rows, 1], false);
        let minus_one = Tensor::full_like(&labels, -1.0).to_kind(Kind::Float);
        let error = logits.softmax(2, Kind::Float).scatter_add(2, &labels, &minus_one) / rows as f64;
        let weight_gradient = shared.transpose(1, 2).matmul(&error) + &self.weight * &self.weight_decay;
        let bias_gradient = error.sum_dim_intlist([1_i64].as_slice(), true, Kind::Float);
        let rate = &self.lr * share;
        let [weight_momentum, bias_momentum] = &mut self.momenta;
        *weight_momentum = &*weight_momentum * MOMENTUM + weight_gradient;
        *bias_momentum = &*bias_momentum * MOMENTUM + bias_gradient;
        self.weight -= &rate * &*weight_momentum;
        self.bias -= &rate * &*bias_momentum;
    }
}

/// Trains the probes of each layer's cells from zero. `scales` is empty, or has one entry for each layer.
///
/// # Errors
/// If a batch cannot be loaded.
pub(super) fn fit(
    passes: &mut dyn Passes,
    cells: &[Vec<Cell>],
    classes: usize,
    scales: &[Scale],
    epochs: u64,
    device: Device,
) -> Result<Vec<Vec<Head>>, EvalError> {
    let total = (epochs * passes.steps()).max(1) as f64;
    let mut stacks: Vec<Option<Stack>> = cells.iter().map(|_| None).collect();
    let mut steps = 0_u64;
    for epoch in 0..epochs {
        passes.epoch(epoch, &mut |layers| {
            let share = 0.5 * (1.0 + (std::f64::consts::PI * steps as f64 / total).cos());
            no_grad(|| {
                for (at, batch) in layers.iter().enumerate() {
                    let mut features = batch.features.to_device(device);
                    if let Some(scale) = scales.get(at) {
                        features = scale.apply(&features);
                    }
                    let dim = features.size()[1];
                    let stack =
                        stacks[at].get_or_insert_with(|| Stack::new(&cells[at], dim, classes, device));
                    stack.step(&features, &batch.labels.to_device(device), share);
                }
            });
            steps += 1;
        })?;
    }
    let heads = |(at, stack): (usize, Stack)| {
        let head = |cell: usize| {
            let (weight, bias) = (stack.weight.get(cell as i64), stack.bias.get(cell as i64).squeeze_dim(0));
            Head::new(weight, bias, scales.get(at), steps, true)
        };
        (0..cells[at].len()).map(head).collect()
    };
    Ok(stacks.into_iter().flatten().enumerate().map(heads).collect())
}
