//! Which sizes of a layer its time is predicted from.

use edgent_bundle::{Layer, LayerKind};
use serde::{Deserialize, Serialize};

/// A type of layer: each has a regression of its own. Of the paper's types, dropout is missing, since
/// exported networks have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LayerType {
    Conv,
    Relu,
    Pool,
    Lrn,
    FullyConnected,
    /// Element by element: normalisation, for instance. Not in the paper.
    Other,
}

/// Which features a regression has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FeatureSet {
    /// Those of the Edgent paper's Table 1, as published.
    Paper,
    /// What the work consists of. The paper's sizes of a convolution leave out how large its image is, and
    /// those of a fully connected layer cannot tell their product, the weights, which is what takes time.
    Work,
}

impl LayerType {
    pub(crate) const ALL: [Self; 6] =
        [Self::Conv, Self::Relu, Self::Pool, Self::Lrn, Self::FullyConnected, Self::Other];

    pub(crate) fn of(layer: &Layer) -> Self {
        match layer.kind {
            LayerKind::Conv { .. } => Self::Conv,
            LayerKind::Relu => Self::Relu,
            LayerKind::Pool { .. } => Self::Pool,
            LayerKind::Lrn => Self::Lrn,
            LayerKind::FullyConnected => Self::FullyConnected,
            LayerKind::Other => Self::Other,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Conv => "conv",
            Self::Relu => "relu",
            Self::Pool => "pool",
            Self::Lrn => "lrn",
            Self::FullyConnected => "fully-connected",
            Self::Other => "other",
        }
    }
}

impl FeatureSet {
    pub(crate) const ALL: [Self; 2] = [Self::Paper, Self::Work];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Work => "work",
        }
    }

    /// The names of the features that [`values`](Self::values) gives, in its order.
    pub(crate) const fn names(self, layer_type: LayerType) -> &'static [&'static str] {
        match (self, layer_type) {
            (Self::Paper, LayerType::Conv) => &["input_maps", "window_per_stride_filters"],
            (Self::Work, LayerType::Conv) => &["macs", "unrolled_elements", "output_elements", "weights"],
            (Self::Paper, LayerType::Pool | LayerType::FullyConnected) => &["input_elements", "output_elements"],
            (Self::Work, LayerType::Pool) => {
                &["halving_outputs", "stepping_outputs", "dense_outputs", "dense_window_elements"]
            }
            (Self::Work, LayerType::FullyConnected) => &["input_elements", "output_elements", "weights"],
            (_, LayerType::Relu | LayerType::Lrn | LayerType::Other) => &["input_elements"],
        }
    }

    /// The names of the features that [`load_values`](Self::load_values) gives, in its order.
    pub(crate) const fn load_names(self) -> &'static [&'static str] {
        match self {
            Self::Paper => &["graph_bytes"],
            Self::Work => {
                &["graph_bytes", "conv_layers", "relu_layers", "pool_layers", "fully_connected_layers", "other_layers"]
            }
        }
    }

    /// What the time of loading a segment is predicted from: the paper's model size, and besides, of each
    /// type the layers, which are optimised then. LRN is the quickest to be, and counts as none.
    pub(crate) fn load_values(self, graph_bytes: u64, layers: &[Layer]) -> Vec<f64> {
        let count = |layer_type: LayerType| {
            layers.iter().filter(|layer| !layer.fused && LayerType::of(layer) == layer_type).count() as f64
        };
        let bytes = std::iter::once(graph_bytes as f64);
        match self {
            Self::Paper => bytes.collect(),
            Self::Work => bytes
                .chain(
                    [LayerType::Conv, LayerType::Relu, LayerType::Pool, LayerType::FullyConnected, LayerType::Other]
                        .map(count),
                )
                .collect(),
        }
    }

    /// The sizes of a layer that its time is predicted from.
    pub(crate) fn values(self, layer: &Layer) -> Vec<f64> {
        let (input, output) = (layer.input_elements as f64, layer.output_elements as f64);
        match (self, layer.kind) {
            (Self::Paper, LayerKind::Conv { input_maps, filters, window_elements, stride_elements }) => {
                // (filter size / stride)² × number of filters; windows are counted in places here, not along a side.
                vec![input_maps as f64, window_elements as f64 / stride_elements as f64 * filters as f64]
            }
            (Self::Work, LayerKind::Conv { filters, .. }) => {
                // Each output place reads the whole window of each map: the image, unrolled.
                vec![layer.macs as f64, layer.macs as f64 / filters as f64, output, layer.weights as f64]
            }
            // What tract does differs: windows of 2 × 2 side by side, others that step, and all places in turn.
            (Self::Work, LayerKind::Pool { window_elements: 4, stride_elements: 4 }) => vec![output, 0.0, 0.0, 0.0],
            (Self::Work, LayerKind::Pool { window_elements, stride_elements: ..=1 }) => {
                vec![0.0, 0.0, output, output * window_elements as f64]
            }
            (Self::Work, LayerKind::Pool { .. }) => vec![0.0, output, 0.0, 0.0],
            (Self::Work, LayerKind::FullyConnected) => vec![input, output, layer.weights as f64],
            (Self::Paper, LayerKind::Pool { .. } | LayerKind::FullyConnected) => vec![input, output],
            (_, LayerKind::Relu | LayerKind::Lrn | LayerKind::Other) => vec![input],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_that_their_names_say() {
        let conv = LayerKind::Conv { input_maps: 3, filters: 8, window_elements: 25, stride_elements: 4 };
        let pool = |window_elements, stride_elements| LayerKind::Pool { window_elements, stride_elements };
        let cases: [(LayerKind, &[f64], &[f64]); 8] = [
            (conv, &[3.0, 50.0], &[4_000.0, 500.0, 60.0, 70.0]),
            (pool(4, 4), &[50.0, 60.0], &[60.0, 0.0, 0.0, 0.0]),
            (pool(9, 4), &[50.0, 60.0], &[0.0, 60.0, 0.0, 0.0]),
            (pool(9, 1), &[50.0, 60.0], &[0.0, 0.0, 60.0, 540.0]),
            (LayerKind::Relu, &[50.0], &[50.0]),
            (LayerKind::Lrn, &[50.0], &[50.0]),
            (LayerKind::FullyConnected, &[50.0, 60.0], &[50.0, 60.0, 70.0]),
            (LayerKind::Other, &[50.0], &[50.0]),
        ];
        for (kind, paper, work) in cases {
            let layer = Layer {
                name: String::new(),
                operator: String::new(),
                kind,
                input_elements: 50,
                output_elements: 60,
                weights: 70,
                macs: 4_000,
                fused: false,
            };
            for (set, expected) in [(FeatureSet::Paper, paper), (FeatureSet::Work, work)] {
                assert_eq!(set.values(&layer), expected, "{kind:?} by {}", set.name());
                assert_eq!(set.names(LayerType::of(&layer)).len(), expected.len(), "{kind:?} by {}", set.name());
                let load = set.load_values(9, &[layer.clone(), layer.clone()]);
                assert_eq!((load.len(), load[0]), (set.load_names().len(), 9.0));
                let counted = load[1..].iter().sum::<f64>();
                assert_eq!(counted > 0.0, set == FeatureSet::Work && kind != LayerKind::Lrn, "{kind:?}: {load:?}");
            }
        }
    }
}
