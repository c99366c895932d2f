//! Words for operators of tract that its NNEF has none for. Both tiers read graphs with them: the portable guest
//! (`guest-layers/portable`) is built with this file, too.

use tract_nnef::registry::Registry;
use tract_nnef::tract_core::ops::nn::GeluExact;

/// The operators, as an extension of NNEF.
pub(crate) fn own_operators() -> Registry {
    let mut registry = Registry::new("edgent");
    registry.register_unit_element_wise("edgent_gelu_exact", &GeluExact {});
    registry
}
