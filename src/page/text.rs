//! HTML text, numbers and small charts.

/// Appends formatted text; writing to a `String` cannot fail.
macro_rules! add {
    ($out:expr, $($arg:tt)*) => {{
        use std::fmt::Write as _;
        write!($out, $($arg)*).expect("a String takes everything")
    }};
}
pub(super) use add;

/// Formats a fraction as per cent.
pub(super) fn percent(share: f64) -> String {
    // An empty sum is -0.
    format!("{:.1} %", 100.0 * share + 0.0)
}

/// Formats an interval of fractions as per cent.
pub(super) fn interval([low, high]: [f64; 2]) -> String {
    format!("{:.1} to {:.1} %", 100.0 * low, 100.0 * high)
}

/// Formats a number with separated thousands.
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

/// Escapes text for any place in HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
        .replace('\n', "&#10;")
        .replace('\r', "&#13;")
}

/// Escapes a sentence for HTML, with text in backticks as code.
pub(super) fn prose(text: &str) -> String {
    let parts: Vec<String> = text.split('`').map(escape).collect();
    let is_paired = parts.len() % 2 == 1;
    let part = |(at, part): (usize, String)| match at % 2 {
        1 if is_paired => format!("<code>{part}</code>"),
        _ => part,
    };
    parts.into_iter().enumerate().map(part).collect()
}

/// Escapes a name for HTML, with line breaks allowed after underscores.
pub(super) fn breakable(name: &str) -> String {
    escape(name).replace('_', "_<wbr>")
}

/// Adds a line across a chart; `top` is its distance from the top in percent of the height.
pub(super) fn rule(html: &mut String, top: f64, label: &str) {
    add!(html, "<span class=\"rule\" style=\"top:{top:.2}%\"><i>{label}</i></span>");
}

/// Adds a dot to a chart, at a position in percent of its width and height.
pub(super) fn dot(html: &mut String, class: &str, (left, top): (f64, f64), step: u64, text: &str) {
    let step = grouped(step);
    add!(
        html,
        "<b class=\"dot {class}\" style=\"left:{left:.2}%;top:{top:.2}%\" title=\"step {step}: {text}\"></b>"
    );
}

/// Small chart of numbers over training steps.
pub(super) struct SmallChart<'a> {
    pub(super) name: &'a str,
    pub(super) about: &'a str,
    /// Note beside the last number.
    pub(super) note: String,
    /// Step and number, ascending.
    pub(super) points: &'a [(u64, f64)],
    /// First and last step of the axis.
    pub(super) steps: (u64, u64),
    /// Smallest and largest number of the axis.
    pub(super) scale: (f64, f64),
    /// Number at which a broken line is drawn.
    pub(super) broken: Option<f64>,
    /// Formats of numbers, and of the ends of the scale.
    pub(super) text: fn(f64) -> String,
    pub(super) tick: fn(f64) -> String,
}

impl SmallChart<'_> {
    /// Appends the chart; does nothing without points.
    pub(super) fn write(&self, html: &mut String) {
        let Self { name, about, note, points, steps: (first, last), scale: (low, high), text, .. } = self;
        let Some((_, newest)) = points.last() else { return };
        let x = |step: u64| 100.0 * (step - first) as f64 / (last - first).max(1) as f64;
        let y = |number: f64| 100.0 * (high - number) / (high - low);
        add!(
            html,
            "<div><h3>{}</h3>\n<p class=\"note\">{}</p>\n<p><b>{}</b> <span class=\"note\">{note}</span></p>\n\
             <div class=\"chart\" aria-hidden=\"true\">\n",
            escape(name),
            prose(about),
            text(*newest)
        );
        for number in [*low, *high] {
            rule(html, y(number), &(self.tick)(number));
        }
        if let Some(broken) = self.broken {
            add!(html, "<span class=\"rule chance\" style=\"top:{:.2}%\"></span>", y(broken).max(0.0));
        }
        let line: Vec<String> =
            points.iter().map(|&(step, number)| format!("{:.2},{:.2}", x(step), y(number))).collect();
        add!(
            html,
            "<svg viewBox=\"0 0 100 100\" preserveAspectRatio=\"none\">\
             <polyline class=\"top1\" points=\"{}\"/></svg>\n",
            line.join(" ")
        );
        for &(step, number) in *points {
            dot(html, "top1", (x(step), y(number)), step, &text(number));
        }
        add!(
            html,
            "<span class=\"steps\"><i>step {}</i><i>{}</i></span>\n</div>\n</div>\n",
            grouped(*first),
            grouped(*last)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_broken_between_its_words_alone() {
        assert_eq!(breakable("great_white<shark"), "great_<wbr>white&lt;shark");
    }

    #[test]
    fn backticks_become_code_and_a_single_one_goes() {
        assert_eq!(prose("more `--epochs <N>` help"), "more <code>--epochs &lt;N&gt;</code> help");
        assert_eq!([prose("a ` b"), prose("plain")], ["a  b", "plain"]);
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 1_281_167].map(grouped), ["0", "999", "1,000", "1,281,167"]);
    }
}
