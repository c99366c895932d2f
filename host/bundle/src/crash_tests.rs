//! The power goes, the process is killed, the disk fails, bits rot: at every operation of every step.

use crate::disk::Disk;
use crate::fake_disk::{Bytes, FakeDisk, Fault, Names, Op};
use crate::layout::Layout;
use crate::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};

const DIR: &str = "/store";
const MODEL: &str = "tiny";

/// A network of two segments, of which the first is the same in every version.
fn bundle(version: u64) -> (SealedManifest, Vec<Vec<u8>>) {
    let component = |graph: &str| compose(b"\0asm\x0d\0\x01\0", graph.as_bytes()).unwrap();
    let bytes = vec![
        component("shared"),
        component(&format!("of version {version}")),
        format!("onnx {version}").into(),
        b"golden".to_vec(),
    ];
    let blob = |at: usize| Blob { digest: Digest::of(&bytes[at]), bytes: bytes[at].len() as u64 };
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
    let tensor = |name: &str| Tensor { name: name.into(), element_type: "f32".into(), dims: vec![1, 2], finite: false };
    let boundary = |tensor| Boundary { tensors: vec![tensor], coded: vec![] };
    let manifest = Manifest {
        format: 1,
        name: MODEL.into(),
        classes: vec!["no".into(), "yes".into()],
        tensors: vec![tensor("in"), tensor("mid"), tensor("out")],
        boundaries: (0..3).map(boundary).collect(),
        segments: vec![segment("a", 0, blob(0)), segment("b", 1, blob(1))],
        exits: vec![Exit { name: "out".into(), path: vec![0, 1], accuracy: 0.5, sure_at: None, coded: vec![] }],
        evidence: Evidence { source: Some(blob(2)), golden: Some(blob(3)), ..Evidence::default() },
    };
    (SealedManifest::seal(&manifest).unwrap(), bytes)
}

fn store(disk: &FakeDisk) -> Store {
    Store::on(Path::new(DIR), Arc::new(disk.clone()))
}

fn install(store: &Store, number: u64) -> Result<u64, BundleError> {
    let (sealed, bytes) = bundle(number);
    let writer = store.lock()?;
    for blob in writer.missing(&sealed) {
        let bytes = bytes.iter().find(|bytes| Digest::of(bytes) == blob.digest).unwrap();
        writer.put_blob(&blob, bytes)?;
    }
    writer.publish(MODEL, None, &sealed, &[])
}

/// Of the second version, always the same.
fn signature() -> &'static Signature {
    static SIGNATURE: OnceLock<Signature> = OnceLock::new();
    SIGNATURE.get_or_init(|| {
        let (sealed, _) = bundle(2);
        let statement = Statement { manifest: sealed.digest(), name: MODEL.into(), version: 7, minimum_version: 6 };
        let keys = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
        let text = statement.text();
        let signed = minisign::sign(None, &keys.sk, text.as_bytes(), Some("comment"), None).unwrap();
        Signature::of(&statement, &signed.into_string()).unwrap()
    })
}

/// What users see of a store: the versions there are, the current one, how many of them are signed, and the lowest
/// version that may come into force.
type Seen = (Vec<u64>, Option<u64>, usize, u64);
type Step = (&'static str, fn(&Store) -> Result<(), BundleError>, Seen);

/// A store's life, and what is to be seen after each step.
fn life() -> Vec<Step> {
    type Run = fn(&Store) -> Result<(), BundleError>;
    let step = |name, run: Run, versions: &[u64], current, signed, minimum| {
        (name, run, (versions.to_vec(), current, signed, minimum))
    };
    fn swap_signed(store: &Store) -> Result<(), BundleError> {
        store.lock()?.set_current_signed(MODEL, 2, Some((signature().key(), 6)))
    }
    vec![
        step("install 1", |s| install(s, 1).map(drop), &[1], None, 0, 0),
        step("swap to 1", |s| s.lock()?.set_current(MODEL, 1), &[1], Some(1), 0, 0),
        step("install 2", |s| install(s, 2).map(drop), &[1, 2], Some(1), 0, 0),
        step("sign 2", |s| s.lock()?.sign(&bundle(2).0.digest(), signature()), &[1, 2], Some(1), 1, 0),
        step("swap to 2", swap_signed, &[1, 2], Some(2), 1, 6),
        step("install 2 again", |s| install(s, 2).map(drop), &[1, 2], Some(2), 1, 6),
        step("install 3", |s| install(s, 3).map(drop), &[1, 2, 3], Some(2), 1, 6),
        step("swap to 3", |s| s.lock()?.set_current(MODEL, 3), &[1, 2, 3], Some(3), 1, 6),
        step("roll back", |s| s.lock()?.rollback(MODEL).map(drop), &[1, 2, 3], Some(2), 1, 6),
        step("collect", |s| s.lock()?.collect(&[]).map(drop), &[2, 3], Some(2), 1, 6),
    ]
}

/// Opens everything, blobs and all: a version that is named must be whole.
fn seen(store: &Store) -> Seen {
    let list = store.list().unwrap();
    let mut signed = 0;
    for installed in &list {
        let opened = store.open(&Reference::Version(MODEL.into(), installed.version)).unwrap();
        opened.check_blobs().unwrap();
        assert_eq!(opened.digest(), bundle(installed.version).0.digest());
        assert!(opened.signatures().iter().all(|found| found == signature()));
        signed += opened.signatures().len();
    }
    let current = store.current(MODEL).unwrap();
    if let Some(version) = current {
        let opened = store.open(&Reference::Current(MODEL.into())).unwrap();
        assert_eq!(opened.digest(), bundle(version).0.digest());
    }
    let minimum = store.minimum_version(MODEL, signature().key()).unwrap();
    (list.into_iter().map(|installed| installed.version).collect(), current, signed, minimum)
}

/// Whatever happened before: the next version installs, serves, and leaves no garbage but what it should.
fn goes_on(store: &Store) {
    let version = install(store, 9).unwrap();
    let writer = store.lock().unwrap();
    writer.set_current(MODEL, version).unwrap();
    writer.collect(&[]).unwrap();
    let opened = store.open(&Reference::Current(MODEL.into())).unwrap();
    opened.check_blobs().unwrap();
    assert_eq!(opened.digest(), bundle(9).0.digest());
}

/// Every state that a power cut after `log` may leave.
fn power_cuts(log: &[Op]) -> Vec<(FakeDisk, String)> {
    let loose = FakeDisk::loose_names(log);
    let first = (0..=loose).map(Names::First);
    let names = first.chain((0..loose).map(Names::AllBut)).chain((0..loose).map(Names::Only));
    let all = [Bytes::All, Bytes::None, Bytes::Half, Bytes::Garbage];
    names
        .flat_map(|names| {
            all.map(|bytes| (FakeDisk::after_power_cut(log, bytes, names), format!("{bytes:?}, {names:?}")))
        })
        .collect()
}

fn check(store: &Store, allowed: [&Seen; 2], when: &str) {
    let found = catch_unwind(AssertUnwindSafe(|| {
        let found = seen(store);
        goes_on(store);
        found
    }));
    let found = found.unwrap_or_else(|_| panic!("{when}: not whole, or no way on; see above"));
    assert!(allowed.contains(&&found), "{when}: {found:?} is none of {allowed:?}");
}

#[test]
fn a_power_cut_leaves_the_old_or_the_new_version() {
    let disk = FakeDisk::default();
    let mut before: Seen = (vec![], None, 0, 0);
    let mut states = 0;
    for (name, run, after) in life() {
        let start = disk.log().len();
        run(&store(&disk)).unwrap();
        let log = disk.log();
        // Each prefix that ends in this step; once it has returned, it must hold.
        for end in start..=log.len() {
            let old = if end == log.len() { &after } else { &before };
            for (disk, how) in power_cuts(&log[..end]) {
                check(&store(&disk), [old, &after], &format!("{name}, cut before {:?} ({how})", log.get(end)));
                states += 1;
            }
        }
        before = after;
    }
    println!("power cuts: {states} states of {} operations", disk.log().len());
    assert!(states >= 500, "{states}");
}

#[test]
fn a_power_cut_while_building_anew_leaves_the_old_or_the_new_bundle() {
    let disk = FakeDisk::default();
    let build = |number| {
        let (sealed, bytes) = bundle(number);
        let mut draft = Draft::default();
        for bytes in bytes {
            draft.add(bytes);
        }
        draft.write_to(&store(&disk), &sealed).unwrap();
        (sealed.digest(), disk.log().len())
    };
    let ((old, start), (new, end)) = (build(1), build(2));
    let log = disk.log();
    for cut in start..=end {
        for (disk, how) in power_cuts(&log[..cut]) {
            let layout = Layout::new(Path::new(DIR), Arc::new(disk));
            let opened = Bundle::open_only(layout).unwrap();
            opened.check_blobs().unwrap();
            let found = opened.digest();
            assert!(found == new || found == old && cut < end, "cut before {:?} ({how})", log.get(cut));
        }
    }
}

#[test]
fn a_power_cut_after_a_killed_process_leaves_the_old_or_the_new_version() {
    let mut states = 0;
    let disk = FakeDisk::default();
    let mut before: Seen = (vec![], None, 0, 0);
    for (name, run, after) in life() {
        let healthy = disk.copy(None);
        run(&store(&disk)).unwrap();
        // Killed before each operation: as if it and all that follow failed. Then done again by another process.
        for kill in 0.. {
            let killed = healthy.copy(Some(Fault { after: kill, lasts: true, errno: 5 }));
            let _ = run(&store(&killed));
            if killed.failed().is_empty() {
                break;
            }
            let again = killed.copy(None);
            let start = again.log().len();
            // A second rollback undoes the first, which may have been done.
            if name != "roll back" {
                run(&store(&again)).unwrap();
            }
            let log = again.log();
            for end in start..=log.len() {
                let done = end == log.len() && name != "roll back";
                let lost = FakeDisk::after_power_cut(&log[..end], Bytes::None, Names::First(0));
                let old = if done { &after } else { &before };
                check(
                    &store(&lost),
                    [old, &after],
                    &format!("{name}, killed at {kill}, cut before {:?}", log.get(end)),
                );
                states += 1;
            }
        }
        before = after;
    }
    println!("kills, then power cuts: {states} states");
    assert!(states >= 500, "{states}");
}

#[test]
fn a_failing_disk_is_named_and_the_old_version_goes_on() {
    let errors = [
        (28, "No space left", "free space"),
        (5, "Input/output error", "failing"),
        (30, "Read-only file system", "writable"),
        (24, "Too many open files", "ulimit -n"),
    ];
    let disk = FakeDisk::default();
    let mut before: Seen = (vec![], None, 0, 0);
    let mut tried = 0;
    for (name, run, after) in life() {
        let healthy = disk.copy(None);
        run(&store(&disk)).unwrap();
        for (errno, cause, advice) in errors {
            for lasts in [false, true] {
                for turn in 0.. {
                    let failing = healthy.copy(Some(Fault { after: turn, lasts, errno }));
                    let result = run(&store(&failing));
                    let failed = failing.failed();
                    let Some(operation) = failed.first() else { break };
                    let when = format!("{name}, {cause} at {operation}");
                    tried += 1;
                    // A blob that cannot be read is one to be sent again: that may well succeed.
                    if let Err(error) = result {
                        let error = error.to_string();
                        for expected in [cause, advice] {
                            assert!(error.contains(expected), "{when}: {error:?} does not say {expected:?}");
                        }
                        let named = |operation: &String| error.contains(operation.split(' ').next_back().unwrap());
                        assert!(failed.iter().any(named), "{when}: {error:?} names no path of {failed:?}");
                    } else {
                        assert!(operation.starts_with("read "), "{when}: taken for success");
                        assert_eq!(seen(&store(&failing.copy(None))), after, "{when}");
                    }
                    // It serves on the failing disk if that still reads, and on a mended one.
                    let found = seen(&store(&failing));
                    assert!([&before, &after].contains(&&found), "{when}: {found:?}");
                    let log = failing.log();
                    let lost = FakeDisk::after_power_cut(&log, Bytes::None, Names::First(0));
                    check(&store(&lost), [&before, &after], &format!("{when}, then a power cut"));
                    check(&store(&failing.copy(None)), [&before, &after], &when);
                }
            }
        }
        before = after;
    }
    println!("disk failures: {tried}");
    assert!(tried >= 500, "{tried}");
}

#[test]
fn nothing_is_removed_while_the_index_that_lets_go_of_it_is_not_synced() {
    let disk = FakeDisk::default();
    let steps = life();
    let (collect, life) = steps.split_last().unwrap();
    life.iter().for_each(|(_, run, _)| run(&store(&disk)).unwrap());
    let before = &life.last().unwrap().2;
    // Whoever holds the lock tries again after a failure, without taking the lock anew.
    for turn in 0.. {
        let failing = disk.copy(Some(Fault { after: turn, lasts: false, errno: 5 }));
        let Ok(writer) = store(&failing).lock() else { continue };
        let _ = writer.collect(&[]);
        if failing.failed().is_empty() {
            break;
        }
        writer.collect(&[]).unwrap();
        let log = failing.log();
        for end in disk.log().len()..=log.len() {
            for (lost, how) in power_cuts(&log[..end]) {
                let when = format!("{:?} failed, cut before {:?} ({how})", failing.failed(), log.get(end));
                check(&store(&lost), [before, &collect.2], &when);
            }
        }
    }
}

#[test]
fn a_full_disk_gets_its_space_back() {
    let disk = FakeDisk::default();
    install(&store(&disk), 1).unwrap();
    for turn in 0.. {
        let failing = disk.copy(Some(Fault { after: turn, lasts: false, errno: 28 }));
        let _ = install(&store(&failing), 2);
        let failed = failing.failed();
        let Some(operation) = failed.first() else { break };
        let left: Vec<_> =
            failing.files().into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "new")).collect();
        assert!(left.is_empty(), "{operation}: {left:?}");
    }
}

#[test]
fn a_bit_that_flips_is_found_when_the_bundle_is_opened() {
    let disk = FakeDisk::default();
    for (_, run, _) in &life()[..5] {
        run(&store(&disk)).unwrap();
    }
    let reachable = |version| {
        let opened = store(&disk).open(&Reference::Version(MODEL.into(), version)).unwrap();
        opened.check_blobs().unwrap();
        opened.sealed().clone()
    };
    let (one, two) = (reachable(1), reachable(2));
    let is_content = |path: &Path| {
        two.blobs()
            .iter()
            .chain([&Blob { digest: two.digest(), bytes: 0 }])
            .any(|blob| path.ends_with(blob.digest.hex()))
    };
    let (mut flips, mut found) = (0, 0);
    for (path, len) in disk.files() {
        for bit in (0..len).map(|byte| byte * 8 + byte % 8) {
            let damaged = disk.copy(None);
            damaged.damage(&path, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
            let opened = store(&damaged).open(&Reference::Current(MODEL.into()));
            let result = opened.and_then(|bundle| bundle.check_blobs().map(|()| bundle));
            flips += 1;
            match result {
                // Damage to the index can make another version current, or be in what nobody reads; never half of one.
                Ok(bundle) => {
                    assert!(!is_content(&path), "bit {bit} of {}", path.display());
                    assert!([one.digest(), two.digest()].contains(&bundle.digest()));
                }
                Err(error) => {
                    found += 1;
                    assert!(error.to_string().contains(DIR), "{error}");
                }
            }
        }
    }
    println!("flips: {flips}, of which {found} matter to the current version");
    assert!(found >= 1000);
    // Installing it again mends it.
    let blob = two.components()[1].digest.hex();
    let (path, _) = disk.files().into_iter().find(|(path, _)| path.ends_with(&blob)).unwrap();
    disk.damage(&path, |bytes| bytes[3] ^= 1);
    assert!(store(&disk).lock().unwrap().set_current(MODEL, 2).unwrap_err().to_string().contains(&blob));
    assert_eq!(install(&store(&disk), 2).unwrap(), 2);
    assert_eq!(seen(&store(&disk)), (vec![1, 2], Some(2), 1, 6));
    // And for good, also where it was gone altogether.
    disk.remove(&path).unwrap();
    disk.sync_dir(path.parent().unwrap()).unwrap();
    assert_eq!(install(&store(&disk), 2).unwrap(), 2);
    let lost = FakeDisk::after_power_cut(&disk.log(), Bytes::None, Names::First(0));
    assert_eq!(seen(&store(&lost)), (vec![1, 2], Some(2), 1, 6));
}
