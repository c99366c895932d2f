//! Convolutions, and products of a constant matrix with many columns, which are convolutions of single pixels.
//!
//! tract 0.23 gathers what each window covers anew for every few filters; here it is done once for some neighbouring pixels
//! (a *panel*: for each weight of a filter as many values), and every filter takes the panel while it is in the cache. What comes
//! behind is done while the results are still in registers: bias, a sum with another tensor, bounds. Where each filter sees
//! one channel alone (a depthwise convolution), there is nothing to share; then rows are added up tap by tap.

use super::scratch::Scratch;
use super::sixteen::{self, Channels, Kind, Places, Slide};
use super::slide::{Fold, Runs};
use super::steps::{PerChannel, Step, apply};
use super::team::{Team, ranges, take};
use super::window::{SLACK, Windows};
use crate::vector::{Loops, TILE_COLUMNS, TILE_ROWS, add_products, multiply, wide};
use std::mem;
use std::ops::Range;
use tract_nnef::internal::*;

/// Pixels of a panel.
pub(super) const PANEL: usize = TILE_COLUMNS;
/// Filters that are computed together: their results for a panel stay in registers.
const FILTERS: usize = TILE_ROWS;
/// Panels that are made before the filters are gone through: so much stays in a processor's second cache…
const PANELS_BYTES: usize = 256 << 10;
/// …but some at least, since all weights are read once for them.
const PANELS_MIN: usize = 4;

/// A line of a processor's cache, in floats. Vectors that reach from one into the next cost twice as much.
const LINE: usize = 16;

/// A convolution with all that was put into it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FastConv {
    pub(super) windows: Windows,
    pub(super) filters: usize,
    pub(super) groups: usize,
    /// By groups, by blocks of [`FILTERS`] filters; in a block the weights of one place of all its filters are neighbours.
    weights: Arc<[f32]>,
    pub(super) bias: Arc<[f32]>,
    /// Whether a second input is added.
    pub(super) adds: bool,
    pub(super) least: f32,
    pub(super) most: f32,
    /// What is done afterwards.
    pub(super) steps: Vec<Step>,
    pub(super) output: TVec<usize>,
    taps: Arc<[usize]>,
    /// The taps of a depthwise convolution, in whose order its weights are.
    runs: Runs,
}

// Floats of a network are what they are: no two of them are compared to decide something.
impl Eq for FastConv {}

impl FastConv {
    /// `weights`: for each filter, those of its group's first channel, row by row, then the next channel's.
    pub(super) fn new(windows: Windows, groups: usize, weights: &[f32], bias: Vec<f32>, output: TVec<usize>) -> Self {
        let filters = bias.len();
        let (taps, runs) = (windows.taps(), Runs::of(&windows));
        let places = windows.channels / groups * taps.len();
        let mut packed = Vec::with_capacity(weights.len());
        for group in weights.chunks_exact(places * filters / groups) {
            if groups == windows.channels && groups == filters {
                packed.extend(runs.order.iter().map(|tap| group[*tap]));
                continue;
            }
            for block in group.chunks(places * FILTERS) {
                for place in 0..places {
                    packed.extend(block.chunks_exact(places).map(|filter| filter[place]));
                }
            }
        }
        packed.iter_mut().for_each(|weight| *weight = normal(*weight));
        Self {
            windows,
            filters,
            groups,
            weights: packed.into(),
            bias: bias.into(),
            adds: false,
            least: f32::NEG_INFINITY,
            most: f32::INFINITY,
            steps: Vec::new(),
            output,
            taps: taps.into(),
            runs,
        }
    }

    /// Has each filter's weights be multiplied.
    pub(super) fn scale_weights(&mut self, by: &PerChannel) {
        let filters = self.filters / self.groups;
        let places = self.windows.channels / self.groups * self.taps.len();
        let mut scaled = self.weights.to_vec();
        for (group, weights) in scaled.chunks_exact_mut(places * filters).enumerate() {
            for (block, weights) in weights.chunks_mut(places * FILTERS).enumerate() {
                let rows = weights.len() / places;
                for (at, weight) in weights.iter_mut().enumerate() {
                    *weight = normal(*weight * by.of(group * filters + block * FILTERS + at % rows));
                }
            }
        }
        self.weights = scaled.into();
    }

    pub(super) fn is_depthwise(&self) -> bool {
        self.groups == self.windows.channels && self.groups == self.filters
    }
}

/// A weight, or zero if it has fewer digits than a float: there are networks with hundreds of thousands of such weights, which
/// change no result, and some processors take a hundred times as long for each product with one.
fn normal(weight: f32) -> f32 {
    if weight.is_subnormal() { 0.0 } else { weight }
}

impl Op for FastConv {
    fn name(&self) -> StaticName {
        if self.is_depthwise() { "FastDepthwise".into() } else { "FastConv".into() }
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let Windows { kernel, stride, .. } = &self.windows;
        let (adds, bounds) = (if self.adds { ", adds" } else { "" }, self.least..=self.most);
        Ok(vec![format!("kernel {kernel:?}, stride {stride:?}, groups {}{adds}, within {bounds:?}", self.groups)])
    }

    op_as_typed_op!();
}

impl EvalOp for FastConv {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut scratch = Scratch::take();
        let mut output = scratch.tensor(&self.output)?;
        self.convolve(&inputs, &mut output, &mut scratch)?;
        inputs.into_iter().for_each(|input| scratch.keep(input));
        scratch.give_back();
        Ok(tvec!(output.into_tvalue()))
    }
}

impl FastConv {
    fn convolve(&self, inputs: &[TValue], output: &mut Tensor, scratch: &mut Scratch) -> TractResult<()> {
        let plain = inputs[0].try_as_plain_ram()?;
        let added = if self.adds { Some(inputs[1].try_as_plain_ram()?) } else { None };
        let added = added.as_ref().map(|added| added.as_slice::<f32>()).transpose()?;
        let (input, mut to) = (plain.as_slice::<f32>()?, output.try_as_plain_ram_mut()?);
        let images = self.windows.images;
        let (taken, given) =
            (self.windows.channels * self.windows.input_pixels(), self.filters * self.windows.pixels());
        ensure!(input.len() == images * taken, "{} elements are no {images} images", input.len());
        let team = Team::of(images.saturating_mul(given).saturating_mul(self.places()));
        for (image, output) in to.as_slice_mut::<f32>()?.chunks_exact_mut(given).enumerate() {
            let input = &input[image * taken..][..taken];
            let added = added.map(|added| &added[image * given..][..given]);
            self.image(input, added, output, &team, scratch);
        }
        Ok(())
    }

    /// One image. Each thread of the team has filters or pixels of its own, whose results lie side by side.
    fn image(&self, input: &[f32], added: Option<&[f32]>, output: &mut [f32], team: &Team, scratch: &mut Scratch) {
        let windows = &self.windows;
        let (mut staged, mut places) = (mem::take(&mut scratch.staged), mem::take(&mut scratch.places));
        sixteen::places(windows, self.is_depthwise(), &mut places);
        let is_staged = !self.is_depthwise() && (!windows.is_as_it_is() || !places.is_empty());
        if is_staged {
            staged.resize(windows.channels * windows.staged() + SLACK, 0.0);
            wide(Staging { windows, input, staged: &mut staged });
        }
        let input = if is_staged { &staged } else { input };
        let (mut own, mut left, mut at) = (Some(&mut *scratch), output, 0);
        team.share(
            self.shares(team.size()).map(|(filters, pixels)| {
                let (start, results) = (at, filters.len() * pixels.len());
                at += results;
                Share {
                    conv: self,
                    input,
                    added: added.map(|added| &added[start..at]),
                    output: take(&mut left, results),
                    filters,
                    pixels,
                    places: &places,
                    scratch: own.take(),
                }
            }),
            Share::compute,
        );
        (scratch.staged, scratch.places) = (staged, places);
    }

    /// Filters and pixels of at most so many parts; those that are computed together stay so. Where a pixel's results lie side
    /// by side, its filters are not told apart.
    fn shares(&self, parts: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let (all, pixels, by_pixels) = (self.filters, self.windows.pixels(), self.windows.channels_last);
        let filters = all / self.groups;
        let blocks = filters.div_ceil(FILTERS);
        let first = move |block: usize| block / blocks * filters + block % blocks * FILTERS;
        let units = if by_pixels { pixels.div_ceil(PANEL) } else { self.groups * blocks };
        ranges(units, parts).map(move |these| match by_pixels {
            true => (0..all, these.start * PANEL..(these.end * PANEL).min(pixels)),
            false => (first(these.start)..first(these.end), 0..pixels),
        })
    }

    /// What a filter covers in each window.
    fn places(&self) -> usize {
        self.windows.channels / self.groups * self.taps.len()
    }
}

impl TypedOp for FastConv {
    as_op!();

    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::datum_type().fact(&self.output)))
    }
}

/// All channels of an image, with what is around it.
struct Staging<'a> {
    windows: &'a Windows,
    input: &'a [f32],
    staged: &'a mut [f32],
}

impl Loops for Staging<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let channels = self.staged.chunks_exact_mut(self.windows.staged()).take(self.windows.channels);
        for (channel, staged) in channels.enumerate() {
            self.windows.stage(self.input, channel, Some(0.0), staged);
        }
    }
}

/// Some filters of an image.
struct Share<'a> {
    conv: &'a FastConv,
    /// Staged, but for a depthwise convolution.
    input: &'a [f32],
    filters: Range<usize>,
    pixels: Range<usize>,
    /// None: panels are made.
    places: &'a [Places],
    /// Of these alone, as is the output.
    added: Option<&'a [f32]>,
    output: &'a mut [f32],
    /// None: this is another thread than that which began.
    scratch: Option<&'a mut Scratch>,
}

impl Share<'_> {
    fn compute(mut self) {
        Scratch::with(self.scratch.take(), |scratch| wide(Computing { share: self, scratch }));
    }
}

struct Computing<'a> {
    share: Share<'a>,
    scratch: &'a mut Scratch,
}

impl Loops for Computing<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(mut self) {
        if self.share.conv.is_depthwise() {
            self.share.depthwise::<FUSED>(&mut self.scratch.channel);
        } else if self.share.places.is_empty() {
            self.share.by_panels::<FUSED>(&mut self.scratch.panels, &mut self.scratch.pieces);
        } else {
            self.share.directly();
        }
    }
}

impl Share<'_> {
    #[inline(always)]
    fn by_panels<const FUSED: bool>(&mut self, panels: &mut Vec<f32>, pieces: &mut Vec<(usize, usize)>) {
        let FastConv { windows, filters, groups, weights, taps, bias, least, most, .. } = self.conv;
        let (channels, in_group) = (windows.channels / groups, filters / groups);
        let (places, pixels) = (channels * taps.len(), self.pixels.len());
        let Range { start, end } = self.filters;
        let strides = if windows.channels_last { [1, *filters] } else { [pixels, 1] };
        let finish = Finish { bias: &bias[start..end], added: self.added, least: *least, most: *most, strides };
        let size = panel_elements(places);
        // Of an even number, none is left without another one.
        let at_once = (PANELS_BYTES / (size * size_of::<f32>())).max(PANELS_MIN).next_multiple_of(2);
        panels.resize(at_once.min(pixels.div_ceil(PANEL)) * size + LINE, 0.0);
        let aligned = panels.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        let panels = &mut panels[aligned..];
        for group in start / in_group..end.div_ceil(in_group) {
            let these = start.max(group * in_group)..end.min((group + 1) * in_group);
            let weights = &weights[these.start * places..these.end * places];
            let staged = &self.input[group * channels * windows.staged()..];
            for first in self.pixels.clone().step_by(at_once * PANEL) {
                let here = first..(first + at_once * PANEL).min(self.pixels.end);
                fill_panels((windows, taps, channels), staged, here.clone(), pieces, panels);
                for (block, weights) in weights.chunks(places * FILTERS).enumerate() {
                    let filter = these.start - start + block * FILTERS;
                    let to = Place { filter, pixel: first - self.pixels.start, pixels: here.len() };
                    match weights.len() / places {
                        6 if FILTERS >= 6 => by_block::<FUSED, 6>(weights, panels, places, finish, to, self.output),
                        5 if FILTERS >= 5 => by_block::<FUSED, 5>(weights, panels, places, finish, to, self.output),
                        4 => by_block::<FUSED, 4>(weights, panels, places, finish, to, self.output),
                        3 => by_block::<FUSED, 3>(weights, panels, places, finish, to, self.output),
                        2 => by_block::<FUSED, 2>(weights, panels, places, finish, to, self.output),
                        _ => by_block::<FUSED, 1>(weights, panels, places, finish, to, self.output),
                    }
                }
                if !self.conv.steps.is_empty() && !windows.channels_last {
                    for filter in these.clone() {
                        let row = &mut self.output[(filter - start) * pixels..][here.clone()];
                        apply(&self.conv.steps, filter, row);
                    }
                }
            }
        }
    }

    /// Without panels.
    #[inline(always)]
    fn directly(&mut self) {
        let FastConv { windows, filters, groups, weights, taps, bias, least, most, steps, .. } = self.conv;
        let (count, in_group, next) = (windows.channels / groups, filters / groups, windows.staged());
        let (covered, pixels) = (count * taps.len(), self.pixels.len());
        let Range { start, end } = self.filters;
        let finish =
            Finish { bias: &bias[start..end], added: self.added, least: *least, most: *most, strides: [pixels, 1] };
        // What so many windows see stays in the cache while the filters go over it.
        let seen_bytes = count * taps.len().min(windows.kernel[0]) * PANEL * size_of::<f32>();
        let at_once = (PANELS_BYTES / seen_bytes).max(PANELS_MIN).next_multiple_of(2);
        for group in start / in_group..end.div_ceil(in_group) {
            let these = start.max(group * in_group)..end.min((group + 1) * in_group);
            let weights = &weights[these.start * covered..these.end * covered];
            let channels = Channels { staged: &self.input[group * count * next..], count, next, taps };
            let mut pixel = 0;
            for places in self.places.chunks(at_once) {
                for (block, weights) in weights.chunks(covered * FILTERS).enumerate() {
                    let to = Place { filter: these.start - start + block * FILTERS, pixel, pixels };
                    match weights.len() / covered {
                        6 if FILTERS >= 6 => sixteen::direct::<6>(weights, channels, places, finish, to, self.output),
                        5 if FILTERS >= 5 => sixteen::direct::<5>(weights, channels, places, finish, to, self.output),
                        4 => sixteen::direct::<4>(weights, channels, places, finish, to, self.output),
                        3 => sixteen::direct::<3>(weights, channels, places, finish, to, self.output),
                        2 => sixteen::direct::<2>(weights, channels, places, finish, to, self.output),
                        _ => sixteen::direct::<1>(weights, channels, places, finish, to, self.output),
                    }
                }
                let done = pixel..pixel + sixteen::count(places);
                pixel = done.end;
                if !steps.is_empty() {
                    for filter in these.clone() {
                        apply(steps, filter, &mut self.output[(filter - start) * pixels..][done.clone()]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn depthwise<const FUSED: bool>(&mut self, staged: &mut Vec<f32>) {
        let FastConv { windows, weights, taps, runs, bias, least, most, steps, .. } = self.conv;
        let (pixels, start) = (windows.pixels(), self.filters.start);
        let slide = Slide::of(windows, Kind::Products);
        if slide.is_none() {
            staged.resize(windows.staged() + SLACK, 0.0);
        }
        // What comes between, if anything does.
        let within = if self.added.is_none() { *least..=*most } else { f32::NEG_INFINITY..=f32::INFINITY };
        for channel in self.filters.clone() {
            let weights = &weights[channel * taps.len()..][..taps.len()];
            let output = &mut self.output[(channel - start) * pixels..];
            match slide {
                Some(slide) => slide.fold(self.input, channel, weights, output, [bias[channel], 0.0], within.clone()),
                None => {
                    windows.stage(self.input, channel, (channel == start).then_some(0.0), staged);
                    runs.fold::<Products<FUSED>>(windows, staged, weights, output, bias[channel]);
                }
            }
            let output = &mut output[..pixels];
            if let Some(added) = self.added {
                let added = &added[(channel - start) * pixels..][..pixels];
                output.iter_mut().zip(added).for_each(|(to, added)| *to += added);
            }
            let is_bounded = slide.is_some() && self.added.is_none();
            if !is_bounded && (*least > f32::NEG_INFINITY || *most < f32::INFINITY) {
                output.iter_mut().for_each(|to| *to = bounded(*to, *least, *most));
            }
            apply(steps, channel, output);
        }
    }
}

/// Results of so many filters for all pixels that the panels are of.
#[inline(always)]
fn by_block<const FUSED: bool, const ROWS: usize>(
    weights: &[f32],
    panels: &[f32],
    places: usize,
    finish: Finish<'_>,
    to: Place,
    output: &mut [f32],
) {
    if sixteen::is_there() {
        return sixteen::block::<ROWS>(weights, panels, places, finish, to, output);
    }
    for (panel, first) in panels.chunks_exact(panel_elements(places)).zip((0..to.pixels).step_by(PANEL)) {
        let to = Place { pixel: to.pixel + first, pixels: (to.pixels - first).min(PANEL), ..to };
        finish.write(multiply::<FUSED, ROWS>(weights, &panel[..places * PANEL]), to, output);
    }
}

/// What a window's elements are, each times its weight, in all.
struct Products<const FUSED: bool>;

impl<const FUSED: bool> Fold for Products<FUSED> {
    #[inline(always)]
    fn fold<const WINDOWS: usize>(sums: &mut [f32; WINDOWS], weight: f32, values: &[f32; WINDOWS]) {
        add_products::<FUSED, WINDOWS>(sums, weight, values);
    }
}

/// Fills panels with what the windows of some pixels cover: for each channel and tap neighbours, which may be of several
/// rows. One place of all panels after another, since then the image is read along its rows.
#[inline(always)]
fn fill_panels(
    (windows, taps, channels): (&Windows, &[usize], usize),
    staged: &[f32],
    pixels: Range<usize>,
    pieces: &mut Vec<(usize, usize)>,
    panels: &mut [f32],
) {
    let (places, width) = (channels * taps.len(), windows.output[1]);
    // Where in the panels each piece of a row starts, and where what it sees starts in a channel.
    pieces.clear();
    for (panel, first) in pixels.clone().step_by(PANEL).enumerate() {
        let mut pixel = first;
        while pixel < (first + PANEL).min(pixels.end) {
            let (row, column) = (pixel / width, pixel % width);
            pieces.push((panel * panel_elements(places) + pixel - first, windows.start(row) + column));
            pixel += width - column;
        }
    }
    for channel in 0..channels {
        for (tap, offset) in taps.iter().enumerate() {
            let panels = &mut panels[(channel * taps.len() + tap) * PANEL..];
            let from = &staged[channel * windows.staged() + offset..];
            for (to, start) in pieces.iter() {
                // More than the piece has; what follows overwrites it.
                let Some(to) = panels[*to..].first_chunk_mut::<PANEL>() else { return };
                match from[*start..].first_chunk::<PANEL>() {
                    Some(from) => *to = *from,
                    None => to.iter_mut().zip(&from[*start..]).for_each(|(to, from)| *to = *from),
                }
            }
        }
    }
}

/// One place more than a panel has, for what is overwritten.
pub(super) fn panel_elements(places: usize) -> usize {
    (places + 1) * PANEL
}

/// What is no number stays none.
#[inline(always)]
pub(super) fn bounded(x: f32, least: f32, most: f32) -> f32 {
    let x = if x < least { least } else { x };
    if x > most { most } else { x }
}

/// Where results belong: from a filter and a pixel on.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) filter: usize,
    pub(super) pixel: usize,
    pub(super) pixels: usize,
}

/// What is done with products before they are written.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    pub(super) bias: &'a [f32],
    pub(super) added: Option<&'a [f32]>,
    pub(super) least: f32,
    pub(super) most: f32,
    /// From a filter's results to the next one's, and from a pixel to the next.
    pub(super) strides: [usize; 2],
}

impl Finish<'_> {
    /// Of a whole panel, whose results lie side by side, as most do: with the conditions out of the loops, the sums stay in
    /// registers.
    #[inline(always)]
    fn write_whole<const ROWS: usize>(self, sums: [[f32; PANEL]; ROWS], to: Place, output: &mut [f32]) {
        let Some(bias) = self.bias[to.filter..].first_chunk::<ROWS>() else { return };
        let next_filter = self.strides[0];
        let start = to.filter * next_filter + to.pixel;
        if let Some(added) = self.added {
            for row in 0..ROWS {
                let start = start + row * next_filter;
                let Some(output) = output[start..].first_chunk_mut::<PANEL>() else { return };
                let Some(added) = added[start..].first_chunk::<PANEL>() else { return };
                for lane in 0..PANEL {
                    output[lane] = bounded(sums[row][lane] + bias[row] + added[lane], self.least, self.most);
                }
            }
        } else {
            for row in 0..ROWS {
                let Some(output) = output[start + row * next_filter..].first_chunk_mut::<PANEL>() else { return };
                for lane in 0..PANEL {
                    output[lane] = bounded(sums[row][lane] + bias[row], self.least, self.most);
                }
            }
        }
    }

    /// Of a panel that is not whole, whose results lie side by side.
    #[inline(always)]
    fn write_part<const ROWS: usize>(self, sums: [[f32; PANEL]; ROWS], to: Place, output: &mut [f32]) {
        let Some(bias) = self.bias[to.filter..].first_chunk::<ROWS>() else { return };
        for row in 0..ROWS {
            let (start, mut results) = ((to.filter + row) * self.strides[0] + to.pixel, [0.0; PANEL]);
            if let Some(added) = self.added {
                results[..to.pixels].copy_from_slice(&added[start..][..to.pixels]);
            }
            for lane in 0..PANEL {
                results[lane] = bounded(sums[row][lane] + bias[row] + results[lane], self.least, self.most);
            }
            output[start..][..to.pixels].copy_from_slice(&results[..to.pixels]);
        }
    }

    #[inline(always)]
    pub(super) fn write<const ROWS: usize>(self, sums: [[f32; PANEL]; ROWS], to: Place, output: &mut [f32]) {
        let [next_filter, next_pixel] = self.strides;
        if to.pixels == PANEL && next_pixel == 1 {
            return self.write_whole(sums, to, output);
        }
        if next_pixel == 1 {
            return self.write_part(sums, to, output);
        }
        let Some(bias) = self.bias[to.filter..].first_chunk::<ROWS>() else { return };
        let start = to.filter * next_filter + to.pixel * next_pixel;
        for (row, sums) in sums.iter().enumerate() {
            let start = start + row * next_filter;
            let added = self.added.map(|added| &added[start..]);
            let output = output[start..].iter_mut().step_by(next_pixel);
            for (lane, (output, sum)) in output.zip(&sums[..to.pixels]).enumerate() {
                let added = added.map_or(0.0, |added| added[lane * next_pixel]);
                *output = bounded(sum + bias[row] + added, self.least, self.most);
            }
        }
    }
}
