//! Services that echo or hold, values to send, and a relay that can be cut, frozen and read.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use edgent_link::*;

/// No test waits for this long unless it fails.
pub const TOO_LONG: Duration = Duration::from_secs(20);

pub fn edge() -> Hello {
    Hello::new(Role::Edge, "edge 1")
}

pub fn device() -> Hello {
    Hello::new(Role::Device, "device 1")
}

/// Whether this is a program of tests over TLS, by its name.
pub fn is_over_tls() -> bool {
    env!("CARGO_CRATE_NAME").ends_with("_over_tls")
}

/// A link, plain or over TLS; two of them know each other.
pub fn link() -> Link {
    static KEY: OnceLock<Vec<u8>> = OnceLock::new();
    let identity = || Identity::read(KEY.get_or_init(|| Identity::generate().unwrap())).unwrap();
    Link::start(match is_over_tls() {
        true => Security::tls(Credentials::new(identity(), Peers::default())),
        false => Security::insecure(),
    })
    .unwrap()
}

pub async fn serve(limits: Limits, service: impl Service) -> (Link, Server, String) {
    let link = link();
    let server = link.serve("127.0.0.1:0", edge(), limits, Arc::new(service)).await.unwrap();
    let address = server.local_addr().to_string();
    (link, server, address)
}

pub async fn connect(link: &Link, address: &str) -> Client {
    link.connect(address, device(), Limits::default()).await.unwrap()
}

pub fn activation(bytes: usize) -> Activation {
    let bytes: Bytes = (0..bytes).map(|index| (index * 7) as u8).collect();
    Activation {
        codec: Codec::Raw,
        element_type: ElementType::U8,
        dims: vec![1, bytes.len() as u32],
        scales: vec![],
        offsets: vec![],
        bytes,
    }
}

pub fn request(id: u64, bytes: usize) -> InferRequest {
    InferRequest {
        id,
        model: Digest([5; 32]),
        epoch: 9,
        from_segment: 1,
        to_segment: 3,
        reply_codec: Codec::U8,
        remaining_budget_us: 12_345,
        activation: activation(bytes),
        beside: vec![],
        trace: None,
    }
}

/// A place in a trace, as W3C's text on it shows one.
pub fn trace() -> Option<TraceParent> {
    TraceParent::read("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
}

pub fn echo(request: InferRequest) -> InferReply {
    let InferRequest { id, epoch, activation, beside, remaining_budget_us, .. } = request;
    InferReply { id, epoch, activation, beside, queue_us: remaining_budget_us, segment_us: vec![7, 8], codec_us: 3 }
}

/// Answers `infer` with its input.
pub struct Echo;

impl Service for Echo {
    fn infer(&self, request: InferRequest, reply: Reply<InferReply>) {
        reply.send(Ok(echo(request)));
    }

    fn stats(&self, reply: Reply<Stats>) {
        reply.send(Ok(Stats::default()));
    }
}

/// Gives calls of `infer` to the test, which answers them when it likes.
pub struct Hold(Mutex<Sender<Held>>);
pub type Held = (InferRequest, Reply<InferReply>);

impl Hold {
    pub fn new() -> (Self, Receiver<Held>) {
        let (to, held) = channel();
        (Hold(Mutex::new(to)), held)
    }
}

impl Service for Hold {
    fn infer(&self, request: InferRequest, reply: Reply<InferReply>) {
        let _ = self.0.lock().unwrap().send((request, reply));
    }
}

/// Between a client and a server: keeps what the client says, and can fail in two ways.
pub struct Relay {
    pub address: String,
    said: Arc<Mutex<Vec<u8>>>,
    frozen: Arc<Mutex<bool>>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    pub fn to(server: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay {
            address: listener.local_addr().unwrap().to_string(),
            said: Arc::default(),
            frozen: Arc::default(),
            streams: Arc::default(),
        };
        let (said, frozen, streams) = (relay.said.clone(), relay.frozen.clone(), relay.streams.clone());
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let server = TcpStream::connect(server).unwrap();
                let ends = [&client, &server].map(|stream| stream.try_clone().unwrap());
                streams.lock().unwrap().extend(ends);
                pass(client.try_clone().unwrap(), server.try_clone().unwrap(), frozen.clone(), Some(said.clone()));
                pass(server, client, frozen.clone(), None);
            }
        });
        relay
    }

    pub fn said(&self) -> Vec<u8> {
        self.said.lock().unwrap().clone()
    }

    /// What comes is taken, and goes nowhere.
    pub fn freeze(&self) {
        *self.frozen.lock().unwrap() = true;
    }

    pub fn cut(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, frozen: Arc<Mutex<bool>>, said: Option<Arc<Mutex<Vec<u8>>>>) {
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(bytes @ 1..) = from.read(&mut buffer) {
            if let Some(said) = &said {
                said.lock().unwrap().extend(&buffer[..bytes]);
            }
            if !*frozen.lock().unwrap() && to.write_all(&buffer[..bytes]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// A peer that knows nothing of Cap'n Proto. Its reads end: in bytes, in the stream's end, or in a panic.
pub fn raw(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TOO_LONG)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Until the peer has closed, orderly or not; panics if it does not.
pub fn expect_close(stream: &mut TcpStream) {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("not closed: {error}"),
        }
    }
}

/// A small generator of numbers, so that a failure can be repeated by its seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// One of several ways to spoil what a good client says.
pub fn spoil(good: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = good.to_vec();
    match random.below(6) {
        0 => bytes.truncate(random.below(good.len())),
        1 => {
            for _ in 0..=random.below(4) {
                bytes[random.below(good.len())] ^= 1 << random.below(8);
            }
        }
        // The first messages are small and full of pointers: most of the protocol's states are there.
        2 => bytes[random.below(good.len().min(600))] = random.next() as u8,
        3 => {
            let at = random.below(good.len() / 8) * 8;
            bytes[at..at + 8].copy_from_slice(&random.next().to_le_bytes());
        }
        // A word of its own somewhere else: right as such, wrong there.
        4 => {
            let (from, to) = (random.below(good.len() / 8) * 8, random.below(good.len() / 8) * 8);
            bytes.copy_within(from..from + 8, to);
        }
        _ => {
            bytes = (0..random.below(2000)).map(|_| random.next() as u8).collect();
            if random.below(2) == 0 {
                // Let it get past the table of segments.
                let words = (bytes.len() / 8).saturating_sub(1) as u64;
                bytes.splice(..bytes.len().min(8), (words << 32).to_le_bytes());
            }
        }
    }
    bytes
}
