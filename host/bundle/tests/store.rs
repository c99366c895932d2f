//! Names, versions, who writes, what is garbage: on a real disk.
#![allow(clippy::unwrap_used)]

use edgent_bundle::*;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Builds a network of three segments, two of which are the same component.
fn build(dir: PathBuf, what: &str) -> Bundle {
    let mut draft = Draft::default();
    let mut component = |graph: &str| draft.add(compose(standard_guest(), graph.as_bytes()).unwrap());
    let segment = |name: &str, from, component| Segment {
        name: name.into(),
        from,
        to: from + 1,
        takes: vec![from],
        gives: vec![from + 1],
        layers: vec![],
        macs: 1,
        graph_format: "nnef".into(),
        tier: Tier::Native,
        component,
    };
    let segments =
        vec![segment("a", 0, component("same")), segment("b", 1, component("same")), segment("c", 2, component(what))];
    let tensor = |name: &str| Tensor { name: name.into(), element_type: "f32".into(), dims: vec![1, 2], finite: false };
    let boundary = |tensor| Boundary { tensors: vec![tensor], coded: vec![] };
    let manifest = Manifest {
        format: 1,
        name: "tiny".into(),
        classes: vec!["no".into(), "yes".into()],
        tensors: ["in", "x", "y", "out"].map(tensor).into(),
        boundaries: (0..4).map(boundary).collect(),
        segments,
        exits: vec![Exit { name: "out".into(), path: vec![0, 1, 2], accuracy: 0.5, sure_at: None, coded: vec![] }],
        evidence: Evidence {
            source: Some(draft.add(format!("onnx of {what}").into())),
            golden: Some(draft.add(b"golden".to_vec())),
            ..Evidence::default()
        },
    };
    draft.write(&dir, &manifest).unwrap()
}

fn open(dir: &Path, reference: &str) -> Result<Bundle, BundleError> {
    Bundle::open(Path::new(&format!("{}@{reference}", dir.display())))
}

#[test]
fn versions_come_go_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let bundles: Vec<Bundle> = (1..=4).map(|n| build(dir.path().join(format!("b{n}")), &n.to_string())).collect();
    let path = dir.path().join("a/new/store");
    let store = Store::at(&path);
    assert_eq!(store.list().unwrap(), []);
    let writer = store.lock().unwrap();
    for (bundle, version) in bundles.iter().zip(1..) {
        assert_eq!(writer.install("m", None, bundle).unwrap(), version);
        assert_eq!(writer.install("m", None, bundle).unwrap(), version, "the same bundle is the same version");
    }
    assert_eq!(store.current("m").unwrap(), None, "what was installed is not yet in force");
    assert!(matches!(Bundle::open(&path), Err(BundleError::Ambiguous { .. })));
    assert!(matches!(writer.rollback("m"), Err(BundleError::NoPrevious { .. })));
    for version in [1, 3, 3, 4] {
        writer.set_current("m", version).unwrap();
    }
    assert_eq!(Bundle::open(&path).unwrap().digest(), bundles[3].digest());
    assert_eq!(writer.rollback("m").unwrap(), 3);
    assert_eq!(open(&path, "m").unwrap().digest(), bundles[2].digest());
    assert_eq!(open(&path, "m:1").unwrap().digest(), bundles[0].digest());
    let opened = open(&path, &bundles[1].digest().to_string()).unwrap();
    opened.check_blobs().unwrap();
    assert_eq!(Bundle::open(opened.path()).unwrap().digest(), bundles[1].digest(), "a path opens what it opened");

    let collected = writer.collect(&[bundles[0].digest()]).unwrap();
    assert_eq!(collected.versions, [("m".to_owned(), 2)], "pinned, current and previous ones stay");
    assert!(collected.blobs > 0);
    for bundle in [&bundles[0], &bundles[2], &bundles[3]] {
        open(&path, &bundle.digest().to_string()).unwrap().check_blobs().unwrap();
    }
    let error = open(&path, "m:2").unwrap_err().to_string();
    assert!(error.contains("has no m:2; it has m, m:1, m:3, m:4"), "{error}");
    assert_eq!(writer.collect(&[bundles[0].digest()]).unwrap(), Collected::default(), "nothing is garbage twice");
    let list = store.list().unwrap();
    let flags: Vec<_> = list.iter().map(|one| (one.version, one.is_current, one.is_previous)).collect();
    assert_eq!(flags, [(1, false, false), (3, true, false), (4, false, true)]);

    assert_eq!(writer.install("m", Some(9), &bundles[1]).unwrap(), 9);
    for (version, bundle) in [(9, 0), (5, 0), (10, 1)] {
        let refused = writer.install("m", Some(version), &bundles[bundle]).unwrap_err();
        assert!(matches!(refused, BundleError::Version { .. }), "{refused}");
    }
    assert_eq!(writer.install("other", None, &bundles[0]).unwrap(), 1, "each name counts for itself");
    assert!(matches!(writer.set_current("m", 2), Err(BundleError::Unknown { .. })));
    assert!(matches!(writer.install("../m", None, &bundles[0]), Err(BundleError::Reference(_))));
}

#[test]
fn one_writes_and_all_read() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = build(dir.path().join("b"), "1");
    let store = Store::at(&dir.path().join("s"));
    let writer = store.lock().unwrap();
    assert!(matches!(store.lock(), Err(BundleError::Locked(_))));
    let version = writer.install("m", None, &bundle).unwrap();
    assert_eq!(store.open(&Reference::Version("m".into(), version)).unwrap().digest(), bundle.digest());
    drop(writer);
    store.lock().unwrap();
}

#[test]
fn blobs_that_a_peer_sends_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = build(dir.path().join("b"), "1");
    let writer = Store::at(&dir.path().join("s")).lock().unwrap();
    let missing = writer.missing(bundle.sealed());
    assert_eq!(missing.len(), 4, "two distinct components, a source and golden outputs");
    for blob in &missing {
        assert!(writer.publish("m", None, bundle.sealed(), &[]).is_err(), "not before all is here");
        let bytes = bundle.blob(blob).unwrap();
        for wrong in [&bytes[1..], b"", &[&bytes[..], b"more"].concat()] {
            assert!(matches!(writer.put_blob(blob, wrong), Err(BundleError::OtherBlob { .. })));
        }
        writer.put_blob(blob, &bytes).unwrap();
    }
    assert_eq!(writer.missing(bundle.sealed()), []);
    assert_eq!(writer.publish("m", None, bundle.sealed(), &[]).unwrap(), 1);
    // Only what differs is asked for the next time.
    let next = build(dir.path().join("c"), "2");
    assert_eq!(writer.missing(next.sealed()).len(), 2);
}

#[test]
fn what_others_put_into_the_layout_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(&dir.path().join("s"));
    let bundles: Vec<Bundle> = (1..=3).map(|n| build(dir.path().join(format!("b{n}")), &n.to_string())).collect();
    store.lock().unwrap().install("m", None, &bundles[0]).unwrap();
    // As `skopeo copy` would: an image of its own, and a bundle's index without artifact type.
    let blob = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(dir.path().join("s/blobs/sha256").join(digest.hex()), bytes).unwrap();
        serde_json::json!({ "mediaType": "text/plain", "digest": digest, "size": bytes.len() })
    };
    let image = serde_json::json!({ "schemaVersion": 2, "config": blob(b"config"), "layers": [blob(b"layer")] });
    let mut image = blob(image.to_string().as_bytes());
    image["mediaType"] = "application/vnd.oci.image.manifest.v1+json".into();
    image["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "debian:12", "theirs": "yes" });
    image["platform"] = serde_json::json!({ "os": "linux", "architecture": "arm64" });
    let path = dir.path().join("s/index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["manifests"].as_array_mut().unwrap().push(image.clone());
    fs::write(&path, index.to_string()).unwrap();

    let writer = store.lock().unwrap();
    for bundle in &bundles {
        let version = writer.install("m", None, bundle).unwrap();
        writer.set_current("m", version).unwrap();
    }
    assert_eq!(writer.collect(&[]).unwrap().versions, [("m".to_owned(), 1)]);
    let index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert!(index["manifests"].as_array().unwrap().contains(&image), "{index}");
    for bytes in [&b"config"[..], b"layer"] {
        assert!(dir.path().join("s/blobs/sha256").join(Digest::of(bytes).hex()).exists());
    }
}

#[test]
fn the_layout_says_what_oci_tools_expect() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = build(dir.path().join("b"), "1");
    let document = |descriptor: &Value| -> Value {
        let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
        let bytes = fs::read(bundle.dir().join("blobs/sha256").join(digest.hex())).unwrap();
        assert_eq!(bytes.len() as u64, descriptor["size"].as_u64().unwrap());
        serde_json::from_slice(&bytes).unwrap()
    };
    let root: Value = serde_json::from_slice(&fs::read(bundle.dir().join("index.json")).unwrap()).unwrap();
    assert_eq!(root["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "tiny");
    let index = document(&root["manifests"][0]);
    let manifests: Vec<Value> = index["manifests"].as_array().unwrap().iter().map(document).collect();
    let kinds: Vec<_> = manifests.iter().map(|m| m["config"]["mediaType"].as_str().unwrap()).collect();
    let wasm = "application/vnd.wasm.config.v0+json";
    let (model, ours) = ("application/vnd.cncf.model.config.v1+json", "application/vnd.edgent.bundle.config.v1+json");
    assert_eq!(kinds, [wasm, wasm, model, ours], "a component that two segments share is there once");
    assert_eq!(manifests[0]["layers"][0]["mediaType"], "application/wasm");
    let config = document(&manifests[0]["config"]);
    assert_eq!((&config["architecture"], &config["os"]), (&"wasm".into(), &"wasip2".into()));
    assert_eq!(config["layerDigests"][0], manifests[0]["layers"][0]["digest"]);
    assert!(config["component"]["imports"][0].as_str().unwrap().starts_with("wasi:nn/"), "{config}");
    assert_eq!(manifests[2]["artifactType"], "application/vnd.cncf.model.manifest.v1+json");
    assert_eq!(manifests[2]["layers"][0]["mediaType"], "application/vnd.cncf.model.weight.v1.raw");
    let config = document(&manifests[2]["config"]);
    assert_eq!(config["modelfs"]["diffIds"][0], manifests[2]["layers"][0]["digest"]);
    assert_eq!(manifests[3]["artifactType"], "application/vnd.edgent.bundle.v1+json");
    assert_eq!(manifests[3]["config"]["digest"], bundle.digest().to_string());
    // No more and no less is there.
    let all = manifests.iter().flat_map(|m| m["layers"].as_array().unwrap().iter().chain([&m["config"]]));
    let documents = index["manifests"].as_array().unwrap().iter().chain([&root["manifests"][0]]);
    let named: BTreeSet<&str> = all.chain(documents).map(|d| &d["digest"].as_str().unwrap()[7..]).collect();
    let files = fs::read_dir(bundle.dir().join("blobs/sha256")).unwrap();
    let files: BTreeSet<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(named, files.iter().map(String::as_str).collect());
}

#[test]
fn building_does_not_replace_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let bundle = build(path.clone(), "1");
    assert_eq!(build(path.clone(), "2").manifest().segments.len(), 3);
    assert_ne!(Bundle::open(&path).unwrap().digest(), bundle.digest());
    let other = build(dir.path().join("b"), "3");
    let writer = Store::at(&path).lock().unwrap();
    assert_eq!(writer.install("tiny", None, &other).unwrap(), 2, "what was built there counts as version 1");
    drop(writer);
    let mut draft = Draft::default();
    let mut manifest = other.manifest().clone();
    for segment in &mut manifest.segments {
        segment.component = draft.add(compose(standard_guest(), b"4").unwrap());
    }
    manifest.evidence = Evidence::default();
    assert!(matches!(draft.write(&path, &manifest), Err(BundleError::Occupied(_))));
    assert_eq!(Bundle::open(&path.clone()).unwrap().dir(), path);
}

struct Signer(minisign::KeyPair);

impl Signer {
    fn new() -> Self {
        Self(minisign::KeyPair::generate_unencrypted_keypair().unwrap())
    }

    fn public(&self) -> PublicKey {
        PublicKey::read(&self.0.pk.to_base64()).unwrap()
    }

    fn sign(&self, bundle: &Bundle, version: u64) -> Signature {
        let (manifest, name) = (bundle.digest(), bundle.manifest().name.clone());
        let statement = Statement { manifest, name, version, minimum_version: 1 };
        let text = statement.text();
        let signed = minisign::sign(None, &self.0.sk, text.as_bytes(), Some("a comment"), None).unwrap();
        Signature::of(&statement, &signed.into_string()).unwrap()
    }
}

#[test]
fn a_bundle_is_signed_where_it_lies_and_stays_the_bundle_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let unsigned = build(dir.path().join("b"), "1");
    let path = unsigned.dir().to_owned();
    let files = || fs::read_dir(path.join("blobs/sha256")).unwrap().count();
    let before = files();
    let (ann, ben) = (Signer::new(), Signer::new());
    let writer = Store::at(&path).lock().unwrap();
    let signatures = [ann.sign(&unsigned, 1), ann.sign(&unsigned, 2), ben.sign(&unsigned, 5)];
    for signature in &signatures {
        writer.sign(&unsigned.digest(), signature).unwrap();
    }
    drop(writer);
    let signed = Bundle::open(&path).unwrap();
    assert_eq!(signed.digest(), unsigned.digest());
    assert_eq!(signed.signatures(), &signatures[1..], "a key's later signature takes its earlier one's place");
    for (key, holds) in [(ann.public(), [true, false]), (ben.public(), [false, true])] {
        let found: Vec<bool> =
            signed.signatures().iter().map(|signature| key.verify(signature, signed.sealed()).is_ok()).collect();
        assert_eq!(found, holds);
    }
    // For each signature a manifest and two files, and once the empty config that they share.
    assert_eq!(files(), before + 2 * 3 + 1, "what was superseded is gone");

    let store = Store::at(&dir.path().join("s"));
    let writer = store.lock().unwrap();
    assert_eq!(writer.install("m", None, &signed).unwrap(), 1);
    assert_eq!(store.signatures(&signed.digest()).unwrap(), &signatures[1..], "they go where it goes");
    writer.set_current("m", 1).unwrap();
    // As it came before it was signed, and with a signature that was not there yet.
    assert_eq!(writer.publish("m", None, signed.sealed(), &[]).unwrap(), 1);
    assert_eq!(writer.publish("m", None, signed.sealed(), &signatures[..1]).unwrap(), 1);
    let kept = store.open(&Reference::Current("m".into())).unwrap().signatures().to_vec();
    assert_eq!(kept, signatures, "those that are here stay, behind those that came");
    assert_eq!(store.current("m").unwrap(), Some(1), "signed anew, what was in force still is");
    let many: Vec<Signature> = (0..20).map(|_| Signer::new().sign(&signed, 1)).collect();
    writer.publish("m", None, signed.sealed(), &many).unwrap();
    assert_eq!(store.signatures(&signed.digest()).unwrap(), &many[..SIGNATURES_MAX], "no more than there is room for");
    assert!(matches!(writer.sign(&signed.digest(), &signatures[0]), Err(BundleError::Signatures(_))));
    let other = Digest::of(b"other");
    assert!(matches!(writer.sign(&other, &signatures[0]), Err(BundleError::Unknown { .. })));
}

#[test]
fn the_lowest_version_that_may_come_into_force_only_rises() {
    let dir = tempfile::tempdir().unwrap();
    let bundles: Vec<Bundle> = (1..=3).map(|n| build(dir.path().join(format!("b{n}")), &n.to_string())).collect();
    let store = Store::at(&dir.path().join("s"));
    let (ann, ben) = (Signer::new().public().id(), Signer::new().public().id());
    let writer = store.lock().unwrap();
    for (version, (bundle, minimum, expected)) in (1..).zip([(0, 3, 3), (1, 2, 3), (2, 4, 4)]) {
        writer.install("m", None, &bundles[bundle]).unwrap();
        writer.set_current_signed("m", version, Some((ann, minimum))).unwrap();
        assert_eq!(store.minimum_version("m", ann).unwrap(), expected);
    }
    writer.rollback("m").unwrap();
    writer.collect(&[]).unwrap();
    assert_eq!(store.minimum_version("m", ann).unwrap(), 4, "whatever was in force since");
    assert_eq!(store.minimum_version("m", ben).unwrap() + store.minimum_version("other", ann).unwrap(), 0);
    let path = dir.path().join("s/index.json");
    let damaged = fs::read_to_string(&path).unwrap().replace(r#"/m":"4""#, r#"/m":"four""#);
    fs::write(&path, damaged).unwrap();
    let error = store.minimum_version("m", ann).unwrap_err().to_string();
    assert!(error.contains("is not a number"), "{error}: what is not known is not taken for none");
}

#[test]
fn statements_signatures_and_keys_are_read_in_one_way_only() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, ann) = (build(dir.path().join("b"), "1"), Signer::new());
    let signature = ann.sign(&bundle, 3);
    let (statement, minisig) = (signature.statement().text(), signature.text());
    assert_eq!(Signature::read(statement.as_bytes(), minisig.as_bytes()).unwrap(), signature);
    let statements = [
        (statement.replace("statement 1", "statement 2"), "does not begin with"),
        (statement.replace("\nname: ", "\nName: "), "the line 'name: …'"),
        (statement.replace("version: 3", "version: 03"), "not written as it must be"),
        (statement.replace("version: 3", "version: +3"), "not written as it must be"),
        (statement.replace('\n', "\r\n"), "not written as it must be"),
        (statement.replace("\nversion: 3", "\nversion: 0"), "not from 1 to 0"),
        (statement.replace("minimum-version: 1", "minimum-version: 4"), "not from 1 to 3"),
        (statement.replace("name: tiny", "name: ti\tny"), "control characters"),
        (statement.replace("sha256:", "sha512:"), "names no manifest"),
        (format!("{statement}more\n"), "not written as it must be"),
        (statement.replace("tiny", &"t".repeat(2000)), "longer than"),
    ];
    for (text, expected) in statements {
        let error = Signature::read(text.as_bytes(), minisig.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} does not say {expected:?}");
    }
    let lines: Vec<&str> = minisig.lines().collect();
    let signatures = [
        (minisig.replace("untrusted comment: ", "untrusted comment:  "), "four lines"),
        (format!("{minisig}\n"), "four lines"),
        (minisig.trim_end().to_owned(), "four lines"),
        (minisig.replace(lines[1], &lines[1].replacen("RU", "RW", 1)), "prehashed kind"),
        (minisig.replace(lines[1], &lines[1][4..]), "second line"),
        (minisig.replace(lines[3], &lines[3][..lines[3].len() - 4]), "fourth line"),
        (minisig.replace("a comment", "a\u{1b}[2J comment"), "control characters"),
        (minisig.replace("a comment", &"c".repeat(2000)), "longer than"),
    ];
    for (text, expected) in signatures {
        let error = Signature::read(statement.as_bytes(), text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} does not say {expected:?}");
    }
    let line = ann.0.pk.to_base64();
    let file = format!("untrusted comment: somebody's\n{line}\n");
    for good in [&line, &file, &format!("{line}\n")] {
        assert_eq!(PublicKey::read(good).unwrap(), ann.public());
    }
    let secret = ann.0.sk.to_box(None).unwrap().into_string();
    for bad in ["", "RW", &line[2..], &format!("{line}A"), &format!("{line}\n{line}"), &secret, &line.to_lowercase()] {
        assert_eq!(PublicKey::read(bad), Err(SignatureError::Key), "{bad}");
    }
}
