//! What clients of this and earlier versions said, kept as bytes: it is still understood, and spoiled it hurts nobody.
//!
//! `corpus/METHOD.bin` is one side of a connection on which a method was called, `corpus/METHOD.txt` what the server
//! understood. With `EDGENT_CORPUS=write` this test writes the bytes of methods that are new, never of others, and the
//! texts; what changed in those, an older peer is misunderstood in.
#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Debug;
use std::future::Future;
use std::io::Write;
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;
use edgent_link::*;
use support::*;

const DIGEST: Digest = Digest([7; 32]);

/// Tells the test what was asked for, and answers nothing.
struct Heard(Mutex<Sender<String>>);

macro_rules! hear {
    ($($method:ident($($value:ident: $type:ty),*) -> $reply:ty;)*) => {
        impl Service for Heard {
            $(fn $method(&self, $($value: $type,)* _: Reply<$reply>) {
                let values: Vec<&dyn Debug> = vec![$(&$value),*];
                let _ = self.0.lock().unwrap().send(format!("{} {values:#?}\n", stringify!($method)));
            })*
        }
    };
}

hear! {
    describe() -> Description;
    install_plan(plan: Plan) -> ();
    infer(request: InferRequest) -> InferReply;
    ask(request: AskRequest) -> Answer;
    profile(model: Digest) -> ModelProfile;
    stats() -> Stats;
    sign(model: Digest, signatures: Vec<Signature>) -> ();
    signatures(model: Digest) -> Vec<Signature>;
    offer(manifest: Bytes) -> Vec<BlobName>;
    offer_piece(manifest: Digest, total: u64, offset: u64, bytes: Bytes) -> Vec<BlobName>;
    put_blob(digest: Digest, offset: u64, bytes: Bytes) -> ();
    install(model: Digest, trial: Option<Trial>) -> Version;
    prepare(model: Digest) -> Version;
    rollback(model: String) -> Version;
    versions() -> Vec<Version>;
    manifest(digest: Digest) -> Bytes;
    blob(digest: Digest, offset: u64, max_bytes: u32) -> Bytes;
    pin(plan: Option<Plan>) -> Plan;
    edges() -> Vec<EdgeState>;
    retire(model: Digest) -> ();
}

type Calling<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A call that a client can make.
type Call = fn(&Client) -> Calling<'_>;

/// Each of them that reaches the service, by a name.
const CALLS: &[(&str, Call)] = &[
    ("describe", |client| call(client.describe())),
    ("install_plan", |client| call(client.install_plan(plan(Codec::U8)))),
    ("infer", |client| {
        call(client.infer(InferRequest { beside: vec![activation(5), activation(0)], ..request(1, 40) }))
    }),
    ("infer_png", |client| call(client.infer(InferRequest { activation: picture(), ..request(2, 0) }))),
    ("infer_traced", |client| call(client.infer(InferRequest { trace: trace(), ..request(3, 0) }))),
    ("ask", |client| call(client.ask(ask()))),
    ("ask_traced", |client| call(client.ask(AskRequest { trace: trace(), ..ask() }))),
    ("profile", |client| call(client.profile(DIGEST))),
    ("stats", |client| call(client.stats())),
    ("sign", |client| call(client.sign(DIGEST, vec![signature(), signature()]))),
    ("signatures", |client| call(client.signatures(DIGEST))),
    ("offer", |client| call(client.offer(Bytes::from_static(b"{\"a manifest\":1}")))),
    ("offer_piece", |client| call(client.offer_piece(DIGEST, 100, 50, Bytes::from_static(b"the middle")))),
    ("put_blob", |client| call(client.put_blob(DIGEST, 1 << 40, Bytes::from_static(b"some bytes")))),
    ("install", |client| call(client.install(DIGEST, None))),
    ("install_on_trial", |client| call(client.install(DIGEST, Some(Trial { share: 0.25, time_ms: 60_000 })))),
    ("prepare", |client| call(client.prepare(DIGEST))),
    ("rollback", |client| call(client.rollback("alex"))),
    ("versions", |client| call(client.versions())),
    ("manifest", |client| call(client.manifest(DIGEST))),
    ("blob", |client| call(client.blob(DIGEST, 3, 4096))),
    ("pin", |client| call(client.pin(Some(plan(Codec::Jpeg))))),
    ("unpin", |client| call(client.pin(None))),
    ("edges", |client| call(client.edges())),
    ("retire", |client| call(client.retire(DIGEST))),
];

fn call<'a, T>(asked: impl Future<Output = Result<T, LinkError>> + 'a) -> Calling<'a> {
    Box::pin(async move { drop(asked.await) })
}

fn plan(codec: Codec) -> Plan {
    Plan { epoch: u64::MAX, model: DIGEST, exit: 3, cut: 4, direction: Direction::EdgeFirst, codec }
}

fn ask() -> AskRequest {
    let (model, input, beside) = ("alex".to_owned(), activation(12), vec![activation(3)]);
    AskRequest { id: 9, model, deadline_us: 100_000, accuracy_floor: 0.875, input, beside, trace: None }
}

fn picture() -> Activation {
    Activation { codec: Codec::Png, dims: vec![1, 3, 4, 4], ..activation(30) }
}

fn signature() -> Signature {
    Signature { statement: Bytes::from_static(b"a statement"), minisig: Bytes::from_static(b"untrusted comment: \n") }
}

fn file(name: &str, extension: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name).with_extension(extension)
}

async fn listening() -> (Link, Server, String, Receiver<String>) {
    let (to, heard) = channel();
    let (link, server, address) = serve(Limits::default(), Heard(Mutex::new(to))).await;
    (link, server, address, heard)
}

/// What one client says that makes this call.
async fn said(calls: Call) -> Vec<u8> {
    let (link, server, _, _heard) = listening().await;
    let relay = Relay::to(server.local_addr());
    calls(&connect(&link, &relay.address).await).await;
    relay.said()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_once_said_is_still_understood() {
    let is_writing = std::env::var_os("EDGENT_CORPUS").is_some_and(|what| what == "write");
    let (_link, _server, address, heard) = listening().await;
    for (name, calls) in CALLS {
        let [bytes, text] = ["bin", "txt"].map(|extension| file(name, extension));
        if is_writing && !bytes.exists() {
            std::fs::create_dir_all(bytes.parent().unwrap()).unwrap();
            std::fs::write(&bytes, said(*calls).await).unwrap();
        }
        let mut peer = raw(&address);
        peer.write_all(&std::fs::read(&bytes).expect(name)).unwrap();
        let understood = heard.recv_timeout(TOO_LONG).expect(name);
        if is_writing {
            std::fs::write(&text, &understood).unwrap();
        }
        assert_eq!(understood, std::fs::read_to_string(&text).expect(name), "{name}");
        // Each method has a file, and no file is of another method.
        assert!(
            understood.split_once(' ').is_some_and(|(method, _)| name.contains(method) || *name == "unpin"),
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spoiled_calls_of_every_kind_hurt_nobody() {
    let (link, _server, address, heard) = listening().await;
    for (name, _) in CALLS {
        let good = std::fs::read(file(name, "bin")).expect(name);
        for seed in 0..100 {
            let mut peer = raw(&address);
            // It may be closed while it is still talking.
            let _ = peer.write_all(&spoil(&good, &mut Random(seed)));
            let _ = peer.shutdown(Shutdown::Write);
            expect_close(&mut peer);
        }
        while heard.try_recv().is_ok() {}
        let client = connect(&link, &address).await;
        client.versions().await.unwrap_err();
        assert!(heard.recv_timeout(TOO_LONG).expect(name).starts_with("versions"), "{name}");
    }
}
