//! `edgent profile`: what layers cost on this host, and a bundle's segments.
//!
//! As in the paper, each type of layer has a linear regression on its sizes, fitted on this host to layers
//! made for the purpose; what a network takes is told from its manifest, without running it. Given a
//! bundle, its segments are measured too, and the two are compared.

mod features;
mod file;
mod sweep;

pub(crate) use file::Profile as ProfileFile;

use crate::bounds;
use crate::confined;
use crate::output::{BadInput, Output, quantile};
use crate::progress::Unit;
use anyhow::{Context, Result};
use edgent_bundle::{Bundle, Tier, split};
use edgent_link::CodecTime;
use edgent_nn::{
    Choice, ElementType, Fact, Graph, GraphFormat, Onnxruntime, Stop, Tensor, Threads, example, threads_or_max,
};
use edgent_planner::{Quality, Regression, Sample};
use edgent_runtime::trial::libraries;
use edgent_runtime::{Deployment, Terms, build_name, codec, confine};
use edgent_sandbox::{Engine, Limits, Segment};
use features::{FeatureSet, LayerType};
use file::{CodecTimes, FORMAT, Fitted, Measured, Profile, Times};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use sweep::{Effort, Sweep};

const FULL: Effort = Effort { sizes: 48, loads: 3, passes: 4, rounds: 10 };
const QUICK: Effort = Effort { sizes: 20, loads: 1, passes: 2, rounds: 4 };

/// Samples are dealt into so many parts; each is predicted from the others.
const FOLDS: usize = 4;

/// Runs of every exit of a bundle between two passes; the first of them is not counted.
const BUNDLE_ROUNDS: usize = 16;

/// How often a bundle is loaded.
const BUNDLE_LOADS: usize = 3;

/// A whole model's prediction that is off by more than this is called a miss.
const ERROR_MAX: f64 = 0.15;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A bundle, whose segments are measured as well as predicted.
    pub(crate) bundle: Option<PathBuf>,
    /// Write the profile to this file.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Measure few sizes a few times: seconds, and rougher predictions.
    #[arg(long)]
    quick: bool,
    /// Have onnxruntime, from this library, run those of the bundle's segments that it runs faster, and say which; as a
    /// host that is told so.
    #[arg(long, value_name = "FILE", requires = "bundle")]
    onnxruntime: Option<PathBuf>,
    /// Threads that one run of the bundle's segments may have, as a host's --threads: as many as pay, and say how many that
    /// are; 0 for one a processor. Predictions are of one.
    #[arg(long, value_name = "N", value_parser = bounds::threads, default_value_t = 1, requires = "bundle")]
    threads: usize,
}

/// The profile, and how its predictions compare with a bundle that was measured.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    profile: Profile,
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<Comparison>,
    /// Who runs the bundle's segments, where there are two who could.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    backends: Vec<BackendRow>,
    /// On how many threads the bundle's segments run, where they may have several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    threads: Vec<ThreadsRow>,
}

#[derive(Serialize)]
struct ThreadsRow {
    segment: String,
    threads: usize,
    /// By the number of threads; nothing, if it has no operator that is worth several.
    times_us: BTreeMap<usize, f64>,
}

#[derive(Serialize)]
struct BackendRow {
    segment: String,
    backend: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tract_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    onnxruntime_us: Option<f64>,
    /// Why onnxruntime does not run it at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[derive(Serialize)]
struct Comparison {
    segments: Vec<Compared>,
    exits: Vec<Compared>,
    /// Preparing all segments, once they have been read and checked.
    load: Compared,
    /// The median of the segments' errors, by set of features.
    median_segment_error: BTreeMap<FeatureSet, f64>,
    /// The largest of the exits' errors, by set of features.
    max_exit_error: BTreeMap<FeatureSet, f64>,
}

#[derive(Serialize)]
struct Compared {
    name: String,
    #[serde(flatten)]
    measured: Times,
    predicted_us: BTreeMap<FeatureSet, f64>,
    /// (predicted − measured) / measured.
    relative_error: BTreeMap<FeatureSet, f64>,
}

/// The command in a process of its own, which can open the bundle, if there is one, and write the profile.
pub(crate) fn confined(arguments: &Arguments) -> Result<ExitCode> {
    let bundle = arguments.bundle.as_ref().context("without a bundle, nothing foreign is read")?;
    let libraries: Vec<PathBuf> = arguments.onnxruntime.iter().flat_map(|library| libraries(library)).collect();
    let libraries: Vec<&Path> = libraries.iter().map(PathBuf::as_path).collect();
    confined::on_bundle(bundle, &libraries, arguments.out.as_deref())
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let engine = Engine::new()?;
    let bundle = arguments.bundle.as_ref().map(|dir| Bundle::open(dir).map_err(BadInput::error)).transpose()?;
    let onnxruntime = arguments.onnxruntime.as_deref().map(Onnxruntime::open).transpose().map_err(BadInput::error)?;
    let terms = Terms { onnxruntime, threads: threads_or_max(arguments.threads), ..Terms::default() };
    let mut chain = bundle.as_ref().map(|bundle| Chain::new(bundle, &engine, &terms)).transpose()?;
    let backends = chain.as_ref().map_or_else(Vec::new, |chain| backends(&chain.deployment));
    let threads = chain.as_ref().map_or_else(Vec::new, |chain| threads(&chain.deployment));
    let effort = if arguments.quick { QUICK } else { FULL };
    output.progress(format_args!("making layers of {} sizes a type", effort.sizes));
    let mut sweep = Sweep::new(&engine, effort)?;
    output.progress("measuring them");
    let measured = output.count("measuring layers", Unit::Steps, sweep.steps());
    sweep.run(|| measured.add(1), || chain.as_mut().map_or(Ok(()), Chain::run))?;
    drop(measured);
    let (profile, whole) = fit(sweep, chain)?;
    let comparison = bundle.as_ref().zip(whole).map(|(bundle, whole)| compare(&profile, bundle, whole)).transpose()?;
    if let Some(path) = &arguments.out {
        let text = serde_json::to_vec_pretty(&profile)?;
        Profile::parse(&text).context("the profile that was measured cannot be read")?;
        std::fs::write(path, text).with_context(|| format!("{}", path.display()))?;
    }
    let report = Report { profile, comparison, backends, threads };
    print(&report, output);
    output.result(&report)
}

impl Compared {
    fn new(name: &str, measured: Times, predicted_us: BTreeMap<FeatureSet, f64>) -> Self {
        let error = |us: &f64| (us - measured.p50_us) / measured.p50_us;
        let relative_error = predicted_us.iter().map(|(set, us)| (*set, error(us))).collect();
        Self { name: name.to_owned(), measured, predicted_us, relative_error }
    }
}

/// Who runs each segment, of those for which there was a choice.
fn backends(deployment: &Deployment) -> Vec<BackendRow> {
    let row = |(index, choice): (usize, &Choice)| {
        let (times, why) = (choice.times_us.as_ref().ok(), choice.times_us.as_ref().err());
        BackendRow {
            segment: deployment.manifest().segments[index].name.clone(),
            backend: choice.backend.name(),
            tract_us: times.map(|[tract_us, _]| *tract_us),
            onnxruntime_us: times.map(|[_, onnxruntime_us]| *onnxruntime_us),
            why: why.cloned(),
        }
    };
    deployment.choices().map(row).collect()
}

/// On how many threads each segment runs, of those for which that was measured.
fn threads(deployment: &Deployment) -> Vec<ThreadsRow> {
    let name = |index: usize| deployment.manifest().segments[index].name.clone();
    let row = |(index, chosen): (usize, Threads)| ThreadsRow {
        segment: name(index),
        threads: chosen.threads,
        times_us: chosen.times_us.into_iter().collect(),
    };
    deployment.threads().map(row).collect()
}

/// A bundle's segments, run exit by exit as requests run them.
struct Chain {
    deployment: Deployment,
    input: Vec<Tensor>,
    load_us: Vec<f64>,
    segments_us: Vec<Vec<f64>>,
    exits_us: Vec<Vec<f64>>,
}

impl Chain {
    fn new(bundle: &Bundle, engine: &Engine, terms: &Terms) -> Result<Self> {
        let deployment = Deployment::prepare_on(bundle, engine, terms)?;
        confine::granted_time();
        deployment.choose_threads();
        let load_us = (0..BUNDLE_LOADS).map(|_| load_us(bundle, engine)).collect::<Result<_>>()?;
        // Neither all the same nor in order: like an image.
        let like_an_image = |fact: &Fact| match fact.element_type {
            ElementType::U8 => {
                let bytes: Vec<u8> = (0..fact.bytes()).map(|i| (i * 7_919 % 251) as u8).collect();
                Tensor::from_bytes(fact.element_type, &fact.dims, &bytes)
            }
            _ => example(fact, 1),
        };
        let input = deployment.inputs().map(like_an_image).collect::<Result<_, _>>()?;
        let (segments, exits) = (deployment.manifest().segments.len(), deployment.manifest().exits.len());
        let (segments_us, exits_us) = (vec![Vec::new(); segments], vec![Vec::new(); exits]);
        Ok(Self { deployment, input, load_us, segments_us, exits_us })
    }

    fn run(&mut self) -> Result<()> {
        for round in 0..=BUNDLE_ROUNDS {
            for (index, exit) in self.deployment.manifest().exits.iter().enumerate() {
                let start = Instant::now();
                let ran = self.deployment.run(index, 0..exit.path.len(), self.input.clone(), &Stop::never())?;
                let us = start.elapsed().as_secs_f64() * 1e6;
                if round > 0 {
                    self.exits_us[index].push(us);
                    ran.segments_us.into_iter().for_each(|(segment, us)| self.segments_us[segment].push(us));
                }
            }
        }
        Ok(())
    }
}

/// What a bundle took that is not in its profile.
struct Whole {
    load: Times,
    exits: Vec<Times>,
}

/// The time that preparing a bundle's segments takes, once they have been read and checked.
fn load_us(bundle: &Bundle, engine: &Engine) -> Result<f64> {
    let mut us = 0.0;
    // Graphs of portable segments are read in the sandbox alone.
    for described in bundle.manifest().segments.iter().filter(|segment| segment.tier == Tier::Native) {
        let component = bundle.blob(&described.component)?;
        let (code, graph) = split(&component)?;
        let code = engine.compile(&code)?;
        let format = GraphFormat::from_name(&described.graph_format).context("a graph in an unknown format")?;
        let start = Instant::now();
        let graph = Graph::load(graph, format)?;
        let segment = Segment::new(&described.name, &code, graph, Limits::default())?;
        us += start.elapsed().as_secs_f64() * 1e6;
        drop(segment);
    }
    Ok(us)
}

/// The profile of what was measured.
fn fit(sweep: Sweep, chain: Option<Chain>) -> Result<(Profile, Option<Whole>)> {
    let (call_us, measured) = sweep.results();
    let mut layers = BTreeMap::<_, BTreeMap<_, _>>::new();
    for layer_type in LayerType::ALL {
        let of_type: Vec<_> = measured.iter().filter(|measured| LayerType::of(&measured.layer) == layer_type).collect();
        for set in FeatureSet::ALL {
            let sample = |m: &&sweep::Measured| Sample { features: set.values(&m.layer), us: m.run_us };
            let samples: Vec<_> = of_type.iter().map(sample).collect();
            let fitted = fitted(&samples, set.names(layer_type))
                .with_context(|| format!("{} by {}", layer_type.name(), set.name()))?;
            layers.entry(layer_type).or_default().insert(set, fitted);
        }
    }
    let mut load = BTreeMap::new();
    for set in FeatureSet::ALL {
        let sample = |m: &sweep::Measured| Sample {
            features: set.load_values(m.graph_bytes as u64, std::slice::from_ref(&m.layer)),
            us: m.load_us,
        };
        let samples: Vec<_> = measured.iter().map(sample).collect();
        let fitted = fitted(&samples, set.load_names()).with_context(|| format!("load by {}", set.name()))?;
        load.insert(set, fitted);
    }
    let times = |all: Vec<Vec<f64>>| all.into_iter().map(times).collect::<Vec<_>>();
    let (bundle, whole) = match chain {
        Some(Chain { deployment, segments_us, exits_us, load_us, .. }) => {
            let digest = deployment.digest().to_string();
            let whole = Whole { load: self::times(load_us), exits: times(exits_us) };
            (Some(Measured { digest, segments: times(segments_us) }), Some(whole))
        }
        None => (None, None),
    };
    let (host_build, codec_us_per_mib) = (build_name(), codec::u8_us_per_mib());
    let codecs = codec::times().iter().map(|time| {
        let CodecTime { codec, encode_us_per_mib, decode_us_per_mib } = *time;
        (codec.name().to_owned(), CodecTimes { encode_us_per_mib, decode_us_per_mib })
    });
    let codecs = codecs.collect();
    Ok((Profile { format: FORMAT, host_build, call_us, codec_us_per_mib, codecs, layers, load, bundle }, whole))
}

fn fitted(samples: &[Sample], features: &[&str]) -> Result<Fitted> {
    let regression = Regression::fit(samples)?;
    let Quality { r2, median_relative_error } = Regression::held_out_quality(samples, FOLDS)?;
    Ok(Fitted {
        features: features.iter().map(|name| (*name).to_owned()).collect(),
        coefficients_us: regression.coefficients().to_vec(),
        constant_us: regression.constant_us(),
        samples: samples.len(),
        r2,
        median_relative_error,
    })
}

fn times(mut us: Vec<f64>) -> Times {
    Times { p50_us: quantile(&mut us, 0.5), p90_us: quantile(&mut us, 0.9), runs: us.len() }
}

fn compare(profile: &Profile, bundle: &Bundle, whole: Whole) -> Result<Comparison> {
    let manifest = bundle.manifest();
    let predicted = FeatureSet::ALL
        .into_iter()
        .map(|set| Ok((set, profile.predicted_us(manifest, set)?)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    let compared = |name: &str, measured: Times, path: &[usize]| {
        let sum = |segments_us: &Vec<f64>| path.iter().map(|segment| segments_us[*segment]).sum::<f64>();
        Compared::new(name, measured, predicted.iter().map(|(set, us)| (*set, sum(us))).collect())
    };
    let load = FeatureSet::ALL.into_iter().map(|set| Ok((set, profile.load_us(manifest, set)?)));
    let load = Compared::new("model load", whole.load, load.collect::<Result<_>>()?);
    let measured = profile.bundle.iter().flat_map(|bundle| &bundle.segments).enumerate();
    let segments: Vec<_> =
        measured.map(|(index, times)| compared(&manifest.segments[index].name, *times, &[index])).collect();
    let exits = manifest.exits.iter().zip(whole.exits).map(|(exit, times)| compared(&exit.name, times, &exit.path));
    let exits: Vec<_> = exits.collect();
    let over = |all: &[Compared], q: f64| {
        let of_set = |set: FeatureSet| {
            let mut errors: Vec<f64> = all.iter().map(|compared| compared.relative_error[&set].abs()).collect();
            (set, quantile(&mut errors, q))
        };
        FeatureSet::ALL.into_iter().map(of_set).collect()
    };
    Ok(Comparison {
        median_segment_error: over(&segments, 0.5),
        max_exit_error: over(&exits, 1.0),
        segments,
        exits,
        load,
    })
}

fn print(Report { profile, comparison, backends, threads }: &Report, output: &Output) {
    let row = |name: &str, set: &str, fitted: &Fitted| {
        output.line(format_args!(
            "{name:<16} {set:<6} {:>7} {:>7.3} {:>8.1} %  {}",
            fitted.samples,
            fitted.r2,
            fitted.median_relative_error * 100.0,
            fitted.features.join(", ")
        ));
    };
    output.line("R² and the median relative error are of layers that were held out");
    output.line("layer            from   samples      R²      error  features");
    for (layer_type, sets) in &profile.layers {
        sets.iter().for_each(|(set, fitted)| row(layer_type.name(), set.name(), fitted));
    }
    profile.load.iter().for_each(|(set, fitted)| row("model load", set.name(), fitted));
    output.line(format_args!(
        "dropout costs nothing: exporters leave it out; a call through a component {:.1} us",
        profile.call_us
    ));
    output.line("codec      writing      reading  (us for each MiB that an activation has as it is)");
    for (codec, CodecTimes { encode_us_per_mib, decode_us_per_mib }) in &profile.codecs {
        output.line(format_args!("{codec:<6} {encode_us_per_mib:>11.0} {decode_us_per_mib:>12.0}"));
    }
    if !backends.is_empty() {
        output.line(format_args!("{:<40} {:<12} {:>9} {:>14}", "segment", "run by", "tract us", "onnxruntime us"));
    }
    for BackendRow { segment, backend, tract_us, onnxruntime_us, why } in backends {
        let times = tract_us.zip(*onnxruntime_us).map(|(ours, theirs)| format!("{ours:>9.1} {theirs:>14.1}"));
        let told = times.or_else(|| why.clone()).unwrap_or_default();
        output.line(format_args!("{segment:<40} {backend:<12} {told}"));
    }
    if !threads.is_empty() {
        output.line(format_args!("{:<40} {:>7}  us on so many", "segment", "threads"));
    }
    for ThreadsRow { segment, threads, times_us } in threads {
        let times: Vec<String> = times_us.iter().map(|(count, us)| format!("{count}: {us:.1}")).collect();
        let told = if times.is_empty() { "nothing that is worth several".to_owned() } else { times.join("  ") };
        output.line(format_args!("{segment:<40} {threads:>7}  {told}"));
    }
    let Some(comparison) = comparison else { return };
    output.line(format_args!(
        "{:<40} {:>9} {:>9} {:>5} {:>10} {:>8} {:>10} {:>8}",
        "segment", "p50 us", "p90 us", "runs", "by work", "error", "by paper", "error"
    ));
    for row in comparison.segments.iter().chain(&comparison.exits).chain([&comparison.load]) {
        let (work, paper) = (FeatureSet::Work, FeatureSet::Paper);
        output.line(format_args!(
            "{:<40} {:>9.1} {:>9.1} {:>5} {:>10.1} {:>+7.1}% {:>10.1} {:>+7.1}%",
            row.name,
            row.measured.p50_us,
            row.measured.p90_us,
            row.measured.runs,
            row.predicted_us[&work],
            row.relative_error[&work] * 100.0,
            row.predicted_us[&paper],
            row.relative_error[&paper] * 100.0
        ));
    }
    for (set, worst) in &comparison.max_exit_error {
        let verdict = if *worst <= ERROR_MAX { "within" } else { "MISSES" };
        output.line(format_args!(
            "by {:<6} segments off by {:.1} % (median), whole exits by {:.1} % at most: {verdict} the goal of {:.0} %",
            set.name(),
            comparison.median_segment_error[set] * 100.0,
            worst * 100.0,
            ERROR_MAX * 100.0
        ));
    }
}
