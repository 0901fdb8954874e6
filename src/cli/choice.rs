//! Flags whose values are names of an enum.

use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use strum::{EnumMessage, ParseError, VariantArray};

use crate::run_config::{Choice, choices};

/// Accepts the names of an enum; the help lists them with the docs of the variants.
pub(super) fn choice<T>() -> impl TypedValueParser<Value = T>
where
    T: VariantArray + EnumMessage + FromStr<Err = ParseError> + Into<&'static str> + Copy + Send + Sync,
{
    names(choices::<T>()).try_map(|name| name.parse::<T>())
}

/// Accepts these names.
pub(super) fn names(choices: Vec<Choice>) -> PossibleValuesParser {
    choices
        .into_iter()
        .map(|choice| PossibleValue::new(choice.name).help(choice.help))
        .collect::<Vec<_>>()
        .into()
}
