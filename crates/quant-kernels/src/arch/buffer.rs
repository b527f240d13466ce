//! Cache-line aligned memory for packed panels.

use std::fmt;
use std::mem::MaybeUninit;

use memmap2::MmapMut;

/// Bytes of a cache line, and of the widest register: a packed vector never crosses a line.
pub(super) const LINE: usize = 64;

/// A cache line.
#[repr(align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Line {
    _bytes: [MaybeUninit<u8>; LINE],
}

/// Memory aligned to a cache line, whose content means nothing until packing writes it.
pub(crate) enum Buffer {
    /// From the allocator: for what is used once.
    Heap(Vec<Line>),
    /// Pages of its own: for what is kept, so that dropping it gives them back whatever was allocated after it.
    Pages(MmapMut),
}

impl Buffer {
    /// Room for `count` values of `T`.
    pub(super) fn new<T: Copy>(count: usize) -> Self {
        let lines = (count * size_of::<T>()).div_ceil(LINE);
        let mut memory = Vec::with_capacity(lines);
        // SAFETY: the capacity was just reserved, and a `Line` of `MaybeUninit` needs no initialisation.
        unsafe { memory.set_len(lines) };
        Self::Heap(memory)
    }

    /// Room for `count` values of `T` that will be kept for a while.
    pub(super) fn kept<T: Copy>(count: usize) -> Self {
        /// Less than this is not worth a mapping.
        const SMALL: usize = 1 << 20;
        let bytes = (count * size_of::<T>()).next_multiple_of(LINE);
        if bytes < SMALL {
            return Self::new::<T>(count);
        }
        MmapMut::map_anon(bytes).map_or_else(|_| Self::new::<T>(count), Self::Pages)
    }

    /// The first byte as a `T`; `T` must not be aligned beyond a cache line.
    pub(super) fn as_ptr<T: Copy>(&self) -> *const T {
        const { assert!(align_of::<T>() <= LINE) };
        match self {
            Self::Heap(lines) => lines.as_ptr().cast(),
            // A page is a multiple of a line.
            Self::Pages(pages) => pages.as_ptr().cast(),
        }
    }

    /// The first byte as a `T` for writing.
    pub(super) fn as_mut_ptr<T: Copy>(&mut self) -> *mut T {
        const { assert!(align_of::<T>() <= LINE) };
        match self {
            Self::Heap(lines) => lines.as_mut_ptr().cast(),
            Self::Pages(pages) => pages.as_mut_ptr().cast(),
        }
    }

    /// Bytes of memory held.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Heap(lines) => lines.len() * LINE,
            Self::Pages(pages) => pages.len(),
        }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let bytes = self.bytes();
        let mut copy = Self::kept::<u8>(bytes);
        // SAFETY: both hold `bytes` bytes, of which any value is a valid `MaybeUninit` or mapped byte.
        unsafe {
            let (from, to) = (self.as_ptr::<MaybeUninit<u8>>(), copy.as_mut_ptr::<MaybeUninit<u8>>());
            std::ptr::copy_nonoverlapping(from, to, bytes);
        }
        copy
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("bytes", &self.bytes()).finish()
    }
}
