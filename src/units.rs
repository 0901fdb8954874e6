//! Numbers with a meaning, checked once at input.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number is outside the range of its unit.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} must be {range}, not {value}")]
pub struct OutOfRange {
    name: &'static str,
    range: &'static str,
    value: f64,
}

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident, $label:literal, $range:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(try_from = "f64", into = "f64")]
        pub struct $name(f64);

        impl $name {
            /// Checks a value.
            ///
            /// # Errors
            /// [`OutOfRange`] names the quantity, its range and the value.
            pub fn new(value: f64) -> Result<Self, OutOfRange> {
                let check: fn(f64) -> bool = $check;
                if value.is_finite() && check(value) {
                    Ok(Self(value))
                } else {
                    Err(OutOfRange { name: $label, range: $range, value })
                }
            }

            /// Returns the plain number.
            pub fn get(self) -> f64 {
                self.0
            }
        }

        impl TryFrom<f64> for $name {
            type Error = OutOfRange;

            fn try_from(value: f64) -> Result<Self, OutOfRange> {
                Self::new(value)
            }
        }

        impl From<$name> for f64 {
            fn from(unit: $name) -> f64 {
                unit.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let value: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
                Self::new(value).map_err(|error| error.to_string())
            }
        }
    };
}

unit!(
    /// Softmax temperature τ, by which similarities are divided; finite and above 0.
    ///
    /// # Source
    /// Paper, section 3.1; reference option `--nce-t`.
    Temperature, "temperature", "finite and above 0", |value| value > 0.0
);
unit!(
    /// Weight of the OLD row when the bank is updated, in 0..1.
    ///
    /// # Source
    /// Reference option `--nce-m`. (mmselfsup's `momentum` is the weight of the new feature.)
    BankMomentum, "bank-momentum", "at least 0 and below 1", |value| (0.0..1.0).contains(&value)
);
unit!(
    /// Fraction of a whole, in 0..=1.
    Fraction, "fraction", "between 0 and 1", |value| (0.0..=1.0).contains(&value)
);

/// Quotes a text as one shell word, for commands that are shown.
pub fn shell_word(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:=,@%+".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Number of bytes, written as `4096`, `512KiB` or `1.5GB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "ByteText", into = "u64")]
pub struct ByteSize(pub u64);

/// Value of a [`ByteSize`] in a configuration file.
#[derive(Deserialize)]
#[serde(untagged)]
enum ByteText {
    Number(u64),
    Text(String),
}

/// Units by name; names of two letters are powers of 1000.
const BYTE_UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl TryFrom<ByteText> for ByteSize {
    type Error = String;

    fn try_from(text: ByteText) -> Result<Self, String> {
        match text {
            ByteText::Number(bytes) => Ok(Self(bytes)),
            ByteText::Text(text) => text.parse(),
        }
    }
}

impl From<ByteSize> for u64 {
    fn from(size: ByteSize) -> u64 {
        size.0
    }
}

impl fmt::Display for ByteSize {
    /// Formats with the largest power-of-two unit that gives a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, bytes): &&(&str, u64)| self.0 > 0 && self.0.is_multiple_of(*bytes);
        match BYTE_UNITS[6..].iter().rev().find(whole) {
            Some((name, bytes)) => write!(f, "{}{name}", self.0 / bytes),
            None => write!(f, "{}", self.0),
        }
    }
}

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("invalid size `{text}`, expected bytes such as 4096, 512KiB, 128MiB or 1.5GB");
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim();
        let known = BYTE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
        let (_, bytes) = known.ok_or_else(wrong)?;
        let value: f64 = number.parse().map_err(|_| wrong())?;
        let total = value * *bytes as f64;
        // Above 2^53, f64 cannot represent every number of bytes.
        if total.is_finite() && total < (1_u64 << 53) as f64 { Ok(Self(total as u64)) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temperature_of_zero_or_less_is_refused() {
        assert!(Temperature::new(0.0).is_err());
        assert!(Temperature::new(-0.07).is_err());
        assert!(Temperature::new(f64::NAN).is_err());
        assert!(Temperature::new(f64::INFINITY).is_err());
        assert_eq!(Temperature::new(0.07).map(Temperature::get), Ok(0.07));
    }

    #[test]
    fn a_momentum_of_one_is_refused_because_rows_would_never_move() {
        assert!(BankMomentum::new(1.0).is_err());
        assert!(BankMomentum::new(0.0).is_ok());
    }

    #[test]
    fn a_configuration_file_gives_a_size_as_a_number_or_a_text() {
        let table: toml::Table = "a = 5\nb = \"2MiB\"".parse().expect("TOML");
        let read = |key: &str| table[key].clone().try_into::<ByteSize>().expect("bytes").0;
        assert_eq!((read("a"), read("b")), (5, 2 << 20));
    }

    #[test]
    fn the_error_names_the_quantity_and_the_value() {
        let error = Temperature::new(-1.0).expect_err("negative");
        assert_eq!(error.to_string(), "temperature must be finite and above 0, not -1");
    }

    #[test]
    fn sizes_are_read_in_every_unit_and_shown_in_the_largest_whole_one() {
        let read = |text: &str| text.parse::<ByteSize>().map(|size| size.0);
        assert_eq!(read("4096"), Ok(4096));
        assert_eq!(read("512KiB"), Ok(512 << 10));
        assert_eq!(read("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(read("2mib"), Ok(2 << 20));
        assert_eq!(read("3kB"), Ok(3000));
        assert_eq!(read("4GiB"), Ok(4 << 30));
        for wrong in ["", "MiB", "-1", "1XB", "4 apples", "1e3", "1.2.3", "9999999TiB"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert_eq!(ByteSize(128 << 20).to_string(), "128MiB");
        assert_eq!(ByteSize(1000).to_string(), "1000");
        assert_eq!(ByteSize(0).to_string(), "0");
    }
}
