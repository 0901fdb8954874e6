//! Configuration from a TOML file and from flags; flags win.

use std::collections::BTreeSet;
use std::path::Path;

use toml::Table;

use super::{OptionSpec, TrainConfig};

/// Smallest similarity (Jaro–Winkler, 0..1) at which a key is suggested for an unknown one.
const LIKENESS: f64 = 0.7;

/// Error of a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that an option names is unreadable.
    #[error("{option} {file}: the file cannot be read")]
    File {
        /// Option that names the file.
        option: &'static str,
        /// Name of the file.
        file: String,
        /// Underlying error.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{file}: {reason}")]
    Syntax {
        /// Name of the file.
        file: String,
        /// Message of the parser: several lines, including the faulty line.
        reason: String,
    },
    /// A key is not an option.
    #[error("{file}: unknown key {key:?}{suggestion}")]
    UnknownKey {
        /// Name of the file.
        file: String,
        /// Unknown key.
        key: String,
        /// Suggestion `; did you mean "…"?`, or an empty string.
        suggestion: String,
    },
    /// A value has the wrong type or is out of range.
    #[error("{file}, key {key:?}: {reason}")]
    Value {
        /// Name of the file.
        file: String,
        /// Key of the option.
        key: String,
        /// Description of the problem.
        reason: String,
    },
}

/// Returns name and text of the file that `--config` names.
///
/// # Errors
/// If the file is unreadable.
pub fn read_file(path: &Path) -> Result<(String, String), ConfigError> {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((file, text)),
        Err(source) => Err(ConfigError::File { option: "--config", file, source }),
    }
}

/// Options from a file and from flags.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// Name and text of the file, if given.
    pub file: Option<(&'a str, &'a str)>,
    /// Values of flags by key, with the types of the options.
    pub flags: &'a Table,
}

impl<'a> Given<'a> {
    /// Combines a file, as returned by [`read_file`], and flags.
    pub fn new(file: Option<&'a (String, String)>, flags: &'a Table) -> Self {
        Self { file: file.map(|(name, text)| (name.as_str(), text.as_str())), flags }
    }

    /// Returns the keys set by file or flags.
    ///
    /// # Errors
    /// If the file is not TOML, or as [`Self::over`].
    pub fn keys(&self) -> Result<BTreeSet<String>, ConfigError> {
        Ok(self.values()?.into_iter().map(|(key, _)| key).collect())
    }

    /// Resolves the configuration from defaults, file and flags.
    ///
    /// # Errors
    /// If a key or value of the file is invalid: the first one, with the nearest valid key.
    pub fn over(&self, defaults: &TrainConfig) -> Result<TrainConfig, ConfigError> {
        let mut table = Table::try_from(defaults).expect("a configuration is a table");
        table.extend(self.values()?);
        Ok(table.try_into().expect("each value was checked"))
    }

    fn values(&self) -> Result<Table, ConfigError> {
        let mut table = Table::new();
        if let Some((name, text)) = self.file {
            table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
                file: name.to_owned(),
                reason: error.to_string().trim_end().to_owned(),
            })?;
            for (key, value) in &table {
                (find(name, key)?.check)(value.clone()).map_err(|error| ConfigError::Value {
                    file: name.to_owned(),
                    key: key.clone(),
                    reason: error.message().trim().to_owned(),
                })?;
            }
        }
        table.extend(self.flags.clone());
        Ok(table)
    }
}

/// Finds the option with this key.
fn find(file: &str, key: &str) -> Result<&'static OptionSpec, ConfigError> {
    if let Some(option) = TrainConfig::OPTIONS.iter().find(|option| option.key == key) {
        return Ok(option);
    }
    let nearest = TrainConfig::OPTIONS
        .iter()
        .map(|option| (strsim::jaro_winkler(key, option.key), option.key))
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    let suggestion = nearest.map_or(String::new(), |(_, name)| format!("; did you mean {name:?}?"));
    Err(ConfigError::UnknownKey { file: file.to_owned(), key: key.to_owned(), suggestion })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str, flags: &str) -> Result<TrainConfig, ConfigError> {
        let flags = flags.parse().expect("TOML");
        Given { file: Some(("run.toml", text)), flags: &flags }.over(&TrainConfig::default())
    }

    fn config(batch_size: usize, lr: f64) -> TrainConfig {
        TrainConfig { batch_size, lr, ..TrainConfig::default() }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file = "batch_size = 64\nlr = 0.1\n";
        assert_eq!(resolve(file, "lr = 0.2").expect("valid"), config(64, 0.2));
        assert_eq!(resolve(file, "").expect("valid"), config(64, 0.1));
        let flags = "seed = 1".parse().expect("TOML");
        let keys = Given { file: Some(("run.toml", file)), flags: &flags }.keys().expect("valid");
        assert_eq!(keys.into_iter().collect::<Vec<_>>(), ["batch_size", "lr", "seed"]);
    }

    #[test]
    fn toml_as_people_write_it_is_read_or_its_fault_is_named() {
        for text in [
            "batch_size = 64\r\nlr = 0.1\r\n",
            "\u{feff}batch_size = 64\nlr = 1e-1",
            "\tlr=0.1\nbatch_size=64",
        ] {
            assert_eq!(resolve(text, "").expect(text), config(64, 0.1));
        }
        assert_eq!(resolve("lr = 1\n", "").expect("an integer"), config(256, 1.0));
        assert_eq!(resolve("", "").expect("empty"), TrainConfig::default());
        for text in [
            "batch_size: 64\n",
            "batch-size = 64\n",
            "[train]\nbatch_size = 64\n",
            "batch_size = 64.0\n",
            "batch_size = -1\n",
            "batch_size = 99999999999999999999\n",
            "lr = 1\nlr = 2\n",
            "lr = \"0.1\"\n",
            "temperature = 0\n",
            "recipe = \"other\"\n",
        ] {
            let error = resolve(text, "").expect_err(text).to_string();
            assert!(error.starts_with("run.toml"), "{error}");
        }
    }

    #[test]
    fn a_wrong_key_is_named_with_the_nearest_right_one() {
        let error = resolve("bach_size = 64\n", "").expect_err("wrong");
        assert_eq!(error.to_string(), r#"run.toml: unknown key "bach_size"; did you mean "batch_size"?"#);
    }

    #[test]
    fn a_wrong_value_is_named_with_its_key() {
        let error = resolve("batch_size = \"many\"\n", "").expect_err("wrong").to_string();
        assert_eq!(error, r#"run.toml, key "batch_size": invalid type: string "many", expected usize"#);
    }
}
