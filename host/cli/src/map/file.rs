//! A map as a file: versioned JSON. Nothing in it is believed before it is checked.

use crate::output::BadInput;
use anyhow::{Context, Result};
use edgent_bundle::Digest;
use edgent_planner::{Codec, Direction, Placement, SEGMENTS_MAX, STATES_MAX};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// What this program writes, and reads.
pub(crate) const FORMAT: u32 = 1;

const FILE_BYTES_MAX: u64 = 1 << 20;
const NAME_BYTES_MAX: usize = 256;
const TIME_MAX_MS: f64 = 1e9;
const RATE_MAX_BPS: f64 = 1e12;

/// Figures that follow from others may be off by rounding.
const ROUNDING: f64 = 1e-6;

/// A map, and what it was made of.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MapFile {
    pub(crate) format: u32,
    /// The model's name.
    pub(crate) model: String,
    /// The bundle's.
    pub(crate) digest: Digest,
    pub(crate) deadline_ms: f64,
    pub(crate) rtt_ms: f64,
    /// What was not measured but pretended.
    pub(crate) emulated: Option<Emulated>,
    /// By growing rate.
    pub(crate) states: Vec<StateRow>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Emulated {
    /// How much slower than the machine that measured the device is taken to be.
    pub(crate) device_slowdown: f64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StateRow {
    pub(crate) rate_bps: f64,
    pub(crate) exit: String,
    pub(crate) cut: usize,
    pub(crate) direction: DirectionName,
    pub(crate) codec: CodecName,
    pub(crate) placement: PlacementName,
    /// Predicted.
    pub(crate) latency_ms: f64,
    pub(crate) accuracy: f64,
    pub(crate) reward: f64,
    pub(crate) fits: bool,
}

/// An enumeration of the planner by the names it has in files.
macro_rules! named {
    ($name:ident of $planner:ident { $($variant:ident = $text:literal),* }) => {
        #[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
        pub(crate) enum $name { $(#[serde(rename = $text)] $variant),* }

        impl From<$planner> for $name {
            fn from(value: $planner) -> Self {
                match value { $($planner::$variant => Self::$variant),* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $text),* })
            }
        }
    };
}

named!(DirectionName of Direction { DeviceFirst = "device-first", EdgeFirst = "edge-first" });
named!(CodecName of Codec {
    Raw = "raw", F16 = "f16", U8 = "u8", U8Lz4 = "u8-lz4", Png = "png", Jpeg = "jpeg"
});
named!(PlacementName of Placement { DeviceOnly = "device-only", Split = "split", EdgeOnly = "edge-only" });

impl MapFile {
    /// Reads and checks.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bad = |why: &dyn fmt::Display| BadInput::error(format!("{}: {why}", path.display()));
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|e| bad(&e))?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| bad(&e))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(bad(&format!("over {} MiB; no map is that large", FILE_BYTES_MAX >> 20)));
        }
        Self::parse(&bytes).map_err(|why| bad(&why))
    }

    /// Writes beside the file first, so that whoever reads it finds the old map or the new one.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let write = || -> Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        };
        write().with_context(|| format!("writing {}", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        /// Read first: another format may have other fields.
        #[derive(Deserialize)]
        struct Head {
            format: u64,
        }
        let again = "make it again with 'edgent map build'";
        let Head { format } = serde_json::from_slice(bytes).map_err(|e| format!("not a map: {e}; {again}"))?;
        if format != u64::from(FORMAT) {
            return Err(format!("a map of format {format}; this program reads format {FORMAT}; {again}"));
        }
        let map: Self = serde_json::from_slice(bytes).map_err(|e| format!("not a map: {e}; {again}"))?;
        map.check().map_err(|why| format!("{why}; {again}"))?;
        Ok(map)
    }

    fn check(&self) -> Result<(), String> {
        name("model", &self.model)?;
        within("deadline_ms", self.deadline_ms, f64::MIN_POSITIVE, TIME_MAX_MS)?;
        within("rtt_ms", self.rtt_ms, 0.0, TIME_MAX_MS)?;
        if let Some(Emulated { device_slowdown }) = self.emulated {
            within("device_slowdown", device_slowdown, f64::MIN_POSITIVE, 1e9)?;
        }
        if !(1..=STATES_MAX).contains(&self.states.len()) {
            return Err(format!("{} states; a map has between 1 and {STATES_MAX}", self.states.len()));
        }
        if !self.states.is_sorted_by(|a, b| a.rate_bps < b.rate_bps) {
            return Err("the states' rates do not grow".to_owned());
        }
        for (index, state) in self.states.iter().enumerate() {
            state.check(self.deadline_ms).map_err(|why| format!("state {index}: {why}"))?;
        }
        Ok(())
    }
}

impl StateRow {
    fn check(&self, deadline_ms: f64) -> Result<(), String> {
        name("exit", &self.exit)?;
        within("rate_bps", self.rate_bps, f64::MIN_POSITIVE, RATE_MAX_BPS)?;
        within("latency_ms", self.latency_ms, 0.0, f64::MAX)?;
        within("accuracy", self.accuracy, 0.0, 1.0)?;
        within("cut", self.cut as f64, 0.0, SEGMENTS_MAX as f64)?;
        let (least, most) = (deadline_ms * (1.0 - ROUNDING), deadline_ms * (1.0 + ROUNDING));
        if self.fits && self.latency_ms > most || !self.fits && self.latency_ms < least {
            return Err(format!("{} ms, with a deadline of {deadline_ms} ms, and 'fits' denies it", self.latency_ms));
        }
        // No latency is rewarded as less than a microsecond.
        let earned = self.accuracy.exp() + 1e3 / self.latency_ms.max(1e-3);
        let expected = if self.fits { earned } else { 0.0 };
        within("reward", self.reward, expected * (1.0 - ROUNDING), expected * (1.0 + ROUNDING))
    }
}

fn name(what: &str, name: &str) -> Result<(), String> {
    let is_good = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
    let why = || format!("the name of the {what} is empty, has control characters or is over {NAME_BYTES_MAX} bytes");
    if is_good { Ok(()) } else { Err(why()) }
}

fn within(what: &str, value: f64, least: f64, most: f64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(format!("{what} {value} is not between {least} and {most}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As format 1 was first written. Never change it: what has been written must stay readable.
    const FORMAT_1: &str = r#"{
        "format": 1,
        "model": "branchy-alexnet",
        "digest": "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "deadline_ms": 100.0,
        "rtt_ms": 4.0,
        "emulated": {"device_slowdown": 50.0},
        "states": [
            {"rate_bps": 50000.0, "exit": "exit1", "cut": 4, "direction": "device-first", "codec": "raw",
             "placement": "device-only", "latency_ms": 125.0, "accuracy": 0.75, "reward": 0.0, "fits": false},
            {"rate_bps": 1000000.0, "exit": "exit5", "cut": 2, "direction": "edge-first", "codec": "u8",
             "placement": "split", "latency_ms": 50.0, "accuracy": 0.5, "reward": 21.648721270700128, "fits": true}
        ]
    }"#;

    #[test]
    fn a_map_of_format_1_is_read() {
        let map = MapFile::parse(FORMAT_1.as_bytes()).unwrap();
        assert_eq!((map.model.as_str(), map.deadline_ms, map.rtt_ms), ("branchy-alexnet", 100.0, 4.0));
        assert_eq!(map.digest.short(), "ba7816bf8f01");
        assert_eq!(map.emulated, Some(Emulated { device_slowdown: 50.0 }));
        let StateRow { rate_bps, exit, cut, direction, codec, placement, fits, .. } = &map.states[1];
        assert_eq!((*rate_bps, exit.as_str(), *cut, *fits), (1e6, "exit5", 2, true));
        assert_eq!((*direction, *codec, *placement), (DirectionName::EdgeFirst, CodecName::U8, PlacementName::Split));
        assert_eq!(map.states.len(), 2);
    }

    #[test]
    fn a_map_is_read_as_it_was_written() {
        let map = MapFile::parse(FORMAT_1.as_bytes()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.json");
        for map in [&MapFile { emulated: None, ..map.clone() }, &map] {
            map.write(&path).unwrap();
            assert_eq!(&MapFile::read(&path).unwrap(), map);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        assert!(map.write(&folder.path().join("none/map.json")).is_err());
    }

    #[test]
    fn what_is_no_map_is_bad_input() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.json");
        let cases = [
            // in the good file, this, instead of it, that, said
            (FORMAT_1, "", "not a map"),
            (FORMAT_1, "[]", "not a map"),
            (FORMAT_1, "{}", "missing field `format`"),
            ("\"format\": 1", "\"format\": 2", "a map of format 2; this program reads format 1"),
            ("\"format\": 1", "\"format\": \"1\"", "not a map"),
            ("\"rtt_ms\": 4.0,", "", "missing field `rtt_ms`"),
            ("\"rtt_ms\": 4.0", "\"rtt_ms\": -4.0", "rtt_ms -4 is not"),
            ("\"rtt_ms\": 4.0", "\"rtt_ms\": 1e999", "not a map"),
            ("\"rtt_ms\": 4.0", "\"rtt_ms\": 4.0, \"color\": 1", "unknown field `color`"),
            ("sha256:ba", "sha256:..", "is not a digest"),
            ("branchy-alexnet", "", "the name of the model is empty"),
            ("branchy-alexnet", "\\u001b[2J", "has control characters"),
            ("\"device_slowdown\": 50.0", "\"device_slowdown\": 0", "device_slowdown 0"),
            ("50000.0", "1000000.0", "do not grow"),
            ("50000.0", "-1.0", "state 0: rate_bps"),
            ("\"cut\": 4", "\"cut\": 4097", "state 0: cut 4097"),
            ("\"cut\": 4", "\"cut\": -1", "not a map"),
            ("edge-first", "first", "unknown variant `first`"),
            ("\"accuracy\": 0.5", "\"accuracy\": 1.5", "state 1: accuracy"),
            ("\"latency_ms\": 50.0", "\"latency_ms\": 150.0", "'fits' denies it"),
            ("\"latency_ms\": 125.0", "\"latency_ms\": 25.0", "'fits' denies it"),
            ("21.6", "22.6", "state 1: reward"),
        ];
        for (this, that, expected) in cases {
            assert!(FORMAT_1.contains(this), "{this}");
            std::fs::write(&path, FORMAT_1.replacen(this, that, 1)).unwrap();
            let error = MapFile::read(&path).unwrap_err();
            assert!(error.is::<BadInput>() && error.to_string().contains(expected), "{that}: {error}");
        }
        let states = |count: usize| {
            let map = MapFile::parse(FORMAT_1.as_bytes()).unwrap();
            let state = |index: usize| StateRow { rate_bps: 1.0 + index as f64, ..map.states[0].clone() };
            MapFile { states: (0..count).map(state).collect(), ..map.clone() }.check()
        };
        assert!(states(0).is_err() && states(STATES_MAX).is_ok() && states(STATES_MAX + 1).is_err());
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(MapFile::read(&path).unwrap_err().to_string().contains("over 1 MiB"));
        assert!(MapFile::read(folder.path()).unwrap_err().is::<BadInput>());
    }
}
