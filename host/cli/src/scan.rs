//! `edgent scan`: what a bundle or an ONNX file asks for, what it costs, and whether a host would take it.
//!
//! Its trial runs in a process of its own, as a host's does; what is read and shown here comes from a second one.

use crate::build::TierName;
use crate::caps::Caps;
use crate::confined::{self, Bounds};
use crate::output::{BadInput, Output};
use anyhow::Result;
use edgent_bundle::{Bundle, Tier, imported_functions, split};
use edgent_nn::{ElementType, Fact, Graph, GraphFormat, Imported, Pins, Survey, operators};
use edgent_runtime::confine;
use edgent_runtime::trial::{Job, Trial};
use edgent_runtime::{Admitted, Policy, Tiers, components_bytes, macs, memory_bytes};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What a component may import without anybody's leave.
const GIVEN: &str = "wasi:nn/";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The bundle's folder, or FOLDER@NAME:VERSION; or an ONNX file.
    #[arg(value_name = "BUNDLE|MODEL.onnx")]
    what: PathBuf,
    /// As a host sees it that runs everything in the sandbox, whatever the bundle says: it reads no graph.
    #[arg(long, value_enum)]
    tier: Option<TierName>,
    #[command(flatten)]
    caps: Caps,
    #[command(flatten)]
    bounds: Bounds,
    /// As a host sees it that has this policy, when the bundle is pushed to it.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// What the trial ended with; told to the process that reads.
    #[arg(long, hide = true)]
    trial: Option<String>,
    /// What the policy says; told in the same way.
    #[arg(long, hide = true)]
    judged: Option<String>,
}

/// What a policy says of a bundle.
#[derive(Serialize, Deserialize)]
struct Judged {
    /// Who signed it, of those who are trusted there.
    publisher: Option<String>,
    version: Option<u64>,
    tiers: Tiers,
    /// Whether onnxruntime may read it, where a host has that.
    onnxruntime: bool,
    /// The publisher's limits that hold while it runs; what the manifest breaks is a refusal.
    macs_max: Option<u64>,
    workers_share: f64,
}

#[derive(Serialize)]
struct Report {
    /// `bundle` or `onnx`.
    kind: &'static str,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    /// Whether a host with these limits would take it; an ONNX file, once built.
    admitted: bool,
    /// Why not.
    refused: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Judged>,
    /// On the way to the exit that takes most; none if the graph could not be loaded.
    macs: Option<u64>,
    bytes: u64,
    memory_bytes: Option<u64>,
    /// What the components import besides `wasi:nn`: a host gives them nothing else.
    other_imports: BTreeSet<String>,
    operators: BTreeMap<String, usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    segments: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    onnx: Option<Onnx>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    tier: &'static str,
    imports: BTreeMap<String, Vec<String>>,
    macs_manifest: u64,
    macs_graph: Option<u64>,
    largest_tensor_bytes: Option<u64>,
    component_bytes: u64,
    memory_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Onnx {
    producer: String,
    opsets: BTreeMap<String, i64>,
    custom_domains: BTreeSet<String>,
    external_data: BTreeSet<String>,
    depth: usize,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

/// Has it tried, then read, each in a process of its own.
pub(crate) fn confined(arguments: &Arguments) -> Result<ExitCode> {
    let trial = Trial::new(confine::this_program()?, arguments.bounds.for_trial(), None);
    let policy = arguments.policy.as_deref().map(Policy::read).transpose().map_err(BadInput::error)?;
    let mut told = Vec::new();
    let (tried, folder, bytes) = if arguments.what.is_file() {
        if policy.is_some() {
            return Err(BadInput::error("--policy is about bundles: an ONNX file is signed by nobody"));
        }
        let path = fs::canonicalize(&arguments.what).map_err(BadInput::error)?;
        let bytes = fs::metadata(&path).map_err(BadInput::error)?.len();
        let tried = trial.run(&Job::Onnx { path: path.clone(), macs_max: arguments.caps.macs_max }, &path, bytes);
        (tried.map_err(|error| error.to_string()), path, bytes)
    } else {
        let bundle = Bundle::open(&arguments.what).map_err(BadInput::error)?;
        let (mut admission, mut tiers) = (arguments.caps.admission(), tiers(arguments));
        let refused = match policy.map(|policy| policy.look_at(&bundle)).transpose() {
            Ok(None) => None,
            Ok(Some(admitted)) => {
                admission = admitted.within(admission);
                tiers = if admitted.tiers == Tiers::Portable { Tiers::Portable } else { tiers };
                told = vec!["--judged".into(), serde_json::to_string(&Judged::of(admitted))?.into()];
                None
            }
            // Nothing of it would be compiled then, and nothing is here.
            Err(refusal) => Some(refusal.to_string()),
        };
        let tried = match refused {
            Some(why) => Err(why),
            None => trial.bundle(&bundle, &admission, tiers, false).map_err(|error| error.to_string()),
        };
        (tried, bundle.dir().to_owned(), components_bytes(bundle.manifest()))
    };
    told.extend(["--trial".into(), OsString::from(tried.err().unwrap_or_default())]);
    confined::again_told(arguments.bounds, bytes, &[&folder], &[], &told)
}

impl Judged {
    fn of(admitted: Admitted) -> Self {
        let Admitted { by, tiers, onnxruntime, macs_max, workers_share } = admitted;
        let (publisher, version) = by.map(|signed| (signed.publisher, signed.version)).unzip();
        Self { publisher, version, tiers, onnxruntime, macs_max, workers_share }
    }
}

fn tiers(arguments: &Arguments) -> Tiers {
    if arguments.tier == Some(TierName::Portable) { Tiers::Portable } else { Tiers::AsBuilt }
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let refused = arguments.trial.clone().filter(|said| !said.is_empty());
    let report = if arguments.what.is_file() { onnx(&arguments.what, refused)? } else { bundle(arguments, refused)? };
    show(&report, output);
    output.result(&report)
}

fn bundle(arguments: &Arguments, refused: Option<String>) -> Result<Report> {
    let bundle = Bundle::open(&arguments.what).map_err(BadInput::error)?;
    let manifest = bundle.manifest();
    let facts = manifest.tensors.iter().map(|tensor| {
        let element_type = ElementType::from_name(&tensor.element_type)?;
        Fact::new(element_type, &tensor.dims).ok()
    });
    let facts: Option<Vec<Fact>> = facts.collect();
    let judged: Option<Judged> = arguments.judged.as_deref().map(serde_json::from_str).transpose()?;
    let by_policy = judged.as_ref().map_or(Tiers::AsBuilt, |judged| judged.tiers);
    let tiers = if by_policy == Tiers::Portable { by_policy } else { tiers(arguments) };
    let (mut all, mut rows, mut costs) = (BTreeMap::new(), Vec::new(), Vec::new());
    for segment in &manifest.segments {
        let component = bundle.blob(&segment.component)?;
        let (code, graph) = split(&component).map_err(BadInput::error)?;
        let tier = tiers.of(segment);
        // Loaded only if a trial showed that loading ends; and a portable segment's graph by no host.
        let loaded = match tier {
            Tier::Native if refused.is_none() => {
                let format = GraphFormat::from_name(&segment.graph_format).unwrap_or(GraphFormat::Nnef);
                Some((Graph::load(graph, format)?.cost(), operators(graph)?))
            }
            _ => None,
        };
        let cost = loaded.as_ref().map(|(cost, _)| *cost);
        costs.push(cost.unwrap_or_default());
        match loaded {
            Some((_, found)) => found.into_iter().for_each(|(name, count)| *all.entry(name).or_default() += count),
            None => segment.layers.iter().for_each(|layer| *all.entry(layer.operator.clone()).or_default() += 1),
        }
        rows.push(Row {
            name: segment.name.clone(),
            tier: tier.name(),
            imports: imported_functions(&code).map_err(BadInput::error)?,
            macs_manifest: segment.macs,
            macs_graph: cost.map(|cost| cost.macs),
            largest_tensor_bytes: cost.map(|cost| cost.largest_bytes),
            component_bytes: segment.component.bytes,
            memory_bytes: facts.as_ref().map(|facts| memory_bytes(segment, facts, tier)),
        });
    }
    let names = rows.iter().flat_map(|row| row.imports.keys());
    Ok(Report {
        kind: "bundle",
        name: manifest.name.clone(),
        digest: Some(bundle.digest().to_string()),
        admitted: refused.is_none(),
        refused,
        policy: judged,
        macs: Some(macs(manifest, &costs)),
        bytes: components_bytes(manifest),
        memory_bytes: rows.iter().map(|row| row.memory_bytes).sum(),
        other_imports: names.filter(|name| !name.starts_with(GIVEN)).cloned().collect(),
        operators: all,
        segments: rows,
        onnx: None,
    })
}

fn onnx(path: &Path, refused: Option<String>) -> Result<Report> {
    let bytes = fs::read(path).map_err(BadInput::error)?;
    let survey = Survey::of_onnx(&bytes).map_err(|e| match &refused {
        Some(why) => BadInput::error(format!("{}: {why}", path.display())),
        None => BadInput::error(format!("{}: {e}", path.display())),
    })?;
    // Imported only if a trial showed that importing ends.
    let macs = match refused {
        None => Some(Imported::from_onnx(&bytes, &Pins::default())?.whole()?.cost().macs),
        Some(_) => None,
    };
    confine::granted_time();
    Ok(Report {
        kind: "onnx",
        name: path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        digest: None,
        admitted: refused.is_none(),
        refused,
        policy: None,
        macs,
        bytes: survey.weights_bytes,
        memory_bytes: None,
        other_imports: BTreeSet::new(),
        operators: survey.operators,
        segments: Vec::new(),
        onnx: Some(Onnx {
            producer: survey.producer,
            opsets: survey.opsets,
            custom_domains: survey.custom_domains,
            external_data: survey.external_data,
            depth: survey.depth,
            inputs: survey.inputs,
            outputs: survey.outputs,
        }),
    })
}

/// A list for people; names are a stranger's, and must not command a terminal.
fn listed<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.escape_debug().to_string()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn show(report: &Report, output: &Output) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    output.line(format_args!("{} ({})", report.name.escape_debug(), report.kind));
    if let Some(onnx) = &report.onnx {
        let opsets: Vec<String> =
            onnx.opsets.iter().map(|(domain, version)| format!("{} {version}", domain.escape_debug())).collect();
        output.line(format_args!(
            "made by         {}, operators of {}",
            onnx.producer.escape_debug(),
            opsets.join(", ")
        ));
        output.line(format_args!("takes           {}", listed(&onnx.inputs)));
        output.line(format_args!("gives           {}", listed(&onnx.outputs)));
        output.line(format_args!("custom domains  {}", listed(&onnx.custom_domains)));
        output.line(format_args!("external data   {}", listed(&onnx.external_data)));
    } else {
        let mut asked: BTreeMap<&String, BTreeSet<&String>> = BTreeMap::new();
        for (interface, functions) in report.segments.iter().flat_map(|row| &row.imports) {
            asked.entry(interface).or_default().extend(functions);
        }
        for (interface, functions) in asked {
            output.line(format_args!("asks for        {}: {}", interface.escape_debug(), listed(functions)));
        }
        output.line(format_args!("beyond wasi:nn  {}", listed(&report.other_imports)));
        let portable = report.segments.iter().filter(|row| row.tier == Tier::Portable.name()).count();
        output.line(format_args!(
            "tiers           {} segments native, {portable} portable",
            report.segments.len() - portable
        ));
    }
    let operators: Vec<String> =
        report.operators.iter().map(|(name, count)| format!("{} × {count}", name.escape_debug())).collect();
    output.line(format_args!("operators       {}", operators.join(", ")));
    let macs = report.macs.map_or_else(|| "unknown".to_owned(), |macs| format!("{:.3}", macs as f64 / 1e9));
    output.line(format_args!("an answer takes {macs} billion multiply-accumulates"));
    output.line(format_args!("weights         {:.1} MiB", mib(report.bytes)));
    if let Some(bytes) = report.memory_bytes {
        output.line(format_args!("memory          about {:.1} MiB", mib(bytes)));
    }
    if let Some(Judged { publisher, version, onnxruntime, macs_max, workers_share, .. }) = &report.policy {
        let by = publisher.as_ref().map_or_else(|| "nobody who is trusted".to_owned(), |name| format!("'{name}'"));
        let version = version.map_or_else(String::new, |version| format!(" as version {version}"));
        let macs = macs_max.map_or_else(String::new, |macs| format!(", up to {macs} multiply-accumulates an answer"));
        let share = format!(", {:.0} % of an edge's threads for a model", workers_share * 100.0);
        let beside = if *onnxruntime { ", may be run by onnxruntime" } else { "" };
        output.line(format_args!("by the policy   signed by {}{version}{macs}{share}{beside}", by.escape_debug()));
    }
    output.line(match &report.refused {
        None => "would be taken".to_owned(),
        Some(why) => format!("would be refused: {why}"),
    });
}
