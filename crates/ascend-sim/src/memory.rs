//! Device and page-locked memory: blocks of host memory that are counted and guarded.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, VecDeque};

use crate::generated::types::{
    ACL_ERROR_INVALID_PARAM, ACL_ERROR_RT_DEVICE_OOM, ACL_ERROR_RT_MEMORY_ALLOCATION,
};
use crate::refusal::{Answer, refuse, report};

/// Addresses of device memory are multiples of this.
const ALIGNMENT: usize = 64;
/// New device memory holds this, so that nobody relies on zeros.
const FRESH: u8 = 0xA5;
/// Freed memory holds this.
const FREED: u8 = 0xDD;
/// So many bytes of freed memory are kept back, to see who still uses them.
const KEPT_BACK: usize = 64 << 20;

/// A use of a block of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) stream: usize,
    pub(crate) position: u64,
    pub(crate) writes: bool,
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Device,
    Host,
}

#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) bytes: usize,
    pub(crate) place: Place,
    /// The last uses by each stream.
    pub(crate) uses: Vec<Access>,
}

#[derive(Debug)]
pub(crate) struct Memory {
    blocks: BTreeMap<usize, Block>,
    kept_back: VecDeque<(usize, usize)>,
    kept_bytes: usize,
    /// Bytes of device memory.
    pub(crate) capacity: usize,
    /// The most bytes of device memory at a time.
    pub(crate) peak: usize,
    /// Whether numbers that do not fit become the largest that do.
    pub(crate) saturates: bool,
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1), ALIGNMENT).ok()
}

impl Memory {
    pub(crate) const fn new() -> Self {
        Self {
            blocks: BTreeMap::new(),
            kept_back: VecDeque::new(),
            kept_bytes: 0,
            capacity: 1 << 30,
            peak: 0,
            saturates: false,
        }
    }

    pub(crate) fn used(&self, place: Place) -> usize {
        self.blocks.values().filter(|block| block.place == place).map(|block| block.bytes).sum()
    }

    pub(crate) fn allocate(&mut self, bytes: usize, place: Place) -> Answer<usize> {
        if bytes == 0 {
            return refuse(ACL_ERROR_INVALID_PARAM, "0 bytes of memory were asked for");
        }
        if place == Place::Device && self.used(place).saturating_add(bytes) > self.capacity {
            return refuse(
                ACL_ERROR_RT_DEVICE_OOM,
                format!("EL0004: {bytes} bytes do not fit into the device memory"),
            );
        }
        let Some(layout) = layout(bytes) else {
            return refuse(ACL_ERROR_RT_MEMORY_ALLOCATION, format!("{bytes} bytes cannot be had"));
        };
        // SAFETY: the size is not 0.
        let at = unsafe { alloc(layout) };
        if at.is_null() {
            return refuse(ACL_ERROR_RT_MEMORY_ALLOCATION, format!("{bytes} bytes cannot be had"));
        }
        // SAFETY: `bytes` bytes were just allocated there.
        unsafe { at.write_bytes(FRESH, bytes) };
        self.blocks.insert(at as usize, Block { bytes, place, uses: Vec::new() });
        self.peak = self.peak.max(self.used(Place::Device));
        Ok(at as usize)
    }

    /// The block that begins at this address.
    pub(crate) fn block(&self, at: usize) -> Option<&Block> {
        self.blocks.get(&at)
    }

    pub(crate) fn release(&mut self, at: usize, place: Place) -> Answer<()> {
        if at == 0 {
            return refuse(ACL_ERROR_INVALID_PARAM, "a null pointer is freed");
        }
        match self.blocks.get(&at) {
            Some(block) if block.place == place => {}
            Some(_) => return report("memory is freed by the function of another kind"),
            None if self.kept_back.iter().any(|&(start, _)| start == at) => {
                return report("memory is freed twice");
            }
            None => return report("what is freed was never allocated"),
        }
        let Some(block) = self.blocks.remove(&at) else { return Ok(()) };
        // SAFETY: the block was alive, and it is not given to anybody before it leaves the queue below.
        unsafe { (at as *mut u8).write_bytes(FREED, block.bytes) };
        self.kept_back.push_back((at, block.bytes));
        self.kept_bytes += block.bytes;
        while self.kept_bytes > KEPT_BACK {
            let Some((start, bytes)) = self.kept_back.pop_front() else { break };
            self.kept_bytes -= bytes;
            if let Some(layout) = layout(bytes) {
                // SAFETY: allocated with this layout, and in no table any more.
                unsafe { dealloc(start as *mut u8, layout) };
            }
        }
        Ok(())
    }

    /// The start of the live block that holds these bytes.
    pub(crate) fn holder(&self, at: usize, bytes: usize, place: Option<Place>) -> Answer<usize> {
        let end = at.checked_add(bytes);
        if let (Some((&start, block)), Some(end)) = (self.blocks.range(..=at).next_back(), end)
            && end <= start + block.bytes
        {
            return match place {
                Some(place) if place != block.place => report(format!(
                    "memory of the {:?} is used where that of the {place:?} is meant",
                    block.place
                )),
                _ => Ok(start),
            };
        }
        if self.kept_back.iter().any(|&(start, size)| at >= start && at < start + size) {
            return report("memory is used after it was freed");
        }
        report(format!("{bytes} bytes are used that no allocation holds"))
    }

    pub(crate) fn uses(&mut self, start: usize) -> Option<&mut Vec<Access>> {
        self.blocks.get_mut(&start).map(|block| &mut block.uses)
    }

    /// Bytes of device memory.
    pub(crate) fn read(&self, at: usize, bytes: usize) -> Answer<&[u8]> {
        self.holder(at, bytes, Some(Place::Device))?;
        // SAFETY: a live block holds these bytes, and they were written when it was made.
        Ok(unsafe { std::slice::from_raw_parts(at as *const u8, bytes) })
    }

    pub(crate) fn write(&mut self, at: usize, bytes: usize) -> Answer<&mut [u8]> {
        self.holder(at, bytes, Some(Place::Device))?;
        // SAFETY: a live block holds these bytes, and all access to device memory goes through this value.
        Ok(unsafe { std::slice::from_raw_parts_mut(at as *mut u8, bytes) })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let blocks = self.blocks.iter().map(|(&at, block)| (at, block.bytes));
        for (at, bytes) in blocks.chain(self.kept_back.iter().copied()) {
            if let Some(layout) = layout(bytes) {
                // SAFETY: allocated with this layout, and nobody is left to use it.
                unsafe { dealloc(at as *mut u8, layout) };
            }
        }
    }
}
