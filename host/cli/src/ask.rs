//! `edgent infer`: asks a running device about images.

use crate::bounds::DEADLINE_MAX_MS;
use crate::output::{BadInput, Output};
use crate::samples;
use anyhow::{Context, Result};
use edgent_link::{
    Answer, AskRequest, Client, Codec, Direction, Hello, Limits, Link, PROTOCOL_VERSION, Placement, Role,
};
use edgent_nn::Tensor;
use edgent_runtime::{build_name, codec};
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// PNG images of the size that the model takes.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Address of the device.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7400")]
    device: String,
    /// Time for each answer; the device's own deadline if not given.
    #[arg(long, allow_negative_numbers = true)]
    deadline_ms: Option<f64>,
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

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let deadline_ms = arguments.deadline_ms.unwrap_or(0.0);
    if !(0.0..=DEADLINE_MAX_MS).contains(&deadline_ms) {
        return Err(BadInput::error("--deadline-ms must be between 0 and 3600000"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let link = Link::start()?;
        let client = connect(&link, &arguments.device).await?;
        let described = client.describe().await?;
        let model = described.models.first().context("the device has no model")?;
        let mut report = Report { answers: Vec::new() };
        for path in &arguments.images {
            let answer = ask(&client, &samples::image(path)?, deadline_ms).await?;
            let index = answer.label as usize;
            let row = Row {
                image: path.display().to_string(),
                label: model.classes.get(index).cloned().unwrap_or_else(|| index.to_string()),
                score: answer.scores.get(index).copied().unwrap_or(0.0),
                exit: model.exits.get(usize::from(answer.exit)).map_or_else(String::new, |exit| exit.name.clone()),
                cut: answer.cut,
                direction: direction(answer.direction),
                placement: placement(answer.placement),
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
    let input = codec::encode(image, Codec::Raw);
    let request =
        AskRequest { id: 0, model: String::new(), deadline_us: (deadline_ms * 1e3) as u64, input, beside: Vec::new() };
    Ok(client.ask(request).await?)
}

pub(crate) fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::DeviceFirst => "device-first",
        Direction::EdgeFirst => "edge-first",
    }
}

pub(crate) fn placement(placement: Placement) -> &'static str {
    match placement {
        Placement::DeviceOnly => "device-only",
        Placement::Split => "split",
        Placement::EdgeOnly => "edge-only",
    }
}
