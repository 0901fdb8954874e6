//! Limited-memory BFGS.
//!
//! # Source
//! Nocedal and Wright, Numerical Optimization (2006), algorithms 7.4 and 7.5; the line search is Lewis and
//! Overton's (2013), which needs a decrease and a curvature and finds both by halving and doubling.

use std::collections::VecDeque;

use tch::{Kind, Tensor};

/// Pairs of steps and gradient changes that are remembered.
const MEMORY: usize = 20;
/// The decrease that a step needs, of what the slope promises.
const DECREASE: f64 = 1e-4;
/// The share of the slope that may be left after a step.
const CURVATURE: f64 = 0.9;
/// The largest number of the gradient that counts as nil where rounding allows no further decrease;
/// scikit-learn's default tolerance.
const NIL: f64 = 1e-4;
/// Evaluations of a line search at most.
const TRIALS: usize = 30;

/// Where a minimisation ended.
#[derive(Debug)]
pub(super) struct Minimum {
    /// The point.
    pub at: Tensor,
    /// Steps taken.
    pub steps: u64,
    /// Whether the gradient is nil, within the tolerance or as far as rounding allows.
    pub converged: bool,
}

/// A function's value and gradient.
struct Point {
    at: Tensor,
    value: f64,
    gradient: Tensor,
}

/// Minimises a smooth function from `start` (a vector of f64) until no number of the gradient exceeds
/// `tolerance`, or for `most_steps`.
///
/// # Errors
/// Those of the function.
pub(super) fn minimise<E>(
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
    // Step, change of the gradient, and one over their product.
    let mut memory: VecDeque<(Tensor, Tensor, f64)> = VecDeque::new();
    let mut steps = 0;
    while steps < most_steps as u64 {
        if largest(&point.gradient) <= tolerance {
            return Ok(Minimum { at: point.at, steps, converged: true });
        }
        let mut direction = direction(&point.gradient, &memory);
        let mut slope = dot(&direction, &point.gradient);
        if slope >= 0.0 {
            // Rounding has spoilt what was remembered.
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

/// The two loops of algorithm 7.4.
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

/// A step along the direction that decreases the value and the slope enough; where rounding allows no decrease
/// any more, none.
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
        // A value that is not a number is no decrease.
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

    /// Rosenbrock's valley, whose minimum is at (1, 1).
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
