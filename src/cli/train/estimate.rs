//! `instdisc train --estimate`.

use std::time::Duration;

use indicatif::HumanDuration;

use crate::cli::GlobalArgs;
use crate::cli::progress::end_of_day;
use crate::dataset::Manifest;
use crate::run_config::Images;
use crate::train::{Estimate, StepTime, TrainJob};

/// Prints the resources that a run needs; for a run that has started, the rest.
pub(super) fn estimate(global: &GlobalArgs, job: &TrainJob) -> anyhow::Result<()> {
    let done = job.check()?;
    let TrainJob { dataset, config, rendezvous, .. } = job;
    let manifest = Manifest::read(dataset)?;
    let split = manifest.split(dataset, &config.split)?;
    let images = Images::of(split, config.limit);
    let classes = manifest.classes.len();
    let mut estimate = Estimate::of(config, images.count, classes, rendezvous.world(), done);
    estimate.time = match StepTime::measure(config, images.count, rendezvous.world()) {
        Ok(time) => Some(time),
        Err(error) => {
            tracing::warn!("the time of a step could not be measured: {error}");
            None
        }
    };
    let time = estimate.time.iter().map(|time| time_line(time, &estimate));
    global.write_result(&[estimate.lines(), time.collect()].concat(), &estimate)
}

/// Formats the duration of the remaining steps.
fn time_line(time: &StepTime, estimate: &Estimate) -> String {
    let StepTime { device, images, measured_images, step_seconds } = time;
    let scaled = if measured_images < images {
        format!(", scaled from {measured_images} images to {images}")
    } else {
        String::new()
    };
    let step = format!("time: {step_seconds:.2} s a step on {device}{scaled}");
    let (left, is_begun) = (estimate.left_steps(), estimate.done_steps > 0);
    if left == 0 {
        return format!("{step}; all steps are done, and a larger --epochs goes on");
    }
    let whole = Duration::from_secs_f64(step_seconds * left as f64);
    let (whole, end) = (HumanDuration(whole), end_of_day(whole));
    let (of_steps, begun) = if is_begun {
        (format!(" for the {left} steps that are left"), "resumed")
    } else {
        (String::new(), "begun")
    };
    format!(
        "{step}, so {whole}{of_steps}: {begun} now, the run ends {end} at the earliest; data, monitor, \
         checkpoints and communication come on top"
    )
}
