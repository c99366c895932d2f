//! `edgent completions` and `edgent man`: what is known of both programs, for shells and for `man`.

use crate::output::Output;
use crate::{HOST_PROGRAM, TOOL_PROGRAM, daemon};
use anyhow::{Context, Result};
use clap::{Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use serde::Serialize;
use std::fs;
use std::path::PathBuf;

/// The page that `--markdown` writes, and how wide it is.
const MARKDOWN_FILE: &str = "commands.md";
const MARKDOWN_COLUMNS: usize = 100;

/// Where manuals of daemons stand.
const DAEMON_SECTION: &str = "8";

#[derive(clap::Args)]
pub(crate) struct Completions {
    /// The shell that completes.
    #[arg(value_enum)]
    shell: Shell,
    /// What is completed.
    #[arg(long, value_enum, default_value = TOOL_PROGRAM)]
    program: Program,
}

#[derive(Clone, Copy, ValueEnum)]
enum Program {
    Edgent,
    EdgentHost,
}

#[derive(clap::Args)]
pub(crate) struct Manual {
    /// The folder for the pages; made if need be.
    dir: PathBuf,
    /// One page in Markdown instead, commands.md: the book has it.
    #[arg(long)]
    markdown: bool,
}

#[derive(Serialize)]
struct Script {
    program: &'static str,
    shell: String,
    script: String,
}

#[derive(Serialize)]
struct Pages {
    dir: PathBuf,
    pages: usize,
}

pub(crate) fn completions(arguments: &Completions, output: &Output) -> Result<()> {
    let (mut command, program) = match arguments.program {
        Program::Edgent => (crate::Arguments::command(), TOOL_PROGRAM),
        Program::EdgentHost => (daemon::command(), HOST_PROGRAM),
    };
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, program, &mut script);
    let script = String::from_utf8(script).context("a script that is no text")?;
    output.line(script.trim_end());
    output.result(&Script { program, shell: arguments.shell.to_string(), script })
}

pub(crate) fn manual(arguments: &Manual, output: &Output) -> Result<()> {
    let dir = &arguments.dir;
    let written = || -> std::io::Result<usize> {
        fs::create_dir_all(dir)?;
        if arguments.markdown {
            fs::write(dir.join(MARKDOWN_FILE), markdown())?;
            return Ok(1);
        }
        clap_mangen::generate_to(crate::Arguments::command(), dir)?;
        Man::new(daemon::command()).section(DAEMON_SECTION).generate_to(dir)?;
        Ok(pages(&crate::Arguments::command()) + 1)
    };
    let pages = written().with_context(|| format!("writing pages to {}", dir.display()))?;
    output.line(format_args!("{pages} pages in {}", dir.display()));
    output.result(&Pages { dir: dir.clone(), pages })
}

/// Each command with what it says of itself when it is asked for help.
fn markdown() -> String {
    let mut text = format!(
        "# Commands\n\n<!-- Written by `{TOOL_PROGRAM} man docs --markdown`. -->\n\n\
         What `--help` says of each. A setting of `{HOST_PROGRAM}` is also a variable and a key of a file: \
         [operating.md](operating.md).\n"
    );
    for mut root in [daemon::command(), crate::Arguments::command()] {
        // What is `global` is only known below once clap has put the command together.
        root.build();
        describe(root, &mut text);
    }
    text
}

fn describe(command: Command, text: &mut String) {
    let mut command = command.term_width(MARKDOWN_COLUMNS);
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    text.push_str(&format!("\n## `{name}`\n\n```text\n{}\n```\n", help.join("\n").trim_end()));
    for below in shown(&command).filter(|below| below.get_name() != "help") {
        describe(below.clone(), text);
    }
}

/// One for each command, and for each of its own.
fn pages(command: &Command) -> usize {
    1 + shown(command).map(pages).sum::<usize>()
}

/// Those that users are told of.
fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|below| !below.is_hide_set())
}
