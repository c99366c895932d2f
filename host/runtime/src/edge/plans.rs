//! The plans that an edge has agreed on, by their epochs.

use edgent_link::Plan;
use std::collections::VecDeque;

/// Plans that are remembered; a request of an older epoch is told to agree on a new one.
const PLANS_KEPT: usize = 256;

/// The last ones that were agreed on or used.
#[derive(Debug, Default)]
pub(crate) struct Plans(VecDeque<Plan>);

impl Plans {
    /// Remembers a plan in place of what its epoch meant before.
    pub(crate) fn agree(&mut self, plan: Plan) {
        self.0.retain(|known| known.epoch != plan.epoch);
        if self.0.len() == PLANS_KEPT {
            self.0.pop_front();
        }
        self.0.push_back(plan);
    }

    /// The plan of an epoch. It goes to the back of the queue: one that is used is not forgotten for newer ones that
    /// are not.
    pub(crate) fn of(&mut self, epoch: u64) -> Option<Plan> {
        let index = self.0.iter().position(|plan| plan.epoch == epoch)?;
        let plan = self.0.remove(index)?;
        self.0.push_back(plan);
        Some(plan)
    }
}
