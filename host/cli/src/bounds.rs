//! What users may ask for. Beyond these a number is a slip, and time arithmetic would overflow.

use crate::output::BadInput;
use edgent_link::{Place, is_peer_name};
use edgent_nn::THREADS_MAX;
use std::net::Ipv6Addr;

/// An hour.
pub(crate) const DEADLINE_MAX_MS: f64 = 3.6e6;
pub(crate) const SLOWDOWN_MAX: f64 = 1e6;

/// A pebibyte.
const MEMORY_MAX_MIB: f64 = (1_u64 << 30) as f64;

/// More threads for a model than any machine has processors for.
const WORKERS_MAX: usize = 1_024;

/// A connection lasts this long at least: each costs a handshake. At most, a year.
const RECONNECT_MIN_S: f64 = 1.0;
const RECONNECT_MAX_S: f64 = 3.2e7;

/// Announcements are repeated within seconds.
const LISTENING_MAX_S: f64 = 3_600.0;

/// Whether a deadline and an emulated slowdown are ones.
pub(crate) fn check(deadline_ms: f64, slowdown: f64) -> anyhow::Result<()> {
    for (what, value, most) in
        [("deadline, in ms,", deadline_ms, DEADLINE_MAX_MS), ("slowdown", slowdown, SLOWDOWN_MAX)]
    {
        if !(value > 0.0 && value <= most) {
            return Err(BadInput::error(format!("the {what} must be over 0 and at most {most}, not {value}")));
        }
    }
    Ok(())
}

/// Reads a deadline.
pub(crate) fn deadline_ms(text: &str) -> Result<f64, String> {
    over_0(text, DEADLINE_MAX_MS)
}

/// Reads an emulated slowdown.
pub(crate) fn slowdown(text: &str) -> Result<f64, String> {
    over_0(text, SLOWDOWN_MAX)
}

/// Reads a share that may be none.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    number(text).filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "must be within 0 and 1".to_owned())
}

/// Reads a share of some.
pub(crate) fn share_over_0(text: &str) -> Result<f64, String> {
    over_0(text, 1.0)
}

/// Reads how long connections last.
pub(crate) fn reconnect_s(text: &str) -> Result<f64, String> {
    let given = number(text).filter(|s| (RECONNECT_MIN_S..=RECONNECT_MAX_S).contains(s));
    given.ok_or_else(|| format!("must be a number of seconds from {RECONNECT_MIN_S} to {RECONNECT_MAX_S}"))
}

/// Reads how long is listened for what others say.
pub(crate) fn listening_s(text: &str) -> Result<f64, String> {
    over_0(text, LISTENING_MAX_S)
}

/// Reads an amount of memory.
pub(crate) fn memory_mib(text: &str) -> Result<f64, String> {
    over_0(text, MEMORY_MAX_MIB)
}

/// Reads a number of threads.
pub(crate) fn workers(text: &str) -> Result<usize, String> {
    let given = text.parse().ok().filter(|given| *given <= WORKERS_MAX);
    given.ok_or_else(|| format!("must be a whole number from 0 to {WORKERS_MAX}"))
}

/// Reads how many threads one run may have.
pub(crate) fn threads(text: &str) -> Result<usize, String> {
    let given = text.parse().ok().filter(|given| *given <= THREADS_MAX);
    given.ok_or_else(|| format!("must be a whole number from 0 to {THREADS_MAX}"))
}

/// Reads the address of somebody who is connected to: it may say who that must be.
pub(crate) fn place(text: &str) -> Result<String, String> {
    let Place { name, address: of } = Place::of(text);
    match name {
        Some(name) if !is_peer_name(name) => Err(format!("{name:?} is no peer's name; say NAME@HOST:PORT")),
        _ => address(of).map(|_| text.to_owned()),
    }
}

/// Reads an address; whether its name can be looked up, only the network knows.
pub(crate) fn address(text: &str) -> Result<String, String> {
    let is_host = |host: &str| match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    };
    let parts = text.rsplit_once(':').filter(|(host, port)| is_host(host) && port.parse::<u16>().is_ok());
    parts.map(|_| text.to_owned()).ok_or_else(|| "an address is HOST:PORT or [IPV6]:PORT".to_owned())
}

fn over_0(text: &str, most: f64) -> Result<f64, String> {
    let fits = |value: &f64| *value > 0.0 && *value <= most;
    number(text).filter(fits).ok_or_else(|| format!("must be a number over 0 and at most {most}"))
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok()
}
