//! `edgent infer`: asks a running device about images, or about other inputs.

use crate::bounds::DEADLINE_MAX_MS;
use crate::identity::Connection;
use crate::output::{BadInput, Output};
use crate::samples;
use anyhow::{Context, Result};
use edgent_link::{
    Activation, Answer, AskRequest, Client, Codec, Direction, ExitDescription, Hello, Limits, Link, PROTOCOL_VERSION,
    Role, TensorDescription, TraceParent,
};
use edgent_nn::{ElementType, Tensor};
use edgent_runtime::{build_name, codec};
use safetensors::SafeTensors;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The trace that this program was started in, as OpenTelemetry names it in the environment.
const TRACEPARENT_VARIABLE: &str = "TRACEPARENT";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// PNG images of the size that the model takes; or safetensors with a tensor for each of its inputs, by name.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Address of the device.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7400")]
    device: String,
    /// Time for each answer; the device's own deadline if not given.
    #[arg(long, allow_negative_numbers = true)]
    deadline_ms: Option<f64>,
    #[command(flatten)]
    connection: Connection,
    /// The lowest measured accuracy of an exit that may answer, from 0 to 1.
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.0)]
    accuracy_floor: f64,
}

#[derive(Serialize)]
struct Report {
    answers: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    image: String,
    label: String,
    score: f32,
    /// What a model without classes gives.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    outputs: Vec<Given>,
    exit: String,
    cut: u16,
    direction: &'static str,
    placement: &'static str,
    latency_ms: f64,
    deadline_met: bool,
    degraded: Option<String>,
    epoch: u64,
    model: Option<String>,
}

#[derive(Serialize)]
struct Given {
    name: String,
    dims: Vec<u32>,
    values: Vec<f64>,
    /// Bytes that are a text, perhaps with zeros behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let deadline_ms = arguments.deadline_ms.unwrap_or(0.0);
    if !(0.0..=DEADLINE_MAX_MS).contains(&deadline_ms) {
        return Err(BadInput::error("--deadline-ms must be between 0 and 3600000"));
    }
    let accuracy_floor = arguments.accuracy_floor;
    if !(0.0..=1.0).contains(&accuracy_floor) {
        return Err(BadInput::error("--accuracy-floor must be within 0 and 1"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let link = arguments.connection.link(&[&arguments.device])?;
        let client = connect(&link, &arguments.device).await?;
        let described = client.describe().await?;
        let model = described.models.first().context("the device has no model")?;
        let mut report = Report { answers: Vec::new() };
        for path in &arguments.images {
            let input = match path.extension() {
                Some(extension) if extension == "safetensors" => inputs(path, &model.inputs)?,
                _ => vec![codec::encode(&samples::image(path)?, Codec::Raw)],
            };
            let answer = ask_all(&client, input, deadline_ms, accuracy_floor).await?;
            let index = answer.label as usize;
            let exit = model.exits.get(usize::from(answer.exit));
            let row = Row {
                image: path.display().to_string(),
                label: match answer.scores.is_empty() {
                    true => String::new(),
                    false => model.classes.get(index).cloned().unwrap_or_else(|| index.to_string()),
                },
                outputs: answer.outputs.iter().enumerate().map(|(at, output)| given(exit, at, output)).collect(),
                score: answer.scores.get(index).copied().unwrap_or(0.0),
                exit: exit.map_or_else(String::new, |exit| exit.name.clone()),
                cut: answer.cut,
                direction: direction(answer.direction),
                placement: answer.placement.name(),
                latency_ms: answer.latency_us as f64 / 1e3,
                deadline_met: answer.deadline_met,
                degraded: answer.degraded,
                epoch: answer.epoch,
                model: answer.model.map(|digest| edgent_bundle::Digest(digest.0).to_string()),
            };
            output.line(format_args!(
                "{:<40} {:<12} {:>5.1} %  {} {} cut {}  {:.1} ms{}{}",
                row.image,
                row.label,
                row.score * 100.0,
                row.exit,
                row.placement,
                row.cut,
                row.latency_ms,
                if row.deadline_met { "" } else { "  LATE" },
                row.degraded.as_ref().map_or_else(String::new, |why| format!("  degraded: {why}")),
            ));
            for Given { name, dims, values, text } in &row.outputs {
                if let Some(text) = text {
                    output.line(format_args!("    {name} {dims:?} '{text}'"));
                    continue;
                }
                let least = values.iter().copied().fold(f64::INFINITY, f64::min);
                let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                output.line(format_args!("    {name} {dims:?} from {least} to {most}"));
            }
            report.answers.push(row);
        }
        output.result(&report)
    })
}

/// Connects to a host, as the tool.
pub(crate) async fn connect(link: &Link, address: &str) -> Result<Client> {
    let hello = Hello { protocol: PROTOCOL_VERSION, role: Role::Tool, build: build_name() };
    link.connect(address, hello, Limits::default()).await.with_context(|| format!("asking {address}"))
}

/// Asks a device about one image; a deadline of 0 is the device's own.
pub(crate) async fn ask(client: &Client, image: &Tensor, deadline_ms: f64) -> Result<Answer> {
    ask_all(client, vec![codec::encode(image, Codec::Raw)], deadline_ms, 0.0).await
}

async fn ask_all(
    client: &Client,
    mut inputs: Vec<Activation>,
    deadline_ms: f64,
    accuracy_floor: f64,
) -> Result<Answer> {
    anyhow::ensure!(!inputs.is_empty(), "there is nothing to ask about");
    let (input, beside, model) = (inputs.remove(0), inputs, String::new());
    let deadline_us = (deadline_ms * 1e3) as u64;
    let trace = std::env::var(TRACEPARENT_VARIABLE).ok().and_then(|text| TraceParent::read(&text));
    let request = AskRequest { id: 0, model, deadline_us, accuracy_floor, input, beside, trace };
    Ok(client.ask(request).await?)
}

/// A model's inputs out of a file.
fn inputs(path: &Path, wanted: &[TensorDescription]) -> Result<Vec<Activation>> {
    let bad = |why: String| BadInput::error(format!("{}: {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
    let input = |TensorDescription { name, element_type, dims }: &TensorDescription| {
        let tensor = file.tensor(name).map_err(|_| bad(format!("there is no tensor '{name}'")))?;
        let bytes = tensor.data().to_vec().into();
        let (codec, dims, scales, offsets) = (Codec::Raw, dims.clone(), Vec::new(), Vec::new());
        Ok(Activation { codec, element_type: *element_type, dims, scales, offsets, bytes })
    };
    wanted.iter().map(input).collect()
}

fn given(exit: Option<&ExitDescription>, at: usize, output: &Activation) -> Given {
    let name = exit.and_then(|exit| exit.outputs.get(at)).map_or_else(|| at.to_string(), |output| output.name.clone());
    let tensor = codec::fact(output).and_then(|fact| codec::decode(output, &fact).ok());
    let text = tensor.as_ref().filter(|tensor| tensor.element_type() == ElementType::U8).and_then(text);
    Given { name, dims: output.dims.clone(), values: tensor.map_or_else(Vec::new, |tensor| tensor.to_f64()), text }
}

/// What bytes say, if that is fit to be shown.
fn text(tensor: &Tensor) -> Option<String> {
    let bytes = tensor.bytes();
    let end = bytes.iter().rposition(|byte| *byte != 0)? + 1;
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    (!text.chars().any(char::is_control)).then(|| text.to_owned())
}

pub(crate) fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::DeviceFirst => "device-first",
        Direction::EdgeFirst => "edge-first",
    }
}
