//! What both sides say arrives as it was said, and every call ends.
#![allow(clippy::unwrap_used)]

mod support;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use edgent_link::*;
use support::*;
use tokio::time::timeout;

/// Awaits, but not for ever.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(TOO_LONG, future).await.expect("this should have come to an end")
}

/// Says what it was told, for every method.
struct Full;

fn tensor(name: &str, element_type: ElementType, dims: &[u32]) -> TensorDescription {
    TensorDescription { name: name.to_owned(), element_type, dims: dims.to_vec() }
}

fn description() -> Description {
    let exit = |name: &str, accuracy| ExitDescription {
        name: name.to_owned(),
        accuracy,
        segments: vec!["trunk".to_owned(), name.to_owned()],
        outputs: vec![tensor("boxes", ElementType::F32, &[1, 4]), tensor(name, ElementType::I64, &[])],
    };
    Description {
        models: vec![
            ModelDescription {
                name: "alex".to_owned(),
                digest: Digest([1; 32]),
                input_type: ElementType::F32,
                input_dims: vec![1, 3, 32, 32],
                classes: (0..1000).map(|class| format!("class {class}")).collect(),
                exits: vec![exit("early", 0.5), exit("late", 0.75)],
                inputs: vec![tensor("x", ElementType::F32, &[1, 3, 32, 32]), tensor("state", ElementType::F16, &[2])],
                computed: vec![Computed { backend: "tract".to_owned(), threads: 2, segments: 7 }],
            },
            ModelDescription {
                name: String::new(),
                digest: Digest([2; 32]),
                input_type: ElementType::Bf16,
                input_dims: vec![],
                classes: vec![],
                exits: vec![],
                inputs: vec![],
                computed: vec![],
            },
        ],
    }
}

fn plan() -> Plan {
    Plan { epoch: u64::MAX, model: Digest([3; 32]), exit: 4, cut: 5, direction: Direction::EdgeFirst, codec: Codec::U8 }
}

fn answer(request: AskRequest) -> Answer {
    Answer {
        id: request.id,
        label: request.model.len() as u32,
        scores: vec![0.25, -1.0, f32::MIN_POSITIVE],
        outputs: request.beside,
        exit: 1,
        cut: 2,
        direction: Direction::DeviceFirst,
        codec: Codec::U8,
        placement: Placement::Split,
        latency_us: 10,
        deadline_us: request.deadline_us,
        deadline_met: true,
        degraded: (request.id == 2).then(|| "the edge is gone".to_owned()),
        epoch: 77,
        rate_bps: 1_000_000_000_000,
        predicted_us: 61_000,
        in_time: 0.9375,
        model: (request.id == 2).then_some(Digest([6; 32])),
    }
}

fn profile(model: Digest) -> ModelProfile {
    let segments = vec![SegmentTime { segment: 3, p50_us: 1.5, p90_us: 2.5, samples: 9 }];
    let codecs = vec![CodecTime { codec: Codec::U8Lz4, encode_us_per_mib: 0.5, decode_us_per_mib: 0.25 }];
    ModelProfile { model, segments, queue_us: 0.125, codec_us_per_mib: 300.5, codecs }
}

fn now() -> Now {
    let plan = RunningPlan {
        exit: 2,
        cut: 9,
        direction: Direction::EdgeFirst,
        placement: Placement::Split,
        codec: "u8-lz4".to_owned(),
        epoch: u64::MAX,
        predicted_us: 12_345,
        in_time: 0.875,
    };
    let (answers, p50_us, p99_us, exits) = (120, 3, 4, vec![20, 0, 100]);
    let (edge_configured, edge_connected) = (true, false);
    Now { deadline_us: 100_000, plan: Some(plan), edge_configured, edge_connected, answers, p50_us, p99_us, exits }
}

impl Service for Full {
    fn describe(&self, reply: Reply<Description>) {
        reply.send(Ok(description()));
    }

    fn install_plan(&self, plan_: Plan, reply: Reply<()>) {
        let known = if plan_ == plan() { Ok(()) } else { Err(Fault::new(FaultKind::UnknownModel, "which?")) };
        reply.send(known);
    }

    fn infer(&self, request: InferRequest, reply: Reply<InferReply>) {
        // From another thread, as real work does.
        std::thread::spawn(move || reply.send(Ok(echo(request))));
    }

    fn ask(&self, request: AskRequest, reply: Reply<Answer>) {
        reply.send(Ok(answer(request)));
    }

    fn profile(&self, model: Digest, reply: Reply<ModelProfile>) {
        reply.send(Ok(profile(model)));
    }

    fn stats(&self, reply: Reply<Stats>) {
        let now = Some(now());
        reply.send(Ok(Stats { uptime_ms: 1, tensor_bytes_copied: u64::MAX, bytes_in: 1, now, ..Stats::default() }));
    }
}

#[tokio::test]
async fn every_method_keeps_its_values() {
    let (link, _server, address) = serve(Limits::default(), Full).await;
    let client = connect(&link, &address).await;
    assert_eq!(client.peer(), &edge());
    assert_eq!(client.describe().await.unwrap(), description());
    client.install_plan(plan()).await.unwrap();
    let refused = client.install_plan(Plan { cut: 6, ..plan() }).await;
    assert!(
        matches!(refused, Err(LinkError::Fault(Fault { kind: FaultKind::UnknownModel, message })) if message == "which?")
    );

    for bytes in [0, 1, 7, 8, 64, 4096, 16383, 16384, 16385, 100_000, 3 << 20] {
        let request = request(bytes as u64, bytes);
        assert_eq!(client.infer(request.clone()).await.unwrap(), echo(request), "{bytes} bytes");
    }
    let coded = Activation {
        codec: Codec::U8,
        element_type: ElementType::F16,
        dims: vec![1, 2, 3],
        scales: vec![0.5, 0.25],
        offsets: vec![-1.0, 1.0],
        bytes: Bytes::from_static(&[1, 2, 3, 4, 5, 6]),
    };
    // Its scales alone take more than a segment.
    let (channels, each) = (2000, 10);
    let wide = Activation {
        dims: vec![1, channels, each],
        scales: (0..channels).map(|channel| channel as f32 / 8.0).collect(),
        offsets: (0..channels).map(|channel| -(channel as f32)).collect(),
        bytes: activation((channels * each) as usize).bytes,
        ..coded.clone()
    };
    for (activation, beside) in [
        (coded.clone(), vec![]),
        (wide, vec![]),
        // Several tensors that cross together; the first goes without a copy, the others stand behind it.
        (activation(100_000), vec![coded, activation(0), activation(70_000)]),
    ] {
        let request = InferRequest { activation, beside, trace: trace(), ..request(1, 0) };
        assert!(request.trace.is_some());
        assert_eq!(client.infer(request.clone()).await.unwrap(), echo(request));
    }

    for id in [1, 2] {
        let model = "alex".repeat(1000);
        let beside = vec![activation(10); id as usize];
        let (input, trace) = (activation(50_000), trace().filter(|_| id == 2));
        let request = AskRequest { id, model, deadline_us: 100_000, accuracy_floor: 0.75, input, beside, trace };
        assert_eq!(client.ask(request.clone()).await.unwrap(), answer(request));
    }
    assert_eq!(client.profile(Digest([8; 32])).await.unwrap(), profile(Digest([8; 32])));

    let stats = client.stats().await.unwrap();
    assert_eq!((stats.uptime_ms, stats.tensor_bytes_copied, stats.connections), (1, u64::MAX, 1));
    assert_eq!(stats.now, Some(now()));
    let probe = client.probe(10_000, 200_000).await.unwrap();
    assert_eq!((probe.up_bytes, probe.down_bytes), (10_000, 200_000));
    // The service does not know these: they are the link's own.
    assert!(stats.bytes_in > 3 << 20 && stats.bytes_out > 3 << 20, "{stats:?}");
    assert!(client.traffic().bytes_in > 200_000 + stats.bytes_out - 10_000);
}

/// Answers what is asked about versions, if what was said came as it was.
struct Versions;

fn blobs(count: usize) -> Vec<BlobName> {
    (0..count).map(|index| BlobName { digest: Digest([index as u8; 32]), bytes: u64::MAX - index as u64 }).collect()
}

fn version(model: &str, index: usize) -> Version {
    Version {
        model: model.to_owned(),
        version: u64::MAX - index as u64,
        digest: Digest([index as u8; 32]),
        current: index.is_multiple_of(2),
        previous: index.is_multiple_of(3),
        commit_us: 7,
        on_trial: index.is_multiple_of(5),
        quarantined: index.is_multiple_of(7),
    }
}

fn versions(count: usize) -> Vec<Version> {
    (0..count).map(|index| version("alex", index)).collect()
}

fn bytes(count: usize) -> Bytes {
    activation(count).bytes
}

fn signatures(count: usize) -> Vec<Signature> {
    let part = |index: usize| bytes(index * (SIGNATURE_BYTES_MAX / SIGNATURES_MAX));
    (0..count).map(|index| Signature { statement: part(index), minisig: part(SIGNATURES_MAX - index.min(8)) }).collect()
}

fn told<T>(what: impl std::fmt::Debug) -> Result<T, Fault> {
    Err(Fault::new(FaultKind::Refused, format!("{what:?}")))
}

impl Service for Versions {
    fn offer(&self, manifest: Bytes, reply: Reply<Vec<BlobName>>) {
        reply.send(if manifest == bytes(manifest.len()) { Ok(blobs(manifest.len())) } else { told(manifest) });
    }

    fn offer_piece(&self, manifest: Digest, total: u64, offset: u64, piece: Bytes, reply: Reply<Vec<BlobName>>) {
        let expected = (manifest, total, offset) == (Digest([4; 32]), u64::MAX, 3) && piece == bytes(piece.len());
        reply.send(if expected { Ok(blobs(piece.len())) } else { told((manifest, total, offset, piece.len())) });
    }

    fn put_blob(&self, digest: Digest, offset: u64, piece: Bytes, reply: Reply<()>) {
        let expected = (digest, offset) == (Digest([7; 32]), u64::MAX) && piece == bytes(piece.len());
        reply.send(if expected { Ok(()) } else { told((digest, offset, piece.len())) });
    }

    fn install(&self, model: Digest, trial: Option<Trial>, reply: Reply<Version>) {
        let expected = matches!(trial, None | Some(Trial { share: 0.5, time_ms: 7 }));
        reply.send(if expected && model == Digest([6; 32]) { Ok(version("alex", 5)) } else { told((model, trial)) });
    }

    fn prepare(&self, model: Digest, reply: Reply<Version>) {
        reply.send(if model == Digest([5; 32]) { Ok(version("alex", 6)) } else { told(model) });
    }

    fn rollback(&self, model: String, reply: Reply<Version>) {
        reply.send(Ok(version(&model, 3)));
    }

    fn versions(&self, reply: Reply<Vec<Version>>) {
        reply.send(Ok(versions(VERSIONS_MAX)));
    }

    fn manifest(&self, digest: Digest, reply: Reply<Bytes>) {
        let absent = || Fault::new(FaultKind::NotFound, format!("no bundle {digest}"));
        reply.send((digest == Digest([8; 32])).then(|| bytes(50_000)).ok_or_else(absent));
    }

    fn blob(&self, digest: Digest, offset: u64, max_bytes: u32, reply: Reply<Bytes>) {
        let blob = bytes(if digest == Digest([9; 32]) { 2 * PIECE_BYTES + 5 } else { 0 });
        let start = blob.len().min(offset as usize);
        reply.send(Ok(blob.slice(start..blob.len().min(start + max_bytes as usize))));
    }

    fn retire(&self, model: Digest, reply: Reply<()>) {
        reply.send(if model == Digest([10; 32]) { Ok(()) } else { told(model) });
    }

    fn pin(&self, plan: Option<Plan>, reply: Reply<Plan>) {
        reply.send(if plan.is_none_or(|plan| plan == self::plan()) {
            Ok(Plan { epoch: 7, ..self::plan() })
        } else {
            told(plan)
        });
    }

    fn sign(&self, model: Digest, given: Vec<Signature>, reply: Reply<()>) {
        reply.send(if given == signatures(usize::from(model.0[0])) { Ok(()) } else { told(given) });
    }

    fn signatures(&self, model: Digest, reply: Reply<Vec<Signature>>) {
        reply.send(Ok(signatures(usize::from(model.0[0]))));
    }
}

#[tokio::test]
async fn versions_come_and_go() {
    let (link, _server, address) = serve(Limits::default(), Versions).await;
    let client = connect(&link, &address).await;
    // On both sides of where bytes are no longer copied, and of what the first segment holds.
    for count in [0, 1, 1000, 1100, BLOBS_MAX] {
        assert_eq!(client.offer(bytes(count)).await.unwrap(), blobs(count));
        let by_piece = client.offer_piece(Digest([4; 32]), u64::MAX, 3, bytes(count)).await;
        assert_eq!(by_piece.unwrap(), blobs(count));
    }
    for count in [0, 1, 1100, (16 << 10) - 1, 16 << 10, PIECE_BYTES, 3 << 20] {
        client.put_blob(Digest([7; 32]), u64::MAX, bytes(count)).await.unwrap();
    }
    for trial in [None, Some(Trial { share: 0.5, time_ms: 7 })] {
        assert_eq!(client.install(Digest([6; 32]), trial).await.unwrap(), version("alex", 5));
    }
    assert_eq!(client.prepare(Digest([5; 32])).await.unwrap(), version("alex", 6));
    for model in ["", "alex"] {
        assert_eq!(client.rollback(model).await.unwrap(), version(model, 3));
    }
    assert_eq!(client.versions().await.unwrap(), versions(VERSIONS_MAX));
    assert_eq!(client.manifest(Digest([8; 32])).await.unwrap(), bytes(50_000));
    let mut blob = Vec::new();
    while let piece @ [_, ..] = &*client.blob(Digest([9; 32]), blob.len() as u64, PIECE_BYTES as u32).await.unwrap() {
        blob.extend_from_slice(piece);
    }
    assert_eq!(blob, bytes(2 * PIECE_BYTES + 5));
    client.retire(Digest([10; 32])).await.unwrap();
    for pinned in [None, Some(plan())] {
        assert_eq!(client.pin(pinned).await.unwrap(), Plan { epoch: 7, ..plan() });
    }
    for count in [0, 1, SIGNATURES_MAX] {
        let model = Digest([count as u8; 32]);
        client.sign(model, signatures(count)).await.unwrap();
        assert_eq!(client.signatures(model).await.unwrap(), signatures(count));
    }
    // One too many is refused by who is told, and not believed by who asked.
    let model = Digest([SIGNATURES_MAX as u8 + 1; 32]);
    let told = client.sign(model, signatures(SIGNATURES_MAX + 1)).await.unwrap_err().to_string();
    assert!(told.contains("9 signatures, where at most 8 are allowed"), "{told}");
    assert!(matches!(client.signatures(model).await, Err(LinkError::Protocol(_))));

    let refused = [
        (
            client.offer_piece(Digest([4; 32]), 1, 2, bytes(3)).await.map(drop),
            format!("refused: ({:?}, 1, 2, 3)", Digest([4; 32])),
        ),
        (client.put_blob(Digest([1; 32]), 2, bytes(3)).await, format!("refused: ({:?}, 2, 3)", Digest([1; 32]))),
        (
            client.install(Digest([1; 32]), None).await.map(drop),
            format!("refused: {:?}", (Digest([1; 32]), None::<Trial>)),
        ),
        (
            client.install(Digest([6; 32]), Some(Trial { share: 1.5, time_ms: 7 })).await.map(drop),
            "bad request: a share of 1.5, which is not within 0 and 1".to_owned(),
        ),
        (client.prepare(Digest([1; 32])).await.map(drop), format!("refused: {:?}", Digest([1; 32]))),
        (client.manifest(Digest([1; 32])).await.map(drop), format!("not found: no bundle {}", Digest([1; 32]))),
        (client.retire(Digest([1; 32])).await, format!("refused: {:?}", Digest([1; 32]))),
        (
            client.pin(Some(Plan { cut: 6, ..plan() })).await.map(drop),
            format!("refused: {:?}", Some(Plan { cut: 6, ..plan() })),
        ),
    ];
    for (outcome, expected) in refused {
        assert_eq!(outcome.unwrap_err().to_string(), format!("the peer answered: {expected}"));
    }
    for outcome in
        [client.offer(bytes(16 << 20)).await.map(drop), client.put_blob(Digest([7; 32]), 0, bytes(16 << 20)).await]
    {
        assert!(matches!(outcome, Err(LinkError::TooLarge { .. })), "{outcome:?}");
    }
}

#[tokio::test]
async fn more_than_was_asked_for_is_not_believed() {
    struct TooMuch;
    impl Service for TooMuch {
        fn offer(&self, _: Bytes, reply: Reply<Vec<BlobName>>) {
            reply.send(Ok(blobs(BLOBS_MAX + 1)));
        }

        fn versions(&self, reply: Reply<Vec<Version>>) {
            reply.send(Ok(versions(VERSIONS_MAX + 1)));
        }

        fn blob(&self, _: Digest, _: u64, max_bytes: u32, reply: Reply<Bytes>) {
            reply.send(Ok(bytes(max_bytes as usize + 1)));
        }
    }
    let (link, _server, address) = serve(Limits::default(), TooMuch).await;
    let client = connect(&link, &address).await;
    let outcomes = [
        (client.offer(bytes(1)).await.map(drop), "8193 blobs, where at most 8192 are allowed"),
        (client.versions().await.map(drop), "1025 versions, where at most 1024 are allowed"),
        (client.blob(Digest([1; 32]), 0, 10).await.map(drop), "11 bytes, where at most 10 are allowed"),
    ];
    for (outcome, expected) in outcomes {
        assert_eq!(outcome.unwrap_err().to_string(), format!("the peer broke the protocol: {expected}"));
    }
    assert!(!client.is_closed());
}

#[tokio::test]
async fn many_calls_at_once_get_their_own_answers() {
    let (link, _server, address) = serve(Limits::default(), Full).await;
    let client = connect(&link, &address).await;
    let calls: Vec<_> = (0..500)
        .map(|id| {
            let client = client.clone();
            tokio::spawn(async move { client.infer(request(id, id as usize * 100)).await })
        })
        .collect();
    for (id, call) in (0..).zip(calls) {
        assert_eq!(call.await.unwrap().unwrap(), echo(request(id, id as usize * 100)));
    }
}

#[tokio::test]
async fn what_a_role_does_not_do_is_named() {
    let (link, _server, address) = serve(Limits::default(), Echo).await;
    let client = connect(&link, &address).await;
    let digest = Digest([1; 32]);
    let outcomes = [
        ("describe", client.describe().await.map(drop)),
        ("offer", client.offer(bytes(1)).await.map(drop)),
        ("offer_piece", client.offer_piece(digest, 1, 0, bytes(1)).await.map(drop)),
        ("put_blob", client.put_blob(digest, 0, bytes(1)).await),
        ("install", client.install(digest, None).await.map(drop)),
        ("prepare", client.prepare(digest).await.map(drop)),
        ("rollback", client.rollback("").await.map(drop)),
        ("versions", client.versions().await.map(drop)),
        ("manifest", client.manifest(digest).await.map(drop)),
        ("blob", client.blob(digest, 0, 1).await.map(drop)),
        ("retire", client.retire(digest).await),
        ("pin", client.pin(None).await.map(drop)),
        ("sign", client.sign(digest, vec![]).await),
        ("signatures", client.signatures(digest).await.map(drop)),
    ];
    for (method, outcome) in outcomes {
        match outcome {
            Err(LinkError::Fault(Fault { kind: FaultKind::Unsupported, message })) => {
                assert_eq!(message, format!("a host in the role `edge` does not answer `{method}`"));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn versions_are_compared_on_both_sides() {
    let (link, _server, address) = serve(Limits::default(), Echo).await;
    let cases = [(PROTOCOL_VERSION, None), (0, Some((0, 1))), (2, Some((2, 1))), (u16::MAX, Some((u16::MAX, 1)))];
    for (protocol, expected) in cases {
        let outcome = link.connect(&address, Hello { protocol, ..device() }, Limits::default()).await;
        let mismatch = match outcome {
            Ok(_) => None,
            Err(LinkError::Version { ours, theirs }) => Some((ours, theirs)),
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(mismatch, expected);
    }
}

#[tokio::test]
async fn a_server_of_another_version_names_it() {
    let link = link();
    let hello = Hello { protocol: 7, ..edge() };
    let server = link.serve("127.0.0.1:0", hello, Limits::default(), Arc::new(Echo)).await.unwrap();
    let error = link.connect(&server.local_addr().to_string(), device(), Limits::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "protocol version 7 there, 1 here: update the older side");
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_is_sent() {
    let small = Limits { message_bytes: 100_000, ..Limits::default() };
    // Who has the lower limit: the server, the client, or the way back.
    for (there, here) in [(small, Limits::default()), (Limits::default(), small)] {
        let (link, _server, address) = serve(there, Echo).await;
        let client = link.connect(&address, device(), here).await.unwrap();
        match client.infer(request(1, 100_000)).await {
            Err(LinkError::TooLarge { bytes: 100_000.., limit: 100_000 }) => {}
            other => panic!("{other:?}"),
        }
        assert!(matches!(client.probe(0, 100_000).await, Err(LinkError::TooLarge { .. })));
        assert_eq!(client.infer(request(2, 90_000)).await.unwrap().id, 2);
    }
}

#[tokio::test]
async fn a_reply_that_is_too_large_is_a_fault() {
    struct Grow;
    impl Service for Grow {
        fn infer(&self, request: InferRequest, reply: Reply<InferReply>) {
            let activation = activation(200_000);
            reply.send(Ok(InferReply { activation, ..echo(request) }));
        }
    }
    let (link, _server, address) = serve(Limits::default(), Grow).await;
    let small = Limits { message_bytes: 100_000, ..Limits::default() };
    let client = link.connect(&address, device(), small).await.unwrap();
    let refused = client.infer(request(1, 10)).await;
    assert!(matches!(refused, Err(LinkError::Fault(Fault { kind: FaultKind::TooLarge, .. }))), "{refused:?}");
    assert!(!client.is_closed());
}

#[tokio::test]
async fn a_contradictory_activation_is_not_sent() {
    let (link, _server, address) = serve(Limits::default(), Echo).await;
    let client = connect(&link, &address).await;
    let contradictory = Activation { dims: vec![11], ..activation(10) };
    let first = InferRequest { activation: contradictory.clone(), ..request(1, 10) };
    let beside = InferRequest { beside: vec![activation(3), contradictory], ..request(1, 10) };
    for request in [first, beside] {
        assert!(matches!(client.infer(request).await, Err(LinkError::Activation(_))));
    }
}

#[tokio::test]
async fn one_call_more_than_allowed_finds_the_host_busy() {
    let (hold, held) = Hold::new();
    let (link, _server, address) = serve(Limits { calls_in_flight: 2, ..Limits::default() }, hold).await;
    let client = connect(&link, &address).await;
    let calls: Vec<_> = [1, 2]
        .map(|id| {
            let client = client.clone();
            tokio::spawn(async move { client.infer(request(id, 10)).await })
        })
        .into();
    let first = tokio::task::spawn_blocking(move || [held.recv().unwrap(), held.recv().unwrap()]).await.unwrap();
    let busy = client.infer(request(3, 10)).await;
    assert!(matches!(busy, Err(LinkError::Fault(Fault { kind: FaultKind::Busy, .. }))), "{busy:?}");
    // A busy host still shows life.
    client.probe(0, 0).await.unwrap();
    for (request, reply) in first {
        reply.send(Ok(echo(request)));
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_own_limit_makes_calls_wait() {
    let (hold, held) = Hold::new();
    let (link, _server, address) = serve(Limits::default(), hold).await;
    let one = Limits { calls_in_flight: 1, ..Limits::default() };
    let client = link.connect(&address, device(), one).await.unwrap();
    let calls = [0, 1, 2].map(|id| {
        let client = client.clone();
        tokio::spawn(async move { client.infer(request(id, 10)).await })
    });
    let other = connect(&link, &address).await;
    for _ in 0..3 {
        let (request, reply) = held.recv_timeout(TOO_LONG).unwrap();
        // Time enough for the next call to come, if it were to.
        for _ in 0..20 {
            other.probe(0, 0).await.unwrap();
        }
        assert!(held.try_recv().is_err(), "two calls at once");
        reply.send(Ok(echo(request)));
    }
    for call in calls {
        soon(call).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_dropped_call_is_cancelled_there_and_frees_its_place_here() {
    let (hold, held) = Hold::new();
    let (link, server, address) = serve(Limits::default(), hold).await;
    let one = Limits { calls_in_flight: 1, ..Limits::default() };
    let client = link.connect(&address, device(), one).await.unwrap();
    for id in 0..20 {
        let arrived = {
            let call = client.infer(request(id, 10));
            tokio::pin!(call);
            loop {
                // Drives the call until it is there; then it is dropped.
                let _ = timeout(Duration::from_millis(1), &mut call).await;
                if let Ok(arrived) = held.try_recv() {
                    break arrived;
                }
            }
        };
        // With one place, this gets through only after the other is out of the way.
        soon(client.stats()).await.unwrap_err();
        assert!(arrived.1.is_cancelled());
    }
    drop(server);
}

#[tokio::test]
async fn a_dropped_reply_or_a_panic_is_a_fault() {
    struct Careless;
    impl Service for Careless {
        fn infer(&self, _: InferRequest, _: Reply<InferReply>) {}

        fn stats(&self, _: Reply<Stats>) {
            panic!("on purpose");
        }
    }
    let (link, _server, address) = serve(Limits::default(), Careless).await;
    let client = connect(&link, &address).await;
    let infer = client.infer(request(1, 1)).await.map(drop);
    let stats = client.stats().await.map(drop);
    for (outcome, method) in [(infer, "infer"), (stats, "stats")] {
        match outcome {
            Err(LinkError::Fault(Fault { kind: FaultKind::Internal, message })) => {
                assert_eq!(message, format!("this host dropped a call of `{method}`"));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_shutdown_answers_what_is_in_flight_and_nothing_else() {
    let (hold, held) = Hold::new();
    let (link, server, address) = serve(Limits::default(), hold).await;
    let client = connect(&link, &address).await;
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.infer(request(1, 1 << 20)).await }
    });
    let (first, reply) = tokio::task::spawn_blocking(move || held.recv().unwrap()).await.unwrap();
    let shutdown = tokio::spawn(server.shutdown(TOO_LONG));
    let refused = soon(async {
        loop {
            match client.stats().await {
                Err(LinkError::Fault(Fault { kind: FaultKind::ShuttingDown, message })) => break message,
                // The shutdown has not arrived yet.
                Err(LinkError::Fault(Fault { kind: FaultKind::Unsupported, .. })) => {}
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    assert_eq!(refused, "this host is shutting down");
    assert!(matches!(link.connect(&address, device(), Limits::default()).await, Err(LinkError::Connect { .. })));
    reply.send(Ok(echo(first)));
    assert_eq!(call.await.unwrap().unwrap(), echo(request(1, 1 << 20)));
    soon(shutdown).await.unwrap();
    assert!(matches!(soon(client.closed()).await, LinkError::Lost(_)));
}

/// Who asked to be told is told at once, and what it sends in the same moment is still answered.
#[tokio::test]
async fn who_asked_to_be_told_of_an_end_has_the_time_to_go() {
    let (link, server, address) = serve(Limits::default(), Echo).await;
    let (told, other) = (connect(&link, &address).await, connect(&link, &address).await);
    let leaving = tokio::spawn({
        let told = told.clone();
        async move { told.leaving().await }
    });
    // In their order: the question is there when this is answered.
    told.stats().await.unwrap();
    let shutdown = tokio::spawn(server.shutdown(TOO_LONG));
    soon(leaving).await.unwrap().unwrap();
    assert_eq!(told.infer(request(1, 10)).await.unwrap(), echo(request(1, 10)));
    // Another one is turned away, and its going holds nothing up.
    assert!(other.stats().await.is_err());
    drop((told, other));
    soon(shutdown).await.unwrap();
}

#[tokio::test]
async fn a_shutdown_ends_with_its_grace() {
    let (hold, held) = Hold::new();
    let (link, server, address) = serve(Limits::default(), hold).await;
    let client = connect(&link, &address).await;
    let call = tokio::spawn(async move { client.infer(request(1, 10)).await });
    let _held = tokio::task::spawn_blocking(move || held.recv().unwrap()).await.unwrap();
    soon(server.shutdown(Duration::from_millis(10))).await;
    assert!(matches!(soon(call).await.unwrap(), Err(LinkError::Lost(_))));
}

/// Two ways to lose the peer, and the dropped server as a third: whoever waits, learns it.
#[tokio::test]
async fn a_lost_peer_ends_every_call() {
    type Lose = fn(&Relay, &mut Option<Server>);
    let ways: [(&str, Lose); 3] = [
        ("cut", |relay, _| relay.cut()),
        ("frozen", |relay, _| relay.freeze()),
        ("dropped", |_, server| drop(server.take())),
    ];
    for (way, lose) in ways {
        let (hold, held) = Hold::new();
        let (link, server, _) = serve(Limits::default(), hold).await;
        let relay = Relay::to(server.local_addr());
        let quick = Limits { heartbeat: Duration::from_millis(200), heartbeat_strikes: 3, ..Limits::default() };
        let client = link.connect(&relay.address, device(), quick).await.unwrap();
        let calls: Vec<_> = (0..3)
            .map(|id| {
                let client = client.clone();
                tokio::spawn(async move { client.infer(request(id, 10)).await })
            })
            .collect();
        let held: Vec<_> = tokio::task::spawn_blocking(move || held.iter().take(3).collect()).await.unwrap();
        let mut server = Some(server);
        lose(&relay, &mut server);
        for call in calls {
            let outcome = soon(call).await.unwrap();
            assert!(matches!(outcome, Err(LinkError::Lost(_))), "{way}: {outcome:?}");
        }
        assert!(matches!(soon(client.closed()).await, LinkError::Lost(_)));
        assert!(client.is_closed());
        assert!(matches!(soon(client.describe()).await, Err(LinkError::Lost(_))));
        drop(held);
    }
}

#[tokio::test]
async fn a_quiet_connection_lives_by_its_heartbeat() {
    // The server's patience is a few heartbeats: without them, it would close.
    let (link, _server, address) = serve(Limits { idle: Duration::from_millis(1500), ..Limits::default() }, Echo).await;
    let with = |heartbeat| Limits { heartbeat, ..Limits::default() };
    let lively = link.connect(&address, device(), with(Duration::from_millis(40))).await.unwrap();
    let silent = link.connect(&address, device(), with(TOO_LONG)).await.unwrap();
    assert!(matches!(soon(silent.closed()).await, LinkError::Lost(_)));
    assert!(!lively.is_closed());
    lively.infer(request(1, 1)).await.unwrap();
}

#[tokio::test]
async fn nobody_there() {
    let link = link();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Accepts, and never says hello.
    let brief = Duration::from_millis(50);
    let short = Limits { handshake: brief, hello: brief, ..Limits::default() };
    let silent = link.connect(&address, device(), short).await;
    let awaited = if is_over_tls() { "waiting for TLS to stand" } else { "waiting for the peer's hello" };
    assert!(matches!(silent, Err(LinkError::Timeout(what)) if what == awaited), "{silent:?}");
    drop(listener);
    let gone = link.connect(&address, device(), Limits::default()).await.unwrap_err();
    assert!(gone.to_string().starts_with(&address), "{gone}");
    let taken = link.serve("127.0.0.1:notaport", edge(), Limits::default(), Arc::new(Echo)).await;
    assert!(matches!(taken, Err(LinkError::Connect { .. })));
}
