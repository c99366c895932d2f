//! Whose bundles are run: every way to get one in that should not, and what the operator's file may say.

use crate::Tiers;
use crate::policy::{Origin, Policy};
use edgent_bundle::*;
use minisign::KeyPair;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::slice::from_ref;

const SEEDED: usize = 2_000;

struct Publisher(KeyPair);

impl Publisher {
    fn new() -> Self {
        Self(KeyPair::generate_unencrypted_keypair().unwrap())
    }

    fn line(&self) -> String {
        self.0.pk.to_base64()
    }

    fn id(&self) -> KeyId {
        PublicKey::read(&self.line()).unwrap().id()
    }

    /// The two files.
    fn sign(&self, bundle: &SealedManifest, version: u64, minimum_version: u64) -> [Vec<u8>; 2] {
        let (manifest, name) = (bundle.digest(), bundle.manifest().name.clone());
        let statement = Statement { manifest, name, version, minimum_version };
        let signed = minisign::sign(None, &self.0.sk, statement.text().as_bytes(), Some("comment"), None).unwrap();
        let signature = Signature::of(&statement, &signed.into_string()).unwrap();
        [statement.text().into_bytes(), signature.text().as_bytes().to_vec()]
    }
}

/// A bundle's manifest; nothing else of it matters here.
fn bundle(name: &str, component_bytes: u64) -> SealedManifest {
    let tensor = |name: &str| Tensor { name: name.into(), element_type: "f32".into(), dims: vec![1, 2], finite: false };
    let boundary = |tensor| Boundary { tensors: vec![tensor], coded: vec![] };
    let component = Blob { digest: Digest::of(&component_bytes.to_le_bytes()), bytes: component_bytes };
    SealedManifest::seal(&Manifest {
        format: FORMAT,
        name: name.into(),
        classes: vec!["no".into(), "yes".into()],
        tensors: vec![tensor("in"), tensor("out")],
        boundaries: vec![boundary(0), boundary(1)],
        segments: vec![Segment {
            name: "all".into(),
            from: 0,
            to: 1,
            takes: vec![0],
            gives: vec![1],
            layers: vec![],
            macs: 1,
            graph_format: "nnef".into(),
            tier: Tier::Native,
            component,
        }],
        exits: vec![Exit { name: "out".into(), path: vec![0], accuracy: 0.5, sure_at: None, coded: vec![] }],
        evidence: Evidence::default(),
    })
    .unwrap()
}

fn policy(dir: &Path, text: &str) -> Result<Policy, String> {
    let path = dir.join("policy.toml");
    fs::write(&path, text).unwrap();
    Policy::read(&path).map_err(|e| e.to_string())
}

/// What a host does with the bytes that a peer sends: the publisher whose signature it goes by, or why not.
fn offered(
    policy: &Policy,
    manifest: &[u8],
    signatures: &[[Vec<u8>; 2]],
    minimum: &HashMap<KeyId, u64>,
) -> Result<Option<String>, String> {
    let sealed = SealedManifest::read(manifest.to_vec()).map_err(|e| e.to_string())?;
    let read = signatures.iter().map(|[statement, minisig]| Signature::read(statement, minisig));
    let signatures = read.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    let minimum = |key| Ok(minimum.get(&key).copied().unwrap_or(0));
    let judged = policy.judge(&sealed, &signatures, Origin::Peer, minimum).map_err(|e| e.to_string())?;
    Ok(judged.by.map(|signed| signed.publisher))
}

/// Numbers that look random and are the same each time.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

#[test]
fn whatever_is_done_to_a_signed_bundle_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (acme, stranger) = (Publisher::new(), Publisher::new());
    let text = format!(
        "format = 1\nunsigned = \"refuse\"\n[[publisher]]\nname = \"acme\"\nkeys = [\"{}\"]\nallow = [\"native\"]\n",
        acme.line()
    );
    let policy = policy(dir.path(), &text).unwrap();
    let (new, old, other) = (bundle("m", 3), bundle("m", 2), bundle("other", 3));
    let [signed_new, signed_old] = [acme.sign(&new, 3, 2), acme.sign(&old, 1, 1)];
    // Version 3 has been in force, and with it the word that nothing below 2 is to be.
    let minimum = HashMap::from([(acme.id(), 2)]);
    let good = offered(&policy, new.bytes(), from_ref(&signed_new), &minimum);
    assert_eq!(good, Ok(Some("acme".into())));

    let mut random = Seeded(29);
    let mut tried: HashMap<&str, usize> = HashMap::new();
    let mut refused = |kind: &'static str, manifest: &[u8], signatures: &[[Vec<u8>; 2]], says: &str| {
        let outcome = offered(&policy, manifest, signatures, &minimum);
        let Err(why) = &outcome else { panic!("{kind}: taken, by {outcome:?}") };
        assert!(why.contains(says), "{kind}: {why} does not say {says:?}");
        *tried.entry(kind).or_default() += 1;
    };
    refused("missing", new.bytes(), &[], "nobody signed it");
    refused("replayed", old.bytes(), from_ref(&signed_old), "nothing below 2 is to be run");
    refused("of another bundle", other.bytes(), from_ref(&signed_new), "signed another bundle");
    refused("of another version", old.bytes(), from_ref(&signed_new), "signed another bundle");
    for _ in 0..20 {
        let signed = Publisher::new().sign(&new, 3, 2);
        refused("wrong key", new.bytes(), &[signed], "trusts no such key");
    }
    // A key with another's id, which stands behind three pairs of letters, a salt and two limits.
    let forged = {
        let mut secret = stranger.0.sk.to_bytes();
        secret[54..62].copy_from_slice(acme.0.sk.keynum());
        let sk = minisign::SecretKey::from_bytes(&secret).unwrap();
        Publisher(KeyPair { sk, pk: stranger.0.pk.clone() }).sign(&new, 3, 2)
    };
    assert_eq!(Signature::read(&forged[0], &forged[1]).unwrap().key(), acme.id());
    refused("forged id", new.bytes(), &[forged], "it pretends to be signed by 'acme'");
    for index in 0..SEEDED {
        let mut files = signed_new.clone();
        let file = &mut files[index % 2];
        let (at, len) = (random.below(file.len()), file.len());
        match index / 2 % 4 {
            0 | 1 => {
                file[at] ^= 1 << random.below(8);
                refused("bit flipped", new.bytes(), &[files], "");
            }
            2 => {
                file.truncate(at);
                refused("truncated", new.bytes(), &[files], "");
            }
            _ => {
                file.insert(at, b'A' + (random.below(26) as u8));
                assert_eq!(file.len(), len + 1);
                refused("spliced", new.bytes(), &[files], "");
            }
        }
    }
    for _ in 0..SEEDED / 4 {
        let mut manifest = new.bytes().to_vec();
        let at = random.below(manifest.len());
        manifest[at] ^= 1 << random.below(8);
        refused("manifest changed", &manifest, from_ref(&signed_new), "");
    }
    // One that holds is enough, whatever stands beside it; one that does not hold is no better for company.
    let stranger = stranger.sign(&new, 3, 2);
    let both = [stranger.clone(), signed_new.clone()];
    assert_eq!(offered(&policy, new.bytes(), &both, &minimum), Ok(Some("acme".into())));
    refused("company", old.bytes(), &[stranger, signed_old, signed_new], "");
    println!("refused: {tried:?}, {} in all", tried.values().sum::<usize>());
    assert!(tried.values().sum::<usize>() >= 1_000);
}

#[test]
fn a_new_key_takes_an_old_ones_place_and_does_not_let_it_bring_back_old_versions() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Publisher::new(), Publisher::new());
    fs::write(dir.path().join("new.pub"), format!("untrusted comment: acme's\n{}\n", new.line())).unwrap();
    let text = |keys: &str| {
        let head = "format = 1\nunsigned = \"allow\"\n[[publisher]]\nname = \"acme\"\nallow = [\"native\"]\n";
        format!("{head}keys = [{keys}]\n")
    };
    let by_old = format!("\"{}\"", old.line());
    let [before, during, after] =
        [by_old.clone(), format!("{by_old}, \"new.pub\""), "\"new.pub\"".to_owned()].map(|keys| {
            let policy = policy(dir.path(), &text(&keys)).unwrap();
            move |bundle: &SealedManifest, signature: &[Vec<u8>; 2], minimum: &HashMap<KeyId, u64>| {
                offered(&policy, bundle.bytes(), from_ref(signature), minimum)
            }
        });
    let bundle = bundle("m", 1);
    let (with_old, with_new) = (old.sign(&bundle, 4, 4), new.sign(&bundle, 5, 5));
    let none = HashMap::new();
    let acme = Ok(Some("acme".to_owned()));
    assert_eq!(before(&bundle, &with_old, &none), acme);
    assert_eq!(before(&bundle, &with_new, &none), Ok(None), "a stranger's, as if it were not signed");
    assert_eq!(during(&bundle, &with_old, &none), acme);
    assert_eq!(during(&bundle, &with_new, &none), acme);
    let since = HashMap::from([(new.id(), 5)]);
    let replayed = during(&bundle, &with_old, &since).unwrap_err();
    assert!(replayed.contains("nothing below 5"), "{replayed}");
    let removed = after(&bundle, &with_old, &since).unwrap_err();
    assert!(removed.contains("'acme' signed an earlier version that was in force here"), "{removed}");
    assert_eq!(after(&bundle, &with_new, &since), acme);
}

#[test]
fn a_publisher_may_do_what_the_file_says_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let acme = Publisher::new();
    let big = bundle("m", 3 << 20);
    let cases = [
        ("", ""),
        ("allow = [\"native\"]", ""),
        ("allow = [\"native\"]\nmodels = [\"n\", \"m\"]", ""),
        ("allow = [\"native\"]\nmodels = [\"n\"]", "does not let them publish a model of this name"),
        ("allow = [\"native\"]\nlimits = { bundle-mib = 3.0 }", ""),
        ("allow = [\"native\"]\nlimits = { bundle-mib = 2.9 }", "it has 3.0 MiB, and the policy"),
        ("allow = [\"native\"]\nlimits = { segments = 0 }", "it has 1 segments, and the policy"),
    ];
    for (rules, expected) in cases {
        let text = format!(
            "format = 1\nunsigned = \"refuse\"\n[[publisher]]\nname = \"acme\"\nkeys = [\"{}\"]\n{rules}\n",
            acme.line()
        );
        let outcome =
            offered(&policy(dir.path(), &text).unwrap(), big.bytes(), &[acme.sign(&big, 1, 1)], &HashMap::new());
        match outcome {
            Ok(by) => assert!(by.as_deref() == Some("acme") && expected.is_empty(), "{rules}: {by:?}"),
            Err(why) => assert!(!expected.is_empty() && why.contains(expected), "{rules}: {why}"),
        }
    }
}

#[test]
fn bundles_that_nobody_signed_are_taken_from_whom_the_operator_says() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle("m", 1);
    let unsigned = |policy: &Policy, origin| {
        policy.judge(&bundle, &[], origin, |_| Ok(0)).map(|judged| judged.by).map_err(|e| e.to_string())
    };
    let of_file = |word: &str| policy(dir.path(), &format!("format = 1\nunsigned = \"{word}\"\n")).unwrap();
    let cases = [
        (of_file("allow"), Origin::Peer, ""),
        (of_file("refuse"), Origin::Peer, "nobody signed it"),
        (of_file("refuse"), Origin::Here, "nobody signed it"),
        (of_file("portable-only"), Origin::Peer, ""),
        (Policy::without_file(true), Origin::Peer, ""),
        (Policy::without_file(false), Origin::Here, ""),
        (Policy::without_file(false), Origin::Peer, "has no --policy FILE"),
    ];
    for (policy, origin, expected) in cases {
        match unsigned(&policy, origin) {
            Ok(by) => assert!(by.is_none() && expected.is_empty(), "{policy:?}, {origin:?}"),
            Err(why) => assert!(!expected.is_empty() && why.contains(expected), "{policy:?}, {origin:?}: {why}"),
        }
    }
    assert!(of_file("refuse").warning().is_none());
    for policy in [of_file("allow"), Policy::without_file(true), Policy::without_file(false)] {
        assert!(policy.warning().is_some(), "{policy:?}: the operator is told");
    }
}

#[test]
fn who_is_not_allowed_native_has_all_done_in_the_sandbox_or_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let acme = Publisher::new();
    let with = |tier, graph_format: &str| {
        let mut manifest = bundle("m", 1).manifest().clone();
        manifest.segments[0].tier = tier;
        manifest.segments[0].graph_format = graph_format.into();
        SealedManifest::seal(&manifest).unwrap()
    };
    let publisher = format!("[[publisher]]\nname = \"acme\"\nkeys = [\"{}\"]\n", acme.line());
    let file = |unsigned: &str, allow: &str| {
        policy(dir.path(), &format!("format = 1\nunsigned = \"{unsigned}\"\n{publisher}{allow}\n")).unwrap()
    };
    let native = "allow = [\"native\"]";
    let (onnx, nnef) = (with(Tier::Native, "onnx"), with(Tier::Native, "nnef"));
    // An author's own guest may read what it likes: that is none of the host's business.
    let own = with(Tier::Portable, "onnx");
    // What the policy says, who signed, what of, and where its arithmetic is done.
    let cases = [
        ("refuse", native, true, &nnef, Some(Tiers::AsBuilt)),
        ("refuse", native, true, &onnx, Some(Tiers::AsBuilt)),
        ("refuse", "", true, &nnef, Some(Tiers::Portable)),
        ("refuse", "allow = []", true, &own, Some(Tiers::Portable)),
        ("refuse", "", true, &onnx, None),
        ("portable-only", native, false, &nnef, Some(Tiers::Portable)),
        ("portable-only", native, false, &own, Some(Tiers::Portable)),
        ("portable-only", native, false, &onnx, None),
        // Whoever is trusted with native is so, whatever becomes of what nobody signed.
        ("portable-only", native, true, &onnx, Some(Tiers::AsBuilt)),
        ("allow", "", false, &nnef, Some(Tiers::AsBuilt)),
        // A signature that holds is not worth less than none; but it says what its owner is allowed.
        ("allow", "", true, &nnef, Some(Tiers::Portable)),
    ];
    for (unsigned, allow, is_signed, bundle, expected) in cases {
        let files = is_signed.then(|| acme.sign(bundle, 1, 1));
        let read = files.iter().map(|[statement, minisig]| Signature::read(statement, minisig).unwrap());
        let signatures: Vec<Signature> = read.collect();
        let judged = file(unsigned, allow).judge(bundle, &signatures, Origin::Peer, |_| Ok(0));
        let case = format!("{unsigned} {allow:?}, signed: {is_signed}, {:?}", bundle.manifest().segments[0]);
        match judged {
            Ok(judged) => assert_eq!((Some(judged.tiers), judged.onnxruntime), (expected, false), "{case}"),
            Err(why) => assert!(expected.is_none() && why.to_string().contains("not NNEF"), "{case}: {why}"),
        }
    }
    // Native code beside tract reads graphs only of those who are named for it; a bundle that nobody signed, never.
    let both = "allow = [\"native\", \"onnxruntime\"]";
    for (unsigned, is_signed, expected) in [("refuse", true, true), ("allow", true, true), ("allow", false, false)] {
        let files = is_signed.then(|| acme.sign(&onnx, 1, 1));
        let read = files.iter().map(|[statement, minisig]| Signature::read(statement, minisig).unwrap());
        let signatures: Vec<Signature> = read.collect();
        let judged = file(unsigned, both).judge(&onnx, &signatures, Origin::Peer, |_| Ok(0)).unwrap();
        assert_eq!(judged.onnxruntime, expected, "{unsigned}, signed: {is_signed}");
    }
    let without_file = Policy::without_file(true).judge(&onnx, &[], Origin::Here, |_| Ok(0)).unwrap();
    assert!(!without_file.onnxruntime);
}

#[test]
fn a_publisher_has_limits_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let acme = Publisher::new();
    let mut manifest = bundle("m", 3 << 20).manifest().clone();
    manifest.segments[0].macs = 1_000_000;
    let bundle = SealedManifest::seal(&manifest).unwrap();
    let [statement, minisig] = acme.sign(&bundle, 1, 1);
    let signature = Signature::read(&statement, &minisig).unwrap();
    let judged = |limits: &str| {
        let head = "format = 1\nunsigned = \"refuse\"\n[[publisher]]\nname = \"acme\"\nallow = [\"native\"]\n";
        let text = format!("{head}keys = [\"{}\"]\nlimits = {{ {limits} }}\n", acme.line());
        let policy = policy(dir.path(), &text).unwrap();
        policy.judge(&bundle, from_ref(&signature), Origin::Peer, |_| Ok(0)).map_err(|why| why.to_string())
    };
    for (limits, expected) in [
        ("macs = 999_999.0", "it has 1000000 multiply-accumulates an answer, and"),
        ("components-mib = 2.9", "it has 3.0 MiB of components, and"),
        ("bundle-mib = 2.9", "it has 3.0 MiB, and"),
        // Weights are in memory once and a half, and there is an instance.
        ("memory-mib = 4.5", "it has 4.6 MiB of memory to take, and"),
        ("segments = 0", "it has 1 segments, and"),
    ] {
        let why = judged(limits).unwrap_err();
        assert!(why.contains(expected) && why.contains("raise it in their `limits`"), "{limits}: {why}");
    }
    let admitted = judged("macs = 1e6, components-mib = 3.0, memory-mib = 5.0, workers-share = 0.5").unwrap();
    assert_eq!((admitted.macs_max, admitted.workers_share), (Some(1_000_000), 0.5));
    // Whose figure is lower counts, and the graphs are asked, too.
    let most = |macs_max| admitted.within(crate::Admission { macs_max, ..Default::default() }).macs_max;
    assert_eq!((most(u64::MAX), most(5)), (1_000_000, 5));
}

#[test]
fn a_file_that_is_not_understood_is_refused_with_line_and_name() {
    let dir = tempfile::tempdir().unwrap();
    let key = Publisher::new().line();
    let head = "format = 1\nunsigned = \"refuse\"\n[[publisher]]\nname = \"acme\"\n";
    let cases = [
        ("format = 1\n".to_owned(), &["unsigned"][..]),
        ("format = 2\nunsigned = \"refuse\"\n".to_owned(), &["format 2 is not 1"]),
        ("format = 1\nunsigned = \"maybe\"\n".to_owned(), &["line 2", "maybe"]),
        ("format = 1\nunsigned = \"refuse\"\nsurprise = 1\n".to_owned(), &["line 3", "surprise"]),
        (format!("{head}keys = []\n"), &["line 5", "'acme' needs 1 to 16 keys"]),
        (format!("{head}keys = [\n\"{key}\",\n\"{key}\"]\n"), &["line 7", "is here twice"]),
        (format!("{head}keys = [\"gone.pub\"]\n"), &["line 5", "gone.pub", "No such file"]),
        (format!("{head}keys = [\"policy.toml\"]\n"), &["line 5", "policy.toml", "no public key"]),
        (format!("{head}keys = [\"{key}\"]\nallow = [\"clock\"]\n"), &["line 6", "clock", "native"]),
        (format!("{head}keys = [\"{key}\"]\nallow = [\"onnxruntime\"]\n"), &["line 4", "nothing without \"native\""]),
        (format!("{head}keys = [\"{key}\"]\nlimits = {{ memory = 1 }}\n"), &["line 6", "memory"]),
        (format!("{head}keys = [\"{key}\"]\nlimits = {{ bundle-mib = nan }}\n"), &["line 4", "bundle-mib"]),
        (format!("{head}keys = [\"{key}\"]\nlimits = {{ macs = 0.0 }}\n"), &["line 4", "macs of 'acme'"]),
        (format!("{head}keys = [\"{key}\"]\nlimits = {{ workers-share = 1.5 }}\n"), &["line 4", "at most 1"]),
        (
            format!("{head}keys = [\"{key}\"]\n[[publisher]]\nname = \"acme\"\nkeys = [\"{key}\"]\n"),
            &["line 7", "acme"],
        ),
        ("format = 1\nunsigned = \"refuse\"\n[publisher]\n".to_owned(), &["line 3"]),
    ];
    for (text, named) in cases {
        let error = policy(dir.path(), &text).unwrap_err();
        for expected in named.iter().chain(&["policy.toml"]) {
            assert!(error.contains(expected), "{text}: {error} does not say {expected:?}");
        }
    }
}
