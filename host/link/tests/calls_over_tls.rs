//! The same calls over TLS: what a call does must not depend on what carries it (`support::link` sees to that).
#![allow(clippy::unwrap_used)]

#[path = "calls.rs"]
mod calls;
