//! The link's rate and round trip, from exchanges that were made anyway.
//!
//! An exchange that took `elapsed`, of which the peer worked `busy`, tells
//! `elapsed − busy = round trip + bits / rate`. Small exchanges speak of the round trip, large ones of
//! the rate. The rate is the median of the last three that spoke of it: one outlier is shrugged off,
//! and a real change is believed at the second exchange that shows it.

use std::time::Duration;

const SAMPLES: usize = 3;
const RTT_SAMPLES: usize = 8;

/// A transfer must take at least this many round trips to tell the rate from the noise.
const TELLING_ROUND_TRIPS: f64 = 1.0;
/// And at least this many bytes, or it fits into buffers on the way.
const TELLING_BYTES: u64 = 2_000;

const RATE_MIN_BPS: f64 = 1_000.0;
const RATE_MAX_BPS: f64 = 1e11;
const RTT_UNKNOWN_US: f64 = 1_000.0;

/// A probe is this long at the estimated rate: enough to tell, not enough to disturb.
const PROBE_US: f64 = 30_000.0;
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
    rates_bps: [f64; SAMPLES],
    rates: usize,
    rtts_us: [f64; RTT_SAMPLES],
    rtts: usize,
    updated: Option<Duration>,
}

impl LinkEstimate {
    /// Learns from a finished exchange.
    pub fn exchanged(&mut self, exchange: Exchange, now: Duration) {
        let on_link_us = exchange.elapsed_us - exchange.busy_us;
        if !on_link_us.is_finite() || on_link_us <= 0.0 {
            return;
        }
        let bytes_us = on_link_us - self.rtt_us().min(on_link_us * 0.9);
        let rate_bps = exchange.bytes as f64 * 8e6 / bytes_us;
        if exchange.bytes >= TELLING_BYTES && (self.rates == 0 || bytes_us >= TELLING_ROUND_TRIPS * self.rtt_us()) {
            self.learn_rate(rate_bps, now);
        } else if exchange.bytes < TELLING_BYTES {
            let rtt_us = on_link_us - self.rate_bps().map_or(0.0, |rate| exchange.bytes as f64 * 8e6 / rate);
            self.rtts_us[self.rtts % RTT_SAMPLES] = rtt_us.max(1.0);
            self.rtts += 1;
        } else {
            // Too fast to tell how fast: at least as fast as this.
            if self.rate_bps().is_some_and(|known| rate_bps > known) {
                self.learn_rate(rate_bps, now);
            }
            self.updated = Some(now);
        }
    }

    /// Learns from an exchange that has not finished yet: had the rate been higher, it would have.
    pub fn waiting(&mut self, bytes: u64, waited_us: f64, now: Duration) {
        let most_bps = bytes as f64 * 8e6 / (waited_us - self.rtt_us()).max(1.0);
        if bytes >= TELLING_BYTES && self.rate_bps().is_some_and(|known| most_bps < known / 2.0) {
            // It is certain, so it need not be confirmed by a second exchange.
            (0..SAMPLES).for_each(|_| self.learn_rate(most_bps, now));
        }
    }

    /// Bits a second; `None` before anything was large enough to tell.
    pub fn rate_bps(&self) -> Option<f64> {
        let filled = self.rates.min(SAMPLES);
        let mut rates = self.rates_bps;
        rates[..filled].sort_by(f64::total_cmp);
        (filled > 0).then(|| rates[(filled - 1) / 2])
    }

    /// The round trip of a small message: the least of the last ones.
    pub fn rtt_us(&self) -> f64 {
        let known = &self.rtts_us[..self.rtts.min(RTT_SAMPLES)];
        known.iter().copied().min_by(f64::total_cmp).unwrap_or(RTT_UNKNOWN_US)
    }

    /// How long ago the rate was last learnt.
    pub fn age(&self, now: Duration) -> Option<Duration> {
        self.updated.map(|updated| now.saturating_sub(updated))
    }

    /// How many bytes a probe should carry.
    pub fn probe_bytes(&self) -> u64 {
        let bytes = self.rate_bps().map_or(0.0, |rate| rate * PROBE_US / 8e6);
        (bytes as u64).clamp(PROBE_BYTES_MIN, PROBE_BYTES_MAX)
    }

    fn learn_rate(&mut self, rate_bps: f64, now: Duration) {
        self.rates_bps[self.rates % SAMPLES] = rate_bps.clamp(RATE_MIN_BPS, RATE_MAX_BPS);
        self.rates += 1;
        self.updated = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    fn exchange(link: &mut LinkEstimate, bytes: u64, rate_bps: f64, rtt_us: f64) {
        let elapsed_us = 500.0 + rtt_us + bytes as f64 * 8e6 / rate_bps;
        link.exchanged(Exchange { bytes, elapsed_us, busy_us: 500.0 }, NOW);
    }

    fn near(link: &LinkEstimate, rate_bps: f64) -> bool {
        (link.rate_bps().unwrap() / rate_bps - 1.0).abs() < 0.1
    }

    #[test]
    fn a_change_is_followed_within_three_exchanges_and_an_outlier_is_not() {
        let mut link = LinkEstimate::default();
        exchange(&mut link, 100, 1e6, 2_000.0);
        for rate_bps in [1e6, 50e3, 20e6, 300e3] {
            (0..3).for_each(|_| exchange(&mut link, 12_000, rate_bps, 2_000.0));
            assert!(near(&link, rate_bps), "{rate_bps}: {:?}", link.rate_bps());
            exchange(&mut link, 12_000, rate_bps / 20.0, 2_000.0);
            assert!(near(&link, rate_bps), "one outlier moved {rate_bps}: {:?}", link.rate_bps());
            (0..3).for_each(|_| exchange(&mut link, 12_000, rate_bps, 2_000.0));
        }
    }

    #[test]
    fn a_transfer_that_does_not_end_lowers_the_rate_before_it_ends() {
        let mut link = LinkEstimate::default();
        (0..3).for_each(|_| exchange(&mut link, 12_000, 10e6, 1_000.0));
        link.waiting(12_000, 15_000.0, NOW);
        assert!(near(&link, 10e6), "nothing unusual yet");
        link.waiting(12_000, 500_000.0, NOW);
        assert!(link.rate_bps().unwrap() < 200e3, "{:?}", link.rate_bps());
    }

    #[test]
    fn nonsense_teaches_nothing() {
        let mut link = LinkEstimate::default();
        for (elapsed_us, busy_us) in [(f64::NAN, 0.0), (1.0, 2.0), (f64::INFINITY, 0.0), (-1.0, 0.0)] {
            link.exchanged(Exchange { bytes: 1 << 20, elapsed_us, busy_us }, NOW);
        }
        assert_eq!(link.rate_bps(), None);
        assert_eq!(link.probe_bytes(), PROBE_BYTES_MIN);
    }
}
