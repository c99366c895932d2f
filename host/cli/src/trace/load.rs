//! Traces from files: which of the known formats one has is told by what is in it.
//!
//! | what is in it | format |
//! |---|---|
//! | `[{"duration_ms": 1000, "bandwidth_kbps": 16823, …}, …]` | the Belgium 4G/LTE logs, as JSON |
//! | two numbers a line, `TIME_MS KBPS`: the rate from that time to the next line's | Oboe |
//! | one whole number a line: the millisecond at which a 1500-byte packet may pass | Mahimahi |
//!
//! A file may be anything: its size, its lines and what they say are checked, and what is wrong is told
//! with its line. (Pensieve's traces look like Oboe's, but count seconds and Mbit/s; they cannot be told
//! apart, and must be converted.)

use super::{Step, Trace};
use crate::output::BadInput;
use anyhow::Result;
use serde::Deserialize;
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

const FILE_BYTES_MAX: u64 = 64 << 20;
const LINE_BYTES_MAX: usize = 256;
const LINES_MAX: usize = 10_000_000;
const STEPS_MAX: usize = 1_000_000;
const LENGTH_MAX_MS: f64 = 24.0 * 3_600e3;
const LENGTH_MIN_MS: f64 = 1.0;
const RATE_MAX_BPS: f64 = 1e11;

/// What Mahimahi lets pass at a time.
const PACKET_BITS: f64 = 1_500.0 * 8.0;

/// Mahimahi's packets are counted over this long: a rate is what is planned with, and a packet in one
/// millisecond and none in the next are none.
const PACKETS_OVER_MS: u64 = 100;

impl Trace {
    /// Reads a trace from a file: Oboe's, a Belgium LTE log as JSON, or Mahimahi's.
    pub fn load(path: &Path) -> Result<Self> {
        let bad = |why: &dyn Display| BadInput::error(format!("{}: {why}", path.display()));
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|e| bad(&e))?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| bad(&e))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(bad(&format!("over {} MiB; cut it into shorter traces", FILE_BYTES_MAX >> 20)));
        }
        parse(&bytes).map_err(|why| bad(&why))
    }
}

/// What is wrong, where, and what to do about it.
type Parsed<T> = Result<T, String>;

const KNOWN: &str = "a trace is a JSON list of {\"duration_ms\", \"bandwidth_kbps\"} (Belgium LTE), or has two \
                     numbers a line, TIME_MS KBPS (Oboe), or one, a packet's millisecond (Mahimahi)";

fn parse(bytes: &[u8]) -> Parsed<Trace> {
    let text = str::from_utf8(bytes).map_err(|e| {
        let line = bytes[..e.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line}: not text; {KNOWN}")
    })?;
    let steps = if text.trim_start().starts_with(['[', '{']) {
        belgium(text)?
    } else {
        let (line, first) = lines(text).next().ok_or_else(|| format!("empty; {KNOWN}"))?;
        match short(line, first)?.split_whitespace().count() {
            2 => oboe(text)?,
            1 => mahimahi(text)?,
            words => return Err(format!("line {line}: {words} words; {KNOWN}")),
        }
    };
    let length: Duration = steps.iter().map(|step| step.duration).sum();
    within("the trace's length", length.as_secs_f64() * 1e3, LENGTH_MIN_MS, LENGTH_MAX_MS, "ms")?;
    if steps.iter().all(|step| step.rate_bps == 0) {
        return Err("nothing ever gets through: every rate is 0".to_owned());
    }
    Ok(Trace::new(steps))
}

/// A step of the Belgium logs; whatever else is said of it is ignored.
#[derive(Deserialize)]
struct Logged {
    duration_ms: f64,
    bandwidth_kbps: f64,
}

/// Conversion while reading, so that what is wrong is told with its line.
#[derive(Deserialize)]
#[serde(try_from = "Logged")]
struct Converted(Step);

impl TryFrom<Logged> for Converted {
    type Error = String;

    fn try_from(logged: Logged) -> Parsed<Self> {
        step(logged.duration_ms, logged.bandwidth_kbps * 1e3).map(Self)
    }
}

fn belgium(text: &str) -> Parsed<Vec<Step>> {
    let steps: Vec<Converted> = serde_json::from_str(text).map_err(|e| format!("{e}; {KNOWN}"))?;
    at_most("steps", steps.len(), STEPS_MAX)?;
    Ok(steps.into_iter().map(|Converted(step)| step).collect())
}

fn oboe(text: &str) -> Parsed<Vec<Step>> {
    let mut steps = Vec::new();
    let mut before: Option<(f64, f64)> = None;
    for (line, words) in lines(text) {
        let said = |why: String| format!("line {line}: {why}");
        let mut numbers = short(line, words)?.split_whitespace();
        let (Some(at), Some(kbps), None) = (numbers.next(), numbers.next(), numbers.next()) else {
            return Err(said(format!("not two numbers, TIME_MS KBPS: {words:?}")));
        };
        let number = |word: &str| word.parse::<f64>().map_err(|_| said(format!("{word:?} is no number")));
        let (at_ms, rate_bps) = (number(at)?, number(kbps)? * 1e3);
        // The rate of the last line lasts for no time, but must be one.
        let duration_ms = before.map_or(0.0, |(before_ms, _)| at_ms - before_ms);
        if duration_ms < 0.0 {
            return Err(said(format!("{at_ms} ms is before the line above; sort the lines by time")));
        }
        let here = step(duration_ms, rate_bps).map_err(said)?;
        if let Some((_, rate_bps)) = before.filter(|_| duration_ms > 0.0) {
            steps.push(Step { rate_bps: rate_bps as u64, ..here });
            at_most("steps", steps.len(), STEPS_MAX)?;
        }
        before = Some((at_ms, rate_bps));
    }
    Ok(steps)
}

fn mahimahi(text: &str) -> Parsed<Vec<Step>> {
    let mut packets: Vec<u32> = Vec::new();
    let mut last_ms = 0;
    for (line, word) in lines(text) {
        let said = |why: String| format!("line {line}: {why}");
        let number = short(line, word)?.parse::<u64>();
        let at_ms = number.map_err(|_| said(format!("{word:?} is no whole number of milliseconds")))?;
        if at_ms < last_ms {
            return Err(said(format!("{at_ms} ms is before the line above; sort the lines")));
        }
        within("the time", at_ms as f64, 0.0, LENGTH_MAX_MS, "ms").map_err(said)?;
        last_ms = at_ms;
        // The last packet passes at the very end, and must not begin another step.
        let index = (at_ms.saturating_sub(1) / PACKETS_OVER_MS) as usize;
        if packets.len() <= index {
            packets.resize(index + 1, 0);
        }
        packets[index] += 1;
    }
    if last_ms == 0 {
        return Err("every packet passes at 0 ms; the last line must say when the trace begins again".to_owned());
    }
    let steps = packets.iter().zip((0..).step_by(PACKETS_OVER_MS as usize)).map(|(packets, begin_ms): (_, u64)| {
        let duration_ms = last_ms.saturating_sub(begin_ms).min(PACKETS_OVER_MS) as f64;
        step(duration_ms, f64::from(*packets) * PACKET_BITS * 1e3 / duration_ms)
            .map_err(|why| format!("from {begin_ms} ms: {why}"))
    });
    steps.collect()
}

/// The lines that say something, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    numbered.filter(|(_, line)| !line.is_empty())
}

/// The line, unless it or its number is beyond what is read.
fn short(line: usize, text: &str) -> Parsed<&str> {
    at_most("lines", line, LINES_MAX)?;
    at_most("bytes in a line", text.len(), LINE_BYTES_MAX).map_err(|why| format!("line {line}: {why}"))?;
    Ok(text)
}

fn step(duration_ms: f64, rate_bps: f64) -> Parsed<Step> {
    let duration_ms = within("the duration", duration_ms, 0.0, LENGTH_MAX_MS, "ms")?;
    let rate_bps = within("the rate", rate_bps, 0.0, RATE_MAX_BPS, "bit/s")? as u64;
    Ok(Step { duration: Duration::from_secs_f64(duration_ms / 1e3), rate_bps })
}

fn within(what: &str, value: f64, least: f64, most: f64, unit: &str) -> Parsed<f64> {
    let is_within = (least..=most).contains(&value);
    is_within
        .then_some(value)
        .ok_or_else(|| format!("{what}, {value} {unit}, is not between {least} and {most} {unit}"))
}

fn at_most(what: &str, got: usize, most: usize) -> Parsed<()> {
    if got <= most { Ok(()) } else { Err(format!("more than {most} {what}; cut it into shorter traces")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(text: &str) -> Vec<(f64, u64)> {
        let trace = parse(text.as_bytes()).unwrap();
        trace.steps().iter().map(|step| (step.duration.as_secs_f64() * 1e3, step.rate_bps)).collect()
    }

    #[test]
    fn each_format_is_recognised_by_what_is_in_it() {
        let cases: [(&str, &[(f64, u64)]); 9] = [
            // Oboe
            (
                "31.0 1318.5\n1134.0 1318.5\n1235.0 0\n2171.0 90\n",
                &[(1_103.0, 1_318_500), (101.0, 1_318_500), (936.0, 0)],
            ),
            ("\n 5 10\r\n5 20\r\n\r\n15\t7", &[(10.0, 20_000)]),
            ("1400000000000 8\n1400000000250 8", &[(250.0, 8_000)]),
            // Belgium LTE
            (
                r#"[{"duration_ms": 840, "bandwidth_kbps": 16823, "latency_ms": 20},
                    {"duration_ms": 1000, "bandwidth_kbps": 0}]"#,
                &[(840.0, 16_823_000), (1_000.0, 0)],
            ),
            (
                "\n[{\"bandwidth_kbps\": 0.5, \"duration_ms\": 0.5}, {\"duration_ms\": 0.5, \"bandwidth_kbps\": 1e3}]",
                &[(0.5, 500), (0.5, 1_000_000)],
            ),
            // Mahimahi
            ("1\n", &[(1.0, 12_000_000)]),
            ("0\n50\n50\n100\n101\n250\n", &[(100.0, 480_000), (100.0, 120_000), (50.0, 240_000)]),
            ("1000\n", &[(100.0, 0); 9]),
            ("5\n5\n10", &[(10.0, 3_600_000)]),
        ];
        for (text, expected) in cases {
            let mut got = steps(text);
            if text == "1000\n" {
                assert_eq!(got.pop(), Some((100.0, 120_000)));
            }
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_line() {
        let long = format!("1 2\n{} 2\n", "1".repeat(LINE_BYTES_MAX));
        let deep = "[".repeat(100_000);
        let cases: [(&[u8], &str); 30] = [
            (b"", "empty"),
            (b" \n\t\n", "empty"),
            (b"\x00\x01\x02", "line 1: \"\\0"),
            (b"1 2\n\xff\xfe", "line 2: not text"),
            (b"0 1 2\n", "line 1: 3 words"),
            (b"time rate\n", "line 1: \"time\" is no number"),
            (b"1 2\n2 x\n", "line 2: \"x\" is no number"),
            (b"1 2\n\n2\n", "line 3: not two numbers"),
            (b"1 2\n2 3 4\n", "line 2: not two numbers"),
            (b"2 2\n1 3\n", "line 2: 1 ms is before"),
            (b"1 2\n2 -1\n", "line 2: the rate, -1000 bit/s"),
            (b"1 nan\n2 1\n", "line 1: the rate, NaN"),
            (b"1 1e300\n2 1\n", "line 1: the rate, 1"),
            (b"nan 1\n2 1\n", "line 2: the duration, NaN"),
            (b"0 1\ninf 1\n", "line 2: the duration, inf"),
            (b"0 1\n1e30 1\n", "line 2: the duration"),
            (b"0 1\n", "the trace's length, 0 ms"),
            (b"0 0\n5 0\n", "nothing ever gets through"),
            (long.as_bytes(), "line 2: more than 256 bytes in a line"),
            (b"0\n0\n", "every packet passes at 0 ms"),
            (b"1\n18446744073709551616\n", "line 2: \"18446744073709551616\" is no whole number"),
            (b"1\n18446744073709551615\n", "line 2: the time"),
            (b"1\n-5\n", "line 2: \"-5\" is no whole number"),
            (b"5\n4\n", "line 2: 4 ms is before"),
            (b"[]", "the trace's length, 0 ms"),
            (b"{}", "line 1"),
            (b"[{\"duration_ms\": 1}]", "missing field `bandwidth_kbps` at line 1"),
            (
                b"[\n{\"duration_ms\": 5, \"bandwidth_kbps\": -1}]",
                "the rate, -1000 bit/s, is not between 0 and 100000000000 bit/s at line 2",
            ),
            (b"[{\"duration_ms\": \"5\", \"bandwidth_kbps\": 1}", "at line 1"),
            (deep.as_bytes(), "line 1"),
        ];
        for (bytes, expected) in cases {
            let why = parse(bytes).map(|trace| format!("{trace:?}")).unwrap_err();
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            assert!(why.contains(expected), "{start:?}: {why}");
            assert!(why.len() < 600, "{start:?}: {why}");
        }
    }

    #[test]
    fn limits_hold_for_sizes_too() {
        let folder = tempfile::tempdir().unwrap();
        let said = |name: &str, bytes: u64| {
            let path = folder.path().join(name);
            File::create(&path).unwrap().set_len(bytes).unwrap();
            let error = Trace::load(&path).unwrap_err();
            assert!(error.is::<BadInput>());
            format!("{error:#}")
        };
        assert!(said("huge", 1 << 40).contains("huge: over 64 MiB"));
        assert!(said("zeros", 1 << 10).contains("zeros: line 1: more than 256 bytes"));
        assert!(Trace::load(folder.path()).is_err() && Trace::load(&folder.path().join("none")).is_err());
        let many = (0..STEPS_MAX + 2).map(|ms| format!("{ms} 1\n")).collect::<String>();
        assert!(parse(many.as_bytes()).unwrap_err().contains("more than 1000000 steps"));
        let packets = "7\n".repeat(LINES_MAX + 1);
        assert!(parse(packets.as_bytes()).unwrap_err().contains("more than 10000000 lines"));
    }

    #[test]
    fn no_damage_to_a_file_upsets_the_reader() {
        let files = [
            "31.0 1318.5\n1134.0 1318.5\n1235.0 0\n2171.0 90\n",
            "0\n50\n50\n100\n101\n250\n",
            "[{\"duration_ms\": 840, \"bandwidth_kbps\": 16823, \"latency_ms\": 20}]",
        ];
        let replacements = b"\0\xff -9eE.[{]}\",:\n";
        for file in files {
            for at in 0..file.len() {
                let _ = parse(&file.as_bytes()[..at]);
                for with in replacements {
                    let mut bytes = file.as_bytes().to_vec();
                    bytes[at] = *with;
                    if let Ok(trace) = parse(&bytes) {
                        assert!(trace.length() >= Duration::from_millis(1), "{bytes:?}");
                        trace.transfer(Duration::from_secs(5), 1 << 20);
                    }
                }
            }
        }
    }
}
