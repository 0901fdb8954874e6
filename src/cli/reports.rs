//! Reports of a run's checkpoint, as lines or whole.

use serde::Serialize;

use super::{GlobalArgs, write_stdout};
#[cfg(feature = "torch")]
use {super::progress::say, crate::commands::Report};

/// Prints a report as JSON; a line of each feature where it went to a file that the user chose.
pub(super) fn print<T: Serialize>(
    global: &GlobalArgs,
    output: Option<&String>,
    lines: &[String],
    report: &T,
) -> anyhow::Result<()> {
    if output.is_none() {
        return global.write_result(lines, report);
    }
    write_stdout((lines.join("\n") + "\n").as_bytes())
}

/// Prints a report that is new or was kept.
#[cfg(feature = "torch")]
pub(super) fn print_of_run<T: Serialize>(
    global: &GlobalArgs,
    output: Option<&String>,
    lines: impl FnOnce(&T) -> Vec<String>,
    report: &Report<T>,
) -> anyhow::Result<()> {
    let (location, report) = match report {
        Report::New(report) => return print(global, output, &lines(report), report),
        Report::Kept { location, report } => (location, report),
    };
    say(&format!("{location}: made before; remove it to make it again, or give --output"));
    let top1 = report["top1"]
        .as_f64()
        .map_or_else(|| "no score".to_owned(), |top1| format!("top-1 {:.2} %", 100.0 * top1));
    let line =
        format!("step {}: {top1} ({})", report["step"], report["feature"].as_str().unwrap_or_default());
    global.write_result(&[line], report)
}
