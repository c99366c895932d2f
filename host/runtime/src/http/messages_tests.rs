use super::*;
use prost::Message;

fn port(name: &str, element_type: ElementType, dims: &[usize]) -> Port {
    Port { name: name.to_owned(), fact: Fact::new(element_type, dims).unwrap() }
}

fn model() -> Signature {
    let inputs = vec![port("x", ElementType::F32, &[1, 2]), port("n", ElementType::I32, &[3])];
    Signature { inputs, outputs: ["a", "b"].map(|name| port(name, ElementType::U8, &[1])).to_vec() }
}

fn tensor(name: &str, type_name: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferInputTensor {
    let (name, datatype, shape) = (name.to_owned(), type_name.to_owned(), shape.to_vec());
    InferInputTensor { name, datatype, shape, parameters: HashMap::new(), contents }
}

fn text(value: &str) -> InferParameter {
    InferParameter { parameter_choice: Some(ParameterChoice::StringParam(value.to_owned())) }
}

fn good_typed() -> ModelInferRequest {
    let x = InferTensorContents { fp32_contents: vec![0.5, -2.0], ..Default::default() };
    let n = InferTensorContents { int_contents: vec![1, -2, 3], ..Default::default() };
    let inputs = vec![tensor("n", "INT32", &[3], Some(n)), tensor("x", "FP32", &[1, 2], Some(x))];
    ModelInferRequest { inputs, ..Default::default() }
}

fn good_raw() -> ModelInferRequest {
    let inputs = vec![tensor("x", "FP32", &[1, 2], None), tensor("n", "INT32", &[3], None)];
    let raw_input_contents = elements_of_both().map(Bytes::from).to_vec();
    ModelInferRequest { inputs, raw_input_contents, ..Default::default() }
}

fn elements_of_both() -> [Vec<u8>; 2] {
    let x = [0.5_f32, -2.0].iter().flat_map(|number| number.to_le_bytes()).collect();
    [x, [1_i32, -2, 3].iter().flat_map(|number| number.to_le_bytes()).collect()]
}

#[test]
fn tensors_come_as_bytes_or_in_fields_of_their_type_and_in_any_order() {
    for (message, is_raw) in [(good_raw(), true), (good_typed(), false)] {
        let request = read(message, &model()).unwrap();
        assert_eq!(request.inputs, elements_of_both());
        assert_eq!((request.binary_output, request.outputs), (is_raw, None));
    }
}

#[test]
fn every_type_of_elements_is_written_and_read_again() {
    let cases = [
        (ElementType::F16, vec![0x00, 0x3e, 0x00, 0xb4]),
        (ElementType::F32, [1.5_f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat()),
        (ElementType::F64, [1.5_f64.to_le_bytes(), 1e300_f64.to_le_bytes()].concat()),
        (ElementType::U8, vec![0, 255]),
        (ElementType::I32, [i32::MIN.to_le_bytes(), 7_i32.to_le_bytes()].concat()),
        (ElementType::I64, [i64::MIN.to_le_bytes(), 7_i64.to_le_bytes()].concat()),
    ];
    for (element_type, bytes) in cases {
        let model = Signature { inputs: vec![port("t", element_type, &[2])], outputs: Vec::new() };
        for raw in [true, false] {
            let output = Output { port: model.inputs[0].clone(), elements: Bytes::from(bytes.clone()) };
            let reply = Reply {
                model: "m".to_owned(),
                version: "1".to_owned(),
                id: None,
                parameters: Map::new(),
                outputs: vec![(output, raw)],
            };
            let response = write(reply);
            assert_eq!(response.raw_output_contents.is_empty(), !raw && element_type != ElementType::F16);
            let given = &response.outputs[0];
            let message = ModelInferRequest {
                inputs: vec![tensor(&given.name, &given.datatype, &given.shape, given.contents.clone())],
                raw_input_contents: response.raw_output_contents,
                ..Default::default()
            };
            assert!(message.encoded_len() <= elements_bytes_max(&model.inputs) + 64, "{element_type:?}");
            assert_eq!(read(message, &model).unwrap().inputs, std::slice::from_ref(&bytes), "{element_type:?} {raw}");
        }
    }
}

#[test]
fn what_does_not_fit_the_model_is_refused_and_says_why() {
    let contents = |change: fn(&mut InferTensorContents)| {
        move |message: &mut ModelInferRequest| change(message.inputs[1].contents.as_mut().unwrap())
    };
    type Change = Box<dyn Fn(&mut ModelInferRequest)>;
    let typed: Vec<(&str, Change)> = vec![
        ("input 'x' is missing", Box::new(|message| drop(message.inputs.pop()))),
        ("input 'n': it is given twice", Box::new(|message| message.inputs[1] = message.inputs[0].clone())),
        ("no input 'y'; it takes x, n", Box::new(|message| message.inputs[1].name = "y".to_owned())),
        ("must be FP32[1, 2], not FP64[1, 2]", Box::new(|message| message.inputs[1].datatype = "FP64".to_owned())),
        ("must be FP32[1, 2], not FP32[-1, 2]", Box::new(|message| message.inputs[1].shape[0] = -1)),
        ("input 'x': neither 'contents'", Box::new(|message| message.inputs[1].contents = None)),
        ("1 elements are given, the shape has 2", Box::new(contents(|x| x.fp32_contents.truncate(1)))),
        ("3 elements are given, the shape has 2", Box::new(contents(|x| x.fp32_contents.push(0.0)))),
        ("1 elements are given in fields that are not for FP32", Box::new(contents(|x| x.uint_contents.push(1)))),
        ("more than 64 tensors", Box::new(|message| message.inputs = vec![message.inputs[0].clone(); 65])),
        ("the id is longer than", Box::new(|message| message.id = "i".repeat(257))),
        (
            "'deadline_ms' must be",
            Box::new(|message| drop(message.parameters.insert("deadline_ms".into(), text("-1")))),
        ),
        (
            "'deadline_ms' must be",
            Box::new(|message| drop(message.parameters.insert("deadline_ms".into(), text("soon")))),
        ),
        (
            "no output 'c'; it gives a, b",
            Box::new(|message| {
                message.outputs = vec![InferRequestedOutputTensor { name: "c".to_owned(), parameters: HashMap::new() }];
            }),
        ),
        (
            "'classification' is not done here",
            Box::new(|message| {
                let parameters = HashMap::from([("classification".to_owned(), text("3"))]);
                message.outputs = vec![InferRequestedOutputTensor { name: "a".to_owned(), parameters }];
            }),
        ),
    ];
    let raw: Vec<(&str, Change)> = vec![
        ("the elements of 1 inputs, and 2 are named", Box::new(|message| drop(message.raw_input_contents.pop()))),
        ("7 bytes of raw contents; the tensor has 8", Box::new(|message| message.raw_input_contents[0].truncate(7))),
        ("input 'n': 13 bytes of raw contents", Box::new(|message| message.raw_input_contents[1] = vec![0; 13].into())),
        (
            "both 'contents' and 'raw_input_contents'",
            Box::new(|message| {
                message.inputs[1].contents = Some(InferTensorContents::default());
            }),
        ),
    ];
    for (good, cases) in [(good_typed(), typed), (good_raw(), raw)] {
        for (why, change) in cases {
            let mut message = good.clone();
            change(&mut message);
            let said = read(message, &model()).unwrap_err().0;
            assert!(said.contains(why), "'{said}' does not say '{why}'");
        }
    }
    let wide = Signature { inputs: vec![port("t", ElementType::U8, &[1])], outputs: Vec::new() };
    let t = InferTensorContents { uint_contents: vec![256], ..Default::default() };
    let message = ModelInferRequest { inputs: vec![tensor("t", "UINT8", &[1], Some(t))], ..Default::default() };
    assert_eq!(read(message, &wide).unwrap_err().0, "input 't': 256 is no UINT8");
}

#[test]
fn a_number_is_a_number_in_every_form_that_clients_send() {
    let choices = [
        ParameterChoice::Int64Param(40),
        ParameterChoice::Uint64Param(40),
        ParameterChoice::DoubleParam(40.0),
        ParameterChoice::StringParam("40".to_owned()),
    ];
    for choice in choices {
        let mut message = good_raw();
        message.parameters.insert("deadline_ms".to_owned(), InferParameter { parameter_choice: Some(choice) });
        assert_eq!(read(message, &model()).unwrap().wishes.deadline_ms, Some(40.0));
    }
    let told = serde_json::json!({ "epoch": 3, "accuracy": 0.9, "degraded": false, "exit": "exit2" });
    let Value::Object(told) = told else { unreachable!() };
    let sent = told.iter().map(|(name, value)| (name.clone(), parameter(value.clone()).unwrap())).collect();
    assert_eq!(as_json(sent), told);
}

#[test]
fn a_message_of_too_many_fields_is_refused_before_it_is_decoded() {
    screen(&good_raw().encode_to_vec()).unwrap();
    screen(&good_typed().encode_to_vec()).unwrap();
    // Empty tensors, two bytes each.
    let said = screen(&[0x2a, 0x00].repeat(100_000)).unwrap_err().0;
    assert_eq!(said, format!("the message has more than {MESSAGE_FIELDS_MAX} fields"));
    let bad: [&[u8]; 6] = [
        &[0x2a],
        &[0x2a, 0x05, 0x00],
        &[0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0xff; 11],
        &[0x09, 0, 0, 0],
        &[0x2b],
    ];
    for message in bad {
        assert_eq!(screen(message).unwrap_err().0, "the body's message is no protobuf", "{message:?}");
    }
}

/// Whatever comes is an error or tensors of the model's sizes; never a panic.
#[test]
fn bytes_that_were_damaged_are_never_more_than_an_error() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below.max(1) as u64).unwrap()
    };
    let (mut taken, mut refused) = (0, 0);
    for round in 0..20_000 {
        let mut bytes = if round % 2 == 0 { good_raw() } else { good_typed() }.encode_to_vec();
        for _ in 0..=next(2) {
            if bytes.is_empty() {
                break;
            }
            let at = next(bytes.len());
            match next(4) {
                0 => bytes[at] ^= 1 << next(8),
                1 => bytes.truncate(at),
                2 => bytes.insert(at, [0x00, 0x2a, 0x3a, 0xff, 0x80, 0x08][next(6)]),
                _ => drop(bytes.drain(at..(at + next(6)).min(bytes.len()))),
            }
        }
        let request = screen(&bytes).and_then(|()| {
            let message = ModelInferRequest::decode(&bytes[..]).map_err(|e| Malformed(e.to_string()))?;
            read(message, &model())
        });
        match request {
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
