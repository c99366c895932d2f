//! In place of OpenTelemetry, in a program that was built without it: nobody is told anything.

use super::{ENDPOINT_VARIABLES, Kind, TellingError, Value};
use edgent_link::{Role, TraceParent};

/// Spans are told until this is ended; which they cannot be here.
#[derive(Debug)]
pub enum Telling {}

impl Telling {
    /// Says that nothing will be told, where the environment asks for it.
    pub fn start(_role: Role) -> Result<Option<Self>, TellingError> {
        if let Some(variable) =
            ENDPOINT_VARIABLES.iter().find(|name| std::env::var_os(name).is_some_and(|said| !said.is_empty()))
        {
            tracing::warn!(
                "{variable} is set, but this program was built without the feature 'otel': no spans are told"
            );
        }
        Ok(None)
    }

    /// Never called.
    pub async fn end(self) {
        match self {}
    }
}

/// Holds the place of its parent.
#[derive(Debug)]
pub(crate) struct Span(Option<TraceParent>);

impl Span {
    pub(crate) fn start(_name: &'static str, _kind: Kind, of: Option<TraceParent>) -> Self {
        Self(of)
    }

    pub(crate) fn context(&self) -> Option<TraceParent> {
        self.0
    }

    pub(crate) fn tell<const N: usize>(&mut self, _attributes: impl FnOnce() -> [(&'static str, Value); N]) {}

    pub(crate) fn fail(&mut self, _why: &str) {}

    pub(crate) fn end(self) {}
}
