//! The link's rate and round trip, from exchanges that were made anyway.
//!
//! An exchange that took `elapsed`, of which the peer worked `busy`, tells
//! `elapsed − busy = round trip + bits / rate`. Small exchanges speak of the round trip, large ones of
//! the rate. The rate is the (lower) median of the last three that spoke of it: one outlier is shrugged
//! off, and a real change is believed at the second exchange that shows it, at the third at the latest.

use std::time::Duration;

const RATE_SAMPLES: usize = 3;
const RTT_SAMPLES: usize = 8;

/// An exchange of fewer bytes fits into buffers on the way: it speaks of the round trip.
const TELLING_BYTES: u64 = 2_000;
/// The bytes of one that speaks of the rate must take at least this many round trips, or the round
/// trip's noise is all one sees.
const TELLING_ROUND_TRIPS: f64 = 1.0;
/// One too short to tell, but off the prediction by no more than this share, confirms the estimate.
const CONFIRMING_SHARE: f64 = 0.25;

const RATE_MIN_BPS: f64 = 1_000.0;
const RATE_MAX_BPS: f64 = 1e11;
const RTT_UNKNOWN_US: f64 = 1_000.0;

/// The link is worth a probe when nothing has told of its rate for this long.
const PROBE_AFTER: Duration = Duration::from_millis(250);
/// A sample over the estimate by this factor is doubted: one more is wanted at once, since a link that became better is
/// otherwise found out by two probes only…
const DOUBTED_FACTOR: f64 = 1.5;
/// …but no more than so many in a row, however it wavers.
const DOUBTED_MAX: usize = 3;
/// …and not again for so long after the next sample said that it was nothing: a link that lets a few kilobytes through at
/// once after a pause, as many do, would be probed all the time.
const DOUBTED_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A probe takes this long at the estimated rate: enough to tell, not enough to disturb.
const PROBE_US: f64 = 50_000.0;
/// And at least so many round trips, so that the estimate can grow by this factor at each probe.
const PROBE_ROUND_TRIPS: f64 = 4.0;
const PROBE_BYTES_MIN: u64 = 2_048;
const PROBE_BYTES_MAX: u64 = 256 << 10;

/// Something was sent and something came back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exchange {
    /// Bytes sent and received together.
    pub bytes: u64,
    /// From the first byte sent to the last received.
    pub elapsed_us: f64,
    /// How much of that the peer says it worked or queued.
    pub busy_us: f64,
}

/// What is known of the link.
#[derive(Clone, Debug, Default)]
pub struct LinkEstimate {
    rates_bps: [f64; RATE_SAMPLES],
    rates: usize,
    /// How many samples in a row were over the estimate by far.
    doubted: usize,
    /// When a sample was over the estimate by far for the last time that the next one was not.
    outlier_at: Option<Duration>,
    smalls: [Small; RTT_SAMPLES],
    small_count: usize,
    updated: Option<Duration>,
}

/// A small exchange: the round trip, and the time of a few bytes until that can be subtracted.
#[derive(Clone, Copy, Debug, Default)]
struct Small {
    us: f64,
    bytes_in_it: u64,
}

impl LinkEstimate {
    /// Learns from a finished exchange.
    pub fn exchanged(&mut self, exchange: Exchange, now: Duration) {
        let Exchange { bytes, elapsed_us, busy_us } = exchange;
        let on_link_us = elapsed_us - busy_us.max(0.0);
        if !on_link_us.is_finite() || on_link_us <= 0.0 {
            return;
        }
        if bytes < TELLING_BYTES {
            return self.learn_small(bytes, on_link_us);
        }
        let least = self.least_small();
        let bytes_us = on_link_us - least.us;
        if bytes_us >= TELLING_ROUND_TRIPS * least.us {
            // Both contain the round trip: their difference is the rate alone.
            let rate_bps = bits(bytes - least.bytes_in_it) * 1e6 / bytes_us;
            self.subtract_bytes_from_smalls(rate_bps);
            return self.learn_rate(rate_bps, now);
        }
        // Too fast to tell how fast; but surely as fast as if there were no round trip.
        let at_least_bps = bits(bytes) * 1e6 / on_link_us;
        match self.rate_bps() {
            Some(known) if at_least_bps <= known => {
                let predicted_us = least.us + bits(bytes) * 1e6 / known;
                if (on_link_us / predicted_us - 1.0).abs() <= CONFIRMING_SHARE {
                    self.updated = Some(now);
                }
            }
            _ => self.learn_rate(at_least_bps, now),
        }
    }

    /// Learns from an exchange that has not finished yet: had the rate been higher, it would have.
    /// `waited_us` is without what the peer is expected to work.
    pub fn waiting(&mut self, bytes: u64, waited_us: f64, now: Duration) {
        let on_link_us = waited_us - self.rtt_us();
        if bytes < TELLING_BYTES || !on_link_us.is_finite() || on_link_us <= 0.0 {
            return;
        }
        let at_most_bps = bits(bytes) * 1e6 / on_link_us;
        if self.rate_bps().is_some_and(|known| at_most_bps < known / 2.0) {
            // A bound rather than a sample, so it need not be confirmed by a second exchange.
            (0..RATE_SAMPLES).for_each(|_| self.learn_rate(at_most_bps, now));
        }
    }

    /// Bits a second; `None` before anything was large enough to tell.
    pub fn rate_bps(&self) -> Option<f64> {
        let mut rates = self.rates_bps;
        let known = &mut rates[..self.rates.min(RATE_SAMPLES)];
        known.sort_unstable_by(f64::total_cmp);
        known.get(known.len().saturating_sub(1) / 2).copied()
    }

    /// The round trip of a small message: the least of the last ones.
    pub fn rtt_us(&self) -> f64 {
        self.least_small().us
    }

    /// How many samples of the rate there were, and the last one in bit/s.
    pub(crate) fn samples(&self) -> (usize, Option<f64>) {
        (self.rates, self.rates.checked_sub(1).map(|last| self.rates_bps[last % RATE_SAMPLES]))
    }

    /// How long ago the rate was last learnt or confirmed.
    pub fn age(&self, now: Duration) -> Option<Duration> {
        self.updated.map(|updated| now.saturating_sub(updated))
    }

    /// Whether what is known of the rate is too old, or is doubted.
    pub fn should_probe(&self, now: Duration) -> bool {
        let is_outlier = self.outlier_at.is_some_and(|at| now.saturating_sub(at) < DOUBTED_AGAIN_AFTER);
        let is_doubted = (1..=DOUBTED_MAX).contains(&self.doubted) && !is_outlier;
        is_doubted || self.age(now).is_none_or(|age| age >= PROBE_AFTER)
    }

    /// How many bytes a probe should carry: none as long as the round trip is unknown.
    pub fn probe_bytes(&self) -> u64 {
        if self.small_count == 0 {
            return 0;
        }
        // The highest sample, not the median: a rate known only as "at least" must be able to grow.
        let rate_bps = self.rates_bps.iter().copied().fold(0.0, f64::max);
        let probe_us = PROBE_US.max(PROBE_ROUND_TRIPS * self.rtt_us());
        ((rate_bps * probe_us / 8e6) as u64).clamp(PROBE_BYTES_MIN, PROBE_BYTES_MAX)
    }

    /// How many bytes without an answer keep the link busy: twice what is under way in a round trip.
    pub fn window_bytes(&self) -> u64 {
        (2.0 * self.rate_bps().unwrap_or(0.0) * self.rtt_us() / 8e6) as u64
    }

    fn learn_rate(&mut self, rate_bps: f64, now: Duration) {
        let is_doubted = self.rate_bps().is_some_and(|known| rate_bps > DOUBTED_FACTOR * known);
        if self.doubted == 1 && !is_doubted {
            self.outlier_at = Some(now);
        }
        self.doubted = if is_doubted { self.doubted + 1 } else { 0 };
        self.rates_bps[self.rates % RATE_SAMPLES] = rate_bps.clamp(RATE_MIN_BPS, RATE_MAX_BPS);
        self.rates += 1;
        self.updated = Some(now);
    }

    fn learn_small(&mut self, bytes: u64, us: f64) {
        let small = Small { us, bytes_in_it: bytes };
        let small = self.rate_bps().map_or(small, |rate_bps| small.without_bytes(rate_bps));
        self.smalls[self.small_count % RTT_SAMPLES] = small;
        self.small_count += 1;
    }

    fn least_small(&self) -> Small {
        let known = &self.smalls[..self.small_count.min(RTT_SAMPLES)];
        let unknown = Small { us: RTT_UNKNOWN_US, bytes_in_it: 0 };
        known.iter().copied().min_by(|a, b| a.us.total_cmp(&b.us)).unwrap_or(unknown)
    }

    fn subtract_bytes_from_smalls(&mut self, rate_bps: f64) {
        for small in &mut self.smalls {
            *small = small.without_bytes(rate_bps);
        }
    }
}

impl Small {
    fn without_bytes(self, rate_bps: f64) -> Self {
        let bytes_us = bits(self.bytes_in_it) * 1e6 / rate_bps;
        // A rate that has since changed must not make the round trip vanish.
        Self { us: (self.us - bytes_us).max(self.us / 100.0), bytes_in_it: 0 }
    }
}

fn bits(bytes: u64) -> f64 {
    bytes as f64 * 8.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    fn exchange(link: &mut LinkEstimate, bytes: u64, rate_bps: f64, rtt_us: f64) {
        let elapsed_us = 500.0 + rtt_us + bits(bytes) * 1e6 / rate_bps;
        link.exchanged(Exchange { bytes, elapsed_us, busy_us: 500.0 }, NOW);
    }

    fn near(link: &LinkEstimate, rate_bps: f64) -> bool {
        link.rate_bps().is_some_and(|known| (known / rate_bps - 1.0).abs() < 0.1)
    }

    #[test]
    fn a_change_is_followed_within_three_exchanges_and_an_outlier_is_not() {
        let mut link = LinkEstimate::default();
        exchange(&mut link, 100, 1e6, 2_000.0);
        for rate_bps in [1e6, 50e3, 20e6, 300e3, 600e3, 250e3] {
            (0..3).for_each(|_| exchange(&mut link, 12_000, rate_bps, 2_000.0));
            assert!(near(&link, rate_bps), "{rate_bps}: {:?}", link.rate_bps());
            for outlier in [rate_bps / 20.0, rate_bps * 20.0] {
                exchange(&mut link, 12_000, outlier, 2_000.0);
                assert!(near(&link, rate_bps), "one outlier moved {rate_bps}: {:?}", link.rate_bps());
                (0..3).for_each(|_| exchange(&mut link, 12_000, rate_bps, 2_000.0));
            }
        }
    }

    #[test]
    fn the_first_two_exchanges_tell_rate_and_round_trip_apart() {
        for (rate_bps, rtt_us) in [(50e3, 2_000.0), (1e6, 2_000.0), (1e6, 20_000.0), (5e6, 500.0)] {
            let mut link = LinkEstimate::default();
            exchange(&mut link, 500, rate_bps, rtt_us);
            exchange(&mut link, 30_000, rate_bps, rtt_us);
            assert!(near(&link, rate_bps), "{rate_bps}: {:?}", link.rate_bps());
            assert!((link.rtt_us() / rtt_us - 1.0).abs() < 0.1, "{rtt_us}: {}", link.rtt_us());
        }
    }

    #[test]
    fn probes_find_the_rate_behind_a_long_round_trip() {
        let mut link = LinkEstimate::default();
        let (rate_bps, rtt_us) = (20e6, 40_000.0);
        for _ in 0..12 {
            let bytes = link.probe_bytes();
            assert!(bytes <= PROBE_BYTES_MAX);
            exchange(&mut link, bytes + 500, rate_bps, rtt_us);
        }
        assert!(near(&link, rate_bps), "{:?}", link.rate_bps());
    }

    #[test]
    fn an_exchange_too_short_to_tell_moves_nothing_but_may_confirm() {
        let mut link = LinkEstimate::default();
        exchange(&mut link, 100, 10e6, 20_000.0);
        (0..3).for_each(|_| exchange(&mut link, 200_000, 10e6, 20_000.0));
        let later = NOW + PROBE_AFTER;
        assert!(link.should_probe(later) && !link.should_probe(NOW));
        // 12 kB take 29.6 ms then; the round trip jitters.
        let mut short = |elapsed_us| {
            link.exchanged(Exchange { bytes: 12_000, elapsed_us, busy_us: 0.0 }, later);
            assert!(near(&link, 10e6), "{:?}", link.rate_bps());
            link.should_probe(later)
        };
        assert!(short(39_000.0), "unlike what the estimate predicts");
        assert!(!short(31_000.0), "like it");
    }

    #[test]
    fn a_link_that_became_better_is_probed_again_at_once_but_not_for_ever() {
        let mut link = LinkEstimate::default();
        exchange(&mut link, 100, 1e6, 2_000.0);
        (0..3).for_each(|_| exchange(&mut link, 12_000, 200e3, 2_000.0));
        assert!(!link.should_probe(NOW));
        exchange(&mut link, 12_000, 2e6, 2_000.0);
        assert!(link.should_probe(NOW), "it says ten times as much");
        exchange(&mut link, 12_000, 2e6, 2_000.0);
        assert!(near(&link, 2e6));
        exchange(&mut link, 12_000, 2e6, 2_000.0);
        assert!(!link.should_probe(NOW), "confirmed");
        exchange(&mut link, 12_000, 100e3, 2_000.0);
        assert!(!link.should_probe(NOW), "a link that became worse shows itself");
        let rates_bps = (1..20).map(|power| 1e5 * 3_f64.powi(power));
        let probes = rates_bps.filter(|rate_bps| {
            exchange(&mut link, 1 << 20, *rate_bps, 2_000.0);
            link.should_probe(NOW)
        });
        assert!(probes.count() <= DOUBTED_MAX, "whatever it does, the link is not kept busy");
    }

    #[test]
    fn a_link_that_lets_little_through_at_once_is_not_probed_all_the_time() {
        let mut link = LinkEstimate::default();
        exchange(&mut link, 100, 1e6, 2_000.0);
        let mut probes = 0;
        for round in 0..200 {
            let now = Duration::from_millis(20 * round);
            let is_probe = link.should_probe(now);
            probes += usize::from(is_probe);
            let (bytes, rate_bps) = if is_probe { (60_000, 1e6) } else { (6_000, 2e6) };
            let elapsed_us = 2_000.0 + bits(bytes) * 1e6 / rate_bps;
            // Most go behind others; one in four after a pause.
            let elapsed_us = if is_probe || round % 4 == 0 { elapsed_us } else { 2.0 * elapsed_us };
            link.exchanged(Exchange { bytes, elapsed_us, busy_us: 0.0 }, now);
        }
        assert!(probes <= 6, "{probes} probes in 4 s");
    }

    #[test]
    fn a_transfer_that_does_not_end_lowers_the_rate_before_it_ends() {
        let mut link = LinkEstimate::default();
        (0..3).for_each(|_| exchange(&mut link, 12_000, 10e6, 1_000.0));
        link.waiting(12_000, 15_000.0, NOW);
        assert!(near(&link, 10e6), "nothing unusual yet");
        link.waiting(12_000, 500_000.0, NOW);
        assert!(link.rate_bps().is_some_and(|known| known < 200e3), "{:?}", link.rate_bps());
        (0..2).for_each(|_| exchange(&mut link, 12_000, 10e6, 1_000.0));
        assert!(near(&link, 10e6), "and it comes back: {:?}", link.rate_bps());
    }

    #[test]
    fn nonsense_teaches_nothing() {
        let mut link = LinkEstimate::default();
        let nonsense = [(f64::NAN, 0.0), (1.0, 2.0), (f64::INFINITY, 0.0), (-1.0, 0.0), (1.0, f64::INFINITY)];
        for bytes in [0, 1 << 20, u64::MAX] {
            for (elapsed_us, busy_us) in nonsense {
                link.exchanged(Exchange { bytes, elapsed_us, busy_us }, NOW);
            }
        }
        assert_eq!((link.rate_bps(), link.rtt_us(), link.probe_bytes()), (None, RTT_UNKNOWN_US, 0));
        (0..3).for_each(|_| exchange(&mut link, 12_000, 10e6, 1_000.0));
        for waited_us in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
            link.waiting(u64::MAX, waited_us, NOW);
            link.waiting(12_000, waited_us, NOW);
        }
        assert!(near(&link, 10e6), "{:?}", link.rate_bps());
    }
}
