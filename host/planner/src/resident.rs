//! Which segments a device holds if it has not the memory for all.
//!
//! They are chosen once, for good: a plan that needed another segment would have to wait until it is loaded, and
//! a device that has just lost its edge cannot. First comes the most accurate exit that fits as a whole, since
//! the device must be able to answer alone; then, exit by exit in order of accuracy, as much of the way to it as
//! still fits, so that the network can be cut as late as possible.

use crate::Network;

/// Whether the device holds each segment, given what each takes of its memory; none if no exit fits.
pub fn resident(network: &Network, segments_bytes: &[u64], bytes_max: u64) -> Option<Vec<bool>> {
    let bytes = |segment: usize| segments_bytes.get(segment).copied().unwrap_or(u64::MAX);
    let needs = |path: &[usize]| path.iter().fold(0_u64, |all, segment| all.saturating_add(bytes(*segment)));
    let mut exits: Vec<_> = network.exits().iter().collect();
    exits.sort_by(|a, b| b.accuracy.total_cmp(&a.accuracy));
    let alone = exits.iter().find(|exit| needs(&exit.path) <= bytes_max)?;
    let mut held = vec![false; network.segments()];
    let mut left = bytes_max;
    for path in std::iter::once(alone).chain(&exits).map(|exit| &exit.path) {
        for segment in path {
            if held[*segment] {
                continue;
            }
            let Some(rest) = left.checked_sub(bytes(*segment)) else { break };
            (held[*segment], left) = (true, rest);
        }
    }
    Some(held)
}

/// What the exit that takes the least takes.
pub fn least_bytes(network: &Network, segments_bytes: &[u64]) -> u64 {
    let bytes = |segment: &usize| segments_bytes.get(*segment).copied().unwrap_or(u64::MAX);
    let needs = network.exits().iter().map(|exit| exit.path.iter().map(bytes).fold(0, u64::saturating_add));
    needs.min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Boundary, Exit, PerCodec};

    /// Segments 0, 1, 2 lead to a good exit; 0, 3 to a poor one.
    fn network() -> Network {
        let exit = |accuracy, path: &[usize], boundaries: &[usize]| Exit {
            accuracy,
            path: path.to_vec(),
            boundaries: boundaries.to_vec(),
            coded_accuracy: boundaries.iter().map(|_| PerCodec::default()).collect(),
        };
        let exits = vec![exit(0.6, &[0, 3], &[0, 1, 4]), exit(0.9, &[0, 1, 2], &[0, 1, 2, 3])];
        Network::new(vec![Boundary::new(1); 5], exits, 4).unwrap()
    }

    #[test]
    fn an_exit_fits_as_a_whole_and_then_as_much_of_the_trunk_as_can_be() {
        let cases: [(u64, Option<[bool; 4]>); 7] = [
            (u64::MAX, Some([true, true, true, true])),
            // Room for the good exit, not for the poor one's branch beside it.
            (70, Some([true, true, true, false])),
            // Not for the good one; its first segments go beside the poor one.
            (69, Some([true, true, false, true])),
            (35, Some([true, true, false, true])),
            (34, Some([true, false, false, true])),
            (15, Some([true, false, false, true])),
            (14, None),
        ];
        for (bytes_max, held) in cases {
            let found = resident(&network(), &[10, 20, 40, 5], bytes_max);
            assert_eq!(found, held.map(|held| held.to_vec()), "in {bytes_max} bytes");
        }
        assert_eq!(least_bytes(&network(), &[10, 20, 40, 5]), 15);
    }
}
