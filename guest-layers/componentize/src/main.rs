//! Makes a component of a guest's core module: `componentize MODULE.wasm COMPONENT.wasm`.
//!
//! The result may import `wasi:nn` and our own types, nothing else: a guest that drags in WASI by
//! accident is found here, not by the host that refuses it.

use std::error::Error;
use std::{env, fs};
use wasmparser::{Parser, Payload};
use wit_component::ComponentEncoder;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [module, component] = arguments.as_slice() else {
        return Err("usage: componentize MODULE.wasm COMPONENT.wasm".into());
    };
    let bytes = ComponentEncoder::default().validate(true).module(&fs::read(module)?)?.encode()?;
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(&bytes) {
        match payload? {
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            // Components nested in this one import from it, not from the host.
            Payload::ComponentImportSection(imports) if depth == 1 => {
                for import in imports {
                    let name = import?.name.name.to_owned();
                    if !name.starts_with("wasi:nn/") && !name.starts_with("edgent:segment/") {
                        return Err(format!("{module} imports {name}, which no host gives").into());
                    }
                }
            }
            _ => {}
        }
    }
    Ok(fs::write(component, bytes)?)
}
