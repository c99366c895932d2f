//! Generated networks: the same on every machine.
#![allow(missing_docs)]

use edgent_planner::*;

/// A small seeded generator: the same networks on every machine.
pub struct Seeded(pub u64);

impl Seeded {
    pub fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() * n as f64) as usize
    }
}

/// A trunk with branches; the last exit is the trunk's end.
pub fn network(seeded: &mut Seeded) -> (Network, Profile) {
    let trunk = 1 + seeded.below(22);
    let exits = 1 + seeded.below(5);
    let mut boundaries = vec![];
    let mut boundary = |seeded: &mut Seeded| {
        let bytes = 10 + seeded.below(60_000) as u64;
        let mut boundary = Boundary::new(bytes);
        for codec in Codec::ALL {
            // Most are smaller than the activation as it is, and some are not.
            let coded_bytes = bytes / 8 + seeded.below(bytes as usize) as u64;
            if seeded.next() < 0.5 {
                boundary = boundary.with(codec, coded_bytes);
            }
        }
        boundaries.push(boundary);
        boundaries.len() - 1
    };
    let trunk_boundaries: Vec<usize> = (0..=trunk).map(|_| boundary(seeded)).collect();
    let mut segments = trunk;
    let exits: Vec<Exit> = (0..exits)
        .map(|index| {
            let shared = if index + 1 == exits { trunk } else { 1 + seeded.below(trunk) };
            let branch = if index + 1 == exits { 0 } else { 1 + seeded.below(4) };
            let path = (0..shared).chain(segments..segments + branch).collect();
            segments += branch;
            let mut along = trunk_boundaries[..=shared].to_vec();
            along.extend((0..branch).map(|_| boundary(seeded)));
            let accuracy = seeded.next();
            let mut measured = |_| (seeded.next() < 0.8).then(|| (accuracy - seeded.next() * 0.02).max(0.0));
            let coded_accuracy = along.iter().map(|_| PerCodec::from_fn(&mut measured)).collect();
            Exit { accuracy, path, boundaries: along, coded_accuracy }
        })
        .collect();
    let profile = Profile {
        device_us: (0..segments).map(|_| seeded.next() * 20_000.0).collect(),
        edge_us: (0..segments).map(|_| seeded.next() * 1_000.0).collect(),
        edge_queue_us: seeded.next() * 500.0,
        coding: PerCodec::from_fn(|_| {
            let mut us_per_byte = || if seeded.next() < 0.9 { seeded.next() * 0.01 } else { f64::INFINITY };
            Coding { up_us_per_byte: us_per_byte(), down_us_per_byte: us_per_byte() }
        }),
    };
    (Network::new(boundaries, exits, segments).unwrap(), profile)
}
