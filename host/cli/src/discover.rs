//! `edgent discover`: who announces itself on the local network.

use crate::bounds;
use crate::identity::Folder;
use crate::output::{BadInput, Output};
use anyhow::Result;
use edgent_link::{KnownPeer, Right};
use edgent_runtime::{Discovery, Found};
use serde::Serialize;
use std::thread;
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long to listen.
    #[arg(long, value_name = "S", value_parser = bounds::listening_s, allow_negative_numbers = true, default_value_t = 3.0)]
    for_s: f64,
    #[command(flatten)]
    folder: Folder,
}

#[derive(Serialize)]
struct Report {
    found: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    /// What it calls itself.
    name: String,
    addresses: Vec<String>,
    fingerprint: String,
    /// The peer whose key that is; that the host has it, nobody has looked.
    known_as: Option<String>,
    may_serve: bool,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let peers = arguments.folder.open()?.peers().map_err(BadInput::error)?;
    let discovery = Discovery::start()?;
    output.progress(format_args!("listening for {} s", arguments.for_s));
    thread::sleep(Duration::from_secs_f64(arguments.for_s));
    let row = |Found { name, key, addresses }: Found| {
        let peer: Option<&KnownPeer> = peers.find(&key).map(AsRef::as_ref);
        Row {
            name,
            addresses: addresses.iter().map(ToString::to_string).collect(),
            fingerprint: key.to_string(),
            known_as: peer.map(|peer| peer.name.clone()),
            may_serve: peer.is_some_and(|peer| peer.may.contains(&Right::Serve)),
        }
    };
    let report = Report { found: discovery.found().into_iter().map(row).collect() };
    for Row { name, addresses, fingerprint, known_as, may_serve } in &report.found {
        let known = match (known_as, may_serve) {
            (Some(peer), true) => format!("known as '{peer}', may serve"),
            (Some(peer), false) => format!("known as '{peer}', may not serve"),
            (None, _) => "not known: edgent pair".to_owned(),
        };
        output.line(format_args!("{name:<20} {:<24} {fingerprint}  {known}", addresses.join(" ")));
    }
    if report.found.is_empty() {
        output.line("nobody announces itself here (edgent-host --announce)");
    }
    output.result(&report)
}
