//! `edgent bench`: what this program costs, measured against doing without it, in one run.

mod batches;
mod chain;
mod conformance;
mod deadline;
mod faults;
mod limits;
mod link;
mod models;
mod overload;
mod plan;
mod portable;
mod sandbox;
mod start;
mod swap;
mod threads;

use crate::output::Output;
use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// A call through a component against tract called directly, by tensor size.
    Sandbox,
    /// All segments of a model through the sandbox against the undivided model in tract.
    Chain(chain::Arguments),
    /// Networks computed inside the sandbox against the host's own arithmetic; how long its code takes to compile.
    Portable(portable::Arguments),
    /// Published networks in tract, as hosts run them, against onnxruntime; where the time goes.
    Models(models::Arguments),
    /// Networks on several threads against one, and what that does to a run beside them.
    Threads(threads::Arguments),
    /// Several images in one run against one after the other: images a second, and how long the last of them waits.
    Batches(batches::Arguments),
    /// Hostile guests and files, many times each: all contained, the host alive.
    Limits(limits::Arguments),
    /// Activations through the link against a bare TCP echo of the same bytes.
    Link,
    /// Planning by the number of layers and exits, against brute force.
    Plan,
    /// Strategies side by side on two real hosts: sweeps of bandwidth and deadline, and a trace.
    Deadline(deadline::Arguments),
    /// The edge killed and frozen, the link lost, connections that fare ill: no request lost, none answered wrongly.
    Faults(faults::Arguments),
    /// A host asked for up to ten times of what it can do: answers in time must not become fewer.
    Overload(overload::Arguments),
    /// How soon a device answers after its start, and the memory that it, an instance and another version take.
    Start(start::Arguments),
    /// Good and bad versions pushed to two real hosts while they answer.
    Swap(swap::Arguments),
    /// Small networks with known answers, through the import and the sandbox.
    Conformance(conformance::Arguments),
}

pub(crate) fn run(command: Command, output: &Output) -> Result<()> {
    match command {
        Command::Limits(arguments) => limits::run(arguments, output),
        Command::Models(arguments) => models::run(&arguments, output),
        Command::Threads(arguments) => threads::run(&arguments, output),
        Command::Batches(arguments) => batches::run(&arguments, output),
        Command::Sandbox => sandbox::run(output),
        Command::Chain(arguments) => chain::run(&arguments, output),
        Command::Portable(arguments) => portable::run(&arguments, output),
        Command::Link => link::run(output),
        Command::Plan => plan::run(output),
        Command::Deadline(arguments) => deadline::run(&arguments, output),
        Command::Faults(arguments) => faults::run(&arguments, output),
        Command::Overload(arguments) => overload::run(&arguments, output),
        Command::Start(arguments) => start::run(&arguments, output),
        Command::Swap(arguments) => swap::run(&arguments, output),
        Command::Conformance(arguments) => conformance::run(&arguments, output),
    }
}
