//! A bundle is read as it was written, or refused with the reason.
#![allow(clippy::unwrap_used)]

use edgent_bundle::*;
use std::fs;
use std::path::Path;

fn manifest(draft: &mut Draft) -> Manifest {
    let tensor = |name: &str, dims: &[usize]| Tensor {
        name: name.into(),
        element_type: "f32".into(),
        dims: dims.into(),
        finite: false,
    };
    let boundary = |tensors: &[usize]| Boundary {
        tensors: tensors.into(),
        coded: vec![CodedBytes { codec: "u8-lz4".into(), p50_bytes: 2, p90_bytes: 3 }],
    };
    let segment = |name: &str, from, to, takes: &[usize], gives: &[usize], component| Segment {
        name: name.into(),
        from,
        to,
        takes: takes.into(),
        gives: gives.into(),
        layers: vec![Layer {
            name: "l".into(),
            operator: "Conv".into(),
            kind: LayerKind::Conv { input_maps: 1, filters: 1, window_elements: 2, stride_elements: 1 },
            input_elements: 4,
            output_elements: 3,
            weights: 3,
            macs: 6,
            fused: false,
        }],
        macs: 1,
        graph_format: "nnef".into(),
        tier: Tier::Native,
        component,
    };
    Manifest {
        format: 1,
        name: "tiny".into(),
        classes: vec!["no".into(), "yes".into()],
        tensors: vec![
            tensor("image", &[1, 4]),
            tensor("mid", &[1, 3]),
            tensor("beside", &[1, 5]),
            tensor("late", &[1, 3]),
            tensor("out", &[1, 2]),
        ],
        // The second segment lets a tensor pass it by.
        boundaries: vec![boundary(&[0]), boundary(&[1, 2]), boundary(&[3, 2]), boundary(&[4])],
        segments: vec![
            segment("a", 0, 1, &[0], &[1, 2], draft.add(component(b"a"))),
            segment("b", 1, 2, &[1], &[3], draft.add(component(b"b"))),
            segment("c", 2, 3, &[2, 3], &[4], draft.add(component(b"c"))),
        ],
        exits: vec![Exit {
            name: "out".into(),
            path: vec![0, 1, 2],
            accuracy: 0.5,
            sure_at: Some(0.9),
            coded: vec![CodedAccuracy { cut: 1, codec: "u8".into(), accuracy: 0.25 }],
        }],
        evidence: Evidence::default(),
    }
}

fn component(graph: &[u8]) -> Vec<u8> {
    compose(standard_guest(), graph).unwrap()
}

fn write(dir: &Path) -> Bundle {
    let mut draft = Draft::default();
    let manifest = manifest(&mut draft);
    draft.write(dir, &manifest).unwrap()
}

#[test]
fn a_bundle_is_read_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let written = write(&dir.path().join("m"));
    let opened = Bundle::open(written.dir()).unwrap();
    assert_eq!(opened.digest(), written.digest());
    assert_eq!(opened.manifest(), written.manifest());
    assert_eq!(opened.blob(&opened.manifest().segments[1].component).unwrap(), component(b"b"));
    // Writing again replaces it and leaves nothing beside it.
    assert_eq!(write(written.dir()).digest(), written.digest());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_that_is_no_bundle_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    let mut draft = Draft::default();
    let manifest = manifest(&mut draft);
    assert!(matches!(draft.write(dir.path(), &manifest), Err(BundleError::Occupied(_))));
    assert!(dir.path().join("thesis.tex").exists());
}

#[test]
fn a_damaged_blob_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write(&dir.path().join("m"));
    let blob = bundle.manifest().segments[0].component.clone();
    let path = bundle.dir().join("blobs/sha256").join(blob.digest.hex());
    for damage in [&b"component A"[..], b"component", b"component a and more", b""] {
        fs::write(&path, damage).unwrap();
        assert!(bundle.blob(&blob).is_err(), "{damage:?}");
    }
    fs::remove_file(&path).unwrap();
    assert!(matches!(bundle.blob(&blob), Err(BundleError::Io { .. })));
}

#[test]
fn a_manifest_that_does_not_hang_together_is_refused() {
    type Break = fn(&mut Manifest);
    let cases: [(&str, Break); 30] = [
        ("format 5", |m| m.format = 5),
        ("format 1 has no words", |m| (m.classes, m.exits[0].sure_at) = (vec![], None)),
        ("format 1 has no words", |m| m.segments[1].graph_format = "onnx".into()),
        ("no host can run it as native", |m| m.segments[0].graph_format = "none".into()),
        ("format 1 has no words", |m| {
            (m.segments[0].graph_format, m.segments[0].tier) = ("none".into(), Tier::Portable);
        }),
        ("no classes to be sure of", |m| m.classes.clear()),
        ("0 exits", |m| m.exits.clear()),
        ("0 segments", |m| m.segments.clear()),
        ("boundaries that do not exist", |m| m.segments[0].to = 4),
        ("segment that does not exist", |m| m.exits[0].path = vec![0, 3]),
        ("crossed by 1 to 64 different tensors", |m| m.boundaries[1].tensors.clear()),
        ("crossed by 1 to 64 different tensors", |m| m.boundaries[1].tensors = vec![1, 1]),
        ("crossed by 1 to 64 different tensors", |m| m.boundaries[1].tensors = vec![1, 5]),
        ("crossed by 1 to 64 different tensors", |m| m.boundaries[1].tensors = vec![2; 65]),
        ("not crossed by the first tensors", |m| m.boundaries[0].tensors = vec![1]),
        ("takes nothing", |m| m.segments[1].takes.clear()),
        ("takes nothing, something twice", |m| m.segments[2].takes = vec![2, 2]),
        ("what does not cross the boundary it starts from", |m| m.segments[1].takes = vec![0]),
        ("gives nothing", |m| m.segments[1].gives.clear()),
        ("what does not cross first where it leads to", |m| m.segments[1].gives = vec![3, 2]),
        ("neither gives nor lets pass", |m| m.segments[0].gives = vec![1]),
        ("is not one tensor", |m| m.exits[0].path = vec![0, 1]),
        ("one element for each class", |m| m.tensors[4].dims = vec![usize::MAX, 2]),
        ("do not follow", |m| m.exits[0].path = vec![1]),
        ("do not follow", |m| m.exits[0].path = vec![0, 0]),
        ("one element for each class", |m| m.tensors[4].dims = vec![1, 3]),
        ("empty or endless", |m| m.exits[0].path.clear()),
        ("an accuracy", |m| m.exits[0].accuracy = f64::NAN),
        ("cut that does not exist", |m| m.exits[0].coded[0].cut = 3),
        ("control characters", |m| m.segments[0].name = "\u{1b}[2J".into()),
    ];
    for (expected, damage) in cases {
        let mut manifest = manifest(&mut Draft::default());
        manifest.check().unwrap();
        damage(&mut manifest);
        let error = manifest.check().unwrap_err().to_string();
        assert!(error.contains(expected), "{error} does not say {expected:?}");
    }
}

/// A network without classes, with two inputs, and two outputs at its exit. Only format 2 has words for any of that.
#[test]
fn a_network_that_is_no_classifier_is_told_in_format_2() {
    let mut manifest = manifest(&mut Draft::default());
    assert_eq!(manifest.least_format(), 1);
    manifest.classes.clear();
    (manifest.exits[0].sure_at, manifest.exits[0].path) = (None, vec![0, 1]);
    manifest.boundaries[0].tensors = vec![0, 1];
    manifest.boundaries[1].tensors = vec![2, 3];
    manifest.boundaries[2].tensors = vec![3, 4];
    (manifest.segments[0].takes, manifest.segments[0].gives) = (vec![1, 0], vec![2, 3]);
    (manifest.segments[1].takes, manifest.segments[1].gives) = (vec![2], vec![4]);
    manifest.segments.truncate(2);
    assert_eq!(manifest.least_format(), 2);
    manifest.format = 2;
    manifest.check().unwrap();
    let names: Vec<&str> = manifest.inputs().map(|tensor| &tensor.name[..]).collect();
    assert_eq!((names, manifest.outputs(0)), (vec!["image", "mid"], &[3, 4][..]));
}

#[test]
fn unknown_fields_and_huge_manifests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write(&dir.path().join("m"));
    let text = String::from_utf8(bundle.sealed().bytes().to_vec()).unwrap();
    let surprising = text.replacen('{', "{\"surprise\": 1,", 1).into_bytes();
    assert!(SealedManifest::read(surprising).unwrap_err().to_string().contains("surprise"));
    let huge = vec![b' '; usize::try_from(MANIFEST_BYTES_MAX).unwrap() + 1];
    assert!(SealedManifest::read(huge.clone()).is_err());
    fs::write(bundle.dir().join("index.json"), huge).unwrap();
    assert!(matches!(Bundle::open(bundle.dir()), Err(BundleError::TooLarge { .. })));
}

#[test]
fn what_an_index_says_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write(&dir.path().join("m"));
    let path = bundle.dir().join("index.json");
    let text = fs::read_to_string(&path).unwrap();
    let size = text.split("\"size\":").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let cases = [
        (text.replace(&size, "1"), "larger than"),
        (text.replace(&size, "999999999999"), "larger than"),
        (text.replace("sha256:", "sha512:"), "not a digest"),
        (text.replace("sha256:", "sha256:../../"), "not a digest"),
        (text.replace("\"schemaVersion\":2", "\"schemaVersion\":3"), "schemaVersion 3"),
        (text.replace("image.index.v1+json\",\"digest", "image.manifest.v1+json\",\"digest"), "no bundle"),
        (format!("{{\"schemaVersion\":2,\"manifests\":[{}]}}", vec!["{}"; 20_000].join(",")), "missing field"),
        (format!("{{\"theirs\":{}", "[".repeat(100_000)), "recursion"),
        (String::new(), "EOF"),
    ];
    for (text, expected) in cases {
        fs::write(&path, text).unwrap();
        let error = Bundle::open(bundle.dir()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} does not say {expected:?}");
    }
    fs::write(bundle.dir().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert!(Bundle::open(bundle.dir()).unwrap_err().to_string().contains("version 1.0.0"));
}
