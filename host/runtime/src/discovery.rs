//! Edges that say on the local network where they are: DNS-SD over multicast DNS, `_edgent._tcp`.
//!
//! Anybody there may say anything, so what is found is a hint and no more. It says where a host with some key may be; that
//! the host has the key is seen when it is connected to, over TLS, as at any other address. What is found is therefore of
//! use only for peers that are known already: an edge's place is `NAME@discovered`, and [`Whereabouts`] says what that is
//! at the moment.

use edgent_link::{EDGES_MAX, Fingerprint, KnownPeer, Place, Right};
use mdns_sd::{IfKind, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

const SERVICE: &str = "_edgent._tcp.local.";
/// Where the fingerprint stands.
const KEY: &str = "key";
/// What stands in place of an address that is to be found.
const DISCOVERED: &str = "discovered";

/// Announcements that are kept; of more, the first ones.
const FOUND_MAX: usize = 64;
/// Addresses that are kept of each.
const ADDRESSES_MAX: usize = 8;
/// Of an announcement's name; DNS allows no more.
const NAME_BYTES_MAX: usize = 63;

/// Why nothing can be announced or found.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// No socket, or no thread.
    #[error("multicast DNS on this machine: {0}")]
    Multicast(#[from] mdns_sd::Error),
    /// See the message.
    #[error("a thread for multicast DNS did not start: {0}")]
    Thread(#[from] io::Error),
    /// Without one, nobody could tell whether it is the right one.
    #[error("a host without a key of its own can neither be announced nor find others: start it with TLS")]
    NoKey,
}

/// A host that announces itself, until this is dropped.
pub struct Announcement(ServiceDaemon);

impl std::fmt::Debug for Announcement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Announcement")
    }
}

impl Announcement {
    /// Says that the host with this key listens here; where it listens at all of a machine's addresses, at each.
    pub fn start(name: &str, address: SocketAddr, key: Fingerprint) -> Result<Self, DiscoveryError> {
        let key = key.to_string();
        // Not the machine's own name: who else answers for that is none of our business.
        let host =
            format!("edgent-{}.local.", key.rsplit(':').next().map_or("", |digits| &digits[..digits.len().min(12)]));
        let properties = [(KEY, key.as_str())];
        let everywhere = address.ip().is_unspecified();
        let mut info = if everywhere {
            ServiceInfo::new(SERVICE, name, &host, (), address.port(), &properties[..])?.enable_addr_auto()
        } else {
            ServiceInfo::new(SERVICE, name, &host, address.ip(), address.port(), &properties[..])?
        };
        let daemon = daemon()?;
        if !everywhere {
            info.set_interfaces(vec![IfKind::Addr(address.ip())]);
        }
        daemon.register(info)?;
        Ok(Self(daemon))
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        // Says goodbye, too. If that fails, others notice when what it said is out of date.
        let _ = self.0.shutdown();
    }
}

/// What is announced on the local network, followed until this is dropped.
pub struct Discovery {
    daemon: ServiceDaemon,
    found: Arc<Mutex<HashMap<String, Found>>>,
}

/// An announcement; nobody vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it calls itself.
    pub name: String,
    /// Whose key the host says to have.
    pub key: Fingerprint,
    /// Where it says to be.
    pub addresses: Vec<SocketAddr>,
}

impl Discovery {
    /// Begins to listen and to ask.
    pub fn start() -> Result<Self, DiscoveryError> {
        let daemon = daemon()?;
        let events = daemon.browse(SERVICE)?;
        let found = Arc::<Mutex<HashMap<String, Found>>>::default();
        let kept = Arc::clone(&found);
        let follow = move || {
            while let Ok(event) = events.recv() {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    ServiceEvent::ServiceResolved(service) => keep(&mut kept, service.fullname.clone(), read(&service)),
                    ServiceEvent::ServiceRemoved(_, fullname) => drop(kept.remove(&fullname)),
                    _ => {}
                }
            }
        };
        thread::Builder::new().name("edgent-discovery".to_owned()).spawn(follow)?;
        Ok(Self { daemon, found })
    }

    /// What is announced now, by name.
    pub fn found(&self) -> Vec<Found> {
        let mut found: Vec<Found> = self.lock().values().cloned().collect();
        found.sort_by(|a, b| (&a.name, a.key).cmp(&(&b.name, b.key)));
        found
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        // Its thread ends with it.
        let _ = self.daemon.shutdown();
    }
}

/// Where a device's edges are: as it was told, or as they announce themselves.
#[derive(Default)]
pub(crate) struct Whereabouts {
    discovery: Option<Discovery>,
    /// Peers that are looked for, by name.
    keys: BTreeMap<String, Fingerprint>,
    tries: AtomicUsize,
}

impl Whereabouts {
    /// Looks for all known peers that may serve, and gives their places, by their names.
    pub(crate) fn of<'a>(peers: impl Iterator<Item = &'a KnownPeer>) -> Result<(Self, Vec<String>), DiscoveryError> {
        let may_serve = peers.filter(|peer| peer.may.contains(&Right::Serve));
        let keys: BTreeMap<_, _> = may_serve.map(|peer| (peer.name.clone(), peer.fingerprint)).collect();
        let places = keys.keys().map(|name| format!("{name}@{DISCOVERED}")).collect();
        Ok((Self { discovery: Some(Discovery::start()?), keys, tries: AtomicUsize::new(0) }, places))
    }

    /// The address that a place means now; each time another one, where several are announced.
    pub(crate) fn now(&self, place: &str) -> io::Result<String> {
        let Place { name: Some(name), address: DISCOVERED } = Place::of(place) else { return Ok(place.to_owned()) };
        let found = self.discovery.as_ref().map_or_else(Vec::new, Discovery::found);
        let is_meant = |found: &Found| self.keys.get(name) == Some(&found.key);
        let addresses: Vec<SocketAddr> = found.into_iter().filter(is_meant).flat_map(|found| found.addresses).collect();
        let tried = self.tries.fetch_add(1, Ordering::Relaxed);
        let address = tried.checked_rem(addresses.len()).map(|which| addresses[which]);
        let unheard =
            || io::Error::new(io::ErrorKind::NotFound, "nobody announces itself by its key on the local network");
        Ok(format!("{name}@{}", address.ok_or_else(unheard)?))
    }
}

impl std::fmt::Debug for Whereabouts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Whereabouts").field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// Adds places to those that a device was given, but for peers that it was given itself.
pub(crate) fn join(mut given: Vec<String>, found: Vec<String>) -> Vec<String> {
    let name = |place: &String| Place::of(place).name.map(str::to_owned);
    let named: Vec<_> = given.iter().filter_map(name).collect();
    given.extend(found.into_iter().filter(|place| name(place).is_none_or(|name| !named.contains(&name))));
    given.truncate(EDGES_MAX);
    given
}

/// Only where others are: what is said on loopback addresses, no other machine hears, and plain bytes are spoken there.
fn daemon() -> Result<ServiceDaemon, DiscoveryError> {
    let daemon = ServiceDaemon::new()?;
    daemon.disable_interface(vec![IfKind::LoopbackV4, IfKind::LoopbackV6])?;
    Ok(daemon)
}

fn read(service: &ResolvedService) -> Option<Found> {
    let addresses = service.get_addresses().iter().map(mdns_sd::ScopedIp::to_ip_addr);
    let key = service.get_property_val_str(KEY)?;
    announced(&service.fullname, addresses, service.get_port(), key)
}

/// What a stranger says, if it can be meant.
fn announced(fullname: &str, addresses: impl Iterator<Item = IpAddr>, port: u16, key: &str) -> Option<Found> {
    let name = fullname.strip_suffix(SERVICE)?.strip_suffix('.')?;
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    let name = name[..name.floor_char_boundary(NAME_BYTES_MAX)].to_owned();
    let mut addresses: Vec<SocketAddr> =
        addresses.filter(|ip| is_elsewhere(*ip)).map(|ip| SocketAddr::new(ip, port)).collect();
    // The same each time: they come from a set.
    addresses.sort_unstable();
    addresses.truncate(ADDRESSES_MAX);
    let key = key.parse().ok()?;
    (port != 0 && !addresses.is_empty()).then_some(Found { name, key, addresses })
}

/// Whether an address can be another machine's. Those of IPv6 that mean something on one interface alone are left out.
fn is_elsewhere(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let is_of_interface = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_of_interface)
}

fn keep(kept: &mut HashMap<String, Found>, fullname: String, found: Option<Found>) {
    match found {
        Some(found) if kept.contains_key(&fullname) || kept.len() < FOUND_MAX => _ = kept.insert(fullname, found),
        Some(_) => {}
        // It was something else before.
        None => _ = kept.remove(&fullname),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A_KEY: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn said(name: &str, addresses: &[&str], port: u16, key: &str) -> Option<Found> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        announced(name, addresses.into_iter(), port, key)
    }

    #[test]
    fn what_can_be_meant_is_kept_and_nothing_else() {
        let found = said("laptop._edgent._tcp.local.", &["192.168.1.10", "fd00::1"], 7400, A_KEY).unwrap();
        assert_eq!((found.name.as_str(), found.key.to_string().as_str()), ("laptop", A_KEY));
        assert_eq!(found.addresses, ["192.168.1.10:7400".parse().unwrap(), "[fd00::1]:7400".parse().unwrap()]);
        // At these, plain bytes might be spoken, or nobody is meant.
        let nowhere = [
            "127.0.0.1",
            "127.1.2.3",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
            "224.0.0.251",
            "ff02::fb",
            "fe80::1",
        ];
        assert_eq!(said("x._edgent._tcp.local.", &nowhere, 7400, A_KEY), None);
        for ip in nowhere {
            let found = said("x._edgent._tcp.local.", &[ip, "10.0.0.1"], 7400, A_KEY).unwrap();
            assert_eq!(found.addresses, ["10.0.0.1:7400".parse().unwrap()], "{ip}");
        }
        let other = ["laptop._http._tcp.local.", "_edgent._tcp.local.", ""];
        assert!(other.iter().all(|name| said(name, &["10.0.0.1"], 7400, A_KEY).is_none()));
        for key in ["", "sha256:", "sha256:0011", &A_KEY.replace("sha256", "md5"), &A_KEY.replace('f', "g")] {
            assert_eq!(said("x._edgent._tcp.local.", &["10.0.0.1"], 7400, key), None, "{key}");
        }
        assert_eq!(said("x._edgent._tcp.local.", &["10.0.0.1"], 0, A_KEY), None);
        assert_eq!(said("x._edgent._tcp.local.", &[], 7400, A_KEY), None);
        let long = format!("{}\x1b[2J._edgent._tcp.local.", "é".repeat(100));
        let name = said(&long, &["10.0.0.1"], 7400, A_KEY).unwrap().name;
        assert_eq!(name, "é".repeat(NAME_BYTES_MAX / 2));
    }

    #[test]
    fn only_so_much_is_kept() {
        let many: Vec<String> = (0..100).map(|last| format!("10.0.0.{last}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let found = said("x._edgent._tcp.local.", &many, 7400, A_KEY);
        assert_eq!(found.as_ref().unwrap().addresses.len(), ADDRESSES_MAX);
        let mut kept = HashMap::new();
        (0..1_000).for_each(|number| keep(&mut kept, format!("{number}._edgent._tcp.local."), found.clone()));
        assert_eq!(kept.len(), FOUND_MAX);
        let other = said("x._edgent._tcp.local.", &["10.0.0.1"], 1, A_KEY);
        keep(&mut kept, "0._edgent._tcp.local.".to_owned(), other.clone());
        assert_eq!(kept.get("0._edgent._tcp.local."), other.as_ref(), "what is known may change");
        keep(&mut kept, "0._edgent._tcp.local.".to_owned(), None);
        assert_eq!(kept.len(), FOUND_MAX - 1, "and become something else");
    }

    #[test]
    fn what_is_found_comes_behind_what_was_given() {
        let texts = |places: &[&str]| places.iter().map(|place| (*place).to_owned()).collect::<Vec<_>>();
        let given = texts(&["10.0.0.1:7400", "laptop@10.0.0.2:7400"]);
        let joined = join(given, texts(&["desktop@discovered", "laptop@discovered"]));
        assert_eq!(joined, ["10.0.0.1:7400", "laptop@10.0.0.2:7400", "desktop@discovered"]);
        assert_eq!(join(Vec::new(), vec!["a@discovered".to_owned(); 100]).len(), EDGES_MAX);
        let nowhere = Whereabouts::default();
        assert_eq!(nowhere.now("10.0.0.1:7400").unwrap(), "10.0.0.1:7400");
        assert_eq!(nowhere.now("laptop@10.0.0.1:7400").unwrap(), "laptop@10.0.0.1:7400");
        assert_eq!(nowhere.now("laptop@discovered").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
