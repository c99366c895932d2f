//! What is written out for vectors of sixteen lanes (AVX-512). The compiler makes of plain loops over such vectors what it
//! likes: scattered stores, or vectors of all sizes beside each other.
//!
//! Results have the same bits as those of the loops that do the same on other processors.

mod block;
mod direct;
mod slide;

pub(super) use block::block;
pub(super) use direct::{Channels, Places, count, direct, places};
pub(super) use slide::{Kind, Slide};

/// Whether this processor has them.
pub(super) fn is_there() -> bool {
    #[cfg(test)]
    if tests::are_left_out() {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    thread_local! {
        static LEFT_OUT: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn are_left_out() -> bool {
        LEFT_OUT.get()
    }

    /// Has this thread go without them.
    pub(crate) fn leave_out(is_left_out: bool) {
        LEFT_OUT.set(is_left_out);
    }
}
