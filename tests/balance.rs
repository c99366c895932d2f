//! Hosts behind a balancer: what they tell it, and a device that connects anew so that it is led to another edge.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/front.rs"]
mod front;
#[path = "support/http.rs"]
#[allow(dead_code)]
mod http;

use edgent_cli::hosts::HostProcess;
use front::{bundle, edgent, example, host};
use http::get;
use rustix::process::Signal;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// Long enough for a busy machine, short enough to notice a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a balancer is told; none if nobody is there to tell, or it was closed without a word.
fn told(agent: SocketAddr, asks_with: &str) -> Option<String> {
    let mut stream = TcpStream::connect(agent).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(asks_with.as_bytes()).ok()?;
    let mut line = String::new();
    stream.read_to_string(&mut line).ok()?;
    (!line.is_empty()).then_some(line)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_is_told_of_room_and_when_a_host_goes() {
    let slow = ["--agent-check", "127.0.0.1:0", "--emulate-slowdown", "600", "--deadline-ms", "60000"];
    let (device, at) = host("device", bundle(), &slow).await;
    let agent = device.agent().expect("the host says where it tells of its room");
    for asks_with in ["", "how are you?\n"] {
        assert_eq!(told(agent, asks_with).as_deref(), Some("ready up 100%\n"));
    }
    // Those who come and say nothing, nor go, are in nobody's way for long.
    let strangers: Vec<_> = (0..200).map(|_| TcpStream::connect(agent).unwrap()).collect();
    let asked = Instant::now();
    while told(agent, "").is_none() {
        assert!(asked.elapsed() < PATIENCE, "strangers hold all of its places");
    }
    drop(strangers);

    // As long as a request is being answered, the host is there to tell that it goes.
    let address = device.address().to_string();
    let asking = std::thread::spawn(move || edgent(&["infer", &example().0, "--device", &address]));
    let asked = Instant::now();
    while !get(at, "/metrics").text().contains("edgent_requests_in_flight 1\n") {
        assert!(asked.elapsed() < PATIENCE, "nothing is in flight");
    }
    device.signal(Signal::TERM).unwrap();
    let last = loop {
        let line = told(agent, "").expect("the host has gone without a word");
        if !line.starts_with("ready up ") {
            break line;
        }
        assert!(asked.elapsed() < PATIENCE, "still {line}");
    };
    assert_eq!(last, "drain\n");
    assert!(device.ended().await.unwrap().success());
    assert!(asking.join().unwrap()["answers"][0]["degraded"].is_null());
}

/// A balancer: leads each connection to the host that is next, and to the last one from then on.
async fn balancer(hosts: Vec<SocketAddr>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, led) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&led);
    tokio::spawn(async move {
        while let Ok((mut device, _)) = listener.accept().await {
            let next = hosts[counted.fetch_add(1, Ordering::Relaxed).min(hosts.len() - 1)];
            tokio::spawn(async move {
                let mut edge = tokio::net::TcpStream::connect(next).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut device, &mut edge).await;
            });
        }
    });
    (address, led)
}

fn parts(edge: SocketAddr) -> bool {
    get(edge, "/metrics").text().lines().any(|line| {
        line.strip_prefix("edgent_parts_total{outcome=\"done\"} ")
            .is_some_and(|count| count.parse::<u64>().unwrap() > 0)
    })
}

fn asked(device: &HostProcess) -> Value {
    edgent(&["infer", &example().0, "--device", &device.address().to_string()])["answers"][0].clone()
}

fn is_by_edge(answer: &Value) -> bool {
    answer["degraded"].is_null() && answer["placement"] != "device-only"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_connects_anew_goes_on_at_another_edge_without_a_pause() {
    let (first, first_at) = host("edge", bundle(), &[]).await;
    let (second, second_at) = host("edge", bundle(), &[]).await;
    let (balancer, led) = balancer(vec![first.address(), second.address()]).await;
    let to = balancer.to_string();
    let slow = ["--edge", &to, "--reconnect-s", "3", "--emulate-slowdown", "200", "--deadline-ms", "5000"];
    let (device, _) = host("device", bundle(), &slow).await;
    let began = Instant::now();
    while !is_by_edge(&asked(&device)) {
        assert!(began.elapsed() < PATIENCE, "no plan has the edge");
    }
    // From now on no answer is the device's alone.
    while !parts(second_at) {
        let answer = asked(&device);
        assert!(is_by_edge(&answer), "{answer}");
        assert!(began.elapsed() < PATIENCE, "it stays where it is");
    }
    assert!(parts(first_at) && led.load(Ordering::Relaxed) >= 2);
    for host in [device, first, second] {
        assert!(host.end().await.unwrap().success());
    }
}
