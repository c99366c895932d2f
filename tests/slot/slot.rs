//! Every order in which requests, a change of version and a trial can meet, tried by loom.
#![cfg(test)]

use loom::model;
use loom::thread;
use slot::Slot;
use std::sync::atomic::Ordering::SeqCst;
use sync::Arc;

#[allow(dead_code)]
#[path = "../../host/runtime/src/device/slot.rs"]
mod slot;

mod sync {
    pub use loom::sync::atomic::{AtomicU64, Ordering};
    pub use loom::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
}

struct Version {
    number: usize,
    gone: loom::sync::atomic::AtomicBool,
}

impl Version {
    fn new(number: usize) -> Arc<Self> {
        Arc::new(Self { number, gone: loom::sync::atomic::AtomicBool::new(false) })
    }

    /// As `retire` does: a version goes when nobody else holds it.
    fn let_go(version: &Arc<Self>) {
        if Arc::strong_count(version) == 1 {
            version.gone.store(true, SeqCst);
        }
    }
}

/// A request sees one version, which does not go before the request ends.
fn request(slot: &Slot<Version>) -> usize {
    let version = slot.for_request();
    assert!(!version.gone.load(SeqCst), "begun with a version that is gone");
    thread::yield_now();
    assert!(!version.gone.load(SeqCst), "gone while a request ran");
    version.number
}

#[test]
fn a_version_goes_only_when_its_last_request_has_ended() {
    model(|| {
        let slot = Arc::new(Slot::new(Version::new(1)));
        let asking: Vec<_> = (0..2)
            .map(|_| {
                let slot = Arc::clone(&slot);
                thread::spawn(move || request(&slot))
            })
            .collect();
        let old = slot.replace(Version::new(2));
        Version::let_go(&old);
        assert_eq!(request(&slot), 2, "once it is in force, the new version answers");
        for asked in asking {
            assert!((1..=2).contains(&asked.join().unwrap()));
        }
        Version::let_go(&old);
        assert!(old.gone.load(SeqCst), "it goes in the end");
    });
}

#[test]
fn a_trial_ends_for_good_whatever_it_led_to() {
    for is_good in [true, false] {
        model(move || {
            let slot = Arc::new(Slot::new(Version::new(1)));
            let asking = {
                let slot = Arc::clone(&slot);
                thread::spawn(move || (request(&slot), request(&slot)))
            };
            let next = Version::new(2);
            slot.begin_trial(Arc::clone(&next), 0.5);
            let (goes, stays) = if is_good {
                (slot.replace(Arc::clone(&next)), 2)
            } else {
                slot.end_trial();
                (next, 1)
            };
            Version::let_go(&goes);
            assert_eq!(request(&slot), stays);
            assert!(slot.on_trial().is_none());
            asking.join().unwrap();
            Version::let_go(&goes);
            assert!(goes.gone.load(SeqCst), "it goes in the end");
        });
    }
}

#[test]
fn a_trial_gets_its_share() {
    for (share, expected) in [(0.1, 10), (0.25, 25), (0.5, 50), (1.0, 100), (1e-9, 0)] {
        model(move || {
            let slot = Slot::new(Version::new(1));
            slot.begin_trial(Version::new(2), share);
            let tried = (0..100).filter(|_| slot.for_request().number == 2).count();
            assert_eq!(tried, expected, "of 100 with a share of {share}");
        });
    }
}

#[test]
fn what_is_done_while_a_version_is_in_force_is_done_before_it_is_replaced() {
    model(|| {
        let first = Version::new(1);
        let slot = Arc::new(Slot::new(Arc::clone(&first)));
        let replacing = {
            let slot = Arc::clone(&slot);
            thread::spawn(move || slot.replace(Version::new(2)).gone.store(true, SeqCst))
        };
        slot.when_current(&first, || assert!(!first.gone.load(SeqCst)));
        replacing.join().unwrap();
        assert!(!slot.when_current(&first, || unreachable!()));
    });
}
