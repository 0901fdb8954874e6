use strum::VariantArray;

use super::*;
use crate::run_config::{Arity, shown};

options! {
    /// Configuration with one option.
    struct Dummy;

    Data {
        /// Standard deviation of the blur,
        /// in pixels; 0 for none.
        blur: f64 = 0.5, Machine, range: Range::NotNegative, value_name: "SIGMA";
    }
}

#[test]
fn an_option_is_one_description() {
    let [option] = Dummy::OPTIONS else { panic!("one option") };
    assert_eq!((option.key, option.flag(), Dummy::default().blur), ("blur", "blur".to_owned(), 0.5));
    assert_eq!(option.help(), "Standard deviation of the blur, in pixels; 0 for none");
    assert_eq!((option.heading, option.scope, option.value_name), (Heading::Data, Scope::Machine, "SIGMA"));
    assert!((option.from_flag)("0.25").is_ok() && (option.from_flag)("wide").is_err());
    assert_eq!(Dummy { blur: -1.0 }.numbers(), [Some(-1.0)]);
    assert!(!option.range.contains(-1.0));
    assert_eq!(toml::from_str::<Dummy>("").expect("valid"), Dummy::default());
    assert!(toml::from_str::<Dummy>("blur_width = 1.0").is_err());
}

#[test]
fn every_option_is_described_and_its_default_is_a_value_of_its_flag() {
    let defaults = TrainConfig::default();
    let keys: Vec<String> = defaults.values().keys().cloned().collect();
    assert_eq!(TrainConfig::OPTIONS.iter().map(|option| option.key).collect::<Vec<_>>(), keys);
    let table = toml::Table::try_from(&defaults).expect("a table");
    for option in TrainConfig::OPTIONS {
        let help = option.help();
        assert!(help.starts_with(|c: char| c.is_ascii_uppercase()) && !help.ends_with('.'), "{help}");
        let value = &table[option.key];
        (option.check)(value.clone()).expect(option.key);
        if option.arity == Arity::Repeated {
            assert_eq!(value, &toml::Value::Array(Vec::new()), "nothing is given by default");
            continue;
        }
        let texts: Vec<String> = match value {
            toml::Value::Array(items) => items.iter().map(ToString::to_string).collect(),
            toml::Value::String(text) => vec![text.clone()],
            other => vec![other.to_string()],
        };
        let read: Result<Vec<_>, _> = texts.iter().map(|text| (option.from_flag)(text)).collect();
        let read = read.expect(option.key);
        let read = if option.arity == Arity::List { read.into() } else { read[0].clone() };
        assert_eq!(&read, value, "{}", option.key);
        for choice in (option.choices)() {
            assert!(!choice.help.is_empty(), "{}", choice.name);
            assert_eq!((option.from_flag)(choice.name), Ok(choice.name.into()), "the name in files");
            (option.check)(choice.name.into()).expect(choice.name);
        }
        if let Some(former) = option.formerly {
            (option.check)(former.into()).expect(option.key);
        }
    }
}

#[test]
fn the_defaults_are_valid_and_those_of_the_reference() {
    let config = TrainConfig::default();
    assert_eq!(config.validate(), Ok(()));
    assert_eq!((config.negatives, config.temperature.get(), config.lr), (4096, 0.07, 0.03));
}

#[test]
fn a_value_out_of_range_is_named() {
    let default = TrainConfig::default;
    let alexnet = TrainConfig { arch: Architecture::AlexNet, ..default() };
    for (config, expected) in [
        (TrainConfig { batch_size: 1, ..default() }, "batch_size must be at least 2, not 1"),
        (
            TrainConfig { clip_norm: f64::NAN, ..default() },
            "clip_norm must be finite and at least 0, not NaN",
        ),
        (
            TrainConfig { image_size: 32, ..alexnet.clone() },
            "image_size must be at least 64 for alexnet, not 32",
        ),
        (
            TrainConfig { batch_size: 16, accumulate: 9, ..default() },
            "accumulate must be so small that each micro-batch has two images, not 9",
        ),
    ] {
        assert_eq!(config.validate().expect_err(expected).to_string(), expected);
    }
    assert!(TrainConfig { image_size: 64, ..alexnet }.validate().is_ok());
    assert!(TrainConfig { batch_size: 16, accumulate: 8, ..default() }.validate().is_ok());
}

#[test]
fn a_cache_that_only_a_shell_would_find_is_no_folder() {
    for cache in ["~/c", "$HOME/c", "s3:/bucket/c", "s3://bucket/c"] {
        let config = TrainConfig { cache: cache.into(), ..TrainConfig::default() };
        let error = config.validate().expect_err(cache).to_string();
        assert!(error.starts_with("cache must be a folder of this machine"), "{error}");
        assert!(error.contains(cache), "{error}");
    }
}

fn earlier() -> Value {
    Value::Object(TrainConfig::default().values())
}

fn differences(config: &TrainConfig, earlier: &Value) -> Vec<String> {
    config.incompatibilities(earlier).iter().map(ToString::to_string).collect()
}

#[test]
fn an_option_that_the_run_did_not_know_has_its_former_default() {
    let mut earlier = earlier();
    let keys = earlier.as_object_mut().expect("keys");
    for key in ["partition", "bank_init", "nesterov"] {
        keys.remove(key).expect("a key");
    }
    let differing = differences(&TrainConfig::default(), &earlier);
    assert_eq!(
        differing,
        ["bank_init = \"uniform\" (now \"encode\")", "partition = \"fixed\" (now \"ema\")"]
    );
    let begun = TrainConfig::default().as_begun(&earlier).expect("valid");
    assert_eq!((begun.partition, begun.bank_init), (PartitionChoice::Fixed, BankInit::Uniform));
    assert_eq!(TrainConfig { nesterov: true, ..begun }.incompatibilities(&earlier)[0].key, "nesterov");
}

/// Its flag is a switch that can only turn it on.
#[test]
fn a_resume_without_cuda_graphs_has_none() {
    let begun = Value::Object(TrainConfig { cuda_graphs: true, ..TrainConfig::default() }.values());
    let now = TrainConfig::default().as_begun(&begun).expect("valid");
    assert!(!now.cuda_graphs);
    assert_eq!(now.incompatibilities(&begun), []);
}

#[test]
fn every_key_that_may_not_differ_is_named_with_both_values() {
    let longer = TrainConfig { epochs: 400, keep: 9, ..TrainConfig::default() };
    assert_eq!(longer.incompatibilities(&earlier()), []);
    let temperature = Temperature::new(0.1).expect("valid");
    let other = TrainConfig { temperature, lr: 0.5, ..TrainConfig::default() };
    assert_eq!(differences(&other, &earlier()), ["temperature = 0.07 (now 0.1)", "lr = 0.03 (now 0.5)"]);
    // The learning rate follows the cosine to the last epoch.
    let cosine = TrainConfig { lr_schedule: LrSchedule::Cosine, ..TrainConfig::default() };
    let earlier = Value::Object(cosine.values());
    let longer = TrainConfig { epochs: 400, ..cosine };
    assert_eq!(longer.incompatibilities(&earlier)[0].key, "epochs");
}

#[test]
fn a_checkpoint_of_another_program_is_read_as_far_as_it_is_known() {
    let mut kept = earlier();
    let keys = kept.as_object_mut().expect("keys");
    keys.insert("finetune".into(), Value::Null);
    keys.insert("seed".into(), 7.into());
    keys.remove("bank_init").expect("a key");
    let config = TrainConfig::of_checkpoint(&kept).expect("valid");
    assert_eq!(config, TrainConfig { seed: 7, bank_init: BankInit::Uniform, ..TrainConfig::default() });
    kept["recipe"] = "other".into();
    assert!(TrainConfig::of_checkpoint(&kept).is_err());
}

#[test]
fn ranks_may_differ_in_what_their_machines_have_and_in_nothing_else() {
    let machine: Vec<&str> = TrainConfig::OPTIONS
        .iter()
        .filter(|option| option.scope == Scope::Machine)
        .map(|option| option.key)
        .collect();
    let expected = [
        "device",
        "cuda_graphs",
        "memory_limit",
        "cache",
        "cache_size",
        "read_threads",
        "loader_threads",
        "prefetch",
    ];
    assert_eq!(machine, expected);
    let agreed = TrainConfig::default().of_all_ranks();
    assert_eq!(agreed.len() + machine.len(), TrainConfig::OPTIONS.len());
    assert!(agreed.iter().all(|(key, _)| !machine.contains(key)));
}

/// With INSTDISC_UPDATE_OPTIONS=1 in the environment, the test writes the file instead.
#[test]
#[expect(clippy::disallowed_methods, reason = "the page belongs to the sources")]
fn the_page_of_the_options_is_up_to_date() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/options.md");
    let page = page();
    if std::env::var_os("INSTDISC_UPDATE_OPTIONS").is_some() {
        return std::fs::write(&path, page).expect("written");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == page,
        "docs/options.md differs; write it: INSTDISC_UPDATE_OPTIONS=1 cargo test page_of_the_options"
    );
}

/// Returns the explanation of a scope, for the page.
fn meaning(scope: Scope) -> &'static str {
    match scope {
        Scope::Identity => "the same on every rank and after every resume",
        Scope::Schedule => {
            "the same on every rank; a resume may change it, except under `--lr-schedule cosine`"
        }
        Scope::Resumable => "the same on every rank; a resume may change it",
        Scope::Machine => "each rank may have its own; a resume may change it",
    }
}

fn page() -> String {
    let mut page = "# Options of a run\n\n\
        Each option is a key of the TOML file of `--config` and a flag of `instdisc train`; the flag wins.\n\
        `instdisc bench step` takes all of them, `instdisc finetune` those marked *finetune* (its defaults are the\n\
        paper's; see its help). Generated from `src/run_config/config.rs`; to write it again:\n\
        `INSTDISC_UPDATE_OPTIONS=1 cargo test page_of_the_options`.\n\n\
        | scope | meaning |\n|---|---|\n"
        .to_owned();
    for scope in Scope::VARIANTS {
        page += &format!("| {} | {} |\n", <&str>::from(scope), meaning(*scope));
    }
    let defaults = TrainConfig::default().values();
    for heading in Heading::VARIANTS {
        page += &format!("\n## {}\n\n", <&str>::from(heading));
        page += "| key | flag | default | scope | meaning |\n|---|---|---|---|---|\n";
        let options = || TrainConfig::OPTIONS.iter().filter(|option| option.heading == *heading);
        for option in options() {
            let default = match (option.by_images, &defaults[option.key]) {
                (Some(text), _) => text.to_owned(),
                (None, Value::Bool(_)) => "off".to_owned(),
                (None, value) => shown(value).unwrap_or_else(|| "none".to_owned()),
            };
            let flag = format!("--{} {}", option.flag(), option.value_name);
            let scope: &str = option.scope.into();
            let finetune = if option.finetune { ", *finetune*" } else { "" };
            let range =
                if option.range == Range::Any { String::new() } else { format!("; {}", option.range) };
            page += &format!(
                "| `{}` | `{}` | {default} | {scope}{finetune} | {}{range} |\n",
                option.key,
                flag.trim_end(),
                option.help(),
            );
        }
        for option in options() {
            let choices = (option.choices)();
            if !choices.is_empty() {
                page += &format!("\n`{}`:\n\n", option.key);
            }
            for choice in choices {
                page += &format!("- `{}`: {}\n", choice.name, choice.help);
            }
        }
    }
    page
}
