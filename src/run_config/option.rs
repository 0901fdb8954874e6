//! How an option is described.

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use super::choices::Choice;
use crate::units::{BankMomentum, ByteSize, Temperature};

/// An option of a run, as flag, key of a file and entry of docs/options.md.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// The key in files.
    pub key: &'static str,
    /// Lines of the doc comment.
    pub(super) doc: &'static [&'static str],
    /// The heading under which the help lists it.
    pub heading: Heading,
    /// Where it may differ within one run.
    pub scope: Scope,
    /// The numbers that it allows.
    pub range: Range,
    /// What the help calls its value.
    pub value_name: &'static str,
    /// What its flag takes.
    pub arity: Arity,
    /// Whether fine-tuning has it too: it has a meaning without a bank.
    pub finetune: bool,
    /// The default where it depends on the images ([`Images::defaults`](super::Images::defaults)).
    pub by_images: Option<&'static str>,
    /// The default of runs that were begun before the option existed, where that is another.
    pub formerly: Option<&'static str>,
    /// The names that it accepts; none where it is not an enum of names.
    pub choices: fn() -> Vec<Choice>,
    /// Reads a flag's value; of a list, one item.
    pub from_flag: fn(&str) -> Result<toml::Value, String>,
    /// Checks the type of a file's value.
    pub(super) check: fn(toml::Value) -> Result<(), toml::de::Error>,
}

impl OptionSpec {
    /// What follows from the type alone.
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

    /// The name of its flag, without the dashes before it.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// The help: one paragraph without a full stop.
    pub fn help(&self) -> String {
        let lines: Vec<&str> = self.doc.iter().map(|line| line.trim()).collect();
        lines.join(" ").trim_end_matches('.').to_owned()
    }
}

/// A value as its flag takes it; nothing for switches and empty texts.
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

/// The headings of the help, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr, VariantArray)]
pub enum Heading {
    /// Which images, and what the encoder sees of them.
    #[strum(serialize = "Data and augmentation")]
    Data,
    /// The encoder, and where it computes.
    #[strum(serialize = "Network and device")]
    Network,
    /// Steps and their size.
    #[strum(serialize = "Optimisation")]
    Optimisation,
    /// The loss and the memory bank.
    #[strum(serialize = "Objective and bank")]
    Objective,
    /// How batches are made.
    #[strum(serialize = "Loader")]
    Loader,
    /// What a run writes.
    #[strum(serialize = "Checkpoints and metrics")]
    Checkpoints,
}

/// Where an option may differ within one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum Scope {
    /// Nowhere: weights, bank or the order of images depend on it.
    Identity,
    /// A resume may change it, unless the learning rate depends on it.
    Schedule,
    /// A resume may change it; all ranks have the same.
    Resumable,
    /// A resume may change it, and each rank has its own: it describes the machine.
    Machine,
}

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// Nothing: to give it means true.
    Switch,
    /// One value.
    One,
    /// Values with commas between them.
    List,
    /// One value, and as many times as wanted.
    Repeated,
}

/// The numbers that an option allows where its type allows more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Every value of the type.
    Any,
    /// This number or more.
    AtLeast(u32),
    /// Finite, and 0 or more.
    NotNegative,
    /// At least 0 and below 1.
    BelowOne,
}

impl Range {
    /// Whether a number is in it.
    pub(super) fn contains(self, value: f64) -> bool {
        match self {
            Self::Any => true,
            Self::AtLeast(least) => value >= f64::from(least),
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
            Self::NotNegative => f.write_str("finite and at least 0"),
            Self::BelowOne => f.write_str("at least 0 and below 1"),
        }
    }
}

/// A type that an option may have.
pub trait OptionValue: Serialize + DeserializeOwned {
    /// What the help calls a value, unless the option names it.
    const VALUE_NAME: &'static str;
    /// What a flag takes.
    const ARITY: Arity = Arity::One;

    /// The names of an enum of names.
    fn choices() -> Vec<Choice> {
        Vec::new()
    }

    /// Reads a flag's value; of a list, one item.
    ///
    /// # Errors
    /// What is wrong with it.
    fn from_flag(text: &str) -> Result<toml::Value, String>;
}

/// A value that a file holds as a string or as a number.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum TextOrNumber<N> {
    Text(String),
    Number(N),
}

/// Reads a flag's value by its type.
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
