//! An edge that was slow for a while refuses what could not be in time then, and finds out by itself that it is well.

use super::in_virtual_time;
use super::model::{Model, hello};
use super::network::Network;
use edgent_link::{InferRequest, Limits, Link, Role, Security};
use fastrand::Rng;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Enough for an edge that is well.
const TIGHT_US: u64 = 25_000;

#[test]
fn an_edge_that_was_slow_for_a_while_is_soon_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::new(dir.path());
    in_virtual_time(0, async {
        let link = Link::within(Arc::new(Network::new(1, &mut Rng::with_seed(0))), Security::insecure());
        let (edge, _server) = model.start_edge(None, &link, 0).await;
        let client = link.connect("0", hello(Role::Device), Limits::default()).await.unwrap();
        let (plan, request) = model.whole(1);
        client.install_plan(plan).await.unwrap();
        let infer = || client.infer(InferRequest { remaining_budget_us: TIGHT_US, ..request.clone() });
        infer().await.unwrap();

        edge.seem_slow(100.0);
        let refused = infer().await.unwrap_err().to_string();
        assert!(refused.contains("it cannot be in time here"), "{refused}");
        let since = Instant::now();
        while infer().await.is_err() {
            assert!(since.elapsed() < Duration::from_secs(3), "the edge never finds out that it is well");
            sleep(Duration::from_millis(50)).await;
        }
        assert!(since.elapsed() > Duration::from_millis(500), "what was seen just now is believed for a while");
    });
}
