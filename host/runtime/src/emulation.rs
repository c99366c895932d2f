//! A slow device, emulated: segments take longer than they need.

use crate::PrepareError;
use edgent_bundle::{Digest, Manifest};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Which device this host pretends to be.
#[derive(Clone, Debug, Default)]
pub enum Emulation {
    /// None: it is as fast as it is.
    #[default]
    Off,
    /// One that takes so many times as long as this machine usually does.
    Slowdown(f64),
    /// One whose times were measured.
    Measured(Arc<dyn MeasuredHost>),
}

/// A host of which it is known what segments take there.
pub trait MeasuredHost: fmt::Debug + Send + Sync {
    /// Microseconds for each segment of a bundle, in the manifest's order; or why they are not known.
    fn segments_us(&self, manifest: &Manifest, digest: Digest) -> Result<Vec<f64>, String>;

    /// How many times as long coding an activation takes there as here.
    fn coding_slowdown(&self) -> f64;
}

/// How fast one deployment is to be.
#[derive(Debug)]
pub(crate) enum Pace {
    Own,
    Slowed(f64),
    /// For each segment, and for coding.
    Given(Vec<Duration>, f64),
}

impl Emulation {
    /// The pace of a bundle.
    pub(crate) fn pace(&self, manifest: &Manifest, digest: Digest) -> Result<Pace, PrepareError> {
        match self {
            Self::Off => Ok(Pace::Own),
            Self::Slowdown(times) if *times > 1.0 => Ok(Pace::Slowed(*times)),
            Self::Slowdown(_) => Ok(Pace::Own),
            Self::Measured(host) => {
                let segments_us = host.segments_us(manifest, digest).map_err(PrepareError::Emulation)?;
                let named = manifest.segments.iter().map(|segment| &segment.name).zip(&segments_us);
                let known = named.map(|(name, us)| {
                    let duration = Duration::try_from_secs_f64(us / 1e6);
                    duration.map_err(|_| PrepareError::Emulation(format!("what segment '{name}' takes is not known")))
                });
                let known = known.collect::<Result<Vec<_>, _>>()?;
                if known.len() != manifest.segments.len() {
                    let (got, needed) = (segments_us.len(), manifest.segments.len());
                    return Err(PrepareError::Emulation(format!("it has times for {got} segments, not {needed}")));
                }
                Ok(Pace::Given(known, host.coding_slowdown().max(1.0)))
            }
        }
    }
}

impl Pace {
    /// How many times as long as here coding takes.
    pub(crate) fn coding_slowdown(&self) -> f64 {
        match self {
            Self::Own => 1.0,
            Self::Slowed(times) | Self::Given(_, times) => *times,
        }
    }
}
