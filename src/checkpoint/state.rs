//! What a run depends on beside weights, optimiser and bank.

use serde::{Deserialize, Serialize};

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Steps done since the start of the run.
    pub step: u64,
    /// The epoch that is under way, from 0.
    pub epoch: u64,
    /// Steps done in this epoch.
    pub step_in_epoch: u64,
}

/// The contents of `state.json`.
///
/// Together with the checkpoint's other files it determines every later step; random numbers need no
/// state, they are functions of the seed and the cursor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainState {
    /// How far the run has come.
    pub cursor: Cursor,
    /// The natural logarithm of the partition constant Z of `nce`, once estimated.
    pub ln_partition: Option<f64>,
    /// Steps that the optimiser has taken: fewer than the cursor's where steps were skipped.
    #[serde(default)]
    pub optimizer_steps: Option<u64>,
    /// Steps that moved nothing, because a number was not finite.
    #[serde(default)]
    pub skipped_steps: u64,
    /// The loss scale of f16, and what it depends on; null in other precisions.
    #[serde(default)]
    pub loss_scale: serde_json::Value,
    /// The digest of what lies in which row group, with `shuffle = windowed`: the order depends on it.
    #[serde(default)]
    pub layout: Option<String>,
    /// The number of instances trained on, and of rows in the bank.
    pub instances: u64,
    /// What the encoder is built from, for whoever only embeds.
    pub encoder: serde_json::Value,
    /// The resolved configuration, as in `config.toml`.
    pub config: serde_json::Value,
}
