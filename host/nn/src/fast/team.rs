//! Who computes an operator: some threads of the host. In the sandbox there is one: the portable guest is compiled with
//! these files, too.

use std::mem;
use std::ops::Range;

#[cfg(not(target_family = "wasm"))]
pub(super) use crate::threads::Team;

#[cfg(target_family = "wasm")]
pub(super) struct Team;

#[cfg(target_family = "wasm")]
impl Team {
    #[inline(always)]
    pub(super) fn of(_: usize) -> Self {
        Self
    }

    #[inline(always)]
    pub(super) fn size(&self) -> usize {
        1
    }

    #[inline(always)]
    pub(super) fn share<P>(&self, parts: impl IntoIterator<Item = P>, work: impl Fn(P)) {
        parts.into_iter().for_each(work);
    }
}

/// Divides a number of things evenly into at most so many ranges, none of which is empty.
pub(super) fn ranges(things: usize, parts: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = parts.clamp(1, things.max(1));
    (0..parts).map(move |part| things * part / parts..things * (part + 1) / parts)
}

/// Takes so much of what is left of a tensor.
pub(super) fn take<'a>(left: &mut &'a mut [f32], elements: usize) -> &'a mut [f32] {
    let (these, others) = mem::take(left).split_at_mut(elements);
    *left = others;
    these
}
