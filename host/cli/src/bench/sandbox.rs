//! What the sandbox adds to a call, whatever the tensor's size.
//!
//! The graph hands its input back, so the time of a call is the cost of calling. Both ways take turns.

use crate::output::{Output, quantile};
use anyhow::Result;
use edgent_nn::{ElementType, Fact, Graph, Stop, Tensor, bytes_copied};
use edgent_sandbox::{Engine, Limits, Segment};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

const SIZES: [usize; 7] = [4, 256, 4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20];
const ROUNDS: usize = 5_000;
const WARM_UP: usize = 200;

#[derive(Serialize)]
struct Report {
    call_overhead_us: BTreeMap<usize, f64>,
    tensor_bytes_copied: u64,
}

pub(crate) fn run(output: &Output) -> Result<()> {
    let engine = Engine::new()?;
    let code = engine.compile(edgent_bundle::standard_guest())?;
    let mut report = Report { call_overhead_us: BTreeMap::new(), tensor_bytes_copied: 0 };
    output.line("bytes      through component   direct      overhead (medians)");
    for bytes in SIZES {
        let graph = Graph::identity("input", &Fact::new(ElementType::U8, &[bytes])?)?;
        let mut direct = graph.context()?;
        let segment = Segment::new("identity", &code, graph, Limits::default())?;
        let tensor = Tensor::from_bytes(ElementType::U8, &[bytes], &vec![0; bytes])?;
        let stop = Stop::never();
        let (mut through_us, mut direct_us) = (Vec::new(), Vec::new());
        let copied_before = bytes_copied();
        for round in 0..WARM_UP + ROUNDS {
            let input = tensor.clone();
            let start = Instant::now();
            let answered = segment.run(vec![input], &stop)?;
            let through = start.elapsed();
            let inputs = vec![("input".to_owned(), tensor.clone())];
            let start = Instant::now();
            direct.compute(inputs, &stop)?;
            let alone = start.elapsed();
            anyhow::ensure!(answered[0].same_memory(&tensor), "the answer lies elsewhere in memory: it was copied");
            if round >= WARM_UP {
                through_us.push(through.as_secs_f64() * 1e6);
                direct_us.push(alone.as_secs_f64() * 1e6);
            }
        }
        report.tensor_bytes_copied += bytes_copied() - copied_before;
        let (through, alone) = (quantile(&mut through_us, 0.5), quantile(&mut direct_us, 0.5));
        output
            .line(format_args!("{bytes:>9}  {through:>8.2} us         {alone:>6.2} us   {:>6.2} us", through - alone));
        report.call_overhead_us.insert(bytes, through - alone);
    }
    output.line(format_args!("tensor bytes copied: {}", report.tensor_bytes_copied));
    output.result(&report)
}
