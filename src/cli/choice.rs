//! Flags whose values are names of an enum.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use strum::{EnumMessage, VariantArray};

use crate::run_config::{Choice, choices};

/// Accepts the names of an enum; the help lists them with the docs of the variants.
pub(super) fn choice<T>() -> impl TypedValueParser<Value = T>
where
    T: VariantArray + EnumMessage + Copy + Send + Sync,
{
    names(choices::<T>()).map(|name| {
        let value = T::VARIANTS.iter().find(|value| value.get_serializations()[0] == name);
        *value.expect("clap accepts these names alone")
    })
}

/// Accepts these names.
pub(super) fn names(choices: Vec<Choice>) -> PossibleValuesParser {
    let values = choices.into_iter().map(|choice| PossibleValue::new(choice.name).help(choice.help));
    PossibleValuesParser::new(values)
}
