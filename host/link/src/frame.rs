//! Messages as they stand in the byte stream: a table of segment sizes, then the segments.
//!
//! capnp-futures has this too; ours checks the table against a limit in bytes before
//! it takes memory, hands table and segments of all waiting messages to the system in one call, and
//! lets the large parts of a message that came in outlive it without a copy ([`share`]).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;

use bytes::{BufMut, Bytes, BytesMut};
use capnp::message::ReaderSegments;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::splice::Outgoing;

/// As many as Cap'n Proto's own readers take.
const SEGMENTS_MAX: usize = 511;
const WORD_BYTES: usize = 8;
const HALF_BYTES: usize = WORD_BYTES / 2;
/// Linux takes 1024 at most, tokio no more than that.
const IO_SLICES_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("TLS, where plain bytes are spoken: one of both sides was started with --insecure, or only one with --tls")]
    Tls,
    #[error("a message of {0} segments, where 1 to {SEGMENTS_MAX} are allowed")]
    Segments(u64),
    #[error("a message of {bytes} bytes, where {limit} are allowed")]
    TooLarge { bytes: u64, limit: usize },
}

/// The segments of a message that came in.
#[derive(Debug)]
pub(crate) struct Frame {
    body: Bytes,
    /// Where each segment ends in `body`.
    ends: Vec<usize>,
}

thread_local! {
    /// The bodies of this thread's frames. capnp-rpc shows us their parts as plain slices.
    static BODIES: RefCell<Vec<Bytes>> = const { RefCell::new(Vec::new()) };
}

impl Frame {
    fn new(body: Bytes, ends: Vec<usize>) -> Self {
        BODIES.with_borrow_mut(|bodies| bodies.push(body.clone()));
        Frame { body, ends }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.body.len()
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        BODIES.with_borrow_mut(|bodies| {
            if let Some(index) = bodies.iter().rposition(|body| body.as_ptr() == self.body.as_ptr()) {
                bodies.swap_remove(index);
            }
        });
    }
}

impl ReaderSegments for Frame {
    fn get_segment(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.body[start..end])
    }

    fn len(&self) -> usize {
        self.ends.len()
    }
}

/// A part of a frame of this thread's, as bytes that outlive the frame; of anything else, a copy.
pub(crate) fn share(part: &[u8]) -> Bytes {
    BODIES.with_borrow(|bodies| {
        // The newest is the likeliest.
        let holds = |body: &&Bytes| {
            let (body, part) = (body.as_ptr_range(), part.as_ptr_range());
            body.start <= part.start && part.end <= body.end
        };
        bodies.iter().rev().find(holds).map_or_else(|| Bytes::copy_from_slice(part), |body| body.slice_ref(part))
    })
}

/// Reads one message; nothing if the stream ends before its first byte. The limit is the one that holds when the
/// message's size is known: it may be raised while the message is waited for.
pub(crate) async fn read(
    from: &mut (impl AsyncRead + Unpin),
    limit_bytes: &Cell<usize>,
) -> Result<Option<Frame>, FrameError> {
    let mut table = [0; (SEGMENTS_MAX + 1) * 4];
    let first = from.read(&mut table[..WORD_BYTES]).await?;
    if first == 0 {
        return Ok(None);
    }
    // An alert is less than a word.
    from.read_exact(&mut table[first.min(HALF_BYTES)..HALF_BYTES]).await?;
    if is_tls(&table) {
        return Err(FrameError::Tls);
    }
    from.read_exact(&mut table[first.max(HALF_BYTES)..WORD_BYTES]).await?;

    let segments = u64::from(word_half(&table, 0)) + 1;
    if segments > SEGMENTS_MAX as u64 {
        return Err(FrameError::Segments(segments));
    }
    let segments = segments as usize;
    // The count and the sizes, in whole words.
    let table_bytes = (segments + 1).div_ceil(2) * WORD_BYTES;
    from.read_exact(&mut table[WORD_BYTES..table_bytes]).await?;

    let mut end = 0;
    let sizes = (1..=segments).map(|half| u64::from(word_half(&table, half)) * WORD_BYTES as u64);
    let bytes: u64 = sizes.clone().sum();
    let limit = limit_bytes.get();
    if bytes > limit as u64 {
        return Err(FrameError::TooLarge { bytes, limit });
    }
    let ends = sizes.map(|size| {
        end += size as usize;
        end
    });
    let ends = ends.collect();
    Ok(Some(Frame::new(read_body(from, bytes as usize).await?, ends)))
}

/// Reads so many bytes to a word's address, without clearing the memory first.
async fn read_body(from: &mut (impl AsyncRead + Unpin), bytes: usize) -> io::Result<Bytes> {
    let mut body = BytesMut::with_capacity(bytes + WORD_BYTES);
    let skip = body.as_ptr().align_offset(WORD_BYTES).min(WORD_BYTES);
    body.put_bytes(0, skip);
    while body.len() < skip + bytes {
        let missing = skip + bytes - body.len();
        let read = from.read_buf(&mut (&mut body).limit(missing)).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(body.freeze().slice(skip..))
}

fn word_half(table: &[u8], index: usize) -> u32 {
    let mut half = [0; 4];
    half.copy_from_slice(&table[index * 4..][..4]);
    u32::from_le_bytes(half)
}

/// The start of a handshake or an alert; as a table, so many segments as are never taken.
fn is_tls(table: &[u8]) -> bool {
    matches!(table, [0x15 | 0x16, 3, 0..=4, ..])
}

/// Writes messages, one after the other.
pub(crate) async fn write(to: &mut (impl AsyncWrite + Unpin), messages: &[Outgoing]) -> io::Result<()> {
    let messages: Vec<_> = messages
        .iter()
        .map(|message| {
            let (words, pieces) = message.segments();
            (segment_table(&words), pieces)
        })
        .collect();
    let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(4 * messages.len());
    for (table, pieces) in &messages {
        slices.push(IoSlice::new(table));
        slices.extend(pieces.iter().map(|piece| IoSlice::new(piece)));
    }
    let mut rest = slices.as_mut_slice();
    // Empty slices at the front must go, or a write of nothing would look like the stream's end.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let bytes = poll_fn(|context| {
            let some = &rest[..rest.len().min(IO_SLICES_MAX)];
            Pin::new(&mut *to).poll_write_vectored(context, some)
        })
        .await?;
        if bytes == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, bytes);
    }
    poll_fn(|context| Pin::new(&mut *to).poll_flush(context)).await
}

fn segment_table(words: &[u32]) -> Vec<u8> {
    let mut table = Vec::with_capacity((words.len() + 2) * 4);
    table.extend((words.len() as u32 - 1).to_le_bytes());
    table.extend(words.iter().flat_map(|words| words.to_le_bytes()));
    table.resize(table.len().next_multiple_of(WORD_BYTES), 0);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use capnp::message::{Builder, HeapAllocator};
    use std::rc::Rc;

    /// Only the table is there: a size that passes shows as a missing body.
    #[tokio::test]
    async fn sizes_are_judged_by_the_table_alone() {
        let cases: &[(&[u32], usize, &str)] = &[
            (&[0, 2], 16, "unexpected end of file"),
            (&[0, 3], 16, "a message of 24 bytes, where 16 are allowed"),
            (&[0, 1 << 29], 1 << 24, "a message of 4294967296 bytes, where 16777216 are allowed"),
            (&[0, u32::MAX], 1 << 24, "a message of 34359738360 bytes, where 16777216 are allowed"),
            (&[1, 2, 2, 0], 16, "a message of 32 bytes, where 16 are allowed"),
            (&[2, u32::MAX, u32::MAX, u32::MAX], 16, "a message of 103079215080 bytes, where 16 are allowed"),
            (&[511, 1], 16, "a message of 512 segments, where 1 to 511 are allowed"),
            (&[u32::MAX, 1], 16, "a message of 4294967296 segments, where 1 to 511 are allowed"),
            (&[4, 1], 16, "early eof"),
        ];
        for (table, limit, expected) in cases {
            let bytes: Vec<u8> = table.iter().flat_map(|half| half.to_le_bytes()).collect();
            let error = read(&mut bytes.as_slice(), &Cell::new(*limit)).await.unwrap_err();
            assert_eq!(error.to_string(), *expected, "{table:?}");
        }
        assert!(read(&mut &[][..], &Cell::new(16)).await.unwrap().is_none());
    }

    /// A peer says hello and, once it is answered, sends something large; the server waited for that before it knew.
    #[tokio::test]
    async fn a_limit_may_be_raised_while_a_message_is_waited_for() {
        let (mut peer, mut here) = tokio::io::duplex(64);
        let limit = Cell::new(8);
        let mut reading = std::pin::pin!(read(&mut here, &limit));
        assert!(futures::poll!(&mut reading).is_pending());
        limit.set(16);
        let message: Vec<u8> = [0, 2u32].iter().flat_map(|half| half.to_le_bytes()).chain(1..=16).collect();
        tokio::io::AsyncWriteExt::write_all(&mut peer, &message).await.unwrap();
        assert!(reading.await.unwrap().is_some());
    }

    /// Messages of one to many segments, in one go: the same bytes as capnp writes, and read back by us.
    #[tokio::test]
    async fn capnp_reads_what_we_write_and_we_do_too() {
        let build = |texts: u32| {
            // A tiny first segment makes every text start another one.
            let allocator = HeapAllocator::new()
                .first_segment_words(1)
                .allocation_strategy(capnp::message::AllocationStrategy::FixedSize);
            let mut message = Builder::new(allocator);
            let mut list = message.initn_root::<capnp::text_list::Builder<'_>>(texts);
            for index in 0..texts {
                list.set(index, format!("text {index}"));
            }
            Rc::new(message)
        };
        let messages: Vec<_> = (0..12).map(build).collect();
        let mut expected = Vec::new();
        for message in &messages {
            capnp::serialize::write_message(&mut expected, message.as_ref()).unwrap();
        }
        let mut written = Vec::new();
        let messages: Vec<_> = messages.into_iter().map(Outgoing::new).collect();
        write(&mut written, &messages).await.unwrap();
        assert_eq!(written, expected);

        let mut rest = written.as_slice();
        for texts in 0..12 {
            let frame = read(&mut rest, &Cell::new(1 << 20)).await.unwrap().unwrap();
            let message = capnp::message::Reader::new(frame, Default::default());
            let list: capnp::text_list::Reader<'_> = message.get_root().unwrap();
            assert_eq!(list.len(), texts);
            for (index, text) in list.iter().enumerate() {
                assert_eq!(text.unwrap(), format!("text {index}").as_str());
            }
        }
        assert!(read(&mut rest, &Cell::new(1 << 20)).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_shared_part_is_not_a_copy_and_outlives_its_frame() {
        let bytes: Vec<u8> = [0, 2u32].iter().flat_map(|half| half.to_le_bytes()).chain(1..=16).collect();
        let frame = read(&mut bytes.as_slice(), &Cell::new(16)).await.unwrap().unwrap();
        let part = &frame.get_segment(0).unwrap()[4..9];
        let shared = share(part);
        assert_eq!(shared.as_ptr(), part.as_ptr());
        drop(frame);
        assert_eq!(shared, [5, 6, 7, 8, 9][..]);
        assert_eq!(share(&[1, 2]), [1, 2][..]);
        assert!(BODIES.with_borrow(Vec::is_empty));
    }
}
