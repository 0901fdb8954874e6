//! Check that a checkpoint is usable: all its numbers are finite, and so are features under its weights.
//!
//! Finite weights may still overflow in the next pass, so the check computes features of a few random images,
//! as `embed` does: on the CPU in f32, with running statistics. The run's state does not change.

use tch::{Device, Tensor, no_grad};

use crate::checkpoint::{Checkpoint, CheckpointError, MODEL, OPTIMIZER, PROBE, STATE};
use crate::model::{Encoder, EncoderConfig, NamedTensors, WeightsError};
use crate::rng::{Purpose, Stream};
use crate::train::TrainError;

/// Number of images whose features are computed.
const IMAGES: u32 = 2;

/// Names a quantity that is not finite, of weights, statistics, the optimiser's buffers, the probe or the features.
pub(super) fn not_finite(
    config: EncoderConfig,
    model: &NamedTensors,
    optimizer: &NamedTensors,
    probe: Option<&NamedTensors>,
) -> Option<String> {
    let named = |tensors: &NamedTensors, what: &str| tensors.not_finite().map(|name| format!("{what}{name}"));
    // Weights of another shape are skipped: loading them reports that.
    let is_finite = || features_of_drawn(config, model).is_none_or(|features| are_finite(&features));
    named(model, "")
        .or_else(|| named(optimizer, "the optimiser's buffer of "))
        .or_else(|| named(probe?, "the probe's "))
        .or_else(|| (!is_finite()).then(|| "a feature under its weights".to_owned()))
}

/// Returns the features of random images; `None` if the weights belong to another network.
///
/// # Shape
/// `[IMAGES, dim]` f32
fn features_of_drawn(config: EncoderConfig, model: &NamedTensors) -> Option<Tensor> {
    let mut encoder = Encoder::new(config, 0, Device::Cpu);
    encoder.load(model).ok()?;
    let side = config.image_size;
    let mut stream = Stream::new(0, Purpose::Soundness, 0, 0);
    let pixels: Vec<u8> = (0..IMAGES * 3 * side * side).map(|_| stream.below(256) as u8).collect();
    Some(no_grad(|| encoder.forward(&encoder.images(&pixels), false)))
}

fn are_finite(features: &Tensor) -> bool {
    features.isfinite().all().int64_value(&[]) == 1
}

/// Checks an encoder that starts with the weights of the file `init`: random images must have finite features
/// that are not all equal.
///
/// # Errors
/// If a feature is not finite, or all are equal; `wrong` makes the error for equal features.
pub(in crate::train) fn check_initial(
    encoder: &Encoder,
    init: &str,
    wrong: impl FnOnce(WeightsError) -> TrainError,
) -> Result<(), TrainError> {
    match features_of_drawn(encoder.config(), &encoder.weights()) {
        Some(features) if !are_finite(&features) => Err(TrainError::not_encoded(init, "f32")),
        // With `dim = 1` there are only two unit vectors, so equal features are normal.
        Some(features) if features.size()[1] > 1 && features.get(0).equal(&features.get(1)) => {
            Err(wrong(WeightsError::Constant))
        }
        _ => Ok(()),
    }
}

/// Checks the numbers of a checkpoint with complete files.
///
/// # Errors
/// [`CheckpointError::NotFinite`] with the first name, or if the store fails.
pub(super) fn check(checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    let malformed =
        |source| CheckpointError::Malformed { file: checkpoint.folder().join(STATE).to_string(), source };
    let state = checkpoint.state()?;
    let config: EncoderConfig = serde_json::from_value(state.encoder).map_err(malformed)?;
    let read = |name| Ok::<_, CheckpointError>(NamedTensors::from_bytes(&checkpoint.read(name)?).ok());
    // Files that are not tensors are skipped: loading them reports that.
    let (Some(model), Some(optimizer)) = (read(MODEL)?, read(OPTIMIZER)?) else { return Ok(()) };
    // A run with a probe cannot resume without the probe's file.
    let probe = if state.config["probe"] == true { read(PROBE)? } else { None };
    match not_finite(config, &model, &optimizer, probe.as_ref()) {
        Some(name) => Err(CheckpointError::NotFinite { checkpoint: checkpoint.folder().to_string(), name }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::checkpoint::{
        CheckpointManifest, Cursor, TrainState, TrainedOn, checkpoint_name, list_checkpoints, publish_file,
    };
    use crate::run_config::{Architecture, TrainConfig};
    use crate::storage::Location;
    use crate::train::checkpoint::resume::newest;

    fn encoder() -> Encoder {
        let config = TrainConfig {
            arch: Architecture::ResNet20Cifar,
            image_size: 16,
            dim: 8,
            ..TrainConfig::default()
        };
        Encoder::new(config.encoder(), 1, Device::Cpu)
    }

    fn nothing() -> NamedTensors {
        NamedTensors::from_tensors([])
    }

    #[test]
    fn finite_weights_whose_features_overflow_are_found() {
        let encoder = encoder();
        for (_, mut weight) in encoder.parameters() {
            let _ = no_grad(|| weight.g_mul_scalar_(1e9));
        }
        let weights = encoder.weights();
        assert_eq!(weights.not_finite(), None);
        let found = not_finite(encoder.config(), &weights, &nothing(), None);
        assert_eq!(found.as_deref(), Some("a feature under its weights"));
    }

    #[test]
    fn a_statistic_and_a_buffer_that_are_not_finite_are_named() {
        let encoder = encoder();
        let buffer = [("fc.weight".to_owned(), Tensor::from_slice(&[f32::INFINITY]))];
        let wrong = NamedTensors::from_tensors(buffer);
        let found = |optimizer, probe| not_finite(encoder.config(), &encoder.weights(), optimizer, probe);
        let none = nothing();
        let expected = "the optimiser's buffer of fc.weight";
        assert_eq!(found(&wrong, None).as_deref(), Some(expected));
        assert_eq!(found(&none, Some(&wrong)).as_deref(), Some("the probe's fc.weight"));
        let _ = no_grad(|| encoder.statistics().remove(0).fill_(f64::NAN));
        let found = found(&none, None);
        assert!(found.is_some_and(|name| name.contains("running_")));
    }

    fn publish(run: &Location, step: u64, encoder: &Encoder, config: Value) {
        let folder = run.join("checkpoints").join(&checkpoint_name(step));
        let state = TrainState {
            cursor: Cursor { step, ..Cursor::default() },
            instances: 1,
            encoder: serde_json::to_value(encoder.config()).expect("plain data"),
            config,
            ..TrainState::default()
        };
        let state = serde_json::to_vec(&state).expect("plain data");
        let files =
            [(MODEL, encoder.weights().to_bytes()), (OPTIMIZER, nothing().to_bytes()), (STATE, state)];
        let files = files.map(|(name, bytes)| publish_file(&folder, name, bytes).expect("published"));
        let trained_on =
            TrainedOn { dataset_digest: "d".into(), split: "train".into(), split_digest: "s".into() };
        CheckpointManifest::new(step, 0, trained_on, files.to_vec()).publish(&folder).expect("published");
    }

    #[test]
    fn a_checkpoint_without_the_file_of_its_probe_is_passed_over() {
        let run = Location::in_memory().join("run");
        publish(&run, 5, &encoder(), Value::Null);
        publish(&run, 10, &encoder(), serde_json::json!({"probe": true}));
        let found = newest(&run).expect("one is whole").expect("there are some");
        assert_eq!(found.manifest().step, 5);
    }

    #[test]
    fn a_run_without_a_whole_checkpoint_names_all_of_them() {
        let run = Location::in_memory().join("run");
        for step in [5, 10, 15] {
            publish(&run, step, &encoder(), Value::Null);
            let folder = run.join("checkpoints").join(&checkpoint_name(step));
            folder.join(MODEL).delete().expect("deleted");
        }
        let error = newest(&run).expect_err("none is whole");
        assert_eq!(error.failure(), crate::failure::Failure::Data);
        let error = crate::failure::chain(&error);
        let expected = "3 of 3 checkpoints cannot be used (step-00000015, step-00000010, step-00000005)";
        assert!(error.contains(expected), "{error}");
        assert!(
            error.ends_with("step-00000015/model.safetensors: missing, and the checkpoint needs it"),
            "{error}"
        );
        assert_eq!(list_checkpoints(&run).expect("a list").len(), 3, "none is removed");
    }

    /// Earlier versions checked weights alone and published such checkpoints.
    #[test]
    fn a_run_goes_on_from_the_newest_checkpoint_that_can_embed() {
        let run = Location::in_memory().join("run");
        let encoder = encoder();
        publish(&run, 5, &encoder, Value::Null);
        for (_, mut weight) in encoder.parameters() {
            let _ = no_grad(|| weight.g_mul_scalar_(1e9));
        }
        publish(&run, 10, &encoder, Value::Null);
        publish(&run, 15, &encoder, Value::Null);
        let found = newest(&run).expect("one is sound").expect("there are some");
        assert_eq!(found.manifest().step, 5);
        assert_eq!(list_checkpoints(&run).expect("a list").len(), 1, "the others would count as newer");
    }
}
