//! Operators between their two phases, and work on its way to a stream.

use crate::generated::types::*;
use crate::memory::Access;
use crate::streams::{Task, Traced};
use crate::world::{Answer, Executor, Handle, Plan, Refusal, Run, World, report};

impl World {
    /// Ends a first phase: an executor and the workspace it asks for.
    pub(crate) fn planned(
        &mut self,
        name: &'static str,
        plan: Plan,
        (workspace, executor): (*mut u64, *mut *mut aclOpExecutor),
    ) -> Answer<()> {
        self.ready()?;
        self.context()?;
        if workspace.is_null() || executor.is_null() {
            return crate::world::refuse(
                ACLNN_ERR_PARAM_NULLPTR,
                format!("{name}: nowhere to put the size of the workspace or the executor"),
            );
        }
        for tensor in plan.reads.iter().chain(&plan.writes) {
            tensor.check_memory(&self.memory)?;
        }
        // Operators with several operands want room, others none, so that both ways are gone.
        let bytes = if plan.reads.len() > 1 { 512 * plan.reads.len() as u64 } else { 0 };
        let handle = self.handle();
        self.executors.insert(handle, Executor { name, workspace: bytes, repeatable: false, plan });
        // SAFETY: neither is null, and the caller gives both for this.
        unsafe {
            *workspace = bytes;
            *executor = handle as *mut aclOpExecutor;
        }
        Ok(())
    }

    /// A second phase: puts the operator on the stream and uses up the executor.
    pub(crate) fn launch(
        &mut self,
        name: &'static str,
        workspace: usize,
        bytes: u64,
        executor: usize,
        stream: usize,
    ) -> Answer<()> {
        let Some(found) = self.executors.get(&executor) else {
            return self.dead(Handle::Executor, executor);
        };
        if found.name != name {
            return report(format!("{name} is given an executor of {}", found.name));
        }
        let (plan, wanted, repeatable) = (found.plan.clone(), found.workspace, found.repeatable);
        if !repeatable {
            self.executors.remove(&executor);
            self.bury(executor);
        }
        if bytes < wanted {
            return report(format!("{name}: the workspace has {bytes} bytes, {wanted} were asked for"));
        }
        let mut writes: Vec<usize> = plan.writes.iter().map(|t| t.data).collect();
        let reads: Vec<usize> = plan.reads.iter().map(|t| t.data).collect();
        if wanted > 0 {
            let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
            self.memory.holder(workspace, wanted, Some(crate::memory::Place::Device))?;
            writes.push(workspace);
        }
        for tensor in plan.reads.iter().chain(&plan.writes) {
            if !self.tensors.contains_key(&tensor.handle) {
                return report(format!("{name}: a tensor was destroyed before the second phase"));
            }
        }
        self.enqueue(name, stream, reads, writes, plan.run)
    }

    /// Queues work that uses memory, if no other stream may be at the same memory.
    pub(crate) fn enqueue(
        &mut self,
        name: &'static str,
        stream: usize,
        reads: Vec<usize>,
        writes: Vec<usize>,
        run: Run,
    ) -> Answer<()> {
        let mut holders = Vec::new();
        for (addresses, writing) in [(&reads, false), (&writes, true)] {
            for &at in addresses {
                let start = self.memory.holder(at, 1, None)?;
                for access in self.memory.block(start).map(|b| b.uses.clone()).unwrap_or_default() {
                    if (writing || access.writes) && !self.streams.is_before(&access, Some(stream)) {
                        return report(format!(
                            "{name} uses memory that another stream is at, and no event orders the two"
                        ));
                    }
                }
                holders.push((start, writing));
            }
        }
        let traced = Traced { name, stream, reads, writes, after: Vec::new() };
        let position = self.streams.push(stream, Task::Work(run), Some(traced));
        for (start, writes) in holders {
            if let Some(uses) = self.memory.uses(start) {
                uses.retain(|old| old.stream != stream || (old.writes && !writes));
                uses.push(Access { stream, position, writes });
            }
        }
        Ok(())
    }

    /// Whether all queued work on a block is known to be over.
    pub(crate) fn idle(&self, start: usize) -> bool {
        let uses = self.memory.block(start).map(|block| &block.uses);
        uses.into_iter().flatten().all(|access| self.streams.is_before(access, None))
    }

    /// Runs a stream, and what it waits for, up to a place.
    pub(crate) fn run_until(&mut self, stream: usize, position: u64) -> Answer<()> {
        let mut first: Option<Refusal> = None;
        while let Some(run) = self.streams.next_work(stream, position) {
            if let Err(refusal) = run(self) {
                first.get_or_insert(refusal);
            }
        }
        first.map_or(Ok(()), Err)
    }
}
