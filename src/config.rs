//! Configuration from a TOML file and from flags; a flag wins.
//!
//! Every option has one name: `batch_size` in the file, `--batch-size` as a flag.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Table;

/// The smallest likeness (Jaro–Winkler, 0..1) at which a key is suggested for a wrong one.
const LIKENESS: f64 = 0.7;

/// A configuration is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that the configuration names is not there or cannot be read.
    #[error("{option} {file}: the file cannot be read")]
    File {
        /// The option that names it.
        option: &'static str,
        /// The file.
        file: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{file}: {reason}")]
    Syntax {
        /// The file.
        file: String,
        /// What the parser says, on several lines: the place, the line, and where in it.
        reason: String,
    },
    /// A key that no option has.
    #[error("{file}: unknown key {key:?}{suggestion}")]
    UnknownKey {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// `; did you mean "…"?`, or nothing.
        suggestion: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{place}: {reason}")]
    Value {
        /// The file and the key, or the command line.
        place: String,
        /// What is wrong.
        reason: String,
    },
}

/// The name and the text of the file that `--config` names.
///
/// # Errors
/// If it is not there or cannot be read.
pub fn read(path: &Path) -> Result<(String, String), ConfigError> {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((file, text)),
        Err(source) => Err(ConfigError::File { option: "--config", file, source }),
    }
}

/// The keys that file and flags give, whatever their values.
///
/// # Errors
/// If the file is not TOML.
pub fn given_keys<F: Serialize>(
    file: Option<(&str, &str)>,
    flags: &F,
) -> Result<BTreeSet<String>, ConfigError> {
    let of_flags = Table::try_from(flags).expect("flags are a table");
    let of_file = file.map(|(name, text)| parse(name, text)).transpose()?.unwrap_or_default();
    Ok(of_file.into_iter().chain(of_flags).map(|(key, _)| key).collect())
}

fn parse(file: &str, text: &str) -> Result<Table, ConfigError> {
    text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        file: file.to_owned(),
        reason: error.to_string().trim_end().to_owned(),
    })
}

/// The configuration that defaults, file and flags give together.
///
/// `flags` is a struct whose fields are options of the same names, `None` where a flag was not given.
///
/// # Errors
/// The first key or value that is wrong, with the nearest right key.
pub fn resolve<C, F>(defaults: &C, file: Option<(&str, &str)>, flags: &F) -> Result<C, ConfigError>
where
    C: Serialize + DeserializeOwned,
    F: Serialize,
{
    let defaults = Table::try_from(defaults).expect("a configuration is a table");
    let mut table = defaults.clone();
    if let Some((name, text)) = file {
        for (key, value) in parse(name, text)? {
            check_key(name, &key, &defaults)?;
            check_value::<C>(&defaults, &key, &value, &format!("{name}, key {key:?}"))?;
            table.insert(key, value);
        }
    }
    for (key, value) in Table::try_from(flags).expect("flags are a table") {
        check_value::<C>(&defaults, &key, &value, &format!("--{}", key.replace('_', "-")))?;
        table.insert(key, value);
    }
    let value = toml::Value::Table(table);
    value.try_into().map_err(|error: toml::de::Error| ConfigError::Value {
        place: "configuration".into(),
        reason: error.message().to_owned(),
    })
}

fn check_key(file: &str, key: &str, known: &Table) -> Result<(), ConfigError> {
    if known.contains_key(key) {
        return Ok(());
    }
    let nearest = known
        .keys()
        .map(|candidate| (strsim::jaro_winkler(key, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    let suggestion = nearest.map_or(String::new(), |(_, name)| format!("; did you mean {name:?}?"));
    Err(ConfigError::UnknownKey { file: file.to_owned(), key: key.to_owned(), suggestion })
}

/// Tries one value in an otherwise right configuration, so that the error can name its key.
fn check_value<C: DeserializeOwned>(
    defaults: &Table,
    key: &str,
    value: &toml::Value,
    place: &str,
) -> Result<(), ConfigError> {
    let mut table = defaults.clone();
    table.insert(key.to_owned(), value.clone());
    match toml::Value::Table(table).try_into::<C>() {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(ConfigError::Value { place: place.to_owned(), reason: error.message().trim().to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Example {
        batch_size: u32,
        lr: f64,
    }

    impl Default for Example {
        fn default() -> Self {
            Self { batch_size: 256, lr: 0.03 }
        }
    }

    #[derive(Default, Serialize)]
    struct Flags {
        #[serde(skip_serializing_if = "Option::is_none")]
        lr: Option<f64>,
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file = Some(("run.toml", "batch_size = 64\nlr = 0.1\n"));
        let resolved = resolve(&Example::default(), file, &Flags { lr: Some(0.2) }).expect("valid");
        assert_eq!(resolved, Example { batch_size: 64, lr: 0.2 });
        let resolved = resolve(&Example::default(), file, &Flags::default()).expect("valid");
        assert_eq!(resolved, Example { batch_size: 64, lr: 0.1 });
    }

    #[test]
    fn toml_as_people_write_it_is_read_or_its_fault_is_named() {
        let read = |text: &str| resolve(&Example::default(), Some(("run.toml", text)), &Flags::default());
        for text in [
            "batch_size = 64\r\nlr = 0.1\r\n",
            "\u{feff}batch_size = 64\nlr = 1e-1",
            "\tlr=0.1\nbatch_size=64",
        ] {
            assert_eq!(read(text).expect(text), Example { batch_size: 64, lr: 0.1 });
        }
        assert_eq!(read("lr = 1\n").expect("an integer"), Example { batch_size: 256, lr: 1.0 });
        assert_eq!(read("").expect("empty"), Example::default());
        for text in [
            "batch_size: 64\n",
            "batch-size = 64\n",
            "[train]\nbatch_size = 64\n",
            "batch_size = 64.0\n",
            "batch_size = -1\n",
            "batch_size = 99999999999999999999\n",
            "lr = 1\nlr = 2\n",
            "lr = \"0.1\"\n",
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.starts_with("run.toml"), "{error}");
        }
    }

    #[test]
    fn a_wrong_key_is_named_with_the_nearest_right_one() {
        let file = Some(("run.toml", "bach_size = 64\n"));
        let error = resolve(&Example::default(), file, &Flags::default()).expect_err("wrong");
        assert_eq!(error.to_string(), r#"run.toml: unknown key "bach_size"; did you mean "batch_size"?"#);
    }

    #[test]
    fn a_wrong_value_is_named_with_its_key() {
        let file = Some(("run.toml", "batch_size = \"many\"\n"));
        let error = resolve(&Example::default(), file, &Flags::default()).expect_err("wrong");
        assert!(error.to_string().starts_with(r#"run.toml, key "batch_size": "#), "{error}");
    }
}
