//! Memory of the device, and page-locked memory of the host.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use half::{bf16, f16};

use crate::cann::acl;
use crate::device::{Context, Device, Raw};
use crate::error::{AscendError, Result};
use crate::ffi::{ACL_MEM_MALLOC_HUGE_FIRST, ACL_MEMCPY_HOST_TO_DEVICE};

/// Numbers that a buffer can hold: any bits are one. Those of CANN, and no others: their size is that of the type that CANN is told.
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
    macro_rules! seal { ($($t:ty),*) => { $(impl Sealed for $t {})* } }
    seal!(i8, u8, i32, i64, u64, f32, half::f16, half::bf16);
}

impl Element for i8 {}
impl Element for u8 {}
impl Element for i32 {}
impl Element for i64 {}
impl Element for u64 {}
impl Element for f32 {}
impl Element for f16 {}
impl Element for bf16 {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Device,
    Host,
}

/// Memory that CANN gave, freed when nobody uses it.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) context: Arc<Context>,
    pub(crate) at: Raw,
    pub(crate) bytes: usize,
    place: Place,
}

impl Allocation {
    pub(crate) fn new(context: &Arc<Context>, bytes: usize, place: Place) -> Result<Arc<Self>> {
        if bytes == 0 {
            return Err(AscendError::shape("length of a buffer", "at least 1 element", "0"));
        }
        context.enter()?;
        let mut at = std::ptr::null_mut();
        match place {
            // SAFETY: the pointer is for the address, and the size is not 0.
            Place::Device => unsafe {
                acl!(context.cann, runtime, aclrtMalloc(&mut at, bytes, ACL_MEM_MALLOC_HUGE_FIRST))
            },
            // SAFETY: as above.
            Place::Host => unsafe { acl!(context.cann, runtime, aclrtMallocHost(&mut at, bytes)) },
        }?;
        Ok(Arc::new(Self { context: Arc::clone(context), at: Raw(at), bytes, place }))
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let cann = &self.context.cann;
        self.context.release(|| match self.place {
            // SAFETY: allocated by the sister of this function, and dropped once; a stream that may use it holds it.
            Place::Device => unsafe { acl!(cann, runtime, aclrtFree(self.at.0)) },
            // SAFETY: as above.
            Place::Host => unsafe { acl!(cann, runtime, aclrtFreeHost(self.at.0)) },
        });
    }
}

fn bytes_of<T: Element>(length: usize) -> Result<usize> {
    length.checked_mul(size_of::<T>()).filter(|&bytes| isize::try_from(bytes).is_ok()).ok_or_else(|| {
        AscendError::shape("length of a buffer", "what fits into the address space", length.to_string())
    })
}

/// Memory of a device for `len` numbers. Its content is whatever was there before something is written.
///
/// `Send` and `Sync`: the host sees it only through copies, which wait for the stream they are given. Work of *another* stream is
/// not waited for; order it with [`Stream::wait`](crate::Stream::wait).
#[derive(Debug)]
pub struct DeviceBuffer<T> {
    pub(crate) memory: Arc<Allocation>,
    length: usize,
    of: PhantomData<T>,
}

impl<T: Element> DeviceBuffer<T> {
    /// Memory for `length` numbers, at least 1.
    ///
    /// # Errors
    /// [`AscendError::Shape`] for none, or what `aclrtMalloc` says ([`AscendError::is_out_of_memory`]).
    pub fn new(device: &Device, length: usize) -> Result<Self> {
        let memory = Allocation::new(&device.context, bytes_of::<T>(length)?, Place::Device)?;
        Ok(Self { memory, length, of: PhantomData })
    }

    /// Memory that holds these numbers.
    ///
    /// # Errors
    /// As [`DeviceBuffer::new`], or what `aclrtMemcpy` says.
    pub fn from_slice(device: &Device, values: &[T]) -> Result<Self> {
        let buffer = Self::new(device, values.len())?;
        buffer.put(0, values)?;
        Ok(buffer)
    }

    /// How many numbers it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Always false: a buffer holds at least one number.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes of memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.memory.bytes
    }

    /// Writes numbers from `first` on; the caller knows that no queued work uses the memory.
    pub(crate) fn put(&self, first: usize, values: &[T]) -> Result<()> {
        let Some(room) = self.length.checked_sub(first).filter(|&room| room >= values.len()) else {
            return Err(AscendError::shape(
                "place of numbers in a buffer",
                format!("at most {} behind {first}", self.length.saturating_sub(first)),
                values.len().to_string(),
            ));
        };
        if values.is_empty() {
            return Ok(());
        }
        let (context, bytes) = (&self.memory.context, size_of_val(values));
        context.enter()?;
        // SAFETY: `first` is a number of the buffer.
        let to = unsafe { self.memory.at.0.cast::<T>().add(first) }.cast();
        let (room, from) = (room * size_of::<T>(), values.as_ptr().cast());
        // SAFETY: `room` bytes are left there, at least as many as `bytes`, and no queued work uses the memory.
        unsafe { acl!(context.cann, runtime, aclrtMemcpy(to, room, from, bytes, ACL_MEMCPY_HOST_TO_DEVICE)) }
    }
}

/// Page-locked memory of the host (`aclrtMallocHost`), from and to which copies run beside other work. It begins with zeros.
///
/// `Send` and `Sync`, as a `Vec` is: a stream that copies from it shares it, one that copies into it owns it.
#[derive(Debug)]
pub struct HostBuffer<T> {
    pub(crate) memory: Arc<Allocation>,
    length: usize,
    of: PhantomData<T>,
}

impl<T: Element> HostBuffer<T> {
    /// Memory for `length` numbers, at least 1.
    ///
    /// # Errors
    /// As [`DeviceBuffer::new`].
    pub fn new(device: &Device, length: usize) -> Result<Self> {
        let bytes = bytes_of::<T>(length)?;
        let memory = Allocation::new(&device.context, bytes, Place::Host)?;
        if !(memory.at.0 as usize).is_multiple_of(align_of::<T>()) {
            return Err(AscendError::shape(
                "address of page-locked memory",
                format!("a multiple of {}", align_of::<T>()),
                format!("{:p}", memory.at.0),
            ));
        }
        // SAFETY: so many bytes were just allocated.
        unsafe { memory.at.0.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { memory, length, of: PhantomData })
    }

    /// Memory that holds these numbers.
    ///
    /// # Errors
    /// As [`HostBuffer::new`].
    pub fn from_slice(device: &Device, values: &[T]) -> Result<Self> {
        let mut buffer = Self::new(device, values.len())?;
        buffer.copy_from_slice(values);
        Ok(buffer)
    }
}

impl<T: Element> Deref for HostBuffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: allocated for so many numbers, aligned for all of them, and written; copies into it take it away from its owner.
        unsafe { std::slice::from_raw_parts(self.memory.at.0.cast::<T>(), self.length) }
    }
}

impl<T: Element> DerefMut for HostBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; a copy from it shares it in an `Arc`, from which there is no mutable reference.
        unsafe { std::slice::from_raw_parts_mut(self.memory.at.0.cast::<T>(), self.length) }
    }
}
