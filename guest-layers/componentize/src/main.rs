//! Makes a component of a guest's core module: `componentize MODULE.wasm COMPONENT.wasm`. And, for guests in C,
//! what declares the world to them: `componentize --c-bindings WIT_FOLDER FOLDER`.
//!
//! The result imports what the world of segments has and nothing else: a guest that drags in WASI by accident is found
//! here, not by the host that refuses it. And it holds nothing but what runs: names and the list of
//! tools would make its bytes differ between machines that build the same thing.

use std::error::Error;
use std::path::Path;
use std::{env, fs, mem};
use wasm_encoder::{Component, ComponentSectionId, Encode, Module, RawSection, Section};
use wasmparser::{Encoding, Parser, Payload};
use wit_bindgen_core::Files;
use wit_bindgen_core::wit_parser::Resolve;
use wit_component::ComponentEncoder;

/// What hosts give; the second in the portable tier alone.
const GIVEN: [&str; 2] = ["wasi:nn/", "edgent:segment/own-graph@"];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [module, component] = match &arguments[..] {
        [flag, wit, out] if flag == "--c-bindings" => return c_bindings(Path::new(wit), Path::new(out)),
        [module, component] => [module, component],
        _ => return Err("usage: componentize MODULE.wasm COMPONENT.wasm, or --c-bindings WIT_FOLDER FOLDER".into()),
    };
    let encoded = ComponentEncoder::default().validate(true).module(&fs::read(module)?)?.encode()?;
    let stripped = without_custom_sections(&encoded)?;
    wasmparser::validate(&stripped)?;
    if let Some(import) = imports(&stripped)?.iter().find(|name| !GIVEN.iter().any(|given| name.starts_with(given))) {
        return Err(format!("{module} imports {import}, which no host gives").into());
    }
    Ok(fs::write(component, stripped)?)
}

/// segment.h and segment.c, to be compiled with a guest in C, and an object that says which world it is for.
fn c_bindings(wit: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(wit)?;
    let world = resolve.select_world(&[package], Some("segment"))?;
    let mut files = Files::default();
    wit_bindgen_c::Opts::default().build().generate(&mut resolve, world, &mut files)?;
    fs::create_dir_all(out)?;
    for (name, bytes) in files.iter() {
        fs::write(out.join(name), bytes)?;
    }
    Ok(())
}

/// What the component asks of its host; the components nested in it ask only it.
fn imports(component: &[u8]) -> Result<Vec<String>, Box<dyn Error>> {
    let mut depth = 0;
    let mut names = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    names.push(import?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(names)
}

/// The component without custom sections, its own and those of everything nested in it.
fn without_custom_sections(component: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut enclosing = Vec::new();
    let mut current = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::Version { encoding: Encoding::Component, .. } => current.extend(Component::HEADER),
            Payload::Version { encoding: Encoding::Module, .. } => current.extend(Module::HEADER),
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => enclosing.push(mem::take(&mut current)),
            Payload::End(_) => {
                let Some(parent) = enclosing.pop() else { break };
                let nested = mem::replace(&mut current, parent);
                let is_component = nested.starts_with(&Component::HEADER);
                let id = if is_component { ComponentSectionId::Component } else { ComponentSectionId::CoreModule };
                current.push(id.into());
                nested.encode(&mut current);
            }
            Payload::CustomSection(_) => {}
            other => {
                if let Some((id, range)) = other.as_section() {
                    let data = &component[usize::try_from(range.start)?..usize::try_from(range.end)?];
                    RawSection { id, data }.append_to(&mut current);
                }
            }
        }
    }
    Ok(current)
}
