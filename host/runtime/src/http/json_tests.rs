use super::super::tensors::select;
use super::*;

fn port(name: &str, element_type: ElementType, dims: &[usize]) -> Port {
    Port { name: name.to_owned(), fact: Fact::new(element_type, dims).unwrap() }
}

fn model() -> Signature {
    let inputs = vec![port("x", ElementType::F32, &[1, 2]), port("n", ElementType::I32, &[3])];
    Signature { inputs, outputs: ["a", "b"].map(|name| port(name, ElementType::U8, &[1])).to_vec() }
}

const X: &str = r#"{"name":"x","shape":[1,2],"datatype":"FP32","data":[0.5,-2]}"#;
const N: &str = r#"{"name":"n","shape":[3],"datatype":"INT32","data":[1,2,3]}"#;

fn json(inputs: &str) -> Bytes {
    Bytes::from(format!(r#"{{"inputs":[{inputs}]}}"#))
}

fn le_f32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn tensors_come_as_json_flat_or_nested_or_as_bytes_and_in_any_order() {
    let (x, n) = (le_f32(&[0.5, -2.0]), vec![1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
    let nested = r#"{"name":"x","shape":[1,2],"datatype":"FP32","data":[[0.5,-2e0]]}"#;
    for inputs in [format!("{X},{N}"), format!("{N},{X}"), format!("{nested},{N}")] {
        let request = read(&json(&inputs), None, &model()).unwrap();
        assert_eq!(request.inputs, [x.clone(), n.clone()], "{inputs}");
    }
    let behind = r#"{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}"#;
    let head = json(&format!("{N},{behind}"));
    let body = Bytes::from([&head[..], &x].concat());
    assert_eq!(read(&body, Some(head.len()), &model()).unwrap().inputs, [x, n]);
}

#[test]
fn every_type_of_elements_is_read_and_written() {
    let cases = [
        (ElementType::F16, "[1.5,-0.25]", vec![0x00, 0x3e, 0x00, 0xb4]),
        (ElementType::F32, "[1.5,-0.25]", le_f32(&[1.5, -0.25])),
        (ElementType::F64, "[1.5,1e300]", [1.5_f64.to_le_bytes(), 1e300_f64.to_le_bytes()].concat()),
        (ElementType::U8, "[0,255]", vec![0, 255]),
        (ElementType::I32, "[-2147483648,7]", [i32::MIN.to_le_bytes(), 7_i32.to_le_bytes()].concat()),
        (ElementType::I64, "[-9223372036854775808,7]", [i64::MIN.to_le_bytes(), 7_i64.to_le_bytes()].concat()),
    ];
    for (element_type, data, bytes) in cases {
        let model = Signature { inputs: vec![port("t", element_type, &[2])], outputs: Vec::new() };
        let name = datatype(element_type);
        let body = json(&format!(r#"{{"name":"t","shape":[2],"datatype":"{name}","data":{data}}}"#));
        let inputs = read(&body, None, &model).unwrap().inputs;
        assert_eq!(inputs, std::slice::from_ref(&bytes), "{name}");
        for binary in [false, true] {
            let output = Output { port: model.inputs[0].clone(), elements: Bytes::from(bytes.clone()) };
            let head = Head { model_name: "m", model_version: "1", id: Some("7"), parameters: Value::Null };
            let (written, json_bytes) = write(head, &[(output, binary)]).unwrap();
            assert_eq!(json_bytes.is_some(), binary);
            let said: Value = serde_json::from_slice(&written[..json_bytes.unwrap_or(written.len())]).unwrap();
            let tensor = &said["outputs"][0];
            assert_eq!((&said["id"], &tensor["datatype"], &tensor["shape"]), (&"7".into(), &name.into(), &[2].into()));
            if binary {
                assert_eq!(tensor["parameters"]["binary_data_size"], bytes.len());
                assert_eq!(written[json_bytes.unwrap()..], bytes);
            } else {
                // What is written is read again, to the bit.
                let again = json(&tensor.to_string());
                assert_eq!(read(&again, None, &model).unwrap().inputs, std::slice::from_ref(&bytes), "{name}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_the_model_is_refused_and_says_why() {
    let cases: [(&str, String, &str); 24] = [
        ("nothing", String::new(), "no inference request"),
        ("no JSON", "{".into(), "no inference request"),
        ("another type", "[1,2]".into(), "no inference request"),
        ("no inputs", "{}".into(), "missing field `inputs`"),
        ("too few", format!(r#"{{"inputs":[{X}]}}"#), "input 'n' is missing"),
        ("twice", format!(r#"{{"inputs":[{X},{X},{N}]}}"#), "given twice"),
        ("unknown", format!(r#"{{"inputs":[{}]}}"#, X.replace("\"x\"", "\"y\"")), "no input 'y'; it takes x, n"),
        ("type", format!(r#"{{"inputs":[{}]}}"#, X.replace("FP32", "FP64")), "must be FP32[1, 2], not FP64[1, 2]"),
        ("shape", format!(r#"{{"inputs":[{}]}}"#, X.replace("[1,2]", "[2,1]")), "must be FP32[1, 2], not FP32[2, 1]"),
        ("minus", format!(r#"{{"inputs":[{}]}}"#, X.replace("[1,2]", "[-1,2]")), "no inference request"),
        ("few elements", format!(r#"{{"inputs":[{}]}}"#, X.replace("-2", "")), "no inference request"),
        ("fewer", format!(r#"{{"inputs":[{}]}}"#, X.replace(",-2", "")), "1 elements are given, the shape has 2"),
        ("more", format!(r#"{{"inputs":[{}]}}"#, X.replace("-2", "-2,3")), "more elements are given than the 2"),
        ("text", format!(r#"{{"inputs":[{}]}}"#, X.replace("-2", "\"-2\"")), "input 'x': invalid type: string"),
        ("null", format!(r#"{{"inputs":[{}]}}"#, X.replace("-2", "null")), "input 'x': invalid type: null"),
        ("a bare number", format!(r#"{{"inputs":[{}]}}"#, X.replace("[0.5,-2]", "3")), "no array of numbers"),
        ("too deep", format!(r#"{{"inputs":[{}]}}"#, X.replace("-2", "[[[[[[[[[1]]]]]]]]]")), "nested more than 8"),
        ("a fraction", format!(r#"{{"inputs":[{X},{}]}}"#, N.replace("2,", "2.5,")), "2.5 is no INT32"),
        ("too great", format!(r#"{{"inputs":[{X},{}]}}"#, N.replace("2,", "2147483648,")), "2147483648 is no INT32"),
        ("infinite", format!(r#"{{"inputs":[{},{N}]}}"#, X.replace("-2", "1e39")), "is no FP32"),
        ("deadline", format!(r#"{{"parameters":{{"deadline_ms":-1}},"inputs":[{X},{N}]}}"#), "'deadline_ms' must be"),
        ("text", format!(r#"{{"parameters":{{"deadline_ms":"1"}},"inputs":[{X},{N}]}}"#), "'deadline_ms' must be"),
        ("floor", format!(r#"{{"parameters":{{"accuracy_floor":2}},"inputs":[{X},{N}]}}"#), "'accuracy_floor' must be"),
        (
            "classes",
            format!(r#"{{"inputs":[{X},{N}],"outputs":[{{"name":"a","parameters":{{"classification":3}}}}]}}"#),
            "'classification' is not done here",
        ),
    ];
    for (what, body, why) in cases {
        let said = read(&Bytes::from(body.clone()), None, &model()).unwrap_err().0;
        assert!(said.contains(why), "{what}: {body} gave '{said}'");
    }
}

#[test]
fn bytes_behind_the_json_are_what_it_says() {
    let tensor = |size: &str| {
        let parameters = format!(r#""parameters":{{"binary_data_size":{size}}}"#);
        format!(r#"{{"inputs":[{N},{{"name":"x","shape":[1,2],"datatype":"FP32",{parameters}}}]}}"#)
    };
    let cases = [
        (tensor("8"), 8, None, "trailing characters"),
        (tensor("8"), 0, Some(1_000_000), "the body has"),
        (tensor("8"), 7, Some(0), "no inference request"),
        (tensor("8"), 7, Some(usize::MAX), "the body has"),
        (tensor("8"), 7, Some(tensor("8").len()), "8 bytes of binary data, of 7 that are left"),
        (tensor("8"), 9, Some(tensor("8").len()), "1 bytes are left"),
        (tensor("4"), 4, Some(tensor("4").len()), "4 bytes of binary data, of 4 that are left; the tensor has 8"),
        (tensor("18446744073709551615"), 8, Some(tensor("18446744073709551615").len()), "bytes of binary data"),
        (tensor("-8"), 8, Some(tensor("-8").len()), "no number of bytes"),
        (tensor("8,\"x\":{}"), 8, Some(9), "no inference request"),
    ];
    for (json, behind, length, why) in cases {
        let body = Bytes::from([json.as_bytes(), &vec![0; behind]].concat());
        let said = read(&body, length, &model()).unwrap_err().0;
        assert!(said.contains(why), "{json} with {behind} bytes behind {length:?} gave '{said}'");
    }
    let both = X.replace("\"data\"", "\"parameters\":{\"binary_data_size\":8},\"data\"");
    let said = read(&json(&both), Some(json(&both).len()), &model()).unwrap_err().0;
    assert!(said.contains("both 'data' and 'binary_data_size'"), "{said}");
    let neither = X.replace(",\"data\":[0.5,-2]", "");
    assert!(read(&json(&neither), None, &model()).unwrap_err().0.contains("neither"), "{neither}");
}

/// Whatever comes is an error or tensors of the model's sizes; never a panic.
#[test]
fn bytes_that_were_damaged_are_never_more_than_an_error() {
    let behind = r#"{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}"#;
    let head = json(&format!("{N},{behind}"));
    let good = [&head[..], &le_f32(&[0.5, -2.0])].concat();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below.max(1) as u64).unwrap()
    };
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..=next(2) {
            if bytes.is_empty() {
                break;
            }
            let at = next(bytes.len());
            match next(4) {
                0 => bytes[at] ^= 1 << next(8),
                1 => bytes.truncate(at),
                2 => bytes.insert(at, b"[]{},:\"0-e. \x80"[next(13)]),
                _ => drop(bytes.drain(at..(at + next(6)).min(bytes.len()))),
            }
        }
        let length = [None, Some(head.len()), Some(next(300)), Some(bytes.len())][next(4)];
        match read(&Bytes::from(bytes), length, &model()) {
            Ok(request) => {
                assert_eq!(request.inputs.iter().map(Bytes::len).collect::<Vec<_>>(), [8, 12]);
                taken += 1;
            }
            Err(Malformed(why)) => {
                assert!(!why.is_empty());
                refused += 1;
            }
        }
    }
    assert!(taken > 100 && refused > 10_000, "{taken} taken, {refused} refused: the damage is too small or too great");
}

#[test]
fn outputs_are_those_that_are_asked_for() {
    let outputs = || {
        model().outputs.into_iter().map(|port| Output { port, elements: Bytes::from_static(&[7]) }).collect::<Vec<_>>()
    };
    let read = |outputs: &str| {
        let body = format!(r#"{{"parameters":{{"binary_data_output":true}},"inputs":[{X},{N}]{outputs}}}"#);
        read(&Bytes::from(body), None, &model())
    };
    let asked = |outputs: &str| read(outputs).unwrap();
    let names = |request: &Request| -> Vec<(String, bool)> {
        let selected = select(request, outputs());
        selected.into_iter().map(|(output, binary)| (output.port.name, binary)).collect()
    };
    assert_eq!(names(&asked("")), [("a".into(), true), ("b".into(), true)]);
    let of_b = r#","outputs":[{"name":"b","parameters":{"binary_data":false}},{"name":"a"}]"#;
    assert_eq!(names(&asked(of_b)), [("b".into(), false), ("a".into(), true)]);
    let unknown = read(r#","outputs":[{"name":"c"}]"#).unwrap_err().0;
    assert!(unknown.contains("no output 'c'; it gives a, b"), "{unknown}");
    let nan = Output { port: port("a", ElementType::F32, &[1]), elements: Bytes::from(le_f32(&[f32::NAN])) };
    let head = || Head { model_name: "m", model_version: "1", id: None, parameters: Value::Null };
    assert!(write(head(), &[(nan.clone(), false)]).unwrap_err().to_string().contains("ask for binary data"));
    assert!(write(head(), &[(nan, true)]).is_ok());
}
