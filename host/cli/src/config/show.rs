//! `edgent config show`: what a host would be told, and by whom.

use super::{Config, Origin, Setting, Type};
use crate::daemon;
use crate::output::Output;
use anyhow::Result;
use clap::{ArgMatches, FromArgMatches};
use serde::Serialize;
use serde_json::Value;

/// `edgent config …`
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Show what a host is told by these flags, the environment and the file, as a file would say it.
    Show(Show),
}

/// The host's own flags, beside what is to be shown of them.
pub(crate) struct Show {
    origin: bool,
    host: ArgMatches,
}

const ORIGIN: &str = "origin";

impl clap::Args for Show {
    fn augment_args(command: clap::Command) -> clap::Command {
        let origin = clap::Arg::new(ORIGIN).long(ORIGIN).action(clap::ArgAction::SetTrue);
        let own = command.arg(origin.help("Say of each where it comes from"));
        // `--json` is the tool's own.
        own.args(daemon::command().get_arguments().cloned())
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Show {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self { origin: matches.get_flag(ORIGIN), host: matches.clone() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Serialize)]
struct Report {
    config: Option<String>,
    settings: Vec<Row>,
    strays: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    key: String,
    value: Value,
    /// `flag`, `variable`, `file` or `default`.
    origin: &'static str,
    /// The flag, the variable, or the file and its line.
    from: Option<String>,
}

pub(crate) fn run(Command::Show(arguments): &Command, output: &Output) -> Result<()> {
    let config = Config::of_process(&daemon::command(), &arguments.host)?;
    daemon::check(&config)?;
    for stray in &config.strays {
        output.progress(format_args!("warning: {stray} is no setting"));
    }
    for setting in &config.settings {
        let from = if arguments.origin { format!("  # {}", setting.origin) } else { String::new() };
        let Setting { key, values, .. } = setting;
        match values.is_empty() {
            true => output.line(format_args!("# {key} =")),
            false => output.line(format_args!("{:<40}{from}", format!("{key} = {}", in_toml(&value(setting))))),
        }
    }
    let path = config.path.as_ref().map(|path| path.display().to_string());
    output.result(&Report {
        config: path,
        settings: config.settings.iter().map(Row::from).collect(),
        strays: config.strays,
    })
}

impl From<&Setting> for Row {
    fn from(setting: &Setting) -> Self {
        let origin = match setting.origin {
            Origin::Flag(_) => "flag",
            Origin::Variable(_) => "variable",
            Origin::File(..) => "file",
            Origin::Default => "default",
        };
        let from = (setting.origin != Origin::Default).then(|| setting.origin.to_string());
        Self { key: setting.key.clone(), value: value(setting), origin, from }
    }
}

/// A setting's value with the type that the file wants.
fn value(setting: &Setting) -> Value {
    let one = |text: &std::ffi::OsString| {
        let text = text.to_string_lossy();
        match setting.kind.of {
            Type::Switch => Value::Bool(text == "true"),
            Type::Whole => text.parse::<u64>().map_or(Value::Null, Value::from),
            Type::Number => text.parse::<f64>().map_or(Value::Null, Value::from),
            Type::Text => Value::from(text),
        }
    };
    match setting.kind.several {
        true => setting.values.iter().map(one).collect(),
        false => setting.values.first().map_or(Value::Null, one),
    }
}

/// Of scalars and arrays of strings, all that there is.
fn in_toml(value: &Value) -> String {
    toml::Value::try_from(value).map_or_else(|_| value.to_string(), |value| value.to_string())
}
