//! The objectives by name, and their settings.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::units::Temperature;

/// The objectives by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum ObjectiveKind {
    /// Noise-contrastive estimation against sampled rows (paper section 3.2; the reference's default).
    Nce,
    /// The exact softmax over all instances (paper equation 2; the reference's `--nce-k 0`).
    Softmax,
    /// The softmax over the own row and sampled ones.
    InfoNce,
}

/// Who shares the sampled rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Sampling {
    /// Each image has its own, as in the reference.
    #[default]
    PerSample,
    /// All images of a step have the same ones: a matrix product instead of a gather.
    Shared,
}

/// Where the constant Z of `nce` comes from: `fixed`, `ema`, `delayed`, or a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "TextOrNumber", into = "TextOrNumber")]
pub enum PartitionChoice {
    /// Estimated from the first batch and never again, as in the reference.
    #[default]
    Fixed,
    /// Estimated from every batch, as a moving average: the positive plus n - 1 times the mean of the negatives.
    Ema,
    /// The mean of the estimates of the first epoch, in which every row of the bank is written once; constant afterwards.
    Delayed,
    /// This number.
    Given(f64),
}

impl PartitionChoice {
    /// Whether batches estimate it.
    pub(super) fn is_estimated(self) -> bool {
        matches!(self, Self::Ema | Self::Delayed)
    }
}

/// A value that a file may hold as a string or as a number.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Text(String),
    Number(f64),
}

impl FromStr for PartitionChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fixed" => Ok(Self::Fixed),
            "ema" => Ok(Self::Ema),
            "delayed" => Ok(Self::Delayed),
            _ => match text.parse::<f64>() {
                Ok(z) if z.is_finite() && z > 0.0 => Ok(Self::Given(z)),
                _ => Err(format!("{text:?} is no partition; use fixed, ema, delayed or a number above 0")),
            },
        }
    }
}

impl fmt::Display for PartitionChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed => f.write_str("fixed"),
            Self::Ema => f.write_str("ema"),
            Self::Delayed => f.write_str("delayed"),
            Self::Given(z) => z.fmt(f),
        }
    }
}

impl TryFrom<TextOrNumber> for PartitionChoice {
    type Error = String;

    fn try_from(value: TextOrNumber) -> Result<Self, String> {
        match value {
            TextOrNumber::Text(text) => text.parse(),
            TextOrNumber::Number(number) => number.to_string().parse(),
        }
    }
}

impl From<PartitionChoice> for TextOrNumber {
    fn from(choice: PartitionChoice) -> Self {
        match choice {
            PartitionChoice::Given(z) => Self::Number(z),
            named => Self::Text(named.to_string()),
        }
    }
}

/// The settings of an objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ObjectiveOptions {
    /// Which one.
    pub kind: ObjectiveKind,
    /// τ.
    pub temperature: Temperature,
    /// K, the sampled rows of each query; not for `softmax`.
    pub negatives: usize,
    /// Who shares them.
    pub sampling: Sampling,
    /// Leave out a sampled row that is the query's own.
    pub exclude_positive: bool,
    /// Added to the noise's probability in the denominators of `nce`; 0, or the reference's 1e-7.
    pub eps: f64,
    /// Where Z of `nce` comes from.
    pub partition: PartitionChoice,
    /// The weight of the old Z in the moving average.
    pub partition_decay: f64,
    /// λ of the proximal term `λ ‖f - v‖²` (paper, equation 9); 0 as in the reference.
    pub proximal_weight: f64,
}

impl ObjectiveOptions {
    /// The settings with the reference's values beside kind, temperature and number of negatives.
    pub fn new(kind: ObjectiveKind, temperature: Temperature, negatives: usize) -> Self {
        Self {
            kind,
            temperature,
            negatives,
            sampling: Sampling::PerSample,
            exclude_positive: false,
            eps: 0.0,
            partition: PartitionChoice::Fixed,
            partition_decay: 0.99,
            proximal_weight: 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_a_word_or_a_positive_number() {
        assert_eq!("ema".parse(), Ok(PartitionChoice::Ema));
        assert_eq!("2876.5".parse(), Ok(PartitionChoice::Given(2876.5)));
        for wrong in ["0", "-1", "NaN", "inf", "once"] {
            assert!(wrong.parse::<PartitionChoice>().is_err(), "{wrong}");
        }
        for text in ["\"fixed\"", "\"ema\"", "2876.5"] {
            let read: PartitionChoice = serde_json::from_str(text).expect("a partition");
            assert_eq!(serde_json::to_string(&read).expect("JSON"), text);
        }
    }
}
