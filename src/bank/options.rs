//! How a bank is kept and how it begins.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::Kind;

/// The type in which the bank keeps its numbers. Sums, similarities and losses are f32 all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum BankDtype {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, 8 of them for the fraction: half the memory, rows of unit length within 0.4 %.
    Bf16,
    /// 16 bits, 11 of them for the fraction: half the memory, rows of unit length within 0.05 %.
    F16,
}

impl BankDtype {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }
}

/// The bank's rows before the first step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BankInit {
    /// Uniform in a cube and normalised (the reference's draw, which it does not normalise).
    #[default]
    Uniform,
    /// Uniform on the sphere: normal numbers, normalised (the paper's "unit random vectors").
    Normal,
    /// What the encoder makes of each image, in one pass before the first step.
    Encode,
}

/// What a bank is.
#[derive(Clone, Copy, Debug)]
pub struct BankOptions {
    /// The number of rows.
    pub instances: usize,
    /// The length of a row.
    pub dim: usize,
    /// The type of its numbers.
    pub dtype: BankDtype,
    /// Its first rows; with [`BankInit::Encode`] they are random until someone writes them.
    pub init: BankInit,
}
