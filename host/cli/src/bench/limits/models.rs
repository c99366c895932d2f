//! ONNX files that nobody's exporter writes.

/// A protobuf message in the making.
#[derive(Clone, Default)]
struct Message(Vec<u8>);

impl Message {
    fn int(mut self, field: u32, value: i64) -> Self {
        self.varint(u64::from(field << 3));
        self.varint(value as u64);
        self
    }

    fn bytes(mut self, field: u32, bytes: impl AsRef<[u8]>) -> Self {
        self.varint(u64::from(field << 3 | 2));
        self.varint(bytes.as_ref().len() as u64);
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    fn all<T>(self, items: impl IntoIterator<Item = T>, add: impl Fn(Self, T) -> Self) -> Self {
        items.into_iter().fold(self, add)
    }

    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

const F32: i64 = 1;
const INT64: i64 = 7;

fn value(name: &str, element_type: i64, dims: &[i64]) -> Message {
    let shape = Message::default().all(dims, |shape, dim| shape.bytes(1, Message::default().int(1, *dim)));
    let tensor = Message::default().int(1, element_type).bytes(2, shape);
    Message::default().bytes(1, name).bytes(2, Message::default().bytes(1, tensor))
}

fn tensor(name: &str, element_type: i64, dims: &[i64], raw: &[u8]) -> Message {
    Message::default().all(dims, |tensor, dim| tensor.int(1, *dim)).int(2, element_type).bytes(8, name).bytes(9, raw)
}

fn external(name: &str, location: &str) -> Message {
    let entry = Message::default().bytes(1, "location").bytes(2, location);
    Message::default().int(1, 4).int(2, F32).bytes(8, name).bytes(13, entry).int(14, 1)
}

fn node(operator: &str, inputs: &[&str], outputs: &[&str], attributes: &[Message]) -> Message {
    let node = Message::default().all(inputs, |node, input| node.bytes(1, input));
    let node = node.all(outputs, |node, output| node.bytes(2, output)).bytes(3, outputs[0]).bytes(4, operator);
    node.all(attributes, |node, attribute| node.bytes(5, attribute))
}

fn int(name: &str, value: i64) -> Message {
    Message::default().bytes(1, name).int(3, value).int(20, 2)
}

fn ints(name: &str, values: &[i64]) -> Message {
    Message::default().bytes(1, name).all(values, |attribute, value| attribute.int(8, *value)).int(20, 7)
}

fn i64s(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn graph(nodes: &[Message], initial: &[Message], inputs: &[Message], outputs: &[Message]) -> Message {
    let graph = Message::default().all(nodes, |graph, node| graph.bytes(1, node)).bytes(2, "hostile");
    let graph = graph.all(initial, |graph, tensor| graph.bytes(5, tensor));
    let graph = graph.all(inputs, |graph, input| graph.bytes(11, input));
    graph.all(outputs, |graph, output| graph.bytes(12, output))
}

fn file(graph: Message) -> Vec<u8> {
    Message::default().int(1, 8).bytes(8, Message::default().bytes(1, "").int(2, 17)).bytes(7, graph).0
}

/// A network of `x`, which is f32[1,4], and more.
fn small(nodes: &[Message], initial: &[Message]) -> Vec<u8> {
    file(graph(nodes, initial, &[value("x", F32, &[1, 4])], &[value("y", F32, &[1, 4])]))
}

/// Malformed, each in its own way.
pub(super) fn malformed() -> Vec<(String, Vec<u8>)> {
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    let mut case = |name: &str, bytes: Vec<u8>| cases.push((name.to_owned(), bytes));
    let add = |other: &str| node("Add", &["x", other], &["y"], &[]);
    case("empty", Vec::new());
    case("zeros", vec![0; 4096]);
    case("ones", vec![0xff; 4096]);
    case("no graph", Message::default().int(1, 8).0);
    case("nothing in the graph", file(Message::default()));
    case("no output", file(graph(&[], &[], &[value("x", F32, &[1, 4])], &[])));
    case("output from nowhere", small(&[], &[]));
    case("input from nowhere", small(&[add("w")], &[]));
    for location in ["/etc/passwd", "../../etc/passwd", "link", "", "/dev/zero", "/proc/self/mem", "a\0b"] {
        case(&format!("external data {location:?}"), small(&[add("w")], &[external("w", location)]));
    }
    for dims in [&[1 << 40][..], &[1 << 31, 1 << 31], &[i64::MAX], &[-1], &[-1 << 40, 4], &[0], &[1; 300]] {
        case(
            &format!("weights of {} dims, {}", dims.len(), dims[0]),
            small(&[add("w")], &[tensor("w", F32, dims, &[])]),
        );
    }
    for bytes in [1, 15, 17, 1 << 20] {
        case(&format!("weights of {bytes} bytes"), small(&[add("w")], &[tensor("w", F32, &[4], &vec![1; bytes])]));
    }
    for element_type in [0, 8, 14, 15, 16, 17, 23, 999, -1] {
        case(
            &format!("elements of type {element_type}"),
            small(&[add("w")], &[tensor("w", element_type, &[4], &[0; 64])]),
        );
        let odd = graph(
            &[node("Identity", &["x"], &["y"], &[])],
            &[],
            &[value("x", element_type, &[4])],
            &[value("y", element_type, &[4])],
        );
        case(&format!("input of type {element_type}"), file(odd));
    }
    for dims in [&[1 << 40][..], &[1 << 32, 1 << 32], &[-4], &[i64::MIN], &[0, 4], &[1; 64]] {
        let identity = node("Identity", &["x"], &["y"], &[]);
        case(
            &format!("input of {} dims, {}", dims.len(), dims[0]),
            file(graph(&[identity], &[], &[value("x", F32, dims)], &[value("y", F32, dims)])),
        );
    }
    let (a, b) = (node("Add", &["x", "b"], &["a"], &[]), node("Add", &["x", "a"], &["b"], &[]));
    case("a cycle of two", small(&[a, b, node("Relu", &["a"], &["y"], &[])], &[]));
    case("a cycle of one", small(&[node("Add", &["x", "y"], &["y"], &[])], &[]));
    case("the same output twice", small(&[node("Relu", &["x"], &["y"], &[]), node("Neg", &["x"], &["y"], &[])], &[]));
    case("an unknown operator", small(&[node("Conquer", &["x"], &["y"], &[])], &[]));
    case("an operator of another domain", small(&[node("Relu", &["x"], &["y"], &[]).bytes(7, "com.example")], &[]));
    case("an operator without a name", small(&[node("", &["x"], &["y"], &[])], &[]));
    for depth in [10, 40, 90, 5_000] {
        let mut inner = graph(&[node("Relu", &["x"], &["y"], &[])], &[], &[], &[value("y", F32, &[1, 4])]);
        for _ in 0..depth {
            let branch = |name: &str| Message::default().bytes(1, name).bytes(6, &inner).int(20, 5);
            inner =
                graph(&[node("If", &["x"], &["y"], &[branch("then_branch")])], &[], &[], &[value("y", F32, &[1, 4])]);
        }
        let outer = graph(
            &[node("If", &["x"], &["y"], &[Message::default().bytes(1, "then_branch").bytes(6, &inner).int(20, 5)])],
            &[],
            &[value("x", F32, &[1, 4])],
            &[value("y", F32, &[1, 4])],
        );
        case(&format!("graphs {depth} deep"), file(outer));
    }
    let with = |operator: &str, attributes: &[Message], initial: &[Message]| {
        let inputs: Vec<&str> = if initial.is_empty() { vec!["x"] } else { vec!["x", "w"] };
        small(&[node(operator, &inputs, &["y"], attributes)], initial)
    };
    let numbers = |values: &[i64]| [tensor("w", INT64, &[values.len() as i64], &i64s(values))];
    case("transposed twice the same", with("Transpose", &[ints("perm", &[0, 0])], &[]));
    case("transposed beyond", with("Transpose", &[ints("perm", &[5, -9])], &[]));
    case("flattened beyond", with("Flatten", &[int("axis", 99)], &[]));
    case("concatenated beyond", with("Concat", &[int("axis", i64::MIN)], &[]));
    case("softmax beyond", with("Softmax", &[int("axis", i64::MAX)], &[]));
    case("reshaped to less", with("Reshape", &[], &numbers(&[3])));
    case("reshaped to nothing", with("Reshape", &[], &numbers(&[-1, -1, 0])));
    case("reshaped to too much", with("Reshape", &[], &numbers(&[i64::MAX, i64::MAX])));
    case("gathered beyond", with("Gather", &[], &numbers(&[1 << 50, -1 << 50])));
    case("split into less than nothing", with("Split", &[int("axis", 1)], &numbers(&[-3, 7])));
    case("cast to nothing known", with("Cast", &[int("to", 4_711)], &[]));
    case("a pool without a window", with("MaxPool", &[ints("kernel_shape", &[0, 0])], &[]));
    case("a pool of negative steps", with("MaxPool", &[ints("kernel_shape", &[2, 2]), ints("strides", &[-1, 0])], &[]));
    case(
        "a convolution of nothing",
        with("Conv", &[ints("dilations", &[i64::MAX; 2])], &[tensor("w", F32, &[0, 0, 0, 0], &[])]),
    );
    case("a group of none", with("Conv", &[int("group", 0)], &[tensor("w", F32, &[1, 1, 1, 1], &[0; 4])]));
    cases
}

/// Valid, or nearly so, and a burden.
pub(super) fn heavy() -> Vec<(String, Vec<u8>)> {
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    let mut case = |name: &str, bytes: Vec<u8>| cases.push((name.to_owned(), bytes));
    let square = |side: i64, chain: usize| {
        let names: Vec<String> = (0..=chain).map(|at| if at == 0 { "x".into() } else { format!("y{at}") }).collect();
        let nodes: Vec<Message> =
            names.windows(2).map(|pair| node("MatMul", &[&pair[0], &pair[0]], &[&pair[1]], &[])).collect();
        let last = &names[chain];
        file(graph(&nodes, &[], &[value("x", F32, &[side, side])], &[value(last, F32, &[side, side])]))
    };
    case("a trillion multiply-accumulates", square(4_000, 16));
    case("the same in more steps", square(1_000, 1_100));
    let numbers = |values: &[i64]| tensor("w", INT64, &[values.len() as i64], &i64s(values));
    for (name, operator, values) in [
        ("a terabyte of constants", "Expand", &[1 << 38, 4][..]),
        ("a terabyte of tiles", "Tile", &[1 << 30, 1 << 8]),
        ("a terabyte of padding", "Pad", &[0, 0, 1 << 38, 0]),
        ("a gigabyte of tiles", "Tile", &[1 << 26, 1]),
    ] {
        case(name, small(&[node(operator, &["x", "w"], &["y"], &[])], &[numbers(values)]));
    }
    let constant = node("ConstantOfShape", &["w"], &["c"], &[]);
    let sum = node("ReduceSum", &["c"], &["s"], &[int("keepdims", 0)]);
    for (name, elements) in [("a terabyte of zeros", 1 << 38), ("four gigabytes of zeros", 1 << 30)] {
        let nodes = [constant.clone(), sum.clone(), node("Add", &["x", "s"], &["y"], &[])];
        case(name, small(&nodes, &[numbers(&[elements])]));
    }
    let scalar = |name: &str, value: i64| tensor(name, INT64, &[], &i64s(&[value]));
    let range = node("Range", &["from", "to", "by"], &["r"], &[]);
    let cast = node("Cast", &["r"], &["c"], &[int("to", F32)]);
    let nodes = [range, cast, sum, node("Add", &["x", "s"], &["y"], &[])];
    case("a range without end", small(&nodes, &[scalar("from", 0), scalar("to", 1 << 40), scalar("by", 1)]));
    let body = graph(
        &[node("Identity", &["go"], &["going"], &[]), node("Relu", &["state"], &["next"], &[])],
        &[],
        &[value("round", INT64, &[]), value("go", 9, &[]), value("state", F32, &[1, 4])],
        &[value("going", 9, &[]), value("next", F32, &[1, 4])],
    );
    let body = Message::default().bytes(1, "body").bytes(6, body).int(20, 5);
    let rounds = [scalar("rounds", 1 << 31), tensor("go", 9, &[], &[1])];
    case("a loop of 2^31 rounds", small(&[node("Loop", &["rounds", "go", "x"], &["y"], &[body])], &rounds));
    for (name, count) in [("ten thousand layers", 10_000), ("a hundred thousand layers", 100_000)] {
        let names: Vec<String> = (0..=count).map(|at| if at == 0 { "x".into() } else { format!("y{at}") }).collect();
        let nodes: Vec<Message> = names.windows(2).map(|pair| node("Sin", &[&pair[0]], &[&pair[1]], &[])).collect();
        let last = names.last().cloned().unwrap_or_default();
        case(name, file(graph(&nodes, &[], &[value("x", F32, &[1, 4])], &[value(&last, F32, &[1, 4])])));
    }
    // Each tensor is split and put together again in another order: optimisers that move splits go round in circles.
    let mut nodes = Vec::new();
    let mut last = "x".to_owned();
    for at in 0..60 {
        let (a, b, joined) = (format!("a{at}"), format!("b{at}"), format!("j{at}"));
        nodes.push(node("Split", &[&last], &[&a, &b], &[int("axis", 1), int("num_outputs", 2)]));
        nodes.push(node("Concat", &[&b, &a], &[&joined], &[int("axis", 1)]));
        last = joined;
    }
    nodes.push(node("Relu", &[&last], &["y"], &[]));
    case("split and joined sixty times", small(&nodes, &[]));
    // Twice as many uses of one tensor at each step.
    let names: Vec<String> = (0..=64).map(|at| if at == 0 { "x".into() } else { format!("d{at}") }).collect();
    let nodes: Vec<Message> =
        names.windows(2).map(|pair| node("Concat", &[&pair[0], &pair[0]], &[&pair[1]], &[int("axis", 0)])).collect();
    case("doubled 64 times", file(graph(&nodes, &[], &[value("x", F32, &[1, 4])], &[value("d64", F32, &[1, 4])])));
    cases
}
