//! What `edgent-host` is told: by its flags, by the environment, by a file, or by nobody; the first of these that
//! says something counts.
//!
//! The flags that clap knows are the one list: `--deadline-ms` is `EDGENT_DEADLINE_MS` in the environment and
//! `deadline_ms` in the file. What is said there is checked as the flag would be, then all is given to clap as flags.

mod file;
mod show;
#[cfg(test)]
mod tests;

pub(crate) use show::{Command as ShowCommand, run as show};

use crate::output::BadInput;
use anyhow::Result;
use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::any::TypeId;
use std::error::Error as _;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

/// The flag that names the file. It is no setting itself: a file does not name another.
const CONFIG: &str = "config";

/// What a setting's variable begins with.
pub(crate) const VARIABLE_PREFIX: &str = "EDGENT_";

/// Between the values of one variable.
const VARIABLE_SEPARATOR: char = ',';

/// All that a host is told.
#[derive(Debug)]
pub(crate) struct Config {
    /// The file, if there is one.
    pub(crate) path: Option<PathBuf>,
    pub(crate) settings: Vec<Setting>,
    /// Variables that look like settings and are none.
    pub(crate) strays: Vec<String>,
}

/// One setting: what it is, and who said so.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) kind: Kind,
    /// None: it is left out. Several only if it may have several.
    pub(crate) values: Vec<OsString>,
    pub(crate) origin: Origin,
}

/// Who said what a setting is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag(String),
    Variable(String),
    File(PathBuf, usize),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Variable(name) => f.write_str(name),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// What the values of a setting are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) of: Type,
    pub(crate) several: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Switch,
    Whole,
    Number,
    Text,
}

/// The flags as this module wants them: switches that can be turned off again, `--tls=false`.
pub(crate) fn command<A: clap::CommandFactory>() -> Command {
    A::command().mut_args(|arg| match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .value_parser(clap::value_parser!(bool))
            .value_name("BOOL")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value("false")
            .hide_default_value(true)
            .hide_possible_values(true),
        _ => arg,
    })
}

impl Config {
    /// Of the flags that were given, and of what this process's environment says.
    pub(crate) fn of_process(command: &Command, given: &ArgMatches) -> Result<Self> {
        Self::new(command, given, std::env::vars_os().collect())
    }

    fn new(command: &Command, given: &ArgMatches, environment: Vec<(OsString, OsString)>) -> Result<Self> {
        // An empty variable is how units and containers say that there is none.
        let said = |name: &str| {
            let mut named = environment.iter().filter(|(known, value)| known == name && !value.is_empty());
            named.next().map(|(_, value)| value.as_os_str())
        };
        let path = given.get_one::<PathBuf>(CONFIG).cloned().or_else(|| said(&variable(CONFIG)).map(PathBuf::from));
        let mut file = path.as_deref().map(|path| file::read(path, command)).transpose()?.unwrap_or_default();
        let mut settings = Vec::new();
        for arg in arguments(command) {
            let (key, kind) = (key(arg), Kind::of(arg));
            let raw = || given.get_raw(arg.get_id().as_str()).into_iter().flatten().map(OsStr::to_owned).collect();
            let name = variable(&key);
            let in_file = file.remove(&key);
            let (values, origin) = match given.value_source(arg.get_id().as_str()) {
                Some(ValueSource::CommandLine) => (raw(), Origin::Flag(flag(arg).to_owned())),
                source => match (said(&name), in_file) {
                    (Some(value), _) => (kind.split(value), Origin::Variable(name)),
                    (None, Some((values, origin))) => (values, origin),
                    (None, None) if source.is_some() => (raw(), Origin::Default),
                    (None, None) => (Vec::new(), Origin::Default),
                },
            };
            if matches!(origin, Origin::Variable(_) | Origin::File(..)) {
                for value in &values {
                    check(arg, value).map_err(|why| BadInput::error(format!("{origin}: {key} {why}")))?;
                }
            }
            settings.push(Setting { key, kind, values, origin });
        }
        let known: Vec<String> = arguments(command).map(|arg| variable(&key(arg))).collect();
        let names = environment.iter().filter_map(|(name, _)| name.to_str());
        let is_stray = |name: &&str| {
            name.starts_with(VARIABLE_PREFIX) && *name != variable(CONFIG) && !known.iter().any(|known| known == name)
        };
        let strays = names.filter(is_stray).map(str::to_owned).collect();
        Ok(Self { path, settings, strays })
    }

    /// All that is in force, as clap would have it read from flags alone.
    pub(crate) fn arguments<A: clap::Parser>(&self) -> Result<A> {
        // Defaults are clap's own: told as flags, they would exclude others.
        let told = self.settings.iter().filter(|setting| setting.origin != Origin::Default);
        let flags = told.flat_map(|setting| setting.values.iter().map(|value| written(&setting.flag(), value)));
        let read = command::<A>().no_binary_name(true).try_get_matches_from(flags);
        read.and_then(|read| A::from_arg_matches(&read)).map_err(|error| BadInput::error(self.explained(&error)))
    }

    /// What clap says of flags together, and where those came from that it names.
    fn explained(&self, error: &clap::Error) -> String {
        let said = error.render().to_string();
        let said = said.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let named = |setting: &&Setting| {
            !matches!(setting.origin, Origin::Flag(_) | Origin::Default)
                && said.split([' ', '\'', '=']).any(|word| word.strip_prefix("--") == Some(&setting.flag()))
        };
        let origins = self.settings.iter().filter(named).map(|setting| self.name(&setting.key));
        let origins: Vec<String> = origins.collect();
        if origins.is_empty() { said.to_owned() } else { format!("{said} ({})", origins.join(", ")) }
    }

    /// A setting's name as it was given, for who must say what is wrong with it.
    pub(crate) fn name(&self, key: &str) -> String {
        let setting = self.settings.iter().find(|setting| setting.key == key);
        match setting.map(|setting| &setting.origin) {
            Some(origin @ Origin::File(..)) => format!("{origin}: {key}"),
            Some(Origin::Variable(name)) => name.clone(),
            _ => format!("--{}", key.replace('_', "-")),
        }
    }
}

impl Setting {
    fn flag(&self) -> String {
        self.key.replace('_', "-")
    }
}

impl Kind {
    fn of(arg: &Arg) -> Self {
        let parser: &ValueParser = arg.get_value_parser();
        let of = match parser.type_id() {
            id if id == TypeId::of::<bool>() => Type::Switch,
            id if id == TypeId::of::<u64>() || id == TypeId::of::<usize>() => Type::Whole,
            id if id == TypeId::of::<f64>() => Type::Number,
            _ => Type::Text,
        };
        Self { of, several: matches!(arg.get_action(), ArgAction::Append) }
    }

    /// The values in a variable.
    fn split(self, value: &OsStr) -> Vec<OsString> {
        match value.to_str() {
            Some(text) if self.several => text.split(VARIABLE_SEPARATOR).map(OsString::from).collect(),
            _ => vec![value.to_owned()],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.of, self.several) {
            (Type::Switch, _) => "true or false",
            (Type::Whole, _) => "a whole number",
            (Type::Number, _) => "a number",
            (Type::Text, false) => "a string",
            (Type::Text, true) => "a string or an array of strings",
        })
    }
}

/// The settings among a program's arguments.
fn arguments(command: &Command) -> impl Iterator<Item = &Arg> {
    let is_setting = |arg: &&Arg| {
        let asks = matches!(arg.get_action(), ArgAction::Help | ArgAction::Version);
        arg.get_long().is_some_and(|long| long != CONFIG) && !asks
    };
    command.get_arguments().filter(is_setting)
}

fn flag(arg: &Arg) -> &str {
    arg.get_long().unwrap_or_default()
}

fn key(arg: &Arg) -> String {
    flag(arg).replace('-', "_")
}

/// A setting's name in the environment.
pub(crate) fn variable(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.to_ascii_uppercase())
}

fn written(flag: &str, value: &OsStr) -> OsString {
    let mut word = OsString::from(format!("--{flag}="));
    word.push(value);
    word
}

/// Whether the flag would take this value; else why not.
fn check(arg: &Arg, value: &OsStr) -> Result<(), String> {
    let alone = Command::new("").no_binary_name(true).disable_help_flag(true).arg(arg.clone());
    alone.try_get_matches_from([written(flag(arg), value)]).map(drop).map_err(|error| {
        let given = value.to_string_lossy();
        match (error.kind(), error.get(ContextKind::ValidValue), error.source()) {
            (ErrorKind::InvalidValue, Some(ContextValue::Strings(valid)), _) if !valid.is_empty() => {
                format!("must be one of {}, not '{given}'", valid.join(", "))
            }
            (ErrorKind::InvalidValue, ..) => "must not be empty".to_owned(),
            (_, _, Some(why)) => format!("cannot be '{given}': {why}"),
            _ => format!("cannot be '{given}'"),
        }
    })
}

/// The file that a message is about.
fn place(path: &Path, line: usize) -> Origin {
    Origin::File(path.to_owned(), line)
}
