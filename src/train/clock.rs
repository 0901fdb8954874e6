//! Where the time of a step goes.

use std::time::Instant;

use tch::Device;

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

/// Adds up the time of each phase, if it is asked to: then each mark waits for the device.
#[derive(Debug)]
pub(super) struct Clock {
    running: Option<(Device, Instant)>,
    pub(super) seconds: [f64; Phase::NAMES.len()],
}

impl Clock {
    /// A clock that does nothing.
    pub(super) fn off() -> Self {
        Self { running: None, seconds: [0.0; Phase::NAMES.len()] }
    }

    /// Starts from zero.
    pub(super) fn start(&mut self, device: Device) {
        wait_for(device);
        *self = Self { running: Some((device, Instant::now())), ..Self::off() };
    }

    /// The phase ends here.
    pub(super) fn mark(&mut self, phase: Phase) {
        if let Some((device, since)) = &mut self.running {
            wait_for(*device);
            let now = Instant::now();
            self.seconds[phase as usize] += (now - *since).as_secs_f64();
            *since = now;
        }
    }
}
