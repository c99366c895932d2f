//! How far a command is, as a bar on the terminal of whoever started it.
//!
//! Only where stderr is a terminal, and never with `--json`. What a confined process does is drawn by the process that
//! started it: the confined one tells by lines of its own kind ([`Told`]) among what else it says, and its words are
//! taken for what they are, a stranger's.

use crate::output::Output;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt;
use std::io::{IsTerminal, Write, stderr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What begins a line that tells how far a confined process is; nothing that people read has it.
const MARK: char = '\u{1e}';
/// A confined process tells no more often, but for the end.
const TELL_EVERY: Duration = Duration::from_millis(50);
/// What is done, in so few words.
const WHAT_CHARS_MAX: usize = 40;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    /// Of whatever is done.
    Steps,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Not at all.
    Nowhere,
    /// On this process's terminal.
    Here,
    /// By the process that started this one.
    ByParent,
}

impl Shown {
    /// On a terminal, if there is one to look at.
    pub(crate) fn on_terminal() -> Self {
        if stderr().is_terminal() { Self::Here } else { Self::Nowhere }
    }
}

/// Something under way whose end is known. It goes with what it counts.
pub(crate) struct Progress {
    told: Told,
    done: AtomicU64,
    way: Way,
}

enum Way {
    None,
    Bar(ProgressBar),
    Lines(Mutex<Option<Instant>>),
}

impl Output {
    /// Begins to show how far something is, of `total`.
    pub(crate) fn count(&self, what: &str, unit: Unit, total: usize) -> Progress {
        let told = Told { what: clean(what), unit, done: 0, total: total as u64 };
        let way = match self.shown() {
            Shown::Nowhere => Way::None,
            Shown::Here => Way::Bar(bar(&told)),
            Shown::ByParent => Way::Lines(Mutex::default()),
        };
        Progress { told, done: AtomicU64::new(0), way }
    }
}

impl Progress {
    /// So much more is done; from any thread.
    pub(crate) fn add(&self, more: usize) {
        let done = self.done.fetch_add(more as u64, Ordering::Relaxed) + more as u64;
        self.show(done);
    }

    /// So much is done by now.
    pub(crate) fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.show(done);
    }

    fn show(&self, done: u64) {
        match &self.way {
            Way::None => {}
            Way::Bar(bar) => bar.set_position(done),
            Way::Lines(last) => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                // What others did meanwhile, too; but that all is done, is told once: it ends the bar.
                let done = self.done.load(Ordering::Relaxed);
                if done < self.told.total && last.is_none_or(|last| last.elapsed() >= TELL_EVERY) {
                    *last = Some(Instant::now());
                    self.tell(done);
                }
            }
        }
    }

    /// Nobody may listen any more; that is no reason to do nothing.
    fn tell(&self, done: u64) {
        let _ = writeln!(stderr(), "{}", Told { done, ..self.told.clone() });
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        match &self.way {
            Way::None => {}
            Way::Bar(bar) => bar.finish_and_clear(),
            // Whatever it came to, it is over.
            Way::Lines(_) => self.tell(self.told.total),
        }
    }
}

/// One of a confined process's lines about how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    what: String,
    unit: Unit,
    done: u64,
    total: u64,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.unit == Unit::Bytes { "bytes" } else { "steps" };
        write!(f, "{MARK}{} {} {unit} {}", self.done, self.total, self.what)
    }
}

impl FromStr for Told {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let line = line.strip_prefix(MARK).ok_or(())?.trim_end_matches('\n');
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().ok_or(());
        let (done, total) = (word()?.parse().map_err(drop)?, word()?.parse().map_err(drop)?);
        let unit = match word()? {
            "bytes" => Unit::Bytes,
            "steps" => Unit::Steps,
            _ => return Err(()),
        };
        Ok(Self { what: clean(word()?), unit, done, total })
    }
}

/// Nothing in it steers a terminal.
fn clean(what: &str) -> String {
    what.chars().filter(|c| !c.is_control()).take(WHAT_CHARS_MAX).collect()
}

fn bar(told: &Told) -> ProgressBar {
    let counts = match told.unit {
        Unit::Bytes => "{bytes} of {total_bytes}, {bytes_per_sec}",
        Unit::Steps => "{pos} of {len}",
    };
    let bar = ProgressBar::with_draw_target(Some(told.total), ProgressDrawTarget::stderr());
    // The template is ours, so it is one; were it none, indicatif's own would do.
    let style = ProgressStyle::with_template(&format!("{{msg}} [{{bar:30}}] {counts}, {{eta}} left"));
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.set_message(told.what.clone());
    bar
}

/// Shows what a confined process says: how far it is as a bar, everything else as it is.
pub(crate) struct Parent {
    bar: Option<(String, ProgressBar)>,
}

impl Parent {
    pub(crate) fn new() -> Self {
        Self { bar: None }
    }

    /// Shows a line, with its end. True if it was one about how far the process is.
    pub(crate) fn show(&mut self, line: &[u8]) -> bool {
        let told = std::str::from_utf8(line).ok().and_then(|line| line.parse::<Told>().ok());
        let Some(told) = told else {
            let write = || _ = stderr().write_all(line);
            match &self.bar {
                Some((_, bar)) => bar.suspend(write),
                None => write(),
            }
            return false;
        };
        if self.bar.as_ref().is_some_and(|(what, _)| *what != told.what) {
            self.end();
        }
        let (_, bar) = self.bar.get_or_insert_with(|| (told.what.clone(), bar(&told)));
        bar.set_position(told.done);
        if told.done >= told.total {
            self.end();
        }
        true
    }

    fn end(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_confined_process_tells_is_understood_and_nothing_else() {
        let told = Told { what: "measuring codecs".to_owned(), unit: Unit::Steps, done: 3, total: 500 };
        assert_eq!(format!("{told}\n").parse(), Ok(told.clone()));
        let bytes = Told { unit: Unit::Bytes, what: String::new(), done: u64::MAX, total: 0 };
        assert_eq!(bytes.to_string().parse(), Ok(bytes));
        let hostile = format!("{MARK}1 2 steps \x1b[2J{}\n", "x".repeat(1_000));
        let read: Told = hostile.parse().unwrap();
        assert_eq!(read.what, format!("[2J{}", "x".repeat(WHAT_CHARS_MAX - 3)));
        for line in ["", "error: 1 2 steps x", "\u{1e}", "\u{1e}1 2 steps", "\u{1e}-1 2 steps x", "\u{1e}1 2 miles x"] {
            assert_eq!(line.parse::<Told>(), Err(()), "{line:?}");
        }
    }
}
