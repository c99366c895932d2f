//! Plans of all kinds, each unlike the one before.

use anyhow::{Context, Result};
use edgent_link::{Codec, Description, Direction, Plan};

/// Every cut of every exit between the two hosts, in both orders.
pub(super) fn plans(described: &Description) -> Result<Vec<Plan>> {
    let model = described.models.first().context("the device has no model")?;
    let mut plans = Vec::new();
    for (exit, described) in model.exits.iter().enumerate() {
        for cut in 1..described.segments.len() {
            for direction in [Direction::DeviceFirst, Direction::EdgeFirst] {
                plans.push(Plan {
                    epoch: 0,
                    model: model.digest,
                    exit: exit as u16,
                    cut: cut as u16,
                    direction,
                    codec: Codec::Raw,
                });
            }
        }
    }
    Ok(plans)
}
