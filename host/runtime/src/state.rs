//! What a host does now, as its dashboard and its metrics tell it.

use crate::Deployment;
use crate::metrics::{Metrics, Sample, Value, resident_bytes};
use edgent_link::{Now, Role, RunningPlan, Stats};
use edgent_planner::{Direction, Placement, Planned};
use std::sync::Arc;

/// What a host does now.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) role: Role,
    /// The version that answers who names none.
    pub(crate) version: Option<Arc<Deployment>>,
    pub(crate) stats: Stats,
    /// Of who names none.
    pub(crate) deadline_us: f64,
    /// A device's; an edge runs what the plans of devices say.
    pub(crate) device: Option<DeviceState>,
}

/// What a device does now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceState {
    /// What the next request would be planned with.
    pub(crate) planned: Planned,
    /// How likely that is to be in time.
    pub(crate) in_time: f64,
    pub(crate) edge_is_configured: bool,
    pub(crate) edge_is_connected: bool,
}

impl State {
    /// The same over the link, with what was seen of the last answers.
    pub(crate) fn told(self, metrics: &Metrics) -> Stats {
        let now = Now { deadline_us: self.deadline_us as u64, plan: self.running_plan(), ..metrics.last_answers() };
        let (edge_configured, edge_connected) =
            self.device.map_or((false, false), |device| (device.edge_is_configured, device.edge_is_connected));
        Stats { now: Some(Now { edge_configured, edge_connected, ..now }), ..self.stats }
    }

    fn running_plan(&self) -> Option<RunningPlan> {
        let (device, version) = (self.device?, self.version.as_ref()?);
        let installed = device.planned.installed;
        let index = |index| u16::try_from(index).unwrap_or(u16::MAX);
        Some(RunningPlan {
            exit: index(installed.plan.exit),
            cut: index(installed.plan.cut),
            direction: match installed.plan.direction {
                Direction::DeviceFirst => edgent_link::Direction::DeviceFirst,
                Direction::EdgeFirst => edgent_link::Direction::EdgeFirst,
            },
            placement: match installed.plan.placement(version.network()) {
                Placement::DeviceOnly => edgent_link::Placement::DeviceOnly,
                Placement::Split => edgent_link::Placement::Split,
                Placement::EdgeOnly => edgent_link::Placement::EdgeOnly,
            },
            codec: installed.plan.codec.name().to_owned(),
            epoch: installed.epoch,
            predicted_us: device.planned.predicted_us.unwrap_or(0.0) as u64,
            in_time: device.in_time as f32,
        })
    }

    /// The same for Prometheus.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        let sample = |name, help, value| Sample { name, help, value };
        let stats = &self.stats;
        let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("role", self.role.to_string())];
        let kinds = crate::deployment::faults_by_kind();
        let mut samples = vec![
            sample("edgent_build_info", "The program and its role", Value::Info(build)),
            sample("edgent_uptime_seconds", "Since the start", Value::Gauge(stats.uptime_ms as f64 / 1e3)),
            sample("edgent_deadline_seconds", "The deadline of who names none", Value::Gauge(self.deadline_us / 1e6)),
            sample("edgent_guest_trap", "What segments' guests and graphs did wrong", Value::Kinds("kind", kinds)),
            sample(
                "edgent_quarantined_versions",
                "Versions that are not run any more for what they did",
                Value::Gauge(stats.quarantined as f64),
            ),
            sample(
                "edgent_tensor_copied_bytes",
                "Tensor bytes that were copied",
                Value::Counter(stats.tensor_bytes_copied),
            ),
        ];
        if let Some(bytes) = resident_bytes() {
            let help = "Memory of this process, as it is resident";
            samples.push(sample("process_resident_memory_bytes", help, Value::Gauge(bytes as f64)));
        }
        let Some(device) = &self.device else { return samples };
        let installed = device.planned.installed;
        let is_connected = f64::from(u8::from(device.edge_is_connected));
        samples.extend([
            sample("edgent_edge_connected", "Whether an edge is connected", Value::Gauge(is_connected)),
            sample("edgent_plan_changes", "Plans that replaced another", Value::Counter(stats.plan_changes)),
            sample(
                "edgent_plan_version",
                "The epoch of the plan in force: it is another with each plan",
                Value::Gauge(installed.epoch as f64),
            ),
            sample(
                "edgent_split_point",
                "Segments that the plan in force runs on its first host",
                Value::Gauge(installed.plan.cut as f64),
            ),
        ]);
        // No figures of a link that nobody has measured.
        if device.edge_is_connected && stats.rate_bps > 0 {
            samples.extend([
                sample(
                    "edgent_link_bandwidth_bytes_per_second",
                    "The estimate of the link's rate",
                    Value::Gauge(stats.rate_bps as f64 / 8.0),
                ),
                sample(
                    "edgent_link_rtt_seconds",
                    "The estimate of the link's round trip",
                    Value::Gauge(stats.rtt_us as f64 / 1e6),
                ),
            ]);
        }
        samples
    }
}
