//! A segment as one WebAssembly component: the guest's code, and its graph in a custom section.
//!
//! The graph travels in the component so that one file is a whole segment, but neither the engine nor
//! the guest ever reads it: the host splits it off. What remains is the same for every segment with
//! the same guest, so that code is compiled once a host, not once a segment.

use std::collections::BTreeMap;
use wasm_encoder::{ComponentSection, CustomSection};
use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentOuterAliasKind, ComponentType, ComponentTypeRef,
    InstanceTypeDeclaration, Parser, Payload,
};

/// The custom section that holds a segment's graph.
pub const GRAPH_SECTION: &str = "edgent.graph";

/// The guest of every segment that just runs its graph (`guest-layers/segment`).
pub fn standard_guest() -> &'static [u8] {
    include_bytes!("../../../guest-layers/prebuilt/segment.wasm")
}

/// The guest that runs a graph inside the sandbox (`guest-layers/portable`). It is part of this program and in no
/// bundle: a host puts it in the standard guest's place where a segment is to run so.
pub fn portable_guest() -> &'static [u8] {
    include_bytes!("../../../guest-layers/prebuilt/portable.wasm")
}

/// Puts a graph into a guest: a whole segment.
pub fn compose(guest: &[u8], graph: &[u8]) -> Result<Vec<u8>, ComponentError> {
    if split(guest).is_ok() {
        return Err(ComponentError::GraphTwice);
    }
    let mut component = guest.to_vec();
    CustomSection { name: GRAPH_SECTION.into(), data: graph.into() }.append_to_component(&mut component);
    Ok(component)
}

/// Takes a segment apart: the code (the component without its graph) and the graph.
pub fn split(component: &[u8]) -> Result<(Vec<u8>, &[u8]), ComponentError> {
    let malformed = |e: wasmparser::BinaryReaderError| ComponentError::Malformed(e.to_string());
    let mut depth = 0_usize;
    let mut end_of_previous = 0;
    let mut found = None;
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(malformed)? {
            Payload::Version { encoding, range, .. } => {
                if depth == 0 && encoding != wasmparser::Encoding::Component {
                    return Err(ComponentError::NotAComponent);
                }
                depth += 1;
                end_of_previous = range.end;
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CustomSection(section) if depth == 1 && section.name() == GRAPH_SECTION => {
                let range = section.range();
                if found.replace((end_of_previous, range.end, section.data())).is_some() {
                    return Err(ComponentError::GraphTwice);
                }
                end_of_previous = range.end;
            }
            other => {
                if let Some((_, range)) = other.as_section() {
                    end_of_previous = range.end;
                }
            }
        }
    }
    let (start, end, graph) = found.ok_or(ComponentError::NoGraph)?;
    let code = [&component[..start], &component[end..]].concat();
    Ok((code, graph))
}

/// The names of what a component asks of its host.
pub fn imports(component: &[u8]) -> Result<Vec<String>, ComponentError> {
    Ok(interfaces(component)?.imports)
}

/// What a component asks of its host, and what it offers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Interfaces {
    pub imports: Vec<String>,
    pub exports: Vec<String>,
}

/// Reads the names of a component's imports and exports.
pub(crate) fn interfaces(component: &[u8]) -> Result<Interfaces, ComponentError> {
    let malformed = |e: wasmparser::BinaryReaderError| ComponentError::Malformed(e.to_string());
    let mut found = Interfaces::default();
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(malformed)? {
            Payload::Version { encoding, .. } => {
                if depth == 0 && encoding != wasmparser::Encoding::Component {
                    return Err(ComponentError::NotAComponent);
                }
                depth += 1;
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(imports) if depth == 1 => {
                for import in imports {
                    found.imports.push(import.map_err(malformed)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(exports) if depth == 1 => {
                for export in exports {
                    found.exports.push(export.map_err(malformed)?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The functions of each interface that a component imports, and each function that it imports by itself.
pub fn imported_functions(component: &[u8]) -> Result<BTreeMap<String, Vec<String>>, ComponentError> {
    let malformed = |e: wasmparser::BinaryReaderError| ComponentError::Malformed(e.to_string());
    let mut depth = 0_usize;
    let mut imported = BTreeMap::new();
    // Imports refer to their types by number: the functions of those that are interfaces, in order of all types.
    let mut types: Vec<Vec<String>> = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(malformed)? {
            Payload::Version { encoding, .. } => {
                if depth == 0 && encoding != wasmparser::Encoding::Component {
                    return Err(ComponentError::NotAComponent);
                }
                depth += 1;
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentTypeSection(section) if depth == 1 => {
                for found in section {
                    types.push(functions(&found.map_err(malformed)?));
                }
            }
            Payload::ComponentAliasSection(section) if depth == 1 => {
                for alias in section {
                    let is_type = match alias.map_err(malformed)? {
                        ComponentAlias::InstanceExport { kind, .. } => kind == ComponentExternalKind::Type,
                        ComponentAlias::Outer { kind, .. } => kind == ComponentOuterAliasKind::Type,
                        ComponentAlias::CoreInstanceExport { .. } => false,
                    };
                    types.extend(is_type.then(Vec::new));
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    let is_type = export.map_err(malformed)?.kind == ComponentExternalKind::Type;
                    types.extend(is_type.then(Vec::new));
                }
            }
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    let import = import.map_err(malformed)?;
                    let functions = match import.ty {
                        ComponentTypeRef::Instance(of) => types.get(of as usize).cloned().unwrap_or_default(),
                        _ => Vec::new(),
                    };
                    types.extend((import.ty.kind() == ComponentExternalKind::Type).then(Vec::new));
                    imported.insert(import.name.name.to_owned(), functions);
                }
            }
            _ => {}
        }
    }
    Ok(imported)
}

fn functions(found: &ComponentType<'_>) -> Vec<String> {
    let ComponentType::Instance(declared) = found else { return Vec::new() };
    let exported = declared.iter().filter_map(|declaration| match declaration {
        InstanceTypeDeclaration::Export { name, ty: ComponentTypeRef::Func(_) } => Some(name.name.to_owned()),
        _ => None,
    });
    exported.collect()
}

/// Why a component is no segment.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ComponentError {
    /// The bytes are not WebAssembly.
    #[error("malformed WebAssembly: {0}")]
    Malformed(String),
    /// A core module, or something else.
    #[error("this is a core module, not a component; make one with guest-layers/build.sh")]
    NotAComponent,
    /// No graph section.
    #[error("the component has no '{GRAPH_SECTION}' section; build segments with `edgent build`")]
    NoGraph,
    /// More than one graph section.
    #[error("the component has a '{GRAPH_SECTION}' section already")]
    GraphTwice,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_was_composed_comes_apart_again() {
        for graph in [&b""[..], b"x", &[0; 70_000]] {
            let segment = compose(standard_guest(), graph).unwrap();
            let (code, found) = split(&segment).unwrap();
            assert_eq!(code, standard_guest());
            assert_eq!(found, graph);
        }
    }

    #[test]
    fn the_standard_guest_asks_for_wasi_nn_alone() {
        let found = interfaces(standard_guest()).unwrap();
        assert!(found.imports.iter().all(|name| name.starts_with("wasi:nn/")), "{found:?}");
        assert!(!found.imports.is_empty() && !found.exports.is_empty(), "{found:?}");
        let functions = imported_functions(standard_guest()).unwrap();
        assert_eq!(
            functions.keys().collect::<Vec<_>>(),
            found.imports.iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        );
        let of = |name: &str| functions.iter().find(|(interface, _)| interface.starts_with(name)).unwrap().1;
        assert!(of("wasi:nn/graph").contains(&"load-by-name".to_owned()), "{functions:?}");
        assert!(!of("wasi:nn/graph").contains(&"load".to_owned()), "{functions:?}");
        assert_eq!(interfaces(b"\0asm\x01\0\0\0"), Err(ComponentError::NotAComponent));
    }

    #[test]
    fn what_is_no_segment_is_refused() {
        let twice = {
            let mut segment = compose(standard_guest(), b"one").unwrap();
            CustomSection { name: GRAPH_SECTION.into(), data: b"two".as_slice().into() }
                .append_to_component(&mut segment);
            segment
        };
        assert_eq!(split(&twice), Err(ComponentError::GraphTwice));
        assert_eq!(compose(&compose(standard_guest(), b"one").unwrap(), b"two"), Err(ComponentError::GraphTwice));
        assert_eq!(split(standard_guest()), Err(ComponentError::NoGraph));
        assert_eq!(split(b"\0asm\x01\0\0\0"), Err(ComponentError::NotAComponent));
        for garbage in [&b""[..], b"\0asm", b"not wasm at all"] {
            assert!(matches!(split(garbage), Err(ComponentError::Malformed(_) | ComponentError::NoGraph)));
        }
        let segment = compose(standard_guest(), b"graph").unwrap();
        for len in 0..segment.len() {
            assert!(split(&segment[..len]).is_err(), "cut at {len}");
        }
    }
}
