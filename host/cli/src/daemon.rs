//! `edgent-host`.

use crate::HOST_PROGRAM;
use crate::bounds;
use crate::cache;
use crate::caps::Caps;
use crate::config::{self, Config};
use crate::confined::Bounds;
use crate::identity::{Connection, invitation, is_loopback, machine_name, right};
use crate::manager;
use crate::output::BadInput;
use crate::profile::ProfileFile;
use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use edgent_link::{EDGES_MAX, Limits, PairingCode, Right, Role};
use edgent_planner::Strategy;
use edgent_runtime::confine::this_program;
use edgent_runtime::{Emulation, Host, HostError, Settings, Telling, Trialist, codec};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Runs segments of networks, as the device that has the data or as the edge that has the speed.
/// Ends on SIGTERM, after the requests in flight; looks at its bundles, its policy and its peers again on SIGHUP.
///
/// What no flag says, the environment does (--deadline-ms is EDGENT_DEADLINE_MS), then the file of --config
/// (deadline_ms). `edgent config show --origin` tells who said what.
#[derive(Parser)]
#[command(name = HOST_PROGRAM, version)]
struct Arguments {
    /// Settings: a TOML file with a key for each flag. Read at the start, once.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What this host is. One of the settings that there must be.
    #[arg(long, value_enum)]
    role: Option<HostRole>,
    /// Address to listen on; port 0 lets the system choose.
    #[arg(long, value_name = "ADDR", value_parser = bounds::address, default_value = "127.0.0.1:7400")]
    listen: String,
    /// Answer over HTTP, too: the Open Inference Protocol. Neither encrypted nor authenticated; port 0 lets the system
    /// choose.
    #[arg(long, value_name = "ADDR", value_parser = bounds::address)]
    http: Option<String>,
    /// Tell a balancer before several hosts how much room there is here: HAProxy's agent check. Port 0 lets the system
    /// choose.
    #[arg(long, value_name = "ADDR", value_parser = bounds::address)]
    agent_check: Option<String>,
    /// Address of an edge (device only; may be given several times, in order of preference). NAME@HOST:PORT: only the
    /// peer of that name is believed there.
    #[arg(long, value_name = "ADDR", value_parser = bounds::place)]
    edge: Vec<String>,
    /// Look on the local network (multicast DNS) for edges that announce themselves, too, and take those that are known
    /// here and may `serve`; the others' word counts for nothing. They come after those of --edge (device only).
    #[arg(long)]
    discover: bool,
    /// Say on the local network where this host is and which key it has, for devices with --discover (edge only).
    #[arg(long)]
    announce: bool,
    /// Connect to each edge anew after about so long, and go on there: where a balancer stands before several edges, it
    /// spreads connections, not requests (device only).
    #[arg(long, value_name = "S", value_parser = bounds::reconnect_s, allow_negative_numbers = true)]
    reconnect_s: Option<f64>,
    /// Bundle to serve: its folder, or FOLDER@NAME:VERSION (an edge may have several). Needed without --store.
    #[arg(long, value_name = "BUNDLE")]
    model: Vec<PathBuf>,
    /// Keep versions here, and take new ones while running (`edgent push`). What is in force here is served at the
    /// next start, whatever --model says.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Whose bundles are run here, and what they may be. Without it: whatever is named here, and what comes over the
    /// link as long as --listen is this machine's alone.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
    /// Pair with one other side, which may do this here: print a code that is typed there (`edgent pair ADDR`).
    #[arg(long, value_name = "RIGHT", value_delimiter = ',', value_parser = right, num_args = 0..,
        require_equals = true, default_missing_values = ["ask", "read"])]
    pair: Option<Vec<Right>>,
    /// Time from a request to its answer, unless the request says otherwise.
    #[arg(long, value_name = "MS", value_parser = bounds::deadline_ms, allow_negative_numbers = true,
        default_value_t = 100.0)]
    deadline_ms: f64,
    /// How much accuracy coding an activation as u8 may cost.
    #[arg(long, value_name = "SHARE", value_parser = bounds::share, allow_negative_numbers = true,
        default_value_t = 0.005)]
    codec_loss_max: f64,
    /// How likely a plan must be to be in time, to be taken for a better exit.
    #[arg(long, value_name = "SHARE", value_parser = bounds::share_over_0, allow_negative_numbers = true,
        default_value_t = 0.95)]
    in_time_share: f64,
    /// How plans are chosen.
    #[arg(long, value_parser = strategy, default_value = Strategy::Edgent.name())]
    strategy: Strategy,
    /// Stay at an exit on the way that is sure of its answer.
    #[arg(long)]
    leave_when_sure: bool,
    /// Never send the network's raw input to an edge.
    #[arg(long)]
    keep_input: bool,
    /// How much memory segments may take; those that do not fit are left to the edge (device only).
    #[arg(long, value_name = "MIB", value_parser = bounds::memory_mib, allow_negative_numbers = true)]
    memory_max_mib: Option<f64>,
    /// Have onnxruntime, from this library (libonnxruntime.so), compute what it computes faster, for publishers whom the
    /// policy allows it. The program must have been built with it.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    #[command(flatten)]
    caps: Caps,
    #[command(flatten)]
    bounds: Bounds,
    /// Threads that run segments, for each model; 0 for one a processor.
    #[arg(long, value_name = "N", value_parser = bounds::workers, default_value_t = 0)]
    workers: usize,
    /// Threads that one run may have, of those whose processors are idle: as many as pay, by what is measured when a version
    /// is prepared; 0 for one a processor.
    #[arg(long, value_name = "N", value_parser = bounds::threads, default_value_t = 0)]
    threads: usize,
    /// How the log on stderr is written.
    #[arg(long, value_enum, default_value = "human")]
    log_format: LogFormat,
    /// Take this many times as long for each segment: a slow device, emulated.
    #[arg(long, value_name = "K", value_parser = bounds::slowdown, allow_negative_numbers = true,
        default_value_t = 1.0)]
    emulate_slowdown: f64,
    /// Take as long for each segment as the device on which `edgent profile` wrote this file: that device, emulated.
    #[arg(long, value_name = "FILE", conflicts_with = "emulate_slowdown")]
    emulate_profile: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HostRole {
    Device,
    Edge,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// A line for people.
    Human,
    /// A JSON object a line.
    Json,
}

/// Reads a strategy's name.
pub(crate) fn strategy(name: &str) -> Result<Strategy, String> {
    let names = Strategy::ALL.map(Strategy::name).join(", ");
    Strategy::from_name(name).ok_or_else(|| format!("the strategies are {names}"))
}

/// The host's flags, for whoever shows or explains them.
pub(crate) fn command() -> clap::Command {
    config::command::<Arguments>()
}

/// Whether a host could be told this: each setting by itself is one; here are those that exclude each other.
pub(crate) fn check(config: &Config) -> Result<()> {
    config.arguments::<Arguments>().and_then(|arguments| arguments.check(config))
}

impl Arguments {
    fn check(&self, config: &Config) -> Result<()> {
        if self.memory_max_mib.is_some() && self.role == Some(HostRole::Edge) {
            let name = config.name("memory_max_mib");
            return Err(BadInput::error(format!("{name} is for a device: an edge must be able to run every segment")));
        }
        if self.reconnect_s.is_some() && self.role == Some(HostRole::Edge) {
            let name = config.name("reconnect_s");
            return Err(BadInput::error(format!("{name} is for a device: an edge connects to nobody")));
        }
        let misplaced = [
            ("discover", self.discover, HostRole::Edge, "for a device: an edge connects to nobody"),
            ("announce", self.announce, HostRole::Device, "for an edge: nobody connects to a device for its work"),
        ];
        for (key, is_given, role, why) in misplaced {
            if is_given && self.role == Some(role) {
                return Err(BadInput::error(format!("{} is {why}", config.name(key))));
            }
            if is_given && self.connection.is_insecure() {
                let (name, insecure) = (config.name(key), config.name("insecure"));
                return Err(BadInput::error(format!(
                    "{name} and {insecure} exclude each other: without keys, anybody is meant"
                )));
            }
        }
        if self.announce && is_loopback(&self.listen) {
            let (name, listen) = (config.name("announce"), config.name("listen"));
            let why =
                format!("{name} needs an address that other machines reach: {} ({listen}) is not one", self.listen);
            return Err(BadInput::error(why));
        }
        if self.edge.len() > EDGES_MAX {
            let name = config.name("edge");
            return Err(BadInput::error(format!("{name} may be given {EDGES_MAX} times at most")));
        }
        self.connection.check(|key| config.name(key))
    }
}

pub(crate) fn run() -> Result<()> {
    let config = Config::of_process(&command(), &command().get_matches())?;
    let arguments: Arguments = config.arguments()?;
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO);
    // Colours are for people, and a journal is not read by them alone.
    let log = log.with_ansi(std::io::stderr().is_terminal());
    match arguments.log_format {
        LogFormat::Human => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    for stray in &config.strays {
        tracing::warn!("{stray} in the environment is no setting");
    }
    arguments.check(&config)?;
    let missing = |what: &str, key: &str| {
        let file = config.path.as_ref().map_or_else(|| "the file of --config".to_owned(), |p| p.display().to_string());
        let variable = config::variable(key);
        BadInput::error(format!("{what}: give --{key}, {variable}, or '{key}' in {file}"))
    };
    let role = arguments.role.ok_or_else(|| missing("it is not said what this host is, device or edge", "role"))?;
    if arguments.model.is_empty() && arguments.store.is_none() {
        return Err(missing("there is nothing to serve, and no --store to take it from", "model"));
    }
    let role = match role {
        HostRole::Device => Role::Device,
        HostRole::Edge => Role::Edge,
    };
    let addresses: Vec<&str> = [&arguments.listen].into_iter().chain(&arguments.edge).map(String::as_str).collect();
    let (security, known) = if arguments.discover {
        // Those that are found are elsewhere.
        arguments.connection.security_elsewhere()?
    } else {
        arguments.connection.security(&addresses)?
    };
    if let Some(warning) = arguments.connection.warning(&addresses) {
        tracing::warn!("{warning}");
    }
    if let Some((folder, credentials)) = &known {
        let fingerprint = credentials.identity().fingerprint();
        tracing::info!(%fingerprint, identity = %folder.path().display(), "this host's key");
    }
    let trial = Trialist {
        program: this_program()?,
        bounds: arguments.bounds.for_trial(),
        proven: cache::folder(arguments.store.as_deref()).map(|folder| folder.join("edgent-proven")),
    };
    let code_cache = cache::code(arguments.store.as_deref());
    let settings = Settings {
        role,
        listen: arguments.listen,
        http: arguments.http,
        agent_check: arguments.agent_check,
        edges: arguments.edge,
        discover: arguments.discover,
        announce: arguments.announce.then(machine_name),
        reconnect: arguments.reconnect_s.map(Duration::from_secs_f64),
        models: arguments.model,
        store: arguments.store,
        policy: arguments.policy,
        plan: edgent_planner::Settings {
            deadline_us: arguments.deadline_ms * 1e3,
            codec_loss_max: arguments.codec_loss_max,
            input_may_leave: !arguments.keep_input,
            in_time_share: arguments.in_time_share,
            strategy: arguments.strategy,
            message_bytes: codec::MESSAGE_BYTES,
        },
        leave_when_sure: arguments.leave_when_sure,
        emulation: match &arguments.emulate_profile {
            Some(file) => Emulation::Measured(Arc::new(ProfileFile::read(file)?)),
            None => Emulation::Slowdown(arguments.emulate_slowdown),
        },
        memory_max_bytes: arguments.memory_max_mib.map_or(u64::MAX, |mib| (mib * f64::from(1 << 20)) as u64),
        admission: arguments.caps.admission(),
        trial: Some(trial),
        onnxruntime: arguments.onnxruntime,
        code_cache,
        workers: arguments.workers,
        threads: arguments.threads,
        security,
        known,
        limits: Limits::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(settings, arguments.pair))
}

/// Prints a code, and lets in who knows it, while the host goes about its work.
fn invite(host: &Host, may: Vec<Right>) -> Result<()> {
    if !host.is_tls() {
        return Err(BadInput::error("--pair needs TLS: --tls, or --listen at an address that other machines reach"));
    }
    let code = PairingCode::random()?;
    // Whoever started this host may have stopped to listen.
    let _ = writeln!(std::io::stdout(), "{HOST_PROGRAM} {}", invitation(&code, &host.local_addr().to_string()));
    let pairing = host.pair(code, machine_name(), may.into_iter().collect());
    tokio::spawn(async move {
        match pairing.await {
            Ok(peer) => tracing::info!(name = peer.name, fingerprint = %peer.fingerprint, "paired"),
            Err(error) => tracing::warn!(%error, "not paired"),
        }
    });
    Ok(())
}

async fn serve(settings: Settings, pair: Option<Vec<Right>>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let role = settings.role;
    let telling = Telling::start(role).map_err(BadInput::error)?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut host = Host::start(settings).await.map_err(|e| match e {
        HostError::Models(..) | HostError::Bundle(_) | HostError::Policy(_) | HostError::Backend(_) => {
            BadInput::error(e)
        }
        other => anyhow::Error::new(other),
    })?;
    // One line, so that whoever started this host knows when and where to reach it.
    let said = |what, address: Option<_>| address.map_or_else(String::new, |address| format!(" {what} on {address},"));
    let (agent, http) = (said("agent check", host.agent_addr()), said("HTTP", host.http_addr()));
    println!("{HOST_PROGRAM} {role}{agent}{http} listening on {}", host.local_addr());
    std::io::stdout().flush().context("stdout")?;
    if let Some(may) = pair {
        invite(&host, may)?;
    }
    manager::ready();
    let pulse = host.pulse();
    let reloading = async {
        while hang_up.recv().await.is_some() {
            manager::reloading();
            host.reload().await;
            manager::ready();
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = reloading => {}
        () = manager::watch(pulse) => {}
    }
    manager::stopping();
    tracing::info!("draining");
    host.drain().await;
    if let Some(telling) = telling {
        telling.end().await;
    }
    Ok(())
}
