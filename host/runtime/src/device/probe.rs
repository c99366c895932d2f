//! Bytes that tell how fast a link is: in pieces, which are answered one by one.
//!
//! In one piece, a probe that is under way when a link becomes slow would hold it for as long as it takes. Of pieces, little
//! has to be waited for then, and each answer shows that the edge is there. So many are under way as keep the link busy.

use crate::codec;
use edgent_link::LinkError;
use futures::{StreamExt, TryFutureExt, TryStreamExt, stream};
use std::time::Duration;

/// The size of a piece.
const PIECE_BYTES: u64 = 16 << 10;

/// At most so many are under way: calls of requests must not wait for a place.
const PIECES_MAX: u64 = 16;

/// A probe that takes longer has told enough: the link is far slower than was thought.
const PROBE_TIME_MAX: Duration = Duration::from_millis(500);

/// Sends so many bytes over a link of which `window_bytes` without an answer keep it busy, and gives how many were answered,
/// with what was sent around them, before it took too long. `ask` sends a piece of so many bytes; `elapsed` is the time since
/// the probe began.
pub(super) async fn send<A: Future<Output = Result<(), LinkError>>>(
    bytes: u64,
    window_bytes: u64,
    ask: impl Fn(usize) -> A,
    elapsed: impl Fn() -> Duration,
) -> Result<u64, LinkError> {
    let pieces = (0..bytes.max(1)).step_by(PIECE_BYTES as usize).map(|from| PIECE_BYTES.min(bytes - from));
    let at_once = (1 + window_bytes.div_ceil(PIECE_BYTES)).min(PIECES_MAX);
    let send = |piece: u64| ask(piece as usize).map_ok(move |()| piece + codec::MESSAGE_BYTES);
    let mut answers = stream::iter(pieces.map(send)).buffer_unordered(at_once as usize);
    let mut answered = 0;
    while let Some(piece) = answers.try_next().await? {
        answered += piece;
        if elapsed() >= PROBE_TIME_MAX {
            break;
        }
    }
    Ok(answered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// A link that carries one piece after another, in a time that passes only while all wait.
    struct Link {
        now: Cell<Duration>,
        /// When the last piece that was sent arrives.
        busy_until: Cell<Duration>,
        under_way: RefCell<Vec<(Duration, Waker)>>,
        most_under_way: Cell<usize>,
        /// What it carries in a second, from when on.
        rates: &'static [(Duration, f64)],
    }

    impl Link {
        async fn carry(&self, bytes: usize) -> Result<(), LinkError> {
            let sent = self.busy_until.get().max(self.now.get());
            let (_, rate_bps) = self.rates.iter().rfind(|(from, _)| *from <= sent).unwrap();
            let arrives = sent + Duration::from_secs_f64((bytes as f64 * 8.0).max(1.0) / rate_bps);
            self.busy_until.set(arrives);
            poll_fn(|context| {
                if self.now.get() >= arrives {
                    return Poll::Ready(Ok(()));
                }
                let mut under_way = self.under_way.borrow_mut();
                under_way.push((arrives, context.waker().clone()));
                self.most_under_way.set(self.most_under_way.get().max(under_way.len()));
                Poll::Pending
            })
            .await
        }

        /// What a probe gives, and how long it takes.
        fn probe(rates: &'static [(Duration, f64)], bytes: u64, window_bytes: u64) -> (u64, Duration, usize) {
            let zero = || Cell::new(Duration::ZERO);
            let link = Self {
                now: zero(),
                busy_until: zero(),
                under_way: RefCell::default(),
                most_under_way: Cell::new(0),
                rates,
            };
            let mut sending = pin!(send(bytes, window_bytes, |piece| link.carry(piece), || link.now.get()));
            let mut context = Context::from_waker(Waker::noop());
            loop {
                if let Poll::Ready(sent) = sending.as_mut().poll(&mut context) {
                    return (sent.unwrap(), link.now.get(), link.most_under_way.get());
                }
                // To the next arrival.
                let mut under_way = link.under_way.borrow_mut();
                under_way.sort_by_key(|(arrives, _)| *arrives);
                let (arrives, waker) = under_way.remove(0);
                link.now.set(arrives);
                waker.wake();
            }
        }
    }

    #[test]
    fn a_probe_ends_soon_when_the_link_becomes_slow_under_it() {
        const FAST_BPS: f64 = 20e6;
        const SLOW_BPS: f64 = 50e3;
        const FAST: &[(Duration, f64)] = &[(Duration::ZERO, FAST_BPS)];
        const SLOW: &[(Duration, f64)] = &[(Duration::ZERO, SLOW_BPS)];
        const FALLS: &[(Duration, f64)] = &[(Duration::ZERO, FAST_BPS), (Duration::from_millis(20), SLOW_BPS)];
        let whole = |bytes: u64| bytes + bytes.div_ceil(PIECE_BYTES).max(1) * codec::MESSAGE_BYTES;
        let piece_time = |rate_bps: f64| Duration::from_secs_f64(PIECE_BYTES as f64 * 8.0 / rate_bps);
        for (what, rates, bytes, window_bytes, at_once, is_whole, time_max) in [
            ("nothing but the message", FAST, 0, 0, 1, true, piece_time(FAST_BPS)),
            ("one by one where nothing is known", FAST, 125_000, 0, 1, true, piece_time(FAST_BPS) * 8),
            ("as many as the link holds", FAST, 125_000, 40_000, 4, true, piece_time(FAST_BPS) * 8),
            ("not more than there is room for", FAST, 2_500_000, 10_000_000, 16, false, PROBE_TIME_MAX * 2),
            ("a slow link: one piece", SLOW, 125_000, 0, 1, false, piece_time(SLOW_BPS)),
            ("a link that falls: what is under way", FALLS, 125_000, 10_000, 2, false, piece_time(SLOW_BPS) * 2),
        ] {
            let (answered, took, most) = Link::probe(rates, bytes, window_bytes);
            assert_eq!(most, at_once, "{what}");
            assert_eq!(answered == whole(bytes), is_whole, "{what}: {answered} of {}", whole(bytes));
            assert!(answered > 0 && took <= time_max, "{what}: {took:?}, at most {time_max:?}");
        }
    }

    #[test]
    fn a_piece_that_fails_ends_the_probe() {
        let asked = Cell::new(0);
        let fail = |_| {
            asked.set(asked.get() + 1);
            let is_third = asked.get() == 3;
            async move { if is_third { Err(LinkError::Lost("as planned".to_owned())) } else { Ok(()) } }
        };
        let mut sending = pin!(send(125_000, 0, fail, || Duration::ZERO));
        let sent = sending.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(sent, Poll::Ready(Err(LinkError::Lost(_)))), "{sent:?}");
        assert_eq!(asked.get(), 3, "and none is sent behind it");
    }
}
