//! Keeps tract's panics inside this crate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use tract_onnx::prelude::TractResult;

/// Runs `work`, turning tract's error chain, or a panic inside it, into one line of text.
///
/// Everything `work` borrows mutably must be thrown away by the caller after an error: a panic may
/// have left it half-changed.
pub(crate) fn guarded<T>(work: impl FnOnce() -> TractResult<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(format!("tract panicked: {text}"))
        }
    }
}
