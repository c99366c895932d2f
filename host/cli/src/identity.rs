//! Who this machine is for others, and whom it knows: `edgent id`, `edgent pair`, and what every command that talks to
//! a host takes beside its address.

use crate::output::{BadInput, Output};
use anyhow::{Context, Result};
use edgent_link::{
    Credentials, Fingerprint, Hello, Invitation, KnownPeer, Limits, Link, PAIRING_TIME, PAIRING_TRIES, Paired,
    PairingCode, Place, Right, Role, Security, Service, is_peer_name,
};
use edgent_runtime::{IdentityFolder, Known, build_name};
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::{BufRead, IsTerminal, Write};
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long the other side may take to hear that it was paired.
const FAREWELL: Duration = Duration::from_secs(1);

/// What every command that talks to a host takes beside its address.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Connection {
    #[command(flatten)]
    folder: Folder,
    /// Speak TLS on this machine's own addresses, too.
    #[arg(long)]
    tls: bool,
    /// Speak plain bytes with other machines, too: whoever is on the way reads them, and may be the peer.
    #[arg(long)]
    insecure: bool,
}

#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Folder {
    /// Folder with this side's key and those whom it knows; made if need be [default: edgent in the user's
    /// configuration].
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
}

/// Those who are known, and where they stand.
pub(crate) type Acquaintance = (IdentityFolder, Credentials);

impl Connection {
    /// Whether it says one thing of TLS. `name` is what a setting is called where it was given.
    pub(crate) fn check(&self, name: impl Fn(&str) -> String) -> Result<()> {
        match self.tls && self.insecure {
            true => Err(BadInput::error(format!("{} and {} exclude each other", name("tls"), name("insecure")))),
            false => Ok(()),
        }
    }

    /// Whether plain bytes go anywhere.
    pub(crate) fn is_insecure(&self) -> bool {
        self.insecure
    }

    /// How to talk at these addresses: TLS, but with this machine itself.
    pub(crate) fn security(&self, addresses: &[&str]) -> Result<(Security, Option<Acquaintance>)> {
        self.security_if(addresses.iter().any(|address| !is_loopback(address)))
    }

    /// The same at addresses of other machines that are not known yet.
    pub(crate) fn security_elsewhere(&self) -> Result<(Security, Option<Acquaintance>)> {
        self.security_if(true)
    }

    fn security_if(&self, is_elsewhere: bool) -> Result<(Security, Option<Acquaintance>)> {
        self.check(|key| format!("--{key}"))?;
        if self.insecure {
            return Ok((Security::insecure(), None));
        }
        if !self.tls && !is_elsewhere && self.folder.identity.is_none() {
            return Ok((Security::plain_on_loopback(None), None));
        }
        let folder = self.folder.open()?;
        let credentials = folder.credentials().map_err(BadInput::error)?;
        let security = match self.tls {
            true => Security::tls(credentials.clone()),
            false => Security::plain_on_loopback(Some(credentials.clone())),
        };
        Ok((security, Some((folder, credentials))))
    }

    /// A link for a command that talks to these hosts.
    pub(crate) fn link(&self, addresses: &[&str]) -> Result<Link> {
        if let Some(warning) = self.warning(addresses) {
            eprintln!("warning: {warning}");
        }
        Ok(Link::start(self.security(addresses)?.0)?)
    }

    /// What is to be said aloud, if plain bytes leave this machine.
    pub(crate) fn warning(&self, addresses: &[&str]) -> Option<String> {
        let open: Vec<&str> = addresses.iter().copied().filter(|address| !is_loopback(address)).collect();
        (self.insecure && !open.is_empty()).then(|| {
            let addresses = open.join(", ");
            format!(
                "--insecure: {addresses} in plain bytes: anybody on the way reads and changes them, and may be the peer"
            )
        })
    }
}

/// Whether an address is this machine's alone; one that cannot be looked up is not.
pub(crate) fn is_loopback(address: &str) -> bool {
    let found = Place::of(address).address.to_socket_addrs().map(Vec::from_iter).unwrap_or_default();
    !found.is_empty() && found.iter().all(|address| address.ip().to_canonical().is_loopback())
}

impl Folder {
    pub(crate) fn open(&self) -> Result<IdentityFolder> {
        let configured = || {
            let given = std::env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
            let home =
                std::env::var_os("HOME").filter(|dir| !dir.is_empty()).map(|home| Path::new(&home).join(".config"));
            Some(given.or(home)?.join("edgent"))
        };
        let nowhere = || BadInput::error("there is no HOME to keep a key in; say where: --identity DIR");
        Ok(IdentityFolder::at(self.identity.clone().or_else(configured).ok_or_else(nowhere)?))
    }
}

#[derive(clap::Args)]
pub(crate) struct Id {
    #[command(flatten)]
    folder: Folder,
}

#[derive(clap::Args)]
#[group(id = "way", required = true, multiple = false, args = ["address", "listen", "fingerprint"])]
pub(crate) struct Pair {
    /// Address of a host that pairs now (`edgent-host --pair`, `edgent pair --listen`): its code is asked for.
    #[arg(value_name = "ADDR")]
    address: Option<String>,
    /// Wait here for the other side, and print the code that is to be typed there.
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Know the key with this fingerprint (`edgent id` prints it there); to be done on both sides.
    #[arg(long, value_name = "SHA256", requires = "name")]
    fingerprint: Option<Fingerprint>,
    /// The code that the other side printed; asked for if not given.
    #[arg(long, requires = "address")]
    code: Option<PairingCode>,
    /// What the other side is called here; by default what it calls itself.
    #[arg(long)]
    name: Option<String>,
    /// What this side calls itself [default: this machine's name].
    #[arg(long, value_name = "NAME")]
    call_me: Option<String>,
    /// What the other side may do here: ask, push, read, serve. By default, `serve` when connecting to it, `ask,read`
    /// when it connects to here, `ask,read,serve` by its fingerprint.
    #[arg(long, value_name = "RIGHT", value_delimiter = ',', value_parser = right)]
    may: Option<Vec<Right>>,
    /// The models that it may ask about; all, if none is given.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    models: Option<Vec<String>>,
    #[command(flatten)]
    folder: Folder,
}

/// Reads a right's name.
pub(crate) fn right(name: &str) -> Result<Right, String> {
    Right::from_name(name).ok_or_else(|| format!("the rights are {}", Right::ALL.map(Right::name).join(", ")))
}

#[derive(Serialize)]
struct Shown {
    fingerprint: String,
    identity: PathBuf,
    peers: Vec<Peer>,
}

#[derive(Serialize)]
struct Peer {
    name: String,
    fingerprint: String,
    may: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<BTreeSet<String>>,
}

impl From<&KnownPeer> for Peer {
    fn from(KnownPeer { name, fingerprint, may, models }: &KnownPeer) -> Self {
        let may = may.iter().map(|right| right.name()).collect();
        Self { name: name.clone(), fingerprint: fingerprint.to_string(), may, models: models.clone() }
    }
}

pub(crate) fn id(arguments: &Id, output: &Output) -> Result<()> {
    let folder = arguments.folder.open()?;
    let identity = folder.identity().map_err(BadInput::error)?;
    let peers = folder.peers().map_err(BadInput::error)?;
    let shown = Shown {
        fingerprint: identity.fingerprint().to_string(),
        identity: folder.path().to_owned(),
        peers: peers.iter().map(Peer::from).collect(),
    };
    output.line(&shown.fingerprint);
    for Peer { name, fingerprint, may, .. } in &shown.peers {
        output.line(format_args!("knows {name:<16} {fingerprint}  may {}", may.join(", ")));
    }
    output.result(&shown)
}

pub(crate) fn pair(arguments: &Pair, output: &Output) -> Result<()> {
    let folder = arguments.folder.open()?;
    for name in [&arguments.name, &arguments.call_me].into_iter().flatten() {
        if !is_peer_name(name) {
            return Err(BadInput::error(format!("{name:?} is no name: letters, digits, `-`, `_` and `.`, at most 64")));
        }
    }
    if let (Some(fingerprint), Some(name)) = (arguments.fingerprint, &arguments.name) {
        let paired = Paired { name: name.clone(), fingerprint };
        let peer = arguments.grant(&[Right::Ask, Right::Read, Right::Serve]).to(&paired);
        let known = folder.know(peer.clone()).map_err(BadInput::error)?;
        return said(&folder, peer, known, output);
    }
    let credentials = folder.credentials().map_err(BadInput::error)?;
    let link = Link::start(Security::tls(credentials))?;
    let call_me = arguments.call_me.clone().unwrap_or_else(machine_name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (peer, known) = match (&arguments.address, &arguments.listen) {
        (Some(address), _) => {
            let code = arguments.code.clone().map_or_else(ask_for_code, Ok)?;
            let paired = runtime.block_on(link.pair(address, code, &call_me, Limits::default()));
            let peer = arguments.grant(&[Right::Serve]).to(&paired.with_context(|| format!("pairing with {address}"))?);
            let known = folder.know(peer.clone()).map_err(BadInput::error)?;
            (peer, known)
        }
        (None, Some(listen)) => {
            let grant = arguments.grant(&[Right::Ask, Right::Read]);
            runtime.block_on(wait(&link, listen, &folder, grant, call_me, output))?
        }
        (None, None) => return Err(BadInput::error("say with whom: ADDR, --listen ADDR or --fingerprint")),
    };
    said(&folder, peer, known, output)
}

/// What is to be kept of another side, whichever it will be.
#[derive(Clone)]
struct Grant {
    /// In place of what it calls itself.
    name: Option<String>,
    may: BTreeSet<Right>,
    models: Option<BTreeSet<String>>,
}

impl Grant {
    fn to(&self, Paired { name, fingerprint }: &Paired) -> KnownPeer {
        let Grant { name: other, may, models } = self.clone();
        KnownPeer { name: other.unwrap_or_else(|| name.clone()), fingerprint: *fingerprint, may, models }
    }
}

impl Pair {
    /// With these rights, if nothing else is said.
    fn grant(&self, usually: &[Right]) -> Grant {
        Grant {
            name: self.name.clone(),
            may: self.may.as_deref().unwrap_or(usually).iter().copied().collect(),
            models: self.models.clone().map(BTreeSet::from_iter),
        }
    }
}

/// Offers nothing but to pair.
struct Nothing;

impl Service for Nothing {}

/// Waits for the other side, and keeps it.
async fn wait(
    link: &Link,
    listen: &str,
    folder: &IdentityFolder,
    grant: Grant,
    name: String,
    output: &Output,
) -> Result<(KnownPeer, Known)> {
    let hello = Hello::new(Role::Tool, build_name());
    let server = link.serve(listen, hello, Limits::default(), Arc::new(Nothing)).await?;
    let code = PairingCode::random()?;
    // Not on stdout, which may be read by a program.
    output.progress(invitation(&code, &server.local_addr().to_string()));
    let kept = Arc::new(Mutex::new(None));
    let keep = {
        let (folder, kept) = (folder.clone(), Arc::clone(&kept));
        move |paired: &Paired| {
            let peer = grant.to(paired);
            let known = folder.know(peer.clone()).map_err(|e| e.to_string())?;
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some((peer, known));
            Ok(())
        }
    };
    let (tries, lasts, keep) = (PAIRING_TRIES, PAIRING_TIME, Arc::new(keep));
    server.invite(Invitation { code, name, tries, lasts, keep }).await?;
    // The other side is still being told.
    server.shutdown(FAREWELL).await;
    let kept = kept.lock().unwrap_or_else(PoisonError::into_inner).take();
    kept.context("nobody was kept")
}

/// For whoever carries the code to the other machine.
pub(crate) fn invitation(code: &PairingCode, address: &str) -> String {
    let minutes = PAIRING_TIME.as_secs() / 60;
    format!(
        "pairing code {code} for {minutes} minutes and {PAIRING_TRIES} tries; on the other machine: edgent pair {address}"
    )
}

fn said(folder: &IdentityFolder, peer: KnownPeer, known: Known, output: &Output) -> Result<()> {
    let Peer { name, fingerprint, may, .. } = Peer::from(&peer);
    let name = if let Known::Changed(before) = known { before } else { name };
    output.line(format_args!("knows {name} {fingerprint}"));
    let may = if may.is_empty() { "nothing".to_owned() } else { may.join(", ") };
    output.line(format_args!("it may {may} here (peers.toml in {})", folder.path().display()));
    output.line("hosts that run with this folder look at it again on SIGHUP");
    output.result(&Peer { name, ..Peer::from(&peer) })
}

/// From the terminal, or whatever stands in for it.
fn ask_for_code() -> Result<PairingCode> {
    if std::io::stdin().is_terminal() {
        eprint!("Code that the other side shows: ");
        std::io::stderr().flush()?;
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("reading the code")?;
    line.parse().map_err(BadInput::error)
}

/// What this machine is called, as far as that is a name.
pub(crate) fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if is_peer_name(name) { name.to_owned() } else { "edgent".to_owned() }
}
