//! Starting a host, and ending it in good order.

use crate::agent::Agent;
use crate::device::{Device, DeviceService, DeviceSettings};
use crate::discovery::{self, Announcement, DiscoveryError, Whereabouts};
use crate::http::Front;
use crate::metrics::Metrics;
use crate::running::Running;
use crate::shelf::{Judged, Shelf};
use crate::trial::{Bounds, Trial};
use crate::{
    Admission, Deployment, Edge, Emulation, IdentityFolder, IdentityFolderError, Policy, PolicyError, PrepareError,
    Workers, codec,
};
use edgent_bundle::{Bundle, BundleError, Reference, Store};
use edgent_link::{
    COMPUTED_MAX, Computed, Credentials, Digest, ExitDescription, Hello, Invitation, KnownPeer, Limits, Link,
    LinkError, ModelDescription, PAIRING_TIME, PAIRING_TRIES, PROTOCOL_VERSION, PairError, Paired, PairingCode, Right,
    Role, Security, Server, Service, TensorDescription,
};
use edgent_nn::{BackendError, Fact, Onnxruntime};
use edgent_sandbox::{Engine, SandboxError};
use rustix::process::{Resource, getrlimit};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// So much of its fingerprint names a peer whose own name is another's.
const UNNAMED_BYTES: usize = 23;

/// How long requests in flight may take to finish when a host is told to end.
const DRAIN: Duration = Duration::from_secs(10);

/// What a host is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// [`Role::Device`] or [`Role::Edge`].
    pub role: Role,
    /// Where to listen; port 0 lets the system choose.
    pub listen: String,
    /// Where to listen for HTTP; nowhere if not given.
    pub http: Option<String>,
    /// Where to listen for a balancer that asks how much room there is; nowhere if not given.
    pub agent_check: Option<String>,
    /// Edges, for a device.
    pub edges: Vec<String>,
    /// Look on the local network for known peers that may serve, too; for a device.
    pub discover: bool,
    /// Say on the local network that this host is here, by this name; for an edge.
    pub announce: Option<String>,
    /// Connect to each edge anew after about so long, so that a balancer before several can spread devices; never, if
    /// not given.
    pub reconnect: Option<Duration>,
    /// Bundles to serve; a device has exactly one.
    pub models: Vec<PathBuf>,
    /// Where versions are kept that come while the host runs; none come without it.
    pub store: Option<PathBuf>,
    /// The operator's policy: whose bundles are run. Without it, [`Policy::without_file`].
    pub policy: Option<PathBuf>,
    /// Deadline, codec and privacy bounds, for a device.
    pub plan: edgent_planner::Settings,
    /// Stay at an exit on the way that is sure of its answer, for a device.
    pub leave_when_sure: bool,
    /// A slow device, emulated.
    pub emulation: Emulation,
    /// How much memory a device's segments may take, in bytes; those that do not fit are left to the edge.
    pub memory_max_bytes: u64,
    /// What a bundle may cost here.
    pub admission: Admission,
    /// Who tries bundles in a confined process before they are loaded; nobody: they are loaded untried.
    pub trial: Option<Trialist>,
    /// The library of a second backend, for publishers whom the policy allows it.
    pub onnxruntime: Option<PathBuf>,
    /// Where code that ships with this program is kept once it is compiled; nowhere: it is compiled at each start.
    pub code_cache: Option<PathBuf>,
    /// Threads that run segments, for each model; 0 for as many as there are processors.
    pub workers: usize,
    /// Threads that one run may have, of those whose processors are idle; 0 for as many as there are processors.
    pub threads: usize,
    /// Where the link speaks TLS, and with which key.
    pub security: Security,
    /// Who is known, if TLS is spoken: those in this folder, looked at again by [`Host::reload`].
    pub known: Option<(IdentityFolder, Credentials)>,
    /// Limits of the link.
    pub limits: Limits,
}

/// Whether a host lives, for a watchdog.
#[derive(Clone, Debug)]
pub struct Pulse {
    link: Link,
    running: Running,
}

impl Pulse {
    /// Returns once the link's thread and what the host knows of itself have had a turn; it does not, as long as one of
    /// them is stuck. False if the link's thread is no more.
    pub async fn beat(&self) -> bool {
        let running = self.running.clone();
        // On a thread of its own: locks are taken that somebody may hold for ever.
        let state = tokio::task::spawn_blocking(move || drop(running.state()));
        self.link.turn().await.is_ok() && state.await.is_ok()
    }
}

/// How bundles are tried.
#[derive(Clone, Debug)]
pub struct Trialist {
    /// This program, which [`crate::confine`] runs again.
    pub program: PathBuf,
    /// Limits other than the usual ones.
    pub bounds: Bounds,
    /// Where it is remembered which bundles passed.
    pub proven: Option<PathBuf>,
}

/// A host that serves.
#[derive(Debug)]
pub struct Host {
    link: Link,
    server: Server,
    front: Option<Front>,
    agent: Option<Agent>,
    announcement: Option<Announcement>,
    running: Running,
    known: Option<(IdentityFolder, Credentials)>,
    /// Where the operator's policy lies, and who judges by it.
    policy: Option<PathBuf>,
    shelf: Arc<Shelf>,
    /// The bundles that it was told to serve, and what lay there when they were last looked at.
    given: Vec<(PathBuf, Option<edgent_bundle::Digest>)>,
}

impl Host {
    /// Prepares the models, measures them, and listens.
    pub async fn start(settings: Settings) -> Result<Self, HostError> {
        let store = settings.store.as_deref().map(Store::at);
        let (role, emulation) = (settings.role, settings.emulation);
        let policy = match &settings.policy {
            Some(path) => Policy::read(path)?,
            None => Policy::without_file(is_guarded(&settings.listen, &settings.security).await),
        };
        if let Some(warning) = policy.warning().filter(|_| store.is_some()) {
            tracing::warn!("{warning}");
        }
        let onnxruntime = settings.onnxruntime.as_deref().map(Onnxruntime::open).transpose()?;
        let trial = settings.trial.map(|told| {
            Trial::new(told.program, told.bounds, told.proven).with_onnxruntime(settings.onnxruntime.clone())
        });
        let engine = Engine::keeping(settings.code_cache)?;
        let judged = Judged { policy, admission: settings.admission, trial };
        let shelf = Shelf::new(store.clone(), judged, engine, emulation, settings.memory_max_bytes);
        let threads = most_threads(settings.threads);
        if threads > 1 {
            // Now: what is prepared later gives way to requests, and threads take after the one that starts them.
            edgent_nn::start_helpers();
        }
        let shelf = Arc::new(shelf.with_onnxruntime(onnxruntime).with_threads(threads));
        let (preparing, models) = (Arc::clone(&shelf), settings.models.clone());
        let judging = Arc::clone(&shelf);
        let prepare = move || {
            // Measured now, while nobody waits.
            codec::times();
            let bundles = in_force(&preparing, store.as_ref(), &models)?;
            if bundles.is_empty() || role == Role::Device && bundles.len() != 1 {
                return Err(HostError::Models(role, bundles.len()));
            }
            let prepare = |bundle: Bundle| {
                let dir = bundle.path().to_owned();
                preparing.prepare(bundle).map_err(|source| HostError::Prepare { dir, source })
            };
            bundles.into_iter().map(prepare).collect::<Result<Vec<_>, _>>()
        };
        let prepared = tokio::task::spawn_blocking(prepare).await;
        let mut prepared = prepared.map_err(|e| HostError::Preparing(e.to_string()))??;
        let threads = match settings.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            given => given,
        };
        let link = Link::start(settings.security).map_err(HostError::Threads)?;
        let hello = Hello { protocol: PROTOCOL_VERSION, role, build: build_name() };
        let only = prepared.pop();
        let looked = |path: PathBuf| (Bundle::open(&path).ok().map(|bundle| bundle.digest()), path);
        let given = settings.models.into_iter().map(looked).map(|(digest, path)| (path, digest)).collect();
        let metrics = Metrics::new();
        let (whereabouts, found) = match (settings.discover, &settings.known) {
            (false, _) => Default::default(),
            (true, None) => return Err(DiscoveryError::NoKey.into()),
            (true, Some((folder, _))) => Whereabouts::of(folder.peers().map_err(HostError::Identity)?.iter())?,
        };
        let running = match only {
            Some(only) if role == Role::Device => {
                let device_settings = DeviceSettings {
                    edges: discovery::join(settings.edges, found),
                    whereabouts: Arc::new(whereabouts),
                    reconnect: settings.reconnect,
                    plan: settings.plan,
                    leave_when_sure: settings.leave_when_sure,
                    limits: settings.limits,
                    hello: hello.clone(),
                };
                let (link, metrics) = (link.clone(), Arc::clone(&metrics));
                let workers = Workers::start(threads).map_err(HostError::Threads)?;
                Running::Device(Device::start(only, shelf, workers, link, metrics, device_settings))
            }
            last => {
                let (all, deadline_us) = (prepared.into_iter().chain(last).collect(), settings.plan.deadline_us);
                let edge = Edge::new(all, shelf, threads, Arc::clone(&metrics), deadline_us);
                Running::Edge(Arc::new(edge.map_err(HostError::Threads)?))
            }
        };
        let service: Arc<dyn Service> = match &running {
            Running::Device(device) => Arc::new(DeviceService(Arc::clone(device))),
            Running::Edge(edge) => Arc::clone(edge) as Arc<dyn Service>,
        };
        let front = match &settings.http {
            Some(address) => Some(Front::start(address, running.clone(), metrics).await?),
            None => None,
        };
        let server = link.serve(&settings.listen, hello, settings.limits, service).await?;
        // Last: who is told that there is room here is sent here at once.
        let agent = match &settings.agent_check {
            Some(address) => Some(Agent::start(address, running.clone()).await?),
            None => None,
        };
        let announcement = match (settings.announce, &settings.known) {
            (None, _) => None,
            (Some(_), None) => return Err(DiscoveryError::NoKey.into()),
            (Some(name), Some((_, credentials))) => {
                Some(Announcement::start(&name, server.local_addr(), credentials.identity().fingerprint())?)
            }
        };
        let (known, policy) = (settings.known, settings.policy);
        Ok(Self { link, server, front, agent, announcement, running, known, policy, shelf: judging, given })
    }

    /// Looks again at the bundles that it was told to serve, and at what is in force in its store, and puts in force
    /// what is there now. Requests go on; what cannot be served is said, and leaves the rest as it is.
    pub async fn reload(&mut self) {
        self.reload_peers();
        self.reload_policy();
        let mut changed = Vec::new();
        for (path, last) in &mut self.given {
            let looked = Bundle::open(path);
            match looked {
                Ok(bundle) if *last != Some(bundle.digest()) => {
                    *last = Some(bundle.digest());
                    changed.push(bundle);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(dir = %path.display(), %error, "not reloaded"),
            }
        }
        let reloaded = match &self.running {
            Running::Device(device) => device.reload(changed.pop()).await,
            Running::Edge(edge) => edge.reload(changed).await,
        };
        match reloaded {
            Ok(()) => tracing::info!("reloaded"),
            Err(fault) => tracing::warn!(why = %fault.message, "not reloaded"),
        }
    }

    /// Looks again at whose bundles are run. A file that cannot be read changes nothing; nor does another policy to
    /// what runs already, until the next start.
    fn reload_policy(&self) {
        let Some(path) = &self.policy else { return };
        match Policy::read(path) {
            Ok(policy) => self.shelf.set_policy(policy),
            Err(error) => tracing::warn!(%error, "the policy is not reloaded"),
        }
    }

    /// Looks again at who is known. A file that cannot be read changes nothing.
    fn reload_peers(&self) {
        let Some((folder, credentials)) = &self.known else { return };
        match folder.peers() {
            Ok(peers) => credentials.replace(peers),
            Err(error) => tracing::warn!(%error, "who is known here is not reloaded"),
        }
    }

    /// Pairs with one who knows the code, and gives it these rights; as long as this is waited for. `name` is what
    /// this host calls itself.
    pub fn pair(
        &self,
        code: PairingCode,
        name: String,
        may: BTreeSet<Right>,
    ) -> impl Future<Output = Result<Paired, PairError>> + Send + 'static {
        let known = self.known.clone();
        let keep = move |paired: &Paired| -> Result<(), String> {
            let (folder, credentials) = known.as_ref().ok_or("this host has no key")?;
            let Paired { mut name, fingerprint } = paired.clone();
            let peers = folder.peers().map_err(|e| e.to_string())?;
            if peers.iter().any(|peer| peer.name == name && peer.fingerprint != fingerprint) {
                // Nobody is there to be asked for another.
                name = fingerprint.to_string()[..UNNAMED_BYTES].replace(':', "-");
            }
            folder.know(KnownPeer { name, fingerprint, may: may.clone(), models: None }).map_err(|e| e.to_string())?;
            // At once: the peer may come back before this host does anything else.
            credentials.replace(folder.peers().map_err(|e| e.to_string())?);
            Ok(())
        };
        let (tries, lasts) = (PAIRING_TRIES, PAIRING_TIME);
        self.server.invite(Invitation { code, name, tries, lasts, keep: Arc::new(keep) })
    }

    /// For who watches whether it lives.
    pub fn pulse(&self) -> Pulse {
        Pulse { link: self.link.clone(), running: self.running.clone() }
    }

    /// Whether its link speaks TLS; otherwise plain bytes.
    pub fn is_tls(&self) -> bool {
        self.server.is_tls()
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Where it listens for HTTP, if it does.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.front.as_ref().map(Front::local_addr)
    }

    /// Where it listens for a balancer, if it does.
    pub fn agent_addr(&self) -> Option<SocketAddr> {
        self.agent.as_ref().map(Agent::local_addr)
    }

    /// Takes no more requests, answers those in flight, and ends.
    pub async fn drain(self) {
        let Self { server, front, agent, announcement, .. } = self;
        drop(announcement);
        let end = Instant::now() + DRAIN;
        // First of all, so that who looks whether this host is ready goes elsewhere while it is still there.
        if let Some(front) = &front {
            front.announce_end();
        }
        if let Some(agent) = &agent {
            agent.announce_end();
        }
        server.shutdown(DRAIN).await;
        if let Some(front) = front {
            front.shutdown(end).await;
        }
    }
}

/// This program's name and version, as peers are told.
pub fn build_name() -> String {
    concat!("edgent ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// How many threads one run may have: as told, or as many as there are processors; one, where address space is limited, of
/// which each thread's arena takes 64 MiB.
fn most_threads(told: usize) -> usize {
    match (told, getrlimit(Resource::As).current) {
        (0, Some(_)) => 1,
        (told, _) => edgent_nn::threads_or_max(told),
    }
}

/// Whether none but this machine's users reach an address, or peers whose rights are known.
async fn is_guarded(listen: &str, security: &Security) -> bool {
    let guarded = |address: SocketAddr| address.ip().is_loopback() || security.is_tls_at(address.ip());
    tokio::net::lookup_host(listen).await.is_ok_and(|mut addresses| addresses.all(guarded))
}

/// The bundles to start with: those given, unless the store has another version of them in force; and what else is
/// in force there.
fn in_force(shelf: &Shelf, store: Option<&Store>, given: &[PathBuf]) -> Result<Vec<Bundle>, HostError> {
    let given = given.iter().map(|path| Bundle::open(path)).collect::<Result<Vec<_>, _>>()?;
    let Some(store) = store else { return Ok(given) };
    for bundle in given {
        let name = bundle.manifest().name.clone();
        match store.current(&name)? {
            Some(version) => tracing::info!(model = %name, version, "in force in the store, whatever --model says"),
            None => {
                let (version, bundle) = shelf.take_from(&bundle).map_err(|e| HostError::Store(e.message))?;
                let in_use = [bundle.digest()];
                shelf.put_in_force(&name, version, &in_use).map_err(|e| HostError::Store(e.message))?;
            }
        }
    }
    let current = store.list()?.into_iter().filter(|version| version.is_current);
    Ok(current.map(|version| store.open(&Reference::Current(version.name))).collect::<Result<_, _>>()?)
}

/// How many of the segments that are held here each backend computes, and on how many threads.
fn computed(deployment: &Deployment) -> Vec<Computed> {
    let mut groups = BTreeMap::<(&str, usize), u32>::new();
    for by in (0..deployment.manifest().segments.len()).filter_map(|segment| deployment.computed_by(segment)) {
        *groups.entry(by).or_default() += 1;
    }
    let told = groups.into_iter().take(COMPUTED_MAX).map(|((backend, threads), segments)| Computed {
        backend: backend.to_owned(),
        threads: u16::try_from(threads).unwrap_or(u16::MAX),
        segments,
    });
    told.collect()
}

pub(crate) fn describe(deployment: &Deployment) -> ModelDescription {
    let manifest = deployment.manifest();
    let dims = |fact: &Fact| fact.dims.iter().map(|dim| u32::try_from(*dim).unwrap_or(u32::MAX)).collect();
    let tensor = |index: &usize| {
        let (name, fact) = (manifest.tensors[*index].name.clone(), &deployment.tensors()[*index]);
        TensorDescription { name, element_type: codec::element_type(fact), dims: dims(fact) }
    };
    ModelDescription {
        name: manifest.name.clone(),
        digest: Digest(deployment.digest().0),
        input_type: codec::element_type(deployment.input()),
        input_dims: dims(deployment.input()),
        classes: manifest.classes.clone(),
        inputs: manifest.boundaries[0].tensors.iter().map(tensor).collect(),
        computed: computed(deployment),
        exits: manifest
            .exits
            .iter()
            .enumerate()
            .map(|(index, exit)| ExitDescription {
                name: exit.name.clone(),
                accuracy: exit.accuracy,
                segments: exit.path.iter().map(|segment| manifest.segments[*segment].name.clone()).collect(),
                outputs: manifest.outputs(index).iter().map(tensor).collect(),
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
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Identity(IdentityFolderError),
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    #[error("the store: {0}")]
    Store(String),
    #[error("preparing the models failed: {0}")]
    Preparing(String),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("a thread did not start: {0}")]
    Threads(std::io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("HTTP on {address}: {source}")]
    Http { address: String, source: std::io::Error },
    #[error("the agent check on {address}: {source}")]
    AgentCheck { address: String, source: std::io::Error },
}
