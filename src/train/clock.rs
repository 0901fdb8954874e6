//! Where the time of a step goes, and what it starts on the device.

use std::collections::BTreeMap;
use std::time::Instant;

use tch::Device;

use crate::model::libtorch;
use crate::model::wait_for;

/// A phase of a step, in the order of the loop.
#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    /// Pixels to the device.
    Data,
    /// The encoder.
    Forward,
    /// Negatives, loss, gradient.
    Objective,
    /// Through the encoder.
    Backward,
    /// Reading the numbers, clipping, moving the weights.
    Optimizer,
    /// Moving the rows.
    Bank,
}

impl Phase {
    pub(super) const NAMES: [&str; 6] = ["data", "forward", "objective", "backward", "optimizer", "bank"];
}

/// What a clock adds up of each phase.
#[derive(Clone, Copy, Debug)]
enum Measure {
    Nothing,
    /// Time; each mark waits for the device.
    Time(Device, Instant),
    /// libtorch's operators.
    Operators,
}

/// Adds up time or operators by phase, if it is asked to.
#[derive(Debug)]
pub(super) struct Clock {
    measure: Measure,
    pub(super) seconds: [f64; Phase::NAMES.len()],
    /// By name.
    pub(super) operators: [BTreeMap<String, u64>; Phase::NAMES.len()],
}

impl Clock {
    /// A clock that does nothing.
    pub(super) fn off() -> Self {
        Self { measure: Measure::Nothing, seconds: Default::default(), operators: Default::default() }
    }

    /// Starts to take the time, from zero.
    pub(super) fn start(&mut self, device: Device) {
        wait_for(device);
        *self = Self { measure: Measure::Time(device, Instant::now()), ..Self::off() };
    }

    /// Starts to count operators, from zero.
    pub(super) fn start_counting(&mut self) {
        libtorch::start_counting();
        *self = Self { measure: Measure::Operators, ..Self::off() };
    }

    /// Counts no more.
    pub(super) fn stop_counting(&mut self) {
        libtorch::stop_counting();
        self.measure = Measure::Nothing;
    }

    /// The phase ends here.
    pub(super) fn mark(&mut self, phase: Phase) {
        match &mut self.measure {
            Measure::Nothing => {}
            Measure::Time(device, since) => {
                wait_for(*device);
                let now = Instant::now();
                self.seconds[phase as usize] += (now - *since).as_secs_f64();
                *since = now;
            }
            Measure::Operators => {
                for (name, count) in libtorch::take_counts() {
                    *self.operators[phase as usize].entry(name).or_default() += count;
                }
            }
        }
    }
}
