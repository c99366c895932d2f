//! What each of the things done here for speed gains: a network prepared without it.

use crate::fast::Part;
use crate::{Graph, ImportError, Imported};

/// Something that is done for speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Convolutions, and products that are some, by panels.
    Convolutions,
    /// Convolutions of each channel by itself, by rows.
    Depthwise,
    /// What follows a convolution is done with it.
    Following,
    /// Pools by rows.
    Pools,
    /// Element-wise operators behind each other in one.
    Chains,
    /// Local response normalisation by square roots.
    Lrn,
}

impl Pass {
    /// Each of them.
    pub const ALL: [Self; 6] =
        [Self::Convolutions, Self::Depthwise, Self::Following, Self::Pools, Self::Chains, Self::Lrn];

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Convolutions => "convolutions",
            Self::Depthwise => "depthwise",
            Self::Following => "following",
            Self::Pools => "pools",
            Self::Chains => "chains",
            Self::Lrn => "lrn",
        }
    }

    pub(crate) fn part(self) -> Option<Part> {
        match self {
            Self::Convolutions => Some(Part::Convolutions),
            Self::Depthwise => Some(Part::Depthwise),
            Self::Following => Some(Part::Following),
            Self::Pools => Some(Part::Pools),
            Self::Chains => Some(Part::Chains),
            Self::Lrn => None,
        }
    }
}

impl Imported {
    /// The whole network without one of them.
    pub fn without(&self, pass: Pass) -> Result<Graph, ImportError> {
        Graph::prepare_without(self.model.clone(), Some(pass)).map_err(|e| ImportError::Unsupported(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Difference, Pins, Stop, example};

    /// Each leaves other operators in place, and about the same answers.
    #[test]
    fn a_network_without_one_gives_the_same_by_other_operators() {
        if !crate::vector::is_wide() {
            return;
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/branchy-alexnet/branchy-alexnet.onnx");
        let imported = Imported::from_onnx(&std::fs::read(path).unwrap(), &Pins::default()).unwrap();
        let input = example(&imported.inputs()[0].fact, 3).unwrap();
        let operators = |graph: &Graph| -> Vec<String> {
            let named = vec![(imported.inputs()[0].name.clone(), input.clone())];
            let mut kinds: Vec<_> =
                graph.timed(&named, 1, 1).unwrap().into_iter().map(|timed| timed.operator).collect();
            kinds.sort();
            kinds
        };
        let all = imported.whole().unwrap();
        let expected = all.run_once(vec![input.clone()]).unwrap();
        for pass in [Pass::Convolutions, Pass::Following, Pass::Pools, Pass::Lrn] {
            let without = imported.without(pass).unwrap();
            assert_ne!(operators(&all), operators(&without), "{}", pass.name());
            let mut context = without.context().unwrap();
            let named = vec![(imported.inputs()[0].name.clone(), input.clone())];
            for ((_, given), expected) in context.compute(named, &Stop::never()).unwrap().iter().zip(&expected) {
                let Difference { most, greatest } = Difference::of(given, expected).unwrap();
                assert!(most <= 1e-4 * greatest, "{}: {most} of {greatest}", pass.name());
            }
        }
    }
}
