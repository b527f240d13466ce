//! Two places on the device that weights take turns in, and how their codes lie there.

use std::sync::Arc;

use crate::device::Device;
use crate::error::{AscendError, Result};
use crate::layout::{nz_length, pack_int4, put_nz};
use crate::memory::{DeviceBuffer, HostBuffer};
use crate::stream::{Event, Stream};
use crate::tensor::Tensor;

/// How the codes of a weight lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Row after row, a byte each.
    RowMajor,
    /// FRACTAL_NZ.
    Nz,
    /// Row after row, two a byte.
    FourBits,
}

/// A matrix of codes: its form, rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodeForm {
    pub(crate) form: Form,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl CodeForm {
    /// Checks that there are so many codes and gives the bytes that they take.
    pub(crate) fn bytes(self, codes: &[i8]) -> Result<usize> {
        if self.rows.checked_mul(self.columns) != Some(codes.len()) {
            return Err(AscendError::shape(
                "codes of a weight",
                format!("{} x {}", self.rows, self.columns),
                codes.len().to_string(),
            ));
        }
        Ok(match self.form {
            Form::RowMajor => codes.len(),
            Form::Nz => nz_length::<i8>(self.rows, self.columns),
            Form::FourBits => codes.len() / 2,
        })
    }

    /// Writes row-major codes as they lie in this form, into so many bytes of zeros.
    pub(crate) fn lay(self, codes: &[i8], out: &mut [i8]) -> Result<()> {
        match self.form {
            Form::RowMajor => out.copy_from_slice(codes),
            Form::Nz => put_nz(codes, self.rows, self.columns, out),
            Form::FourBits => {
                let packed = pack_int4(codes)?;
                out.iter_mut().zip(packed).for_each(|(out, byte)| *out = byte.cast_signed());
            }
        }
        Ok(())
    }

    /// The codes at the beginning of some memory.
    pub(crate) fn tensor(self, memory: &DeviceBuffer<i8>) -> Result<Tensor> {
        let dims = [self.rows, self.columns];
        match self.form {
            Form::RowMajor => Tensor::new(memory, &dims),
            Form::Nz => Tensor::nz(memory, self.rows, self.columns),
            Form::FourBits => Tensor::int4_bytes(memory, &dims),
        }
    }
}

/// A place on the device for one weight at a time.
#[derive(Debug)]
struct Slot {
    memory: DeviceBuffer<i8>,
    /// When what is in it has been used.
    used: Option<Event>,
    /// When what belongs into it has arrived.
    filled: Option<Event>,
}

/// Two places for weights, with a stream of copies into them: a copy waits for the last use of its place, a use for its own copy, and
/// the host for neither.
#[derive(Debug)]
pub(crate) struct Places {
    copies: Stream,
    slots: [Slot; 2],
}

/// Events and memory that the copies may hold: a device has some thousand events.
const MOST_HELD: usize = 1024;

impl Places {
    /// Two places of so many bytes.
    pub(crate) fn new(device: &Device, bytes: usize) -> Result<Self> {
        let slot = || -> Result<Slot> {
            Ok(Slot { memory: DeviceBuffer::new(device, bytes)?, used: None, filled: None })
        };
        Ok(Self { copies: Stream::new(device)?, slots: [slot()?, slot()?] })
    }

    /// Bytes of one of them.
    pub(crate) fn room(&self) -> usize {
        self.slots[0].memory.bytes()
    }

    /// Waits for the copies where their stream holds hundreds of events.
    pub(crate) fn settle(&self) -> Result<()> {
        if self.copies.held() > MOST_HELD { self.copies.synchronize() } else { Ok(()) }
    }

    /// Queues a copy into a place, behind the last use of it.
    pub(crate) fn fill(&mut self, place: usize, codes: &Arc<HostBuffer<i8>>) -> Result<()> {
        let slot = &mut self.slots[place];
        if let Some(used) = &slot.used {
            self.copies.wait(used)?;
        }
        self.copies.upload(codes, &slot.memory)?;
        slot.filled = Some(self.copies.record()?);
        Ok(())
    }

    /// What is in a place; what `stream` does from now on waits until it has arrived.
    pub(crate) fn take(&self, place: usize, form: CodeForm, stream: &Stream) -> Result<Tensor> {
        let slot = &self.slots[place];
        if let Some(filled) = &slot.filled {
            stream.wait(filled)?;
        }
        form.tensor(&slot.memory)
    }

    /// Notes that everything queued on `stream` may use a place: the next copy into it waits for that.
    pub(crate) fn used(&mut self, place: usize, stream: &Stream) -> Result<()> {
        match stream.record() {
            Ok(event) => self.slots[place].used = Some(event),
            Err(error) => {
                // Nothing marks the use: it must be over before anybody copies. The first error is the one to tell.
                let _ = stream.synchronize();
                return Err(error);
            }
        }
        Ok(())
    }
}
