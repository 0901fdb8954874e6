//! The encoder's passes as CUDA graphs, for `cuda_graphs`: recorded once, then replayed with one launch each.
//!
//! A graph reads and writes the addresses that it was recorded with. So images and the features' gradient are
//! copied into fixed tensors, and features are copied out before the next replay overwrites them. Objective,
//! optimiser and bank run outside the graphs, and so do batches of another size. Tests replace CUDA by
//! another [`Recorder`], as a wrong graph reads old memory without an error.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use tch::{Device, Kind, Tensor, no_grad};

use super::TrainError;
use crate::distributed::{CudaGraph, GraphRecorder};
use crate::guard::guard;
use crate::model::{Encoder, libtorch};

/// Full batches that pass without a graph first, while cuDNN tries its convolutions and libraries allocate.
///
/// # Source
/// `torch.cuda.make_graphed_callables`, `num_warmup_iters`.
pub(super) const STEPS_BEFORE: u32 = 3;

/// Work on fixed tensors; returns its output tensors, or the message of a panic.
pub(super) type Work = Box<dyn Fn() -> Result<Vec<Tensor>, String>>;

/// Recorder of work on a device.
pub(super) trait Recorder: fmt::Debug {
    /// Records work without running it.
    ///
    /// # Errors
    /// If the work fails or cannot be recorded, with the reason.
    fn record(&self, work: Work) -> Result<Box<dyn Recording>, String>;
}

/// Recorded work, which can be replayed any number of times.
pub(super) trait Recording: fmt::Debug {
    /// Runs the recorded work once.
    ///
    /// # Panics
    /// If the device fails, like libtorch's operators.
    fn replay(&self);

    /// Returns the output tensors: always the same ones, overwritten by each replay.
    fn made(&self) -> &[Tensor];
}

impl Recorder for GraphRecorder {
    fn record(&self, work: Work) -> Result<Box<dyn Recording>, String> {
        let (graph, made) = self.record(work)?;
        Ok(Box::new(OnCuda { graph, made }))
    }
}

#[derive(Debug)]
struct OnCuda {
    graph: CudaGraph,
    made: Vec<Tensor>,
}

impl Recording for OnCuda {
    fn replay(&self) {
        self.graph.replay().unwrap_or_else(|error| panic!("CUDA graph: {error}"));
    }

    fn made(&self) -> &[Tensor] {
        &self.made
    }
}

/// CUDA graphs of a run, recorded after the first full batches.
#[derive(Debug)]
pub(super) struct Graphs {
    recorder: Box<dyn Recorder>,
    /// Images of a full batch.
    whole: usize,
    passed: u32,
    recorded: Option<EncoderGraphs>,
}

impl Graphs {
    /// Creates the graphs of a CUDA device.
    ///
    /// # Errors
    /// If the device is not a CUDA device, or the program has no CUDA.
    pub(super) fn on(device: Device, whole: usize) -> Result<Self, TrainError> {
        let number = Self::device_number(device)?;
        let recorder = GraphRecorder::new(number).map_err(|reason| unrecorded(&reason))?;
        tracing::info!(
            "CUDA graphs: {STEPS_BEFORE} batches of {whole} images pass without, then they are recorded; \
             batches of another size pass without them"
        );
        Ok(Self::by(Box::new(recorder), whole))
    }

    /// Returns the number of a CUDA device.
    pub(super) fn device_number(device: Device) -> Result<usize, TrainError> {
        let Device::Cuda(number) = device else {
            let reason = "--cuda-graphs needs a CUDA device, and this run has the CPU; leave it out, or give \
                          --device cuda:0";
            return Err(TrainError::Config { reason: reason.into() });
        };
        Ok(number)
    }

    /// Creates graphs with this recorder, for batches of `whole` images.
    pub(super) fn by(recorder: Box<dyn Recorder>, whole: usize) -> Self {
        Self { recorder, whole, passed: 0, recorded: None }
    }

    /// Returns the graphs for a batch of this many images; `None` if the batch passes without a graph.
    pub(super) fn of_batch(
        &mut self,
        encoder: &Rc<Encoder>,
        images: usize,
    ) -> Result<Option<&EncoderGraphs>, TrainError> {
        if images != self.whole {
            return Ok(None);
        }
        if self.recorded.is_none() {
            if self.passed < STEPS_BEFORE {
                self.passed += 1;
                return Ok(None);
            }
            let recorded = EncoderGraphs::record(self.recorder.as_ref(), encoder, images);
            self.recorded = Some(recorded.map_err(|reason| unrecorded(&reason))?);
            tracing::info!("forward and backward pass are recorded as CUDA graphs");
        }
        Ok(self.recorded.as_ref())
    }
}

fn unrecorded(reason: &str) -> TrainError {
    let reason = first_line(reason);
    TrainError::Config { reason: format!("--cuda-graphs cannot be used here: {reason}; leave it out") }
}

/// Returns libtorch's message without its stack. tch's operators panic by `unwrap`, so the message is wrapped
/// in the error's `Debug` form, where a newline is two characters.
fn first_line(message: &str) -> &str {
    let words = message.split_once("Torch(\"").map_or(message, |(_, words)| words.trim_end_matches("\")"));
    let line = words.lines().next().unwrap_or_default();
    line.split_once("\\n").map_or(line, |(line, _)| line)
}

/// Recorded forward and backward pass for batches of one size.
#[derive(Debug)]
pub(super) struct EncoderGraphs {
    /// `[batch, 3, side, side]` f32
    images: Tensor,
    /// `[batch, dim]` f32
    gradient: Tensor,
    parameters: Vec<Tensor>,
    /// Recorded pass to the features and the pooled features.
    forward: Box<dyn Recording>,
    /// Recorded pass to the gradients of the parameters.
    backward: Box<dyn Recording>,
}

impl EncoderGraphs {
    fn record(recorder: &dyn Recorder, encoder: &Rc<Encoder>, batch: usize) -> Result<Self, String> {
        let (config, options) = (encoder.config(), (Kind::Float, encoder.device()));
        let (batch, side) = (batch as i64, i64::from(config.image_size));
        let images = Tensor::zeros([batch, 3, side, side], options);
        let gradient = Tensor::zeros([batch, config.dim as i64], options);
        let parameters: Vec<Tensor> = encoder.parameters().into_iter().map(|(_, tensor)| tensor).collect();
        // Passes the attached features from the forward to the backward recording.
        let attached = Rc::new(Cell::new(None));
        let forward = {
            let (encoder, images, attached) =
                (Rc::clone(encoder), images.shallow_clone(), Rc::clone(&attached));
            recorder.record(guarded(move || {
                let (features, pooled) = encoder.forward_with_pooled(&images);
                let made = vec![features.detach(), pooled.detach()];
                attached.set(Some(features));
                made
            }))?
        };
        let backward = {
            let (gradient, parameters) = (gradient.shallow_clone(), shallow(&parameters));
            recorder.record(guarded(move || {
                let features: Tensor = attached.take().expect("the forward pass comes before");
                // Without existing gradients, autograd allocates them in the memory of the graph.
                libtorch::drop_gradients(&parameters);
                (features * &gradient).sum(Kind::Float).backward();
                parameters.iter().map(Tensor::grad).collect()
            }))?
        };
        Ok(Self { images, gradient, parameters, forward, backward })
    }

    /// Returns features and pooled features, these valid until the next pass. Updates batch-norm statistics.
    ///
    /// # Shape
    /// As [`Encoder::forward_with_pooled`], but without an autograd graph
    pub(super) fn forward(&self, images: &Tensor) -> (Tensor, Tensor) {
        put(&self.images, images);
        self.forward.replay();
        let [features, pooled] = self.forward.made() else { unreachable!("the forward pass makes two") };
        (features.copy(), pooled.shallow_clone())
    }

    /// Sets the parameters' gradients from that of the last batch's features.
    ///
    /// # Shape
    /// `gradient: [batch, dim]`
    pub(super) fn backward(&self, gradient: &Tensor) {
        put(&self.gradient, gradient);
        self.backward.replay();
        libtorch::set_gradients(&self.parameters, self.backward.made());
    }
}

/// Wraps operators of tch so that their panics become errors.
fn guarded(work: impl Fn() -> Vec<Tensor> + 'static) -> Work {
    Box::new(move || guard(&work))
}

/// Copies values into a fixed tensor.
fn put(into: &Tensor, values: &Tensor) {
    no_grad(|| into.shallow_clone().copy_(values));
}

fn shallow(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(Tensor::shallow_clone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_by_its_first_line_however_it_comes() {
        let of_tch = |error: &str| format!("called `Result::unwrap()` on an `Err` value: Torch({error:?})");
        let message = "CUDA out of memory. Tried to allocate 2.00 GiB";
        for text in [
            message.to_owned(),
            of_tch(message),
            format!("{message}\nException raised from malloc"),
            of_tch(&format!("{message}\nException raised from malloc (\"C++\")")),
        ] {
            assert_eq!(first_line(&text), message, "{text}");
        }
    }
}
