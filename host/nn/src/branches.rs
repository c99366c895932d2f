//! Branches of an ONNX file that are decided before it runs.
//!
//! Exporters write `If` for what depends on an input's rank or size, or on an input that is always the same, as the
//! sample rate of an audio model. Once those are fixed, one branch is taken and the other is not; often the other
//! would not even fit, and tract refuses the whole. So conditions that have become constant are looked for, and the
//! branch that is taken is put in place of its `If`.

use crate::graph::onnx;
use crate::guard::guarded;
use crate::onnx::{NESTING_MAX, part};
use crate::{Fact, ImportError, Port};
use std::collections::{BTreeMap, BTreeSet};
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};
use tract_onnx::prelude::{Framework, InferenceModelExt};

/// The most branches that are put in place of an `If`.
const BRANCHES_MAX: usize = 256;

/// Puts branches in place; says where. `inputs` are those of the file.
pub(crate) fn decide(proto: &mut ModelProto, inputs: &[Port]) -> Result<Vec<String>, ImportError> {
    let mut notes = Vec::new();
    let mut undecided = BTreeSet::new();
    while notes.len() < BRANCHES_MAX {
        let next = proto.graph.iter().flat_map(|graph| graph.node.iter().enumerate());
        let next = next.filter(|(_, node)| node.op_type == "If" && node.domain.is_empty());
        let condition = |node: &NodeProto| node.input.first().cloned().unwrap_or_default();
        let next = next.map(|(at, node)| (at, condition(node)));
        let Some((at, condition)) = next.into_iter().find(|(_, condition)| !undecided.contains(condition)) else {
            return Ok(notes);
        };
        match constant(proto, inputs, &condition) {
            Some(is_true) => {
                let branch = if is_true { "then_branch" } else { "else_branch" };
                let graph = proto.graph.as_mut().ok_or(ImportError::NoOutput)?;
                let name = put_in_place(graph, at, branch)?;
                notes.push(format!("'{name}' always takes its {branch}"));
            }
            None => {
                undecided.insert(condition);
            }
        }
    }
    Ok(notes)
}

/// What a condition always is, if it is always the same.
fn constant(proto: &ModelProto, inputs: &[Port], condition: &str) -> Option<bool> {
    let gives = Port { name: condition.to_owned(), fact: Fact { element_type: crate::ElementType::U8, dims: vec![] } };
    let mut file = part(proto, inputs, &[gives])?;
    // The type that it was just said to have is not the right one, and not asked for.
    file.graph.iter_mut().flat_map(|graph| &mut graph.output).for_each(|output| output.r#type = None);
    let konst = guarded(|| {
        let model = onnx().model_for_proto_model(&file)?.into_typed()?.into_decluttered()?;
        let konst = model.outlet_fact(model.outputs[0])?.konst.clone();
        konst.map(|konst| konst.cast_to_scalar::<bool>()).transpose()
    });
    konst.ok().flatten()
}

/// Replaces the `If` at a place by one of its branches. Returns its name.
fn put_in_place(graph: &mut GraphProto, at: usize, branch: &str) -> Result<String, ImportError> {
    let node = graph.node.remove(at);
    let name = if node.name.is_empty() { node.output.first().cloned().unwrap_or_default() } else { node.name };
    let taken = node.attribute.into_iter().find(|attribute| attribute.name == branch).and_then(|attribute| attribute.g);
    let taken = taken.filter(|taken| taken.output.len() == node.output.len());
    let mut taken = taken
        .ok_or_else(|| ImportError::Unsupported(format!("'{name}' is an If whose {branch} gives something else")))?;
    let own = taken.initializer.iter().map(|tensor| &tensor.name);
    let own: BTreeSet<String> =
        own.chain(taken.node.iter().flat_map(|node| &node.output)).filter(|name| !name.is_empty()).cloned().collect();
    // The same names may be used in other branches of other operators.
    let mut names: BTreeMap<String, String> =
        own.iter().map(|inner| (inner.clone(), format!("{name}.{inner}"))).collect();
    let mut copies = Vec::new();
    for (inner, outer) in taken.output.iter().zip(&node.output).filter(|(_, outer)| !outer.is_empty()) {
        // What a branch hands out need not be its own, nor be handed out once.
        let first = own.contains(&inner.name) && !node.output.contains(&names[&inner.name]);
        if first {
            names.insert(inner.name.clone(), outer.clone());
        } else {
            let from = names.get(&inner.name).unwrap_or(&inner.name).clone();
            copies.push(NodeProto {
                op_type: "Identity".to_owned(),
                input: vec![from],
                output: vec![outer.clone()],
                ..NodeProto::default()
            });
        }
    }
    rename(&mut taken, &names, 0)?;
    for tensor in &mut taken.initializer {
        if let Some(to) = names.get(&tensor.name) {
            to.clone_into(&mut tensor.name);
        }
    }
    for inner in taken.node.iter_mut().filter(|inner| !inner.name.is_empty()) {
        inner.name = format!("{name}.{}", inner.name);
    }
    graph.initializer.extend(taken.initializer);
    graph.node.splice(at..at, taken.node.into_iter().chain(copies));
    Ok(name)
}

/// Calls values by other names, wherever an operator gives or uses them.
pub(crate) fn rename(
    graph: &mut GraphProto,
    names: &BTreeMap<String, String>,
    depth: usize,
) -> Result<(), ImportError> {
    if depth > NESTING_MAX {
        return Err(ImportError::Unsupported(format!("graphs are nested more than {NESTING_MAX} deep")));
    }
    let other = |name: &mut String| {
        if let Some(to) = names.get(name) {
            to.clone_into(name);
        }
    };
    for node in &mut graph.node {
        node.input.iter_mut().chain(&mut node.output).for_each(other);
        for attribute in &mut node.attribute {
            for inner in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                rename(inner, names, depth + 1)?;
            }
        }
    }
    // What an inner graph gives may be a value of the one around it.
    if depth > 0 {
        graph.output.iter_mut().for_each(|output| other(&mut output.name));
    }
    Ok(())
}
