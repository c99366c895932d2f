//! What is printed, and the exit code.

use crate::progress::Shown;
use anyhow::Result;
use serde::Serialize;
use std::fmt;
use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

const FAILED: u8 = 1;
const BAD_INPUT: u8 = 2;

/// Of a terminal: to the line's beginning, and nothing more on it.
const CLEAR_LINE: &str = "\r\x1b[K";

/// Prints for people or for programs.
pub(crate) struct Output {
    json: bool,
    progress: bool,
    shown: Shown,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        let shown = if json { Shown::Nowhere } else { Shown::on_terminal() };
        Self { json, progress: true, shown }
    }

    /// The same in a confined process, whose parent has a terminal and looks for how far this one is.
    pub(crate) fn shown_by_parent(self) -> Self {
        Self { shown: if self.json { Shown::Nowhere } else { Shown::ByParent }, ..self }
    }

    /// The same without a word about what is under way.
    pub(crate) fn silent(self) -> Self {
        Self { progress: false, shown: Shown::Nowhere, ..self }
    }

    /// Where it is seen how far something is.
    pub(crate) fn shown(&self) -> Shown {
        self.shown
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// A line for people.
    pub(crate) fn line(&self, text: impl fmt::Display) {
        if self.json {
            return;
        }
        // The parent may still draw how far this process was, on the very line.
        let is_drawn_upon = self.shown == Shown::ByParent && std::io::stdout().is_terminal();
        print(format_args!("{}{text}", if is_drawn_upon { CLEAR_LINE } else { "" }));
    }

    /// A line about what is under way; never on stdout, which may be read by a program.
    pub(crate) fn progress(&self, text: impl fmt::Display) {
        if self.progress {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// The result for programs.
    pub(crate) fn result(&self, value: &impl Serialize) -> Result<()> {
        if self.json {
            print(serde_json::to_string(value)?);
        }
        Ok(())
    }

    /// The exit code of a command, having said why if it failed.
    pub(crate) fn finish(&self, result: Result<()>) -> ExitCode {
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::from(if error.is::<BadInput>() { BAD_INPUT } else { FAILED })
            }
        }
    }
}

/// A reader that has seen enough (`| head`) ends the program quietly, as it does others.
fn print(text: impl fmt::Display) {
    if let Err(error) = writeln!(std::io::stdout(), "{text}") {
        std::process::exit(if error.kind() == ErrorKind::BrokenPipe { 0 } else { i32::from(FAILED) });
    }
}

/// The user gave something that cannot be used: exit code 2.
#[derive(Debug)]
pub(crate) struct BadInput(pub(crate) String);

impl BadInput {
    pub(crate) fn error(what: impl fmt::Display) -> anyhow::Error {
        anyhow::Error::new(Self(what.to_string()))
    }
}

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

/// The geometric mean of ratios; 1 of none.
pub(crate) fn geometric_mean(ratios: impl Iterator<Item = f64>) -> f64 {
    let logs: Vec<f64> = ratios.map(f64::ln).collect();
    (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp()
}

/// The value at a share `q` of the sorted values; 0 of none.
pub(crate) fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * q).round() as usize).copied().unwrap_or(0.0)
}
