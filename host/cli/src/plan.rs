//! `edgent plan`: which plan would be taken, what it is predicted to cost, and why the others lost.

use crate::ask;
use crate::bounds;
use crate::confined;
use crate::daemon::strategy;
use crate::output::{BadInput, Output};
use crate::profile::ProfileFile;
use anyhow::Result;
use edgent_bundle::{Bundle, Manifest};
use edgent_planner::{
    Candidate, Constraints, Direction, Explained, Link, Margin, Network, Placement, Plan, Profile, Strategy, Timings,
    Verdict, explain,
};
use edgent_runtime::{Deployment, codec, confine};
use edgent_sandbox::Engine;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Runs of each segment from which its time is taken.
const PROFILE_RUNS: usize = 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The bundle's folder, or FOLDER@NAME:VERSION.
    bundle: PathBuf,
    /// Time from a request to its answer.
    #[arg(long, allow_negative_numbers = true, default_value_t = 100.0)]
    deadline_ms: f64,
    /// Bits a second of the link; 0 for no edge.
    #[arg(long, allow_negative_numbers = true, default_value_t = 1e6)]
    rate_bps: f64,
    /// Round trip of an empty message.
    #[arg(long, allow_negative_numbers = true, default_value_t = 5.0)]
    rtt_ms: f64,
    /// The device's times as `edgent profile` found them there, instead of measuring here.
    #[arg(long, value_name = "FILE")]
    device_profile: Option<PathBuf>,
    /// The same of the edge.
    #[arg(long, value_name = "FILE")]
    edge_profile: Option<PathBuf>,
    /// How much slower than this machine the device is, where it has no profile.
    #[arg(long, allow_negative_numbers = true, default_value_t = 50.0)]
    slowdown: f64,
    /// How much longer than predicted a plan must be allowed to take.
    #[arg(long, allow_negative_numbers = true, default_value_t = 1.15)]
    margin: f64,
    /// How much accuracy coding an activation may cost.
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.005)]
    codec_loss_max: f64,
    /// Never send the network's raw input.
    #[arg(long)]
    keep_input: bool,
    /// How plans are chosen.
    #[arg(long, value_parser = strategy, default_value = Strategy::Edgent.name())]
    strategy: Strategy,
    /// List every plan that is possible, and what became of it.
    #[arg(long)]
    explain: bool,
    /// Show which plan would be taken if one thing were another: bandwidth=BPS, deadline=MS or rtt=MS; may be given
    /// several times.
    #[arg(long, value_name = "WHAT=VALUE", value_parser = what_if)]
    what_if: Vec<WhatIf>,
}

/// Another link, or another deadline.
#[derive(Clone, Copy, Debug, PartialEq)]
enum WhatIf {
    BandwidthBps(f64),
    DeadlineMs(f64),
    RttMs(f64),
}

fn what_if(text: &str) -> Result<WhatIf, String> {
    let known = || format!("'{text}' is not bandwidth=BPS, deadline=MS or rtt=MS with a number of 0 or more");
    let (what, value) = text.split_once('=').ok_or_else(known)?;
    let value: f64 = value.parse().map_err(|_| known())?;
    match what {
        _ if !(value.is_finite() && value >= 0.0) => Err(known()),
        "bandwidth" => Ok(WhatIf::BandwidthBps(value)),
        "deadline" => Ok(WhatIf::DeadlineMs(value)),
        "rtt" => Ok(WhatIf::RttMs(value)),
        _ => Err(known()),
    }
}

impl WhatIf {
    /// The same constraints but for this.
    fn apply(self, constraints: &Constraints) -> Constraints {
        let link = constraints.link;
        match self {
            Self::BandwidthBps(rate_bps) => {
                // Without a link there was nothing known of one, but its round trip was given.
                let link = link.unwrap_or(Link { rate_bps, rtt_us: 0.0, message_bytes: codec::MESSAGE_BYTES });
                Constraints { link: (rate_bps > 0.0).then_some(Link { rate_bps, ..link }), ..*constraints }
            }
            Self::DeadlineMs(ms) => Constraints { deadline_us: ms * 1e3, ..*constraints },
            Self::RttMs(ms) => Constraints { link: link.map(|link| Link { rtt_us: ms * 1e3, ..link }), ..*constraints },
        }
    }

    fn name(self) -> String {
        match self {
            Self::BandwidthBps(bps) => format!("bandwidth={bps}"),
            Self::DeadlineMs(ms) => format!("deadline={ms}"),
            Self::RttMs(ms) => format!("rtt={ms}"),
        }
    }
}

#[derive(Serialize)]
struct Report {
    strategy: &'static str,
    fits: bool,
    plan: Row,
    candidates: Vec<Row>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    what_if: Vec<Supposed>,
}

/// The plan that would be taken if.
#[derive(Serialize)]
struct Supposed {
    what_if: String,
    fits: bool,
    plan: Row,
}

#[derive(Serialize)]
struct Row {
    exit: String,
    cut: usize,
    cut_after: String,
    direction: &'static str,
    placement: &'static str,
    codec: &'static str,
    accuracy: f64,
    device_us: f64,
    edge_us: f64,
    queue_us: f64,
    transfer_us: f64,
    rtt_us: f64,
    codec_us: f64,
    total_us: f64,
    slack_us: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'static str>,
}

/// The command in a process of its own, which can open the bundle and the profiles.
pub(crate) fn confined(arguments: &Arguments) -> Result<ExitCode> {
    let profiles: Vec<&Path> =
        [&arguments.device_profile, &arguments.edge_profile].into_iter().flatten().map(PathBuf::as_path).collect();
    confined::on_bundle(&arguments.bundle, &profiles, None)
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    bounds::check(arguments.deadline_ms, arguments.slowdown)?;
    let at_least_0 = [arguments.rate_bps, arguments.rtt_ms, arguments.margin, arguments.codec_loss_max];
    if !at_least_0.iter().all(|number| number.is_finite() && *number >= 0.0) {
        return Err(BadInput::error("a rate, a round trip, a margin and a loss of accuracy are 0 or more"));
    }
    let bundle = Bundle::open(&arguments.bundle).map_err(BadInput::error)?;
    let read = |file: &Option<PathBuf>| file.as_deref().map(ProfileFile::read).transpose();
    let files = (read(&arguments.device_profile)?, read(&arguments.edge_profile)?);
    let (deployment, profile) = profiled(&bundle, arguments.slowdown, files)?;
    let (manifest, network) = (deployment.manifest(), deployment.network());
    let rtt_us = arguments.rtt_ms * 1e3;
    let link = Link { rate_bps: arguments.rate_bps, rtt_us, message_bytes: codec::MESSAGE_BYTES };
    let constraints = Constraints {
        deadline_us: arguments.deadline_ms * 1e3,
        codec_loss_max: arguments.codec_loss_max,
        input_may_leave: !arguments.keep_input,
        link: (arguments.rate_bps > 0.0).then_some(link),
        accuracy_min: 0.0,
        margin: Margin { alone: arguments.margin, together: arguments.margin },
    };
    let choice = arguments.strategy.choose(network, &profile, &constraints);
    let row = |candidate: &Candidate, verdict| row(manifest, network, &constraints, candidate, verdict);
    let suppose = |what_if: &WhatIf, constraints: &Constraints| {
        let constraints = what_if.apply(constraints);
        let choice = arguments.strategy.choose(network, &profile, &constraints);
        let plan = self::row(manifest, network, &constraints, &choice.candidate, None);
        Supposed { what_if: what_if.name(), fits: choice.fits, plan }
    };
    let told = |explained: &Explained| match explained.verdict {
        // `explain` speaks of our own choice; another strategy may have taken another plan.
        _ if explained.candidate.plan == choice.candidate.plan => "chosen",
        Verdict::Chosen => "what edgent would take",
        other => other.words(),
    };
    let mut candidates = if arguments.explain { explain(network, &profile, &constraints) } else { Vec::new() };
    candidates.sort_by(|a, b| {
        let by_exit = b.candidate.plan.exit.cmp(&a.candidate.plan.exit);
        by_exit.then(a.candidate.cost.total_us().total_cmp(&b.candidate.cost.total_us()))
    });
    let report = Report {
        strategy: arguments.strategy.name(),
        fits: choice.fits,
        plan: row(&choice.candidate, None),
        candidates: candidates.iter().map(|explained| row(&explained.candidate, Some(told(explained)))).collect(),
        what_if: arguments.what_if.iter().map(|what_if| suppose(what_if, &constraints)).collect(),
    };
    print(&report, arguments, output);
    output.result(&report)
}

/// What a bundle costs on this machine: as the edge, and as a device so many times slower (emulated).
pub(crate) fn measured(bundle: &Bundle, slowdown: f64) -> Result<(Deployment, Profile)> {
    profiled(bundle, slowdown, (None, None))
}

/// The same, but where a host's own profile is at hand: its times, as measured there if it measured this
/// bundle, and else as predicted from the layers.
fn profiled(
    bundle: &Bundle,
    slowdown: f64,
    files: (Option<ProfileFile>, Option<ProfileFile>),
) -> Result<(Deployment, Profile)> {
    let engine = Engine::new()?;
    let deployment = Deployment::prepare(bundle, &engine, 1.0)?;
    confine::granted_time();
    let told = |file: &ProfileFile| file.segments_us(bundle.manifest(), &bundle.digest().to_string());
    let coding = |file: &Option<ProfileFile>, slowdown: f64| match file {
        Some(file) => file.codecs(),
        None => codec::slowed(codec::times(), slowdown),
    };
    let (device, edge) = files;
    let profile = Profile {
        device_us: match &device {
            Some(file) => told(file)?,
            None => medians_us(&Deployment::prepare(bundle, &engine, slowdown)?)?,
        },
        edge_us: match &edge {
            Some(file) => told(file)?,
            None => medians_us(&deployment)?,
        },
        edge_queue_us: 0.0,
        coding: codec::coding(&coding(&device, slowdown), &coding(&edge, 1.0)),
    };
    Ok((deployment, profile))
}

fn medians_us(deployment: &Deployment) -> Result<Vec<f64>> {
    let mut timings = Timings::new(deployment.network().segments());
    // The first runs fill caches; the median passes over them.
    deployment.measure(PROFILE_RUNS)?.into_iter().for_each(|(segment, us)| timings.record(segment, us));
    Ok(timings.medians_us())
}

fn row(
    manifest: &Manifest,
    network: &Network,
    constraints: &Constraints,
    candidate: &Candidate,
    verdict: Option<&'static str>,
) -> Row {
    let Candidate { plan, cost, accuracy } = *candidate;
    let exit = &manifest.exits[plan.exit];
    let before = plan.cut.checked_sub(1).map(|last| manifest.segments[exit.path[last]].name.clone());
    Row {
        exit: exit.name.clone(),
        cut: plan.cut,
        cut_after: before.unwrap_or_else(|| "the input".to_owned()),
        direction: match plan.direction {
            Direction::DeviceFirst => ask::direction(edgent_link::Direction::DeviceFirst),
            Direction::EdgeFirst => ask::direction(edgent_link::Direction::EdgeFirst),
        },
        placement: placement(&plan, network),
        codec: plan.codec.name(),
        accuracy,
        device_us: cost.device_us,
        edge_us: cost.edge_us,
        queue_us: cost.queue_us,
        transfer_us: cost.transfer_us,
        rtt_us: cost.rtt_us,
        codec_us: cost.codec_us,
        total_us: cost.total_us(),
        slack_us: constraints.deadline_us - cost.total_us(),
        verdict,
    }
}

fn placement(plan: &Plan, network: &Network) -> &'static str {
    match plan.placement(network) {
        Placement::DeviceOnly => edgent_link::Placement::DeviceOnly.name(),
        Placement::Split => edgent_link::Placement::Split.name(),
        Placement::EdgeOnly => edgent_link::Placement::EdgeOnly.name(),
    }
}

fn print(report: &Report, arguments: &Arguments, output: &Output) {
    let device = match &arguments.device_profile {
        Some(file) => format!("device as in {}", file.display()),
        None => format!("EMULATED: a device {} times slower than this machine", arguments.slowdown),
    };
    output.line(format_args!(
        "{device}; {:.0} bit/s, {} ms round trip, {} ms deadline",
        arguments.rate_bps, arguments.rtt_ms, arguments.deadline_ms
    ));
    print_taken(report.strategy, &report.plan, report.fits, output);
    for Supposed { what_if, fits, plan } in &report.what_if {
        print_taken(&format!("if {what_if}"), plan, *fits, output);
    }
    if report.candidates.is_empty() {
        return;
    }
    output.line("\nexit     cut  where        order         wire    accuracy  device ms  edge ms  link ms  total ms  slack ms  verdict");
    for row in &report.candidates {
        output.line(format_args!(
            "{:<8} {:>3}  {:<12} {:<13} {:<6}  {:>8.3}  {:>9.1}  {:>7.2}  {:>7.1}  {:>8.1}  {:>8.1}  {}",
            row.exit,
            row.cut,
            row.placement,
            row.direction,
            row.codec,
            row.accuracy,
            row.device_us / 1e3,
            (row.edge_us + row.queue_us) / 1e3,
            (row.transfer_us + row.rtt_us + row.codec_us) / 1e3,
            row.total_us / 1e3,
            row.slack_us / 1e3,
            row.verdict.unwrap_or_default(),
        ));
    }
}

fn print_taken(what: &str, plan: &Row, fits: bool, output: &Output) {
    let Row { exit, cut, placement, direction, codec, total_us, slack_us, .. } = plan;
    output.line(format_args!(
        "{what}: {exit}, {placement} at cut {cut}, {direction}, {codec}: {:.1} ms, {:.1} ms to spare{}",
        total_us / 1e3,
        slack_us / 1e3,
        if fits { "" } else { "; nothing is likely to be in time" }
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_another() {
        let constraints = Constraints {
            deadline_us: 1e5,
            codec_loss_max: 0.0,
            input_may_leave: true,
            accuracy_min: 0.0,
            link: Some(Link { rate_bps: 1e6, rtt_us: 5e3, message_bytes: 300 }),
            margin: Margin::NONE,
        };
        let link = |text: &str| what_if(text).unwrap().apply(&constraints).link;
        assert_eq!(link("bandwidth=2e5"), Some(Link { rate_bps: 2e5, rtt_us: 5e3, message_bytes: 300 }));
        assert_eq!(link("bandwidth=0"), None);
        assert_eq!(link("rtt=40"), Some(Link { rate_bps: 1e6, rtt_us: 40e3, message_bytes: 300 }));
        let sooner = what_if("deadline=50").unwrap().apply(&constraints);
        assert_eq!(sooner, Constraints { deadline_us: 5e4, ..constraints });
        for text in ["bandwidth", "bandwidth=", "bandwidth=-1", "rtt=nan", "deadline=inf", "colour=1"] {
            assert!(what_if(text).unwrap_err().contains("bandwidth=BPS"), "{text}");
        }
    }
}
