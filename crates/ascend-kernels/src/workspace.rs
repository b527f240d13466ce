//! Memory that operators work in.

use std::sync::Arc;

use crate::device::Context;
use crate::error::Result;
use crate::memory::{Allocation, Place};

/// Memory that operators of one stream work in, one after the other. It grows to what the largest asks for.
/// `Send` and `Sync`: a stream has it behind a lock.
#[derive(Debug, Default)]
pub struct Workspace {
    memory: Option<Arc<Allocation>>,
}

impl Workspace {
    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.bytes)
    }

    /// At least so much of it; what was there before is held by the stream until the work in it is done.
    pub(crate) fn reserve(&mut self, context: &Arc<Context>, bytes: u64) -> Result<Option<Arc<Allocation>>> {
        if bytes == 0 {
            return Ok(None);
        }
        let wanted = usize::try_from(bytes).unwrap_or(usize::MAX);
        if self.bytes() < wanted {
            let rounded = wanted.checked_next_power_of_two().unwrap_or(wanted);
            self.memory = Some(Allocation::new(context, rounded, Place::Device)?);
        }
        Ok(self.memory.clone())
    }
}
