//! Logistic regression by L-BFGS: each evaluation of loss and gradient is one pass over the rows.

use std::collections::VecDeque;

use tch::{Device, Kind, Tensor, no_grad};

use super::examples::{Batch, Examples};
use super::head::{Head, Scale};
use super::sgd::Cell;
use crate::distributed::{DistributedError, ProcessGroup, Reduce};
use crate::eval::EvalError;
use crate::progress::Progress;

/// Largest gradient component at the minimum. The loss is a mean, so this does not grow with the rows;
/// scikit-learn's default is 1e-4.
const TOLERANCE: f64 = 2e-6;

/// Pairs of steps and gradient changes that are kept.
const MEMORY: usize = 20;
/// Decrease that a step must reach, as a fraction of what the slope promises.
const DECREASE: f64 = 1e-4;
/// Fraction of the slope that may remain after a step.
const CURVATURE: f64 = 0.9;
/// Largest gradient component that counts as zero if rounding allows no further decrease; scikit-learn's
/// default tolerance.
const NIL: f64 = 1e-4;
/// Maximum evaluations of a line search.
const TRIALS: usize = 30;

/// Fits a head for each weight decay, the strongest first; each fit starts from the previous minimum. The progress
/// counts `iterations` steps per fit, most of them not needed. All processes of the group get the same heads.
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
) -> Result<Vec<Head>, EvalError> {
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
        // A step evaluates the rows once, seldom more often.
        let mut looked = 0;
        let minimum = if group.is_first() {
            let mut led = |parameters: &Tensor| {
                if looked < iterations {
                    looked += 1;
                    progress.advance(1);
                }
                lead(group, parameters, None)?;
                loss(parameters)
            };
            let minimum = minimise(&start, &mut led, TOLERANCE, iterations)?;
            lead(group, &minimum.at, Some(&minimum))?;
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

/// Sends to the other processes the parameters at which all evaluate loss and gradient, or the result. Rank 0 alone
/// decides: processors that round differently would take different steps.
fn lead(group: &ProcessGroup, parameters: &Tensor, end: Option<&Minimum>) -> Result<(), DistributedError> {
    if group.world() == 1 {
        return Ok(());
    }
    let head = match end {
        None => [1.0, 0.0, 0.0],
        Some(Minimum { steps, converged, .. }) => [0.0, *steps as f64, f64::from(u8::from(*converged))],
    };
    group.broadcast(&[Tensor::from_slice(&head), parameters.to_device(Device::Cpu)], 0)
}

/// Evaluates the points that rank 0 sends, until it sends the minimum.
fn follow(
    group: &ProcessGroup,
    start: &Tensor,
    loss: impl Fn(&Tensor) -> Result<(f64, Tensor), EvalError>,
) -> Result<Minimum, EvalError> {
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

/// Layout of weights and bias in one vector.
#[derive(Clone, Copy)]
struct Shape {
    dim: i64,
    classes: i64,
}

impl Shape {
    /// Splits a vector into weights, `[dim, classes]`, and bias, `[classes]`.
    fn parts(self, parameters: &Tensor) -> (Tensor, Tensor) {
        let weights = self.dim * self.classes;
        let weight = parameters.narrow(0, 0, weights).view([self.dim, self.classes]);
        (weight, parameters.narrow(0, weights, self.classes))
    }
}

/// Computes the mean cross entropy with weight decay, and its gradient. Products are f32, sums are f64: over
/// each process's chunks in order, then over the processes.
fn mean_loss(
    rows: &Examples<'_>,
    parameters: &Tensor,
    shape: Shape,
    weight_decay: f64,
    scale: Option<&Scale>,
    group: &ProcessGroup,
) -> Result<(f64, Tensor), EvalError> {
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

/// Result of a minimisation.
#[derive(Debug)]
struct Minimum {
    /// Final point.
    at: Tensor,
    /// Steps taken.
    steps: u64,
    /// Whether the gradient is zero, within the tolerance or as far as rounding allows.
    converged: bool,
}

/// Value and gradient of a function at a point.
struct Point {
    at: Tensor,
    value: f64,
    gradient: Tensor,
}

/// Minimises a smooth function by limited-memory BFGS from `start` (a vector of f64). Stops once no component of the
/// gradient exceeds `tolerance`, or after `most_steps`.
///
/// # Source
/// Nocedal and Wright, Numerical Optimization (2006), algorithms 7.4 and 7.5; the line search is Lewis and
/// Overton's (2013), which needs a decrease and a curvature and finds both by halving and doubling.
///
/// # Errors
/// As `function`.
fn minimise<E>(
    start: &Tensor,
    function: &mut impl FnMut(&Tensor) -> Result<(f64, Tensor), E>,
    tolerance: f64,
    most_steps: usize,
) -> Result<Minimum, E> {
    let mut evaluate = |at: Tensor| {
        let (value, gradient) = function(&at)?;
        Ok(Point { at, value, gradient })
    };
    let mut point = evaluate(start.copy())?;
    // Step, change of the gradient, and the reciprocal of their product.
    let mut memory: VecDeque<(Tensor, Tensor, f64)> = VecDeque::new();
    let mut steps = 0;
    while steps < most_steps as u64 {
        if largest(&point.gradient) <= tolerance {
            return Ok(Minimum { at: point.at, steps, converged: true });
        }
        let mut direction = direction(&point.gradient, &memory);
        let mut slope = dot(&direction, &point.gradient);
        if slope >= 0.0 {
            // Rounding errors have spoilt the memory.
            memory.clear();
            direction = -&point.gradient;
            slope = -dot(&point.gradient, &point.gradient);
        }
        let first =
            if memory.is_empty() { 1.0 / point.gradient.norm().double_value(&[]).max(1.0) } else { 1.0 };
        let Some(next) = search(&point, &direction, slope, first, &mut evaluate)? else {
            let converged = largest(&point.gradient) <= NIL.max(tolerance);
            return Ok(Minimum { at: point.at, steps, converged });
        };
        let (step, change) = (&next.at - &point.at, &next.gradient - &point.gradient);
        let product = dot(&step, &change);
        if product > f64::EPSILON * dot(&change, &change) {
            memory.push_back((step, change, 1.0 / product));
            if memory.len() > MEMORY {
                memory.pop_front();
            }
        }
        point = next;
        steps += 1;
    }
    let converged = largest(&point.gradient) <= tolerance;
    Ok(Minimum { at: point.at, steps, converged })
}

/// Computes the search direction by the two loops of algorithm 7.4.
fn direction(gradient: &Tensor, memory: &VecDeque<(Tensor, Tensor, f64)>) -> Tensor {
    let mut direction = -gradient;
    let mut weights = Vec::new();
    for (step, change, inverse) in memory.iter().rev() {
        let weight = inverse * dot(step, &direction);
        direction -= change * weight;
        weights.push(weight);
    }
    if let Some((_, change, inverse)) = memory.back() {
        direction *= 1.0 / (inverse * dot(change, change));
    }
    for ((step, change, inverse), weight) in memory.iter().zip(weights.iter().rev()) {
        let correction = weight - inverse * dot(change, &direction);
        direction += step * correction;
    }
    direction
}

/// Finds a step along the direction that decreases value and slope enough; `None` if rounding allows no
/// further decrease.
fn search<E>(
    from: &Point,
    direction: &Tensor,
    slope: f64,
    first: f64,
    evaluate: &mut dyn FnMut(Tensor) -> Result<Point, E>,
) -> Result<Option<Point>, E> {
    let (mut low, mut high, mut length) = (0.0, f64::INFINITY, first);
    let mut best: Option<Point> = None;
    for _ in 0..TRIALS {
        let next = evaluate(&from.at + direction * length)?;
        // NaN does not count as a decrease.
        let decreases = next.value <= from.value + DECREASE * length * slope;
        if !decreases {
            high = length;
        } else if dot(&next.gradient, direction) < CURVATURE * slope {
            low = length;
            best = Some(next);
        } else {
            return Ok(Some(next));
        }
        length = if high.is_finite() { f64::midpoint(low, high) } else { 2.0 * low };
    }
    Ok(best)
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    a.dot(b).double_value(&[])
}

fn largest(gradient: &Tensor) -> f64 {
    gradient.abs().max().to_kind(Kind::Double).double_value(&[])
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Rosenbrock's function, with its minimum at (1, 1).
    #[test]
    fn the_bottom_of_a_curved_valley_is_found() {
        let mut calls = 0;
        let mut valley = |at: &Tensor| {
            calls += 1;
            let (x, y) = (at.double_value(&[0]), at.double_value(&[1]));
            let value = (1.0 - x).powi(2) + 100.0 * (y - x * x).powi(2);
            let gradient = [-2.0 * (1.0 - x) - 400.0 * x * (y - x * x), 200.0 * (y - x * x)];
            Ok::<_, Infallible>((value, Tensor::from_slice(&gradient)))
        };
        let found = minimise(&Tensor::from_slice(&[-1.2, 1.0]), &mut valley, 1e-8, 200).expect("found");
        assert!(found.converged && found.steps < 60, "{found:?}");
        assert!((found.at.double_value(&[0]) - 1.0).abs() < 1e-6);
        assert!((found.at.double_value(&[1]) - 1.0).abs() < 1e-6);
        assert!(calls < 120, "{calls}");
    }

    #[test]
    fn a_minimum_that_is_not_reached_is_said_to_be_none() {
        let mut slope = |at: &Tensor| {
            Ok::<_, Infallible>(((-at).exp().sum(Kind::Double).double_value(&[]), -(-at).exp()))
        };
        let found = minimise(&Tensor::from_slice(&[0.0]), &mut slope, 1e-12, 3).expect("found");
        assert!(!found.converged);
    }
}
