//! How often a classifier is right: an encoder whose projection has an output for each class.

use std::sync::Arc;

use serde::Serialize;
use tch::{Tensor, no_grad};

use super::head::Score;
use crate::eval::EmbedError;
use crate::eval::embed::for_each_batch;
use crate::eval::report::score_interval;
use crate::loader::Source;
use crate::model::Encoder;
use crate::progress::Progress;

/// The scores of a classifier. Shares are in 0..1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassifierReport {
    /// The share of labelled images whose class has the highest score.
    pub top1: f64,
    /// The share of labelled images whose class is among the five highest.
    pub top5: f64,
    /// Wilson's 95 % interval of `top1`.
    pub top1_interval: [f64; 2],
    /// Wilson's 95 % interval of `top5`.
    pub top5_interval: [f64; 2],
    /// Labelled images.
    pub queries: usize,
}

/// Scores a classifier on every labelled image of a source.
///
/// # Errors
/// If an image cannot be loaded.
pub fn classify(
    encoder: &Encoder,
    source: Arc<dyn Source>,
    batch_size: usize,
    threads: usize,
    progress: &dyn Progress,
) -> Result<ClassifierReport, EmbedError> {
    let mut score = Score { top1: 0, top5: 0, rows: 0 };
    progress.begin("classify", source.len() as u64);
    for_each_batch(encoder, source, (batch_size, threads), progress, |batch, images| {
        let (rows, labels): (Vec<i64>, Vec<i64>) =
            (0..).zip(&batch.labels).filter_map(|(row, label)| Some((row, i64::from((*label)?.0)))).unzip();
        if !rows.is_empty() {
            let logits = no_grad(|| encoder.projected(images, false));
            let rows = Tensor::from_slice(&rows).to_device(logits.device());
            score.add(&logits.index_select(0, &rows), &Tensor::from_slice(&labels));
        }
        Ok(())
    })?;
    progress.finish();
    Ok(ClassifierReport {
        top1: score.share(score.top1),
        top5: score.share(score.top5),
        top1_interval: score_interval(score.top1, score.rows),
        top5_interval: score_interval(score.top5, score.rows),
        queries: score.rows,
    })
}
