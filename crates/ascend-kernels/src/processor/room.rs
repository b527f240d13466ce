//! Whether a run fits into the memory of the device, before anything of it is there.

use std::sync::atomic::Ordering;

use quant_core::operators::{CacheDemand, Demand};
use quant_core::{Bytes, CoreError, ProcessorProblem};

use super::Shared;
use super::{cache, weights};

/// Of the free memory this part is left to workspaces and to what allocations are rounded up to.
const LEFT: u64 = 32;

impl Shared {
    /// Makes plans for a run: which weights stay on the device, how far caches grow.
    pub(super) fn plan(&self, demand: &Demand) -> Result<(), CoreError> {
        let cann = self.device.cann();
        if !cann.has("aclrtGetMemInfo") {
            return Ok(());
        }
        // What an earlier plan keeps there is given back before this run prepares its own, or is its own.
        let free = (self.device.memory()?.0 + self.weights.held()) as u64;
        let attends = |caches: &&CacheDemand| cache::attends(cann, caches);
        let caches = demand.caches.as_ref().filter(attends);
        let cached = caches.map_or(0, cache::bytes);
        let beside = demand.parameters + demand.step + cached + free / LEFT;
        let room = free.saturating_sub(beside);
        let places = 2 * demand.largest;
        let least = if weights::can_stream(cann) { demand.weights.min(places) } else { demand.weights };
        if least > room {
            let what = if least < demand.weights { "two places for weights" } else { "weights" };
            let pages = caches.map_or(0, |caches| caches.pages * caches.page);
            return Err(CoreError::Processor {
                message: format!(
                    "device {} has {} free: {what} take {}, caches of {pages} positions {}, a step {}, parameters {}, and {} are left \
                     free; ask for shorter or fewer texts, or end what else uses the device",
                    self.device.id(),
                    Bytes(free),
                    Bytes(least),
                    Bytes(cached),
                    Bytes(demand.step),
                    Bytes(demand.parameters),
                    Bytes(free / LEFT),
                ),
                kind: ProcessorProblem::Memory,
            });
        }
        let stays = if demand.weights <= room { room } else { room.saturating_sub(places) };
        self.weights.set_room(Some(usize::try_from(stays).unwrap_or(usize::MAX)));
        self.pages.store(caches.map_or(usize::MAX, |caches| caches.pages), Ordering::Relaxed);
        Ok(())
    }
}
