//! Where a graph's time goes, operator by operator.

use crate::graph::Runner;
use crate::{ComputeError, Graph, Stop, Tensor};
use std::time::Instant;
use tract_onnx::prelude::{Node, TypedModel};
use tract_onnx::tract_core::internal::{TypedFact, TypedOp};

/// One operator as it runs on this processor.
#[derive(Clone, Debug)]
pub struct Timed {
    /// Its name: that of the network's operator that it is a part of, and perhaps what part.
    pub name: String,
    /// What it is in tract, or here.
    pub operator: String,
    /// What was chosen for this processor: kernels, layouts.
    pub choices: Vec<String>,
    /// What goes in and comes out.
    pub shapes: String,
    /// The median time of a run.
    pub us: f64,
}

impl Graph {
    /// Runs the graph some times on so many threads, and tells each operator's time, in the order in which they run.
    pub fn timed(&self, inputs: &[(String, Tensor)], threads: usize, runs: usize) -> Result<Vec<Timed>, ComputeError> {
        let Runner::Tract(plan) = self.runner() else {
            return Err(ComputeError::Failed("onnxruntime runs this graph, and tells no operator's time".to_owned()));
        };
        let context = self.context().map_err(|e| ComputeError::Failed(e.to_string()))?;
        let mut context = context.on_threads(threads);
        let (model, nodes) = (plan.model(), plan.model().nodes());
        let (mut times_us, mut order) = (vec![Vec::with_capacity(runs); nodes.len()], Vec::new());
        for run in 0..runs {
            let mut since = Instant::now();
            context.observed(inputs.to_vec(), &Stop::never(), |node| {
                times_us[node].push(since.elapsed().as_secs_f64() * 1e6);
                if run == 0 {
                    order.push(node);
                }
                since = Instant::now();
            })?;
        }
        let middle = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times.get(times.len() / 2).copied().unwrap_or(0.0)
        };
        Ok(order.into_iter().map(|node| described(model, &nodes[node], middle(&mut times_us[node]))).collect())
    }
}

fn described(model: &TypedModel, node: &Node<TypedFact, Box<dyn TypedOp>>, us: f64) -> Timed {
    let facts = model.node_input_facts(node.id).unwrap_or_default();
    let shape = |fact: &TypedFact| format!("{:?}", fact.shape);
    let listed = |shapes: Vec<String>| shapes.join(" ");
    let inputs = listed(facts.into_iter().map(shape).collect());
    let outputs = listed(node.outputs.iter().map(|output| shape(&output.fact)).collect());
    Timed {
        name: node.name.clone(),
        operator: node.op.name().into_owned(),
        choices: node.op.info().unwrap_or_default(),
        shapes: format!("{inputs} → {outputs}"),
        us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{self, Shape};

    #[test]
    fn each_operator_is_told_with_what_it_takes() {
        let made = synthetic::layer(Shape::Pool { maps: 3, side_px: 8, window_px: 2, stride_px: 2 }, 1).unwrap();
        let graph = Graph::load(&made.graph, made.format).unwrap();
        let inputs = graph.inputs().iter().map(|port| (port.name.clone(), synthetic::noise(&port.fact, 1).unwrap()));
        let timed = graph.timed(&inputs.collect::<Vec<_>>(), 1, 3).unwrap();
        let pool = timed.iter().find(|timed| timed.operator.contains("Pool")).unwrap();
        assert!(pool.us > 0.0, "{timed:?}");
        assert!(pool.shapes.contains("3,8,8") && pool.shapes.contains("3,4,4"), "{}", pool.shapes);
    }
}
