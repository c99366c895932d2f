//! What the simulated hosts serve: two versions of a network that branches, and what each of their exits gives.

use super::DEADLINE;
use crate::answer::Said;
use crate::metrics::Metrics;
use crate::shelf::{Judged, Prepared, Shelf};
use crate::{Admission, Edge, Emulation, MeasuredHost, Policy, codec};
use edgent_bundle::{
    Boundary, Bundle, Draft, Evidence, Exit, Manifest, Segment, Store, Tensor, Tier, compose, standard_guest,
};
use edgent_link::{
    Activation, Codec, Credentials, Digest, Direction, Hello, Identity, InferRequest, KnownPeer, Limits, Link,
    PROTOCOL_VERSION, Peers, Plan, Right, Role, Security, Server,
};
use edgent_nn::{Imported, Pins, Stop, Tensor as Values, synthetic};
use edgent_sandbox::Engine;
use std::path::Path;
use std::sync::Arc;

/// What segments take: on the way to the first exit, and beyond it.
const DEVICE_US: [f64; 2] = [4_000.0, 150_000.0];
const EDGE_US: [f64; 2] = [1_000.0, 3_000.0];

const VERSIONS: [&[u8]; 2] = [
    include_bytes!("../../../nn/tests/data/branching.onnx"),
    include_bytes!("../../../nn/tests/data/branching-retrained.onnx"),
];

pub(super) struct Model {
    pub(super) device: Kind,
    pub(super) edge: Kind,
    pub(super) bundles: [Bundle; 2],
    pub(super) input: Activation,
    /// By version and exit.
    pub(super) scores: [Vec<Vec<f32>>; 2],
    /// The keys of a device and of its edges.
    pub(super) security: [Security; 2],
}

/// A kind of host, and both versions ready to run there.
pub(super) struct Kind {
    engine: Engine,
    emulation: Emulation,
    prepared: [Prepared; 2],
}

impl Model {
    pub(super) fn new(dir: &Path) -> Self {
        let imported = VERSIONS.map(|onnx| Imported::from_onnx(onnx, &Pins::default()).unwrap());
        let input = synthetic::noise(&imported[0].inputs()[0].fact, 3).unwrap();
        let bundles = [0, 1].map(|version| bundle(&imported[version], &dir.join(version.to_string())));
        let [device, edge] = [DEVICE_US, EDGE_US].map(|us| Kind::new(us, &bundles));
        let scores = [0, 1].map(|version: usize| edge.scores(version, &input));
        let input = codec::encode_all(&[input], Codec::Raw).unwrap().0;
        Self { device, edge, bundles, input, scores, security: acquainted() }
    }

    /// Has an edge run at its place, with the version that is in force in its store, if it has one.
    pub(super) async fn start_edge(&self, store: Option<&Path>, link: &Link, place: usize) -> (Arc<Edge>, Server) {
        let (prepared, shelf) = self.edge.start(store);
        let deadline_us = DEADLINE.as_secs_f64() * 1e6;
        let edge = Arc::new(Edge::new(vec![prepared], shelf, 1, Metrics::new(), deadline_us).unwrap());
        let (address, service) = (place.to_string(), Arc::clone(&edge));
        let server = link.serve(&address, hello(Role::Edge), Limits::default(), service).await.unwrap();
        (edge, server)
    }

    /// A plan by which an edge does everything, and a request for that.
    pub(super) fn whole(&self, epoch: u64) -> (Plan, InferRequest) {
        let deployment = &self.edge.prepared[0].deployment;
        let (model, path) = (Digest(deployment.digest().0), &deployment.network().exits()[1].path);
        let (exit, direction, codec) = (1, Direction::DeviceFirst, Codec::Raw);
        let request = InferRequest {
            id: 0,
            model,
            epoch,
            from_segment: 0,
            to_segment: path.len() as u16,
            reply_codec: Codec::Raw,
            remaining_budget_us: 0,
            activation: self.input.clone(),
            beside: Vec::new(),
            trace: None,
        };
        (Plan { epoch, model, exit, cut: 0, direction, codec }, request)
    }
}

impl Kind {
    fn new(us: [f64; 2], bundles: &[Bundle; 2]) -> Self {
        let (engine, emulation) = (Engine::new().unwrap(), Emulation::Measured(Arc::new(Given(us))));
        let shelf = shelf(None, &engine, &emulation);
        let prepared = [0, 1].map(|version: usize| shelf.prepare(bundles[version].clone()).unwrap());
        Self { engine, emulation, prepared }
    }

    /// What a host of this kind has when it starts.
    pub(super) fn start(&self, store: Option<&Path>) -> (Prepared, Arc<Shelf>) {
        let shelf = Arc::new(shelf(store.map(Store::at), &self.engine, &self.emulation));
        let [first, _] = &self.prepared;
        if store.is_none() {
            return (first.clone(), shelf);
        }
        let name = &first.bundle.manifest().name;
        let (version, bundle) = match shelf.current(name).unwrap() {
            Some(current) => current,
            None => shelf.take_from(&first.bundle).unwrap(),
        };
        shelf.put_in_force(name, version, &[bundle.digest()]).unwrap();
        let ready = self.prepared.iter().find(|prepared| prepared.bundle.digest() == bundle.digest());
        (Prepared { bundle, ..ready.unwrap().clone() }, shelf)
    }

    fn scores(&self, version: usize, input: &Values) -> Vec<Vec<f32>> {
        let deployment = &self.prepared[version].deployment;
        let scores = deployment.network().exits().iter().enumerate().map(|(exit, way)| {
            let ran = deployment.run(exit, 0..way.path.len(), vec![input.clone()], &Stop::never()).unwrap();
            Said::new(deployment.manifest(), &ran.output).unwrap().scores
        });
        scores.collect()
    }
}

fn shelf(store: Option<Store>, engine: &Engine, emulation: &Emulation) -> Shelf {
    let policy = Policy::without_file(true);
    let judged = Judged { policy, admission: Admission::default(), trial: None };
    Shelf::new(store, judged, engine.clone(), emulation.clone(), u64::MAX)
}

fn bundle(imported: &Imported, dir: &Path) -> Bundle {
    let cut = imported.cut(&[vec![0], vec![1]]).unwrap();
    let mut draft = Draft::default();
    let tensors = cut.tensors.iter().map(|port| Tensor {
        name: port.name.clone(),
        element_type: port.fact.element_type.name().to_owned(),
        dims: port.fact.dims.clone(),
        finite: false,
    });
    let segments = cut.segments.iter().enumerate().map(|(index, segment)| Segment {
        name: format!("segment-{index}"),
        from: segment.from,
        to: segment.to,
        takes: segment.takes.clone(),
        gives: segment.gives.clone(),
        layers: Vec::new(),
        macs: segment.macs,
        graph_format: segment.format.name().to_owned(),
        tier: Tier::Native,
        component: draft.add(compose(standard_guest(), &segment.graph).unwrap()),
    });
    let exits = cut.exits.iter().zip([0.8, 0.9]).map(|(exit, accuracy)| Exit {
        name: exit.name.clone(),
        path: exit.path.clone(),
        accuracy,
        sure_at: None,
        coded: Vec::new(),
    });
    let manifest = Manifest {
        format: 1,
        name: "branching".to_owned(),
        classes: (0..10).map(|class| class.to_string()).collect(),
        tensors: tensors.collect(),
        boundaries: cut.boundaries.iter().map(|tensors| Boundary { tensors: tensors.clone(), coded: vec![] }).collect(),
        segments: segments.collect(),
        exits: exits.collect(),
        evidence: Evidence::default(),
    };
    let format = manifest.least_format();
    draft.write(dir, &Manifest { format, ..manifest }).unwrap()
}

/// A host of which it is given what segments take.
#[derive(Debug)]
struct Given([f64; 2]);

impl MeasuredHost for Given {
    fn segments_us(&self, manifest: &Manifest, _: edgent_bundle::Digest) -> Result<Vec<f64>, String> {
        let is_before = |segment: usize| manifest.exits[0].path.contains(&segment);
        Ok((0..manifest.segments.len()).map(|segment| self.0[usize::from(!is_before(segment))]).collect())
    }

    fn coding_slowdown(&self) -> f64 {
        1.0
    }
}

/// What two hosts speak that know each other.
fn acquainted() -> [Security; 2] {
    let new = || Identity::read(&Identity::generate().unwrap()).unwrap();
    let identities = [new(), new()];
    let [device, edge] = [0, 1].map(|this| {
        let other = KnownPeer {
            name: "other".to_owned(),
            fingerprint: identities[1 - this].fingerprint(),
            may: Right::ALL.into(),
            models: None,
        };
        let mut peers = Peers::default();
        peers.add(other).unwrap();
        peers
    });
    let [ours, theirs] = identities;
    [(ours, device), (theirs, edge)].map(|(identity, peers)| Security::tls(Credentials::new(identity, peers)))
}

pub(super) fn hello(role: Role) -> Hello {
    Hello { protocol: PROTOCOL_VERSION, role, build: "simulated".to_owned() }
}
