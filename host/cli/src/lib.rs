//! The two programs: `edgent-host`, the daemon, and `edgent`, the tool beside it.
//!
//! Both are thin: they read what the user wants, call the other crates, and say what came of it. What
//! they print on a terminal is for people; with `--json`, stdout is exactly one JSON object.
//! Exit codes: 0 good, 1 failed, 2 bad usage or input.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod around;
mod ask;
mod bench;
mod bounds;
mod build;
mod cache;
mod caps;
mod chart;
mod config;
mod confined;
mod daemon;
mod demo;
mod discover;
pub mod hosts;
mod identity;
mod inspect;
mod keys;
mod manager;
mod manual;
mod map;
mod model_file;
mod output;
mod pin;
mod plan;
mod profile;
mod progress;
mod random;
#[cfg(feature = "registry")]
mod registry;
pub mod relay;
mod report;
mod rig;
mod samples;
mod scan;
mod shaped;
mod top;
pub mod trace;
mod verify;
mod versions;

use clap::{Parser, Subcommand};
use output::Output;
use std::process::ExitCode;

/// The name under which the tool runs itself as the daemon, so that one program is enough for the
/// demo and the benches.
const HOST_PROGRAM: &str = "edgent-host";

const TOOL_PROGRAM: &str = "edgent";

/// Answers neural-network requests before their deadline, split between a device and an edge.
#[derive(Parser)]
#[command(name = TOOL_PROGRAM, version)]
struct Arguments {
    /// Print exactly one JSON object on stdout.
    #[arg(long, global = true)]
    json: bool,
    /// Tell how far this process is to the one that started it, which has a terminal.
    #[arg(long, global = true, hide = true)]
    progress_to_parent: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Two hosts on this machine, a real network, real images, a link whose rate changes.
    Demo(demo::Arguments),
    /// Make a bundle of an ONNX model.
    Build(build::Arguments),
    /// Show what a bundle consists of.
    Inspect(inspect::Arguments),
    /// Say what a bundle or an ONNX file asks for, what it costs, and whether a host would take it.
    Scan(scan::Arguments),
    /// Check a bundle: every cut, the golden outputs, the labelled samples.
    Verify(verify::Arguments),
    /// Show this side's fingerprint, and whom it knows.
    Id(identity::Id),
    /// Make another machine known to this one, and this one to it, so that they can talk.
    Pair(identity::Pair),
    /// Show who announces itself on the local network.
    Discover(discover::Arguments),
    /// Make a pair of keys to sign bundles with.
    Keygen(keys::Keygen),
    /// Sign a bundle: this is version so much of the model, and I answer for it.
    Sign(keys::Sign),
    /// Show which plan would be taken, and why the others would not.
    Plan(plan::Arguments),
    /// Have a running device keep to one plan, or choose again.
    Pin(pin::Arguments),
    /// Measure what layers cost on this host, and what a bundle's segments do.
    Profile(profile::Arguments),
    /// Ask a running device about images.
    Infer(ask::Arguments),
    /// Give a running host another version of its model; it changes to it without losing a request.
    Push(versions::Push),
    /// Push what lies in a folder, and again each time that it changes, until interrupted. With --json, an object a push.
    Watch(versions::Watch),
    /// Give bundles to an OCI registry, and take them from there.
    #[cfg(feature = "registry")]
    #[command(subcommand)]
    Registry(registry::Command),
    /// Have a running host go back to the version before.
    Rollback(versions::Rollback),
    /// Show what a running host does, and the versions that it keeps.
    Status(versions::Status),
    /// What a host is told.
    #[command(subcommand)]
    Config(config::ShowCommand),
    /// Show what running hosts do, as it happens; once, where there is no terminal.
    Top(top::Arguments),
    /// Plans made beforehand for each state of the link.
    #[command(subcommand)]
    Map(map::Command),
    /// Print what a shell needs to complete one of the two programs' command lines.
    Completions(manual::Completions),
    /// Write manual pages of both programs.
    Man(manual::Manual),
    /// A slow link, emulated, before any server.
    #[command(hide = true)]
    Relay(shaped::Arguments),
    /// Measure this program.
    #[command(subcommand)]
    Bench(bench::Command),
}

/// `edgent`, from the command line to the exit code.
pub fn main() -> ExitCode {
    if confined::is_called() {
        return confined_main();
    }
    let called_as_host = std::env::args_os().next().is_some_and(|name| name == HOST_PROGRAM);
    if called_as_host {
        return host_main();
    }
    let arguments = Arguments::parse();
    let output = Output::new(arguments.json);
    // What reads foreign files does so in a process of its own.
    let confined = match &arguments.command {
        Command::Build(arguments) => build::confined(arguments),
        Command::Scan(arguments) => scan::confined(arguments),
        Command::Verify(arguments) => verify::confined(arguments),
        Command::Inspect(arguments) => inspect::confined(arguments),
        Command::Plan(arguments) => plan::confined(arguments),
        Command::Profile(arguments) if arguments.bundle.is_some() => profile::confined(arguments),
        Command::Map(map::Command::Build(arguments)) => map::confined(arguments),
        _ => return run(arguments.command, &output),
    };
    confined.unwrap_or_else(|error| output.finish(Err(error)))
}

fn run(command: Command, output: &Output) -> ExitCode {
    output.finish(match command {
        Command::Demo(arguments) => demo::run(&arguments, output),
        Command::Build(arguments) => build::run(&arguments, output),
        Command::Inspect(arguments) => inspect::run(&arguments, output),
        Command::Scan(arguments) => scan::run(&arguments, output),
        Command::Verify(arguments) => verify::run(&arguments, output),
        Command::Id(arguments) => identity::id(&arguments, output),
        Command::Pair(arguments) => identity::pair(&arguments, output),
        Command::Discover(arguments) => discover::run(&arguments, output),
        Command::Keygen(arguments) => keys::keygen(&arguments, output),
        Command::Sign(arguments) => keys::sign(&arguments, output),
        Command::Plan(arguments) => plan::run(&arguments, output),
        #[cfg(feature = "registry")]
        Command::Registry(command) => registry::run(&command, output),
        Command::Pin(arguments) => pin::run(&arguments, output),
        Command::Profile(arguments) => profile::run(&arguments, output),
        Command::Infer(arguments) => ask::run(&arguments, output),
        Command::Push(arguments) => versions::push_bundle(&arguments, output),
        Command::Watch(arguments) => versions::watch(&arguments, output),
        Command::Rollback(arguments) => versions::rollback(&arguments, output),
        Command::Status(arguments) => versions::status(&arguments, output),
        Command::Top(arguments) => top::run(&arguments, output),
        Command::Config(command) => config::show(&command, output),
        Command::Map(command) => map::run(&command, output),
        Command::Completions(arguments) => manual::completions(&arguments, output),
        Command::Man(arguments) => manual::manual(&arguments, output),
        Command::Relay(arguments) => shaped::run(&arguments),
        Command::Bench(command) => bench::run(command, output),
    })
}

/// The process that either program starts for what is foreign.
fn confined_main() -> ExitCode {
    confined::main(|work| {
        let arguments = Arguments::parse_from([std::ffi::OsString::from("edgent")].into_iter().chain(work));
        let output = Output::new(arguments.json);
        let output = if arguments.progress_to_parent { output.shown_by_parent() } else { output };
        run(arguments.command, &output)
    })
}

/// `edgent-host`, from the command line to the exit code.
pub fn host_main() -> ExitCode {
    if confined::is_called() {
        return confined_main();
    }
    Output::new(false).finish(daemon::run())
}
