//! Where a request stands in a trace that goes over several hosts: the `traceparent` of W3C's Trace Context.
//!
//! What comes is a stranger's text. A trace must never cost an answer, so what is no `traceparent` is no error either:
//! the request is then taken as one that belongs to no trace.

use std::fmt;

/// In version 00 it has so many bytes, and none more.
const BYTES: usize = 55;
/// Later versions may add to it. As long as this at most; longer ones are not looked at.
const BYTES_MAX: usize = 256;
/// What follows these stands between hyphens: trace, span and flags.
const TRACE_AT: usize = 3;
const SPAN_AT: usize = 36;
const FLAGS_AT: usize = 53;
/// The only flag of version 00: whoever began the trace wants it to be kept.
const SAMPLED: u8 = 1;

/// The span that a request was sent from, and the trace that it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// Of the whole trace; not all zeros.
    pub trace_id: [u8; 16],
    /// Of the sender's span; not all zeros.
    pub span_id: [u8; 8],
    /// Whether the trace is kept.
    pub is_sampled: bool,
}

impl TraceParent {
    /// Reads one, of version 00 or a later one; none if it is something else.
    pub fn read(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() > BYTES_MAX {
            return None;
        }
        let (known, more) = bytes.split_at_checked(BYTES)?;
        let [version] = hex(&known[..TRACE_AT - 1])?;
        let may_have_more = version != 0 && more.starts_with(b"-");
        let is_whole = more.is_empty() || may_have_more;
        let is_parted = [TRACE_AT, SPAN_AT, FLAGS_AT].iter().all(|at| known[at - 1] == b'-');
        let trace_id: [u8; 16] = hex(&known[TRACE_AT..SPAN_AT - 1])?;
        let span_id: [u8; 8] = hex(&known[SPAN_AT..FLAGS_AT - 1])?;
        let [flags] = hex(&known[FLAGS_AT..])?;
        let is_one = version != 0xff && is_whole && is_parted && trace_id != [0; 16] && span_id != [0; 8];
        is_one.then_some(Self { trace_id, span_id, is_sampled: flags & SAMPLED != 0 })
    }
}

/// As version 00 writes it.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", u8::from(self.is_sampled))
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceParent({self})")
    }
}

/// So many bytes in lower-case hexadecimal digits, which are all that a `traceparent` may have.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written() {
        let read = TraceParent::read(GOOD).unwrap();
        assert_eq!((read.trace_id[0], read.span_id[7], read.is_sampled), (0x4b, 0xb7, true));
        assert_eq!(read.to_string(), GOOD);
        let unsampled = GOOD.replace("-01", "-00");
        assert_eq!(TraceParent::read(&unsampled).unwrap().to_string(), unsampled);
        // Of what a later version adds, nothing is passed on.
        for later in [GOOD.replacen("00", "01", 1), GOOD.replacen("00", "cc", 1) + "-what-the-future-will-be"] {
            assert_eq!(TraceParent::read(&later), Some(read), "{later}");
        }
        assert_eq!(TraceParent::read(&GOOD.replace("-01", "-ff")), Some(read), "flags of later versions");
    }

    #[test]
    fn what_is_none_is_none() {
        let cases = [
            String::new(),
            "00".to_owned(),
            GOOD[..54].to_owned(),
            format!("{GOOD}-"),
            format!("{GOOD}0"),
            GOOD.to_uppercase(),
            GOOD.replace('-', "_"),
            GOOD.replacen("00-", "ff-", 1),
            GOOD.replacen("00-", "01-", 1) + "more",
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            GOOD.replace("4bf9", "4bg9"),
            GOOD.replace("4bf9", "é9"),
            format!(" {GOOD}"),
            GOOD.replacen("00", "01", 1) + "-" + &"x".repeat(BYTES_MAX),
        ];
        for text in cases {
            assert_eq!(TraceParent::read(&text), None, "{text:?}");
        }
        // Wherever a byte is changed, it is read as it stands, or not at all.
        for at in 0..BYTES {
            for byte in 0..=u8::MAX {
                let mut bytes = GOOD.as_bytes().to_vec();
                bytes[at] = byte;
                let Ok(text) = String::from_utf8(bytes) else { continue };
                let Some(read) = TraceParent::read(&text) else { continue };
                assert_eq!(read.to_string()[TRACE_AT..FLAGS_AT], text[TRACE_AT..FLAGS_AT]);
            }
        }
    }
}
