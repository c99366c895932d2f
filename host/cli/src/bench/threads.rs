//! What several threads for one run are worth, and what they cost others.
//!
//! A run is lent threads whose processors are idle, operator by operator (`host/nn/src/threads.rs`). So there are two
//! questions: how much shorter a run is that has the machine to itself; and whether a neighbour that is at work all the time
//! is the slower for it.

use super::models::{Net, Nets};
use crate::output::{Output, geometric_mean, quantile};
use anyhow::Result;
use edgent_nn::{Context, Graph, Stop, Tensor, threads_or_max};
use serde::Serialize;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const ROUNDS_MAX: usize = 200;
const ROUNDS_MIN: usize = 9;
const WARM_UP: usize = 2;

/// For each network, each way takes turns for so long; a slow one gets more, for its fewest rounds.
const TURNS: Duration = Duration::from_secs(6);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    nets: Nets,
    /// The most threads that a run may have; 0 for one a processor.
    #[arg(long, value_name = "N", value_parser = crate::bounds::threads, default_value_t = 0)]
    threads: usize,
}

#[derive(Serialize)]
struct Report {
    threads: usize,
    rows: Vec<Row>,
    /// Geometric means.
    ratio: f64,
    neighbour_ratio: f64,
}

/// Times are medians; ratios those of neighbouring turns: what the machine does meanwhile hits both.
#[derive(Serialize)]
struct Row {
    model: String,
    one_ms: f64,
    several_ms: f64,
    /// Several threads' time as a share of one's.
    ratio: f64,
    /// The same, by the shortest of each, which other work on the machine disturbed least.
    least_ratio: f64,
    /// What a host chooses that measures the whole network at once.
    chosen: usize,
    /// The time of a run beside one that may have several threads, as a share of its time beside one that has one.
    neighbour_ratio: f64,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let threads = threads_or_max(arguments.threads);
    output.line(format_args!(
        "network            1 thread, ms  {threads} threads, ms  ratio (least)  chosen  a neighbour's ratio"
    ));
    let mut rows = Vec::new();
    for path in arguments.nets.files()? {
        let row = measure(&Net::read(&path)?, threads)?;
        output.line(format_args!(
            "{:<18} {:>12.3} {:>14.3} {:>6.2} {:>7.2} {:>7} {:>20.2}",
            row.model, row.one_ms, row.several_ms, row.ratio, row.least_ratio, row.chosen, row.neighbour_ratio
        ));
        rows.push(row);
    }
    let mean = |of: fn(&Row) -> f64| geometric_mean(rows.iter().map(of));
    let (ratio, neighbour_ratio) = (mean(|row| row.ratio), mean(|row| row.neighbour_ratio));
    output.line(format_args!("geometric mean of {}: {ratio:.2}; of a neighbour {neighbour_ratio:.2}", rows.len()));
    output.result(&Report { threads, rows, ratio, neighbour_ratio })
}

fn measure(net: &Net, threads: usize) -> Result<Row> {
    let graph = net.imported.whole()?;
    let mut sides = [graph.context()?.on_threads(1), graph.context()?.on_threads(threads)];
    let mut turns = Turns::default();
    turns.run(|side| timed_ms(&mut sides[side], &net.inputs))?;
    graph.choose_threads(threads);
    Ok(Row {
        model: net.name.clone(),
        one_ms: quantile(&mut turns.ms[0].clone(), 0.5),
        several_ms: quantile(&mut turns.ms[1].clone(), 0.5),
        ratio: turns.ratio(),
        least_ratio: quantile(&mut turns.ms[1].clone(), 0.0) / quantile(&mut turns.ms[0].clone(), 0.0),
        chosen: graph.threads(),
        neighbour_ratio: neighbour(net, &graph, threads)?,
    })
}

/// How long runs on one thread take beside one that may have several, as a share of what they take beside one that has one.
fn neighbour(net: &Net, graph: &Graph, threads: usize) -> Result<f64> {
    // Told what to do next; none: to end.
    let wanted = Mutex::new(Some(1));
    let mut turns = Turns::default();
    thread::scope(|scope| -> Result<()> {
        let beside = scope.spawn(|| -> Result<()> {
            let [mut one, mut several] = [graph.context()?.on_threads(1), graph.context()?.on_threads(threads)];
            loop {
                let now = *wanted.lock().unwrap_or_else(PoisonError::into_inner);
                match now {
                    None => return Ok(()),
                    Some(1) => drop(timed_ms(&mut one, &net.inputs)?),
                    Some(_) => drop(timed_ms(&mut several, &net.inputs)?),
                }
            }
        });
        let tell = |next| *wanted.lock().unwrap_or_else(PoisonError::into_inner) = next;
        let mut context = graph.context()?.on_threads(1);
        let measured = turns.run(|side| {
            tell(Some(if side == 0 { 1 } else { threads }));
            // Until then, the neighbour may be at what it was told before.
            timed_ms(&mut context, &net.inputs)?;
            timed_ms(&mut context, &net.inputs)
        });
        tell(None);
        let ended = beside.join().map_err(|_| anyhow::anyhow!("the neighbour panicked"))?;
        measured.and(ended)
    })?;
    Ok(turns.ratio())
}

/// Two sides' times.
#[derive(Default)]
struct Turns {
    ms: [Vec<f64>; 2],
}

impl Turns {
    /// Each side comes first as often as the other.
    fn run(&mut self, mut timed_ms: impl FnMut(usize) -> Result<f64>) -> Result<()> {
        let begun = Instant::now();
        for round in 0..WARM_UP + ROUNDS_MAX {
            if round >= WARM_UP + ROUNDS_MIN && begun.elapsed() > TURNS {
                break;
            }
            for turn in 0..2 {
                let side = (round + turn) % 2;
                let ms = timed_ms(side)?;
                if round >= WARM_UP {
                    self.ms[side].push(ms);
                }
            }
        }
        Ok(())
    }

    /// The second side's as a share of the first's.
    fn ratio(&self) -> f64 {
        let mut ratios: Vec<f64> = self.ms[1].iter().zip(&self.ms[0]).map(|(second, first)| second / first).collect();
        quantile(&mut ratios, 0.5)
    }
}

fn timed_ms(context: &mut Context, inputs: &[(String, Tensor)]) -> Result<f64> {
    let inputs = inputs.to_vec();
    let since = Instant::now();
    context.compute(inputs, &Stop::never())?;
    Ok(since.elapsed().as_secs_f64() * 1e3)
}
