//! Starting a host, and ending it in good order.

use crate::device::{Device, DeviceService, DeviceSettings};
use crate::{Deployment, Edge, PrepareError, Workers, codec};
use edgent_bundle::{Bundle, BundleError};
use edgent_link::{
    Digest, ExitDescription, Hello, Limits, Link, LinkError, ModelDescription, PROTOCOL_VERSION, Role, Server, Service,
};
use edgent_planner::Timings;
use edgent_sandbox::{Engine, SandboxError};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Runs of each segment before a host says that it is ready: the profile that planning starts from.
const PROFILE_RUNS: usize = 9;

/// What is measured then counts as much as so many runs in service.
const PROFILE_WEIGHT: usize = 3;

/// How long requests in flight may take to finish when a host is told to end.
const DRAIN: Duration = Duration::from_secs(10);

/// What a host is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// [`Role::Device`] or [`Role::Edge`].
    pub role: Role,
    /// Where to listen; port 0 lets the system choose.
    pub listen: String,
    /// Edges, for a device.
    pub edges: Vec<String>,
    /// Bundles to serve; a device has exactly one.
    pub models: Vec<PathBuf>,
    /// Deadline, codec and privacy bounds, for a device.
    pub plan: edgent_planner::Settings,
    /// Stay at an exit on the way that is sure of its answer, for a device.
    pub leave_when_sure: bool,
    /// A slow device, emulated: each segment takes this many times as long.
    pub emulate_slowdown: f64,
    /// How much memory a device's segments may take, in bytes; those that do not fit are left to the edge.
    pub memory_max_bytes: u64,
    /// Threads that run segments; 0 for as many as there are processors.
    pub workers: usize,
    /// Limits of the link.
    pub limits: Limits,
}

/// A host that serves.
#[derive(Debug)]
pub struct Host {
    server: Server,
}

impl Host {
    /// Prepares the models, measures them, and listens.
    pub async fn start(settings: Settings) -> Result<Self, HostError> {
        let is_device = settings.role == Role::Device;
        if settings.models.is_empty() || is_device && settings.models.len() != 1 {
            return Err(HostError::Models(settings.role, settings.models.len()));
        }
        let engine = Engine::new()?;
        let (slowdown, memory_max_bytes) = (settings.emulate_slowdown, settings.memory_max_bytes);
        let models = settings.models.clone();
        let prepare = move || {
            let prepared = models.iter().map(|dir| prepare(dir.clone(), &engine, slowdown, memory_max_bytes));
            prepared.collect::<Result<Vec<_>, _>>()
        };
        // Measured now, while nobody waits.
        codec::times();
        let mut models =
            tokio::task::spawn_blocking(prepare).await.map_err(|e| HostError::Preparing(e.to_string()))??;
        let threads = match settings.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            given => given,
        };
        let workers = Workers::start(threads).map_err(HostError::Threads)?;
        let link = Link::start().map_err(HostError::Threads)?;
        let hello = Hello { protocol: PROTOCOL_VERSION, role: settings.role, build: build_name() };
        let service: Arc<dyn Service> = match models.pop() {
            Some((bundle, deployment, timings)) if is_device => {
                let device_settings = DeviceSettings {
                    edges: settings.edges,
                    plan: settings.plan,
                    leave_when_sure: settings.leave_when_sure,
                    limits: settings.limits,
                    hello: hello.clone(),
                };
                Arc::new(DeviceService(Device::start(
                    bundle,
                    deployment,
                    timings,
                    workers,
                    link.clone(),
                    device_settings,
                )))
            }
            last => {
                let models = models.into_iter().chain(last).map(|(_, deployment, timings)| (deployment, timings));
                Arc::new(Edge::new(models.collect(), workers))
            }
        };
        let server = link.serve(&settings.listen, hello, settings.limits, service).await?;
        Ok(Self { server })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Takes no more requests, answers those in flight, and ends.
    pub async fn drain(self) {
        self.server.shutdown(DRAIN).await;
    }
}

/// This program's name and version, as peers are told.
pub fn build_name() -> String {
    concat!("edgent ", env!("CARGO_PKG_VERSION")).to_owned()
}

fn prepare(
    dir: PathBuf,
    engine: &Engine,
    slowdown: f64,
    memory_max_bytes: u64,
) -> Result<(Bundle, Deployment, Timings), HostError> {
    let bundle = Bundle::open(&dir)?;
    let deployment = Deployment::prepare_within(&bundle, engine, slowdown, memory_max_bytes)
        .map_err(|source| HostError::Prepare { dir: dir.clone(), source })?;
    let measured =
        deployment.measure(PROFILE_RUNS).map_err(|source| HostError::Prepare { dir: dir.clone(), source })?;
    let segments = deployment.network().segments();
    let (mut alone, mut timings) = (Timings::new(segments), Timings::new(segments));
    measured.into_iter().for_each(|(segment, us)| alone.record(segment, us));
    // A segment that is not held never ran: no plan counts on it.
    for (segment, us) in alone.medians_us().into_iter().enumerate() {
        (0..PROFILE_WEIGHT).for_each(|_| timings.record(segment, us));
    }
    let name = &deployment.manifest().name;
    tracing::info!(model = %name, digest = %deployment.digest().short(), "prepared {} of {segments} segments", deployment.held());
    Ok((bundle, deployment, timings))
}

pub(crate) fn describe(deployment: &Deployment) -> ModelDescription {
    let manifest = deployment.manifest();
    ModelDescription {
        name: manifest.name.clone(),
        digest: Digest(deployment.digest().0),
        input_type: codec::element_type(deployment.input()),
        input_dims: deployment.input().dims.iter().map(|dim| u32::try_from(*dim).unwrap_or(u32::MAX)).collect(),
        classes: manifest.classes.clone(),
        exits: manifest
            .exits
            .iter()
            .map(|exit| ExitDescription {
                name: exit.name.clone(),
                accuracy: exit.accuracy,
                segments: exit.path.iter().map(|segment| manifest.segments[*segment].name.clone()).collect(),
            })
            .collect(),
    }
}

/// Why a host cannot start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum HostError {
    #[error("a {0:?} host was given {1} models; a device takes exactly one --model, an edge one or more")]
    Models(Role, usize),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("{}", dir.display())]
    Prepare { dir: PathBuf, source: PrepareError },
    #[error("preparing the models failed: {0}")]
    Preparing(String),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("a thread did not start: {0}")]
    Threads(std::io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
}
