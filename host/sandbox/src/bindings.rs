//! The Rust side of the WIT world; the resources of `wasi:nn` are this project's own types.
#![allow(missing_docs)]

wasmtime::component::bindgen!({
    world: "segment",
    path: "../../wit",
    with: {
        "wasi:nn/tensor.tensor": edgent_nn::Tensor,
        "wasi:nn/graph.graph": edgent_nn::Graph,
        "wasi:nn/inference.graph-execution-context": edgent_nn::Context,
        "wasi:nn/errors.error": crate::imports::NnError,
    },
    imports: { default: trappable },
});
