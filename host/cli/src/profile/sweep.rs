//! Layers of many sizes, each made as a segment of its own and run as segments are run.
//!
//! Two things make a layer on its own faster than the same layer within a network. Run again and again,
//! it finds its weights and its code in the nearest caches. And tract's matrix kernels leave the upper
//! halves of an x86-64's vector registers in use, which makes code compiled for any x86-64 (LRN, pooling)
//! up to four times slower until something clears them: measured on Zen 4, an LRN of 32 us takes 120 us
//! behind a convolution. So layers take turns in groups that touch about as much memory as a small
//! network does, and a small convolution runs before each.

use crate::build::layer;
use crate::output::quantile;
use anyhow::Result;
use edgent_bundle::{Layer, standard_guest};
use edgent_nn::synthetic::{self, Shape};
use edgent_nn::{ElementType, Fact, Graph, Stop, Tensor};
use edgent_sandbox::{Code, Engine, Limits, Segment};
use std::time::Instant;

/// The largest activation that is made; larger ones do not occur in small networks.
const ELEMENTS_MAX: usize = 200_000;
/// The most multiply-accumulates of one layer: a millisecond or two.
const MACS_MAX: usize = 40_000_000;
/// The most weights of one layer: 16 MiB.
const WEIGHTS_MAX: usize = 4 << 20;

/// What the layers of a group read, about: what a small network reads.
const GROUP_BYTES: usize = 6 << 20;
/// A few layers of every kind at least, or they would not take turns.
const GROUP_CASES_MIN: usize = 12;

const MAPS: [usize; 13] = [1, 3, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256];
const SIDES_PX: [usize; 9] = [4, 7, 8, 14, 16, 24, 32, 48, 64];
/// Windows and their steps.
const POOLS: [(usize, usize); 4] = [(2, 2), (3, 2), (2, 1), (3, 1)];
const WIDTHS: [usize; 17] = [10, 16, 32, 48, 64, 84, 100, 128, 192, 256, 384, 512, 768, 1_024, 1_536, 2_048, 4_096];

const BEFORE: Shape = Shape::Conv { maps: 8, filters: 16, side_px: 8, window_px: 3, stride_px: 1 };

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Sizes of each type of layer; of convolutions, whose times are the most varied, twice as many.
    pub(crate) sizes: usize,
    /// How many times each is loaded.
    pub(crate) loads: usize,
    /// How often the groups take turns.
    pub(crate) passes: usize,
    /// Runs of each layer in a turn; the first of them are not counted.
    pub(crate) rounds: usize,
}

const WARM_UP: usize = 2;

/// Decides sizes, weights and order; the same on each run.
const SEED: u64 = 1;

/// The layers to measure, ready to be run.
pub(crate) struct Sweep {
    cases: Vec<Case>,
    call: Case,
    before: Case,
    effort: Effort,
}

/// A layer, ready to be run.
struct Case {
    layer: Layer,
    graph_bytes: usize,
    touched_bytes: usize,
    load_us: Vec<f64>,
    run_us: Vec<f64>,
    segment: Segment,
    input: Tensor,
}

/// What a layer took, in the median.
pub(crate) struct Measured {
    pub(crate) layer: Layer,
    pub(crate) graph_bytes: usize,
    pub(crate) load_us: f64,
    pub(crate) run_us: f64,
}

impl Sweep {
    /// Makes and loads every layer.
    pub(crate) fn new(engine: &Engine, effort: Effort) -> Result<Self> {
        let code = engine.compile(standard_guest())?;
        let mut dice = Dice(SEED);
        let mut shapes = shapes(&mut dice, effort.sizes);
        dice.shuffle(&mut shapes);
        let cases = shapes.into_iter().map(|shape| Case::new(shape, &code, effort.loads)).collect::<Result<_>>();
        let fact = Fact::new(ElementType::F32, &[16])?;
        let call = Graph::identity("input", &fact)?;
        let before = Case::new(BEFORE, &code, 1)?;
        let call = Case {
            layer: before.layer.clone(),
            graph_bytes: 0,
            touched_bytes: 0,
            load_us: Vec::new(),
            run_us: Vec::new(),
            segment: Segment::new("call", &code, call, Limits::default())?,
            input: synthetic::noise(&fact, SEED)?,
        };
        Ok(Self { cases: cases?, call, before, effort })
    }

    /// How many layers are measured, in all passes together.
    pub(crate) fn steps(&self) -> usize {
        self.effort.passes * self.cases.len()
    }

    /// Runs everything, and says so after each layer; between passes, `meanwhile`, so that what the machine does meanwhile
    /// hits both.
    pub(crate) fn run(&mut self, did: impl Fn(), mut meanwhile: impl FnMut() -> Result<()>) -> Result<()> {
        for _ in 0..self.effort.passes {
            let mut start = 0;
            while start < self.cases.len() {
                let end = self.group_end(start);
                for round in 0..self.effort.rounds {
                    for case in self.cases[start..end].iter_mut().chain([&mut self.call]) {
                        self.before.run(false)?;
                        case.run(round >= WARM_UP)?;
                    }
                }
                (start..end).for_each(|_| did());
                start = end;
            }
            meanwhile()?;
        }
        Ok(())
    }

    /// The cost of a call alone, and what each layer took with it.
    pub(crate) fn results(self) -> (f64, Vec<Measured>) {
        let median = |mut values: Vec<f64>| quantile(&mut values, 0.5);
        let measured = |case: Case| Measured {
            layer: case.layer,
            graph_bytes: case.graph_bytes,
            load_us: median(case.load_us),
            run_us: median(case.run_us),
        };
        (median(self.call.run_us), self.cases.into_iter().map(measured).collect())
    }

    fn group_end(&self, start: usize) -> usize {
        let mut touched = 0;
        let full = self.cases[start..].iter().position(|case| {
            touched += case.touched_bytes;
            touched > GROUP_BYTES
        });
        let end = full.map_or(self.cases.len(), |cases| start + cases.max(GROUP_CASES_MIN));
        // What would be left for a last group of its own joins this one.
        if end + GROUP_CASES_MIN > self.cases.len() { self.cases.len() } else { end }
    }
}

impl Case {
    fn new(shape: Shape, code: &Code, loads: usize) -> Result<Self> {
        let made = synthetic::layer(shape, SEED)?;
        let load = || -> Result<_> {
            let start = Instant::now();
            let graph = Graph::load(&made.graph, made.format)?;
            let segment = Segment::new("layer", code, graph, Limits::default())?;
            Ok((segment, start.elapsed().as_secs_f64() * 1e6))
        };
        let (segment, us) = load()?;
        let mut load_us = vec![us];
        for _ in 1..loads {
            load_us.push(load()?.1);
        }
        let fact = &segment.work().inputs()[0].fact;
        let input = synthetic::noise(fact, SEED)?;
        let touched_bytes = made.graph.len() + fact.bytes() + segment.work().outputs()[0].fact.bytes();
        let (layer, graph_bytes) = (layer(&made.layers[0]), made.graph.len());
        Ok(Self { layer, graph_bytes, touched_bytes, load_us, run_us: Vec::new(), segment, input })
    }

    fn run(&mut self, counts: bool) -> Result<()> {
        let input = self.input.clone();
        let start = Instant::now();
        let output = self.segment.run(vec![input], &Stop::never())?;
        let us = start.elapsed().as_secs_f64() * 1e6;
        drop(output);
        if counts {
            self.run_us.push(us);
        }
        Ok(())
    }
}

fn shapes(dice: &mut Dice, sizes: usize) -> Vec<Shape> {
    let makers: [fn(&mut Dice) -> Option<Shape>; 6] = [conv, conv, relu, lrn, fully_connected, scale];
    let mut shapes = Vec::with_capacity((makers.len() + 1) * sizes);
    for make in makers {
        shapes.extend(std::iter::repeat_with(|| make(dice)).flatten().take(sizes));
    }
    // As many of each, or what one of them takes could not be told.
    for pool in POOLS.into_iter().cycle().take(sizes) {
        shapes.extend(std::iter::repeat_with(|| image(dice)).flatten().take(1).map(|image| pooled(image, pool)));
    }
    shapes
}

fn conv(dice: &mut Dice) -> Option<Shape> {
    let (maps, filters, side_px) = (dice.of(&MAPS), dice.of(&MAPS), dice.of(&SIDES_PX));
    let (window_px, stride_px) = (dice.of(&[1, 3, 3, 5]), dice.of(&[1, 1, 1, 2]));
    let places = side_px.div_ceil(stride_px).pow(2);
    let weights = maps * filters * window_px * window_px;
    // Decluttered, one weight a filter is a plain factor, and 1 × 1 in steps is two layers.
    let is_one_layer = window_px > 1 || maps > 1 && stride_px == 1;
    let fits = is_one_layer
        && maps * side_px * side_px <= ELEMENTS_MAX
        && filters * places <= ELEMENTS_MAX
        && weights <= WEIGHTS_MAX
        && weights * places <= MACS_MAX;
    fits.then_some(Shape::Conv { maps, filters, side_px, window_px, stride_px })
}

fn image(dice: &mut Dice) -> Option<(usize, usize)> {
    let (maps, side_px) = (dice.of(&MAPS), dice.of(&SIDES_PX));
    (maps * side_px * side_px <= ELEMENTS_MAX).then_some((maps, side_px))
}

fn relu(dice: &mut Dice) -> Option<Shape> {
    image(dice).map(|(maps, side_px)| Shape::Relu { maps, side_px })
}

fn pooled((maps, side_px): (usize, usize), (window_px, stride_px): (usize, usize)) -> Shape {
    Shape::Pool { maps, side_px, window_px, stride_px }
}

fn lrn(dice: &mut Dice) -> Option<Shape> {
    image(dice).map(|(maps, side_px)| Shape::Lrn { maps, side_px })
}

fn fully_connected(dice: &mut Dice) -> Option<Shape> {
    let (inputs, outputs) = (dice.of(&WIDTHS), dice.of(&WIDTHS));
    (inputs * outputs <= WEIGHTS_MAX).then_some(Shape::FullyConnected { inputs, outputs })
}

fn scale(dice: &mut Dice) -> Option<Shape> {
    image(dice).map(|(maps, side_px)| Shape::Scale { maps, side_px })
}

/// Knuth's linear congruential generator.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn of(&mut self, choices: &[usize]) -> usize {
        choices[self.below(choices.len())]
    }

    fn shuffle<T>(&mut self, values: &mut [T]) {
        for end in (1..values.len()).rev() {
            values.swap(end, self.below(end + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_varied_and_the_same_each_time() {
        let made = shapes(&mut Dice(SEED), 20);
        assert_eq!(made.len(), 7 * 20);
        assert_eq!(made, shapes(&mut Dice(SEED), 20));
        let others = shapes(&mut Dice(SEED + 1), 20);
        assert_ne!(made, others);
        for pool in POOLS {
            let has = |shape: &&Shape| match **shape {
                Shape::Pool { window_px, stride_px, .. } => (window_px, stride_px) == pool,
                _ => false,
            };
            assert_eq!(made.iter().filter(has).count(), 5, "{pool:?}");
        }
    }
}
