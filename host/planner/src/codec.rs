//! How an activation is written for the wire, and what is known of each way: data that is measured, so
//! that no plan is made for one codec in particular.

use std::ops::{Index, IndexMut};

/// How an activation is written for the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// The elements as they are.
    Raw,
    /// Half-precision floats.
    F16,
    /// One byte an element.
    U8,
    /// The same, compressed by LZ4.
    U8Lz4,
    /// A picture as PNG.
    Png,
    /// A picture as JPEG.
    Jpeg,
}

impl Codec {
    /// Every codec, the plainest first.
    pub const ALL: [Self; 6] = [Self::Raw, Self::F16, Self::U8, Self::U8Lz4, Self::Png, Self::Jpeg];

    /// What it is called in manifests, commands and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::F16 => "f16",
            Self::U8 => "u8",
            Self::U8Lz4 => "u8-lz4",
            Self::Png => "png",
            Self::Jpeg => "jpeg",
        }
    }

    /// The codec of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.name() == name)
    }
}

/// A value for each codec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerCodec<T>([T; Codec::ALL.len()]);

impl<T> PerCodec<T> {
    /// Asks for each codec's.
    pub fn from_fn(value: impl FnMut(Codec) -> T) -> Self {
        Self(Codec::ALL.map(value))
    }
}

impl<T> Index<Codec> for PerCodec<T> {
    type Output = T;

    fn index(&self, codec: Codec) -> &T {
        &self.0[codec as usize]
    }
}

impl<T> IndexMut<Codec> for PerCodec<T> {
    fn index_mut(&mut self, codec: Codec) -> &mut T {
        &mut self.0[codec as usize]
    }
}

/// What coding an activation takes, both hosts together: microseconds for each byte that the activation
/// has as it is, however few remain of it. Peers tell some of these figures: one that is not a finite
/// time of zero or more means that a host does not take the codec, and no plan counts on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coding {
    /// The device writes and the edge reads.
    pub up_us_per_byte: f64,
    /// The edge writes and the device reads.
    pub down_us_per_byte: f64,
}

impl Coding {
    /// One of the two hosts does not take this codec.
    pub const NONE: Self = Self { up_us_per_byte: f64::INFINITY, down_us_per_byte: f64::INFINITY };
    /// It takes no time.
    pub const FREE: Self = Self { up_us_per_byte: 0.0, down_us_per_byte: 0.0 };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_codec_has_its_name_and_its_place() {
        let mut names = PerCodec::from_fn(Codec::name);
        for codec in Codec::ALL {
            assert_eq!((Codec::from_name(codec.name()), names[codec]), (Some(codec), codec.name()));
        }
        names[Codec::U8] = "changed";
        assert_eq!(names.0.iter().filter(|name| **name == "changed").count(), 1);
        assert_eq!(Codec::from_name("gif"), None);
    }
}
