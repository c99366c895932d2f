//! `edgent build`: ONNX → bundle.

use crate::around::Around;
use crate::confined::{self, Bounds};
use crate::model_file::ModelFile;
use crate::output::{BadInput, Output};
use crate::progress::{Progress, Unit};
use crate::samples::{self, Sample};
use anyhow::{Context, Result};
use clap::ValueEnum;
use edgent_bundle::{
    Blob, Boundary, Bundle, CodedAccuracy, CodedBytes, Draft, Evidence, Exit, FORMAT, Layer, LayerKind, Manifest,
    Segment, Tensor as Described, Tier, compose, imports, standard_guest,
};
use edgent_link::Codec;
use edgent_nn::{Cut, Fact, Graph, GraphFormat, Imported, Pins, Port, SegmentGraph, Tensor};
use edgent_runtime::codec;
use edgent_runtime::confidence::{self, Said};
use edgent_runtime::{confine, is_offered};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The network; NAME.toml or model.toml beside NAME.onnx describes it, if there is one.
    model: PathBuf,
    /// Folder for the bundle; an earlier bundle there is replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Validation samples with which the accuracy of coded activations is measured.
    #[arg(long, default_value_t = CODEC_SAMPLES)]
    samples: usize,
    /// The bundle's name, in place of the model.toml's or the file's.
    #[arg(long)]
    name: Option<String>,
    /// The size of a dimension that the file only names.
    #[arg(long, value_name = "NAME=SIZE", value_parser = dim)]
    dim: Vec<(String, usize)>,
    /// The dimensions of an input, separated by commas; none for a scalar.
    #[arg(long, value_name = "NAME=SIZE,SIZE,…", value_parser = shape)]
    input: Vec<(String, Vec<usize>)>,
    /// An input that is always the same, element by element: it is no input any more.
    #[arg(long, value_name = "NAME=VALUE,VALUE,…", value_parser = values, allow_hyphen_values = true)]
    value: Vec<(String, Vec<f64>)>,
    /// A component of your own in place of the standard one, for the segment with that number (see `edgent inspect`).
    #[arg(long, value_name = "SEGMENT=FILE", value_parser = guest)]
    guest: Vec<(usize, PathBuf)>,
    /// Where the arithmetic is done: by the host, or, as portable, in the sandbox, where the host reads no graph.
    #[arg(long, value_enum, default_value = "native")]
    tier: TierName,
    /// How segments' graphs are written where that can be: as NNEF, which every host and tier reads; or as parts of the
    /// ONNX file, which onnxruntime reads, too.
    #[arg(long, value_enum, default_value = "nnef")]
    graphs: GraphsName,
    #[command(flatten)]
    bounds: Bounds,
}

/// A tier as users name it.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TierName {
    Native,
    Portable,
}

/// A graph's format as users name it.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GraphsName {
    Nnef,
    Onnx,
}

impl From<GraphsName> for GraphFormat {
    fn from(name: GraphsName) -> Self {
        match name {
            GraphsName::Nnef => Self::Nnef,
            GraphsName::Onnx => Self::Onnx,
        }
    }
}

impl From<TierName> for Tier {
    fn from(name: TierName) -> Self {
        match name {
            TierName::Native => Self::Native,
            TierName::Portable => Self::Portable,
        }
    }
}

fn dim(text: &str) -> Result<(String, usize), String> {
    let (name, size) = text.rsplit_once('=').ok_or("it is not NAME=SIZE")?;
    Ok((name.to_owned(), size.parse().map_err(|e| format!("'{size}': {e}"))?))
}

fn shape(text: &str) -> Result<(String, Vec<usize>), String> {
    let (name, sizes) = text.rsplit_once('=').ok_or("it is not NAME=SIZE,SIZE,…")?;
    let sizes = sizes.split(',').filter(|size| !size.is_empty());
    let sizes = sizes.map(|size| size.parse().map_err(|e| format!("'{size}': {e}"))).collect::<Result<_, _>>()?;
    Ok((name.to_owned(), sizes))
}

fn values(text: &str) -> Result<(String, Vec<f64>), String> {
    let (name, values) = text.rsplit_once('=').ok_or("it is not NAME=VALUE,VALUE,…")?;
    let values = values.split(',').map(|value| value.parse().map_err(|e| format!("'{value}': {e}")));
    Ok((name.to_owned(), values.collect::<Result<_, _>>()?))
}

/// What a bundle is made of.
pub(crate) struct Order<'a> {
    pub(crate) model: &'a Path,
    pub(crate) out: &'a Path,
    pub(crate) codec_samples: usize,
    pub(crate) name: Option<&'a str>,
    pub(crate) pins: Pins,
    /// Others than the standard one for some segments.
    pub(crate) guests: BTreeMap<usize, Vec<u8>>,
    pub(crate) tier: Tier,
    /// How graphs are written, where that can be.
    pub(crate) graphs: GraphFormat,
}

/// Enough to see half a point of accuracy, few enough to take seconds.
pub(crate) const CODEC_SAMPLES: usize = 500;

#[derive(Serialize)]
struct Report {
    segments: usize,
    cuts: usize,
    exits: usize,
    bytes: u64,
    digest: String,
    /// How many segments each format has.
    formats: BTreeMap<String, usize>,
}

/// The command in a process of its own, which can open the model's folder, the bundle's, and the guests, and no other.
pub(crate) fn confined(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { model, out, bounds, guest, .. } = arguments;
    let beside = folder(model);
    let bytes = fs::metadata(model).map_or(0, |found| found.len());
    let is_new = !out.exists();
    fs::create_dir_all(out).map_err(|e| BadInput::error(format!("{}: {e}", out.display())))?;
    let read: Vec<&Path> = guest.iter().map(|(_, file)| file.as_path()).chain([beside]).collect();
    let built = confined::again(*bounds, bytes, &read, &[out]);
    if is_new && !built.as_ref().is_ok_and(|code| *code == ExitCode::SUCCESS) {
        // Only if nothing has been written there.
        let _ = fs::remove_dir(out);
    }
    built
}

/// A network that is described in a model.toml, built in such a process by a command that goes on with the bundle.
pub(crate) fn build_confined(model: &Path, out: &Path, codec_samples: usize, output: &Output) -> Result<Bundle> {
    output.progress(format_args!("building a bundle of {}", model.display()));
    let said = |e: std::io::Error| BadInput::error(format!("{}: {e}", model.display()));
    let bytes = fs::metadata(model).map_err(said)?.len();
    fs::create_dir_all(out)?;
    let confinement = confined::confinement(Bounds::default(), bytes, &[folder(model)], &[out])?;
    let samples = codec_samples.to_string();
    let arguments: [&OsStr; 6] =
        ["build".as_ref(), model.as_ref(), "--out".as_ref(), out.as_ref(), "--samples".as_ref(), samples.as_ref()];
    confinement.run(&confine::this_program()?, &arguments).map_err(BadInput::error)?;
    Ok(Bundle::open(out)?)
}

/// Where a network's description lies, too.
fn folder(model: &Path) -> &Path {
    model.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let pins = Pins {
        dims: arguments.dim.iter().cloned().collect(),
        inputs: arguments.input.iter().cloned().collect(),
        values: arguments.value.iter().cloned().collect(),
        ..Pins::default()
    };
    let (model, out, name) = (&arguments.model, &arguments.out, arguments.name.as_deref());
    let (guests, tier) = (guests(&arguments.guest, arguments.tier.into())?, arguments.tier.into());
    let (codec_samples, graphs) = (arguments.samples, arguments.graphs.into());
    let bundle = build_as(Order { model, out, codec_samples, name, pins, guests, tier, graphs }, output)?;
    let manifest = bundle.manifest();
    let mut formats = BTreeMap::new();
    for segment in &manifest.segments {
        *formats.entry(segment.graph_format.clone()).or_default() += 1;
    }
    let report = Report {
        segments: manifest.segments.len(),
        cuts: manifest.boundaries.len() - manifest.exits.len(),
        exits: manifest.exits.len(),
        bytes: manifest.segments.iter().map(|segment| segment.component.bytes).sum(),
        digest: bundle.digest().to_string(),
        formats,
    };
    output.line(format_args!("{}: {}", manifest.name, arguments.out.display()));
    output.line(format_args!(
        "{} segments, {} cuts, {} exits, {} bytes of components",
        report.segments, report.cuts, report.exits, report.bytes
    ));
    output.line(format_args!("{}", report.digest));
    output.result(&report)
}

/// Reads `SEGMENT=FILE`.
fn guest(given: &str) -> Result<(usize, PathBuf), String> {
    let (segment, file) = given.split_once('=').ok_or("write SEGMENT=FILE, as in 0=guest.wasm")?;
    Ok((segment.parse().map_err(|_| format!("'{segment}' is not a segment's number"))?, file.into()))
}

/// Reads guests, and makes sure that hosts will take them.
fn guests(given: &[(usize, PathBuf)], tier: Tier) -> Result<BTreeMap<usize, Vec<u8>>> {
    given.iter().map(|(segment, path)| Ok((*segment, read_guest(path, tier)?))).collect()
}

/// The same of one.
pub(crate) fn read_guest(path: &Path, tier: Tier) -> Result<Vec<u8>> {
    let said = |e: &dyn std::fmt::Display| BadInput::error(format!("{}: {e}", path.display()));
    let component = fs::read(path).map_err(|e| said(&e))?;
    let imports = imports(&component).map_err(|e| said(&e))?;
    match imports.iter().find(|name| !is_offered(name, tier)) {
        Some(import) => Err(said(&format!("it asks its host for {import}; segments get wasi:nn and nothing else"))),
        None => Ok(component),
    }
}

/// A network that is described in a model.toml, as it is.
pub(crate) fn build(model: &Path, out: &Path, codec_samples: usize, output: &Output) -> Result<Bundle> {
    let (pins, guests, tier, graphs) = (Pins::default(), BTreeMap::new(), Tier::Native, GraphFormat::Nnef);
    build_as(Order { model, out, codec_samples, name: None, pins, guests, tier, graphs }, output)
}

/// Imports, cuts, measures and writes.
pub(crate) fn build_as(order: Order<'_>, output: &Output) -> Result<Bundle> {
    let Order { model, out, codec_samples, name, pins, guests, tier, graphs } = order;
    let described = ModelFile::beside(model)?;
    let source = fs::read(model).map_err(|e| BadInput::error(format!("{}: {e}", model.display())))?;
    let in_model = |e: &dyn std::fmt::Display| BadInput::error(format!("{}: {e}", model.display()));
    let imported = import(&source, &described, pins).map_err(|e| in_model(&e))?;
    imported.notes().iter().for_each(|note| output.progress(note));
    let outputs = outputs_of_exits(&imported, &described).map_err(|e| in_model(&e))?;
    let cut = imported.cut_into(graphs, &outputs).map_err(|e| in_model(&e))?;
    cut.notes.iter().for_each(|note| output.progress(note));
    let around = Around::read(&described).map_err(|e| in_model(&e))?;
    // By their numbers in the bundle, those of the network alone.
    let own = around.first()..around.first() + cut.segments.len();
    if let Some(segment) = guests.keys().find(|segment| !own.contains(segment)) {
        return Err(in_model(&format!(
            "there is no segment {segment} for --guest; it has {} to {}",
            own.start,
            own.end - 1
        )));
    }
    let guests = guests.into_iter().map(|(segment, guest)| (segment - own.start, guest)).collect();
    confine::granted_time();
    let mut draft = Draft::default();
    let mut manifest = Manifest {
        format: FORMAT,
        name: name.unwrap_or(&described.name).to_owned(),
        classes: described.classes.clone(),
        tensors: cut.tensors.iter().map(|port| Described { finite: described.finite, ..tensor(port) }).collect(),
        boundaries: cut
            .boundaries
            .iter()
            .map(|tensors| Boundary { tensors: tensors.clone(), coded: Vec::new() })
            .collect(),
        segments: segments(&cut, &guests, tier, &mut draft)?,
        exits: exits(&cut, &described),
        evidence: Evidence {
            source: Some(draft.add(imported.changed_file().unwrap_or(source))),
            ..Evidence::default()
        },
    };
    manifest.format = manifest.least_format();
    if let Some(paths) = &described.samples {
        let file = |path: PathBuf| -> Result<Vec<u8>> {
            fs::read(&path).map_err(|e| BadInput::error(format!("{}: {e}", path.display())))
        };
        let sheet = |stem: &Path| {
            Ok::<_, anyhow::Error>((
                file(described.at(stem).with_extension("png"))?,
                file(described.at(stem).with_extension("labels"))?,
            ))
        };
        let (png, labels) = sheet(&paths.validation)?;
        let validation = samples::sheet(&png, &labels, paths.tile_px).context("the validation samples")?;
        let inputs: Vec<_> = cut.boundaries[0].iter().map(|tensor| cut.tensors[*tensor].clone()).collect();
        let mut validation = around.prepare(validation, &inputs)?;
        measure_confidence(&cut, &validation, &mut manifest, output)?;
        validation.truncate(codec_samples);
        output.progress(format_args!("measuring coded activations on {} validation samples", validation.len()));
        measure_codecs(&cut, &validation, &mut manifest, output)?;
        let (png, labels) = sheet(&paths.test)?;
        let mut keep = |bytes: Vec<u8>| -> Option<Blob> { Some(draft.add(bytes)) };
        manifest.evidence.samples = keep(png);
        manifest.evidence.labels = keep(labels);
        manifest.evidence.golden = keep(file(described.at(&paths.golden))?);
    }
    around.put(&mut manifest, described.finite, &mut draft)?;
    Ok(draft.write(out, &manifest)?)
}

/// Reads the network; what it leaves open is pinned by the user, or else by its model.toml.
fn import(source: &[u8], described: &ModelFile, mut pins: Pins) -> Result<Imported> {
    for input in described.inputs() {
        pins.inputs.entry(input.name.clone()).or_insert_with(|| input.shape.clone());
    }
    let imported = Imported::from_onnx(source, &pins)?;
    let missing = imported.inputs().iter().find(|port| !described.inputs().any(|input| input.name == port.name));
    match missing.filter(|_| described.inputs().next().is_some()) {
        Some(port) => Err(BadInput::error(format!("model.toml does not describe the input '{}'", port.name))),
        None => Ok(imported),
    }
}

/// Which outputs each exit gives, as indices.
fn outputs_of_exits(imported: &Imported, described: &ModelFile) -> Result<Vec<Vec<usize>>> {
    if described.exits.is_empty() {
        return Ok(vec![(0..imported.outputs().len()).collect()]);
    }
    let found: Vec<&String> = imported.outputs().iter().map(|port| &port.name).collect();
    let told: Vec<&String> = described.exits.iter().flat_map(|exit| exit.outputs()).collect();
    let names = |names: &[&String]| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    if described.exits.iter().any(|exit| exit.outputs().next().is_none()) || told != found {
        return Err(BadInput::error(format!(
            "model.toml describes exits with the outputs {}; the network has {}",
            names(&told),
            names(&found)
        )));
    }
    let mut next = 0..;
    Ok(described.exits.iter().map(|exit| next.by_ref().take(exit.outputs().count()).collect()).collect())
}

fn tensor(Port { name, fact }: &Port) -> Described {
    Described {
        name: name.clone(),
        element_type: fact.element_type.name().to_owned(),
        dims: fact.dims.clone(),
        finite: false,
    }
}

fn segments(cut: &Cut, guests: &BTreeMap<usize, Vec<u8>>, tier: Tier, draft: &mut Draft) -> Result<Vec<Segment>> {
    cut.segments
        .iter()
        .enumerate()
        .map(|(index, segment)| {
            let guest = guests.get(&index);
            if tier == Tier::Portable && guest.is_none() && segment.format != GraphFormat::Nnef {
                let name = segment_name(cut, segment);
                return Err(BadInput::error(format!("'{name}' cannot be portable: NNEF has no words for its graph")));
            }
            let guest = guest.map_or(standard_guest(), Vec::as_slice);
            let component = draft.add(compose(guest, &segment.graph)?);
            Ok(Segment {
                name: segment_name(cut, segment),
                from: segment.from,
                to: segment.to,
                takes: segment.takes.clone(),
                gives: segment.gives.clone(),
                layers: segment.layers.iter().map(layer).collect(),
                macs: segment.macs,
                graph_format: segment.format.name().to_owned(),
                tier,
                component,
            })
        })
        .collect()
}

/// A segment is called after the tensor that it makes last.
fn segment_name(cut: &Cut, segment: &SegmentGraph) -> String {
    let name = segment.gives.last().map_or("", |tensor| &cut.tensors[*tensor].name);
    name.trim_start_matches('/').trim_end_matches("_output_0").to_owned()
}

/// A layer as a manifest describes it.
pub(crate) fn layer(layer: &edgent_nn::Layer) -> Layer {
    let kind = match layer.kind {
        edgent_nn::LayerKind::Conv { input_maps, filters, window_elements, stride_elements } => {
            LayerKind::Conv { input_maps, filters, window_elements, stride_elements }
        }
        edgent_nn::LayerKind::Relu => LayerKind::Relu,
        edgent_nn::LayerKind::Pool { window_elements, stride_elements } => {
            LayerKind::Pool { window_elements, stride_elements }
        }
        edgent_nn::LayerKind::Lrn => LayerKind::Lrn,
        edgent_nn::LayerKind::FullyConnected => LayerKind::FullyConnected,
        edgent_nn::LayerKind::Other => LayerKind::Other,
    };
    Layer {
        name: layer.name.clone(),
        operator: layer.operator.clone(),
        kind,
        input_elements: layer.input_elements,
        output_elements: layer.output_elements,
        weights: layer.weights,
        macs: layer.macs,
        fused: layer.fused,
    }
}

fn exits(cut: &Cut, described: &ModelFile) -> Vec<Exit> {
    let accuracy = |index: usize| described.exits.get(index).map_or(0.0, |exit| exit.accuracy_validation);
    let exits = cut.exits.iter().enumerate();
    exits
        .map(|(index, exit)| Exit {
            name: exit.name.clone(),
            path: exit.path.clone(),
            accuracy: accuracy(index),
            sure_at: None,
            coded: Vec::new(),
        })
        .collect()
}

/// How sure each exit must be to be believed in place of the best one.
fn measure_confidence(cut: &Cut, samples: &[Sample], manifest: &mut Manifest, output: &Output) -> Result<()> {
    let graphs = load(cut)?;
    let best = (0..cut.exits.len()).max_by(|a, b| manifest.exits[*a].accuracy.total_cmp(&manifest.exits[*b].accuracy));
    let best = best.context("a network without exits")?;
    let asked = output.count("asking every exit", Unit::Steps, samples.len());
    let said = each(samples, |part| {
        let mut said = vec![Vec::new(); cut.exits.len()];
        for sample in part {
            let exact = activations(cut, &graphs, 0, vec![sample.image.clone()])?;
            let logits = |exit: usize| exact[cut.end(exit)].as_ref().and_then(|given| given.first());
            let is_right = |exit: usize| logits(exit).is_some_and(|logits| answer(logits) == sample.label);
            for (exit, said) in said.iter_mut().enumerate() {
                let confidence = logits(exit).and_then(Tensor::as_f32).map_or(0.0, confidence::confidence);
                said.push(Said { confidence, is_right: is_right(exit), best_is_right: is_right(best) });
            }
            asked.add(1);
        }
        Ok(said)
    })?;
    for (index, exit) in manifest.exits.iter_mut().enumerate().filter(|(index, _)| *index != best) {
        exit.sure_at = confidence::threshold(said.iter().flat_map(|part| part[index].clone()).collect());
    }
    Ok(())
}

fn load(cut: &Cut) -> Result<Vec<Graph>> {
    Ok(cut.segments.iter().map(|s| Graph::load(&s.graph, s.format)).collect::<Result<Vec<_>, _>>()?)
}

/// Has each processor do its share of the samples.
fn each<T: Send>(samples: &[Sample], work: impl Fn(&[Sample]) -> Result<T> + Sync) -> Result<Vec<T>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = samples.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let started: Vec<_> = samples.chunks(share).map(|part| scope.spawn(|| work(part))).collect();
        started.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("measuring panicked"))?).collect()
    })
}

/// What crosses each boundary that follows from what crosses the one at `from`; nothing at the others.
fn activations(cut: &Cut, graphs: &[Graph], from: usize, crossing: Vec<Tensor>) -> Result<Vec<Option<Vec<Tensor>>>> {
    let mut behind: Vec<Option<Vec<Tensor>>> = vec![None; cut.boundaries.len()];
    behind[from] = Some(crossing);
    for (segment, graph) in cut.segments.iter().zip(graphs) {
        let Some(before) = &behind[segment.from] else { continue };
        let mut here: BTreeMap<usize, Tensor> =
            cut.boundaries[segment.from].iter().copied().zip(before.iter().cloned()).collect();
        let taken = segment.takes.iter().filter_map(|tensor| here.get(tensor).cloned()).collect();
        here.extend(segment.gives.iter().copied().zip(graph.run_once(taken)?));
        let next = cut.boundaries[segment.to].iter().map(|tensor| here.get(tensor).cloned()).collect::<Option<_>>();
        behind[segment.to] = Some(next.context("a segment that does not give what it should")?);
    }
    Ok(behind)
}

/// What one codec did at one boundary, over the validation samples.
#[derive(Clone)]
struct Tried {
    /// Right answers of each exit with the activation there so coded; those that do not lie behind it have none.
    right: Vec<usize>,
    /// On the wire, of each sample.
    bytes: Vec<u64>,
}

/// An exit's accuracy with a coded activation is its own accuracy less what coding lost on the very
/// same samples: the difference between two shares of the same samples varies far less than either.
fn measure_codecs(cut: &Cut, samples: &[Sample], manifest: &mut Manifest, output: &Output) -> Result<()> {
    let graphs = load(cut)?;
    let facts = |boundary: &Vec<usize>| boundary.iter().map(|at| &cut.tensors[*at].fact).collect::<Vec<_>>();
    let facts: Vec<Vec<&Fact>> = cut.boundaries.iter().map(facts).collect();
    let choices: Vec<Vec<Codec>> = facts.iter().map(|facts| codec::choices(facts)).collect();
    let coded = output.count("coding activations", Unit::Steps, samples.len());
    let parts = each(samples, |part| try_codecs(cut, &graphs, &choices, part, &coded))?;
    drop(coded);
    let count = samples.len().max(1) as f64;
    for (boundary, codecs) in choices.iter().enumerate() {
        let right =
            |index: usize, exit: usize| parts.iter().map(|part| part[boundary][index].right[exit]).sum::<usize>();
        // The first is `raw`, with which the others are compared.
        for (index, codec) in codecs.iter().enumerate().skip(1) {
            let name = codec.name().to_owned();
            let crosses = |segment: &usize| cut.segments[*segment].from == boundary;
            for (number, exit) in manifest.exits.iter_mut().enumerate() {
                if let Some(at) = exit.path.iter().position(crosses) {
                    let lost = (right(0, number) as f64 - right(index, number) as f64) / count;
                    let accuracy = (exit.accuracy - lost).clamp(0.0, 1.0);
                    exit.coded.push(CodedAccuracy { cut: at, codec: name.clone(), accuracy });
                }
            }
            let mut bytes: Vec<u64> = parts.iter().flat_map(|part| part[boundary][index].bytes.clone()).collect();
            if codec::fixed_bytes(&facts[boundary], *codec).is_none() && !bytes.is_empty() {
                bytes.sort_unstable();
                let quantile = |share: f64| bytes[((bytes.len() - 1) as f64 * share).ceil() as usize];
                let (p50_bytes, p90_bytes) = (quantile(0.5), quantile(0.9));
                manifest.boundaries[boundary].coded.push(CodedBytes { codec: name, p50_bytes, p90_bytes });
            }
        }
    }
    Ok(())
}

/// Each codec at each boundary that something follows.
fn try_codecs(
    cut: &Cut,
    graphs: &[Graph],
    choices: &[Vec<Codec>],
    samples: &[Sample],
    coded: &Progress,
) -> Result<Vec<Vec<Tried>>> {
    let none = Tried { right: vec![0; cut.exits.len()], bytes: Vec::new() };
    let mut tried: Vec<Vec<Tried>> = choices.iter().map(|codecs| vec![none.clone(); codecs.len()]).collect();
    let ends: Vec<usize> = (0..cut.exits.len()).map(|exit| cut.end(exit)).collect();
    for sample in samples {
        let exact = activations(cut, graphs, 0, vec![sample.image.clone()])?;
        let is_right = |given: &Option<Vec<Tensor>>| {
            given.as_ref().and_then(|given| given.first()).is_some_and(|logits| answer(logits) == sample.label)
        };
        for (boundary, tried) in tried.iter_mut().enumerate().filter(|(boundary, _)| !ends.contains(boundary)) {
            let Some(crossing) = &exact[boundary] else { continue };
            let facts: Vec<Fact> = crossing.iter().map(Tensor::fact).collect();
            let facts: Vec<&Fact> = facts.iter().collect();
            // What is read as before is answered as before: `u8-lz4` as `u8`, and what is lossless as `raw`.
            let mut answered: Vec<(Vec<Tensor>, Vec<bool>)> = Vec::new();
            for (codec, tried) in choices[boundary].iter().zip(tried) {
                let (first, beside) = codec::encode_all(crossing, *codec).context("a boundary that nothing crosses")?;
                tried.bytes.push(codec::wire_bytes(&first, &beside));
                let read = codec::decode_all(&first, &beside, &facts)?;
                let same = |before: &[Tensor]| before.iter().zip(&read).all(|(a, b)| a.bytes() == b.bytes());
                let known = answered.iter().position(|(before, _)| same(before));
                let known = known.map_or_else(
                    || {
                        let behind = activations(cut, graphs, boundary, read.clone())?;
                        answered.push((read.clone(), ends.iter().map(|end| is_right(&behind[*end])).collect()));
                        anyhow::Ok(answered.len() - 1)
                    },
                    Ok,
                )?;
                tried.right.iter_mut().zip(&answered[known].1).for_each(|(count, right)| *count += usize::from(*right));
            }
        }
        coded.add(1);
    }
    Ok(tried)
}

/// The class of the greatest logit.
pub(crate) fn answer(logits: &Tensor) -> usize {
    let logits = logits.as_f32().unwrap_or_default();
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(index, _)| index)
}
