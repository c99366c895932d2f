//! A guest before a network: a picture's bytes go in, the numbers that the network was trained on come out.
//!
//! Each channel has its mean taken off and is divided by its spread, as nearly every published network of pictures
//! wants it. They are in the data beside this guest (`[before] data` in a model.toml): a line of means and one of spreads,
//! for pixels between 0 and 1. What goes in is u8, NCHW; what comes out f32, of the same dimensions. There is no graph
//! here: all of it happens in the sandbox, and the host is given nothing to run.
#![no_std]

extern crate alloc;

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

wit_bindgen::generate!({ world: "segment", path: "../../wit", generate_all });

use edgent::segment::own_graph;
use exports::edgent::segment::layers::{Guest, NamedTensor};
use wasi::nn::tensor::{Tensor, TensorType};

const DATA_BYTES_MAX: u32 = 4 << 10;

/// What a byte becomes, for each channel: 256 numbers.
struct Table(Vec<[f32; 256]>);

fn read(data: &str) -> Result<Table, String> {
    let numbers = |line: Option<&str>| -> Result<Vec<f32>, String> {
        let words = line.unwrap_or("").split_whitespace();
        words.map(|word| word.parse().map_err(|_| "what is no number among means and spreads".to_string())).collect()
    };
    let mut lines = data.lines();
    let (means, spreads) = (numbers(lines.next())?, numbers(lines.next())?);
    let are_sound = spreads.iter().all(|spread| *spread > 0.0) && means.iter().all(|mean| mean.is_finite());
    if means.is_empty() || means.len() != spreads.len() || !are_sound {
        return Err("the data must be a line of means and one of as many spreads over 0".to_string());
    }
    let channel = |(mean, spread): (&f32, &f32)| core::array::from_fn(|byte| (byte as f32 / 255.0 - mean) / spread);
    Ok(Table(means.iter().zip(&spreads).map(channel).collect()))
}

fn normalised(picture: &Tensor, Table(table): &Table) -> Result<Tensor, String> {
    let dims = picture.dimensions();
    let [1, channels, height, width] = dims[..] else { return Err("a picture is [1, channels, height, width]".into()) };
    if picture.ty() != TensorType::U8 || channels as usize != table.len() {
        return Err("a picture is u8, with as many channels as there are means".into());
    }
    let pixels = picture.data();
    let mut numbers = vec![0; 4 * pixels.len()];
    let plane = height as usize * width as usize;
    // Four bytes of each number.
    for (channel, becomes) in table.iter().enumerate() {
        let (from, to) = (&pixels[channel * plane..], &mut numbers[4 * channel * plane..]);
        for (pixel, number) in from[..plane].iter().zip(to.chunks_exact_mut(4)) {
            number.copy_from_slice(&becomes[usize::from(*pixel)].to_le_bytes());
        }
    }
    Ok(Tensor::new(&dims, TensorType::Fp32, &numbers))
}

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}

/// What `prepare` read. A component's instance is entered by one call at a time.
struct Prepared(RefCell<Option<Table>>);
// SAFETY: this target has no threads.
unsafe impl Sync for Prepared {}
static PREPARED: Prepared = Prepared(RefCell::new(None));

struct Segment;

impl Guest for Segment {
    fn prepare() -> Result<(), String> {
        // What stands in the place of a graph.
        let data = own_graph::read(0, DATA_BYTES_MAX);
        let text = core::str::from_utf8(&data).map_err(|_| "the data is no text".to_string())?;
        *PREPARED.0.borrow_mut() = Some(read(text)?);
        Ok(())
    }

    fn run(inputs: Vec<NamedTensor>) -> Result<Vec<NamedTensor>, String> {
        let prepared = PREPARED.0.borrow();
        let table = prepared.as_ref().ok_or("run was called before prepare")?;
        let [(name, picture)] = &inputs[..] else { return Err("one picture at a time".to_string()) };
        Ok(vec![(name.clone(), normalised(picture, table)?)])
    }
}

export!(Segment);
