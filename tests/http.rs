//! The HTTP front of real hosts, asked as its users ask it: the Open Inference Protocol, and what is no such thing.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/front.rs"]
mod front;
#[path = "support/http.rs"]
mod http;

use edgent_link::{
    Digest, Fault, FaultKind, Hello, InferReply, InferRequest, Limits, Link, ModelProfile, Plan, Reply, Role, Security,
    SegmentTime, Service, TraceParent,
};
use front::{Damage, PATIENCE, PIXELS, built, bundle, edgent, edgent_in_time, example, host, several};
use http::{get, post, raw, request};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

/// What a model's metadata say of its first input.
fn first_input(metadata: &Value) -> (String, String, Value) {
    let input = &metadata["inputs"][0];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&input["name"]), text(&input["datatype"]), input["shape"].clone())
}

/// A request with its elements as JSON.
fn as_json(metadata: &Value, pixels: &[u8], parameters: Value) -> Vec<u8> {
    let (name, datatype, shape) = first_input(metadata);
    let input = json!({ "name": name, "datatype": datatype, "shape": shape, "data": pixels });
    json!({ "id": "seven", "parameters": parameters, "inputs": [input] }).to_string().into_bytes()
}

/// The same with them behind the JSON, and how much of it is JSON.
fn as_binary(metadata: &Value, pixels: &[u8], parameters: Value) -> (Vec<u8>, String) {
    let (name, datatype, shape) = first_input(metadata);
    let size = json!({ "binary_data_size": pixels.len() });
    let input = json!({ "name": name, "datatype": datatype, "shape": shape, "parameters": size });
    let head = json!({ "parameters": parameters, "inputs": [input] }).to_string().into_bytes();
    let length = head.len().to_string();
    ([head, pixels.to_vec()].concat(), length)
}

const INFER: &str = "/v2/models/branchy-alexnet/infer";

#[tokio::test(flavor = "multi_thread")]
async fn a_device_tells_what_it_serves() {
    let (device, at) = host("device", bundle(), &[]).await;
    let server = get(at, "/v2").json();
    assert_eq!(server["name"], "edgent");
    assert!(server["extensions"].as_array().unwrap().contains(&"binary_tensor_data".into()), "{server}");
    assert_eq!(get(at, "/v2/health/live").json(), json!({ "live": true }));
    // No edge is there, nor asked for.
    let ready = get(at, "/v2/health/ready");
    assert_eq!((ready.status, ready.json()), (200, json!({ "ready": true })));
    let metadata = get(at, "/v2/models/branchy-alexnet").json();
    assert_eq!(metadata["inputs"], json!([{ "name": "image", "datatype": "UINT8", "shape": [1, 3, 64, 64] }]));
    assert_eq!(metadata["outputs"][0], json!({ "name": "scores", "datatype": "FP32", "shape": [1, 10] }));
    assert_eq!(metadata["exits"].as_array().unwrap().len(), 5);
    assert_eq!(metadata["classes"].as_array().unwrap().len(), 10);
    let version = metadata["versions"][0].as_str().unwrap();
    // There is no store, so a version has no number.
    assert!(version.starts_with("sha256:"), "{metadata}");
    for path in ["", "/ready"] {
        assert_eq!(get(at, &format!("/v2/models/branchy-alexnet{path}")).status, 200);
        assert_eq!(get(at, &format!("/v2/models/branchy-alexnet/versions/{version}{path}")).status, 200);
        let other = get(at, &format!("/v2/models/branchy-alexnet/versions/7{path}"));
        assert_eq!((other.status, other.error().contains("version '7'")), (404, true));
        let other = get(at, &format!("/v2/models/lenet{path}"));
        assert_eq!(other.status, 404);
        assert_eq!(other.error(), "there is no model 'lenet' here; there is branchy-alexnet");
    }
    let index = post(at, "/v2/repository/index", &[], b"").json();
    let row = json!({ "name": "branchy-alexnet", "version": version, "state": "READY", "reason": "" });
    assert_eq!(index, json!([row]));
    let load = post(at, "/v2/repository/models/branchy-alexnet/load", &[], b"{}");
    assert_eq!((load.status, load.error().contains("edgent push")), (501, true));
    assert!(device.end().await.unwrap().success(), "SIGTERM ends a host with an HTTP front in good order");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_answered_over_http_as_over_the_link() {
    let (path, pixels) = example();
    let (device, device_at) = host("device", bundle(), &["--deadline-ms", "5000"]).await;
    let (_edge, edge_at) = host("edge", bundle(), &["--deadline-ms", "5000"]).await;
    let over_link = edgent(&["infer", "--device", &device.address().to_string(), &path])["answers"][0].clone();
    for (role, at) in [("device", device_at), ("edge", edge_at)] {
        let metadata = get(at, "/v2/models/branchy-alexnet").json();
        let version = metadata["versions"][0].as_str().unwrap().to_owned();
        let answer = post(at, INFER, &[], &as_json(&metadata, &pixels, json!({}))).json();
        let said = &answer["parameters"];
        assert_eq!((&answer["id"], &answer["model_version"]), (&"seven".into(), &version.as_str().into()));
        assert_eq!(said["class"], over_link["label"], "{role}: {answer}");
        assert_eq!(said["exit"], over_link["exit"], "{role}: {answer}");
        assert_eq!(said["deadline_met"], true, "{role}: {answer}");
        assert_eq!(said["placement"], format!("{role}-only"));
        let scores: Vec<f64> = serde_json::from_value(answer["outputs"][0]["data"].clone()).unwrap();
        let best = answer["outputs"][1]["data"][0].as_u64().unwrap() as usize;
        assert!((scores[best] - over_link["score"].as_f64().unwrap()).abs() < 1e-5, "{role}: {answer}");
        assert_eq!(metadata["classes"][best], said["class"]);

        // As bytes there and back, of this version and no other.
        let (body, length) = as_binary(&metadata, &pixels, json!({ "binary_data_output": true }));
        let pinned = format!("/v2/models/branchy-alexnet/versions/{version}/infer");
        let binary = post(at, &pinned, &[("inference-header-content-length", &length)], &body);
        let split: usize = binary.header("inference-header-content-length").unwrap().parse().unwrap();
        let head: Value = serde_json::from_slice(&binary.body[..split]).unwrap();
        assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 40, "{head}");
        let floats =
            binary.body[split..split + 40].chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        assert!(floats.zip(&scores).all(|(a, b)| (f64::from(a) - b).abs() < 1e-6), "{role}");
        assert_eq!(binary.body.len(), split + 40 + 8);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_its_own_deadline_and_its_own_floor_of_accuracy() {
    let (_, pixels) = example();
    // So slow that it matters.
    let (_device, device_at) = host("device", bundle(), &["--emulate-slowdown", "50"]).await;
    let (_edge, edge_at) = host("edge", bundle(), &["--emulate-slowdown", "50"]).await;
    for at in [device_at, edge_at] {
        let metadata = get(at, "/v2/models/branchy-alexnet").json();
        let mut accuracies: Vec<f64> =
            metadata["exits"].as_array().unwrap().iter().map(|exit| exit["accuracy"].as_f64().unwrap()).collect();
        accuracies.sort_by(f64::total_cmp);
        let ask = |parameters: Value| {
            post(at, INFER, &[], &as_json(&metadata, &pixels, parameters)).json()["parameters"].clone()
        };
        let hurried = ask(json!({ "deadline_ms": 0.5 }));
        assert_eq!((&hurried["deadline_met"], &hurried["degraded"]), (&false.into(), &true.into()), "{hurried}");
        assert!(hurried["degraded_because"].as_str().unwrap().contains("this is the fastest"), "{hurried}");
        assert_eq!(hurried["deadline_ms"], 0.5);
        let patient = ask(json!({ "deadline_ms": 60000, "accuracy_floor": accuracies.last() }));
        assert_eq!(
            (patient["accuracy"].as_f64(), &patient["deadline_met"]),
            (accuracies.last().copied(), &true.into())
        );
        assert!(hurried["accuracy"].as_f64() < patient["accuracy"].as_f64(), "{hurried}, {patient}");
        for floor in &accuracies {
            let answer = ask(json!({ "deadline_ms": 0.5, "accuracy_floor": floor }));
            assert!(answer["accuracy"].as_f64().unwrap() >= *floor, "{floor}: {answer}");
        }
        let refused = post(at, INFER, &[], &as_json(&metadata, &pixels, json!({ "accuracy_floor": 1.0 })));
        assert_eq!((refused.status, refused.error().contains("the accuracy floor is 1")), (400, true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_called_by_their_numbers_in_the_store() {
    let (_, pixels) = example();
    let store = tempfile::tempdir().unwrap();
    let (device, at) = host("device", bundle(), &["--store", store.path().to_str().unwrap()]).await;
    let versions = || get(at, "/v2/models/branchy-alexnet").json()["versions"].clone();
    assert_eq!(versions(), json!(["1"]));
    let next = built("models/branchy-alexnet/retrained.onnx", "http-retrained", &[]);
    edgent(&["push", next.to_str().unwrap(), "--to", &device.address().to_string()]);
    assert_eq!(versions(), json!(["2"]));
    let metadata = get(at, "/v2/models/branchy-alexnet").json();
    let of = |version: &str| {
        let path = format!("/v2/models/branchy-alexnet/versions/{version}/infer");
        post(at, &path, &[], &as_json(&metadata, &pixels, json!({})))
    };
    assert_eq!(of("2").json()["model_version"], "2");
    let gone = of("1");
    assert_eq!((gone.status, gone.error().contains("2 is")), (404, true));
    let states = |body: &[u8]| -> Vec<(Value, Value)> {
        let rows = post(at, "/v2/repository/index", &[], body).json();
        rows.as_array().unwrap().iter().map(|row| (row["version"].clone(), row["state"].clone())).collect()
    };
    let (ready, kept) = (("2".into(), "READY".into()), ("1".into(), "UNAVAILABLE".into()));
    assert_eq!(states(b""), [ready.clone(), kept]);
    assert_eq!(states(br#"{"ready":true}"#), [ready]);
    assert_eq!(sum(&metrics(at), "edgent_swap_total", "result=\"in_force\""), 1.0);
    assert_eq!(sum(&metrics(at), "edgent_swap_total", "result=\"refused\""), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_ends_answers_what_it_was_asked() {
    let (_, pixels) = example();
    let (device, at) = host("device", bundle(), &["--emulate-slowdown", "1000"]).await;
    let body = as_json(&get(at, "/v2/models/branchy-alexnet").json(), &pixels, json!({}));
    let asking = std::thread::spawn(move || post(at, INFER, &[], &body));
    while sum(&metrics(at), "edgent_requests_in_flight", "") == 0.0 {
        assert!(!asking.is_finished(), "the request was too fast to be seen");
    }
    assert!(device.end().await.unwrap().success());
    let answer = asking.join().unwrap();
    assert_eq!((answer.status, &answer.json()["model_name"]), (200, &"branchy-alexnet".into()));
}

/// Several inputs, several outputs, no classes.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_with_several_inputs_and_outputs_is_asked_by_their_names() {
    let (_device, at) = host("device", several(), &[]).await;
    let metadata = get(at, "/v2/models/several").json();
    let names = |of: &str| -> Vec<Value> {
        metadata[of].as_array().unwrap().iter().map(|tensor| tensor["name"].clone()).collect()
    };
    assert_eq!(
        (names("inputs"), names("outputs")),
        (vec!["x".into(), "state".into()], vec!["y".into(), "new_state".into(), "is_high".into()])
    );
    let tensor = |name: &Value, value: f64| {
        let of = metadata["inputs"].as_array().unwrap().iter().find(|input| input["name"] == *name).unwrap();
        let shape: Vec<usize> = serde_json::from_value(of["shape"].clone()).unwrap();
        let data = vec![value; shape.iter().product()];
        json!({ "name": name, "datatype": of["datatype"], "shape": shape, "data": data })
    };
    // In another order than the network's, and one output alone.
    let inputs = [tensor(&"state".into(), 0.25), tensor(&"x".into(), 0.5)];
    let ask = |outputs: Value| {
        let mut body = json!({ "inputs": inputs });
        if !outputs.is_null() {
            body["outputs"] = outputs;
        }
        post(at, "/v2/models/several/infer", &[], body.to_string().as_bytes())
    };
    let all = ask(Value::Null).json()["outputs"].clone();
    assert_eq!(all.as_array().unwrap().len(), 3, "{all}");
    let one = ask(json!([{ "name": "new_state" }])).json()["outputs"].clone();
    assert_eq!(one, json!([all[1]]));
    let unknown = ask(json!([{ "name": "z" }]));
    assert_eq!(
        (unknown.status, unknown.error()),
        (400, "the model has no output 'z'; it gives y, new_state, is_high".to_owned())
    );
}

/// A line of `/metrics`: name, labels, value. Strict about what it takes.
fn metrics(at: SocketAddr) -> Vec<(String, String, f64)> {
    let answer = get(at, "/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let (text, mut samples) = (answer.text(), Vec::new());
    let mut types = std::collections::HashMap::new();
    for line in text.lines() {
        if let Some(told) = line.strip_prefix("# TYPE ") {
            let (name, kind) = told.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} is told of twice");
            assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
            assert!(!name.contains("_total_total") && !name.ends_with("_ms") && !name.ends_with("_us"), "{name}");
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').map_or((series, ""), |(name, labels)| (name, labels));
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(types.contains_key(name) || types[family] == "histogram", "{line} is of no type");
            let labels = labels.trim_end_matches('}').to_owned();
            let twice = samples.iter().any(|(known, of, _)| (known, of) == (&name.to_owned(), &labels));
            assert!(!twice, "{line} is there twice");
            samples.push((name.to_owned(), labels, value.parse().unwrap()));
        }
    }
    samples
}

/// The sum of a metric's samples that have this among their labels.
fn sum(metrics: &[(String, String, f64)], name: &str, label: &str) -> f64 {
    metrics.iter().filter(|(known, labels, _)| known == name && labels.contains(label)).map(|(_, _, value)| value).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_counted_and_told() {
    let (_, pixels) = example();
    let (edge, edge_at) = host("edge", bundle(), &[]).await;
    let address = edge.address().to_string();
    let slow = ["--edge", &address, "--emulate-slowdown", "50", "--deadline-ms", "5000"];
    let (_device, at) = host("device", bundle(), &slow).await;
    let metadata = get(at, "/v2/models/branchy-alexnet").json();
    let ask = |parameters: Value| post(at, INFER, &[], &as_json(&metadata, &pixels, parameters)).json();
    // Until the edge has its share.
    let mut asked = 1;
    while ask(json!({}))["parameters"]["placement"] == "device-only" {
        asked += 1;
        assert!(asked < 10_000, "the edge is never used");
    }
    ask(json!({ "deadline_ms": 0.01 }));
    let refused = post(at, INFER, &[], &as_json(&metadata, &pixels, json!({ "accuracy_floor": 1.0 })));
    assert_eq!(refused.status, 400);
    let told = metrics(at);
    let requests = |label: &str| sum(&told, "edgent_requests_total", label);
    assert_eq!(requests("") as u32, asked + 2, "{told:?}");
    assert_eq!((requests("outcome=\"missed\""), requests("outcome=\"failed\"")), (1.0, 1.0));
    assert_eq!(sum(&told, "edgent_deadline_missed_total", "model=\"branchy-alexnet\""), 1.0);
    assert_eq!(sum(&told, "edgent_request_duration_seconds_count", "") as u32, asked + 1);
    assert!(sum(&told, "edgent_actual_to_planned_ratio_count", "") >= 1.0);
    assert_eq!(sum(&told, "edgent_edge_connected", ""), 1.0);
    assert!(sum(&told, "edgent_link_bandwidth_bytes_per_second", "") > 0.0);
    assert!(sum(&told, "edgent_plan_version", "") > 0.0 && sum(&told, "edgent_plan_changes_total", "") >= 1.0);
    assert_eq!(sum(&told, "edgent_deadline_seconds", ""), 5.0);
    assert!(sum(&told, "process_resident_memory_bytes", "") > 1e6);
    assert_eq!(sum(&told, "edgent_build_info", "role=\"device\""), 1.0);
    assert_eq!(told.iter().filter(|(name, ..)| name == "edgent_guest_trap_total").count(), 5);
    let of_edge = metrics(edge_at);
    assert!(sum(&of_edge, "edgent_parts_total", "outcome=\"done\"") >= 1.0, "{of_edge:?}");

    // What would be planned on other links.
    let placement = |rate_bps: &str| {
        let plans = get(at, &format!("/explain?rate_bps={rate_bps}")).json()["plans"].as_array().unwrap().clone();
        let chosen: Vec<_> = plans.into_iter().filter(|plan| plan["verdict"] == "chosen").collect();
        assert_eq!(chosen.len(), 1, "{chosen:?}");
        chosen[0]["placement"].clone()
    };
    assert_eq!((placement("1e9"), placement("1e3")), ("edge-only".into(), "device-only".into()));
    for query in ["rate_bps=0", "rate_bps=-1", "rate_bps=NaN", "rate_bps=1e99", "rate=1", "rate_bps=x"] {
        assert_eq!(get(at, &format!("/explain?{query}")).status, 400, "{query}");
    }
    assert_eq!(get(edge_at, "/explain").status, 501);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dashboard_is_told_what_is_new() {
    let (_, pixels) = example();
    let (device, at) = host("device", bundle(), &[]).await;
    let page = get(at, "/");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    // Nothing of the page is in it rather than beside it, or comes from elsewhere.
    let html = page.text();
    assert!(!html.contains("http") && !html.contains("style=") && !html.contains("onclick"), "{html}");
    for path in ["/dashboard.css", "/dashboard.js"] {
        assert!(html.contains(path) && get(at, path).status == 200);
    }
    let network = get(at, "/network").json();
    assert_eq!((&network["model"], network["exits"].as_array().unwrap().len()), (&"branchy-alexnet".into(), 5));
    for segment in network["segments"].as_array().unwrap() {
        assert!(segment["backend"] == "tract" && segment["threads"].as_u64().unwrap() >= 1, "{segment}");
    }
    let mut events = http::events(at, "/events");
    let first = events.next();
    assert_eq!(
        (&first["role"], &first["answers"], &first["plan"]["cut"].is_u64()),
        (&"device".into(), &json!([]), &true)
    );
    let metadata = get(at, "/v2/models/branchy-alexnet").json();
    let answer = post(at, INFER, &[], &as_json(&metadata, &pixels, json!({}))).json();
    let answers = loop {
        let event = events.next();
        if event["answers"] != json!([]) {
            break event["answers"].clone();
        }
    };
    assert_eq!(answers.as_array().unwrap().len(), 1);
    assert_eq!(answers[0]["latency_ms"], answer["parameters"]["latency_ms"]);
    let more: Vec<_> = (0..40).map(|_| std::net::TcpStream::connect(at).unwrap()).collect();
    assert_eq!(events.next()["counts"]["requests"], 1, "connections that say nothing hold up nobody");
    drop(more);
    assert!(device.end().await.unwrap().success(), "an open dashboard does not keep a host from ending");
}

/// F33: whatever comes is answered with a 4xx and JSON, and the host goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused_and_the_host_goes_on() {
    let (_, pixels) = example();
    let (_device, at) = host("device", bundle(), &[]).await;
    let metadata = get(at, "/v2/models/branchy-alexnet").json();
    let good = as_json(&metadata, &pixels, json!({}));
    let changed = |from: &str, to: &str| String::from_utf8(good.clone()).unwrap().replacen(from, to, 1).into_bytes();
    let (binary, length) = as_binary(&metadata, &pixels, json!({}));
    let json_length = "inference-header-content-length";
    let gib = vec![b' '; 1 << 20];
    type Case<'a> = (&'a str, u16, Vec<(&'a str, &'a str)>, Vec<u8>);
    let cases: Vec<Case> = vec![
        ("nothing", 400, vec![], vec![]),
        ("half of it", 400, vec![], good[..good.len() / 2].to_vec()),
        ("not UTF-8", 400, vec![], [b"\xff\xfe", &good[..]].concat()),
        ("another type", 400, vec![], changed("UINT8", "FP32")),
        ("a type of ours that the codec lacks", 400, vec![], changed("UINT8", "BF16")),
        ("another shape", 400, vec![], changed("[1,3,64,64]", "[1,3,64,65]")),
        ("a huge shape", 400, vec![], changed("[1,3,64,64]", "[4294967295,4294967295,4294967295]")),
        ("another name", 400, vec![], changed("\"image\"", "\"picture\"")),
        ("too great a number", 400, vec![], changed("\"data\":[", "\"data\":[256,")),
        ("one more element", 400, vec![], changed("\"data\":[", "\"data\":[0,")),
        ("deep", 400, vec![], changed("\"data\":[", &format!("\"data\":[{}", "[".repeat(100_000)))),
        ("a deadline that is none", 400, vec![], as_json(&metadata, &pixels, json!({ "deadline_ms": "soon" }))),
        ("bytes without their header", 400, vec![], binary.clone()),
        ("less JSON than there is", 400, vec![(json_length, "5")], binary.clone()),
        ("more JSON than there is", 400, vec![(json_length, "99999999")], binary.clone()),
        ("a length that is none", 400, vec![(json_length, "-1")], binary.clone()),
        ("a length beyond numbers", 400, vec![(json_length, "99999999999999999999999")], binary.clone()),
        ("too few bytes", 400, vec![(json_length, &length)], binary[..binary.len() - 1].to_vec()),
        ("too many bytes", 400, vec![(json_length, &length)], [&binary[..], b"x"].concat()),
        ("larger than the inputs can take", 413, vec![], gib),
        ("1 GiB, as it says", 413, vec![("content-length", "1073741824")], b"{".to_vec()),
        ("compressed", 415, vec![("content-encoding", "gzip")], good.clone()),
    ];
    for (what, status, headers, body) in &cases {
        let answer = post(at, INFER, headers, body);
        assert_eq!(answer.status, *status, "{what}: {}", answer.text());
        assert!(!answer.error().is_empty(), "{what}");
    }
    let paths = [
        ("GET", "/v3", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/../../etc/passwd", 404),
        ("GET", "/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
        ("GET", "/v2/models/%ff", 400),
        ("GET", "/v2/models/branchy-alexnet/versions/", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2/models/branchy-alexnet", 405),
        ("POST", "/v2/health/live", 405),
    ];
    for (method, path, status) in paths {
        let answer = request(at, method, path, &[], b"");
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(!answer.error().is_empty());
    }
    let long = get(at, &format!("/v2/models/{}", "m".repeat(300)));
    assert_eq!((long.status, long.error().contains("longer than 256 bytes")), (400, true));
    // What is no HTTP, or too much of it, is refused by the connection.
    let many = (0..100).map(|header| format!("x-{header}: 1\r\n")).collect::<String>();
    let no_http: [(&str, String, &[u16]); 6] = [
        ("noise", "\x16\x03\x01\x02\x00\x01\r\n\r\n".into(), &[400]),
        ("many headers", format!("GET /v2 HTTP/1.1\r\n{many}\r\n"), &[431]),
        ("a long header", format!("GET /v2 HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(40_000)), &[431]),
        ("a long path", format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(40_000)), &[414, 431]),
        ("no length", format!("POST {INFER} HTTP/1.1\r\ncontent-length: many\r\n\r\n{{}}"), &[400]),
        ("no chunks", format!("POST {INFER} HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"), &[400]),
    ];
    for (what, bytes, statuses) in no_http {
        let answer = raw(at, bytes.as_bytes());
        assert!(answer.as_ref().is_none_or(|answer| statuses.contains(&answer.status)), "{what}: {answer:?}");
    }
    assert_eq!(post(at, INFER, &[], &good).status, 200, "the host answers as before");
}

/// Who begins and does not go on is cut off, and holds up nobody meanwhile; who comes when all places are taken is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_is_cut_off_and_too_many_are_turned_away() {
    let (_, pixels) = example();
    let (_device, at) = host("device", bundle(), &["--emulate-slowdown", "200"]).await;
    let metadata = get(at, "/v2/models/branchy-alexnet").json();
    let good = as_json(&metadata, &pixels, json!({ "deadline_ms": 60000 }));
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: {at}\r\n");
    let half = [format!("{head}content-length: {}\r\n\r\n", good.len()).as_bytes(), &good[..good.len() / 2]].concat();
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n5\r\n{{\"inp\r\n");
    std::thread::scope(|threads| {
        let slow = [head.as_bytes(), &half, chunked.as_bytes()];
        let slow = slow.map(|bytes| threads.spawn(move || raw(at, bytes)));
        let many: Vec<_> = (0..50).map(|_| threads.spawn(|| post(at, INFER, &[], &good))).collect();
        let answers: Vec<_> = many.into_iter().map(|one| one.join().unwrap()).collect();
        let turned_away = answers.iter().filter(|answer| answer.status == 503).count();
        assert!(answers.iter().all(|answer| answer.status == 200 || answer.error().contains("too many requests")));
        // 32 places, none of which those who are slow have.
        assert!((1..=18).contains(&turned_away), "{turned_away} of 50 were turned away");
        assert_eq!(sum(&metrics(at), "edgent_shed_total", "") as usize, turned_away);
        let [headers, body, chunks] = slow.map(|one| one.join().unwrap());
        assert!(headers.is_none_or(|answer| answer.status == 408), "no end of the headers");
        for cut_off in [body, chunks] {
            let answer = cut_off.unwrap();
            assert_eq!((answer.status, answer.error().contains("not there after 15 s")), (408, true));
        }
    });
    let idle: Vec<_> = (0..64).map(|_| std::net::TcpStream::connect(at).unwrap()).collect();
    let one_more = raw(at, b"GET /v2/health/live HTTP/1.1\r\nconnection: close\r\n\r\n");
    assert!(one_more.is_none(), "65 connections: {one_more:?}");
    drop(idle);
    let begin = std::time::Instant::now();
    while raw(at, b"GET /v2/health/live HTTP/1.1\r\nconnection: close\r\n\r\n").is_none() {
        assert!(begin.elapsed().as_secs() < 60, "places are never free again");
    }
}

/// A good request, damaged at random places: an answer or a refusal, each time, and the host goes on.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_requests_are_answered_or_refused() {
    let (_, pixels) = example();
    let (_device, at) = host("device", bundle(), &[]).await;
    let metadata = get(at, "/v2/models/branchy-alexnet").json();
    let (good, length) = as_binary(&metadata, &pixels, json!({ "deadline_ms": 1000 }));
    let head: usize = length.parse().unwrap();
    let mut damage = Damage::default();
    let (mut answered, mut refused) = (0, 0);
    for round in 0..1_000 {
        let body = damage.spoil(&good, head, b"{}[]\",:0-\\");
        let length = if damage.below(8) == 0 { damage.below(good.len() * 2).to_string() } else { length.clone() };
        let answer = post(at, INFER, &[("inference-header-content-length", &length)], &body);
        match answer.status {
            200 => answered += 1,
            400 | 413 => {
                assert!(!answer.error().is_empty());
                refused += 1;
            }
            other => panic!("round {round}: {other} {}", answer.text()),
        }
    }
    assert!(answered > 10 && refused > 500, "{answered} answered, {refused} refused");
    assert_eq!(PIXELS, pixels.len());
    let whole = post(at, INFER, &[("inference-header-content-length", &length)], &good);
    assert_eq!(whole.status, 200);
}

/// An edge that tells which traces it is asked in, and computes nothing.
struct Heard(Sender<Option<TraceParent>>);

impl Service for Heard {
    fn install_plan(&self, _: Plan, reply: Reply<()>) {
        reply.send(Ok(()));
    }

    fn profile(&self, model: Digest, reply: Reply<ModelProfile>) {
        let fast = |segment| SegmentTime { segment, p50_us: 1.0, p90_us: 1.0, samples: 9 };
        let (segments, codecs) = ((0..64).map(fast).collect(), Vec::new());
        reply.send(Ok(ModelProfile { model, segments, queue_us: 0.0, codec_us_per_mib: 1.0, codecs }));
    }

    fn infer(&self, request: InferRequest, reply: Reply<InferReply>) {
        self.0.send(request.trace).unwrap();
        reply.send(Err(Fault { kind: FaultKind::Internal, message: "it computes nothing".to_owned() }));
    }
}

/// A trace that a caller begins does not end at a device that tells nobody of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_a_caller_goes_on_to_the_edge() {
    let (say, heard) = channel();
    let link = Link::start(Security::plain_on_loopback(None)).unwrap();
    let hello = Hello::new(Role::Edge, "test");
    let edge = link.serve("127.0.0.1:0", hello, Limits::default(), Arc::new(Heard(say))).await.unwrap();
    let address = edge.local_addr().to_string();
    let (device, at) = host("device", bundle(), &["--edge", &address, "--deadline-ms", "20000"]).await;
    edgent_in_time(&["pin", "--to", &device.address().to_string(), "--exit", "exit3", "--cut", "0"]);

    let metadata = get(at, "/v2/models/branchy-alexnet").json();
    let body = as_json(&metadata, &example().1, json!({}));
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let other = good.replace("4bf9", "4bfa");
    let long = format!("{good}{}", "0".repeat(4_000));
    let cases: [(&[&str], Option<&str>); 5] = [
        (&[good], Some(good)),
        (&[], None),
        (&["00-no-such-thing-01"], None),
        (&[&long], None),
        (&[good, &other], None),
    ];
    for (named, expected) in cases {
        let headers: Vec<_> = named.iter().map(|text| ("traceparent", *text)).collect();
        // The device's own answer: a trace, be it none, costs nobody one.
        assert_eq!(post(at, INFER, &headers, &body).status, 200, "{named:?}");
        let said = heard.recv_timeout(PATIENCE).unwrap();
        let expected = expected.map(|text| TraceParent::read(text).unwrap());
        assert_eq!(said, expected, "{named:?}");
    }
    assert!(device.end().await.unwrap().success());
}
