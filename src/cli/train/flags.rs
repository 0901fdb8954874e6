//! Flags for the options of a run, built from their descriptions.

use std::marker::PhantomData;

use clap::builder::{TypedValueParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use toml::{Table, Value};

use crate::cli::names;
use crate::run_config::{Arity, OptionSpec};

/// Selection of a command's options.
pub(in crate::cli) trait Offer {
    /// Returns the options, each with the default that the help shows.
    fn options() -> Vec<(&'static OptionSpec, Option<String>)>;
}

/// Flags of a command for the options that `O` offers.
#[derive(Debug)]
pub(in crate::cli) struct OptionFlags<O> {
    /// Values of the given options, by key.
    pub(in crate::cli) given: Table,
    offer: PhantomData<O>,
}

impl<O: Offer> clap::Args for OptionFlags<O> {
    fn augment_args(command: Command) -> Command {
        let mut options = O::options();
        options.sort_by_key(|(option, _)| option.heading);
        command.args(options.into_iter().map(|(option, default)| flag(option, default)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<O: Offer> FromArgMatches for OptionFlags<O> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Table::new();
        for (OptionSpec { key, arity, .. }, _) in O::options() {
            let value = match arity {
                Arity::Switch => matches.get_flag(key).then_some(Value::Boolean(true)),
                Arity::One => matches.get_one::<Value>(key).cloned(),
                Arity::List | Arity::Repeated => {
                    matches.get_many::<Value>(key).map(|items| Value::Array(items.cloned().collect()))
                }
            };
            given.extend(value.map(|value| ((*key).to_owned(), value)));
        }
        Ok(Self { given, offer: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.given.extend(Self::from_arg_matches(matches)?.given);
        Ok(())
    }
}

fn flag(option: &'static OptionSpec, default: Option<String>) -> Arg {
    let default = default.map_or_else(String::new, |default| format!(" [default: {default}]"));
    let arg = Arg::new(option.key)
        .long(option.flag())
        .help(option.help() + &default)
        .help_heading(<&str>::from(option.heading));
    let arg = match option.arity {
        Arity::Switch => return arg.action(ArgAction::SetTrue),
        Arity::One => arg.action(ArgAction::Set),
        Arity::List => arg.action(ArgAction::Append).value_delimiter(','),
        Arity::Repeated => arg.action(ArgAction::Append),
    };
    let (from_flag, choices) = (option.from_flag, (option.choices)());
    let parser = if choices.is_empty() {
        ValueParser::new(from_flag)
    } else {
        ValueParser::new(names(choices).try_map(move |name| from_flag(&name)))
    };
    arg.value_name(option.value_name).value_parser(parser)
}

#[cfg(test)]
mod tests {
    use clap::{Args, CommandFactory};

    use super::*;
    use crate::cli::Cli;
    use crate::cli::train::OfTraining;
    use crate::run_config::TrainConfig;

    /// Returns the texts that the help shows for each option, by key.
    fn helps(command: &Command) -> Vec<(String, String)> {
        let options = |arg: &&Arg| TrainConfig::OPTIONS.iter().any(|option| arg.get_id() == option.key);
        let shown = |arg: &Arg| (arg.get_id().to_string(), arg.get_help().expect("a help").to_string());
        let mut helps: Vec<_> = command.get_arguments().filter(options).map(shown).collect();
        helps.sort();
        helps
    }

    #[test]
    fn the_flags_are_the_keys_and_their_help_has_doc_and_default() {
        let cli = Cli::command();
        let command = |name: &str| cli.find_subcommand(name).expect(name);
        let step = command("bench").find_subcommand("step").expect("a command");
        for (command, is_of_finetune) in
            [(command("train"), false), (step, false), (command("finetune"), true)]
        {
            let options = TrainConfig::OPTIONS.iter().filter(|option| option.finetune || !is_of_finetune);
            let mut keys: Vec<&str> = options.clone().map(|option| option.key).collect();
            keys.extend(is_of_finetune.then_some("split"));
            keys.sort_unstable();
            let helps = helps(command);
            assert_eq!(helps.iter().map(|(key, _)| key).collect::<Vec<_>>(), keys);
            for option in options {
                let (_, help) = helps.iter().find(|(key, _)| key == option.key).expect("listed");
                assert!(help.starts_with(&option.help()), "{help}");
                let has_none = option.arity == Arity::Switch
                    || matches!(option.key, "init" | "cache" | "monitor_split" | "monitor")
                    || (is_of_finetune && option.key == "recipe");
                assert_eq!(help.contains(" [default: "), !has_none, "{help}");
            }
        }
    }

    #[test]
    fn flags_have_the_types_of_their_options() {
        let read = |words: &str| -> Result<Table, String> {
            let command = OptionFlags::<OfTraining>::augment_args(Command::new("train").no_binary_name(true));
            let matches =
                command.try_get_matches_from(words.split(' ')).map_err(|error| error.to_string())?;
            Ok(OptionFlags::<OfTraining>::from_arg_matches(&matches).expect("read").given)
        };
        let given = read(
            "--lr-milestones 3,5 --lr-milestones 8 --nesterov --memory-limit 4KiB --bank-dtype bf16 --device cuda \
             --partition 2.5 --split a --monitor a,b:c --monitor d --monitor-every 5000steps",
        );
        let expected = "lr_milestones = [3, 5, 8]\nnesterov = true\nmemory_limit = 4096\nbank_dtype = \"bf16\"\n\
                        device = \"cuda:0\"\npartition = 2.5\nsplit = \"a\"\nmonitor = [\"a,b:c\", \"d\"]\n\
                        monitor_every = \"5000steps\"";
        assert_eq!(given, Ok(expected.parse().expect("TOML")));
        let wrong = [
            ("--precision f99", "[possible values: f32, tf32, bf16, f16]"),
            ("--dim x", "invalid value 'x' for '--dim <N>': invalid digit found in string"),
            ("--lr-milestones 1,x", "invalid value 'x' for '--lr-milestones <EPOCHS>'"),
            ("--temperature=-1", "temperature must be finite and above 0, not -1"),
            ("--monitor-every 5k", "neither a number of epochs, such as 2, nor of steps, such as 5000steps"),
            ("--monitor a:b:c:d", "`a:b:c:d` is not DATASET[:TRAIN[:TEST]]"),
            ("--nesterov=yes", "unexpected value 'yes' for '--nesterov' found"),
            ("--lr 1 --lr 2", "cannot be used multiple times"),
            ("--seed 18446744073709551615", "invalid value '18446744073709551615' for '--seed <N>'"),
        ];
        for (words, expected) in wrong {
            let error = read(words).expect_err(words);
            assert!(error.contains(expected), "{error}");
        }
    }
}
