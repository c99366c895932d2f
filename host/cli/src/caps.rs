//! What a bundle may cost to be admitted: the same for a host and for who asks whether a host would take one.

use edgent_runtime::{Admission, COMPONENTS_BYTES_MAX, MACS_MAX};

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Caps {
    /// Multiply-accumulates that one answer of a bundle may take.
    #[arg(long, value_name = "N", default_value_t = MACS_MAX)]
    pub(crate) macs_max: u64,
    /// What all components of a bundle together may have.
    #[arg(long, value_name = "MIB", default_value_t = COMPONENTS_BYTES_MAX >> 20)]
    components_max_mib: u64,
}

impl Caps {
    pub(crate) fn admission(self) -> Admission {
        Admission {
            macs_max: self.macs_max,
            components_bytes_max: self.components_max_mib.saturating_mul(1 << 20),
            ..Admission::default()
        }
    }
}
