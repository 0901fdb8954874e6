//! How a bank is kept and how it begins.

use tch::Kind;

use crate::run_config::{BankDtype, BankInit};

impl BankDtype {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }
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
