//! Reports of a run's checkpoint, as lines or whole.

use serde::Serialize;

use super::{GlobalArgs, write_stdout};
#[cfg(feature = "torch")]
use {super::progress::say, crate::commands::Report, serde_json::Value};

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
    let others = report["other_features"].as_array().into_iter().flatten();
    let lines: Vec<_> = std::iter::once(report).chain(others).map(kept_line).collect();
    global.write_result(&lines, report)
}

/// The scores of a report that was kept on one line.
#[cfg(feature = "torch")]
fn kept_line(report: &Value) -> String {
    let score = |name: &str| report[name].as_f64().map(|share| format!("{:.2} %", 100.0 * share));
    let mut said = vec![score("top1").map_or_else(|| "no score".to_owned(), |top1| format!("top-1 {top1}"))];
    // Among the five best of fewer neighbours or classes is everything.
    if report["k"].as_u64().is_none_or(|k| k >= 5) && report["classes"].as_u64().is_none_or(|n| n > 5) {
        said.extend(score("top5").map(|top5| format!("top-5 {top5}")));
    }
    let known =
        [("k = ", "k"), ("τ = ", "temperature"), ("", "feature"), ("rows of training: ", "train_rows")];
    let mut of = Vec::new();
    for (words, name) in known {
        let value = &report[name];
        if !value.is_null() {
            of.push(format!("{words}{}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        }
    }
    if report["converged"] == false {
        of.push("not converged".to_owned());
    }
    format!("step {}: {} ({})", report["step"], said.join(", "), of.join(", "))
}

#[cfg(all(test, feature = "torch"))]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_kept_report_says_what_a_new_one_does() {
        let knn =
            json!({"step": 7, "top1": 0.25, "top5": 0.5, "k": 20, "temperature": 0.07, "feature": "bank"});
        assert_eq!(kept_line(&knn), "step 7: top-1 25.00 %, top-5 50.00 % (k = 20, τ = 0.07, bank)");
        let few = json!({"step": 7, "top1": 0.25, "top5": 0.5, "k": 3, "feature": "bank"});
        assert_eq!(kept_line(&few), "step 7: top-1 25.00 % (k = 3, bank)");
        let linear =
            json!({"step": 7, "top1": 0.25, "feature": "pooled", "train_rows": 200, "converged": false});
        let line = "step 7: top-1 25.00 % (pooled, rows of training: 200, not converged)";
        assert_eq!(kept_line(&linear), line);
        assert_eq!(
            kept_line(&json!({"step": 7, "top1": null, "feature": "bank"})),
            "step 7: no score (bank)"
        );
    }
}
