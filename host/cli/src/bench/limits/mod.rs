//! What hostile guests and files do to a host: nothing.
//!
//! Each case is tried many times; in between, and all the while on another thread, a good segment runs. Guests run in
//! this very process, as they do in a host; files are tried as a host tries them, in a confined process. The random
//! ones follow from a seed.

mod guests;
mod models;

use crate::output::{BadInput, Output, quantile};
use crate::random::Random;
use anyhow::{Result, ensure};
use edgent_nn::{ElementType, Fact, Graph, Stop, Tensor};
use edgent_runtime::MACS_MAX;
use edgent_runtime::confine::{ConfinedError, this_program};
use edgent_runtime::trial::{Bounds, Job, Trial};
use edgent_sandbox::{Code, Engine, Fault, Limits, Segment};
use guests::{ENDLESS, HUGE_ERROR, HUGE_RETURN, TABLE_GROW, TRAPS, patched, with_endless_start};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const HOSTILE: &[u8] = include_bytes!("../../../../../guest-layers/prebuilt/hostile.wasm");
const ONNX: &[u8] = include_bytes!("../../../../nn/tests/data/branching.onnx");

/// What the hostile guest exports.
const RUN: &str = "edgent:segment/layers@0.1.0#run";
const POST_RETURN: &str = "cabi_post_edgent:segment/layers@0.1.0#run";
const REALLOC: &str = "cabi_realloc";

const INPUT_BYTES: usize = 1024;
const SEED: u64 = 0x00ed_6e47;

/// What a guest that never ends is given.
const DEADLINE: Duration = Duration::from_millis(20);

/// How long a file's trial may work, and with how much.
const FILE_CPU_S: u64 = 5;
const FILE_MEMORY_BYTES: u64 = 512 << 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What share of the full counts is tried.
    #[arg(long, default_value_t = 0.1)]
    share: f64,
    /// Only cases whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Fail, too, where a bound on time is broken: on a machine that does nothing else.
    #[arg(long)]
    timed: bool,
}

/// A guest that never ends is ended so soon after its deadline: two ticks of the clock that looks at guests, and the
/// time it takes to see that on two processors. Of all such guests, 99 in 100.
const OVERSHOOT_MS_MAX: f64 = 10.0;

/// A good neighbour's calls take at most so many times what they take alone, 99 in 100 of them.
const NEIGHBOUR_RATIO_MAX: f64 = 2.0;

#[derive(Serialize)]
struct Report {
    cases: Vec<Case>,
    seed: u64,
    good_p99_us: f64,
    /// Of time: said of every run, judged with `--timed`.
    bounds: Vec<Bound>,
}

#[derive(Serialize)]
struct Bound {
    name: &'static str,
    measured: f64,
    most: f64,
    kept: bool,
}

impl Bound {
    fn new(name: &'static str, measured: f64, most: f64) -> Self {
        Self { name, measured, most, kept: measured <= most }
    }
}

#[derive(Serialize)]
struct Case {
    name: String,
    tried: usize,
    contained: usize,
    host_alive: bool,
    /// How each try ended, and how often.
    ends: BTreeMap<String, usize>,
    /// The first try's end in full.
    first: String,
    /// The longest try.
    took_max_ms: f64,
    /// What the good segment's calls took meanwhile, on another thread.
    good_p99_us: f64,
    /// How much more memory this process holds after all of it.
    resident_more_bytes: i64,
}

/// How one try ended: contained or not, and how, in full.
type End = (bool, String);

const FIRST_BYTES_MAX: usize = 300;

struct Bench {
    engine: Engine,
    good: Segment,
    hostile: Code,
    arguments: Arguments,
    cases: Mutex<Vec<Case>>,
    /// By how much each endless guest overstayed its deadline.
    overshoots_ms: Mutex<Vec<f64>>,
    /// What the good segment's calls took, in all cases.
    good_us: Mutex<Vec<f64>>,
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    if !(arguments.share > 0.0 && arguments.share <= 1.0) {
        return Err(BadInput::error("--share must be over 0 and at most 1"));
    }
    let engine = Engine::new()?;
    let good_code = engine.compile(edgent_bundle::standard_guest())?;
    let good = segment(&good_code, "good", Limits::default())?;
    let hostile = engine.compile(HOSTILE)?;
    let timed = arguments.timed;
    let (cases, overshoots_ms, good_us) = Default::default();
    let bench = Bench { engine, good, hostile, arguments, cases, overshoots_ms, good_us };
    let (mut alone_us, ()) = beside(&bench.good, || thread::sleep(Duration::from_secs(1)));
    output.line(format_args!("{:<44} {:>6} {:>9}  {:<10} ends", "case", "tried", "contained", "host alive"));
    bench.endless(output)?;
    bench.bombs(output)?;
    bench.traps(output)?;
    bench.cancels(output)?;
    bench.lies(output)?;
    bench.files(output)?;
    // Before and after, so that a machine that is slower by and by counts on both sides.
    let (later_us, ()) = beside(&bench.good, || thread::sleep(Duration::from_secs(1)));
    alone_us.extend(later_us);
    let alone = quantile(&mut alone_us, 0.99);
    let p99 = |all: Mutex<Vec<f64>>| {
        let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
        (!all.is_empty()).then(|| quantile(&mut all, 0.99))
    };
    let overshoot = p99(bench.overshoots_ms).map(|ms| Bound::new("endless_overshoot_p99_ms", ms, OVERSHOOT_MS_MAX));
    let ratio = p99(bench.good_us).map(|us| Bound::new("neighbour_p99_ratio", us / alone, NEIGHBOUR_RATIO_MAX));
    let bounds: Vec<Bound> = overshoot.into_iter().chain(ratio).collect();
    for Bound { name, measured, most, kept } in &bounds {
        let verdict = if *kept { "kept" } else { "BROKEN" };
        output.line(format_args!("{name:<44} {measured:.2}, {most} at most: {verdict}"));
    }
    let cases = bench.cases.into_inner().unwrap_or_else(PoisonError::into_inner);
    ensure!(!cases.is_empty(), BadInput("no case has such a name".to_owned()));
    let escaped: Vec<&str> = cases
        .iter()
        .filter(|case| case.contained < case.tried || !case.host_alive)
        .map(|case| &case.name[..])
        .collect();
    let escaped = escaped.join(", ");
    let broken: Vec<&str> = bounds.iter().filter(|bound| !bound.kept).map(|bound| bound.name).collect();
    let broken = broken.join(", ");
    output.result(&Report { cases, seed: SEED, good_p99_us: alone, bounds })?;
    ensure!(escaped.is_empty(), "not contained: {escaped}");
    ensure!(!timed || broken.is_empty(), "bounds on time are broken: {broken}");
    Ok(())
}

impl Bench {
    /// F14: guests that never end, wherever the host enters them. Contained: ended soon after their deadline.
    fn endless(&self, output: &Output) -> Result<()> {
        let compile = |component: Vec<u8>| -> Result<Code> { Ok(self.engine.compile(&component)?) };
        let ways = [
            ("endless: run", self.hostile.clone(), "spin"),
            ("endless: prepare", self.hostile.clone(), "prepare-spin"),
            ("endless: computing again and again", self.hostile.clone(), "compute"),
            ("endless: realloc", compile(patched(HOSTILE, REALLOC, ENDLESS)?)?, "x"),
            ("endless: after the return", compile(patched(HOSTILE, POST_RETURN, ENDLESS)?)?, "x"),
            ("endless: start", compile(with_endless_start(HOSTILE)?)?, "x"),
        ];
        for (name, code, behaviour) in ways {
            // What ends a guest that is being made is its own limit.
            let limits = Limits { call_ms: DEADLINE.as_millis() as u64, ..Limits::default() };
            // Those that do not even get ready are made with a short limit, again and again.
            let is_ready = ["spin", "compute"].contains(&behaviour) || name == "endless: after the return";
            let made = is_ready.then(|| self.segment(&code, behaviour, Limits::default()));
            self.case(output, name, 1_000, |_| {
                let since = Instant::now();
                let ended = match &made {
                    None => self.segment(&code, behaviour, limits.clone()).and_then(|made| once(&made, DEADLINE)),
                    Some(Ok(made)) => once(made, DEADLINE),
                    Some(Err(fault)) => Err(fault.clone()),
                };
                let took = since.elapsed();
                let overshoot_ms = took.saturating_sub(DEADLINE).as_secs_f64() * 1e3;
                self.overshoots_ms.lock().unwrap_or_else(PoisonError::into_inner).push(overshoot_ms);
                // What a busy machine adds is no escape; the bound on time is judged for all together.
                let soon = took < DEADLINE * 2 + Duration::from_millis(200);
                (
                    soon && matches!(&ended, Err(said) if said.starts_with("time") || said.starts_with("limit")),
                    words(ended),
                )
            })?;
        }
        Ok(())
    }

    /// F15: guests that want all memory.
    fn bombs(&self, output: &Output) -> Result<()> {
        let compile = |body: &[u8]| -> Result<Code> { Ok(self.engine.compile(&patched(HOSTILE, RUN, body)?)?) };
        let plain = [
            "memory",
            "handles",
            "graphs",
            "contexts",
            "errors",
            "bytes",
            "read",
            "lying-tensor",
            "deep-tensor",
            "long-error",
        ];
        let mut ways: Vec<(String, Code, &str)> =
            plain.map(|behaviour| (format!("bomb: {behaviour}"), self.hostile.clone(), behaviour)).into();
        ways.push(("bomb: table.grow".into(), compile(TABLE_GROW)?, "x"));
        ways.push(("bomb: huge list returned".into(), compile(HUGE_RETURN)?, "x"));
        ways.push(("bomb: huge text returned".into(), compile(HUGE_ERROR)?, "x"));
        for (name, code, behaviour) in ways {
            let limits = Limits { held_bytes: 32 << 20, call_ms: 1_000, ..Limits::default() };
            let made = self.segment(&code, behaviour, limits).map_err(anyhow::Error::msg)?;
            self.case(output, &name, 200, |_| {
                let ended = once(&made, Duration::from_secs(2));
                (ended.is_err(), words(ended))
            })?;
        }
        Ok(())
    }

    /// F16: every kind of trap. Contained: named, and a new instance is ready soon.
    fn traps(&self, output: &Output) -> Result<()> {
        let mut ways = vec![
            ("trap: panic".to_owned(), self.hostile.clone(), "panic", "unreachable"),
            ("trap: endless recursion".to_owned(), self.hostile.clone(), "recurse", "call stack exhausted"),
            ("trap: own stack overflown".to_owned(), self.hostile.clone(), "overflow", "out of bounds"),
        ];
        for (name, body, said) in TRAPS {
            let code = self.engine.compile(&patched(HOSTILE, RUN, body)?)?;
            ways.push((format!("trap: {name}"), code, "x", said));
        }
        for (name, code, behaviour, said) in ways {
            let made = self.segment(&code, behaviour, Limits::default()).map_err(anyhow::Error::msg)?;
            self.case(output, &name, 1_000, |_| {
                let ended = once(&made, Duration::from_secs(2));
                (matches!(&ended, Err(fault) if fault.contains(said)), words(ended))
            })?;
        }
        Ok(())
    }

    /// F17: calls cancelled at any moment, by another thread.
    fn cancels(&self, output: &Output) -> Result<()> {
        for behaviour in ["spin", "compute"] {
            let made = self.segment(&self.hostile, behaviour, Limits::default()).map_err(anyhow::Error::msg)?;
            self.case(output, &format!("cancelled: {behaviour}"), 5_000, |random| {
                let stop = Stop::never();
                let wait = Duration::from_micros(random.below(1_500));
                let told = stop.clone();
                thread::scope(|scope| {
                    scope.spawn(move || {
                        thread::sleep(wait);
                        told.cancel();
                    });
                    let ended = made.run(vec![input()], &stop).map(drop).map_err(|error| said(&error.fault));
                    (matches!(&ended, Err(fault) if fault.starts_with("time")), words(ended))
                })
            })?;
        }
        Ok(())
    }

    /// F18: outputs that are not what the graph declares, or are no numbers.
    fn lies(&self, output: &Output) -> Result<()> {
        for behaviour in ["nothing", "extra", "other-shape", "other-type"] {
            let made = self.segment(&self.hostile, behaviour, Limits::default()).map_err(anyhow::Error::msg)?;
            self.case(output, &format!("wrong output: {behaviour}"), 2_000, |_| {
                let ended = once(&made, Duration::from_secs(2));
                (matches!(&ended, Err(fault) if fault.starts_with("output")), words(ended))
            })?;
        }
        let fact = Fact::new(ElementType::F32, &[INPUT_BYTES / 4])?;
        let graph = Graph::identity("x", &fact)?;
        let made = Segment::new("finite", &self.hostile, graph, Limits::default())?.with_finite([], [true]);
        self.case(output, "wrong output: NaN or infinity", 2_000, |random| {
            let mut numbers = vec![1.0; INPUT_BYTES / 4];
            let odd = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY][random.below(4) as usize];
            let at = random.below(numbers.len() as u64) as usize;
            numbers[at] = odd;
            let Ok(tensor) = Tensor::from_f32(&fact.dims, &numbers) else { return (false, "no tensor".to_owned()) };
            let ended = made.run(vec![tensor], &Stop::never()).map(drop).map_err(|error| said(&error.fault));
            (matches!(&ended, Err(fault) if fault.ends_with(&format!("element {at}"))), words(ended))
        })
    }

    /// F19, F21, F22: files, each in a process of its own.
    fn files(&self, output: &Output) -> Result<()> {
        let bounds = Bounds { memory_bytes: Some(FILE_MEMORY_BYTES), cpu_s: Some(FILE_CPU_S) };
        let trial = Trial::new(this_program()?, bounds, None);
        let scratch = tempfile::tempdir()?;
        // What external data would lead to, if it were followed.
        #[cfg(unix)]
        std::os::unix::fs::symlink("/etc/passwd", scratch.path().join("link"))?;
        let path = scratch.path().join("file");
        let attempt = |job: &dyn Fn(&Path) -> Job, bytes: &[u8]| -> End {
            if let Err(error) = fs::write(&path, bytes) {
                return (false, error.to_string());
            }
            match trial.run(&job(&path), &path, bytes.len() as u64) {
                Ok(()) => (true, "taken".to_owned()),
                Err(ConfinedError::Start(error)) => (false, error.to_string()),
                Err(ConfinedError::Refused(why)) => (true, format!("refused: {why}")),
                Err(ConfinedError::Memory { .. }) => (true, "out of memory".to_owned()),
                Err(ConfinedError::Processor { .. } | ConfinedError::Time { .. }) => (true, "out of time".to_owned()),
                Err(ConfinedError::Crashed { signal, .. }) => (true, format!("crashed: signal {signal}")),
            }
        };
        let guest = |path: &Path| Job::Guest(path.to_owned());
        let onnx = |path: &Path| Job::Onnx { path: path.to_owned(), macs_max: MACS_MAX };
        for (name, whole) in [("guest", edgent_bundle::standard_guest()), ("hostile guest", HOSTILE)] {
            self.case(output, &format!("malformed Wasm: {name}, bits flipped"), 5_000, |random| {
                attempt(&guest, &random.flipped(whole))
            })?;
            self.case(output, &format!("malformed Wasm: {name}, cut off"), 5_000, |random| {
                attempt(&guest, &whole[..random.below(whole.len() as u64) as usize])
            })?;
        }
        self.case(output, "malformed ONNX: bits flipped", 10_000, |random| attempt(&onnx, &random.flipped(ONNX)))?;
        self.case(output, "malformed ONNX: cut off", 5_000, |random| {
            attempt(&onnx, &ONNX[..random.below(ONNX.len() as u64) as usize])
        })?;
        self.case(output, "malformed ONNX: a piece moved", 5_000, |random| attempt(&onnx, &random.spliced(ONNX)))?;
        for (name, bytes) in models::malformed() {
            self.case(output, &format!("malformed ONNX: {name}"), 1, |_| attempt(&onnx, &bytes))?;
        }
        for (name, bytes) in models::heavy() {
            self.case(output, &format!("heavy ONNX: {name}"), 1, |_| attempt(&onnx, &bytes))?;
        }
        Ok(())
    }

    /// Tries something `full` times, or a share of that; looks at the host and at its neighbour meanwhile.
    fn case(
        &self,
        output: &Output,
        name: &str,
        full: usize,
        mut attempt: impl FnMut(&mut Random) -> End,
    ) -> Result<()> {
        if !name.contains(&self.arguments.only) {
            return Ok(());
        }
        let tries = (full as f64 * self.arguments.share).ceil() as usize;
        let mut random =
            Random::new(name.bytes().fold(SEED, |seed, byte| (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)));
        let (mut contained, mut ends, mut first) = (0, BTreeMap::new(), None);
        let (mut took_max, mut host_alive) = (Duration::ZERO, true);
        let before = resident_bytes();
        let (mut good_us, ()) = beside(&self.good, || {
            for _ in 0..tries {
                let since = Instant::now();
                let (is_contained, end) = attempt(&mut random);
                took_max = took_max.max(since.elapsed());
                contained += usize::from(is_contained);
                let word = end.split(':').next().unwrap_or_default().to_owned();
                *ends.entry(word).or_default() += 1;
                first.get_or_insert_with(|| end[..end.floor_char_boundary(FIRST_BYTES_MAX)].to_owned());
                host_alive &= once(&self.good, Duration::from_secs(10)).is_ok();
            }
        });
        self.good_us.lock().unwrap_or_else(PoisonError::into_inner).extend(&good_us);
        let case = Case {
            name: name.to_owned(),
            tried: tries,
            contained,
            host_alive,
            ends,
            first: first.unwrap_or_default(),
            took_max_ms: took_max.as_secs_f64() * 1e3,
            good_p99_us: quantile(&mut good_us, 0.99),
            resident_more_bytes: resident_bytes() - before,
        };
        let ends: Vec<String> = case.ends.iter().map(|(end, count)| format!("{end} × {count}")).collect();
        output.line(format_args!(
            "{:<44} {:>6} {:>9}  {:<10} {}; {:.0} ms at most",
            case.name,
            case.tried,
            case.contained,
            case.host_alive,
            ends.join(", "),
            case.took_max_ms
        ));
        self.cases.lock().unwrap_or_else(PoisonError::into_inner).push(case);
        Ok(())
    }

    fn segment(&self, code: &Code, behaviour: &str, limits: Limits) -> Result<Segment, String> {
        segment(code, behaviour, limits).map_err(|error| error.to_string())
    }
}

/// The behaviour of the hostile guest is the name of its graph's input.
fn segment(code: &Code, behaviour: &str, limits: Limits) -> Result<Segment> {
    let graph = Graph::identity(behaviour, &Fact::new(ElementType::U8, &[INPUT_BYTES])?)?;
    Segment::new(behaviour, code, graph, limits).map_err(|error| anyhow::Error::msg(said(&error.fault)))
}

fn input() -> Tensor {
    // As many bytes as the fact says: nothing can be wrong with it.
    Tensor::from_bytes(ElementType::U8, &[INPUT_BYTES], &[7; INPUT_BYTES]).unwrap_or_else(|e| panic!("{e}"))
}

fn once(segment: &Segment, within: Duration) -> Result<(), String> {
    let stop = Stop::at(Instant::now() + within);
    segment.run(vec![input()], &stop).map(drop).map_err(|error| said(&error.fault))
}

/// Whose fault it is, and which.
fn said(fault: &Fault) -> String {
    let whose = match fault {
        Fault::Input(_) => "input",
        Fault::TimeUp => "time",
        Fault::Trap(_) => "trap",
        Fault::Limit(_) => "limit",
        Fault::Refused(_) => "refused",
        Fault::Output(_) => "output",
        Fault::Graph(_) => "graph",
    };
    format!("{whose}: {fault}")
}

fn words(ended: Result<(), String>) -> String {
    ended.map_or_else(|said| said, |()| "ended well".to_owned())
}

/// Does some work while a good segment runs on another thread, once a millisecond; what its calls took, in µs.
fn beside<T>(good: &Segment, work: impl FnOnce() -> T) -> (Vec<f64>, T) {
    let over = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let told = Arc::clone(&over);
        let neighbour = scope.spawn(move || {
            let mut took_us = Vec::new();
            while !told.load(Ordering::Relaxed) {
                let since = Instant::now();
                if once(good, Duration::from_secs(10)).is_ok() {
                    took_us.push(since.elapsed().as_secs_f64() * 1e6);
                }
                thread::sleep(Duration::from_millis(1));
            }
            took_us
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        (neighbour.join().unwrap_or_default(), done)
    })
}

fn resident_bytes() -> i64 {
    let pages = fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<i64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guests that were written over are still guests: what they do wrong is what the case says, not their form.
    #[test]
    fn guests_written_over_compile() {
        let engine = Engine::new().unwrap();
        let bodies = TRAPS.iter().map(|(_, body, _)| *body).chain([ENDLESS, HUGE_RETURN, HUGE_ERROR, TABLE_GROW]);
        for body in bodies {
            engine.compile(&patched(HOSTILE, RUN, body).unwrap()).unwrap();
        }
        engine.compile(&patched(HOSTILE, REALLOC, ENDLESS).unwrap()).unwrap();
        engine.compile(&with_endless_start(HOSTILE).unwrap()).unwrap();
        assert!(patched(HOSTILE, "no such export", ENDLESS).is_err());
    }
}
