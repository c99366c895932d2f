//! The HTTP front of real hosts, asked by gRPC: what REST answers, and what is no request.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/front.rs"]
mod front;
#[path = "support/grpc.rs"]
mod grpc;
#[path = "support/http.rs"]
#[allow(dead_code)]
mod http1;

use front::{Damage, bundle, example, host, several};
use grpc::inference::infer_parameter::ParameterChoice;
use grpc::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use grpc::inference::*;
use grpc::{Client, connect};
use prost::Message;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::SocketAddr;
use tonic::{Code, Request, Status};

const MODEL: &str = "branchy-alexnet";

fn parameters(given: &[(&str, f64)]) -> HashMap<String, InferParameter> {
    let parameter = |value: f64| InferParameter { parameter_choice: Some(ParameterChoice::DoubleParam(value)) };
    given.iter().map(|(name, value)| ((*name).to_owned(), parameter(*value))).collect()
}

/// A request with its pixels as bytes.
fn raw(pixels: &[u8], wishes: &[(&str, f64)]) -> ModelInferRequest {
    let input = InferInputTensor {
        name: "image".to_owned(),
        datatype: "UINT8".to_owned(),
        shape: vec![1, 3, 64, 64],
        parameters: HashMap::new(),
        contents: None,
    };
    ModelInferRequest {
        model_name: MODEL.to_owned(),
        id: "seven".to_owned(),
        parameters: parameters(wishes),
        inputs: vec![input],
        raw_input_contents: vec![pixels.to_vec().into()],
        ..Default::default()
    }
}

/// The same with them as numbers.
fn typed(pixels: &[u8], wishes: &[(&str, f64)]) -> ModelInferRequest {
    let mut request = raw(pixels, wishes);
    request.raw_input_contents.clear();
    let uint_contents = pixels.iter().copied().map(u32::from).collect();
    request.inputs[0].contents = Some(InferTensorContents { uint_contents, ..Default::default() });
    request
}

/// What an answer's parameters say, as REST has them.
fn said(answer: &ModelInferResponse) -> Value {
    let value = |parameter: &InferParameter| match parameter.parameter_choice.clone().unwrap() {
        ParameterChoice::BoolParam(value) => Value::from(value),
        ParameterChoice::Int64Param(value) => value.into(),
        ParameterChoice::Uint64Param(value) => value.into(),
        ParameterChoice::DoubleParam(value) => value.into(),
        ParameterChoice::StringParam(value) => value.into(),
    };
    answer.parameters.iter().map(|(name, parameter)| (name.clone(), value(parameter))).collect()
}

async fn infer(
    client: &mut Client,
    request: impl tonic::IntoRequest<ModelInferRequest>,
) -> Result<ModelInferResponse, Status> {
    client.model_infer(request).await.map(tonic::Response::into_inner)
}

/// A message in its frame.
fn framed(message: &[u8]) -> Vec<u8> {
    [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

/// A sample of `/metrics`.
fn metric(at: SocketAddr, name: &str) -> f64 {
    let text = http1::get(at, "/metrics").text();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_either_role_tells_what_it_serves() {
    for role in ["device", "edge"] {
        let (process, at) = host(role, bundle(), &[]).await;
        let mut client = connect(at).await.client();
        assert!(client.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
        assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
        let server = client.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
        assert_eq!(json!(server.extensions), http1::get(at, "/v2").json()["extensions"]);
        let named = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        let about = |(name, version)| ModelMetadataRequest { name, version };
        let metadata = client.model_metadata(about(named(MODEL, ""))).await.unwrap().into_inner();
        let rest = http1::get(at, "/v2/models/branchy-alexnet").json();
        let tensors = |tensors: &[model_metadata_response::TensorMetadata]| -> Value {
            tensors.iter().map(|t| json!({ "name": t.name, "datatype": t.datatype, "shape": t.shape })).collect()
        };
        assert_eq!(
            (tensors(&metadata.inputs), tensors(&metadata.outputs)),
            (rest["inputs"].clone(), rest["outputs"].clone())
        );
        assert_eq!(
            (json!(metadata.versions), json!(metadata.platform)),
            (rest["versions"].clone(), rest["platform"].clone())
        );
        let version = metadata.versions[0].clone();
        let ready = |(name, version)| ModelReadyRequest { name, version };
        for given in ["", &version] {
            assert!(client.model_ready(ready(named(MODEL, given))).await.unwrap().into_inner().ready);
        }
        for (name, version, why) in [("lenet", "", "no model 'lenet'"), (MODEL, "7", "version '7'")] {
            let unknown = client.model_ready(ready(named(name, version))).await.unwrap_err();
            assert_eq!((unknown.code(), unknown.message().contains(why)), (Code::NotFound, true), "{unknown}");
            let unknown = client.model_metadata(about(named(name, version))).await.unwrap_err();
            assert_eq!((unknown.code(), unknown.message().contains(why)), (Code::NotFound, true), "{unknown}");
        }
        let index = RepositoryIndexRequest { repository_name: String::new(), ready: true };
        let index = client.repository_index(index).await.unwrap().into_inner().models;
        let row = (index[0].name.as_str(), index[0].version.as_str(), index[0].state.as_str());
        assert_eq!((index.len(), row), (1, (MODEL, version.as_str(), "READY")));
        let load = RepositoryModelLoadRequest { repository_name: String::new(), model_name: MODEL.to_owned() };
        let load = client.repository_model_load(load).await.unwrap_err();
        assert_eq!((load.code(), load.message().contains("edgent push")), (Code::Unimplemented, true));
        // The client stays connected.
        assert!(process.end().await.unwrap().success(), "SIGTERM ends a host with a client of gRPC in good order");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_answered_by_grpc_as_by_rest() {
    let (_, pixels) = example();
    for role in ["device", "edge"] {
        let (_host, at) = host(role, bundle(), &["--deadline-ms", "5000"]).await;
        let mut client = connect(at).await.client();
        let input = json!({ "name": "image", "datatype": "UINT8", "shape": [1, 3, 64, 64], "data": pixels });
        let body = json!({ "id": "seven", "inputs": [input] }).to_string();
        let rest = http1::post(at, "/v2/models/branchy-alexnet/infer", &[], body.as_bytes()).json();
        let scores: Vec<f32> = serde_json::from_value(rest["outputs"][0]["data"].clone()).unwrap();
        let label = rest["outputs"][1]["data"][0].as_i64().unwrap();
        for (request, is_raw) in [(raw(&pixels, &[]), true), (typed(&pixels, &[]), false)] {
            let answer = infer(&mut client, request).await.unwrap();
            assert_eq!((&answer.id[..], &answer.model_name[..]), ("seven", MODEL));
            assert_eq!(json!(answer.model_version), rest["model_version"]);
            let told = said(&answer);
            for name in
                ["class", "exit", "accuracy", "cut", "placement", "deadline_met", "degraded", "epoch", "deadline_ms"]
            {
                assert_eq!(told[name], rest["parameters"][name], "{role}: {name}, {told}");
            }
            assert!(told["latency_ms"].as_f64().unwrap() > 0.0, "{told}");
            let about: Vec<_> = answer.outputs.iter().map(|t| (&t.name[..], &t.datatype[..], &t.shape[..])).collect();
            assert_eq!(about, [("scores", "FP32", &[1, 10][..]), ("label", "INT64", &[1][..])]);
            let (given, best) = if is_raw {
                let numbers =
                    answer.raw_output_contents[0].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
                (numbers.collect(), i64::from_le_bytes(answer.raw_output_contents[1][..].try_into().unwrap()))
            } else {
                assert!(answer.raw_output_contents.is_empty());
                let contents = |output: usize| answer.outputs[output].contents.clone().unwrap();
                (contents(0).fp32_contents, contents(1).int64_contents[0])
            };
            assert_eq!((given, best), (scores.clone(), label), "{role}");
        }
        // Of this version and no other; one output alone.
        let output = InferRequestedOutputTensor { name: "label".to_owned(), parameters: HashMap::new() };
        let mut request = ModelInferRequest { outputs: vec![output], ..raw(&pixels, &[]) };
        request.model_version = rest["model_version"].as_str().unwrap().to_owned();
        let answer = infer(&mut client, request.clone()).await.unwrap();
        assert_eq!((answer.outputs.len(), answer.raw_output_contents.len()), (1, 1));
        request.model_version = "7".to_owned();
        assert_eq!(infer(&mut client, request).await.unwrap_err().code(), Code::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_its_own_deadline_and_its_own_floor_of_accuracy() {
    let (_, pixels) = example();
    for role in ["device", "edge"] {
        // So slow that it matters.
        let (_host, at) = host(role, bundle(), &["--emulate-slowdown", "50"]).await;
        let mut client = connect(at).await.client();
        let exits = http1::get(at, "/v2/models/branchy-alexnet").json()["exits"].clone();
        let accuracies = exits.as_array().unwrap().iter().map(|exit| exit["accuracy"].as_f64().unwrap());
        let best = accuracies.fold(0.0, f64::max);
        let hurried = said(&infer(&mut client, raw(&pixels, &[("deadline_ms", 0.5)])).await.unwrap());
        assert_eq!((&hurried["deadline_met"], &hurried["deadline_ms"]), (&false.into(), &0.5.into()), "{hurried}");
        let patient = raw(&pixels, &[("deadline_ms", 60_000.0), ("accuracy_floor", best)]);
        let patient = said(&infer(&mut client, patient).await.unwrap());
        assert_eq!((patient["accuracy"].as_f64(), &patient["deadline_met"]), (Some(best), &true.into()));
        assert!(hurried["accuracy"].as_f64() < patient["accuracy"].as_f64(), "{hurried}, {patient}");
        // How long the client waits is a deadline, too; the shorter one holds.
        for (timeout, wished, holds) in [("40m", 60_000.0, 40.0), ("60S", 30.0, 30.0), ("40u", 0.0, 0.04)] {
            let mut request = Request::new(raw(&pixels, &[("deadline_ms", wished)]));
            request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
            assert_eq!(said(&infer(&mut client, request).await.unwrap())["deadline_ms"], holds, "{timeout}");
        }
        let refused = infer(&mut client, raw(&pixels, &[("accuracy_floor", 1.0)])).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message().contains("the accuracy floor is 1")),
            (Code::InvalidArgument, true)
        );
    }
}

/// Several inputs, several outputs, no classes.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_with_several_inputs_and_outputs_is_asked_by_their_names() {
    let (_device, at) = host("device", several(), &[]).await;
    let mut client = connect(at).await.client();
    let about = ModelMetadataRequest { name: "several".to_owned(), version: String::new() };
    let metadata = client.model_metadata(about).await.unwrap().into_inner();
    // In another order than the network's.
    let inputs = metadata.inputs.iter().rev().map(|input| {
        let elements: i64 = input.shape.iter().product();
        let fp32_contents = vec![0.5; usize::try_from(elements).unwrap()];
        InferInputTensor {
            name: input.name.clone(),
            datatype: input.datatype.clone(),
            shape: input.shape.clone(),
            parameters: HashMap::new(),
            contents: Some(InferTensorContents { fp32_contents, ..Default::default() }),
        }
    });
    let request =
        ModelInferRequest { model_name: "several".to_owned(), inputs: inputs.collect(), ..Default::default() };
    let rest: Vec<Value> = request
        .inputs
        .iter()
        .map(|input| {
            let data = &input.contents.as_ref().unwrap().fp32_contents;
            json!({ "name": input.name, "datatype": input.datatype, "shape": input.shape, "data": data })
        })
        .collect();
    let rest =
        http1::post(at, "/v2/models/several/infer", &[], json!({ "inputs": rest }).to_string().as_bytes()).json();
    let answer = infer(&mut client, request).await.unwrap();
    assert_eq!(answer.outputs.len(), 3);
    for (output, expected) in answer.outputs.iter().zip(rest["outputs"].as_array().unwrap()) {
        let about = json!([output.name, output.datatype, output.shape]);
        assert_eq!(about, json!([expected["name"], expected["datatype"], expected["shape"]]));
        let contents = output.contents.as_ref().unwrap();
        match &output.datatype[..] {
            "FP32" => assert_eq!(
                contents.fp32_contents,
                serde_json::from_value::<Vec<f32>>(expected["data"].clone()).unwrap()
            ),
            "UINT8" => assert_eq!(json!(contents.uint_contents), expected["data"]),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_ends_answers_what_it_was_asked() {
    let (_, pixels) = example();
    let (device, at) = host("device", bundle(), &["--emulate-slowdown", "1000"]).await;
    let mut client = connect(at).await.client();
    let asking = tokio::spawn(async move { infer(&mut client, raw(&pixels, &[])).await });
    while metric(at, "edgent_requests_in_flight") == 0.0 {
        assert!(!asking.is_finished(), "the request was too fast to be seen");
    }
    assert!(device.end().await.unwrap().success());
    assert_eq!(asking.await.unwrap().unwrap().model_name, MODEL);
}

/// F33: whatever comes is answered with a code and a message, and the host goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused_and_the_host_goes_on() {
    let (_, pixels) = example();
    let (_device, at) = host("device", bundle(), &[]).await;
    let connection = connect(at).await;
    let good = || raw(&pixels, &[]);
    let changed = |change: fn(&mut ModelInferRequest)| {
        let mut request = raw(&pixels, &[]);
        change(&mut request);
        framed(&request.encode_to_vec())
    };
    let whole = framed(&good().encode_to_vec());
    let cases: Vec<(&str, Code, &str, Vec<u8>)> = vec![
        ("nothing", Code::InvalidArgument, "the body has no message", vec![]),
        ("half a head", Code::InvalidArgument, "the body has no message", vec![0, 0, 0]),
        ("an empty message", Code::NotFound, "there is no model ''", framed(&[])),
        ("half of it", Code::InvalidArgument, "not one message of the length", whole[..whole.len() / 2].to_vec()),
        ("two of them", Code::InvalidArgument, "not one message of the length", [&whole[..], &whole].concat()),
        ("a length of 4 GiB", Code::InvalidArgument, "not one message of the length", vec![0, 255, 255, 255, 255, 0]),
        ("compressed", Code::Unimplemented, "not compressed", [&[1], &whole[1..]].concat()),
        ("noise", Code::InvalidArgument, "no protobuf", framed(&[0xff; 100])),
        ("another field's type", Code::Internal, "failed to decode", framed(&[0x08, 0x01])),
        ("100,000 empty tensors", Code::ResourceExhausted, "over the limit", framed(&[0x2a, 0].repeat(100_000))),
        ("30,000 empty tensors", Code::InvalidArgument, "more than 512 fields", framed(&[0x2a, 0].repeat(30_000))),
        ("larger than the inputs can take", Code::ResourceExhausted, "over the limit", framed(&vec![0; 1 << 20])),
        ("no such model", Code::NotFound, "no model 'lenet'", changed(|r| r.model_name = "lenet".to_owned())),
        ("no such version", Code::NotFound, "version '7'", changed(|r| r.model_version = "7".to_owned())),
        ("a long name", Code::InvalidArgument, "longer than 256 bytes", changed(|r| r.model_name = "m".repeat(300))),
        ("a long id", Code::InvalidArgument, "longer than 256 bytes", changed(|r| r.id = "i".repeat(300))),
        (
            "another name",
            Code::InvalidArgument,
            "no input 'picture'",
            changed(|r| r.inputs[0].name = "picture".to_owned()),
        ),
        (
            "another type",
            Code::InvalidArgument,
            "not FP32[1, 3, 64, 64]",
            changed(|r| r.inputs[0].datatype = "FP32".to_owned()),
        ),
        ("another shape", Code::InvalidArgument, "not UINT8[1, 3, 64, 65]", changed(|r| r.inputs[0].shape[3] = 65)),
        ("a shape below 0", Code::InvalidArgument, "not UINT8[1, 3, 64, -64]", changed(|r| r.inputs[0].shape[3] = -64)),
        (
            "truncated",
            Code::InvalidArgument,
            "12287 bytes of raw contents",
            changed(|r| {
                r.raw_input_contents[0].truncate(12_287);
            }),
        ),
        (
            "twice",
            Code::InvalidArgument,
            "the elements of 2 inputs, and 1 are named",
            changed(|r| {
                r.raw_input_contents.push(r.raw_input_contents[0].slice(..1));
            }),
        ),
        (
            "both forms",
            Code::InvalidArgument,
            "both 'contents' and",
            changed(|r| {
                r.inputs[0].contents = Some(InferTensorContents::default());
            }),
        ),
        ("neither", Code::InvalidArgument, "neither 'contents' nor", changed(|r| r.raw_input_contents.clear())),
        (
            "numbers of another type",
            Code::InvalidArgument,
            "fields that are not for UINT8",
            changed(|r| {
                r.raw_input_contents.clear();
                r.inputs[0].contents =
                    Some(InferTensorContents { fp32_contents: vec![0.5; 1_000], ..Default::default() });
            }),
        ),
        (
            "too great a number",
            Code::InvalidArgument,
            "256 is no UINT8",
            changed(|r| {
                r.raw_input_contents.clear();
                r.inputs[0].contents =
                    Some(InferTensorContents { uint_contents: vec![256; 12_288], ..Default::default() });
            }),
        ),
        (
            "no such output",
            Code::InvalidArgument,
            "no output 'y'",
            changed(|r| {
                r.outputs.push(InferRequestedOutputTensor { name: "y".to_owned(), parameters: HashMap::new() });
            }),
        ),
        (
            "a deadline that is none",
            Code::InvalidArgument,
            "'deadline_ms' must be",
            changed(|r| {
                r.parameters = HashMap::from([("deadline_ms".to_owned(), InferParameter { parameter_choice: None })]);
            }),
        ),
    ];
    for (what, code, why, body) in cases {
        let refused = connection.call("ModelInfer", &[], body, true).await.unwrap_err();
        assert_eq!((refused.code(), refused.message().contains(why)), (code, true), "{what}: {refused}");
    }
    // What is no call of a method.
    let unknown = connection.call("ModelStreamInfer", &[], whole.clone(), true).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented, "{unknown}");
    let no_grpc = connection.call("ModelInfer", &[("content-type", "application/json")], whole.clone(), true).await;
    assert_eq!(no_grpc.unwrap_err().message(), "HTTP 415");
    let said_large = connection.call("ModelInfer", &[("content-length", "1073741824")], vec![0], true).await;
    assert_ne!(said_large.unwrap_err().code(), Code::Ok);
    let long = "x".repeat(40_000);
    assert!(connection.call("ModelInfer", &[("x", &long)], whole.clone(), true).await.is_err(), "a long header");
    for timeout in ["", "m", "-1m", "1", "1x", "999999999m", "é"] {
        let answered = connection.call("ModelInfer", &[("grpc-timeout", timeout)], whole.clone(), true).await;
        assert!(answered.is_ok(), "a timeout that is none says nothing: '{timeout}': {answered:?}");
    }
    let http1 =
        http1::post(at, "/inference.GRPCInferenceService/ModelInfer", &[("content-type", "application/grpc")], &whole);
    assert_eq!((http1.status, http1.error().contains("HTTP/2")), (415, true));
    for noise in [
        &b"PRI"[..],
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"PRINT / HTTP/1.1\r\n\r\n",
    ] {
        use std::io::Write;
        std::net::TcpStream::connect(at).unwrap().write_all(noise).unwrap();
    }
    assert!(infer(&mut connect(at).await.client(), good()).await.is_ok(), "the host answers as before");
}

/// Who begins and does not go on is cut off, and holds up nobody meanwhile; who comes when all places are taken is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_is_cut_off_and_too_many_are_turned_away() {
    let (_, pixels) = example();
    let (_device, at) = host("device", bundle(), &["--emulate-slowdown", "200"]).await;
    let good = raw(&pixels, &[("deadline_ms", 60_000.0)]);
    let whole = framed(&good.encode_to_vec());
    let slow = connect(at).await;
    let half = whole[..whole.len() / 2].to_vec();
    let slow = tokio::spawn(async move { slow.call("ModelInfer", &[], half, false).await });
    // On two connections, each of which may ask 32 times at once.
    let connections = [connect(at).await, connect(at).await];
    let many: Vec<_> = (0..50)
        .map(|index: usize| {
            let (mut client, good) = (connections[index % 2].client(), good.clone());
            tokio::spawn(async move { infer(&mut client, good).await })
        })
        .collect();
    let mut turned_away = 0;
    for one in many {
        if let Err(refused) = one.await.unwrap() {
            assert_eq!(
                (refused.code(), refused.message().contains("too many requests")),
                (Code::Unavailable, true),
                "{refused}"
            );
            turned_away += 1;
        }
    }
    assert!((1..=18).contains(&turned_away), "{turned_away} of 50 were turned away");
    assert_eq!(metric(at, "edgent_shed_total") as usize, turned_away);
    let cut_off = slow.await.unwrap().unwrap_err();
    assert_eq!(
        (cut_off.code(), cut_off.message().contains("not there after 15 s")),
        (Code::DeadlineExceeded, true),
        "{cut_off}"
    );
    // Bodies that do not end have places of their own, on however many connections.
    let begun: Vec<_> = futures_of_half(&[connect(at).await, connect(at).await, connect(at).await], &whole);
    let mut refused = 0;
    for one in begun {
        let status = one.await.unwrap().unwrap_err();
        refused += usize::from(status.message().contains("too many bodies"));
    }
    assert_eq!(refused, 3 * 32 - 64);
}

/// As many halves of a request as connections take.
fn futures_of_half(
    connections: &[grpc::Connection],
    whole: &[u8],
) -> Vec<tokio::task::JoinHandle<Result<bytes::Bytes, Status>>> {
    let half = whole[..whole.len() / 2].to_vec();
    let call = |index: usize| {
        let (connection, half) = (connections[index % connections.len()].clone(), half.clone());
        tokio::spawn(async move { connection.call("ModelInfer", &[], half, false).await })
    };
    (0..connections.len() * 32).map(call).collect()
}

/// A good message, damaged at random places: an answer or a refusal, each time, and the host goes on.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_requests_are_answered_or_refused() {
    let (_, pixels) = example();
    let (_device, at) = host("device", bundle(), &[]).await;
    let connection = connect(at).await;
    let good = raw(&pixels, &[("deadline_ms", 1_000.0)]).encode_to_vec();
    let head = good.len() - pixels.len();
    let mut damage = Damage::default();
    let (mut answered, mut refused) = (0, 0);
    for round in 0..1_000 {
        let message = damage.spoil(&good, head, &[0x00, 0x2a, 0x3a, 0xff, 0x80, 0x08]);
        match connection.call("ModelInfer", &[], framed(&message), true).await {
            Ok(_) => answered += 1,
            Err(status) => {
                let expected = [Code::InvalidArgument, Code::NotFound, Code::Internal];
                assert!(expected.contains(&status.code()) && !status.message().is_empty(), "round {round}: {status}");
                refused += 1;
            }
        }
    }
    assert!(answered > 10 && refused > 500, "{answered} answered, {refused} refused");
    assert!(infer(&mut connection.client(), raw(&pixels, &[])).await.is_ok());
}
