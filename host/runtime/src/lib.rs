//! A host: what `edgent-host` runs, as device or as edge.
//!
//! The planner decides, the sandbox runs, the link carries; none of them knows the others. Here they
//! are joined. [`Deployment`] is a bundle made ready to run; [`Edge`] runs parts of it for others;
//! [`Device`] has the data and the deadline, and answers.
#![deny(unsafe_code)] // But for one call: memory.rs.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod admission;
mod again;
mod agent;
mod answer;
pub mod codec;
pub mod confidence;
pub mod confine;
mod deployment;
mod device;
mod discovery;
mod edge;
mod emulation;
pub mod golden;
mod host;
mod http;
mod identity;
mod memory;
mod metrics;
mod policy;
#[cfg(test)]
mod policy_tests;
mod push;
mod running;
mod runs;
mod segments;
mod shelf;
#[cfg(test)]
mod simulation;
mod state;
mod sync;
mod threads;
mod trace;
pub mod trial;
mod workers;

pub use admission::{Admission, COMPONENTS_BYTES_MAX, CostError, MACS_MAX, components_bytes, macs};
pub use deployment::{Deployment, PrepareError, Ran, RunError, Terms, Tiers, is_offered, memory_bytes};
pub use device::{Device, DeviceSettings, LATE};
pub use discovery::{Announcement, Discovery, DiscoveryError, Found};
pub use edge::Edge;
pub use emulation::{Emulation, MeasuredHost};
pub use host::{Host, HostError, Pulse, Settings, Trialist, build_name};
pub use identity::{IdentityFolder, IdentityFolderError, Known};
pub use policy::{Admitted, Policy, PolicyError, Refusal, Signed};
pub use push::{Given, PushError, give_to, make_ready, push, tell_signatures};
pub use trace::{ENDPOINT_VARIABLES, Telling, TellingError};
pub use workers::{Busy, Due, Turn, Workers};
