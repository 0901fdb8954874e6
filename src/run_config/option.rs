//! Description of options.

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use super::choices::Choice;
use crate::units::{BankMomentum, ByteSize, Temperature};

/// Option of a run: a flag, a key of a file, and an entry of docs/options.md.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Key in files.
    pub key: &'static str,
    /// Lines of the doc comment.
    pub(super) doc: &'static [&'static str],
    /// Heading in the help.
    pub heading: Heading,
    /// Scope within which the option may differ.
    pub scope: Scope,
    /// Allowed numbers.
    pub range: Range,
    /// Placeholder of the value in the help.
    pub value_name: &'static str,
    /// Number of values that the flag takes.
    pub arity: Arity,
    /// Whether fine-tuning has the option too, as it makes sense without a bank.
    pub finetune: bool,
    /// Default, if it depends on the images ([`Images::defaults`](super::Images::defaults)).
    pub by_images: Option<&'static str>,
    /// Default of runs that started before the option existed, if different.
    pub formerly: Option<&'static str>,
    /// Accepted names; empty if the option is not an enum of names.
    pub choices: fn() -> Vec<Choice>,
    /// Parses a flag's value; for a list, one item.
    pub from_flag: fn(&str) -> Result<toml::Value, String>,
    /// Checks the type of a file's value.
    pub(super) check: fn(toml::Value) -> Result<(), toml::de::Error>,
}

impl OptionSpec {
    /// Creates a description with the parts that follow from the type.
    pub(super) const fn new<T: OptionValue>(
        key: &'static str,
        doc: &'static [&'static str],
        heading: Heading,
        scope: Scope,
    ) -> Self {
        Self {
            key,
            doc,
            heading,
            scope,
            range: Range::Any,
            value_name: T::VALUE_NAME,
            arity: T::ARITY,
            finetune: false,
            by_images: None,
            formerly: None,
            choices: T::choices,
            from_flag: T::from_flag,
            check: |value| value.try_into::<T>().map(drop),
        }
    }

    /// Returns the name of the flag, without leading dashes.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// Returns the help: one paragraph without a full stop.
    pub fn help(&self) -> String {
        let lines: Vec<&str> = self.doc.iter().map(|line| line.trim()).collect();
        lines.join(" ").trim_end_matches('.').to_owned()
    }
}

/// Formats a value as its flag takes it; `None` for switches and empty texts.
pub fn shown(value: &serde_json::Value) -> Option<String> {
    use serde_json::Value;
    Some(match value {
        Value::Bool(_) => return None,
        Value::String(text) if text.is_empty() => return None,
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => return None,
        Value::Array(items) => items.iter().map(Value::to_string).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    })
}

/// Headings of the help, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr, VariantArray)]
pub enum Heading {
    /// Selection of images and the encoder's view of them.
    #[strum(serialize = "Data and augmentation")]
    Data,
    /// Encoder and device.
    #[strum(serialize = "Network and device")]
    Network,
    /// Steps and their size.
    #[strum(serialize = "Optimisation")]
    Optimisation,
    /// Loss and memory bank.
    #[strum(serialize = "Objective and bank")]
    Objective,
    /// Preparation of batches.
    #[strum(serialize = "Loader")]
    Loader,
    /// Output of a run.
    #[strum(serialize = "Checkpoints and metrics")]
    Checkpoints,
}

/// Ranks and resumes between which an option may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum Scope {
    /// None: weights, bank or the order of images depend on the option.
    Identity,
    /// A resume may change it, unless the learning rate depends on it.
    Schedule,
    /// A resume may change it; all ranks have the same value.
    Resumable,
    /// A resume may change it, and ranks may differ, as it describes the machine.
    Machine,
}

/// Values that a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// None; the flag means true.
    Switch,
    /// One value.
    One,
    /// Values separated by commas.
    List,
    /// One value; the flag may be repeated.
    Repeated,
}

/// Numbers that an option allows, if its type allows more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Every value of the type.
    Any,
    /// At least this number.
    AtLeast(u32),
    /// From the first number to the second.
    Between(u32, u32),
    /// Finite, and at least 0.
    NotNegative,
    /// At least 0 and below 1.
    BelowOne,
}

impl Range {
    /// Returns whether the range contains a number.
    pub(super) fn contains(self, value: f64) -> bool {
        match self {
            Self::Any => true,
            Self::AtLeast(least) => value >= f64::from(least),
            Self::Between(least, most) => (f64::from(least)..=f64::from(most)).contains(&value),
            Self::NotNegative => value.is_finite() && value >= 0.0,
            Self::BelowOne => (0.0..1.0).contains(&value),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any number"),
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::Between(least, most) => write!(f, "from {least} to {most}"),
            Self::NotNegative => f.write_str("finite and at least 0"),
            Self::BelowOne => f.write_str("at least 0 and below 1"),
        }
    }
}

/// Type of an option's value.
pub trait OptionValue: Serialize + DeserializeOwned {
    /// Placeholder in the help, unless the option sets one.
    const VALUE_NAME: &'static str;
    /// Number of values that a flag takes.
    const ARITY: Arity = Arity::One;

    /// Returns the accepted names, for an enum of names.
    fn choices() -> Vec<Choice> {
        Vec::new()
    }

    /// Parses a flag's value; for a list, one item.
    ///
    /// # Errors
    /// If the value is invalid, with the reason.
    fn from_flag(text: &str) -> Result<toml::Value, String>;
}

/// Value that a file holds as a string or as a number.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a text or a number")]
pub(super) enum TextOrNumber<N> {
    Text(String),
    Number(N),
}

/// Parses a flag's value by its type.
fn parse<T: FromStr<Err: fmt::Display> + Serialize>(text: &str) -> Result<toml::Value, String> {
    let value: T = text.parse().map_err(|error: T::Err| error.to_string())?;
    toml::Value::try_from(value).map_err(|error| error.to_string())
}

macro_rules! plain_values {
    ($($type:ty: $name:literal $($arity:ident)?),+ $(,)?) => {$(
        impl OptionValue for $type {
            const VALUE_NAME: &'static str = $name;
            $(const ARITY: Arity = Arity::$arity;)?

            fn from_flag(text: &str) -> Result<toml::Value, String> {
                parse::<Self>(text)
            }
        }
    )+};
}

plain_values! {
    bool: "" Switch,
    u32: "N",
    u64: "N",
    usize: "N",
    f64: "X",
    String: "TEXT",
    ByteSize: "BYTES",
    Temperature: "TAU",
    BankMomentum: "M",
    super::PartitionChoice: "CHOICE",
    super::DeviceChoice: "DEVICE",
    super::MonitorEvery: "N|Nsteps",
}

impl OptionValue for Vec<u64> {
    const VALUE_NAME: &'static str = "N,…";
    const ARITY: Arity = Arity::List;

    fn from_flag(text: &str) -> Result<toml::Value, String> {
        parse::<u64>(text)
    }
}
