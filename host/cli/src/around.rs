//! Guests of a network's maker, before it and behind it: `[before]` and `[after]` of a model.toml.
//!
//! Each becomes a segment without a graph. What goes into the first and comes out of the last is what the manifest says
//! of them, of any type and shape; what they have to do with the network is their maker's business, and hosts check no
//! more than that each gives what it is said to give.

use crate::build::read_guest;
use crate::model_file::{After, Before, ModelFile, OwnTensor};
use crate::output::BadInput;
use crate::samples::Sample;
use anyhow::Result;
use edgent_bundle::{
    Blob, Boundary, Draft, Layer, LayerKind, Manifest, NO_GRAPH, Segment, Tensor as Described, Tier, compose,
};
use edgent_nn::{ElementType, Fact, Port, Stop, Tensor};
use edgent_sandbox::{Engine, Limits, OwnGraph, Segment as Running, Work};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

/// The largest file of data beside a guest.
const DATA_BYTES_MAX: u64 = 1 << 20;

/// What stands around a network.
#[derive(Debug, Default)]
pub(crate) struct Around {
    before: Option<Own>,
    after: Option<Own>,
}

/// One of the two guests.
#[derive(Debug)]
struct Own {
    /// The file's name, without what follows its dot.
    name: String,
    code: Vec<u8>,
    data: Vec<u8>,
    /// What it takes, of the one before; what it gives, of the other.
    outward: Vec<Port>,
}

impl Around {
    /// Reads what a model.toml names.
    pub(crate) fn read(described: &ModelFile) -> Result<Self> {
        let own = |part: &str, guest: &Path, data: Option<&Path>, outward: &[OwnTensor]| {
            let said = |why: &dyn std::fmt::Display| BadInput::error(format!("[{part}]: {why}"));
            let beside = |path: &Path| -> Result<_> {
                // As far as the confined process sees.
                if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
                    return Err(said(&format!("'{}' must lie in the model's folder", path.display())));
                }
                Ok(described.at(path))
            };
            if outward.is_empty() {
                return Err(said(&"it must say what it takes, or gives: of each, name, type and shape"));
            }
            let outward = outward.iter().map(port).collect::<Result<_>>().map_err(|e| said(&e))?;
            let code = read_guest(&beside(guest)?, Tier::Portable)?;
            let data = data.map(|path| read_data(&beside(path)?)).transpose()?.unwrap_or_default();
            let name = guest.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            anyhow::Ok(Own { name, code, data, outward })
        };
        let before = |Before { guest, data, takes }: &Before| own("before", guest, data.as_deref(), takes);
        let after = |After { guest, data, gives }: &After| own("after", guest, data.as_deref(), gives);
        let before = described.before.as_ref().map(before).transpose()?;
        let after = described.after.as_ref().map(after).transpose()?;
        if after.is_some() && !described.classes.is_empty() {
            let why =
                "[after]: the answer is what its guest gives, so there are no scores of `classes`; leave them out";
            return Err(BadInput::error(why));
        }
        Ok(Self { before, after })
    }

    /// So many segments stand before the network's own.
    pub(crate) fn first(&self) -> usize {
        usize::from(self.before.is_some())
    }

    /// What the network makes of samples is asked of what its guest makes of them.
    pub(crate) fn prepare(&self, samples: Vec<Sample>, inputs: &[Port]) -> Result<Vec<Sample>> {
        let Some(before) = &self.before else { return Ok(samples) };
        let running = before.run(before.outward.clone(), inputs.to_vec())?;
        let prepared = samples.into_iter().map(|Sample { image, label }| {
            let given = running.run(vec![image], &Stop::never()).map_err(BadInput::error)?;
            let image = given.into_iter().next().ok_or_else(|| BadInput::error("[before] gives nothing"))?;
            Ok(Sample { image, label })
        });
        prepared.collect()
    }

    /// Puts them around a network that is described, once each has shown that it gives what it is said to.
    pub(crate) fn put(self, manifest: &mut Manifest, finite: bool, draft: &mut Draft) -> Result<()> {
        let Self { before, after } = self;
        let ports = |manifest: &Manifest, tensors: &[usize]| {
            tensors.iter().map(|tensor| port_of(&manifest.tensors[*tensor])).collect::<Result<Vec<_>>>()
        };
        if let Some(after) = after {
            let component = draft.add(compose(&after.code, &after.data)?);
            for exit in 0..manifest.exits.len() {
                let takes = ports(manifest, manifest.outputs(exit))?;
                after.try_once(takes, after.outward.clone()).map_err(|e| BadInput::error(format!("[after]: {e:#}")))?;
                put_after(manifest, exit, &after, &component, finite);
            }
            manifest.classes.clear();
        }
        if let Some(before) = before {
            let component = draft.add(compose(&before.code, &before.data)?);
            let gives = ports(manifest, &manifest.boundaries[0].tensors)?;
            before.try_once(before.outward.clone(), gives).map_err(|e| BadInput::error(format!("[before]: {e:#}")))?;
            put_before(manifest, &before, component, finite);
        }
        manifest.format = manifest.least_format();
        Ok(())
    }
}

impl Own {
    fn run(&self, inputs: Vec<Port>, outputs: Vec<Port>) -> Result<Running> {
        let crossing_bytes = inputs.iter().chain(&outputs).map(|port| port.fact.bytes()).fold(0, usize::saturating_add);
        let limits = Limits::computing(self.data.len(), crossing_bytes, 0);
        let work = Work::InGuest(OwnGraph::new(self.data.clone(), inputs, outputs));
        Ok(Running::new(&self.name, &Engine::new()?.compile(&self.code)?, work, limits)?)
    }

    /// On zeros, as hosts will.
    fn try_once(&self, inputs: Vec<Port>, outputs: Vec<Port>) -> Result<()> {
        let zeros =
            |port: &Port| Tensor::from_bytes(port.fact.element_type, &port.fact.dims, &vec![0; port.fact.bytes()]);
        let given = inputs.iter().map(zeros).collect::<Result<_, _>>()?;
        self.run(inputs, outputs)?.run(given, &Stop::never())?;
        Ok(())
    }

    fn segment(
        &self,
        name: String,
        [from, to]: [usize; 2],
        takes: Vec<usize>,
        gives: Vec<usize>,
        component: Blob,
    ) -> Segment {
        // Its elements are unknown to predictions of time; hosts measure it as any other.
        let layer = Layer {
            name: self.name.clone(),
            operator: "guest".to_owned(),
            kind: LayerKind::Other,
            input_elements: 0,
            output_elements: self.outward.iter().map(|port| port.fact.elements() as u64).sum(),
            weights: 0,
            macs: 0,
            fused: false,
        };
        let (graph_format, tier) = (NO_GRAPH.to_owned(), Tier::Portable);
        Segment { name, from, to, takes, gives, layers: vec![layer], macs: 0, graph_format, tier, component }
    }

    fn tensors(&self, prefix: &str, finite: bool) -> impl Iterator<Item = Described> {
        self.outward.iter().map(move |Port { name, fact }| Described {
            name: format!("{prefix}{name}"),
            element_type: fact.element_type.name().to_owned(),
            dims: fact.dims.clone(),
            finite,
        })
    }
}

/// All that was there moves on by one.
fn put_before(manifest: &mut Manifest, own: &Own, component: Blob, finite: bool) {
    let by = own.outward.len();
    let move_on = |tensors: &mut Vec<usize>| tensors.iter_mut().for_each(|tensor| *tensor += by);
    manifest.boundaries.iter_mut().for_each(|boundary| move_on(&mut boundary.tensors));
    for segment in &mut manifest.segments {
        move_on(&mut segment.takes);
        move_on(&mut segment.gives);
        (segment.from, segment.to) = (segment.from + 1, segment.to + 1);
    }
    for exit in &mut manifest.exits {
        exit.path = std::iter::once(0).chain(exit.path.iter().map(|segment| segment + 1)).collect();
        exit.coded.iter_mut().for_each(|coded| coded.cut += 1);
    }
    let inputs: Vec<usize> = (0..by).collect();
    let gives = manifest.boundaries[0].tensors.clone();
    manifest.tensors.splice(0..0, own.tensors("", finite));
    manifest.boundaries.insert(0, Boundary { tensors: inputs.clone(), coded: Vec::new() });
    manifest.segments.insert(0, own.segment(own.name.clone(), [0, 1], inputs, gives, component));
}

/// A segment more at the end of an exit's path.
fn put_after(manifest: &mut Manifest, exit: usize, own: &Own, component: &Blob, finite: bool) {
    let prefix = if manifest.exits.len() > 1 { format!("{}.", manifest.exits[exit].name) } else { String::new() };
    let from = manifest.exits[exit].path.last().map_or(0, |segment| manifest.segments[*segment].to);
    let (takes, to) = (manifest.boundaries[from].tensors.clone(), manifest.boundaries.len());
    let first = manifest.tensors.len();
    manifest.tensors.extend(own.tensors(&prefix, finite));
    let gives: Vec<usize> = (first..manifest.tensors.len()).collect();
    manifest.boundaries.push(Boundary { tensors: gives.clone(), coded: Vec::new() });
    let name = format!("{prefix}{}", own.name);
    let segment = own.segment(name, [from, to], takes, gives, component.clone());
    manifest.exits[exit].path.push(manifest.segments.len());
    // What it gives tells nobody how sure the network is.
    manifest.exits[exit].sure_at = None;
    manifest.segments.push(segment);
}

fn port(OwnTensor { name, element_type, shape }: &OwnTensor) -> Result<Port> {
    let known = ElementType::from_name(element_type);
    let known = known.ok_or_else(|| anyhow::anyhow!("'{name}' is of type '{element_type}', which there is not"))?;
    Ok(Port { name: name.clone(), fact: Fact::new(known, shape)? })
}

fn port_of(tensor: &Described) -> Result<Port> {
    let Described { name, element_type, dims, .. } = tensor;
    port(&OwnTensor { name: name.clone(), element_type: element_type.clone(), shape: dims.clone() })
}

fn read_data(path: &Path) -> Result<Vec<u8>> {
    let said = |why: &dyn std::fmt::Display| BadInput::error(format!("{}: {why}", path.display()));
    let mut data = Vec::new();
    let file = File::open(path).map_err(|e| said(&e))?;
    file.take(DATA_BYTES_MAX + 1).read_to_end(&mut data).map_err(|e| said(&e))?;
    if data.len() as u64 > DATA_BYTES_MAX {
        return Err(said(&format!("it is over {DATA_BYTES_MAX} bytes, more than a guest's data may have")));
    }
    Ok(data)
}
