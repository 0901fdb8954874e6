//! The headings under which the help of `train`, `finetune` and `bench step` has the keys of a run.

/// Each heading with its keys.
const HEADINGS: [(&str, &[&str]); 6] = [
    ("Data and augmentation", &["split", "limit", "image_size", "recipe"]),
    (
        "Network and device",
        &["arch", "init", "dim", "device", "precision", "sync_batch_norm", "channels_last"],
    ),
    (
        "Optimisation",
        &[
            "epochs",
            "batch_size",
            "accumulate",
            "optimizer",
            "lr",
            "lr_schedule",
            "lr_milestones",
            "lr_decay",
            "lr_final",
            "warmup_epochs",
            "momentum",
            "nesterov",
            "adam_beta1",
            "adam_beta2",
            "lars_trust",
            "weight_decay",
            "decay_matrices_only",
            "clip_norm",
            "seed",
            "on_nonfinite",
        ],
    ),
    (
        "Objective and bank",
        &[
            "objective",
            "negatives",
            "negative_sampling",
            "exclude_positive",
            "temperature",
            "bank_momentum",
            "bank_dtype",
            "bank_init",
            "partition",
            "partition_decay",
            "proximal_weight",
            "eps",
        ],
    ),
    (
        "Loader",
        &[
            "shuffle",
            "window",
            "drop_last",
            "on_corrupt",
            "max_corrupt",
            "memory_limit",
            "cache",
            "cache_size",
            "read_threads",
            "loader_threads",
            "prefetch",
            "stats",
        ],
    ),
    (
        "Checkpoints and metrics",
        &[
            "checkpoint_every_epochs",
            "checkpoint_every_steps",
            "checkpoint_every_minutes",
            "keep",
            "keep_every_epochs",
            "log_every_steps",
            "no_monitor",
            "monitor_every",
            "monitor_split",
            "monitor_images",
        ],
    ),
];

/// Puts the options of a command that are keys of a run under their headings.
pub(in crate::cli) fn under_headings(command: clap::Command) -> clap::Command {
    // An argument's order is its place in the help, and within a heading that of the table.
    let places = HEADINGS.iter().flat_map(|(heading, keys)| keys.iter().map(move |key| (*heading, *key)));
    let places: Vec<_> = places.collect();
    command.mut_args(|arg| match places.iter().position(|(_, key)| arg.get_id() == *key) {
        Some(at) => arg.help_heading(places[at].0).display_order(at),
        None => arg,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::TrainConfig;

    #[test]
    fn every_key_of_a_run_stands_under_one_heading() {
        let config = serde_json::to_value(TrainConfig::default()).expect("plain data");
        let mut known: Vec<&str> = config.as_object().expect("keys").keys().map(String::as_str).collect();
        known.sort_unstable();
        let mut listed: Vec<&str> = HEADINGS.iter().flat_map(|(_, keys)| keys.iter().copied()).collect();
        listed.sort_unstable();
        assert_eq!(listed, known);
    }
}
