//! Guests that do the arithmetic themselves: the same answers as the host's, and no more than they may have.
#![allow(clippy::unwrap_used)]

mod support;

use edgent_nn::synthetic::{self, Shape};
use edgent_nn::{Graph, Port, Stop, Tensor};
use edgent_sandbox::{Code, Engine, Fault, Limits, OwnGraph, Purpose, Segment, SegmentError, Work};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use support::{HOSTILE, STANDARD};

const PORTABLE: &[u8] = include_bytes!("../../../guest-layers/prebuilt/portable.wasm");

/// What is promised; where values are greater than 1, as a share of the greatest.
const TOLERANCE: f64 = 1e-5;

/// 1.7 billion multiply-accumulates, of few weights.
const SLOW: Shape = Shape::Conv { maps: 64, filters: 64, side_px: 128, window_px: 5, stride_px: 1 };

/// One for all tests: compiling the guest takes seconds, and code that nobody uses is forgotten.
static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new().unwrap());
static CODE: LazyLock<Code> = LazyLock::new(|| ENGINE.compile_shipped(Purpose::Computes, PORTABLE).unwrap());

fn made(shape: Shape) -> (Graph, Work) {
    let made = synthetic::layer(shape, 3).unwrap();
    let graph = Graph::load(&made.graph, made.format).unwrap();
    let own = OwnGraph::new(made.graph, graph.inputs().to_vec(), graph.outputs().to_vec());
    (graph, Work::InGuest(own))
}

fn computing(name: &str, work: Work, limits: Limits) -> Result<Segment, SegmentError> {
    Segment::new(name, &CODE, work, limits)
}

fn plenty() -> Limits {
    Limits::computing(8 << 20, 8 << 20, 1 << 30)
}

#[test]
fn layers_give_what_they_give_in_the_host() {
    // Sizes that fill no tile of any kernel, among them.
    let shapes = [
        Shape::Conv { maps: 3, filters: 7, side_px: 13, window_px: 3, stride_px: 1 },
        Shape::Conv { maps: 16, filters: 24, side_px: 16, window_px: 5, stride_px: 2 },
        Shape::Conv { maps: 33, filters: 65, side_px: 9, window_px: 1, stride_px: 1 },
        Shape::Relu { maps: 5, side_px: 7 },
        Shape::Pool { maps: 4, side_px: 9, window_px: 3, stride_px: 2 },
        Shape::Lrn { maps: 16, side_px: 6 },
        Shape::FullyConnected { inputs: 129, outputs: 67 },
        Shape::Scale { maps: 2, side_px: 5 },
    ];
    for shape in shapes {
        let (graph, work) = made(shape);
        let segment = computing("layer", work, plenty()).unwrap();
        for seed in 1..4 {
            let input = synthetic::noise(&graph.inputs()[0].fact, seed).unwrap();
            let there = graph.run_once(vec![input.clone()]).unwrap().remove(0);
            let here = segment.run(vec![input], &Stop::never()).unwrap().remove(0);
            let difference = edgent_nn::Difference::of(&here, &there).unwrap();
            assert!(difference.most <= TOLERANCE * difference.greatest.max(1.0), "{shape:?}: {difference:?}");
        }
    }
}

#[test]
fn a_deadline_stops_the_arithmetic() {
    let (graph, work) = made(SLOW);
    let segment = computing("slow", work, Limits::computing(8 << 20, 8 << 20, 10 << 30)).unwrap();
    let input = synthetic::noise(&graph.inputs()[0].fact, 1).unwrap();
    let since = Instant::now();
    segment.run(vec![input.clone()], &Stop::never()).unwrap();
    let whole = since.elapsed();
    // Had it run to its end, there would be an answer, however late.
    let stop = Stop::at(Instant::now() + whole / 8);
    assert_eq!(segment.run(vec![input], &stop).unwrap_err().fault, Fault::TimeUp);
}

#[test]
fn a_guest_that_computes_gets_no_more_than_its_limits() {
    let (graph, work) = made(SLOW);
    let input = || synthetic::noise(&graph.inputs()[0].fact, 1).unwrap();
    // Enough to read the graph, not to run it.
    let little = Limits { call_fuel: 300_000_000, ..plenty() };
    let error = computing("hungry", work.clone(), little).unwrap().run(vec![input()], &Stop::never()).unwrap_err();
    assert!(matches!(&error.fault, Fault::Limit(why) if why.contains("fuel")), "{error}");
    // Not even enough memory to begin: what is refused is memory, and what the guest does then is its affair.
    let small = Limits { memory_bytes: 1 << 20, ..plenty() };
    let error = computing("large", work.clone(), small).unwrap_err();
    assert!(matches!(error.fault, Fault::Trap(_) | Fault::Limit(_)), "{error}");
    // Its graph's bytes count as any others that are copied.
    let stingy = Limits { copied_bytes: 1000, ..plenty() };
    let error = computing("greedy", work, stingy).unwrap_err();
    assert!(matches!(&error.fault, Fault::Limit(why) if why.contains("copied more")), "{error}");
}

#[test]
fn bytes_that_are_no_graph_are_read_by_the_guest_alone() {
    let fact = edgent_nn::Fact::new(edgent_nn::ElementType::F32, &[2]).unwrap();
    let port = |name: &str| vec![Port { name: name.into(), fact: fact.clone() }];
    // Nothing that the host could read, and a graph that lies about itself: both end in the sandbox.
    let garbage = Work::InGuest(OwnGraph::new(vec![0x5a; 5000], port("in"), port("out")));
    let error = computing("garbage", garbage, plenty()).unwrap_err();
    assert!(matches!(error.fault, Fault::Refused(_) | Fault::Trap(_)), "{error}");
    let relu = synthetic::layer(Shape::Relu { maps: 1, side_px: 3 }, 1).unwrap();
    let lies = computing("lies", Work::InGuest(OwnGraph::new(relu.graph, port("in"), port("out"))), plenty()).unwrap();
    let error = lies.run(vec![Tensor::from_f32(&[2], &[1.0, 2.0]).unwrap()], &Stop::never()).unwrap_err();
    assert!(matches!(error.fault, Fault::Refused(_) | Fault::Trap(_) | Fault::Output(_)), "{error}");
}

#[test]
fn who_leaves_the_work_to_the_host_finds_no_graph_there_and_the_other_way_round() {
    let (graph, work) = made(Shape::Relu { maps: 1, side_px: 3 });
    for guest in [STANDARD, HOSTILE] {
        let code = ENGINE.compile_for(Purpose::Computes, guest).unwrap();
        let error = Segment::new("lazy", &code, work.clone(), plenty()).unwrap_err();
        assert!(matches!(error.fault, Fault::Refused(_) | Fault::Trap(_)), "{error}");
    }
    let error = Segment::new("curious", &CODE, graph, plenty()).unwrap_err();
    assert!(error.to_string().contains("which only segments of the portable tier get"), "{error}");
}

/// Compiled code is kept, and believed only where nobody else can have written it.
#[test]
fn kept_code_is_used_again_unless_it_is_damaged_or_others_could_write_it() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("code");
    let files = || -> Vec<PathBuf> { fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect() };
    let runs = || {
        // The standard guest stands for one that ships: it is compiled in no time.
        let code = Engine::keeping(Some(folder.clone())).unwrap().compile_shipped(Purpose::Computes, STANDARD).unwrap();
        let graph = support::graph("echo", 3);
        let echo = Segment::new("echo", &code, graph, plenty()).unwrap();
        assert_eq!(support::run(&echo, support::tensor(&[1, 2, 3]), &Stop::never()).unwrap().bytes(), [1, 2, 3]);
    };
    let written = || fs::metadata(&files()[0]).unwrap().modified().unwrap();
    runs();
    assert_eq!(files().len(), 1);
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    let whole = fs::read(&files()[0]).unwrap();
    // Read, not written: it is as old as before.
    let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(&files()[0]).unwrap().set_modified(old).unwrap();
    let before = written();
    runs();
    assert_eq!(written(), before, "compiled again");
    // Damaged at any of some places, or cut short: compiled again, and whole again.
    for at in [0, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&files()[0], damaged).unwrap();
        runs();
        assert_eq!(fs::read(&files()[0]).unwrap(), whole);
        fs::write(&files()[0], &whole[..at]).unwrap();
        runs();
        assert_eq!(fs::read(&files()[0]).unwrap(), whole);
    }
    // A file, or a folder, that others can write to is none of ours; here it would be one that cannot be run.
    for open in [files()[0].clone(), folder.clone()] {
        let (mode, is_file) = (fs::metadata(&open).unwrap().permissions().mode(), open.is_file());
        fs::set_permissions(&open, Permissions::from_mode(mode | 0o020)).unwrap();
        let before = (fs::read(&files()[0]).unwrap(), written());
        runs();
        // Of a file, ours takes the place; into a folder, nothing is written.
        assert_eq!((fs::read(&files()[0]).unwrap(), written()) == before, !is_file, "{}", open.display());
        fs::set_permissions(&open, Permissions::from_mode(mode)).unwrap();
    }
}
