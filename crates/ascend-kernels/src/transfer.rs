//! Copies that wait.

use crate::cann::acl;
use crate::device::Device;
use crate::error::{AscendError, Result};
use crate::ffi::ACL_MEMCPY_DEVICE_TO_HOST;
use crate::memory::{DeviceBuffer, Element};
use crate::stream::Stream;

impl<T: Element> DeviceBuffer<T> {
    /// Waits for `stream`, then writes all numbers.
    ///
    /// # Errors
    /// [`AscendError::Shape`] for another length, [`AscendError::OtherDevice`], or what CANN says.
    pub fn write(&self, stream: &Stream, values: &[T]) -> Result<()> {
        if values.len() != self.len() {
            return Err(AscendError::shape(
                "numbers for a buffer",
                self.len().to_string(),
                values.len().to_string(),
            ));
        }
        Device::same(&self.memory.context, stream.context(), "a buffer")?;
        stream.synchronize()?;
        self.put(0, values)
    }

    /// Waits for `stream`, then writes some numbers from `first` on.
    ///
    /// # Errors
    /// [`AscendError::Shape`] for numbers beyond the end, [`AscendError::OtherDevice`], or what CANN says.
    pub fn write_at(&self, stream: &Stream, first: usize, values: &[T]) -> Result<()> {
        Device::same(&self.memory.context, stream.context(), "a buffer")?;
        stream.synchronize()?;
        self.put(first, values)
    }

    /// Waits for `stream`, then reads all numbers.
    ///
    /// # Errors
    /// [`AscendError::OtherDevice`], or what CANN says.
    pub fn read(&self, stream: &Stream) -> Result<Vec<T>> {
        Device::same(&self.memory.context, stream.context(), "a buffer")?;
        stream.synchronize()?;
        let mut values = vec![T::zeroed(); self.len()];
        let (context, bytes) = (&self.memory.context, self.memory.bytes);
        context.enter()?;
        // SAFETY: both ends are `bytes` long, any bits are a number, and the stream has been waited for.
        unsafe {
            acl!(
                context.cann,
                runtime,
                aclrtMemcpy(
                    values.as_mut_ptr().cast(),
                    bytes,
                    self.memory.at.0.cast_const(),
                    bytes,
                    ACL_MEMCPY_DEVICE_TO_HOST
                )
            )
        }?;
        Ok(values)
    }
}
