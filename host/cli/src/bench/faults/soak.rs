//! Hosts for a long time under load, while the link is lost and the edge freezes again and again: what they take of
//! memory and open files must not grow.

use super::super::swap::usage;
use super::load::Record;
use super::{Bench, Fault, Quantiles, in_time};
use crate::output::quantile;
use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde::Serialize;
use std::time::{Duration, Instant};
use tokio::time::{sleep, sleep_until};

/// Between two faults: so long that what one left behind is gone before the hosts are looked at.
const ROUND: Duration = Duration::from_secs(5);
const FROZEN: Duration = Duration::from_millis(300);

/// What resident memory may grow by. A shorter soak tells nothing of it: pools and caches fill for some minutes.
const GROWTH_MAX_MIB_PER_H: f64 = 8.0;
const TELLING: Duration = Duration::from_mins(20);

#[derive(Serialize)]
pub(super) struct Soak {
    seconds: f64,
    faults: usize,
    requests: usize,
    lost: usize,
    wrong: usize,
    answered_in_deadline: f64,
    recover_ms: Quantiles,
    hosts: [Host; 2],
}

#[derive(Serialize)]
struct Host {
    name: &'static str,
    /// In the median, of the second quarter and of the last.
    files: [f64; 2],
    resident_mib: [f64; 2],
    /// Over the second half, by least squares.
    growth_mib_per_h: f64,
}

impl Bench<'_> {
    pub(super) async fn soak(&mut self, lasts: Duration) -> Result<Soak> {
        let since = Instant::now();
        let mut fault = Fault { name: "soak", since, tried: 0, recover_ms: Vec::new(), plan_changes: 0 };
        let mut samples: [Vec<(f64, f64, f64)>; 2] = Default::default();
        while since.elapsed() < lasts {
            let next = Instant::now() + ROUND;
            self.at_random().await;
            if fault.tried.is_multiple_of(2) {
                self.rig.relay.cut();
                self.at_random().await;
                self.rig.relay.restore();
            } else {
                self.rig.signal_edge(Signal::STOP)?;
                sleep(FROZEN).await;
                self.rig.signal_edge(Signal::CONT)?;
            }
            self.recover(&mut fault).await?;
            sleep_until(next.into()).await;
            for (samples, pid) in samples.iter_mut().zip(self.rig.processes()) {
                let (resident_kib, files) = usage(pid);
                samples.push((since.elapsed().as_secs_f64() / 3_600.0, resident_kib as f64 / 1_024.0, files as f64));
            }
        }
        let records = self.load.asked_within(since, Instant::now()).await;
        let Fault { tried, mut recover_ms, .. } = fault;
        let [device, edge] = &samples;
        let soak = Soak {
            seconds: since.elapsed().as_secs_f64(),
            faults: tried,
            requests: records.len(),
            lost: records.iter().filter(|record| record.answer.is_none()).count(),
            wrong: records.iter().filter(|record| Record::is_wrong(record)).count(),
            answered_in_deadline: in_time(&records),
            recover_ms: Quantiles { p50: quantile(&mut recover_ms, 0.5), max: quantile(&mut recover_ms, 1.0) },
            hosts: [host("device", device), host("edge", edge)],
        };
        self.say(&soak);
        Ok(soak)
    }

    fn say(&self, soak: &Soak) {
        self.output.line(format_args!(
            "{:.0} s, {} faults: {} requests, {} lost, {} wrong, {:.1} % in time; back after {:.0} ms, {:.0} at most",
            soak.seconds,
            soak.faults,
            soak.requests,
            soak.lost,
            soak.wrong,
            soak.answered_in_deadline * 100.0,
            soak.recover_ms.p50,
            soak.recover_ms.max
        ));
        for Host { name, files, resident_mib, growth_mib_per_h } in &soak.hosts {
            self.output.line(format_args!(
                "{name:<8} {:.1} → {:.1} MiB resident ({growth_mib_per_h:+.1} MiB/h), {:.0} → {:.0} open files",
                resident_mib[0], resident_mib[1], files[0], files[1]
            ));
        }
    }
}

impl Soak {
    pub(super) fn check(&self) -> Result<()> {
        ensure!(self.lost + self.wrong == 0, "{} requests lost, {} answered wrongly", self.lost, self.wrong);
        for Host { name, files, growth_mib_per_h, .. } in &self.hosts {
            ensure!(files[1] <= files[0], "open files of the {name} grow: {files:?}");
            let is_told = self.seconds >= TELLING.as_secs_f64();
            let is_flat = *growth_mib_per_h <= GROWTH_MAX_MIB_PER_H;
            ensure!(!is_told || is_flat, "the {name} grows by {growth_mib_per_h:.1} MiB an hour");
        }
        Ok(())
    }
}

/// Of samples: hours, MiB, files.
fn host(name: &'static str, samples: &[(f64, f64, f64)]) -> Host {
    let quarter = samples.len() / 4;
    let (second, last) = (&samples[quarter..(2 * quarter).max(1)], &samples[samples.len() - quarter.max(1)..]);
    let median = |samples: &[(f64, f64, f64)], of: fn(&(f64, f64, f64)) -> f64| {
        quantile(&mut samples.iter().map(of).collect::<Vec<_>>(), 0.5)
    };
    let both = |of: fn(&(f64, f64, f64)) -> f64| [median(second, of), median(last, of)];
    Host {
        name,
        files: both(|(_, _, files)| *files),
        resident_mib: both(|(_, mib, _)| *mib),
        growth_mib_per_h: slope(&samples[samples.len() / 2..]),
    }
}

fn slope(samples: &[(f64, f64, f64)]) -> f64 {
    let count = samples.len() as f64;
    let mean = |of: fn(&(f64, f64, f64)) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (hours, mib) = (mean(|(hours, _, _)| *hours), mean(|(_, mib, _)| *mib));
    let covariance: f64 = samples.iter().map(|(h, m, _)| (h - hours) * (m - mib)).sum();
    let variance: f64 = samples.iter().map(|(h, _, _)| (h - hours).powi(2)).sum();
    if variance > 0.0 { covariance / variance } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_by_the_hour_and_noise_is_none() {
        let growing: Vec<_> = (0..100).map(|i| (f64::from(i) / 100.0, 60.0 + 0.12 * f64::from(i), 30.0)).collect();
        assert!((host("device", &growing).growth_mib_per_h - 12.0).abs() < 1e-6);
        let flat: Vec<_> = (0..100).map(|i| (f64::from(i) / 100.0, 60.0 + f64::from(i % 2), 30.0)).collect();
        assert!(host("device", &flat).growth_mib_per_h.abs() < 0.2);
        // The first round is a sample, too.
        assert_eq!(host("edge", &growing[..1]).files, [30.0, 30.0]);
    }
}
