//! What the link adds to sending an activation and getting one back.
//!
//! Both ends are in this process, on loopback: one pair speaks Cap'n Proto RPC, the other sends the
//! same number of bytes over bare TCP. They take turns.

use crate::output::{Output, quantile};
use anyhow::Result;
use edgent_link::{
    Activation, Codec, Digest, ElementType, Hello, InferReply, InferRequest, Limits, Link, PROTOCOL_VERSION, Reply,
    Role, Security, Service,
};
use edgent_runtime::build_name;
use serde::Serialize;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

const SIZES: [usize; 7] = [64, 1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20];
const WARM_UP: usize = 10;

#[derive(Serialize)]
struct Report {
    sizes: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    bytes: usize,
    rtt_us: f64,
    tcp_rtt_us: f64,
    ratio: f64,
    extra_us: f64,
}

struct Echo;

impl Service for Echo {
    fn infer(&self, request: InferRequest, reply: Reply<InferReply>) {
        let InferRequest { id, epoch, activation, beside, .. } = request;
        reply.send(Ok(InferReply { id, epoch, activation, beside, queue_us: 0, segment_us: Vec::new(), codec_us: 0 }));
    }
}

pub(crate) fn run(output: &Output) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = runtime.block_on(measure(output))?;
    output.result(&Report { sizes: rows })
}

async fn measure(output: &Output) -> Result<Vec<Row>> {
    let hello = |role| Hello { protocol: PROTOCOL_VERSION, role, build: build_name() };
    let (there, here) =
        (Link::start(Security::plain_on_loopback(None))?, Link::start(Security::plain_on_loopback(None))?);
    let server = there.serve("127.0.0.1:0", hello(Role::Edge), Limits::default(), Arc::new(Echo)).await?;
    let client = here.connect(&server.local_addr().to_string(), hello(Role::Tool), Limits::default()).await?;
    let mut tcp = tcp_echo()?;
    let mut rows = Vec::new();
    output.line("    bytes         link     bare TCP   ratio       extra   (medians)");
    for bytes in SIZES {
        let rounds = if bytes > 128 << 10 { 200 } else { 1_000 };
        let (mut link_us, mut tcp_us) = (Vec::new(), Vec::new());
        let message = [&u32::try_from(bytes)?.to_le_bytes()[..], &vec![0; bytes]].concat();
        let mut back = vec![0; bytes];
        for round in 0..WARM_UP + rounds {
            let request = request(bytes);
            let start = Instant::now();
            let reply = client.infer(request).await?;
            let through_link = start.elapsed();
            anyhow::ensure!(reply.activation.bytes.len() == bytes, "the echo lost bytes");
            let start = Instant::now();
            tcp.write_all(&message)?;
            tcp.read_exact(&mut back)?;
            let bare = start.elapsed();
            if round >= WARM_UP {
                link_us.push(through_link.as_secs_f64() * 1e6);
                tcp_us.push(bare.as_secs_f64() * 1e6);
            }
        }
        let (rtt_us, tcp_rtt_us) = (quantile(&mut link_us, 0.5), quantile(&mut tcp_us, 0.5));
        let row = Row { bytes, rtt_us, tcp_rtt_us, ratio: rtt_us / tcp_rtt_us, extra_us: rtt_us - tcp_rtt_us };
        output.line(format_args!(
            "{bytes:>9} {rtt_us:>9.0} us {tcp_rtt_us:>9.0} us   {:>5.2} {:>8.0} us",
            row.ratio, row.extra_us
        ));
        rows.push(row);
    }
    Ok(rows)
}

fn request(bytes: usize) -> InferRequest {
    InferRequest {
        id: 1,
        model: Digest([0; 32]),
        epoch: 1,
        from_segment: 0,
        to_segment: 1,
        reply_codec: Codec::Raw,
        remaining_budget_us: 1_000_000,
        beside: Vec::new(),
        activation: Activation {
            codec: Codec::Raw,
            element_type: ElementType::U8,
            dims: vec![u32::try_from(bytes).unwrap_or(u32::MAX)],
            scales: Vec::new(),
            offsets: Vec::new(),
            bytes: vec![0; bytes].into(),
        },
    }
}

/// A thread that reads a message whole (its length, then its bytes) and sends the bytes back: the
/// least that a round trip of an activation can take.
fn tcp_echo() -> Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    thread::spawn(move || {
        let (mut length, mut message) = ([0; 4], Vec::new());
        while server.read_exact(&mut length).is_ok() {
            message.resize(u32::from_le_bytes(length) as usize, 0);
            if server.read_exact(&mut message).and_then(|()| server.write_all(&message)).is_err() {
                return;
            }
        }
    });
    Ok(client)
}
