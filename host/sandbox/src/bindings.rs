//! The Rust side of the WIT world; the resources of `wasi:nn` are this project's own types.
#![allow(missing_docs)]

wasmtime::component::bindgen!({
    world: "segment",
    path: "../../wit",
    with: {
        "wasi:nn/tensor.tensor": edgent_nn::Tensor,
        "wasi:nn/graph.graph": crate::imports::GraphHandle,
        "wasi:nn/inference.graph-execution-context": crate::imports::ContextHandle,
        "wasi:nn/errors.error": crate::imports::NnError,
    },
    imports: { default: trappable },
});
