//! `edgent relay`: a slow link before any server, for programs of others to be measured over the link that ours are.

use crate::bounds;
use crate::relay::{Relay, Shape};
use crate::trace::Trace;
use anyhow::{Context, Result};
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Address of the server.
    #[arg(long, value_name = "ADDR")]
    to: SocketAddr,
    /// Address to listen on; port 0 lets the system choose.
    #[arg(long, value_name = "ADDR", value_parser = bounds::address, default_value = "127.0.0.1:0")]
    listen: String,
    /// Bits a second, in each direction.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=RATE_MAX_BPS))]
    rate_bps: u64,
    /// One way.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=DELAY_MAX_MS))]
    delay_ms: u64,
}

const RATE_MAX_BPS: u64 = 100_000_000_000;
const DELAY_MAX_MS: u64 = 60_000;

/// Relays until it is interrupted.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let delay = Duration::from_millis(arguments.delay_ms);
        let shape = Shape { trace: Trace::constant(arguments.rate_bps), delay };
        let relay = Relay::start(&arguments.listen, arguments.to, shape).await?;
        // One line, so that whoever started it knows when and where it is there.
        println!("relay listening on {}", relay.local_addr());
        std::io::stdout().flush().context("stdout")?;
        Ok(tokio::signal::ctrl_c().await?)
    })
}
