//! Peers that break the protocol lose their connection, and nobody else notices.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use edgent_link::*;
use support::*;

/// What a good client says: hello, a few calls, and its end.
async fn session(server: &Server, link: &Link) -> Vec<u8> {
    let relay = Relay::to(server.local_addr());
    let client = connect(link, &relay.address).await;
    for (id, bytes) in [(1, 16), (2, 3000)] {
        client.infer(request(id, bytes)).await.unwrap();
    }
    client.stats().await.unwrap();
    relay.said()
}

async fn assert_well(link: &Link, address: &str, context: &str) {
    let client = link.connect(address, device(), Limits::default()).await.expect(context);
    assert_eq!(client.infer(request(3, 500)).await.expect(context), echo(request(3, 500)));
}

/// The first two messages of what a client says: for the gate, and hello.
fn greeting(said: &[u8]) -> &[u8] {
    let size = |from: usize| {
        assert_eq!(said[from..from + 4], [0; 4], "small messages have one segment");
        8 + 8 * u32::from_le_bytes(said[from + 4..from + 8].try_into().unwrap()) as usize
    };
    let first = size(0);
    &said[..first + size(first)]
}

/// A client that takes the refusal for a welcome finds nothing behind it.
#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_another_version_is_not_let_in() {
    let (hold, held) = Hold::new();
    let (link, server, address) = serve(Limits::default(), hold).await;
    let relay = Relay::to(server.local_addr());
    let hello = Hello { protocol: PROTOCOL_VERSION + 1, ..device() };
    link.connect(&relay.address, hello, Limits::default()).await.unwrap_err();
    let other_hello = relay.said();

    let relay = Relay::to(server.local_addr());
    let client = connect(&link, &relay.address).await;
    let call = tokio::spawn(async move { client.infer(request(1, 10)).await });
    let (_, _reply) = held.recv_timeout(TOO_LONG).unwrap();
    let said = relay.said();
    // The other hello, and then as if nothing had happened.
    let (hello, other_hello) = (greeting(&said), greeting(&other_hello));
    assert_ne!(hello, other_hello);
    let others = [other_hello, &said[hello.len()..]].concat();

    for (said, let_in) in [(said.clone(), true), (others, false)] {
        let mut peer = raw(&address);
        peer.write_all(&said).unwrap();
        if let_in {
            held.recv_timeout(TOO_LONG).unwrap();
        } else {
            expect_close(&mut peer);
            assert!(held.try_recv().is_err());
        }
    }
    call.abort();
}

#[tokio::test]
async fn spoiled_sessions_end_alone() {
    let (link, server, address) = serve(Limits::default(), Echo).await;
    let good = session(&server, &link).await;
    for seed in 0..2500 {
        let spoiled = spoil(&good, &mut Random(seed));
        let mut peer = raw(&address);
        // It may be closed while it is still talking.
        let _ = peer.write_all(&spoiled);
        let _ = peer.shutdown(Shutdown::Write);
        expect_close(&mut peer);
        if seed % 100 == 0 {
            assert_well(&link, &address, &format!("seed {seed}")).await;
        }
    }
    let stats = connect(&link, &address).await.stats().await.unwrap();
    assert!(stats.protocol_errors > 100, "{stats:?}");
    assert_eq!((stats.connections, stats.calls_in_flight), (1, 0), "{stats:?}");
}

#[tokio::test]
async fn a_session_may_end_anywhere() {
    let (link, server, address) = serve(Limits::default(), Echo).await;
    let good = session(&server, &link).await;
    for end in (0..good.len().min(1500)).chain([good.len() - 1, good.len()]) {
        let mut peer = raw(&address);
        peer.write_all(&good[..end]).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        expect_close(&mut peer);
    }
    assert_well(&link, &address, "afterwards").await;
}

/// The peer stays, and says no more: only a refusal can close these.
#[tokio::test]
async fn bombs_are_refused_by_their_header() {
    let patient = Limits { first_byte: TOO_LONG * 2, hello: TOO_LONG * 2, idle: TOO_LONG * 2, ..Limits::default() };
    let (link, _server, address) = serve(patient, Echo).await;
    let table = |halves: &[u32]| halves.iter().flat_map(|half| half.to_le_bytes()).collect::<Vec<_>>();
    let cases = [
        ("2^29 words", table(&[0, 1 << 29])),
        ("2^32 - 1 words", table(&[0, u32::MAX])),
        ("512 segments", table(&[511, 1])),
        ("2^32 segments", table(&[u32::MAX, 1])),
        ("a sum over the limit", table(&[3, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 0])),
        ("more than a stranger may send", table(&[0, 3000])),
        ("no root", table(&[0, 0])),
        ("nothing in it", table(&[0, 1, 0, 0])),
        ("a pointer out of it", table(&[0, 1, 0xffff_fffc, 0xffff_ffff])),
        ("a pointer to itself", table(&[0, 1, 0xffff_fffc, 0x0001_0000])),
        ("a far pointer to itself", table(&[0, 1, 2, 0])),
    ];
    for (name, bomb) in &cases {
        let mut peer = raw(&address);
        peer.write_all(bomb).unwrap();
        expect_close(&mut peer);
        assert_well(&link, &address, name).await;
    }
    let stats = connect(&link, &address).await.stats().await.unwrap();
    assert_eq!(stats.protocol_errors, cases.len() as u64);
}

#[tokio::test]
async fn who_does_not_speak_is_cut() {
    let brief = Duration::from_millis(50);
    let cases = [
        ("not a byte", Limits { first_byte: brief, ..Limits::default() }, 0),
        ("one byte", Limits { first_byte: brief, hello: 2 * brief, ..Limits::default() }, 1),
        ("no life", Limits { idle: brief, ..Limits::default() }, 1),
    ];
    for (name, limits, bytes) in cases {
        let (link, _server, address) = serve(limits, Echo).await;
        let mut peer = raw(&address);
        peer.write_all(&[0; 8][..bytes]).unwrap();
        tokio::task::spawn_blocking(move || expect_close(&mut peer)).await.expect(name);
        drop(link);
    }
}

#[tokio::test]
async fn a_connection_too_many_is_closed_and_counted() {
    let (link, _server, address) = serve(Limits { connections: 2, ..Limits::default() }, Echo).await;
    let [first, second] = [connect(&link, &address).await, connect(&link, &address).await];
    for _ in 0..3 {
        expect_close(&mut raw(&address));
    }
    assert_eq!(first.stats().await.unwrap().connections_refused, 3);
    // A place that is left can be taken again, once the server has noticed.
    drop(second);
    while first.stats().await.unwrap().connections > 1 {}
    connect(&link, &address).await.infer(request(1, 1)).await.unwrap();
}

/// Calls by the thousand, and not one answer is read.
#[tokio::test]
async fn a_flood_is_not_kept_in_memory() {
    let (link, server, address) = serve(Limits { message_bytes: 1 << 20, ..Limits::default() }, Echo).await;
    let relay = Relay::to(server.local_addr());
    let client = connect(&link, &relay.address).await;
    let hello = relay.said();
    client.infer(request(1, 100_000)).await.unwrap();
    let call = relay.said().split_off(hello.len());

    let mut peer = raw(&address);
    peer.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    peer.write_all(&hello).unwrap();
    let mut sent_bytes = 0;
    // Until the server stops taking more, or closes.
    while sent_bytes < 1 << 30 && peer.write_all(&call).is_ok() {
        sent_bytes += call.len();
    }
    assert!(sent_bytes < 100 << 20, "{sent_bytes} bytes were taken");
    assert_well(&link, &address, "beside the flood").await;
}
