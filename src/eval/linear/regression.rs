//! Logistic regression by L-BFGS: each evaluation of loss and gradient is one pass over the rows.

use tch::{Device, Kind, Tensor, no_grad};

use super::LinearError;
use super::examples::{Batch, Examples};
use super::head::{Head, Scale};
use super::lbfgs::{Minimum, minimise};
use super::sgd::Cell;
use crate::distributed::{DistributedError, ProcessGroup, Reduce};
use crate::progress::Progress;

/// The largest number of the gradient at the minimum. The loss is a mean, so this does not grow with the rows;
/// scikit-learn's default is 1e-4.
const TOLERANCE: f64 = 2e-6;

/// The minimum for each weight decay. The strongest is found first, and each is the start of the next. In the progress
/// each has `iterations` steps, most of which a minimum does not need. Every process of the group gets the same heads.
///
/// # Errors
/// If the table cannot be read, or another process fails.
pub(super) fn fit(
    rows: &Examples<'_>,
    cells: &[Cell],
    (classes, iterations): (usize, usize),
    scale: Option<&Scale>,
    device: Device,
    group: &ProcessGroup,
    progress: &dyn Progress,
) -> Result<Vec<Head>, LinearError> {
    let dim = rows.dim() as i64;
    let shape = Shape { dim, classes: classes as i64 };
    let mut order: Vec<usize> = (0..cells.len()).collect();
    order.sort_by(|&a, &b| cells[b].weight_decay.total_cmp(&cells[a].weight_decay));
    let mut start = Tensor::zeros([(dim + 1) * shape.classes], (Kind::Double, device));
    let mut heads: Vec<Option<Head>> = cells.iter().map(|_| None).collect();
    for at in order {
        let loss = |parameters: &Tensor| {
            no_grad(|| mean_loss(rows, parameters, shape, cells[at].weight_decay, scale, group))
        };
        // A step looks at the rows once, seldom more often.
        let mut looked = 0;
        let minimum = if group.is_first() {
            let mut led = |parameters: &Tensor| {
                if looked < iterations {
                    looked += 1;
                    progress.advance(1);
                }
                lead(group, parameters, Next::Evaluate)?;
                loss(parameters)
            };
            let minimum = minimise(&start, &mut led, TOLERANCE, iterations)?;
            lead(group, &minimum.at, Next::End { steps: minimum.steps, converged: minimum.converged })?;
            minimum
        } else {
            follow(group, &start, loss)?
        };
        start = minimum.at.copy();
        let (weight, bias) = shape.parts(&minimum.at);
        let (weight, bias) = (weight.to_kind(Kind::Float), bias.to_kind(Kind::Float));
        heads[at] = Some(Head::new(weight, bias, scale, minimum.steps, minimum.converged));
        progress.advance((iterations - looked) as u64);
    }
    Ok(heads.into_iter().flatten().collect())
}

/// What all processes do next at the parameters that rank 0 sends them.
enum Next {
    /// Loss and gradient.
    Evaluate,
    /// Nothing: they are the result.
    End { steps: u64, converged: bool },
}

/// Tells the other processes what is next. Rank 0 alone decides it: where processors round differently, each by itself
/// would take other steps.
fn lead(group: &ProcessGroup, parameters: &Tensor, next: Next) -> Result<(), DistributedError> {
    if group.world() == 1 {
        return Ok(());
    }
    let head = match next {
        Next::Evaluate => [1.0, 0.0, 0.0],
        Next::End { steps, converged } => [0.0, steps as f64, f64::from(u8::from(converged))],
    };
    group.broadcast(&[Tensor::from_slice(&head), parameters.to_device(Device::Cpu)], 0)
}

/// Evaluates wherever rank 0 does, until that has the minimum.
fn follow(
    group: &ProcessGroup,
    start: &Tensor,
    loss: impl Fn(&Tensor) -> Result<(f64, Tensor), LinearError>,
) -> Result<Minimum, LinearError> {
    loop {
        let head = Tensor::zeros([3], (Kind::Double, Device::Cpu));
        let parameters = start.to_device(Device::Cpu).copy();
        let message = [head, parameters];
        group.broadcast(&message, 0)?;
        let [head, parameters] = message;
        let at = parameters.to_device(start.device());
        if head.double_value(&[0]) == 0.0 {
            let (steps, converged) = (head.double_value(&[1]) as u64, head.double_value(&[2]) != 0.0);
            return Ok(Minimum { at, steps, converged });
        }
        let _ = loss(&at)?;
    }
}

/// Weights and bias as one vector.
#[derive(Clone, Copy)]
struct Shape {
    dim: i64,
    classes: i64,
}

impl Shape {
    /// `[dim, classes]` and `[classes]`.
    fn parts(self, parameters: &Tensor) -> (Tensor, Tensor) {
        let weights = self.dim * self.classes;
        let weight = parameters.narrow(0, 0, weights).view([self.dim, self.classes]);
        (weight, parameters.narrow(0, weights, self.classes))
    }
}

/// The mean cross entropy with the weights' decay, and its gradient. Products are f32, sums f64: over the chunks of a
/// process in their order, then over the processes.
fn mean_loss(
    rows: &Examples<'_>,
    parameters: &Tensor,
    shape: Shape,
    weight_decay: f64,
    scale: Option<&Scale>,
    group: &ProcessGroup,
) -> Result<(f64, Tensor), LinearError> {
    let (device, count) = (parameters.device(), rows.len() as f64);
    let (weight, bias) = shape.parts(parameters);
    let (narrow_weight, narrow_bias) = (weight.to_kind(Kind::Float), bias.to_kind(Kind::Float));
    let mut loss = Tensor::zeros([0_i64; 0], (Kind::Double, device));
    let mut weight_gradient = weight.zeros_like();
    let mut bias_gradient = bias.zeros_like();
    for batch in rows.chunks() {
        let Batch { features, labels } = batch?;
        let mut features = features.to_device(device);
        if let Some(scale) = scale {
            features = scale.apply(&features);
        }
        let labels = labels.to_device(device).unsqueeze(1);
        let logits = features.matmul(&narrow_weight) + &narrow_bias;
        let log_sum = logits.logsumexp([1_i64].as_slice(), true);
        loss += (&log_sum - logits.gather(1, &labels, false)).sum(Kind::Double);
        let minus_one = Tensor::full_like(&labels, -1.0).to_kind(Kind::Float);
        let error = (logits - log_sum).exp().scatter_add(1, &labels, &minus_one);
        weight_gradient += features.transpose(0, 1).matmul(&error).to_kind(Kind::Double);
        bias_gradient += error.sum_dim_intlist([0_i64].as_slice(), false, Kind::Double);
    }
    if group.world() > 1 {
        let own = [loss.reshape([1]), weight_gradient.flatten(0, -1), bias_gradient];
        let sums = Tensor::cat(&own, 0).to_device(Device::Cpu);
        group.all_reduce(&sums, Reduce::Sum)?;
        let sums = sums.to_device(device);
        loss = sums.get(0);
        let (weight, bias) = shape.parts(&sums.narrow(0, 1, sums.size()[0] - 1));
        (weight_gradient, bias_gradient) = (weight, bias);
    }
    let decay = 0.5 * weight_decay * weight.square().sum(Kind::Double).double_value(&[]);
    let gradient = Tensor::cat(
        &[(weight_gradient / count + &weight * weight_decay).flatten(0, -1), bias_gradient / count],
        0,
    );
    Ok((loss.double_value(&[]) / count + decay, gradient))
}
