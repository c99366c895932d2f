//! A network as a host computes it that has both backends: by its segments, each of them by the faster.

use super::Net;
use crate::build::{CODEC_SAMPLES, Order, build_as};
use crate::output::Output;
use anyhow::{Context, Result};
use edgent_bundle::Tier;
use edgent_nn::{Backend, GraphFormat, Onnxruntime, Pins, Stop, Tensor};
use edgent_runtime::{Deployment, Terms};
use edgent_sandbox::Engine;
use std::collections::BTreeMap;

pub(super) struct Both {
    deployment: Deployment,
    /// By the bundle's inputs, where each stands among the network's.
    order: Vec<usize>,
}

impl Both {
    pub(super) fn prepare(net: &Net, onnxruntime: Onnxruntime, threads: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (guests, tier, graphs) = (BTreeMap::new(), Tier::Native, GraphFormat::Onnx);
        let (model, out, codec_samples, name) = (&*net.path, folder.path(), CODEC_SAMPLES.min(1), None);
        let order = Order { model, out, codec_samples, name, pins: Pins::default(), guests, tier, graphs };
        let bundle = build_as(order, &Output::new(false).silent())?;
        let terms = Terms { onnxruntime: Some(onnxruntime), threads, ..Terms::default() };
        let deployment = Deployment::prepare_on(&bundle, &Engine::new()?, &terms)?;
        deployment.choose_threads();
        let manifest = bundle.manifest();
        let names = manifest.boundaries[0].tensors.iter().map(|tensor| &manifest.tensors[*tensor].name);
        let place = |name: &String| net.inputs.iter().position(|(input, _)| input == name);
        let order = names.map(|name| place(name).with_context(|| format!("the network has no '{name}'")));
        Ok(Self { order: order.collect::<Result<_>>()?, deployment })
    }

    /// Of how many segments on the way to the last exit onnxruntime does the arithmetic, and how many those are.
    pub(super) fn by_onnxruntime(&self) -> [usize; 2] {
        let path = &self.deployment.manifest().exits[self.last_exit()].path;
        let theirs = self.deployment.choices().filter(|(_, choice)| choice.backend == Backend::Onnxruntime);
        [theirs.filter(|(index, _)| path.contains(index)).count(), path.len()]
    }

    pub(super) fn compute(&self, inputs: &[(String, Tensor)]) -> Result<()> {
        let inputs = self.order.iter().map(|at| inputs[*at].1.clone()).collect();
        let exit = self.last_exit();
        let all = 0..self.deployment.manifest().exits[exit].path.len();
        Ok(self.deployment.run(exit, all, inputs, &Stop::never()).map(drop)?)
    }

    fn last_exit(&self) -> usize {
        self.deployment.manifest().exits.len() - 1
    }
}
