//! What `device/slot.rs` is made of; `tests/slot` has loom's in place of it.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
pub(crate) use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
