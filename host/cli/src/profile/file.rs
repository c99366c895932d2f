//! A profile on disk: what layers cost on a host, and what a bundle's segments did there.

use super::features::{FeatureSet, LayerType};
use crate::output::BadInput;
use anyhow::Result;
use edgent_bundle::{Digest, Layer, Manifest, Segment, standard_guest};
use edgent_link::{Codec, CodecTime};
use edgent_planner::Regression;
use edgent_runtime::{MeasuredHost, build_name, codec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The version of the file that is written and read.
pub(crate) const FORMAT: u32 = 1;

/// A profile of the largest bundle that is accepted has about 600 KB.
const FILE_BYTES_MAX: usize = 4 << 20;

const TEXT_BYTES_MAX: usize = 200;
const CODECS_MAX: usize = 64;

/// What is known of one host's speed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// Name and version of the program that measured.
    pub(crate) host_build: String,
    /// A call through a component that computes nothing. Part of each layer's time as measured, and so of
    /// each regression; a segment has it once.
    pub(crate) call_us: f64,
    /// Coding or decoding an activation as u8, for each mebibyte on the wire, on this host.
    pub(crate) codec_us_per_mib: f64,
    /// What each codec takes, by its name. Profiles of older programs know of `u8` alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) codecs: BTreeMap<String, CodecTimes>,
    /// For each type of layer, from the features of the paper and from those of the work.
    pub(crate) layers: BTreeMap<LayerType, BTreeMap<FeatureSet, Fitted>>,
    /// Reading, optimising and instantiating a segment; by set of features too.
    pub(crate) load: BTreeMap<FeatureSet, Fitted>,
    /// What the segments of one bundle did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bundle: Option<Measured>,
}

/// What a codec takes, for each mebibyte that an activation has as it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CodecTimes {
    pub(crate) encode_us_per_mib: f64,
    pub(crate) decode_us_per_mib: f64,
}

/// A regression and how good it is on samples that it was not fitted to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fitted {
    pub(crate) features: Vec<String>,
    /// Microseconds for each unit of each feature.
    pub(crate) coefficients_us: Vec<f64>,
    pub(crate) constant_us: f64,
    pub(crate) samples: usize,
    pub(crate) r2: f64,
    pub(crate) median_relative_error: f64,
}

/// Times of a bundle's segments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measured {
    /// Which bundle.
    pub(crate) digest: String,
    /// In the manifest's order.
    pub(crate) segments: Vec<Times>,
}

/// A distribution of times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Times {
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) runs: usize,
}

impl Profile {
    /// Reads a profile and checks everything in it.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let wrong = |e: &dyn std::fmt::Display| BadInput::error(format!("{}: {e}", path.display()));
        let bytes = std::fs::read(path).map_err(|e| wrong(&e))?;
        Self::parse(&bytes).map_err(|e| wrong(&e))
    }

    /// As [`read`](Self::read), from memory.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        // The format first: what else is in a file of another one, nobody knows.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        if bytes.len() > FILE_BYTES_MAX {
            return Err(BadInput::error(format!("a profile of more than {FILE_BYTES_MAX} bytes")));
        }
        let Version { format } = serde_json::from_slice(bytes).map_err(BadInput::error)?;
        if format != FORMAT {
            return Err(BadInput::error(format!(
                "format {format} is not {FORMAT}, the one this program reads; run `edgent profile` again"
            )));
        }
        let profile: Self = serde_json::from_slice(bytes).map_err(BadInput::error)?;
        profile.check()?;
        Ok(profile)
    }

    /// What each codec takes on the profile's host.
    pub(crate) fn codecs(&self) -> Vec<CodecTime> {
        if self.codecs.is_empty() {
            return codec::times_of_u8(self.codec_us_per_mib);
        }
        let known = self.codecs.iter().filter_map(|(name, times)| Some((Codec::from_name(name)?, times)));
        let time = |(codec, times): (Codec, &CodecTimes)| CodecTime {
            codec,
            encode_us_per_mib: times.encode_us_per_mib,
            decode_us_per_mib: times.decode_us_per_mib,
        };
        known.map(time).collect()
    }

    /// Time of each segment of a bundle on the profile's host: as measured, if it is the bundle that was
    /// measured, and predicted from its layers otherwise. Infinite where nothing can be told.
    pub(crate) fn segments_us(&self, manifest: &Manifest, digest: &str) -> Result<Vec<f64>> {
        match &self.bundle {
            Some(measured) if measured.digest == digest => {
                let (got, needed) = (measured.segments.len(), manifest.segments.len());
                if got != needed {
                    return Err(BadInput::error(format!("a profile of {got} segments for a bundle of {needed}")));
                }
                Ok(measured.segments.iter().map(|times| times.p50_us).collect())
            }
            _ => self.predicted_us(manifest, FeatureSet::Work),
        }
    }

    /// A profile that knows nothing but what a bundle's segments take.
    pub(crate) fn of_bundle(digest: String, segments_us: &[f64], codecs: &[CodecTime]) -> Self {
        let times = |us: &f64| Times { p50_us: *us, p90_us: *us, runs: 1 };
        let codec = |time: &CodecTime| {
            let CodecTime { encode_us_per_mib, decode_us_per_mib, .. } = *time;
            (time.codec.name().to_owned(), CodecTimes { encode_us_per_mib, decode_us_per_mib })
        };
        Self {
            format: FORMAT,
            host_build: build_name(),
            call_us: 0.0,
            codec_us_per_mib: 0.0,
            codecs: codecs.iter().map(codec).collect(),
            layers: BTreeMap::new(),
            load: BTreeMap::new(),
            bundle: Some(Measured { digest, segments: segments_us.iter().map(times).collect() }),
        }
    }

    /// The same, predicted in any case.
    pub(crate) fn predicted_us(&self, manifest: &Manifest, set: FeatureSet) -> Result<Vec<f64>> {
        let fitted = self.layers.iter().filter_map(|(layer_type, sets)| Some((layer_type, sets.get(&set)?)));
        let regressions = fitted
            .map(|(layer_type, fitted)| Ok((*layer_type, fitted.regression()?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        let layer_us = |layer: &Layer| match regressions.get(&LayerType::of(layer)) {
            _ if layer.fused => 0.0,
            // Each regression has a call in it.
            Some(regression) => (regression.predict(&set.values(layer)) - self.call_us).max(0.0),
            None => f64::INFINITY,
        };
        let segment_us = |segment: &Segment| self.call_us + segment.layers.iter().map(layer_us).sum::<f64>();
        Ok(manifest.segments.iter().map(segment_us).collect())
    }

    /// Time of loading all of a bundle's segments on the profile's host.
    pub(crate) fn load_us(&self, manifest: &Manifest, set: FeatureSet) -> Result<f64> {
        let Some(fitted) = self.load.get(&set) else { return Ok(f64::INFINITY) };
        let regression = fitted.regression()?;
        let segment_us = |segment: &Segment| {
            let graph_bytes = segment.component.bytes.saturating_sub(standard_guest().len() as u64);
            regression.predict(&set.load_values(graph_bytes, &segment.layers))
        };
        Ok(manifest.segments.iter().map(segment_us).sum())
    }

    fn check(&self) -> Result<()> {
        let numbers = [("call_us", self.call_us), ("codec_us_per_mib", self.codec_us_per_mib)];
        for (name, us) in numbers {
            ensure_time(name, us)?;
        }
        if self.codecs.len() > CODECS_MAX {
            return Err(BadInput::error(format!("{} codecs; at most {CODECS_MAX} are read", self.codecs.len())));
        }
        for (codec, times) in &self.codecs {
            ensure_time(codec, times.encode_us_per_mib)?;
            ensure_time(codec, times.decode_us_per_mib)?;
        }
        let digest = self.bundle.iter().map(|bundle| &bundle.digest);
        if [&self.host_build].into_iter().chain(digest).any(|text| text.len() > TEXT_BYTES_MAX) {
            return Err(BadInput::error(format!("a text of more than {TEXT_BYTES_MAX} bytes")));
        }
        // All regressions or none.
        let is_of_a_bundle = self.layers.is_empty() && self.load.is_empty() && self.bundle.is_some();
        for set in FeatureSet::ALL.into_iter().filter(|_| !is_of_a_bundle) {
            let name = format!("load by {}", set.name());
            let fitted =
                self.load.get(&set).ok_or_else(|| BadInput::error(format!("{name}: there is no regression")))?;
            fitted.check(&name, set.load_names())?;
            for layer_type in LayerType::ALL {
                let name = format!("{} by {}", layer_type.name(), set.name());
                let fitted = self.layers.get(&layer_type).and_then(|sets| sets.get(&set));
                let fitted = fitted.ok_or_else(|| BadInput::error(format!("{name}: there is no regression")))?;
                fitted.check(&name, set.names(layer_type))?;
            }
        }
        for (index, times) in self.bundle.iter().flat_map(|bundle| &bundle.segments).enumerate() {
            let name = format!("segment {index}");
            ensure_time(&name, times.p50_us)?;
            ensure_time(&name, times.p90_us)?;
            if times.p90_us < times.p50_us || times.runs == 0 {
                return Err(BadInput::error(format!("{name}: its times are those of no run")));
            }
        }
        Ok(())
    }
}

impl MeasuredHost for Profile {
    fn segments_us(&self, manifest: &Manifest, digest: Digest) -> Result<Vec<f64>, String> {
        Profile::segments_us(self, manifest, &digest.to_string()).map_err(|e| e.to_string())
    }

    fn coding_slowdown(&self) -> f64 {
        let of_u8 = |times: &[CodecTime]| {
            times
                .iter()
                .find(|time| time.codec == Codec::U8)
                .map(|time| time.encode_us_per_mib + time.decode_us_per_mib)
        };
        let slowdown = of_u8(&self.codecs()).zip(of_u8(codec::times())).map(|(there, here)| there / here);
        slowdown.filter(|slowdown| slowdown.is_finite()).unwrap_or(1.0)
    }
}

impl Fitted {
    /// The regression that was fitted.
    pub(crate) fn regression(&self) -> Result<Regression> {
        Regression::from_coefficients(self.coefficients_us.clone(), self.constant_us).map_err(BadInput::error)
    }

    fn check(&self, name: &str, features: &[&str]) -> Result<()> {
        let wrong = |what: String| Err(BadInput::error(format!("{name}: {what}")));
        if self.features != features || self.coefficients_us.len() != features.len() {
            return wrong(format!("its features are not {}", features.join(", ")));
        }
        let error = self.median_relative_error;
        if !self.r2.is_finite() || !error.is_finite() || error < 0.0 {
            return wrong("its errors are no numbers".to_owned());
        }
        self.regression().map(|_| ()).or_else(|e| wrong(e.to_string()))
    }
}

fn ensure_time(name: &str, us: f64) -> Result<()> {
    if us.is_finite() && us >= 0.0 { Ok(()) } else { Err(BadInput::error(format!("{name}: {us} is no time"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgent_bundle::{Blob, Boundary, Evidence, Exit, LayerKind, Tensor, Tier};

    /// A profile of format 1, as it was written; to be read for good.
    const SAMPLE: &str = include_str!("sample-format-1.json");
    const DIGEST: &str = "sha256:b7ecbcc487392fa1f5150b2bc84b030dac92de9d1a4395a34a256ef48f7bbab7";

    fn layer(kind: LayerKind, input_elements: u64, fused: bool) -> Layer {
        let (name, operator) = ("l".to_owned(), "Op".to_owned());
        Layer { name, operator, kind, input_elements, output_elements: 10, weights: 0, macs: 0, fused }
    }

    fn manifest(segments: Vec<Vec<Layer>>) -> Manifest {
        let tensor = |index: usize| Tensor {
            name: index.to_string(),
            element_type: "f32".into(),
            dims: vec![1, 10],
            finite: false,
        };
        let count = segments.len();
        let segment = |(index, layers): (usize, Vec<Layer>)| Segment {
            name: format!("s{index}"),
            from: index,
            to: index + 1,
            takes: vec![index],
            gives: vec![index + 1],
            layers,
            macs: 0,
            graph_format: "nnef".into(),
            tier: Tier::Native,
            component: Blob { digest: Digest::of(b""), bytes: 0 },
        };
        Manifest {
            format: 1,
            name: "m".into(),
            classes: (0..10).map(|class| class.to_string()).collect(),
            tensors: (0..=count).map(tensor).collect(),
            boundaries: (0..=count).map(|index| Boundary { tensors: vec![index], coded: vec![] }).collect(),
            segments: segments.into_iter().enumerate().map(segment).collect(),
            exits: vec![Exit {
                name: "e".into(),
                path: (0..count).collect(),
                accuracy: 0.5,
                sure_at: None,
                coded: Vec::new(),
            }],
            evidence: Evidence::default(),
        }
    }

    #[test]
    fn format_1_is_read() {
        let profile = Profile::parse(SAMPLE.as_bytes()).unwrap();
        assert_eq!((profile.format, profile.call_us, profile.layers.len()), (1, 3.5, 6));
        let conv = &profile.layers[&LayerType::Conv][&FeatureSet::Work];
        assert_eq!((conv.coefficients_us[0], conv.constant_us, conv.samples), (2e-5, 7.5, 93));
        assert_eq!(profile.bundle.as_ref().unwrap().segments[1], Times { p50_us: 128.5, p90_us: 136.25, runs: 320 });
        let again = serde_json::to_vec(&profile).unwrap();
        assert_eq!(Profile::parse(&again).unwrap(), profile);
    }

    #[test]
    fn what_is_no_profile_is_bad_input() {
        let cases = [
            ("\"format\": 1", "\"format\": 2", "format 2 is not 1"),
            ("\"format\": 1", "\"format\": \"1\"", "u32"),
            ("\"call_us\": 3.5", "\"call_us\": -1", "call_us: -1 is no time"),
            ("\"call_us\": 3.5", "\"call_us\": NaN", "expected value"),
            ("\"call_us\": 3.5", "\"call_us\": 1e999", "out of range"),
            ("\"call_us\": 3.5", "\"call_us\": null", "f64"),
            ("\"call_us\": 3.5,", "", "call_us"),
            ("\"call_us\": 3.5", "\"call_us\": 3.5, \"colour\": 1", "colour"),
            ("[2e-05, ", "[", "conv by work: its features are not macs, "),
            ("[2e-05, ", "[-2e-05, ", "conv by work: a size, a coefficient"),
            ("\"unrolled_elements\"", "\"input_elements\"", "conv by work: its features are not"),
            ("\"lrn\"", "\"lrn2\"", "lrn2"),
            ("\"relu_layers\", ", "", "load by work: its features"),
            ("\"p50_us\": 128.5", "\"p50_us\": 1285", "segment 1: "),
            ("\"runs\": 320", "\"runs\": 0", "segment 0: "),
            ("\"runs\": 320", "\"runs\": -1", "usize"),
            ("\"median_relative_error\": 0.25", "\"median_relative_error\": -0.25", "its errors"),
        ];
        for (from, to, said) in cases {
            assert!(SAMPLE.contains(from), "{from}");
            let error = Profile::parse(SAMPLE.replacen(from, to, 1).as_bytes()).unwrap_err();
            assert!(error.is::<BadInput>() && error.to_string().contains(said), "{to}: {error}");
        }
        for bytes in [&b""[..], b"{}", b"[]", &vec![b' '; FILE_BYTES_MAX + 1]] {
            assert!(Profile::parse(bytes).unwrap_err().is::<BadInput>());
        }
        let error = Profile::read(Path::new("no-such-file")).unwrap_err();
        assert!(error.is::<BadInput>() && error.to_string().contains("no-such-file"), "{error}");
    }

    #[test]
    fn a_host_is_emulated_by_what_is_known_of_it() {
        let us = [10.0, 20.0];
        let profile = Profile::of_bundle(DIGEST.to_owned(), &us, &codec::slowed(codec::times(), 30.0));
        let profile = Profile::parse(&serde_json::to_vec(&profile).unwrap()).unwrap();
        assert!((profile.coding_slowdown() - 30.0).abs() < 1e-6);
        let two = manifest(vec![vec![layer(LayerKind::Relu, 10, false)]; 2]);
        let host: &dyn MeasuredHost = &profile;
        let digest = DIGEST.parse().unwrap();
        assert_eq!(host.segments_us(&two, digest).unwrap(), us);
        let of_another = host.segments_us(&two, Digest::of(b"another")).unwrap();
        assert_eq!(of_another, [f64::INFINITY; 2], "nothing is known of layers");
        let three = manifest(vec![vec![]; 3]);
        assert!(host.segments_us(&three, digest).unwrap_err().contains("2 segments for a bundle of 3"));
    }

    #[test]
    fn times_are_measured_ones_or_predicted_ones() {
        let profile = Profile::parse(SAMPLE.as_bytes()).unwrap();
        let relu = |fused| layer(LayerKind::Relu, 10_000, fused);
        let impossible = LayerKind::Conv { input_maps: 0, filters: 0, window_elements: 0, stride_elements: 0 };
        let manifest_ = manifest(vec![
            vec![relu(false)],
            vec![relu(false), layer(LayerKind::Lrn, 1_000, false), relu(true)],
            vec![layer(impossible, 0, false)],
        ]);
        // relu: 4 + 0.0005 an element; lrn: 3.75 + 0.005; a call is 3.5.
        let predicted = profile.segments_us(&manifest_, "sha256:another").unwrap();
        assert!((predicted[0] - 9.0).abs() < 1e-9 && (predicted[1] - 14.25).abs() < 1e-9, "{predicted:?}");
        assert_eq!(predicted[2], f64::INFINITY, "sizes that are none are unknown");
        assert_eq!(profile.load_us(&manifest_, FeatureSet::Paper).unwrap(), 3.0 * 900.0);
        // Two layers of ReLU, none of the LRN and the fused one, and a convolution.
        assert_eq!(profile.load_us(&manifest_, FeatureSet::Work).unwrap(), 3.0 * 200.0 + 2.0 * 150.0 + 500.0);
        assert!(profile.segments_us(&manifest_, DIGEST).unwrap_err().is::<BadInput>(), "three segments, not two");
        let measured = profile.segments_us(&manifest(vec![vec![relu(false)]; 2]), DIGEST).unwrap();
        assert_eq!(measured, [130.0, 128.5]);
    }
}
