//! What users may ask for. Beyond these a number is a slip, and time arithmetic would overflow.

use crate::output::BadInput;
use anyhow::Result;

/// An hour.
pub(crate) const DEADLINE_MAX_MS: f64 = 3.6e6;
pub(crate) const SLOWDOWN_MAX: f64 = 1e6;

/// Whether a deadline and an emulated slowdown are ones.
pub(crate) fn check(deadline_ms: f64, slowdown: f64) -> Result<()> {
    for (what, value, most) in
        [("deadline, in ms,", deadline_ms, DEADLINE_MAX_MS), ("slowdown", slowdown, SLOWDOWN_MAX)]
    {
        if !(value > 0.0 && value <= most) {
            return Err(BadInput::error(format!("the {what} must be over 0 and at most {most}, not {value}")));
        }
    }
    Ok(())
}
