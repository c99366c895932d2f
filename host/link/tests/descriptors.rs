//! Connections come and go, with calls in flight, and leave nothing behind.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use edgent_link::*;
use support::*;
use tokio::time::timeout;

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits for connections that are just being closed.
async fn expect_open_files(most: usize, context: &str) {
    let fall = async {
        while open_files() > most {
            tokio::task::yield_now().await;
        }
    };
    timeout(TOO_LONG, fall).await.unwrap_or_else(|_| panic!("{} files stay open: {context}", open_files() - most));
}

// Alone in its file: other tests of the process would open files of their own.
#[tokio::test(flavor = "multi_thread")]
async fn no_file_stays_open() {
    let (hold, held) = Hold::new();
    let (link, server, address) = serve(Limits::default(), hold).await;
    let before = open_files();
    let mut kept = Vec::new();
    for id in 0..200 {
        let client = connect(&link, &address).await;
        let call = tokio::spawn(async move { client.infer(request(id, 10)).await });
        // The host still works on this, and some of it is never answered.
        let (_, reply) = held.recv_timeout(TOO_LONG).unwrap();
        if id % 2 == 0 {
            kept.push(reply);
        }
        call.abort();
    }
    expect_open_files(before, "clients went").await;

    for _ in 0..20 {
        let (hold, held) = Hold::new();
        let server = link.serve("127.0.0.1:0", edge(), Limits::default(), Arc::new(hold)).await.unwrap();
        let client = connect(&link, &server.local_addr().to_string()).await;
        let call = tokio::spawn(async move { client.infer(request(1, 10)).await });
        kept.push(held.recv_timeout(TOO_LONG).unwrap().1);
        drop(server);
        assert!(matches!(call.await.unwrap(), Err(LinkError::Lost(_))));
    }
    expect_open_files(before, "servers went").await;
    drop(server);
}
