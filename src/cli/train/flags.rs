//! The options of a run as flags, made from their descriptions.

use std::marker::PhantomData;

use clap::builder::{TypedValueParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use toml::{Table, Value};

use crate::cli::choice::names;
use crate::run_config::{Arity, OptionSpec};

/// Which options a command has.
pub(in crate::cli) trait Offer {
    /// The options, each with the default that the help shows.
    fn options() -> Vec<(&'static OptionSpec, Option<String>)>;
}

/// The flags of a command for the options that `O` offers.
#[derive(Debug)]
pub(in crate::cli) struct OptionFlags<O> {
    /// The options that were given, by key.
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
                Arity::List => {
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
    };
    let (from_flag, choices) = (option.from_flag, (option.choices)());
    let parser = if choices.is_empty() {
        ValueParser::new(from_flag)
    } else {
        ValueParser::new(names(choices).try_map(move |name| from_flag(&name)))
    };
    arg.value_name(option.value_name).value_parser(parser)
}
