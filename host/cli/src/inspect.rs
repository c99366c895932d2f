//! `edgent inspect`: what a bundle consists of.

use crate::output::{BadInput, Output};
use anyhow::Result;
use edgent_bundle::{Bundle, Manifest};
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The bundle's folder, or FOLDER@NAME:VERSION.
    bundle: PathBuf,
}

#[derive(Serialize)]
struct Report<'a> {
    name: &'a str,
    digest: String,
    segments: Vec<Row>,
    exits: Vec<ExitRow<'a>>,
}

#[derive(Serialize)]
struct Row {
    index: usize,
    name: String,
    operators: Vec<String>,
    input: String,
    output: String,
    output_bytes: usize,
    macs: u64,
    component_bytes: u64,
    digest: String,
}

#[derive(Serialize)]
struct ExitRow<'a> {
    name: &'a str,
    accuracy: f64,
    path: &'a [usize],
    macs: u64,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let bundle = Bundle::open(&arguments.bundle).map_err(BadInput::error)?;
    let manifest = bundle.manifest();
    let report = Report {
        name: &manifest.name,
        digest: bundle.digest().to_string(),
        segments: (0..manifest.segments.len()).map(|index| row(manifest, index)).collect(),
        exits: manifest
            .exits
            .iter()
            .map(|exit| ExitRow {
                name: &exit.name,
                accuracy: exit.accuracy,
                path: &exit.path,
                macs: exit.path.iter().map(|segment| manifest.segments[*segment].macs).sum(),
            })
            .collect(),
    };
    output.line(format_args!("{} {}", report.name, report.digest));
    output.line(format_args!(
        "{:>3}  {:<42} {:<20} {:>10} {:>9} {:>10}  {:<12} operators",
        "", "segment", "gives", "bytes", "kMAC", "component", "digest"
    ));
    for row in &report.segments {
        output.line(format_args!(
            "{:>3}  {:<42} {:<20} {:>10} {:>9} {:>10}  {:<12} {}",
            row.index,
            row.name,
            row.output,
            row.output_bytes,
            row.macs / 1_000,
            row.component_bytes,
            &row.digest["sha256:".len()..][..12],
            row.operators.join(" ")
        ));
    }
    for exit in &report.exits {
        let path: Vec<String> = exit.path.iter().map(usize::to_string).collect();
        output.line(format_args!(
            "{:<8} accuracy {:.3}, {} kMAC, by segments {}",
            exit.name,
            exit.accuracy,
            exit.macs / 1_000,
            path.join(" ")
        ));
    }
    output.result(&report)
}

fn row(manifest: &Manifest, index: usize) -> Row {
    let segment = &manifest.segments[index];
    let fact = |boundary: usize| {
        let boundary = &manifest.boundaries[boundary];
        let dims: Vec<String> = boundary.dims.iter().map(usize::to_string).collect();
        format!("{}[{}]", boundary.element_type, dims.join(","))
    };
    let gives = &manifest.boundaries[segment.to];
    let element_bytes = edgent_nn::ElementType::from_name(&gives.element_type).map_or(0, |t| t.bytes());
    Row {
        index,
        name: segment.name.clone(),
        operators: segment.layers.iter().map(|layer| layer.operator.clone()).collect(),
        input: fact(segment.from),
        output: fact(segment.to),
        output_bytes: gives.dims.iter().product::<usize>() * element_bytes,
        macs: segment.macs,
        component_bytes: segment.component.bytes,
        digest: segment.component.digest.to_string(),
    }
}
