//! Hosts that know each other's keys talk; nobody else gets past TLS, and nobody does what it may not.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use edgent_link::*;
use futures::stream::{FuturesUnordered, StreamExt};
use support::*;

fn identity() -> Identity {
    Identity::read(&Identity::generate().unwrap()).unwrap()
}

/// Somebody's key, and what it may do.
fn knowing(who: &Identity, may: &[Right], models: Option<&[&str]>) -> Peers {
    let mut peers = Peers::default();
    peers
        .add(KnownPeer {
            name: "other".to_owned(),
            fingerprint: who.fingerprint(),
            may: may.iter().copied().collect(),
            models: models.map(|models| models.iter().map(|name| (*name).to_owned()).collect()),
        })
        .unwrap();
    peers
}

/// Answers everything, and remembers who was turned away.
#[derive(Default)]
struct Willing(Arc<Mutex<Vec<String>>>);

impl Service for Willing {
    fn model_name(&self, which: Which<'_>) -> Option<String> {
        match which {
            Which::Digest(digest) => (digest == Digest([5; 32])).then(|| "alex".to_owned()),
            Which::Name("") => Some("alex".to_owned()),
            Which::Name(name) => Some(name.to_owned()),
        }
    }

    fn turned_away(&self, _: SocketAddr, why: &str) {
        self.0.lock().unwrap().push(why.to_owned());
    }

    fn describe(&self, reply: Reply<Description>) {
        let model = |name: &str| ModelDescription {
            name: name.to_owned(),
            digest: Digest([5; 32]),
            input_type: ElementType::U8,
            input_dims: vec![],
            classes: vec![],
            exits: vec![],
            inputs: vec![],
            computed: vec![],
        };
        reply.send(Ok(Description { models: ["alex", "vad"].map(model).into() }));
    }

    fn install_plan(&self, _: Plan, reply: Reply<()>) {
        reply.send(Ok(()));
    }

    fn infer(&self, request: InferRequest, reply: Reply<InferReply>) {
        reply.send(Ok(echo(request)));
    }

    fn stats(&self, reply: Reply<Stats>) {
        reply.send(Ok(Stats::default()));
    }

    fn versions(&self, reply: Reply<Vec<Version>>) {
        reply.send(Ok(vec![]));
    }

    fn offer(&self, _: Bytes, reply: Reply<Vec<BlobName>>) {
        reply.send(Ok(vec![]));
    }

    fn retire(&self, _: Digest, reply: Reply<()>) {
        reply.send(Ok(()));
    }
}

/// A server that knows one peer, and that peer.
struct Pair {
    server: Server,
    address: String,
    /// The server's.
    there: Credentials,
    here: Credentials,
    link: Link,
    turned_away: Arc<Mutex<Vec<String>>>,
}

async fn pair(may: &[Right], models: Option<&[&str]>, limits: Limits) -> Pair {
    let (one, other) = (identity(), identity());
    let (of_one, of_other) = (knowing(&other, may, models), knowing(&one, &[Right::Serve], None));
    let (there, here) = (Credentials::new(one, of_one), Credentials::new(other, of_other));
    let willing = Willing::default();
    let turned_away = willing.0.clone();
    let link = Link::start(Security::tls(there.clone())).unwrap();
    let server = link.serve("127.0.0.1:0", edge(), limits, Arc::new(willing)).await.unwrap();
    let address = server.local_addr().to_string();
    let link = Link::start(Security::tls(here.clone())).unwrap();
    Pair { server, address, there, here, link, turned_away }
}

async fn try_as(credentials: Credentials, address: &str) -> Result<Client, LinkError> {
    Link::start(Security::tls(credentials)).unwrap().connect(address, device(), Limits::default()).await
}

#[tokio::test]
async fn who_is_known_talks_and_nothing_of_it_can_be_read_on_the_way() {
    let pair = pair(&[Right::Ask], None, Limits::default()).await;
    assert!(pair.server.is_tls());
    let relay = Relay::to(pair.server.local_addr());
    let client = connect(&pair.link, &relay.address).await;
    let secret = InferRequest {
        activation: Activation { bytes: vec![b's'; 40_000].into(), ..activation(40_000) },
        ..request(1, 0)
    };
    assert_eq!(client.infer(secret.clone()).await.unwrap(), echo(secret));
    let said = relay.said();
    assert!(said.len() > 40_000);
    assert!(!said.windows(16).any(|window| window == [b's'; 16]), "the activation went plain");
}

#[tokio::test]
async fn who_is_not_known_is_told_what_to_do() {
    let pair = pair(&[Right::Ask], None, Limits::default()).await;
    // Knows the server, and is not known by it.
    let stranger = identity();
    let key = stranger.fingerprint();
    let knows = Credentials::new(stranger, knowing(pair.there.identity(), &[Right::Serve], None));
    let refused = try_as(knows, &pair.address).await.unwrap_err();
    assert!(matches!(&refused, LinkError::UnknownThere { key: told, .. } if *told == key), "{refused}");
    assert!(refused.to_string().contains("edgent pair") && refused.to_string().contains(&pair.address), "{refused}");
    // The server's log knows whom to ask about, once it has parted from them.
    let logs = || pair.turned_away.lock().unwrap().iter().any(|why| why.contains(&key.to_string()));
    let since = Instant::now();
    while !logs() {
        assert!(since.elapsed() < TOO_LONG, "{:?}", pair.turned_away.lock().unwrap());
        tokio::task::yield_now().await;
    }
    // The one that is known does not notice.
    connect(&pair.link, &pair.address).await.infer(request(1, 1)).await.unwrap();
}

/// Somebody stands where the server should, and has TLS of its own.
#[tokio::test]
async fn another_key_than_the_known_one_is_not_spoken_to() {
    let pair = pair(&[Right::Ask], None, Limits::default()).await;
    let between = identity();
    let key = between.fingerprint();
    // It would take anybody's word.
    let takes_all = Credentials::new(between, knowing(pair.here.identity(), &Right::ALL, None));
    let link = Link::start(Security::tls(takes_all)).unwrap();
    let (hold, held) = Hold::new();
    let false_server = link.serve("127.0.0.1:0", edge(), Limits::default(), Arc::new(hold)).await.unwrap();
    let address = false_server.local_addr().to_string();
    let refused = pair.link.connect(&address, device(), Limits::default()).await.unwrap_err();
    assert!(matches!(&refused, LinkError::Stranger { key: told, .. } if *told == key), "{refused}");
    for part in ["edgent id", "edgent pair", &key.to_string()] {
        assert!(refused.to_string().contains(part), "{refused}");
    }
    assert!(held.try_recv().is_err());
    // Known, but not as one that answers.
    pair.here.replace(knowing(pair.there.identity(), &[Right::Ask, Right::Push, Right::Read], None));
    let refused = pair.link.connect(&pair.address, device(), Limits::default()).await.unwrap_err();
    assert!(matches!(refused, LinkError::MayNotServe { .. }), "{refused}");
    assert!(refused.to_string().contains("`serve`"), "{refused}");
}

/// A fault, and the words of it.
fn denied<T: std::fmt::Debug>(outcome: Result<T, LinkError>, right: &str) {
    match outcome {
        Err(LinkError::Fault(Fault { kind: FaultKind::Denied, message })) => {
            assert!(message.contains(right) && message.contains("peers.toml"), "{message}");
        }
        other => panic!("not denied: {other:?}"),
    }
}

#[tokio::test]
async fn each_right_is_missed_by_name_and_can_be_given_while_connected() {
    let pair = pair(&[], None, Limits::default()).await;
    let client = connect(&pair.link, &pair.address).await;
    denied(client.infer(request(1, 100_000)).await, "`ask`");
    denied(client.describe().await, "`ask`");
    denied(client.versions().await, "`read`");
    denied(client.stats().await, "`read`");
    denied(client.offer(Bytes::from_static(b"{}")).await, "`push`");
    denied(client.retire(Digest([5; 32])).await, "`push`");
    client.probe(10, 10).await.unwrap();

    let may = |rights: &[Right]| pair.there.replace(knowing(pair.here.identity(), rights, None));
    may(&[Right::Ask]);
    client.infer(request(1, 100_000)).await.unwrap();
    client.describe().await.unwrap();
    denied(client.stats().await, "`read`");
    may(&[Right::Read]);
    client.stats().await.unwrap();
    denied(client.infer(request(1, 1)).await, "`ask`");
    may(&[Right::Push]);
    client.offer(Bytes::from_static(b"{}")).await.unwrap();
    denied(client.describe().await, "`ask`");
}

#[tokio::test]
async fn who_was_given_a_model_asks_about_no_other_and_sees_no_other() {
    let pair = pair(&[Right::Ask], Some(&["alex"]), Limits::default()).await;
    let client = connect(&pair.link, &pair.address).await;
    client.infer(request(1, 1)).await.unwrap();
    let other = Digest([6; 32]);
    denied(client.infer(InferRequest { model: other, ..request(1, 1) }).await, "`models`");
    let plan = Plan { epoch: 1, model: other, exit: 0, cut: 0, direction: Direction::DeviceFirst, codec: Codec::Raw };
    denied(client.install_plan(plan).await, "`models`");
    client.install_plan(Plan { model: Digest([5; 32]), ..plan }).await.unwrap();
    denied(client.profile(other).await, "`models`");
    let ask = |model: &str| AskRequest {
        id: 1,
        model: model.to_owned(),
        deadline_us: 0,
        accuracy_floor: 0.0,
        input: activation(1),
        beside: vec![],
        trace: None,
    };
    denied(client.ask(ask("vad")).await, "'vad'");
    // Let through, to a service that does not do this.
    for model in ["", "alex"] {
        let outcome = client.ask(ask(model)).await;
        assert!(
            matches!(&outcome, Err(LinkError::Fault(fault)) if fault.kind == FaultKind::Unsupported),
            "{outcome:?}"
        );
    }
    let names: Vec<String> = client.describe().await.unwrap().models.into_iter().map(|model| model.name).collect();
    assert_eq!(names, ["alex"]);
}

#[tokio::test]
async fn who_is_struck_off_is_cut_off_on_either_side() {
    let pair = pair(&[Right::Ask], None, Limits::default()).await;
    let client = connect(&pair.link, &pair.address).await;
    pair.there.replace(Peers::default());
    let why = client.closed().await.to_string();
    assert!(why.starts_with("connection lost"), "{why}");
    assert!(matches!(try_as(pair.here.clone(), &pair.address).await, Err(LinkError::UnknownThere { .. })));

    pair.there.replace(knowing(pair.here.identity(), &[Right::Ask], None));
    let client = connect(&pair.link, &pair.address).await;
    pair.here.replace(Peers::default());
    let why = client.closed().await.to_string();
    assert!(why.contains("not known here any more"), "{why}");
}

#[tokio::test]
async fn plain_bytes_and_tls_do_not_mix_and_say_so() {
    let pair = pair(&[Right::Ask], None, Limits::default()).await;
    let plain = Link::start(Security::insecure()).unwrap();
    let told = plain.connect(&pair.address, device(), Limits::default()).await.unwrap_err().to_string();
    assert!(told.contains("TLS") && told.contains("--insecure"), "{told}");

    let server = plain.serve("127.0.0.1:0", edge(), Limits::default(), Arc::new(Echo)).await.unwrap();
    let address = server.local_addr().to_string();
    let told = pair.link.connect(&address, device(), Limits::default()).await.unwrap_err();
    assert!(matches!(told, LinkError::NoTls { .. }) && told.to_string().contains("--insecure"), "{told}");
    // Both live.
    connect(&plain, &address).await.infer(request(1, 1)).await.unwrap();
    connect(&pair.link, &pair.address).await.infer(request(1, 1)).await.unwrap();
    let told = plain.pair(&pair.address, "00000000".parse().unwrap(), "x", Limits::default()).await;
    assert!(matches!(told, Err(PairError::Link(LinkError::NoKey { .. }))), "{told:?}");
}

#[tokio::test]
async fn without_a_key_nothing_leaves_the_machine() {
    let link = Link::start(Security::plain_on_loopback(None)).unwrap();
    let refused = link.serve("0.0.0.0:0", edge(), Limits::default(), Arc::new(Echo)).await.unwrap_err();
    assert!(matches!(refused, LinkError::NoKey { .. }), "{refused}");
    assert!(refused.to_string().contains("--identity"), "{refused}");
}

/// Passes on what the server says so slowly that a TLS record takes longer than the client lets a dead one live.
fn slow_relay(server: SocketAddr) -> String {
    const PIECE_BYTES: usize = 128;
    const PAUSE: Duration = Duration::from_millis(10);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = TcpStream::connect(server).unwrap();
        let (mut said, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut said, &mut to_server));
        let mut piece = [0; PIECE_BYTES];
        while let Ok(bytes @ 1..) = server.read(&mut piece) {
            thread::sleep(PAUSE);
            if client.write_all(&piece[..bytes]).is_err() {
                break;
            }
        }
    });
    address
}

/// Bytes of a record that is not whole yet are a sign of life.
#[tokio::test]
async fn a_reply_that_comes_slowly_is_waited_for() {
    let pair = pair(&[Right::Ask], None, Limits::default()).await;
    let address = slow_relay(pair.server.local_addr());
    // Given up after 0.9 s without life; a record of 16 KiB takes 1.3 s.
    let limits = Limits { heartbeat: Duration::from_millis(300), heartbeat_strikes: 3, ..Limits::default() };
    let client = pair.link.connect(&address, device(), limits).await.unwrap();
    assert_eq!(client.infer(request(1, 20_000)).await.unwrap(), echo(request(1, 20_000)));
}

/// Half of a handshake, cut at every byte, by one who goes and by one who stays.
#[tokio::test]
async fn half_a_handshake_is_no_connection() {
    let brief = Duration::from_secs(1);
    let limits = Limits { first_byte: brief, handshake: 2 * brief, ..Limits::default() };
    let pair = pair(&[Right::Ask], None, limits).await;
    let relay = Relay::to(pair.server.local_addr());
    connect(&pair.link, &relay.address).await.probe(0, 0).await.unwrap();
    let said = relay.said();
    for end in (0..said.len()).step_by(7) {
        let mut peer = raw(&pair.address);
        peer.write_all(&said[..end]).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        expect_close(&mut peer);
    }
    // Those who stay: silent, half way through a hello, and after one that was another session's.
    let start = Instant::now();
    let stay: Vec<_> = [0, 1, 100, said.len()]
        .map(|end| {
            let mut peer = raw(&pair.address);
            peer.write_all(&said[..end]).unwrap();
            tokio::task::spawn_blocking(move || expect_close(&mut peer))
        })
        .into();
    for peer in stay {
        peer.await.unwrap();
    }
    assert!(start.elapsed() < TOO_LONG, "they were closed");
    connect(&pair.link, &pair.address).await.infer(request(1, 1)).await.unwrap();
}

/// Silent ones take up places like any other; but they make room, the first that came first.
#[tokio::test]
async fn strangers_keep_nobody_out() {
    let limits = Limits { connections: 8, first_byte: TOO_LONG, handshake: TOO_LONG, ..Limits::default() };
    let pair = pair(&[Right::Ask, Right::Read], None, limits).await;
    let known = connect(&pair.link, &pair.address).await;
    let mut silent: Vec<_> = (0..12).map(|_| raw(&pair.address)).collect();
    let rest = silent.split_off(5);
    tokio::task::spawn_blocking(move || silent.iter_mut().for_each(expect_close)).await.unwrap();
    let stats = known.stats().await.unwrap();
    assert_eq!((stats.connections, stats.connections_refused), (8, 5), "{stats:?}");
    // Seven of them are left, and still there is room for who is known; but for no eighth of these.
    let more: Vec<Client> =
        (0..7).map(|_| connect(&pair.link, &pair.address)).collect::<FuturesUnordered<_>>().collect().await;
    let error = pair.link.connect(&pair.address, device(), Limits::default()).await.unwrap_err();
    assert!(matches!(error, LinkError::NoTls { .. } | LinkError::Connect { .. }), "{error}");
    for client in more.iter().chain([&known]) {
        client.infer(request(1, 1)).await.unwrap();
    }
    drop(rest);
}

/// Of two hosts that are believed, a device may want one of them at an address, and no other.
#[tokio::test]
async fn a_name_at_an_address_is_proven() {
    let pair = pair(&[Right::Ask], None, Limits::default()).await;
    let at = |name: &str| format!("{name}@{}", pair.address);
    pair.link.connect(&at("other"), device(), Limits::default()).await.unwrap().infer(request(1, 1)).await.unwrap();
    let error = pair.link.connect(&at("another"), device(), Limits::default()).await.unwrap_err();
    assert!(matches!(&error, LinkError::AnotherPeer { found, .. } if found == "other"), "{error}");
    let plain = Link::start(Security::insecure()).unwrap();
    let error = plain.connect(&at("other"), device(), Limits::default()).await.unwrap_err();
    assert!(matches!(error, LinkError::Nameless { .. }), "{error}");
}

#[tokio::test]
async fn bytes_of_all_kinds_end_a_handshake_and_nothing_else() {
    let pair = pair(&[Right::Ask], None, Limits::default()).await;
    let relay = Relay::to(pair.server.local_addr());
    connect(&pair.link, &relay.address).await.probe(0, 0).await.unwrap();
    let good = relay.said();
    for seed in 0..400usize {
        let mut spoiled = good.clone();
        let at = seed * 7919 % good.len().min(600);
        spoiled[at] ^= 1 << (seed % 8);
        let mut peer = raw(&pair.address);
        let _ = peer.write_all(&spoiled);
        let _ = peer.shutdown(Shutdown::Write);
        expect_close(&mut peer);
    }
    connect(&pair.link, &pair.address).await.infer(request(1, 1)).await.unwrap();
}

fn invitation(code: &PairingCode, kept: Arc<Mutex<Vec<Paired>>>) -> Invitation {
    let keep = move |paired: &Paired| {
        kept.lock().unwrap().push(paired.clone());
        Ok(())
    };
    let (tries, lasts) = (PAIRING_TRIES, PAIRING_TIME);
    Invitation { code: code.clone(), name: "edge".to_owned(), tries, lasts, keep: Arc::new(keep) }
}

#[tokio::test]
async fn a_code_makes_strangers_known_to_each_other() {
    let pair = pair(&[], None, Limits::default()).await;
    let stranger = Credentials::new(identity(), Peers::default());
    let link = Link::start(Security::tls(stranger.clone())).unwrap();
    let code = PairingCode::random().unwrap();
    let early = link.pair(&pair.address, code.clone(), "laptop", Limits::default()).await;
    assert!(matches!(early, Err(PairError::NotNow(_))), "{early:?}");

    let kept = Arc::new(Mutex::new(Vec::new()));
    let invited = tokio::spawn(pair.server.invite(invitation(&code, kept.clone())));
    // Until the door stands open.
    let paired = loop {
        match link.pair(&pair.address, code.clone(), "laptop", Limits::default()).await {
            Err(PairError::NotNow(_)) => tokio::task::yield_now().await,
            paired => break paired.unwrap(),
        }
    };
    assert_eq!(paired, Paired { name: "edge".to_owned(), fingerprint: pair.there.identity().fingerprint() });
    let laptop = Paired { name: "laptop".to_owned(), fingerprint: stranger.identity().fingerprint() };
    assert_eq!(invited.await.unwrap().unwrap(), laptop);
    assert_eq!(*kept.lock().unwrap(), [laptop]);
    // What was open to strangers is not any more.
    let late = link.pair(&pair.address, code, "laptop", Limits::default()).await;
    assert!(matches!(late, Err(PairError::NotNow(_))), "{late:?}");
}

#[tokio::test]
async fn three_wrong_codes_end_the_pairing() {
    let pair = pair(&[], None, Limits::default()).await;
    let link = Link::start(Security::tls(Credentials::new(identity(), Peers::default()))).unwrap();
    let (code, wrong) = ("11111111".parse().unwrap(), "11111112".parse::<PairingCode>().unwrap());
    let kept = Arc::new(Mutex::new(Vec::new()));
    let invited = tokio::spawn(pair.server.invite(invitation(&code, kept.clone())));
    let mut tries = 0;
    while tries < PAIRING_TRIES {
        match link.pair(&pair.address, wrong.clone(), "laptop", Limits::default()).await {
            Err(PairError::NotNow(_)) if tries == 0 => tokio::task::yield_now().await,
            Err(PairError::WrongCode) => tries += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(invited.await.unwrap(), Err(PairError::Tries(PAIRING_TRIES))));
    let late = link.pair(&pair.address, code, "laptop", Limits::default()).await;
    assert!(matches!(late, Err(PairError::NotNow(_))), "the right one comes too late: {late:?}");
    assert!(kept.lock().unwrap().is_empty());
}

/// It has TLS with both sides, and both speak to it as to each other; it passes on what they say.
#[tokio::test(flavor = "multi_thread")]
async fn who_stands_in_between_does_not_get_paired() {
    let pair = pair(&[], None, Limits::default()).await;
    let code: PairingCode = "22222222".parse().unwrap();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let invited = tokio::spawn(pair.server.invite(invitation(&code, kept.clone())));

    // The one in between does not know the code. It waits for the victim with an invitation of its own, and guesses.
    let between = Credentials::new(identity(), Peers::default());
    let link = Link::start(Security::tls(between)).unwrap();
    let trap = link.serve("127.0.0.1:0", edge(), Limits::default(), Arc::new(Echo)).await.unwrap();
    let caught = Arc::new(Mutex::new(Vec::new()));
    let guess: PairingCode = "33333333".parse().unwrap();
    let _trapping = tokio::spawn(trap.invite(invitation(&guess, caught.clone())));

    let victim = Link::start(Security::tls(Credentials::new(identity(), Peers::default()))).unwrap();
    let address = trap.local_addr().to_string();
    let outcome = loop {
        match victim.pair(&address, code.clone(), "laptop", Limits::default()).await {
            Err(PairError::NotNow(_)) => tokio::task::yield_now().await,
            outcome => break outcome,
        }
    };
    assert!(matches!(outcome, Err(PairError::WrongCode)), "{outcome:?}");
    let outcome = link.pair(&pair.address, guess, "laptop", Limits::default()).await;
    assert!(matches!(outcome, Err(PairError::WrongCode | PairError::NotNow(_))), "{outcome:?}");
    assert!(kept.lock().unwrap().is_empty() && caught.lock().unwrap().is_empty());
    invited.abort();
}
