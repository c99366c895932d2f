//! `edgent build`: ONNX → bundle.

use crate::model_file::ModelFile;
use crate::output::{BadInput, Output};
use crate::samples::{self, Sample};
use anyhow::{Context, Result};
use edgent_bundle::{
    Blob, Bundle, Codec, CodedAccuracy, Draft, Evidence, Exit, FORMAT, Layer, LayerKind, Manifest, Segment,
    Tensor as Described, Tier, compose, standard_guest,
};
use edgent_nn::{Cut, ElementType, Graph, Imported, Port, SegmentGraph, Tensor};
use edgent_runtime::codec;
use edgent_runtime::confidence::{self, Said};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The network; a model.toml beside it describes it.
    model: PathBuf,
    /// Folder for the bundle; an earlier bundle there is replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Validation samples with which the accuracy of coded activations is measured.
    #[arg(long, default_value_t = CODEC_SAMPLES)]
    samples: usize,
}

/// Enough to see half a point of accuracy, few enough to take seconds.
pub(crate) const CODEC_SAMPLES: usize = 200;

#[derive(Serialize)]
struct Report {
    segments: usize,
    cuts: usize,
    exits: usize,
    bytes: u64,
    digest: String,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let bundle = build(&arguments.model, &arguments.out, arguments.samples, output)?;
    let manifest = bundle.manifest();
    let report = Report {
        segments: manifest.segments.len(),
        cuts: manifest.boundaries.len() - manifest.exits.len(),
        exits: manifest.exits.len(),
        bytes: manifest.segments.iter().map(|segment| segment.component.bytes).sum(),
        digest: bundle.digest().to_string(),
    };
    output.line(format_args!("{}: {}", manifest.name, arguments.out.display()));
    output.line(format_args!(
        "{} segments, {} cuts, {} exits, {} bytes of components",
        report.segments, report.cuts, report.exits, report.bytes
    ));
    output.line(format_args!("{}", report.digest));
    output.result(&report)
}

/// Imports, cuts, measures and writes.
pub(crate) fn build(model: &Path, out: &Path, codec_samples: usize, output: &Output) -> Result<Bundle> {
    let described = ModelFile::read(&model.with_file_name("model.toml"))?;
    let source = fs::read(model).map_err(|e| BadInput::error(format!("{}: {e}", model.display())))?;
    let in_model = |e: &dyn std::fmt::Display| BadInput::error(format!("{}: {e}", model.display()));
    let imported = Imported::from_onnx(&source).map_err(|e| in_model(&e))?;
    let input = imported.input();
    if input.name != described.input.name || input.fact.dims != described.input.shape {
        return Err(in_model(&format!(
            "model.toml describes an input '{}' of {:?}, the network has '{}' of {}",
            described.input.name, described.input.shape, input.name, input.fact
        )));
    }
    let cut = imported.cut().map_err(|e| in_model(&e))?;
    let mut draft = Draft::default();
    let mut manifest = Manifest {
        format: FORMAT,
        name: described.name.clone(),
        classes: described.classes.clone(),
        tensors: cut.tensors.iter().map(tensor).collect(),
        boundaries: cut.boundaries.clone(),
        segments: segments(&cut, &mut draft)?,
        exits: exits(&cut, &described)?,
        evidence: Evidence { source: Some(draft.add(source)), ..Evidence::default() },
    };
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
        let mut validation = samples::sheet(&png, &labels, paths.tile_px).context("the validation samples")?;
        measure_confidence(&cut, &validation, &mut manifest)?;
        validation.truncate(codec_samples);
        output.progress(format_args!("measuring coded activations on {} validation samples", validation.len()));
        measure_codecs(&cut, &validation, &mut manifest)?;
        let (png, labels) = sheet(&paths.test)?;
        let mut keep = |bytes: Vec<u8>| -> Option<Blob> { Some(draft.add(bytes)) };
        manifest.evidence.samples = keep(png);
        manifest.evidence.labels = keep(labels);
        manifest.evidence.golden = keep(file(described.at(&paths.golden))?);
    }
    Ok(draft.write(out, &manifest)?)
}

fn tensor(Port { name, fact }: &Port) -> Described {
    Described { name: name.clone(), element_type: fact.element_type.name().to_owned(), dims: fact.dims.clone() }
}

fn segments(cut: &Cut, draft: &mut Draft) -> Result<Vec<Segment>> {
    cut.segments
        .iter()
        .map(|segment| {
            let component = draft.add(compose(standard_guest(), &segment.graph)?);
            Ok(Segment {
                name: segment_name(cut, segment),
                from: segment.from,
                to: segment.to,
                takes: segment.takes.clone(),
                gives: segment.gives.clone(),
                layers: segment.layers.iter().map(layer).collect(),
                macs: segment.macs,
                graph_format: segment.format.name().to_owned(),
                tier: Tier::Native,
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

fn exits(cut: &Cut, described: &ModelFile) -> Result<Vec<Exit>> {
    let names = |exits: &mut dyn Iterator<Item = &String>| exits.cloned().collect::<Vec<_>>().join(", ");
    let (found, told) =
        (names(&mut cut.exits.iter().map(|e| &e.name)), names(&mut described.exits.iter().map(|e| &e.output)));
    if found != told {
        return Err(BadInput::error(format!("model.toml describes the exits {told}; the network has {found}")));
    }
    let exits = cut.exits.iter().zip(&described.exits);
    Ok(exits
        .map(|(exit, described)| Exit {
            name: exit.name.clone(),
            path: exit.path.clone(),
            accuracy: described.accuracy_validation,
            sure_at: None,
            coded: Vec::new(),
        })
        .collect())
}

/// How sure each exit must be to be believed in place of the best one.
fn measure_confidence(cut: &Cut, samples: &[Sample], manifest: &mut Manifest) -> Result<()> {
    let graphs = load(cut)?;
    let best = (0..cut.exits.len()).max_by(|a, b| manifest.exits[*a].accuracy.total_cmp(&manifest.exits[*b].accuracy));
    let best = best.context("a network without exits")?;
    let said = each(samples, |part| {
        let mut said = vec![Vec::new(); cut.exits.len()];
        for sample in part {
            let exact = activations(cut, &graphs, sample)?;
            let logits = |exit: usize| exact[cut.output(exit)].as_ref();
            let is_right = |exit: usize| logits(exit).is_some_and(|logits| answer(logits) == sample.label);
            for (exit, said) in said.iter_mut().enumerate() {
                let confidence = logits(exit).and_then(Tensor::as_f32).map_or(0.0, confidence::confidence);
                said.push(Said { confidence, is_right: is_right(exit), best_is_right: is_right(best) });
            }
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

/// Each tensor that crosses somewhere, for a sample.
fn activations(cut: &Cut, graphs: &[Graph], sample: &Sample) -> Result<Vec<Option<Tensor>>> {
    let mut exact: Vec<Option<Tensor>> = vec![None; cut.tensors.len()];
    exact[0] = Some(sample.image.clone());
    (0..cut.segments.len()).try_for_each(|segment| run_segment(cut, graphs, segment, &mut exact))?;
    Ok(exact)
}

/// Runs a segment on the tensors it takes and puts those that it gives beside them.
fn run_segment(cut: &Cut, graphs: &[Graph], segment: usize, tensors: &mut [Option<Tensor>]) -> Result<()> {
    let SegmentGraph { takes, gives, .. } = &cut.segments[segment];
    let taken = takes.iter().map(|tensor| tensors[*tensor].clone()).collect::<Option<_>>();
    let given = graphs[segment].run_once(taken.context("a segment before the one it depends on")?)?;
    for (tensor, given) in gives.iter().zip(given) {
        tensors[*tensor] = Some(given);
    }
    Ok(())
}

/// Right answers of each exit, as it is and with the activation at each cut of its path coded as u8.
#[derive(Clone)]
struct Right {
    raw: Vec<usize>,
    coded: Vec<Vec<usize>>,
}

/// An exit's accuracy with a coded activation is its own accuracy less what coding lost on the very
/// same samples: the difference between two shares of the same samples varies far less than either.
fn measure_codecs(cut: &Cut, samples: &[Sample], manifest: &mut Manifest) -> Result<()> {
    let graphs = load(cut)?;
    let counted = each(samples, |part| count_right(cut, &graphs, part))?;
    for (index, exit) in manifest.exits.iter_mut().enumerate() {
        let raw: usize = counted.iter().map(|right| right.raw[index]).sum();
        for at in 0..exit.path.len() {
            if can_be_coded(cut, exit.path[at]) {
                let coded: usize = counted.iter().map(|right| right.coded[index][at]).sum();
                let lost = (raw as f64 - coded as f64) / samples.len().max(1) as f64;
                let accuracy = (exit.accuracy - lost).clamp(0.0, 1.0);
                exit.coded.push(CodedAccuracy { cut: at, codec: Codec::U8, accuracy });
            }
        }
    }
    Ok(())
}

fn count_right(cut: &Cut, graphs: &[Graph], samples: &[Sample]) -> Result<Right> {
    let mut right =
        Right { raw: vec![0; cut.exits.len()], coded: cut.exits.iter().map(|exit| vec![0; exit.path.len()]).collect() };
    for sample in samples {
        let exact = activations(cut, graphs, sample)?;
        for (index, exit) in cut.exits.iter().enumerate() {
            let is_right = |tensors: &[Option<Tensor>]| {
                usize::from(tensors[cut.output(index)].as_ref().is_some_and(|t| answer(t) == sample.label))
            };
            right.raw[index] += is_right(&exact);
            for at in (0..exit.path.len()).filter(|at| can_be_coded(cut, exit.path[*at])) {
                let mut coded = vec![None; cut.tensors.len()];
                for tensor in &cut.boundaries[cut.segments[exit.path[at]].from] {
                    let crossing = exact[*tensor].as_ref().context("a tensor that was not made")?;
                    coded[*tensor] = Some(codec::round_trip(crossing, edgent_link::Codec::U8)?);
                }
                exit.path[at..].iter().try_for_each(|segment| run_segment(cut, graphs, *segment, &mut coded))?;
                right.coded[index][at] += is_right(&coded);
            }
        }
    }
    Ok(right)
}

/// Whether anything that crosses before a segment can be coded as u8; what cannot goes as it is.
fn can_be_coded(cut: &Cut, segment: usize) -> bool {
    let crossing = &cut.boundaries[cut.segments[segment].from];
    crossing.iter().any(|tensor| cut.tensors[*tensor].fact.element_type == ElementType::F32)
}

/// The class of the greatest logit.
pub(crate) fn answer(logits: &Tensor) -> usize {
    let logits = logits.as_f32().unwrap_or_default();
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(index, _)| index)
}
