//! Cache-line aligned memory for packed panels.

use std::fmt;
use std::mem::MaybeUninit;

/// Bytes of a cache line, and of the widest register: a packed vector never crosses a line.
pub(super) const LINE: usize = 64;

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line {
    _bytes: [MaybeUninit<u8>; LINE],
}

/// Memory aligned to a cache line, uninitialised until packing writes it.
#[derive(Clone)]
pub(crate) struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// Room for `count` values of `T`.
    pub(super) fn new<T: Copy>(count: usize) -> Self {
        let lines = (count * size_of::<T>()).div_ceil(LINE);
        let mut memory = Vec::with_capacity(lines);
        // SAFETY: the capacity was just reserved, and a `Line` of `MaybeUninit` needs no initialisation.
        unsafe { memory.set_len(lines) };
        Self { lines: memory }
    }

    /// The first byte as a `T`; `T` must not be aligned beyond a cache line.
    pub(super) fn as_ptr<T: Copy>(&self) -> *const T {
        const { assert!(align_of::<T>() <= LINE) };
        self.lines.as_ptr().cast()
    }

    /// The first byte as a `T` for writing.
    pub(super) fn as_mut_ptr<T: Copy>(&mut self) -> *mut T {
        const { assert!(align_of::<T>() <= LINE) };
        self.lines.as_mut_ptr().cast()
    }

    /// Bytes of memory held.
    pub(super) fn bytes(&self) -> usize {
        self.lines.len() * LINE
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("bytes", &self.bytes()).finish()
    }
}
