//! Pieces of text.

/// Adds a formatted piece; writing to a `String` cannot fail.
macro_rules! add {
    ($out:expr, $($arg:tt)*) => {{
        use std::fmt::Write as _;
        write!($out, $($arg)*).expect("a String takes everything")
    }};
}
pub(super) use add;

/// A share as text.
pub(super) fn percent(share: f64) -> String {
    // The sum of nothing is -0.
    format!("{:.1} %", 100.0 * share + 0.0)
}

/// An interval of shares as text.
pub(super) fn interval([low, high]: [f64; 2]) -> String {
    format!("{:.1} to {:.1} %", 100.0 * low, 100.0 * high)
}

/// A number with its thousands apart.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Text escaped for any place in HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
        .replace('\n', "&#10;")
        .replace('\r', "&#13;")
}

/// A name escaped for HTML, with breaks allowed after underlines.
pub(super) fn breakable(name: &str) -> String {
    escape(name).replace('_', "_<wbr>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_broken_between_its_words_alone() {
        assert_eq!(breakable("great_white<shark"), "great_<wbr>white&lt;shark");
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 1_281_167].map(grouped), ["0", "999", "1,000", "1,281,167"]);
    }
}
