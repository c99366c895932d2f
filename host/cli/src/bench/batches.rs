//! What it is worth to have several images computed in one run instead of one after the other.
//!
//! The weights are read once for all of them, and what it costs to begin an operator is there once. For that, each image waits
//! for the others: the last of a batch that is there at once is answered when all are. One after the other, the first has its
//! answer after one run, and the last after as many runs as there are images.

use super::models::{Net, Nets};
use crate::output::{Output, quantile};
use anyhow::Result;
use edgent_nn::{Context, Pins, Stop, Tensor};
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

const ROUNDS_MAX: usize = 100;
const ROUNDS_MIN: usize = 7;
const WARM_UP: usize = 1;
const TURNS: Duration = Duration::from_secs(8);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    nets: Nets,
    /// How many images at once.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2, 4, 8], value_parser = batch)]
    sizes: Vec<usize>,
    /// Threads that a run may have; one, unless this says more.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = crate::bounds::threads)]
    threads: usize,
}

const BATCH_MAX: usize = 64;

fn batch(text: &str) -> Result<usize, String> {
    let given = text.parse().ok().filter(|given| (1..=BATCH_MAX).contains(given));
    given.ok_or_else(|| format!("must be a whole number from 1 to {BATCH_MAX}"))
}

#[derive(Serialize)]
struct Report {
    threads: usize,
    rows: Vec<Row>,
    /// Networks that are of one image at a time by themselves.
    unbatchable: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    model: String,
    batches: Vec<Batch>,
}

#[derive(Serialize)]
struct Batch {
    images: usize,
    /// How long all of them take, in the median: what the slowest waits.
    ms: f64,
    images_per_s: f64,
    /// How many times as many a second as one by one, in neighbouring turns.
    gain: f64,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let columns: String = arguments.sizes.iter().map(|images| format!("{:>27}", format!("{images} at once"))).collect();
    output.line(format_args!(
        "network           {columns}\n(images a second, how long all take in ms, times as many as one by one)"
    ));
    let (mut rows, mut unbatchable) = (Vec::new(), Vec::new());
    for path in arguments.nets.files()? {
        match measure(&path, arguments) {
            Ok(row) => {
                let column =
                    |batch: &Batch| format!("{:>9.1} {:>9.3} {:>6.2}x", batch.images_per_s, batch.ms, batch.gain);
                output.line(format_args!("{:<18}{}", row.model, row.batches.iter().map(column).collect::<String>()));
                rows.push(row);
            }
            Err(error) => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                output.line(format_args!("{name:<18} is of one image at a time: {error:#}"));
                unbatchable.push(name);
            }
        }
    }
    output.result(&Report { threads: arguments.threads, rows, unbatchable })
}

/// All sizes take turns, each beside single images.
fn measure(path: &Path, arguments: &Arguments) -> Result<Row> {
    let threads = arguments.threads.max(1);
    let open = |batch| -> Result<_> {
        let net = Net::pinned(path, &Pins { batch: Some(batch), ..Pins::default() })?;
        Ok((net.imported.whole()?.context()?.on_threads(threads), net.inputs, net.name))
    };
    let (mut single, input, model) = open(1)?;
    let mut all = Vec::new();
    for images in &arguments.sizes {
        let (context, inputs, _) = open(*images)?;
        all.push((*images, context, inputs, Vec::new(), Vec::new()));
    }
    let begun = Instant::now();
    for round in 0..WARM_UP + ROUNDS_MAX {
        if round >= WARM_UP + ROUNDS_MIN && begun.elapsed() > TURNS {
            break;
        }
        for (images, context, inputs, times_ms, gains) in &mut all {
            let mut turns = [(&mut single, &input), (context, &*inputs)].map(Some);
            let mut ms = [0.0; 2];
            for turn in 0..2 {
                let side = (round + turn) % 2;
                if let Some((context, inputs)) = turns[side].take() {
                    ms[side] = timed_ms(context, inputs)?;
                }
            }
            if round >= WARM_UP {
                times_ms.push(ms[1]);
                gains.push(ms[0] * *images as f64 / ms[1]);
            }
        }
    }
    let batch = |(images, _, _, mut times_ms, mut gains): (usize, _, _, Vec<f64>, Vec<f64>)| {
        let ms = quantile(&mut times_ms, 0.5);
        Batch { images, ms, images_per_s: images as f64 * 1e3 / ms, gain: quantile(&mut gains, 0.5) }
    };
    Ok(Row { model, batches: all.into_iter().map(batch).collect() })
}

fn timed_ms(context: &mut Context, inputs: &[(String, Tensor)]) -> Result<f64> {
    let inputs = inputs.to_vec();
    let since = Instant::now();
    context.compute(inputs, &Stop::never())?;
    Ok(since.elapsed().as_secs_f64() * 1e3)
}
