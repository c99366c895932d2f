//! Which version new requests begin with.
//!
//! One is in force; another may be on trial beside it, for a share of the requests. A request holds what it took for
//! as long as it runs, so a version may be let go when nobody else holds it. Nothing here knows what a version is;
//! `tests/slot` tries every order in which threads can meet here.

use crate::sync::{Arc, AtomicU64, Ordering, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::sync::PoisonError;

/// The version in force, and perhaps one on trial.
#[derive(Debug)]
pub struct Slot<T>(RwLock<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    current: Arc<T>,
    trial: Option<Trial<T>>,
}

#[derive(Debug)]
struct Trial<T> {
    version: Arc<T>,
    share: f64,
    requests: AtomicU64,
}

impl<T> Slot<T> {
    /// With a first version in force.
    pub fn new(first: Arc<T>) -> Self {
        Self(RwLock::new(Inner { current: first, trial: None }))
    }

    /// The version in force.
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.read().current)
    }

    /// The version on trial, if there is one.
    pub fn on_trial(&self) -> Option<Arc<T>> {
        self.read().trial.as_ref().map(|trial| Arc::clone(&trial.version))
    }

    /// The version that a new request takes: the one on trial as often as its share says, evenly spread.
    pub fn for_request(&self) -> Arc<T> {
        let inner = self.read();
        let Some(trial) = &inner.trial else { return Arc::clone(&inner.current) };
        let before = trial.requests.fetch_add(1, Ordering::Relaxed) as f64;
        let takes_trial = ((before + 1.0) * trial.share).floor() > (before * trial.share).floor();
        Arc::clone(if takes_trial { &trial.version } else { &inner.current })
    }

    /// Puts a version in force, and ends a trial; gives the one that was in force until now.
    pub fn replace(&self, next: Arc<T>) -> Arc<T> {
        let mut inner = self.write();
        inner.trial = None;
        std::mem::replace(&mut inner.current, next)
    }

    /// Has a share of the requests, over 0 and at most 1, take this version.
    pub fn begin_trial(&self, version: Arc<T>, share: f64) {
        self.write().trial = Some(Trial { version, share, requests: AtomicU64::new(0) });
    }

    /// New requests take the version in force again, all of them.
    pub fn end_trial(&self) {
        self.write().trial = None;
    }

    /// Does something while a version is in force and stays so; says whether it is.
    pub fn when_current(&self, version: &Arc<T>, then: impl FnOnce()) -> bool {
        let inner = self.read();
        let is_current = Arc::ptr_eq(&inner.current, version);
        if is_current {
            then();
        }
        is_current
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner<T>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner<T>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
