//! Streams and events.

use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use crate::cann::{acl, locked};
use crate::device::{Context, Device, Raw};
use crate::error::{AscendError, Result};
use crate::ffi::{
    ACL_MEMCPY_DEVICE_TO_DEVICE, ACL_MEMCPY_DEVICE_TO_HOST, ACL_MEMCPY_HOST_TO_DEVICE, aclrtMemcpyKind,
};
use crate::memory::{DeviceBuffer, Element, HostBuffer};
use crate::workspace::Workspace;

/// Something that queued work uses.
pub(crate) type Keep = Box<dyn Send>;

/// A queue of work on a device, done in its order, beside that of other streams.
///
/// Whatever queued work uses (memory, descriptions, workspaces, events) is held until the stream was waited for.
///
/// `Send` and `Sync`: the order in which two threads queue work is theirs to arrange.
#[derive(Debug)]
pub struct Stream {
    context: Arc<Context>,
    raw: Raw,
    in_flight: Mutex<InFlight>,
    workspace: Mutex<Workspace>,
}

#[derive(Default)]
struct InFlight(Vec<Keep>);

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} values", self.0.len())
    }
}

impl Stream {
    /// A new stream.
    ///
    /// # Errors
    /// What `aclrtCreateStream` says.
    pub fn new(device: &Device) -> Result<Self> {
        let context = Arc::clone(&device.context);
        context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is for this handle.
        unsafe { acl!(context.cann, runtime, aclrtCreateStream(&mut raw)) }?;
        Ok(Self { context, raw: Raw(raw), in_flight: Mutex::default(), workspace: Mutex::default() })
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }
    pub(crate) fn raw(&self) -> Raw {
        self.raw
    }
    pub(crate) fn workspace(&self) -> &Mutex<Workspace> {
        &self.workspace
    }

    /// The memory that operators on this stream work in, in bytes.
    #[must_use]
    pub fn workspace_bytes(&self) -> usize {
        locked(&self.workspace).bytes()
    }

    /// Queues work, and holds what it uses until the stream was waited for; also if the call fails, since whether a failed call queued
    /// anything is not documented.
    ///
    /// Both happen under one lock, which whoever waits takes before it waits: what is queued while it waits is held by the next.
    pub(crate) fn queue<R>(
        &self,
        uses: impl IntoIterator<Item = Keep>,
        call: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        let mut held = locked(&self.in_flight);
        held.0.extend(uses);
        call()
    }

    /// Values that are held.
    pub(crate) fn held(&self) -> usize {
        locked(&self.in_flight).0.len()
    }

    /// Waits until all queued work is done.
    ///
    /// # Errors
    /// What went wrong in that work, or the first release of anything that failed since the last synchronisation.
    pub fn synchronize(&self) -> Result<()> {
        self.context.enter()?;
        // Before the wait: what others queue meanwhile is not waited for.
        let queued = std::mem::take(&mut *locked(&self.in_flight));
        // SAFETY: the stream is alive.
        let waited = unsafe { acl!(self.context.cann, runtime, aclrtSynchronizeStream(self.raw.0)) };
        if let Err(error) = waited {
            locked(&self.in_flight).0.extend(queued.0);
            return Err(error);
        }
        drop(queued);
        self.context.late()
    }

    /// Queues a copy to the beginning of `to`; `from` is shared until the stream was waited for.
    ///
    /// # Errors
    /// [`AscendError::Shape`] if `to` is shorter, [`AscendError::OtherDevice`], or what CANN says.
    pub fn upload<T: Element>(&self, from: &Arc<HostBuffer<T>>, to: &DeviceBuffer<T>) -> Result<()> {
        self.check_copy(from.len() <= to.len(), from.len(), &from.memory.context, to)?;
        self.context.enter()?;
        let (room, bytes) = (to.memory.bytes, from.memory.bytes);
        let uses = [Box::new(Arc::clone(from)) as Keep, Box::new(Arc::clone(&to.memory))];
        let (to, from) = ((to.memory.at.0, room), (from.memory.at.0, bytes));
        // SAFETY: both ends are at least `bytes` long and held until the stream was waited for; nobody can write to `from` meanwhile.
        unsafe { self.queue_copy(uses, to, from, ACL_MEMCPY_HOST_TO_DEVICE) }
    }

    /// Queues a copy to the host; [`Download::wait`] gives the memory back.
    ///
    /// # Errors
    /// As [`Stream::upload`].
    pub fn download<T: Element>(&self, from: &DeviceBuffer<T>, to: HostBuffer<T>) -> Result<Download<'_, T>> {
        self.check_copy(from.len() == to.len(), to.len(), &to.memory.context, from)?;
        self.context.enter()?;
        let bytes = from.memory.bytes;
        let uses = [Box::new(Arc::clone(&to.memory)) as Keep, Box::new(Arc::clone(&from.memory))];
        let (end, from) = ((to.memory.at.0, bytes), (from.memory.at.0, bytes));
        // SAFETY: both ends are `bytes` long and held until the stream was waited for; `to` is nobody's until then.
        unsafe { self.queue_copy(uses, end, from, ACL_MEMCPY_DEVICE_TO_HOST) }?;
        Ok(Download { stream: self, to })
    }

    /// Queues a copy of all of `from` to the beginning of `to`, from one place on the device to another.
    ///
    /// # Errors
    /// As [`Stream::upload`].
    pub fn copy<T: Element>(&self, from: &DeviceBuffer<T>, to: &DeviceBuffer<T>) -> Result<()> {
        if from.len() > to.len() {
            let (expected, found) = (format!("at least {}", from.len()), to.len().to_string());
            return Err(AscendError::shape("memory that is copied to", expected, found));
        }
        for buffer in [from, to] {
            Device::same(&self.context, &buffer.memory.context, "a buffer")?;
        }
        if Arc::ptr_eq(&from.memory, &to.memory) {
            return Ok(());
        }
        self.context.enter()?;
        let (room, bytes) = (to.memory.bytes, from.memory.bytes);
        let uses = [Box::new(Arc::clone(&from.memory)) as Keep, Box::new(Arc::clone(&to.memory))];
        let (to, from) = ((to.memory.at.0, room), (from.memory.at.0, bytes));
        // SAFETY: two allocations, both at least `bytes` long, which do not overlap and are held until the stream was waited for.
        unsafe { self.queue_copy(uses, to, from, ACL_MEMCPY_DEVICE_TO_DEVICE) }
    }

    /// Queues a copy of all bytes of `from` to a place with room, and keeps what it uses.
    ///
    /// # Safety
    /// `from` is valid for reads of its bytes and `to` for writes of its room until the stream was waited for; `uses` keeps them, and
    /// nobody touches them meanwhile but work of the stream.
    unsafe fn queue_copy(
        &self,
        uses: [Keep; 2],
        (to, room): (*mut c_void, usize),
        (from, bytes): (*mut c_void, usize),
        kind: aclrtMemcpyKind,
    ) -> Result<()> {
        // SAFETY: forwarded from the caller.
        self.queue(uses, || unsafe {
            acl!(
                self.context.cann,
                runtime,
                aclrtMemcpyAsync(to, room, from.cast_const(), bytes, kind, self.raw.0)
            )
        })
    }

    fn check_copy<T: Element>(
        &self,
        fits: bool,
        host: usize,
        of: &Arc<Context>,
        device: &DeviceBuffer<T>,
    ) -> Result<()> {
        if !fits {
            return Err(AscendError::shape(
                "page-locked memory of a copy",
                device.len().to_string(),
                host.to_string(),
            ));
        }
        Device::same(&self.context, &device.memory.context, "a buffer")?;
        Device::same(&self.context, of, "page-locked memory")
    }

    /// Marks this place of the stream. An event is recorded once, here, and never again.
    ///
    /// # Errors
    /// What CANN says.
    pub fn record(&self) -> Result<Event> {
        self.context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is for this handle.
        unsafe { acl!(self.context.cann, runtime, aclrtCreateEvent(&mut raw)) }?;
        let event = Event { inner: Arc::new(Mark { context: Arc::clone(&self.context), raw: Raw(raw) }) };
        // SAFETY: both are alive, and the event is held until the stream was waited for.
        self.queue([Box::new(Arc::clone(&event.inner)) as Keep], || unsafe {
            acl!(self.context.cann, runtime, aclrtRecordEvent(raw, self.raw.0))
        })?;
        Ok(event)
    }

    /// Lets what is queued from now on begin when `event` has passed, without the host (`aclrtStreamWaitEvent`).
    ///
    /// # Errors
    /// [`AscendError::OtherDevice`], or what CANN says.
    pub fn wait(&self, event: &Event) -> Result<()> {
        Device::same(&self.context, &event.inner.context, "an event")?;
        self.context.enter()?;
        // SAFETY: both are alive, and the event is held until the stream was waited for.
        self.queue([Box::new(Arc::clone(&event.inner)) as Keep], || unsafe {
            acl!(self.context.cann, runtime, aclrtStreamWaitEvent(self.raw.0, event.inner.raw.0))
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let queued = std::mem::take(&mut *locked(&self.in_flight));
        let cann = &self.context.cann;
        if !queued.0.is_empty() {
            // SAFETY: the stream is alive.
            self.context.release(|| unsafe { acl!(cann, runtime, aclrtSynchronizeStream(self.raw.0)) });
        }
        // SAFETY: the stream is alive, and destroyed once.
        self.context.release(|| unsafe { acl!(cann, runtime, aclrtDestroyStream(self.raw.0)) });
        // Only now: work that could not be waited for is gone with its stream.
        drop(queued);
    }
}

/// A copy to the host that is on its way. `Send` and `Sync`: its memory comes out of it by value alone.
#[derive(Debug)]
#[must_use = "the memory comes back from `wait`"]
pub struct Download<'s, T> {
    stream: &'s Stream,
    to: HostBuffer<T>,
}

impl<T: Element> Download<'_, T> {
    /// Waits for the stream and gives the memory with what was copied.
    ///
    /// # Errors
    /// As [`Stream::synchronize`].
    pub fn wait(self) -> Result<HostBuffer<T>> {
        self.stream.synchronize()?;
        Ok(self.to)
    }
}

#[derive(Debug)]
struct Mark {
    context: Arc<Context>,
    raw: Raw,
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: the event is alive, destroyed once, and no stream that was not waited for uses it.
        self.context.release(|| unsafe { acl!(self.context.cann, runtime, aclrtDestroyEvent(self.raw.0)) });
    }
}

/// A place in a stream that others can wait for. Made by [`Stream::record`].
///
/// `Send` and `Sync`: it is recorded before anybody has it.
#[derive(Debug)]
pub struct Event {
    inner: Arc<Mark>,
}

impl Event {
    /// Lets the host wait until the place has been passed.
    ///
    /// # Errors
    /// What CANN says, of the work before it too.
    pub fn synchronize(&self) -> Result<()> {
        let context = &self.inner.context;
        context.enter()?;
        // SAFETY: the event is alive and was recorded.
        unsafe { acl!(context.cann, runtime, aclrtSynchronizeEvent(self.inner.raw.0)) }
    }

    /// Milliseconds from `start` to this event; waits for both.
    ///
    /// # Errors
    /// [`AscendError::OtherDevice`], or what CANN says.
    pub fn elapsed_since(&self, start: &Self) -> Result<f32> {
        let context = &self.inner.context;
        Device::same(context, &start.inner.context, "an event")?;
        start.synchronize()?;
        self.synchronize()?;
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive and have passed; the pointer is for this number.
        unsafe {
            acl!(
                context.cann,
                runtime,
                aclrtEventElapsedTime(&mut milliseconds, start.inner.raw.0, self.inner.raw.0)
            )
        }?;
        Ok(milliseconds)
    }
}
