//! Where somebody is to be found, and who it must be.

/// An address (`host:port`) and, if it was given as `NAME@host:port`, the name of the one peer that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The only peer that is spoken to there, by its name among those that are known here.
    pub name: Option<&'a str>,
    /// Where it is.
    pub address: &'a str,
}

impl<'a> Place<'a> {
    /// Reads what a user wrote. No host's name has an `@`.
    pub fn of(text: &'a str) -> Self {
        match text.split_once('@') {
            Some((name, address)) => Place { name: Some(name), address },
            None => Place { name: None, address: text },
        }
    }
}
