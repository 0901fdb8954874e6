//! Numbers with a meaning, checked once where they enter.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number was outside the range of its unit.
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
            /// Checks the value.
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

            /// The plain number.
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
                let value: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
                Self::new(value).map_err(|error| error.to_string())
            }
        }
    };
}

unit!(
    /// The softmax temperature τ by which similarities are divided; finite and above 0.
    ///
    /// # Source
    /// Paper, section 3.1; reference option `--nce-t`.
    Temperature, "temperature", "finite and above 0", |value| value > 0.0
);
unit!(
    /// The weight of the OLD row when the bank is updated, in 0..1.
    ///
    /// # Source
    /// Reference option `--nce-m`. (mmselfsup's `momentum` is the weight of the new feature.)
    BankMomentum, "bank-momentum", "at least 0 and below 1", |value| (0.0..1.0).contains(&value)
);
unit!(
    /// A share of a whole, in 0..=1.
    Fraction, "fraction", "between 0 and 1", |value| (0.0..=1.0).contains(&value)
);

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
    fn the_error_names_the_quantity_and_the_value() {
        let error = Temperature::new(-1.0).expect_err("negative");
        assert_eq!(error.to_string(), "temperature must be finite and above 0, not -1");
    }
}
