//! A plan of the operator's own, in place of a choice: to compare, to find a fault, or because they know better.
//!
//! A request whose deadline the plan cannot keep is answered by a local exit all the same, as is every request while
//! there is no edge. The pin ends with the version: another network has other cuts.

use super::Device;
use super::serving::Serving;
use crate::codec::from_wire;
use crate::edge::fault;
use edgent_link::{Digest, Direction, Fault, FaultKind, Plan};
use edgent_planner::{self as planner, Action, Event};
use std::sync::Arc;

impl Device {
    /// Runs this plan and no other; without one, chooses again. Gives the plan that is in force then.
    pub(super) async fn pin(self: Arc<Self>, plan: Option<Plan>) -> Result<Plan, Fault> {
        // The plan is of the version in force, which stays so meanwhile.
        let _alone = self.changing.lock().await;
        let serving = self.serving();
        let wanted = plan.map(|plan| serving.can_run(plan)).transpose()?;
        self.agree(&serving, Event::Pinned(wanted)).await;
        let in_force = serving.lock().installed();
        if wanted.is_some_and(|wanted| wanted != in_force.plan) {
            self.agree(&serving, Event::Pinned(None)).await;
            return Err(fault(FaultKind::Refused, "the edge did not agree to the plan; the device chooses as before"));
        }
        Ok(serving.to_wire(in_force))
    }

    /// Has the controller know, and waits until the edge has answered to the plan that it wants.
    async fn agree(&self, serving: &Arc<Serving>, event: Event) {
        let actions = serving.lock().handle(event, self.shared.started.elapsed());
        let Some(edge) = self.shared.edge() else { return };
        for action in actions {
            match action {
                Action::Install(_) => serving.act(&edge, action).await,
                Action::Probe { .. } => {
                    let (serving, edge) = (Arc::clone(serving), edge.clone());
                    tokio::spawn(async move { serving.act(&edge, action).await });
                }
            }
        }
    }
}

impl Serving {
    /// The same plan as the planner sees it, if it is one of this version and can be run as things are.
    fn can_run(&self, plan: Plan) -> Result<planner::Plan, Fault> {
        let bad = |message: String| fault(FaultKind::BadRequest, message);
        if plan.model != self.model() {
            let (theirs, ours) = (short(plan.model), short(self.model()));
            return Err(fault(FaultKind::UnknownModel, format!("the plan is of {theirs}, and {ours} is in force")));
        }
        let wanted = planner::Plan {
            exit: usize::from(plan.exit),
            cut: usize::from(plan.cut),
            direction: match plan.direction {
                Direction::DeviceFirst => planner::Direction::DeviceFirst,
                Direction::EdgeFirst => planner::Direction::EdgeFirst,
            },
            codec: from_wire(plan.codec),
        };
        let exits = self.deployment.network().exits();
        let exit = exits.get(wanted.exit);
        let exit = exit.ok_or_else(|| bad(format!("there is no exit {}; there are {}", wanted.exit, exits.len())))?;
        if wanted.cut > exit.path.len() {
            let why = format!("exit {} has cuts 0 to {}, and not {}", wanted.exit, exit.path.len(), wanted.cut);
            return Err(bad(why));
        }
        // The two ends are one plan in either direction, and nothing that is coded crosses behind the last segment.
        let wanted = match wanted.placement(self.deployment.network()) {
            planner::Placement::DeviceOnly => planner::Plan::device_only(self.deployment.network(), wanted.exit),
            planner::Placement::EdgeOnly => {
                planner::Plan { cut: 0, direction: planner::Direction::DeviceFirst, ..wanted }
            }
            planner::Placement::Split => wanted,
        };
        let can_run = self.lock().can_run(wanted).is_some();
        can_run.then_some(wanted).ok_or_else(|| {
            let why = "as things are, that plan cannot be run: there is no edge, or it takes no such codec, or what would \
                       cross loses more than --codec-loss-max or must not leave the device";
            fault(FaultKind::Refused, why)
        })
    }
}

fn short(digest: Digest) -> String {
    edgent_bundle::Digest(digest.0).short()
}
