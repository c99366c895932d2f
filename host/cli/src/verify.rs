//! `edgent verify`: whether a bundle does what the network it was cut from does.

use crate::build::{TierName, answer};
use crate::confined::{self, Bounds};
use crate::keys::{self, Signer};
use crate::output::{BadInput, Output, quantile};
use crate::progress::Unit;
use crate::samples::{self, Sample};
use anyhow::{Context, Result, bail};
use edgent_bundle::{Blob, Bundle, Manifest, Tier};
use edgent_link::Codec;
use edgent_nn::{Graph, GraphFormat, Imported, Pins, Stop, Tensor, example};
use edgent_runtime::confine;
use edgent_runtime::golden::{Golden, TOLERANCE, difference};
use edgent_runtime::{Deployment, Terms, Tiers, codec, components_bytes};
use edgent_sandbox::Engine;
use serde::Serialize;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Inputs for a bundle without golden ones.
const MADE_UP_INPUTS: u64 = 3;

/// How far a portable segment may be from what the host would have computed; where the values are greater than 1, as
/// a share of the greatest.
const PORTABLE_TOLERANCE: f64 = 1e-5;

/// A codec may cost so much more accuracy on the test samples than on the few on which it was measured.
const CODED_TOLERANCE: f64 = 0.02;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The bundle's folder, or FOLDER@NAME:VERSION.
    bundle: PathBuf,
    /// Public key, or file of one, of which one must have signed the bundle; looked at before anything of it is run.
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    /// Portable: all segments in the sandbox, whatever the bundle says, as a host would that allows it nothing else.
    #[arg(long, value_enum)]
    tier: Option<TierName>,
    #[command(flatten)]
    bounds: Bounds,
    /// Inputs, and what another runtime made of them, in place of the bundle's own: safetensors with a tensor for
    /// each input and output, by its name, and for any other tensor that crosses a cut.
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    /// Who signed it; whether that holds, of those whose keys were given.
    signatures: Vec<Signer>,
    cuts_checked: usize,
    cuts_bit_exact: usize,
    /// Those after which the outputs are the undivided network's but for rounding.
    cuts_close: usize,
    /// Segments that did their arithmetic in the sandbox, and how far any cut's outputs were from the undivided
    /// network's; where they are greater than 1, as a share of the greatest.
    portable_segments: usize,
    cuts_max_diff: f64,
    golden_inputs: usize,
    /// Of the outputs; where they are greater than 1, as a share of the greatest.
    max_abs_diff: f64,
    /// Tensors that cross somewhere which another runtime was asked for, too, and the largest difference there.
    tensors_compared: usize,
    tensors_max_diff: f64,
    tensors_max_at: String,
    samples: usize,
    accuracy_per_exit: Vec<f64>,
    /// Activations that crossed in a codec that must not change them, and did not.
    lossless_checked: usize,
    lossless_exact: usize,
    /// What each codec costs the best exit where the input crosses, as the manifest says and as found here.
    input_codecs: Vec<InputCodec>,
}

#[derive(Serialize)]
struct InputCodec {
    codec: String,
    lost_manifest: f64,
    lost_here: f64,
    p90_bytes_manifest: Option<u64>,
    p90_bytes_here: u64,
}

/// The command in a process of its own, which can open the bundle, the files given, and nothing else.
pub(crate) fn confined(arguments: &Arguments) -> Result<ExitCode> {
    let bundle = Bundle::open(&arguments.bundle).map_err(BadInput::error)?;
    let bytes = components_bytes(bundle.manifest());
    let source = bundle.manifest().evidence.source.as_ref().map_or(0, |blob| blob.bytes);
    let keys = arguments.key.iter().map(Path::new).filter(|key| key.is_file());
    let read: Vec<&Path> = keys.chain(arguments.golden.as_deref()).chain([bundle.dir()]).collect();
    let tiers = tiers(arguments);
    let is_portable = bundle.manifest().segments.iter().any(|segment| tiers.of(segment) == Tier::Portable);
    let bounds = if is_portable { arguments.bounds.compiling() } else { arguments.bounds };
    confined::again(bounds, bytes.saturating_add(source), &read, &[])
}

fn tiers(arguments: &Arguments) -> Tiers {
    if arguments.tier == Some(TierName::Portable) { Tiers::Portable } else { Tiers::AsBuilt }
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let bundle = Bundle::open(&arguments.bundle).map_err(BadInput::error)?;
    let signatures = keys::signers(&bundle, &keys::public(&arguments.key)?);
    signatures.iter().for_each(|signer| output.line(signer));
    if signatures.is_empty() {
        output.line("signed    by nobody");
    }
    if !arguments.key.is_empty() && !signatures.iter().any(|signer| signer.holds == Some(true)) {
        bail!("none of the keys given signed this bundle: do not run it");
    }
    let terms = Terms { tiers: tiers(arguments), ..Terms::default() };
    let deployment = Deployment::prepare_on(&bundle, &Engine::new()?, &terms)?;
    let manifest = bundle.manifest();
    let evidence = &manifest.evidence;
    let blob = |blob: &Option<Blob>| blob.as_ref().map(|blob| bundle.blob(blob)).transpose();
    let exits: Vec<String> = manifest.exits.iter().map(|exit| exit.name.clone()).collect();
    // Guests of its maker's own run on both sides of the comparison.
    let own = manifest.segments.iter().filter(|segment| !segment.has_graph()).count();
    if (0..manifest.exits.len()).any(|exit| network(manifest, exit).is_empty()) {
        return Err(BadInput::error(
            "an exit is made of its maker's own guests alone: there is no network to compare with",
        ));
    }
    let whole = undivided(&bundle)?;
    confine::granted_time();
    let golden = match &arguments.golden {
        Some(path) => {
            let bytes = std::fs::read(path).map_err(|e| BadInput::error(format!("{}: {e}", path.display())))?;
            Some(Golden::read(&bytes, manifest, deployment.tensors()).map_err(BadInput::error)?)
        }
        None => Golden::of(&bundle, &deployment)?,
    };
    let golden = match golden {
        Some(golden) => golden,
        // Nothing to compare the undivided network with; its parts can be compared with it all the same.
        None => made_up(&deployment)?,
    };
    let has_golden = manifest.outputs(0).iter().all(|tensor| golden.tensors[*tensor].is_some());

    let mut report = Report {
        signatures,
        cuts_checked: 0,
        cuts_bit_exact: 0,
        cuts_close: 0,
        portable_segments: deployment.portable() - own,
        cuts_max_diff: 0.0,
        golden_inputs: if has_golden { golden.count } else { 0 },
        max_abs_diff: 0.0,
        tensors_compared: 0,
        tensors_max_diff: 0.0,
        tensors_max_at: String::new(),
        samples: 0,
        accuracy_per_exit: Vec::new(),
        lossless_checked: 0,
        lossless_exact: 0,
        input_codecs: Vec::new(),
    };
    // Another compiler's vector code rounds otherwise; by how much is promised.
    let tolerance = if report.portable_segments > 0 { PORTABLE_TOLERANCE } else { TOLERANCE };
    let mut compared = BTreeSet::new();
    let cuts: usize = manifest.exits.iter().map(|exit| exit.path.len() + 1).sum();
    let checked = output.count("checking cuts", Unit::Steps, golden.count * cuts);
    for index in 0..golden.count {
        let input: Vec<Tensor> = golden.at(&manifest.boundaries[0].tensors, index).flatten().cloned().collect();
        let inner = deployment.run(0, 0..network(manifest, 0).start, input.clone(), &Stop::never())?.output;
        let given = whole.run_once(inner)?;
        for (exit, path) in manifest.exits.iter().map(|exit| &exit.path).enumerate() {
            let place = |tensor: &usize| {
                let name = &manifest.tensors[*tensor].name;
                whole.outputs().iter().position(|port| port.name == *name).context("an output that the network has not")
            };
            let end = network(manifest, exit).end;
            let given_there = &manifest.boundaries[manifest.segments[path[end - 1]].to].tensors;
            let places = given_there.iter().map(place).collect::<Result<Vec<_>>>()?;
            let expected: Vec<Tensor> = places.into_iter().map(|place| given[place].clone()).collect();
            // What its maker's guest makes of that; the same, where there is none.
            let expected = deployment.run(exit, end..path.len(), expected, &Stop::never())?.output;
            // Every cut of the path: as if the activation there crossed the wire between two hosts.
            for cut in 0..=path.len() {
                let before = deployment.run(exit, 0..cut, input.clone(), &Stop::never())?.output;
                for tensor in &before {
                    let codecs = codec::choices(&[&tensor.fact()]);
                    for codec in codecs.into_iter().filter(|codec| codec::is_lossless(*codec)) {
                        report.lossless_checked += 1;
                        let same = codec::round_trip(tensor, codec)?.bytes() == tensor.bytes();
                        report.lossless_exact += usize::from(same);
                    }
                }
                let crossed = before.iter().map(|tensor| codec::round_trip(tensor, Codec::Raw));
                let crossed = crossed.collect::<Result<_, _>>()?;
                let split = deployment.run(exit, cut..path.len(), crossed, &Stop::never())?.output;
                report.cuts_checked += 1;
                checked.add(1);
                let pairs = || split.iter().zip(&expected);
                let as_many = split.len() == expected.len();
                let exact = as_many && pairs().all(|(ours, theirs)| ours.bytes() == theirs.bytes());
                let apart = |(ours, theirs): (&Tensor, &Tensor)| difference(ours, theirs).unwrap_or(f64::INFINITY);
                let apart = pairs().map(apart).fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) });
                report.cuts_bit_exact += usize::from(exact);
                report.cuts_close += usize::from(as_many && apart <= tolerance);
                report.cuts_max_diff = report.cuts_max_diff.max(apart);
                // What another runtime has at this place of the network.
                let boundary = path[..cut].last().map_or(0, |segment| manifest.segments[*segment].to);
                let tensors = &manifest.boundaries[boundary].tensors;
                for ((tensor, ours), theirs) in tensors.iter().zip(&before).zip(golden.at(tensors, index)) {
                    let Some(theirs) = theirs.filter(|_| boundary > 0) else { continue };
                    let name = &manifest.tensors[*tensor].name;
                    let apart = difference(ours, theirs).with_context(|| format!("'{name}' is of another size"))?;
                    compared.insert(*tensor);
                    if apart.is_nan() || apart > report.tensors_max_diff {
                        (report.tensors_max_diff, report.tensors_max_at) = (apart, name.clone());
                    }
                    if cut == path.len() && (apart.is_nan() || apart > report.max_abs_diff) {
                        report.max_abs_diff = apart;
                    }
                }
            }
        }
    }
    drop(checked);
    report.tensors_compared = compared.len();
    let tile_px = deployment.input().dims.last().copied().unwrap_or(0);
    let samples = match (blob(&evidence.samples)?, blob(&evidence.labels)?) {
        (Some(sheet), Some(labels)) => samples::sheet(&sheet, &labels, tile_px)?,
        _ => Vec::new(),
    };
    report.samples = samples.len();
    output.progress(format_args!("answering {} labelled samples at every exit", samples.len()));
    let answered = if samples.is_empty() { 0 } else { exits.len() };
    let asked = output.count("answering samples", Unit::Steps, answered * samples.len());
    for exit in 0..answered {
        let end = network(manifest, exit).end;
        let mut right = 0;
        for sample in &samples {
            let logits = deployment.run(exit, 0..end, vec![sample.image.clone()], &Stop::never())?.output;
            right += usize::from(logits.first().is_some_and(|logits| answer(logits) == sample.label));
            asked.add(1);
        }
        report.accuracy_per_exit.push(right as f64 / samples.len().max(1) as f64);
    }

    drop(asked);
    if !samples.is_empty() {
        report.input_codecs = input_codecs(&deployment, &samples, output)?;
    }

    output.line(format_args!(
        "cuts      {} of {} bit-exact against the undivided network, each through the sandbox; {} but for rounding",
        report.cuts_bit_exact, report.cuts_checked, report.cuts_close
    ));
    if report.portable_segments > 0 {
        output.line(format_args!(
            "portable  {} segments in the sandbox, largest difference {:.1e} from the host's own arithmetic (tolerance \
             {PORTABLE_TOLERANCE:.0e})",
            report.portable_segments, report.cuts_max_diff
        ));
    }
    if report.golden_inputs > 0 {
        output.line(format_args!(
            "golden    largest difference {:.1e} over {} inputs, {:.1e} over {} tensors at cuts (tolerance {TOLERANCE:.0e})",
            report.max_abs_diff, report.golden_inputs, report.tensors_max_diff, report.tensors_compared
        ));
    } else {
        output.line("golden    none in the bundle: the inputs were made up, and no other runtime was compared with");
    }
    if report.samples == 0 {
        output.line("samples   none in the bundle: nobody knows how often it is right");
    }
    output.line(format_args!(
        "lossless  {} of {} activations the same behind raw and png",
        report.lossless_exact, report.lossless_checked
    ));
    for (name, accuracy) in exits.iter().zip(&report.accuracy_per_exit) {
        output.line(format_args!("{name:<9} {accuracy:.3} of {} labelled samples answered rightly", report.samples));
    }
    for row in &report.input_codecs {
        output.line(format_args!(
            "input as {:<5} costs the best exit {:.2} points of accuracy ({:.2} in the manifest), p90 {} bytes ({})",
            row.codec,
            row.lost_here * 100.0,
            row.lost_manifest * 100.0,
            row.p90_bytes_here,
            row.p90_bytes_manifest.map_or_else(|| "always".to_owned(), |bytes| format!("{bytes} in the manifest"))
        ));
    }
    output.result(&report)?;
    if report.lossless_exact != report.lossless_checked {
        bail!("{} activations changed in a lossless codec", report.lossless_checked - report.lossless_exact);
    }
    if let Some(row) =
        report.input_codecs.iter().find(|row| row.lost_here > row.lost_manifest.max(0.0) + CODED_TOLERANCE)
    {
        bail!(
            "the input as {} costs {:.4} of accuracy, {:.4} by the manifest",
            row.codec,
            row.lost_here,
            row.lost_manifest
        );
    }
    // A part of an ONNX file is put in order by itself, and rounds otherwise than the whole; so does the sandbox.
    let mut graphs = manifest.segments.iter().filter(|segment| segment.has_graph());
    let all_nnef = graphs.all(|segment| segment.graph_format == GraphFormat::Nnef.name());
    let unchanged = if all_nnef && report.portable_segments == 0 { report.cuts_bit_exact } else { report.cuts_close };
    if unchanged != report.cuts_checked {
        bail!("{} cuts change the answer", report.cuts_checked - unchanged);
    }
    if report.tensors_max_diff.is_nan() || report.tensors_max_diff > TOLERANCE {
        bail!("'{}' differs by {} from the golden one", report.tensors_max_at, report.tensors_max_diff);
    }
    Ok(())
}

/// Which segments of an exit's path are the network's; those before and behind are guests of its maker's own.
fn network(manifest: &Manifest, exit: usize) -> Range<usize> {
    let mut path = manifest.exits[exit].path.iter();
    let is_own = |segment: &&usize| !manifest.segments[**segment].has_graph();
    let before = path.clone().take_while(is_own).count();
    let behind = path.by_ref().rev().take_while(is_own).count();
    let end = manifest.exits[exit].path.len() - behind;
    before.min(end)..end
}

/// The network that a bundle was cut from.
pub(crate) fn undivided(bundle: &Bundle) -> Result<Graph> {
    Ok(source(bundle)?.whole()?)
}

/// As much of it as one exit needs.
pub(crate) fn undivided_to(bundle: &Bundle, exit: usize) -> Result<Graph> {
    let (imported, manifest) = (source(bundle)?, bundle.manifest());
    let is_given = |name: &String| manifest.outputs(exit).iter().any(|at| manifest.tensors[*at].name == *name);
    let outputs = imported.outputs().iter().enumerate().filter(|(_, port)| is_given(&port.name));
    Ok(imported.whole_to(&outputs.map(|(index, _)| index).collect::<Vec<_>>())?)
}

fn source(bundle: &Bundle) -> Result<Imported> {
    let source = bundle.manifest().evidence.source.as_ref();
    let source = source.ok_or_else(|| BadInput::error("the bundle does not hold the network it was cut from"))?;
    Ok(Imported::from_onnx(&bundle.blob(source)?, &Pins::default())?)
}

/// Some inputs of the right kind, neither all the same nor in order.
fn made_up(deployment: &Deployment) -> Result<Golden> {
    let count = MADE_UP_INPUTS as usize;
    let mut tensors = vec![None; deployment.tensors().len()];
    for (inputs, fact) in tensors.iter_mut().zip(deployment.inputs()) {
        *inputs = Some((1..=MADE_UP_INPUTS).map(|seed| example(fact, seed)).collect::<Result<_, _>>()?);
    }
    Ok(Golden { count, tensors })
}

/// The codecs in which the input may cross, on the test samples and the best exit.
fn input_codecs(deployment: &Deployment, samples: &[Sample], output: &Output) -> Result<Vec<InputCodec>> {
    let manifest = deployment.manifest();
    let exits = manifest.exits.iter().enumerate();
    let best = exits.max_by(|a, b| a.1.accuracy.total_cmp(&b.1.accuracy)).map(|(index, _)| index);
    let (exit, best) = best.map(|index| (&manifest.exits[index], index)).context("a bundle without exits")?;
    let at_input = exit.coded.iter().filter(|coded| coded.cut == 0);
    let known: Vec<_> = at_input.filter_map(|coded| Some((Codec::from_name(&coded.codec)?, coded.accuracy))).collect();
    let tried = output.count("coding inputs", Unit::Steps, (1 + known.len()) * samples.len());
    let right = |codec: Codec| -> Result<(f64, Vec<f64>)> {
        let (mut right, mut bytes) = (0, Vec::with_capacity(samples.len()));
        for sample in samples {
            let coded = codec::encode(&sample.image, codec);
            bytes.push(codec::wire_bytes(&coded, &[]) as f64);
            let input = codec::decode(&coded, &sample.image.fact())?;
            let logits = deployment.run(best, 0..network(manifest, best).end, vec![input], &Stop::never())?.output;
            right += usize::from(logits.first().is_some_and(|logits| answer(logits) == sample.label));
            tried.add(1);
        }
        Ok((right as f64 / samples.len().max(1) as f64, bytes))
    };
    let (exact, _) = right(Codec::Raw)?;
    known
        .into_iter()
        .map(|(codec, accuracy)| {
            let (here, mut bytes) = right(codec)?;
            let told = manifest.boundaries[0].coded.iter().find(|told| told.codec == codec.name());
            Ok(InputCodec {
                codec: codec.name().to_owned(),
                lost_manifest: exit.accuracy - accuracy,
                lost_here: exact - here,
                p90_bytes_manifest: told.map(|coded| coded.p90_bytes),
                p90_bytes_here: quantile(&mut bytes, 0.9) as u64,
            })
        })
        .collect()
}
