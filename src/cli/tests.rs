#[cfg(feature = "torch")]
mod scripts;

use super::*;

/// Parses a command line, which begins with the program's name, without running it.
///
/// # Errors
/// The program's error text.
fn check_command_line(words: &[String]) -> Result<(), String> {
    let matches = command_line().try_get_matches_from(words).map_err(|error| error.to_string())?;
    <Cli as clap::FromArgMatches>::from_arg_matches(&matches).map(drop).map_err(|error| error.to_string())
}

#[test]
fn the_command_line_is_consistent() {
    command_line().debug_assert();
}

#[test]
fn every_command_has_an_example() {
    for command in command_line().get_subcommands().filter(|command| command.get_name() != "completions") {
        let (name, help) = (command.get_name(), command.get_after_help().expect("a help").to_string());
        assert!(help.starts_with(&format!("Example:\n  instdisc {name}")), "{name}: {help}");
    }
}

#[test]
fn options_of_stores_are_in_the_help_of_commands_that_take_a_location_alone() {
    let mut command = command_line();
    command.build();
    let of_stores = |path: &str| {
        let find = |command, name| clap::Command::find_subcommand(command, name).expect("a command");
        let command = path.split(' ').fold(&command, find);
        let is_shown = |arg: &&Arg| !arg.is_hide_set() && arg.get_help_heading() == Some(STORAGE);
        command.get_arguments().filter(is_shown).filter_map(Arg::get_long).collect::<Vec<_>>().join(" ")
    };
    for path in ["ingest", "inspect", "knn", "render", "export", "export parquet", "bench", "bench loader"] {
        assert_eq!(of_stores(path), "storage-option retry-seconds retry-tries single-writer", "{path}");
    }
    for path in ["synth", "completions"] {
        assert_eq!(of_stores(path), "", "{path}");
    }
    // Hidden options are still accepted.
    for words in ["synth --dest a --retry-seconds 5", "--single-writer synth --dest a"] {
        let words: Vec<String> = format!("instdisc {words}").split(' ').map(str::to_owned).collect();
        assert_eq!(check_command_line(&words), Ok(()));
    }
}

#[cfg(feature = "torch")]
#[test]
fn the_help_of_query_speaks_of_what_a_query_has() {
    let mut command = command_line();
    let help = command.find_subcommand_mut("query").expect("a command").render_long_help().to_string();
    assert!(help.contains("--on-corrupt") && !help.contains("epoch") && !help.contains("batch"), "{help}");
}

#[cfg(feature = "torch")]
#[test]
fn a_kept_report_says_its_scores_and_what_they_are_of() {
    use serde_json::json;

    let knn = json!({
        "step": 7, "top1": 0.25, "top5": 0.5, "k": 20, "temperature": 0.07, "feature": "bank", "queries": 40
    });
    assert_eq!(kept_line(&knn), "step 7: top-1 25.00 %, top-5 50.00 % (k = 20, τ = 0.07, bank, queries: 40)");
    let recall = json!([{"k": 1, "recall": 0.5, "interval": [0.4, 0.6]}]);
    let mut measured = knn.clone();
    measured["retrieval"] = json!({
        "k": 20, "queries": 40, "without_relevant": 0, "recall": recall, "map": 0.25, "map_at_r": null
    });
    assert!(
        kept_line(&measured)
            .starts_with("step 7: top-1 25.00 %, top-5 50.00 %, recall@1 50.00 %, mAP@20 25.00 % (k"),
        "{}",
        kept_line(&measured)
    );
    let few = json!({"step": 7, "top1": 0.25, "top5": 0.5, "k": 3, "feature": "bank"});
    assert_eq!(kept_line(&few), "step 7: top-1 25.00 % (k = 3, bank)");
    let linear = json!({"step": 7, "top1": 0.25, "feature": "pooled", "train_rows": 200, "converged": false});
    let line = "step 7: top-1 25.00 % (pooled, rows of training: 200, not converged)";
    assert_eq!(kept_line(&linear), line);
    assert_eq!(kept_line(&json!({"step": 7, "top1": null, "feature": "bank"})), "step 7: no score (bank)");
}
