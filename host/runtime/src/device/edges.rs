//! The edges of a device: one in force, on which plans are agreed, and others kept ready to take its place.

use super::ranking::Ranking;
use edgent_link::{Client, CodecTime, Digest, EdgeState};
use edgent_planner::{Event, Exchange, LinkEstimate};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// The edges that a device was told of, in its order of preference.
#[derive(Debug)]
pub(super) struct Edges {
    addresses: Vec<String>,
    state: Mutex<State>,
    /// Something may be otherwise than the controllers know.
    pub(super) changed: Notify,
}

#[derive(Debug)]
struct State {
    ranking: Ranking,
    joined: Vec<Option<Joined>>,
    /// The one that the controllers plan with.
    in_force: Option<Joined>,
}

/// An edge that told its profile. Clones are the same connection.
#[derive(Clone, Debug)]
pub(super) struct Joined {
    /// Its place in the order of preference.
    pub(super) place: usize,
    pub(super) address: String,
    pub(super) client: Client,
    /// The version that it was met with.
    pub(super) model: Digest,
    /// What is sent there is written in one of these.
    pub(super) codecs: Vec<CodecTime>,
    way: Arc<Way>,
}

/// A connection and what is known of it.
#[derive(Debug)]
struct Way {
    /// Activations that were sent and not answered yet.
    in_flight: Mutex<HashMap<u64, Sent>>,
    /// How many requests it let wait until their last moment.
    hung: watch::Sender<u64>,
    known: Mutex<Known>,
    /// The last epoch whose plan the edge agreed on while another edge is in force.
    agreed: AtomicU64,
}

/// An activation on its way, or its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) bytes: u64,
    pub(super) since: Instant,
    /// Until then the device waits for it.
    pub(super) last_moment: Instant,
}

#[derive(Clone, Debug)]
struct Known {
    link: LinkEstimate,
    /// What the edge says of the version: [`Event::EdgeConnected`].
    connected: Event,
}

/// What has changed for the controllers.
#[derive(Debug)]
pub(super) struct Changed {
    pub(super) from: Option<Joined>,
    pub(super) to: Option<Joined>,
}

impl Joined {
    pub(super) fn new(
        place: usize,
        address: &str,
        client: &Client,
        model: Digest,
        (connected, codecs): (Event, Vec<CodecTime>),
    ) -> Self {
        let known = Mutex::new(Known { link: LinkEstimate::default(), connected });
        let way = Way { in_flight: Mutex::default(), hung: watch::Sender::default(), known, agreed: AtomicU64::new(0) };
        Self { place, address: address.to_owned(), client: client.clone(), model, codecs, way: Arc::new(way) }
    }

    /// The same connection, met with another version or once more.
    pub(super) fn met_again(&self, model: Digest, (connected, codecs): (Event, Vec<CodecTime>)) -> Self {
        self.known().connected = connected;
        Self { model, codecs, ..self.clone() }
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.way, &other.way)
    }

    pub(super) fn in_flight(&self) -> MutexGuard<'_, HashMap<u64, Sent>> {
        self.way.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been on its way the longest of all that the device no longer waits for: what is sent now would have to
    /// wait behind it.
    pub(super) fn clogged_by(&self) -> Option<Sent> {
        let now = Instant::now();
        let in_flight = self.in_flight();
        in_flight.values().filter(|sent| sent.last_moment <= now).min_by_key(|sent| sent.since).copied()
    }

    pub(super) fn is_clogged(&self) -> bool {
        self.clogged_by().is_some()
    }

    /// Tells all who wait for it that it lets a request wait for too long.
    pub(super) fn hangs(&self) {
        self.way.hung.send_modify(|count| *count += 1);
    }

    /// Changes when it does from now on.
    pub(super) fn hung(&self) -> watch::Receiver<u64> {
        self.way.hung.subscribe()
    }

    pub(super) fn exchanged(&self, exchange: Exchange, now: Duration) {
        self.known().link.exchanged(exchange, now);
    }

    /// What is known of the link to it while it is not in force; then the controllers know.
    pub(super) fn link(&self) -> LinkEstimate {
        self.known().link.clone()
    }

    pub(super) fn keep_link(&self, link: LinkEstimate) {
        self.known().link = link;
    }

    pub(super) fn connected(&self) -> Event {
        self.known().connected.clone()
    }

    pub(super) fn agreed(&self) -> u64 {
        self.way.agreed.load(Ordering::Acquire)
    }

    pub(super) fn agree(&self, epoch: u64) {
        self.way.agreed.fetch_max(epoch, Ordering::AcqRel);
    }

    /// What these segments would take there now, with so many bytes on the way; as far as that is known.
    pub(super) fn takes_us(&self, path: &[usize], bytes: u64) -> Option<f64> {
        let known = self.known();
        let Event::EdgeConnected { segments_us, queue_us, .. } = &known.connected else { return None };
        let work_us: f64 = path.iter().map(|segment| segments_us.get(*segment).copied().unwrap_or(f64::INFINITY)).sum();
        let way_us = known.link.rtt_us() + bytes as f64 * 8e6 / known.link.rate_bps()?;
        Some(work_us + queue_us + way_us).filter(|us| us.is_finite())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.way.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Edges {
    pub(super) fn new(addresses: Vec<String>, seed: u64) -> Self {
        let (ranking, joined) = (Ranking::new(addresses.len(), seed), vec![None; addresses.len()]);
        let state = Mutex::new(State { ranking, joined, in_force: None });
        Self { addresses, state, changed: Notify::new() }
    }

    /// The one in force, as long as it is there.
    pub(super) fn in_force(&self) -> Option<Joined> {
        let state = self.state();
        let in_force = state.in_force.as_ref()?;
        // Its record may be newer.
        state.joined[in_force.place].clone().filter(|joined| joined.is(in_force))
    }

    /// Whom a request under this epoch is sent to: the one in force, or, while it is being left, one that knows the plan.
    pub(super) fn for_request(&self, epoch: u64) -> Option<Joined> {
        self.in_force().or_else(|| self.state().joined.iter().flatten().find(|edge| edge.agreed() == epoch).cloned())
    }

    pub(super) fn is_in_force(&self, edge: &Joined) -> bool {
        self.in_force().is_some_and(|in_force| in_force.is(edge))
    }

    /// The one in this place, if it is there.
    pub(super) fn at(&self, place: usize) -> Option<Joined> {
        self.state().joined[place].clone()
    }

    /// Those that are there and not in force.
    pub(super) fn standing_by(&self) -> Vec<Joined> {
        let state = self.state();
        let is_in_force = |joined: &Joined| state.in_force.as_ref().is_some_and(|in_force| in_force.is(joined));
        state.joined.iter().flatten().filter(|joined| !is_in_force(joined)).cloned().collect()
    }

    /// The next one that a request may be sent to under this epoch.
    pub(super) fn next_after(&self, first: &Joined, epoch: u64) -> Option<Joined> {
        let state = self.state();
        let mut others = state.ranking.next_after(first.place).filter_map(|place| state.joined[place].as_ref());
        others.find(|joined| joined.agreed() == epoch && !joined.is_clogged()).cloned()
    }

    pub(super) fn join(&self, joined: Joined) {
        let mut state = self.state();
        state.ranking.joined(joined.place);
        let place = joined.place;
        state.joined[place] = Some(joined);
        drop(state);
        self.changed.notify_one();
    }

    /// A record that is newer, of a connection that is still there.
    pub(super) fn renew(&self, joined: Joined) {
        let mut state = self.state();
        let place = joined.place;
        if state.joined[place].as_ref().is_some_and(|old| old.is(&joined)) {
            state.joined[place] = Some(joined);
        }
    }

    /// It is gone, or could not be reached. Gives how long to wait before it is tried again.
    pub(super) fn lost(&self, place: usize, now: Duration) -> Duration {
        let mut state = self.state();
        state.joined[place] = None;
        let wait = state.ranking.lost(place, now);
        drop(state);
        self.changed.notify_one();
        wait
    }

    pub(super) fn struck(&self, edge: &Joined, now: Duration) {
        self.state().ranking.struck(edge.place, now);
        self.changed.notify_one();
    }

    pub(super) fn answered(&self, edge: &Joined) {
        self.state().ranking.answered(edge.place);
    }

    /// Decides which one is in force; tells if that is another one, or another connection, than before.
    pub(super) fn choose(&self, now: Duration) -> Option<Changed> {
        let mut state = self.state();
        let place = state.ranking.choose(now);
        let to = place.and_then(|place| state.joined[place].clone());
        let is_same = match (&state.in_force, &to) {
            (Some(from), Some(to)) => from.is(to),
            (from, to) => from.is_none() && to.is_none(),
        };
        let from = std::mem::replace(&mut state.in_force, to.clone());
        (!is_same).then_some(Changed { from, to })
    }

    /// As an operator sees them. `link`: what is known of the link to the one in force.
    pub(super) fn states(&self, link: &LinkEstimate) -> Vec<EdgeState> {
        let state = self.state();
        let of = |(place, address): (usize, &String)| {
            let joined = state.joined[place].as_ref();
            let in_force = joined.is_some() && state.ranking.in_force() == Some(place);
            let link = if in_force { Some(link.clone()) } else { joined.map(Joined::link) };
            EdgeState {
                address: address.clone(),
                connected: joined.is_some(),
                in_force,
                agreed: in_force || joined.is_some_and(|joined| joined.agreed() > 0),
                strikes: state.ranking.strikes(place),
                rate_bps: link.as_ref().and_then(LinkEstimate::rate_bps).unwrap_or(0.0) as u64,
                rtt_us: link.map_or(0.0, |link| link.rtt_us()) as u64,
            }
        };
        self.addresses.iter().enumerate().map(of).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
