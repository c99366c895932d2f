//! The configuration file: TOML, a key for each flag, and nothing else.

use super::{Kind, Origin, Type, arguments, key, place};
use crate::output::BadInput;
use anyhow::Result;
use clap::Command;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A hundred times what all settings need.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// What a file says: values by key, and where.
pub(crate) type Said = BTreeMap<String, (Vec<OsString>, Origin)>;

/// Reads a file. Keys and types are checked here; what values may be, the flags know.
pub(crate) fn read(path: &Path, command: &Command) -> Result<Said> {
    let bad = |why: &dyn std::fmt::Display| BadInput::error(format!("{}: {why}", path.display()));
    let mut text = String::new();
    let file = File::open(path).map_err(|e| bad(&e))?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|e| bad(&e))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(bad(&format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    said(&text, path, command).map_err(BadInput::error)
}

pub(super) fn said(text: &str, path: &Path, command: &Command) -> Result<Said, String> {
    let at = |offset: usize| place(path, line(text, offset));
    let table = DeTable::parse(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        let message = error.message().replace('\n', ", ");
        format!("{}: {message}", at(offset))
    })?;
    let known: BTreeMap<String, Kind> = arguments(command).map(|arg| (key(arg), Kind::of(arg))).collect();
    let mut said = Said::new();
    for (name, value) in table.into_inner() {
        let origin = at(name.span().start);
        let name = name.into_inner().into_owned();
        let Some(kind) = known.get(&name) else {
            let known: Vec<&str> = known.keys().map(String::as_str).collect();
            return Err(format!("{origin}: '{name}' is no setting; the settings are {}", known.join(", ")));
        };
        let values = match value.get_ref() {
            DeValue::Array(values) if kind.several => values.iter().map(|value| one(value, kind.of)).collect(),
            _ => one(&value, kind.of).map(|value| vec![value]),
        };
        let values = values.map_err(|found| format!("{origin}: {name} must be {kind}, not {found}"))?;
        said.insert(name, (values, origin));
    }
    Ok(said)
}

/// A value as the flag would be given; or what it is instead.
fn one(value: &Spanned<DeValue<'_>>, wanted: Type) -> Result<OsString, &'static str> {
    match (wanted, value.get_ref()) {
        (Type::Switch, DeValue::Boolean(value)) => Ok(value.to_string().into()),
        (Type::Whole | Type::Number, DeValue::Integer(value)) => {
            let whole = i128::from_str_radix(value.as_str(), value.radix()).map_err(|_| "a number so large")?;
            Ok(whole.to_string().into())
        }
        (Type::Number, DeValue::Float(value)) => Ok(value.as_str().into()),
        (Type::Text, DeValue::String(value)) => Ok(value.as_ref().into()),
        (_, DeValue::Boolean(_)) => Err("true or false"),
        (_, DeValue::String(_)) => Err("a string"),
        (_, DeValue::Integer(_)) => Err("a whole number"),
        (_, DeValue::Float(_)) => Err("a number with a fraction"),
        (_, DeValue::Datetime(_)) => Err("a date"),
        (_, DeValue::Array(_)) => Err("an array"),
        (_, DeValue::Table(_)) => Err("a table"),
    }
}

/// Counted from 1.
fn line(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}
