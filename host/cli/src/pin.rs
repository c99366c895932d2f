//! `edgent pin`: has a running device keep to one plan.

use crate::ask;
use crate::identity::Connection;
use crate::output::{BadInput, Output};
use crate::versions::with_host;
use anyhow::{Context, Result};
use edgent_link::{Description, Direction, Plan};
use edgent_planner as planner;
use edgent_runtime::codec::{from_wire, to_wire};
use serde::Serialize;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Address of the device.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7400")]
    to: String,
    /// Which exit: its name, or its place from 0.
    #[arg(long, required_unless_present = "off", conflicts_with = "off")]
    exit: Option<String>,
    /// How many of the exit's segments run on the first host; 0 for none, so that the edge runs all.
    #[arg(long, required_unless_present = "off", conflicts_with = "off")]
    cut: Option<u16>,
    /// The edge is the first host, as in the paper, and not the device.
    #[arg(long, conflicts_with = "off")]
    edge_first: bool,
    /// How what crosses is written.
    #[arg(long, value_parser = codec, default_value = planner::Codec::Raw.name(), conflicts_with = "off")]
    codec: planner::Codec,
    /// Let the device choose again.
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Serialize)]
struct Report {
    exit: String,
    cut: u16,
    direction: &'static str,
    codec: &'static str,
    epoch: u64,
}

fn codec(name: &str) -> Result<planner::Codec, String> {
    planner::Codec::from_name(name)
        .ok_or_else(|| format!("the codecs are {}", planner::Codec::ALL.map(planner::Codec::name).join(", ")))
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    with_host(&arguments.to, &arguments.connection, async |client| {
        let described = client.describe().await?;
        let wanted = (!arguments.off).then(|| arguments.plan(&described)).transpose()?;
        let plan = client.pin(wanted).await.with_context(|| format!("{} keeps the plan it has", arguments.to))?;
        let report = Report {
            exit: exits(&described)?.get(usize::from(plan.exit)).map_or_else(String::new, |name| (*name).to_owned()),
            cut: plan.cut,
            direction: ask::direction(plan.direction),
            codec: from_wire(plan.codec).name(),
            epoch: plan.epoch,
        };
        output.line(format_args!(
            "in force at {}: {} cut {} {} {}, epoch {}",
            arguments.to, report.exit, report.cut, report.direction, report.codec, report.epoch
        ));
        output.result(&report)
    })
}

impl Arguments {
    fn plan(&self, described: &Description) -> Result<Plan> {
        let model = described.models.first().context("the device has no model")?;
        let wanted = self.exit.as_deref().unwrap_or_default();
        let names = exits(described)?;
        let place = names.iter().position(|name| *name == wanted).or_else(|| wanted.parse().ok());
        let place = place.filter(|place| *place < names.len());
        let exit =
            place.ok_or_else(|| BadInput::error(format!("no exit '{wanted}'; there are {}", names.join(", "))))?;
        Ok(Plan {
            epoch: 0,
            model: model.digest,
            exit: exit as u16,
            cut: self.cut.unwrap_or_default(),
            direction: if self.edge_first { Direction::EdgeFirst } else { Direction::DeviceFirst },
            codec: to_wire(self.codec),
        })
    }
}

fn exits(described: &Description) -> Result<Vec<&str>> {
    let model = described.models.first().context("the device has no model")?;
    Ok(model.exits.iter().map(|exit| exit.name.as_str()).collect())
}
