//! Networks with what is put in here, compared with the same networks in tract alone.

use super::*;
use crate::graph::Runner;
use crate::synthetic::Noise;
use crate::threads::tests as threads;
use crate::{Difference, Graph, synthetic};
use tract_nnef::tract_core::ops::cnn::KernelFormat;
use tract_nnef::tract_core::ops::math::{add, max, min, mul, sub};

/// Sums are added up in another order; as a share of the greatest value.
const ROUNDING: f64 = 2e-6;

/// Compares a network with itself in tract alone; the names of the operators that it has here.
fn same(model: TypedModel, what: &str) -> Vec<String> {
    let plain = Graph::plain(model.clone()).unwrap();
    let fast = Graph::prepare(model).unwrap();
    let inputs: Vec<_> = plain.inputs().iter().map(|port| synthetic::noise(&port.fact, 3).unwrap()).collect();
    let expected = plain.run_once(inputs.clone()).unwrap();
    // What was kept of other runs must not show.
    for run in 0..2 {
        for (ours, theirs) in fast.run_once(inputs.clone()).unwrap().iter().zip(&expected) {
            let apart = Difference::of(ours, theirs).unwrap();
            assert!(apart.most <= ROUNDING * apart.greatest, "{what}, run {run}: {apart:?}");
        }
    }
    // Each element is computed as by one thread, so the bits are the same.
    let alone = fast.run_once(inputs.clone()).unwrap();
    for count in [2, 3] {
        threads::force(count);
        let together = fast.run_once(inputs.clone()).unwrap();
        threads::force(1);
        for (together, alone) in together.iter().zip(&alone) {
            assert_eq!(together.bytes(), alone.bytes(), "{what}, on {count} threads");
        }
    }
    sixteen::tests::leave_out(true);
    let narrow = fast.run_once(inputs.clone()).unwrap();
    sixteen::tests::leave_out(false);
    for (narrow, wide) in narrow.iter().zip(&alone) {
        assert_eq!(narrow.bytes(), wide.bytes(), "{what}, without vectors of sixteen lanes");
    }
    let Runner::Tract(plan) = fast.runner() else { panic!("{what}: only tract is here") };
    plan.model().nodes().iter().map(|node| node.op.name().into_owned()).collect()
}

fn has(operators: &[String], name: &str) -> bool {
    operators.iter().any(|operator| operator == name)
}

struct Net {
    model: TypedModel,
    last: OutletId,
    noise: Noise,
}

impl Net {
    fn new(dims: &[usize], seed: u64) -> Self {
        let mut model = TypedModel::default();
        let last = model.add_source("x", f32::fact(dims)).unwrap();
        Self { model, last, noise: Noise(seed) }
    }

    fn constant(&mut self, dims: &[usize]) -> OutletId {
        let values = self.noise.values(dims.iter().product());
        self.given(dims, &values)
    }

    fn given(&mut self, dims: &[usize], values: &[f32]) -> OutletId {
        let name = format!("c{}", self.model.nodes().len());
        self.model.add_const(name, Tensor::from_shape(dims, values).unwrap()).unwrap()
    }

    fn wire(&mut self, op: impl Into<Box<dyn TypedOp>>, others: &[OutletId]) -> OutletId {
        let name = format!("n{}", self.model.nodes().len());
        let inputs: TVec<OutletId> = [self.last].iter().chain(others).copied().collect();
        self.last = self.model.wire_node(name, op, &inputs).unwrap()[0];
        self.last
    }

    fn conv(&mut self, spec: PoolSpec, groups: usize, per_filter: bool) -> OutletId {
        let (filters, maps) = (spec.output_channels, spec.input_channels / groups);
        let kernel = self.constant(&[&[filters, maps], &spec.kernel_shape[..]].concat());
        let bias = self.constant(if per_filter { std::slice::from_ref(&filters) } else { &[] });
        self.wire(Conv::new(spec, KernelFormat::OIHW, groups, None), &[kernel, bias])
    }

    fn done(self) -> TypedModel {
        self.undecluttered().into_decluttered().unwrap()
    }

    /// Without tract's own passes, which would put it otherwise.
    fn undecluttered(mut self) -> TypedModel {
        let last = self.last;
        self.model.select_output_outlets(&[last]).unwrap();
        self.model
    }
}

fn spec(
    format: DataFormat,
    kernel: &[usize],
    padding: PaddingSpec,
    stride: &[usize],
    channels: [usize; 2],
) -> PoolSpec {
    PoolSpec::new(format, kernel.into(), padding, None, Some(stride.into()), channels[0], channels[1])
}

fn around(before: &[usize], behind: &[usize]) -> PaddingSpec {
    PaddingSpec::Explicit(before.into(), behind.into())
}

#[test]
fn convolutions_give_what_tract_gives() {
    let mut made = 0;
    for groups in [1, 2, 5] {
        for kernel in [[1, 1], [3, 3], [2, 5], [7, 1]] {
            for stride in [[1, 1], [2, 2], [1, 3]] {
                for padding in [PaddingSpec::Valid, PaddingSpec::SameUpper, around(&[1, 2], &[2, 0])] {
                    for (size, filters, images) in [([13, 22], 10, 1), ([7, 7], 30, 2), ([9, 8], 20, 1)] {
                        let what = format!("{groups} {kernel:?} {stride:?} {padding:?} {size:?} {filters} {images}");
                        let mut net = Net::new(&[images, 10, size[0], size[1]], 1 + made);
                        let spec = spec(DataFormat::NCHW, &kernel, padding.clone(), &stride, [10, filters]);
                        net.conv(spec, groups, made % 2 == 0);
                        made += u64::from(has(&same(net.done(), &what), "FastConv"));
                    }
                }
            }
        }
    }
    // Those of one pixel and one group are products, of single images only.
    assert!(made > 300, "{made}");
}

#[test]
fn depthwise_convolutions_give_what_tract_gives() {
    for kernel in [[3, 3], [5, 5], [1, 9], [2, 2]] {
        for stride in [[1, 1], [2, 2], [1, 3]] {
            for width in [7, 14, 33, 70] {
                let mut net = Net::new(&[2, 6, 9, width], 7);
                net.conv(spec(DataFormat::NCHW, &kernel, PaddingSpec::SameUpper, &stride, [6, 6]), 6, true);
                let operators = same(net.done(), &format!("{kernel:?} {stride:?} {width}"));
                assert!(has(&operators, "FastDepthwise"), "{operators:?}");
            }
        }
    }
}

#[test]
fn other_layouts_and_dilations_give_what_tract_gives() {
    for groups in [1, 2] {
        for (dims, stride) in [([9, 14, 6], [1, 2]), ([5, 5, 6], [2, 2]), ([1, 100, 6], [1, 1])] {
            let mut net = Net::new(&dims, 1);
            net.conv(spec(DataFormat::HWC, &[3, 3], PaddingSpec::SameUpper, &stride, [6, 8]), groups, true);
            let what = format!("channels last, {groups} {dims:?} {stride:?}");
            assert!(has(&same(net.done(), &what), "FastConv"), "{what}");
        }
    }
    let mut net = Net::new(&[4, 50], 2);
    net.conv(spec(DataFormat::CHW, &[5], around(&[3], &[1]), &[2], [4, 7]), 1, true);
    assert!(has(&same(net.done(), "of one dimension"), "FastConv"));
    let mut net = Net::new(&[1, 4, 20, 21], 3);
    let dilated = spec(DataFormat::NCHW, &[3, 3], PaddingSpec::SameUpper, &[1, 2], [4, 4]);
    net.conv(PoolSpec { dilations: Some(tvec!(2, 3)), ..dilated }, 1, true);
    assert!(has(&same(net.done(), "dilated"), "FastConv"));
}

/// A convolution takes in all that follows it, and the results are those of the operators one by one.
#[test]
fn what_follows_a_convolution_goes_into_it() {
    for (groups, size) in [(1, 9), (2, 9), (8, 20)] {
        let mut net = Net::new(&[1, 8, size, size], 5);
        let input = net.last;
        net.conv(spec(DataFormat::NCHW, &[3, 3], PaddingSpec::SameUpper, &[1, 1], [8, 8]), groups, true);
        let [scale, shift] = [0; 2].map(|_| net.constant(&[1, 8, 1, 1]));
        let [zero, one, three, six] = [0.0, 1.0, 3.0, 6.0].map(|bound| net.given(&[1; 4], &[bound]));
        net.wire(mul(), &[scale]);
        net.wire(sub(), &[shift]);
        net.wire(add(), &[input]);
        net.wire(max(), &[zero]);
        net.wire(min(), &[one]);
        net.wire(mul(), &[scale]);
        let inner = net.wire(add(), &[shift]);
        // A hard swish, but for its scale.
        net.wire(add(), &[three]);
        net.wire(max(), &[zero]);
        net.wire(min(), &[six]);
        net.wire(mul(), &[inner]);
        net.wire(mul(), &[one]);
        let operators = same(net.done(), &format!("{groups} groups"));
        let left = operators.iter().filter(|name| !["Source", "Const"].contains(&name.as_str()));
        assert_eq!(left.count(), 1, "{operators:?}");
    }
}

#[test]
fn products_of_matrices_are_convolutions_of_single_pixels() {
    for (axes, dims, matrix) in [
        ("IHW,OI->OHW", &[6, 5, 7][..], [9, 6]),
        ("NIHW,OI->OHW", &[1, 6, 5, 7], [9, 6]),
        ("IHW,IO->NOHW", &[6, 4, 4], [6, 13]),
        // Not these: pixels come first, or in another order.
        ("HWI,OI->HWO", &[5, 7, 6], [9, 6]),
        ("IHW,OI->OWH", &[6, 5, 7], [9, 6]),
    ] {
        let mut net = Net::new(dims, 2);
        let matrix = net.constant(&matrix);
        net.wire(EinSum::new(axes.parse().unwrap(), f32::datum_type()), &[matrix]);
        same(net.done(), axes);
    }
}

#[test]
fn matrices_that_are_read_where_they_lie_give_what_tract_gives() {
    for (axes, dims, matrix, is_understood) in [
        ("I,OI->O", &[37][..], &[13, 37][..], true),
        ("I,IO->O", &[37], &[37, 13], true),
        ("NI,OI->NO", &[1, 64], &[8, 64], true),
        ("NI,OI->NO", &[1, 100], &[70, 100], true),
        ("NI,IO->NO", &[1, 3], &[3, 2], true),
        ("NI,IO->NO", &[1, 70], &[70, 100], true),
        ("NIHW,OIHW->NO", &[1, 5, 3, 2], &[7, 5, 3, 2], true),
        ("NIHW,IHWO->NO", &[1, 5, 3, 2], &[5, 3, 2, 7], true),
        // Not these: the matrix has pixels in another order, or filters in the midst of them.
        ("NIHW,OIWH->NO", &[1, 5, 3, 2], &[7, 5, 2, 3], false),
        ("NIHW,IOHW->NO", &[1, 5, 3, 2], &[5, 7, 3, 2], false),
    ] {
        let mut net = Net::new(dims, 4);
        let matrix = net.constant(matrix);
        net.wire(EinSum::new(axes.parse().unwrap(), f32::datum_type()), &[matrix]);
        let operators = same(net.undecluttered(), axes);
        assert_eq!(has(&operators, "FastMatrix"), is_understood, "{axes}: {operators:?}");
    }
}

#[test]
fn pools_give_what_tract_gives() {
    for padding in
        [PaddingSpec::Valid, PaddingSpec::SameUpper, PaddingSpec::ExplicitOnnxPool(tvec!(1, 1), tvec!(1, 0), true)]
    {
        for (kernel, stride, width) in [
            ([3, 3], [2, 2], 15),
            ([3, 3], [1, 1], 35),
            ([2, 2], [2, 2], 70),
            ([2, 2], [1, 1], 40),
            ([2, 3], [2, 1], 9),
            ([5, 9], [3, 3], 33),
        ] {
            let what = format!("{padding:?} {kernel:?} {stride:?}");
            let spec = spec(DataFormat::NCHW, &kernel, padding.clone(), &stride, [3, 3]);
            let mut net = Net::new(&[2, 3, 11, width], 4);
            net.wire(MaxPool::new(spec.clone(), None), &[]);
            assert!(has(&same(net.done(), &what), "FastPool"), "{what}");
            for count_include_pad in [false, true] {
                let mut net = Net::new(&[2, 3, 11, width], 4);
                net.wire(SumPool { pool_spec: spec.clone(), count_include_pad, normalize: true }, &[]);
                let operators = same(net.done(), &what);
                let is_rounded_up = matches!(padding, PaddingSpec::ExplicitOnnxPool(_, _, true));
                assert!(has(&operators, "FastPool") || count_include_pad && is_rounded_up, "{what}");
            }
        }
    }
}

#[test]
fn steps_without_a_convolution_are_one_operator() {
    for (dims, channels) in [(&[1, 5, 6, 7][..], &[1, 5, 1, 1][..]), (&[2, 3, 4000], &[1, 3, 1]), (&[4, 9], &[1, 1])] {
        let mut net = Net::new(dims, 6);
        let [scale, shift] = [0; 2].map(|_| net.constant(channels));
        let bound = net.given(&vec![1; dims.len()], &[0.1]);
        net.wire(mul(), &[scale]);
        net.wire(add(), &[shift]);
        net.wire(max(), &[bound]);
        assert!(has(&same(net.done(), &format!("{dims:?}")), "FastSteps"), "{dims:?}");
    }
}

/// What others read, or the network gives, stays to be read.
#[test]
fn nothing_is_taken_in_that_others_need() {
    let mut net = Net::new(&[1, 4, 8, 8], 8);
    let conv = net.conv(spec(DataFormat::NCHW, &[3, 3], PaddingSpec::SameUpper, &[1, 1], [4, 4]), 1, true);
    let zero = net.given(&[1; 4], &[0.0]);
    let relu = net.wire(max(), &[zero]);
    net.wire(add(), &[conv]);
    let sum = net.last;
    net.model.select_output_outlets(&[relu, sum]).unwrap();
    same(net.model.into_decluttered().unwrap(), "two outputs");
}

/// A window, or what is around an image, may be said to be of any size.
#[test]
fn what_would_take_too_much_memory_is_left_to_tract() {
    let huge = spec(DataFormat::NCHW, &[1, 1], around(&[1 << 40, 0], &[0, 0]), &[1 << 39, 1], [1, 1]);
    assert!(Windows::of(&huge, &f32::fact([1, 1, 2, 2])).unwrap().is_none());
    let wide = spec(DataFormat::NCHW, &[1, 1 << 20], around(&[0, 1 << 20], &[0, 0]), &[1, 1], [1, 1]);
    assert!(Windows::of(&wide, &f32::fact([1, 1, 2, 2])).unwrap().is_none());
    let usual = spec(DataFormat::NCHW, &[1, 1], around(&[1, 0], &[0, 0]), &[1, 1], [1, 1]);
    assert!(Windows::of(&usual, &f32::fact([1, 1, 2, 2])).unwrap().is_some());
}

/// Some processors take a hundred times as long for each product with one.
#[test]
fn weights_with_fewer_digits_than_a_float_count_as_none() {
    let conv = |weight| FastConv::new(Windows::single_pixels(1, 20), 1, &[weight, 0.5], vec![0.0; 2], tvec!(1, 2, 20));
    assert_eq!(conv(1e-40), conv(0.0));
    assert_ne!(conv(1e-37), conv(0.0));
    let scaled = |by| {
        let mut conv = conv(1e-30);
        conv.scale_weights(&PerChannel([by].into()));
        conv
    };
    assert_eq!(
        scaled(1e-10),
        FastConv::new(Windows::single_pixels(1, 20), 1, &[0.0, 0.5e-10], vec![0.0; 2], tvec!(1, 2, 20))
    );
}
