//! Large bytes go from where they are to the system, not through a message's own memory.
//!
//! Cap'n Proto's builder would clear memory for an activation and copy it there: for a MiB, half the
//! cost of a call. But a message may have several segments, and a pointer may lead to another one.
//! So what is built holds a small mark in place of the bytes; when the message is sent, the pointer
//! to the mark becomes a pointer to one segment more, which is written from the bytes themselves.
//! The receiver sees an ordinary message.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use capnp::message::{Builder, HeapAllocator};

/// Below this, a copy costs less than what it takes to avoid it.
const WORTH_BYTES: usize = 16 << 10;
const WORD_BYTES: usize = 8;
/// So much of a message is built before the bytes, at most; must be in one segment with their pointer.
pub(crate) const FIRST_SEGMENT_WORDS: u32 = 128;
/// A pointer to the mark from the word before it: a list (1), no words in between, eight bytes (2).
const POINTER_TO_MARK: u64 = byte_list(WORD_BYTES);

/// A pointer to a list of so many bytes, from the word before it.
const fn byte_list(bytes: usize) -> u64 {
    1 | (2 | (bytes as u64) << 3) << 32
}

/// A pointer (2) to whatever the pointer in a segment's first word leads to.
const fn start_of_segment(index: usize) -> u64 {
    2 | (index as u64) << 32
}

/// Bytes that belong to the message that is being built on this thread. From here to the message's
/// sending nothing else runs on the thread; what is still here when the next comes, was never sent.
struct Left {
    mark_address: usize,
    bytes: Bytes,
}

thread_local! {
    static LEFT: Cell<Option<Left>> = const { Cell::new(None) };
}

/// Writes the bytes, or a mark in their place. `init` gives the memory of a list of so many bytes. Its
/// pointer must be the last of a struct that was allocated just before, so that it stands before the list.
pub(crate) fn write<'a>(bytes: &Bytes, init: impl FnOnce(u32) -> &'a mut [u8]) {
    if bytes.len() < WORTH_BYTES {
        return init(bytes.len() as u32).copy_from_slice(bytes);
    }
    let mark_address = init(WORD_BYTES as u32).as_ptr() as usize;
    LEFT.set(Some(Left { mark_address, bytes: bytes.clone() }));
}

/// A message on its way out.
pub(crate) struct Outgoing {
    message: Rc<Builder<HeapAllocator>>,
    splice: Option<Splice>,
}

struct Splice {
    /// The first segment, with the pointer changed.
    first: Vec<u8>,
    /// The additional segment's first word.
    pointer: [u8; WORD_BYTES],
    bytes: Bytes,
}

impl Outgoing {
    /// Takes a message, and what was left for it.
    pub(crate) fn new(message: Rc<Builder<HeapAllocator>>) -> Self {
        let splice = LEFT.take().and_then(|left| match Splice::new(&message.get_segments_for_output(), &left) {
            Some(splice) => Some(splice),
            None => {
                // Another message, which got ahead of the one that this was left for.
                LEFT.set(Some(left));
                None
            }
        });
        Outgoing { message, splice }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        let spliced = self.splice.as_ref().map_or(0, |splice| WORD_BYTES + splice.bytes.len());
        self.message.size_in_words() * WORD_BYTES + spliced
    }

    /// The sizes of the segments, and what is in them, in pieces.
    pub(crate) fn segments(&self) -> (Vec<u32>, Vec<&[u8]>) {
        let mut pieces = self.message.get_segments_for_output().to_vec();
        let mut words: Vec<_> = pieces.iter().map(|segment| (segment.len() / WORD_BYTES) as u32).collect();
        if let Some(Splice { first, pointer, bytes }) = &self.splice {
            let padding = bytes.len().next_multiple_of(WORD_BYTES) - bytes.len();
            words.push(1 + bytes.len().div_ceil(WORD_BYTES) as u32);
            pieces[0] = first;
            pieces.extend([pointer.as_slice(), bytes, &[0; WORD_BYTES][..padding]]);
        }
        (words, pieces)
    }
}

impl Splice {
    /// Nothing if the mark is not in these segments.
    fn new(segments: &[&[u8]], left: &Left) -> Option<Self> {
        let first = segments.first()?;
        let mark = left.mark_address.checked_sub(first.as_ptr() as usize)?;
        let pointer = mark.checked_sub(WORD_BYTES)?..mark;
        if first.get(pointer.clone())? != POINTER_TO_MARK.to_le_bytes() {
            return None;
        }
        let mut first = first.to_vec();
        first[pointer].copy_from_slice(&start_of_segment(segments.len()).to_le_bytes());
        Some(Splice { first, pointer: byte_list(left.bytes.len()).to_le_bytes(), bytes: left.bytes.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edgent_capnp::activation;
    use crate::frame;

    /// Cap'n Proto's own reader finds the bytes, copied or not, and in the right message.
    #[tokio::test]
    async fn what_is_spliced_is_an_ordinary_message() {
        for size in [0, 1, WORTH_BYTES - 1, WORTH_BYTES, WORTH_BYTES + 1, 1 << 20] {
            let bytes: Bytes = (0..size).map(|index| (index * 11) as u8).collect();
            let mut message = Builder::new(HeapAllocator::new().first_segment_words(FIRST_SEGMENT_WORDS));
            let mut root = message.init_root::<activation::Builder<'_>>();
            write(&bytes, |size| root.reborrow().init_bytes(size));
            // More than the first segment holds.
            root.reborrow().init_dims(3000).set(2999, 17);
            let other = Outgoing::new(Rc::new(Builder::new_default()));
            assert!(other.splice.is_none());
            let outgoing = Outgoing::new(Rc::new(message));
            assert_eq!(outgoing.splice.is_some(), size >= WORTH_BYTES);
            assert!(outgoing.size_bytes() >= size);

            let mut written = Vec::new();
            frame::write(&mut written, &[outgoing]).await.unwrap();
            let message = capnp::serialize::read_message(written.as_slice(), Default::default()).unwrap();
            let root: activation::Reader<'_> = message.get_root().unwrap();
            assert_eq!(root.get_bytes().unwrap(), &bytes);
            assert_eq!(root.get_dims().unwrap().get(2999), 17);
        }
    }
}
