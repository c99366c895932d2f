//! `edgent inspect`: what a bundle consists of.

use crate::confined;
use crate::keys::{self, Signer};
use crate::output::{BadInput, Output};
use anyhow::Result;
use edgent_bundle::{Boundary, Bundle, Exit, Manifest, Tensor};
use edgent_link::Codec;
use edgent_nn::{ElementType, Fact};
use edgent_runtime::codec;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The bundle's folder, or FOLDER@NAME:VERSION.
    bundle: PathBuf,
}

#[derive(Serialize)]
struct Report<'a> {
    name: &'a str,
    digest: String,
    /// By their own account: `edgent verify --key` looks whether it is so.
    signatures: Vec<Signer>,
    segments: Vec<Row>,
    exits: Vec<ExitRow<'a>>,
    /// What goes in, comes out, or crosses between segments.
    tensors: &'a [Tensor],
    inputs: Vec<&'a str>,
    /// The blob that is the network it was cut from.
    source: Option<String>,
    crossings: Vec<Crossing>,
}

/// What crosses at a boundary by one codec.
#[derive(Serialize)]
struct Crossing {
    boundary: String,
    codec: &'static str,
    /// Bytes that nine in ten activations take at most; all, where that does not depend on what is in them.
    p90_bytes: u64,
    share_of_raw: f64,
    /// What it costs the exit that it costs most.
    accuracy_lost: f64,
}

#[derive(Serialize)]
struct Row {
    index: usize,
    name: String,
    operators: Vec<String>,
    input: String,
    output: String,
    format: String,
    tier: &'static str,
    output_bytes: usize,
    macs: u64,
    component_bytes: u64,
    digest: String,
}

#[derive(Serialize)]
struct ExitRow<'a> {
    name: &'a str,
    outputs: Vec<&'a str>,
    accuracy: f64,
    path: &'a [usize],
    macs: u64,
}

/// The command in a process of its own, which can open the bundle and nothing else.
pub(crate) fn confined(arguments: &Arguments) -> Result<ExitCode> {
    confined::on_bundle(&arguments.bundle, &[], None)
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let bundle = Bundle::open(&arguments.bundle).map_err(BadInput::error)?;
    let manifest = bundle.manifest();
    let report = Report {
        name: &manifest.name,
        digest: bundle.digest().to_string(),
        signatures: keys::signers(&bundle, &[]),
        segments: (0..manifest.segments.len()).map(|index| row(manifest, index)).collect(),
        exits: manifest
            .exits
            .iter()
            .enumerate()
            .map(|(index, exit)| ExitRow {
                name: &exit.name,
                outputs: manifest.outputs(index).iter().map(|at| manifest.tensors[*at].name.as_str()).collect(),
                accuracy: exit.accuracy,
                path: &exit.path,
                macs: exit.path.iter().map(|segment| manifest.segments[*segment].macs).sum(),
            })
            .collect(),
        tensors: &manifest.tensors,
        inputs: manifest.inputs().map(|tensor| tensor.name.as_str()).collect(),
        source: manifest.evidence.source.as_ref().map(|source| source.digest.to_string()),
        crossings: crossings(manifest)?,
    };
    output.line(format_args!("{} {}", report.name, report.digest));
    report.signatures.iter().for_each(|signer| output.line(signer));
    output.line(format_args!(
        "{:>3}  {:<42} {:<20} {:>10} {:>9} {:>10}  {:<8}  {:<12} operators",
        "", "segment", "gives", "bytes", "kMAC", "component", "tier", "digest"
    ));
    for row in &report.segments {
        output.line(format_args!(
            "{:>3}  {:<42} {:<20} {:>10} {:>9} {:>10}  {:<8}  {:<12} {}",
            row.index,
            row.name,
            row.output,
            row.output_bytes,
            row.macs / 1_000,
            row.component_bytes,
            row.tier,
            &row.digest["sha256:".len()..][..12],
            row.operators.join(" ")
        ));
    }
    for exit in &report.exits {
        let path: Vec<String> = exit.path.iter().map(usize::to_string).collect();
        output.line(format_args!(
            "{:<8} {}, {} kMAC, by segments {}",
            exit.outputs.join(" + "),
            if manifest.classes.is_empty() {
                "no classes".to_owned()
            } else {
                format!("accuracy {:.3}", exit.accuracy)
            },
            exit.macs / 1_000,
            path.join(" ")
        ));
    }
    output.line(format_args!(
        "{:<42} {:<7} {:>10} {:>8}  accuracy lost at most",
        "what crosses", "wire", "bytes", "of raw"
    ));
    for row in &report.crossings {
        output.line(format_args!(
            "{:<42} {:<7} {:>10} {:>6.1} %  {:.4}",
            row.boundary,
            row.codec,
            row.p90_bytes,
            row.share_of_raw * 100.0,
            row.accuracy_lost
        ));
    }
    output.result(&report)
}

/// Every codec that was measured at a boundary that is no exit's end.
fn crossings(manifest: &Manifest) -> Result<Vec<Crossing>> {
    let mut crossings = Vec::new();
    for (index, boundary) in manifest.boundaries.iter().enumerate() {
        let facts = facts(manifest, boundary)?;
        let facts: Vec<&Fact> = facts.iter().collect();
        let raw_bytes: usize = facts.iter().map(|fact| fact.bytes()).sum();
        let names: Vec<&str> = boundary.tensors.iter().map(|tensor| &manifest.tensors[*tensor].name[..]).collect();
        for codec in Codec::ALL {
            let here = |exit: &Exit, cut: usize| manifest.segments[exit.path[cut]].from == index;
            let lost = manifest.exits.iter().flat_map(|exit| {
                let coded = exit.coded.iter().filter(|coded| coded.codec == codec.name() && here(exit, coded.cut));
                coded.map(|coded| exit.accuracy - coded.accuracy)
            });
            let measured = boundary.coded.iter().find(|coded| coded.codec == codec.name()).map(|coded| coded.p90_bytes);
            let bytes = codec::fixed_bytes(&facts, codec).or(measured);
            if let Some((p90_bytes, accuracy_lost)) = bytes.zip(lost.reduce(f64::max)) {
                let share_of_raw = p90_bytes as f64 / raw_bytes.max(1) as f64;
                let (boundary, codec) = (names.join(" + "), codec.name());
                crossings.push(Crossing { boundary, codec, p90_bytes, share_of_raw, accuracy_lost });
            }
        }
    }
    Ok(crossings)
}

fn facts(manifest: &Manifest, boundary: &Boundary) -> Result<Vec<Fact>> {
    let fact = |tensor: &usize| {
        let Tensor { name, element_type, dims, .. } = &manifest.tensors[*tensor];
        let known = ElementType::from_name(element_type);
        let known =
            known.ok_or_else(|| BadInput::error(format!("'{name}' has elements of unknown type {element_type}")))?;
        Fact::new(known, dims).map_err(BadInput::error)
    };
    boundary.tensors.iter().map(fact).collect()
}

fn row(manifest: &Manifest, index: usize) -> Row {
    let segment = &manifest.segments[index];
    let tensors =
        |boundary: usize| manifest.boundaries[boundary].tensors.iter().map(|tensor| &manifest.tensors[*tensor]);
    let fact = |tensor: &Tensor| {
        let dims: Vec<String> = tensor.dims.iter().map(usize::to_string).collect();
        format!("{}[{}]", tensor.element_type, dims.join(","))
    };
    let bytes = |tensor: &Tensor| {
        let element_bytes = ElementType::from_name(&tensor.element_type).map_or(0, |t| t.bytes());
        tensor.dims.iter().product::<usize>() * element_bytes
    };
    let facts = |boundary: usize| tensors(boundary).map(fact).collect::<Vec<_>>().join(" + ");
    Row {
        index,
        name: segment.name.clone(),
        operators: segment.layers.iter().map(|layer| layer.operator.clone()).collect(),
        input: facts(segment.from),
        output: facts(segment.to),
        format: segment.graph_format.clone(),
        tier: segment.tier.name(),
        output_bytes: tensors(segment.to).map(bytes).sum(),
        macs: segment.macs,
        component_bytes: segment.component.bytes,
        digest: segment.component.digest.to_string(),
    }
}
