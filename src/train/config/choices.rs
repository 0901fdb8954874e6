//! Options that are one of a few names.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// In which precision the network computes. Normalisation, similarities and losses are f32 in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Precision {
    /// 32-bit floating point throughout.
    F32,
    /// The same, but products on tensor cores round their factors to 10 bits (CUDA only).
    Tf32,
    /// Convolutions and linear layers in bfloat16, weights and statistics in f32.
    Bf16,
    /// The same in half precision, with a loss scale.
    F16,
}

/// The optimisers by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Stochastic gradient descent with momentum (the reference's).
    Sgd,
    /// SGD whose steps are scaled layer by layer (You et al. 2017).
    Lars,
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    Adamw,
}

/// How the learning rate falls, after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// By a factor at each of `lr_milestones` (the reference's).
    Step,
    /// Along half a cosine to `lr_final`, step by step.
    Cosine,
    /// Not at all.
    Constant,
}

/// What happens to a step whose numbers are not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnNonFinite {
    /// The run ends, and the last checkpoint stands.
    Fail,
    /// The update is skipped and counted, and the run goes on.
    Skip,
}
