//! The guest of the portable tier: tract, compiled for the sandbox. It reads the graph that its component carries and
//! does the arithmetic itself, so that of a model that nobody trusts, the host parses and runs nothing.
//!
//! It ships with the host, which puts it in the standard guest's place (`edgent_bundle::portable_guest`). It is read
//! as native segments are: NNEF with tract's extensions, less what would want a source of randomness, and trees.

mod axes;
mod kernel;
mod tensor;
mod vector;

// The same operators as in the host, from the same source.
#[path = "../../../host/nn/src/fast/mod.rs"]
mod fast;
#[path = "../../../host/nn/src/lrn.rs"]
mod lrn;
#[path = "../../../host/nn/src/operators.rs"]
mod operators;

use std::cell::RefCell;
use std::io::{self, Read};
use tensor::TENSOR_BYTES_MAX;
use tract_nnef::framework::Nnef;
use tract_nnef::internal::*;
use tract_onnx_opl::{grid_sample, non_max_suppression, non_zero, resize};

wit_bindgen::generate!({ world: "segment", path: "../../wit", generate_all });

use edgent::segment::own_graph;
use exports::edgent::segment::layers::{Guest, NamedTensor};

/// So much of the graph is fetched at a time: it is copied out of a processor's second cache.
const PIECE_BYTES: usize = 256 << 10;

/// The graph that `prepare` read.
struct Prepared {
    plan: Arc<TypedSimplePlan>,
    outputs: Vec<String>,
}

thread_local! {
    static PREPARED: RefCell<Option<Prepared>> = const { RefCell::new(None) };
}

struct Portable;

impl Guest for Portable {
    fn prepare() -> Result<(), String> {
        let prepared = read_graph().map_err(|e| format!("the graph cannot be read: {e:#}"))?;
        PREPARED.set(Some(prepared));
        Ok(())
    }

    fn run(inputs: Vec<NamedTensor>) -> Result<Vec<NamedTensor>, String> {
        PREPARED.with_borrow(|prepared| {
            let prepared = prepared.as_ref().ok_or("run was called before prepare")?;
            prepared.run(inputs).map_err(|e| format!("the graph failed: {e:#}"))
        })
    }
}

fn read_graph() -> TractResult<Prepared> {
    let mut model = nnef().model_for_read(&mut OwnGraph::default())?;
    axes::declutter(&mut model)?;
    lrn::speed_up(&mut model);
    let label = |outlet: &OutletId| {
        model.outlet_label(*outlet).map_or_else(|| model.node(outlet.node).name.clone(), str::to_owned)
    };
    let outputs = model.output_outlets()?.iter().map(label).collect();
    Ok(Prepared { plan: fast::speed_up(model, None)?.into_optimized()?.into_runnable()?, outputs })
}

impl Prepared {
    /// Inputs come in the graph's order, and leave so. Each run begins from nothing: what a recurrent operator kept of
    /// one request is no other's business.
    fn run(&self, inputs: Vec<NamedTensor>) -> TractResult<Vec<NamedTensor>> {
        let values = inputs.iter().map(|(_, handle)| tensor::read(handle)).collect::<TractResult<TVec<_>>>()?;
        drop(inputs);
        let outputs = self.plan.spawn()?.run(values)?;
        let named = self.outputs.iter().zip(&outputs);
        named.map(|(name, value)| Ok((name.clone(), tensor::write(value)?))).collect()
    }
}

/// NNEF as segments use it.
fn nnef() -> Nnef {
    let mut onnx = Registry::new("tract_onnx");
    grid_sample::register(&mut onnx);
    non_max_suppression::register(&mut onnx);
    non_zero::register(&mut onnx);
    resize::register(&mut onnx);
    let lrn = tract_onnx_opl::lrn::load;
    let output = [("output", TypeName::Scalar.tensor())];
    onnx.register_primitive("tract_onnx_lrn", &tract_onnx_opl::lrn::parameters(), &output, lrn);
    let mut nnef = tract_nnef::nnef().with_registry(onnx).with_registry(operators::own_operators());
    nnef.allow_extended_identifier_syntax(true);
    nnef
}

/// The bytes of the graph in this segment's component, one after the other.
#[derive(Default)]
struct OwnGraph {
    offset: u64,
    piece: Vec<u8>,
    /// How many bytes of the piece have been read.
    read: usize,
}

impl Read for OwnGraph {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.read == self.piece.len() {
            self.piece = own_graph::read(self.offset, PIECE_BYTES as u32);
            self.offset += self.piece.len() as u64;
            self.read = 0;
        }
        let count = (self.piece.len() - self.read).min(into.len());
        into[..count].copy_from_slice(&self.piece[self.read..][..count]);
        self.read += count;
        Ok(count)
    }
}

export!(Portable);
