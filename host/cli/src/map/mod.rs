//! `edgent map`: plans made beforehand for each state of the link (the paper's configuration map).

mod file;

use crate::bounds::{DEADLINE_MAX_MS, SLOWDOWN_MAX};
use crate::confined;
use crate::output::{BadInput, Output};
use crate::plan::measured;
use crate::trace::Trace;
use anyhow::Result;
use clap::Subcommand;
use edgent_bundle::Bundle;
use edgent_planner::{ConfigurationMap, Constraints, Link, Margin, Network};
use edgent_runtime::codec;
use file::{Emulated, FORMAT, MapFile, StateRow};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// States of a map for which no rates are given.
const STATES: usize = 17;

/// The range of their rates, as that of seeded traces.
const RATE_MIN_BPS: f64 = 50e3;
const RATE_MAX_BPS: f64 = 20e6;

/// The link of the demo, there and back.
const RTT_MS: f64 = 4.0;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Measure a bundle on this machine and make a map for it.
    Build(BuildArguments),
    /// Show what a map says.
    Show(ShowArguments),
}

#[derive(clap::Args)]
pub(crate) struct BuildArguments {
    /// The bundle's folder, or FOLDER@NAME:VERSION.
    bundle: PathBuf,
    /// The file to write the map to.
    #[arg(long, value_name = "MAP.json")]
    out: PathBuf,
    /// Time from a request to its answer.
    #[arg(long, allow_negative_numbers = true, default_value_t = 100.0)]
    deadline_ms: f64,
    /// How much slower than this machine the emulated device is.
    #[arg(long, value_name = "K", allow_negative_numbers = true, default_value_t = 50.0)]
    slowdown: f64,
    /// The link's round trip.
    #[arg(long, allow_negative_numbers = true, default_value_t = RTT_MS)]
    rtt_ms: f64,
    /// How much accuracy coding an activation as u8 may cost.
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.005)]
    codec_loss_max: f64,
    /// Never send the network's raw input to an edge.
    #[arg(long)]
    keep_input: bool,
    /// The link's states, in bit/s, with commas between; else 17 from 50 kbit/s to 20 Mbit/s.
    #[arg(long, value_name = "BPS", value_delimiter = ',', num_args = 1.., allow_negative_numbers = true)]
    rates: Vec<f64>,
    /// Traces (Oboe, Belgium LTE, Mahimahi) from whose least to whose greatest rate the states are.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "rates")]
    trace: Vec<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct ShowArguments {
    /// The map.
    #[arg(value_name = "MAP.json")]
    map: PathBuf,
}

/// Making one in a process of its own, which can open the bundle and the traces, and write the map.
pub(crate) fn confined(arguments: &BuildArguments) -> Result<ExitCode> {
    let traces: Vec<&Path> = arguments.trace.iter().map(PathBuf::as_path).collect();
    confined::on_bundle(&arguments.bundle, &traces, Some(&arguments.out))
}

pub(crate) fn run(command: &Command, output: &Output) -> Result<()> {
    match command {
        Command::Build(arguments) => build(arguments, output),
        Command::Show(arguments) => print(&MapFile::read(&arguments.map)?, output),
    }
}

fn build(arguments: &BuildArguments, output: &Output) -> Result<()> {
    let BuildArguments { deadline_ms, slowdown, rtt_ms, codec_loss_max, .. } = *arguments;
    let within = [
        ("--deadline-ms", deadline_ms, 0.001, DEADLINE_MAX_MS),
        ("--slowdown", slowdown, 1.0, SLOWDOWN_MAX),
        ("--rtt-ms", rtt_ms, 0.0, DEADLINE_MAX_MS),
        ("--codec-loss-max", codec_loss_max, 0.0, 1.0),
    ];
    if let Some((name, _, least, most)) = within.iter().find(|(_, value, least, most)| !(least..=most).contains(&value))
    {
        return Err(BadInput::error(format!("{name} must be between {least} and {most}")));
    }
    let rates_bps = rates(arguments)?;
    let bundle = Bundle::open(&arguments.bundle).map_err(BadInput::error)?;
    output.progress("measuring each segment on this machine");
    let (deployment, profile) = measured(&bundle, slowdown)?;
    let constraints = Constraints {
        deadline_us: deadline_ms * 1e3,
        codec_loss_max,
        input_may_leave: !arguments.keep_input,
        link: Some(Link { rate_bps: RATE_MIN_BPS, rtt_us: rtt_ms * 1e3, message_bytes: codec::MESSAGE_BYTES }),
        accuracy_min: 0.0,
        margin: Margin::NONE,
    };
    let network = deployment.network();
    let map = ConfigurationMap::build(network, &profile, &constraints, &rates_bps).map_err(BadInput::error)?;
    let exits: Vec<&str> = bundle.manifest().exits.iter().map(|exit| exit.name.as_str()).collect();
    let map = file(&map, network, &exits, &bundle, arguments);
    map.write(&arguments.out)?;
    print(&map, output)?;
    output.line(format_args!("map: {}", arguments.out.display()));
    Ok(())
}

/// The states' rates: as given, or spaced evenly on a logarithmic scale.
fn rates(arguments: &BuildArguments) -> Result<Vec<f64>> {
    if !arguments.rates.is_empty() {
        return Ok(arguments.rates.clone());
    }
    let (mut least, mut greatest) = (f64::INFINITY, 0.0_f64);
    for path in &arguments.trace {
        // While nothing gets through there is nothing to plan with.
        for rate_bps in Trace::load(path)?.steps().iter().map(|step| step.rate_bps as f64).filter(|rate| *rate > 0.0) {
            (least, greatest) = (least.min(rate_bps), greatest.max(rate_bps));
        }
    }
    let (least, greatest) = if arguments.trace.is_empty() { (RATE_MIN_BPS, RATE_MAX_BPS) } else { (least, greatest) };
    let share = |index: usize| index as f64 / (STATES - 1) as f64;
    Ok((0..STATES).map(|index| (least * (greatest / least).powf(share(index))).round()).collect())
}

fn file(
    map: &ConfigurationMap,
    network: &Network,
    exits: &[&str],
    bundle: &Bundle,
    arguments: &BuildArguments,
) -> MapFile {
    let row = |state: &edgent_planner::State| StateRow {
        rate_bps: state.rate_bps,
        exit: exits[state.plan.exit].to_owned(),
        cut: state.plan.cut,
        direction: state.plan.direction.into(),
        codec: state.plan.codec.into(),
        placement: state.plan.placement(network).into(),
        latency_ms: state.latency_us / 1e3,
        accuracy: state.accuracy,
        reward: state.reward,
        fits: state.fits,
    };
    MapFile {
        format: FORMAT,
        model: bundle.manifest().name.clone(),
        digest: bundle.digest(),
        deadline_ms: arguments.deadline_ms,
        rtt_ms: arguments.rtt_ms,
        emulated: (arguments.slowdown > 1.0).then_some(Emulated { device_slowdown: arguments.slowdown }),
        states: map.states().iter().map(row).collect(),
    }
}

fn print(map: &MapFile, output: &Output) -> Result<()> {
    output.line(format_args!("{} {}", map.model, map.digest));
    output.line(format_args!(
        "deadline {} ms, round trip {} ms, {}",
        map.deadline_ms,
        map.rtt_ms,
        match map.emulated {
            Some(Emulated { device_slowdown }) =>
                format!("device emulated: {device_slowdown} times slower than the edge"),
            None => "device as fast as the edge".to_owned(),
        }
    ));
    output.line(format_args!(
        "{:>10}  {:<10} {:>3}  {:<12} {:<12} {:<6} {:>9} {:>8} {:>8}",
        "kbit/s", "exit", "cut", "placement", "direction", "codec", "latency", "accuracy", "reward"
    ));
    for state in &map.states {
        output.line(format_args!(
            "{:>10.0}  {:<10} {:>3}  {:<12} {:<12} {:<5} {:>6.1} ms {:>8.3} {:>8.2}{}",
            state.rate_bps / 1e3,
            state.exit,
            state.cut,
            state.placement,
            state.direction,
            state.codec,
            state.latency_ms,
            state.accuracy,
            state.reward,
            if state.fits { "" } else { "  LATE" },
        ));
    }
    output.result(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn parsed(words: &str) -> BuildArguments {
        let words = format!("edgent build bundle --out map.json {words}");
        match Line::try_parse_from(words.split_whitespace()).unwrap().command {
            Command::Build(arguments) => arguments,
            Command::Show(_) => panic!("{words}"),
        }
    }

    #[test]
    fn rates_are_given_or_spread_over_a_range() {
        assert_eq!(rates(&parsed("--rates 1e5,200000,3e6")).unwrap(), [1e5, 2e5, 3e6]);
        let spread = rates(&parsed("")).unwrap();
        assert_eq!((spread.len(), spread[0], spread[STATES - 1]), (STATES, 50e3, 20e6));
        assert!(spread.windows(2).all(|two| (1.4..1.5).contains(&(two[1] / two[0]))), "{spread:?}");
        let folder = tempfile::tempdir().unwrap();
        let trace = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (a, b) = (trace("a", "0 100\n500 0\n900 0\n"), trace("b", "0 1600\n1 3000\n2 3000\n"));
        let of_traces = rates(&parsed(&format!("--trace {a} {b}"))).unwrap();
        assert_eq!((of_traces.len(), of_traces[0], of_traces[STATES - 1]), (STATES, 100e3, 3e6));
        let nonsense = trace("c", "x");
        assert!(rates(&parsed(&format!("--trace {nonsense}"))).unwrap_err().is::<BadInput>());
    }

    #[test]
    fn figures_that_are_none_are_bad_input() {
        for words in ["--deadline-ms 0", "--deadline-ms nan", "--slowdown 0.5", "--rtt-ms -1", "--codec-loss-max 2"] {
            let error = build(&parsed(words), &Output::new(false)).unwrap_err();
            assert!(error.is::<BadInput>() && error.to_string().contains("must be between"), "{words}: {error}");
        }
    }
}
