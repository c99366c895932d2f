//! What the link adds to sending an activation and getting one back.
//!
//! All ends are in this process, on loopback: one pair speaks Cap'n Proto RPC, another the same over TLS; two more
//! send the same number of bytes over bare TCP, and over TLS with nothing above it. They take turns. Who asks over the link
//! does so on its thread, as a device's requests do.

use crate::output::{Output, quantile};
use anyhow::Result;
use edgent_link::{
    Activation, Client, Codec, Credentials, Digest, ElementType, Hello, Identity, InferReply, InferRequest, Limits,
    Link, Peers, Reply, Role, Security, Server, Service, bare_accept, bare_connect,
};
use edgent_runtime::build_name;
use serde::Serialize;
use std::sync::Arc;
use std::thread;
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

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
    /// Through the link over TLS.
    tls_rtt_us: f64,
    /// Over TLS and nothing else.
    bare_tls_rtt_us: f64,
    tls_ratio: f64,
    tls_extra_us: f64,
}

struct Echo;

impl Service for Echo {
    fn infer(&self, request: InferRequest, reply: Reply<InferReply>) {
        let InferRequest { id, epoch, activation, beside, .. } = request;
        reply.send(Ok(InferReply { id, epoch, activation, beside, queue_us: 0, segment_us: Vec::new(), codec_us: 0 }));
    }
}

pub(crate) fn run(output: &Output) -> Result<()> {
    let runtime = runtime()?;
    let rows = runtime.block_on(measure(output))?;
    output.result(&Report { sizes: rows })
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn measure(output: &Output) -> Result<Vec<Row>> {
    // Both sides have the same key, and so know each other.
    let credentials = Credentials::new(Identity::read(&Identity::generate()?)?, Peers::default());
    let (_plain_server, plain_link, plain) = pair(Security::insecure()).await?;
    let (_tls_server, tls_link, tls) = pair(Security::tls(credentials.clone())).await?;
    let mut tcp = echo(None).await?;
    let stream = echo(Some(credentials.clone())).await?;
    let mut bare_tls = bare_connect(&credentials, stream).await?;
    let mut rows = Vec::new();
    output.line(
        "    bytes         link     bare TCP  ratio      extra     over TLS     bare TLS  ratio      extra   (medians)",
    );
    for bytes in SIZES {
        let rounds = if bytes > 128 << 10 { 200 } else { 1_000 };
        let mut took: [Vec<f64>; 4] = Default::default();
        let message = [&u32::try_from(bytes)?.to_le_bytes()[..], &vec![0; bytes]].concat();
        let mut back = vec![0; bytes];
        for round in 0..WARM_UP + rounds {
            let times = [
                plain_link.runtime().spawn(ask(plain.clone(), bytes)).await??,
                send(&mut tcp, &message, &mut back).await?,
                tls_link.runtime().spawn(ask(tls.clone(), bytes)).await??,
                send(&mut bare_tls, &message, &mut back).await?,
            ];
            if round >= WARM_UP {
                took.iter_mut().zip(times).for_each(|(took, time)| took.push(time));
            }
        }
        let [rtt_us, tcp_rtt_us, tls_rtt_us, bare_tls_rtt_us] = took.each_mut().map(|took| quantile(took, 0.5));
        let row = Row {
            bytes,
            rtt_us,
            tcp_rtt_us,
            ratio: rtt_us / tcp_rtt_us,
            extra_us: rtt_us - tcp_rtt_us,
            tls_rtt_us,
            bare_tls_rtt_us,
            tls_ratio: tls_rtt_us / bare_tls_rtt_us,
            tls_extra_us: tls_rtt_us - bare_tls_rtt_us,
        };
        let (ratio, extra_us, tls_ratio, tls_extra_us) = (row.ratio, row.extra_us, row.tls_ratio, row.tls_extra_us);
        output.line(format_args!(
            "{bytes:>9} {rtt_us:>9.0} us {tcp_rtt_us:>9.0} us  {ratio:>5.2} {extra_us:>7.0} us \
             {tls_rtt_us:>9.0} us {bare_tls_rtt_us:>9.0} us  {tls_ratio:>5.2} {tls_extra_us:>7.0} us"
        ));
        rows.push(row);
    }
    Ok(rows)
}

/// A server, and a client with its link; each with a thread of its own.
async fn pair(security: Security) -> Result<(Server, Link, Client)> {
    let hello = |role| Hello::new(role, build_name());
    let (there, here) = (Link::start(security.clone())?, Link::start(security)?);
    let server = there.serve("127.0.0.1:0", hello(Role::Edge), Limits::default(), Arc::new(Echo)).await?;
    let client = here.connect(&server.local_addr().to_string(), hello(Role::Tool), Limits::default()).await?;
    Ok((server, here, client))
}

/// A round trip through the link, in microseconds.
async fn ask(client: Client, bytes: usize) -> Result<f64> {
    let request = request(bytes);
    let start = Instant::now();
    let reply = client.infer(request).await?;
    let took = start.elapsed();
    anyhow::ensure!(reply.activation.bytes.len() == bytes, "the echo lost bytes");
    Ok(took.as_secs_f64() * 1e6)
}

/// The same of the bytes alone.
async fn send(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), message: &[u8], back: &mut [u8]) -> Result<f64> {
    let start = Instant::now();
    stream.write_all(message).await?;
    stream.flush().await?;
    stream.read_exact(back).await?;
    Ok(start.elapsed().as_secs_f64() * 1e6)
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
        trace: None,
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
/// least that a round trip of an activation can take. Over TLS, if credentials are given.
async fn echo(credentials: Option<Credentials>) -> Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let client = TcpStream::connect(listener.local_addr()?).await?;
    let (server, _) = listener.accept().await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let server = server.into_std()?;
    thread::spawn(move || -> Result<()> {
        runtime()?.block_on(async {
            let server = TcpStream::from_std(server)?;
            match credentials {
                None => answer(server).await,
                Some(credentials) => answer(bare_accept(&credentials, server).await?).await,
            }
        })
    });
    Ok(client)
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
    let mut message = Vec::new();
    while let Ok(bytes) = stream.read_u32_le().await {
        message.resize(bytes as usize, 0);
        stream.read_exact(&mut message).await?;
        stream.write_all(&message).await?;
        stream.flush().await?;
    }
    Ok(())
}
