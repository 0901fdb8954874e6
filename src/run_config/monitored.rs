//! Datasets and intervals of a run's monitor.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::option::{Arity, OptionValue, TextOrNumber};

/// Labelled dataset that is scored while a run trains on another, as `DATASET[:TRAIN[:TEST]]`.
///
/// Splits follow the last `/`, so `s3://bucket/flowers:train:test` names two. A dataset whose own name has a
/// colon ends with a slash: `a:b/` or `a:b/:train`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MonitoredDataset {
    /// Path or URL of the dataset.
    pub dataset: String,
    /// Split whose images vote; `None` for `train`.
    pub train: Option<String>,
    /// Split that is scored; `None` for the first evaluation split.
    pub test: Option<String>,
}

impl MonitoredDataset {
    /// Returns the location that the text means if its colons belong to a folder's name.
    pub fn other_reading(&self) -> Option<String> {
        (self.train.is_some() && !self.dataset.ends_with('/')).then(|| self.to_string())
    }
}

impl FromStr for MonitoredDataset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.rfind('/').map_or(0, |slash| slash + 1);
        let mut parts = text[name..].split(':');
        let folder = parts.next().unwrap_or_default();
        let splits: Vec<String> = parts.map(ToOwned::to_owned).collect();
        let dataset = format!("{}{folder}", &text[..name]);
        if dataset.is_empty() || splits.len() > 2 || splits.iter().any(String::is_empty) {
            return Err(format!(
                "`{text}` is not DATASET[:TRAIN[:TEST]]; a dataset whose name has a colon ends with a slash, as in \
                 `a:b/:train`"
            ));
        }
        let mut splits = splits.into_iter();
        Ok(Self { dataset, train: splits.next(), test: splits.next() })
    }
}

impl fmt::Display for MonitoredDataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.dataset)?;
        [&self.train, &self.test].into_iter().flatten().try_for_each(|split| write!(f, ":{split}"))
    }
}

impl TryFrom<String> for MonitoredDataset {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MonitoredDataset> for String {
    fn from(monitored: MonitoredDataset) -> Self {
        monitored.to_string()
    }
}

impl OptionValue for Vec<MonitoredDataset> {
    const VALUE_NAME: &'static str = "DATASET[:TRAIN[:TEST]]";
    const ARITY: Arity = Arity::Repeated;

    fn from_flag(text: &str) -> Result<toml::Value, String> {
        text.parse::<MonitoredDataset>().map(|monitored| monitored.to_string().into())
    }
}

/// Interval between evaluations of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TextOrNumber<u64>", into = "TextOrNumber<u64>")]
pub enum MonitorEvery {
    /// Number of epochs.
    Epochs(u64),
    /// Number of steps, written as `5000steps`.
    Steps(u64),
}

impl MonitorEvery {
    /// Returns whether the monitor runs after step `step`; `epochs` is the number of epochs done if the step
    /// ended one. The result depends on nothing else, so a resumed run has the same curve.
    pub fn falls_on(self, step: u64, epochs: Option<u64>) -> bool {
        match self {
            Self::Epochs(every) => epochs.is_some_and(|done| done.is_multiple_of(every.max(1))),
            Self::Steps(every) => step.is_multiple_of(every.max(1)),
        }
    }

    /// Formats the interval with its unit: `13 epochs`, `5000 steps`.
    pub fn in_words(self) -> String {
        let (count, unit) = match self {
            Self::Epochs(count) => (count, "epoch"),
            Self::Steps(count) => (count, "step"),
        };
        format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
    }
}

impl FromStr for MonitorEvery {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u64>().ok();
        let read = match text.strip_suffix("steps") {
            Some(steps) => number(steps).filter(|steps| *steps > 0).map(Self::Steps),
            // The option's range sets the minimum.
            None => number(text).map(Self::Epochs),
        };
        read.ok_or_else(|| {
            format!("`{text}` is neither a number of epochs, such as 2, nor of steps, such as 5000steps")
        })
    }
}

impl fmt::Display for MonitorEvery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epochs(epochs) => epochs.fmt(f),
            Self::Steps(steps) => write!(f, "{steps}steps"),
        }
    }
}

impl TryFrom<TextOrNumber<u64>> for MonitorEvery {
    type Error = String;

    fn try_from(value: TextOrNumber<u64>) -> Result<Self, String> {
        match value {
            TextOrNumber::Number(epochs) => Ok(Self::Epochs(epochs)),
            TextOrNumber::Text(text) => text.parse(),
        }
    }
}

impl From<MonitorEvery> for TextOrNumber<u64> {
    fn from(every: MonitorEvery) -> Self {
        match every {
            MonitorEvery::Epochs(epochs) => Self::Number(epochs),
            steps @ MonitorEvery::Steps(_) => Self::Text(steps.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_follow_the_last_slash_and_nothing_is_read_in_two_ways() {
        let read = |text: &str| {
            let read: MonitoredDataset = text.parse().expect(text);
            assert_eq!(read.to_string(), text);
            (read.dataset, read.train, read.test)
        };
        let of = |dataset: &str, splits: [&str; 2]| {
            let [train, test] = splits.map(|split| (!split.is_empty()).then(|| split.to_owned()));
            (dataset.to_owned(), train, test)
        };
        for (text, expected) in [
            ("cifar10", of("cifar10", ["", ""])),
            ("s3://bucket/in1k", of("s3://bucket/in1k", ["", ""])),
            ("s3://bucket/in1k:train:val", of("s3://bucket/in1k", ["train", "val"])),
            ("s3://bucket", of("s3://bucket", ["", ""])),
            ("/a:b/c:fit", of("/a:b/c", ["fit", ""])),
            ("a:b/", of("a:b/", ["", ""])),
            ("a:b/:fit:test", of("a:b/", ["fit", "test"])),
            ("a,b=c", of("a,b=c", ["", ""])),
        ] {
            assert_eq!(read(text), expected);
        }
        for wrong in ["", ":train", "a:", "a::test", "a:b:c:d", "s3://b/a:b:"] {
            assert!(wrong.parse::<MonitoredDataset>().is_err(), "{wrong}");
        }
        let other = |text: &str| text.parse::<MonitoredDataset>().expect(text).other_reading();
        assert_eq!(other("data:v2"), Some("data:v2".to_owned()));
        assert_eq!([other("data"), other("data:v2/"), other("data/:v2")], [None, None, None]);
    }

    #[test]
    fn a_number_alone_counts_epochs_and_files_keep_it_a_number() {
        let read = |text: &str| text.parse::<MonitorEvery>();
        assert_eq!(read("2"), Ok(MonitorEvery::Epochs(2)));
        assert_eq!(read("5000steps"), Ok(MonitorEvery::Steps(5000)));
        for wrong in ["0steps", "steps", "5000 steps", "5k", "-1", "1.5", "2epochs"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let words = [MonitorEvery::Epochs(13), MonitorEvery::Epochs(1), MonitorEvery::Steps(5000)];
        assert_eq!(words.map(MonitorEvery::in_words), ["13 epochs", "1 epoch", "5000 steps"]);
        for text in ["3", "\"5000steps\""] {
            let read: MonitorEvery = serde_json::from_str(text).expect(text);
            assert_eq!(serde_json::to_string(&read).expect("JSON"), text);
        }
    }

    #[test]
    fn the_monitored_steps_are_a_function_of_the_step() {
        let ends = |step: u64| step.is_multiple_of(8).then_some(step / 8);
        let falls = |every: MonitorEvery| -> Vec<u64> {
            (1..=32).filter(|&step| every.falls_on(step, ends(step))).collect()
        };
        assert_eq!(falls(MonitorEvery::Steps(12)), [12, 24]);
        assert_eq!(falls(MonitorEvery::Epochs(2)), [16, 32]);
        let every = [MonitorEvery::Steps(12), MonitorEvery::Epochs(2)];
        assert!(
            every.into_iter().all(|every| every.falls_on(0, ends(0))),
            "the untrained encoder in any case"
        );
    }
}
