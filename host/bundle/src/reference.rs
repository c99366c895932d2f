//! How people name a bundle in a store.

use crate::Digest;
use crate::error::ReferenceError;
use std::fmt;
use std::str::FromStr;

/// `NAME` (its current version), `NAME:VERSION`, or `@sha256:…`, the bundle's own digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// The version of a model that is in force.
    Current(String),
    /// One version of a model; versions count from 1.
    Version(String, u64),
    /// The bundle whose manifest has this digest.
    Digest(Digest),
}

const NAME_BYTES_MAX: usize = 128;

/// Whether `name` can stand in a reference: letters and digits with single `-`, `.` or `_` between them. That is
/// a subset of what OCI allows in `org.opencontainers.image.ref.name`.
pub(crate) fn check_name(name: &str) -> Result<(), ReferenceError> {
    let words = name.split(['-', '.', '_']);
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric());
    if name.len() > NAME_BYTES_MAX || !words.into_iter().all(is_word) {
        return Err(ReferenceError(name.chars().take(NAME_BYTES_MAX).collect()));
    }
    Ok(())
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let bad = || ReferenceError(text.chars().take(NAME_BYTES_MAX).collect());
        if let Some(digest) = text.strip_prefix('@').or(text.starts_with("sha256:").then_some(text)) {
            return digest.parse().map(Self::Digest).map_err(|_| bad());
        }
        let Some((name, version)) = text.split_once(':') else {
            check_name(text)?;
            return Ok(Self::Current(text.to_owned()));
        };
        check_name(name)?;
        let number = version.parse().ok().filter(|number: &u64| *number > 0 && number.to_string() == version);
        number.map(|number| Self::Version(name.to_owned(), number)).ok_or_else(bad)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current(name) => f.write_str(name),
            Self::Version(name, version) => write!(f, "{name}:{version}"),
            Self::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_they_are_written() {
        let digest = Digest::of(b"abc");
        for good in ["model", "Model-2.x_y", "model:1", "model:18446744073709551615", &format!("@{digest}")] {
            assert_eq!(good.parse::<Reference>().unwrap().to_string(), good);
        }
        assert_eq!(digest.to_string().parse::<Reference>().unwrap(), Reference::Digest(digest));
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        let bad =
            ["", ":1", "a:", "a:0", "a:01", "a:+1", "a:-1", "a:1:2", "a..b", "-a", "a-", "a b", "../x", "a/b", "@a"];
        for bad in bad.into_iter().chain(["sha256:0", "a:18446744073709551616", "\u{e4}", &long]) {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
