//! Weights that are copied to the device while others are multiplied.

use std::sync::Arc;

use crate::device::Device;
use crate::error::{AscendError, Result};
use crate::layout::{nz_length, to_nz};
use crate::memory::{DeviceBuffer, HostBuffer};
use crate::stream::{Event, Stream};
use crate::tensor::Tensor;

/// A weight of codes in page-locked memory.
#[derive(Debug)]
pub struct PipelineWeight {
    codes: Arc<HostBuffer<i8>>,
    shape: (usize, usize),
    nz: bool,
}

impl PipelineWeight {
    /// Codes `[k, n]`, row-major: inputs by outputs.
    ///
    /// # Errors
    /// [`AscendError::Shape`] for another number of codes, or what CANN says.
    pub fn row_major(device: &Device, codes: &[i8], inputs: usize, outputs: usize) -> Result<Self> {
        if inputs.checked_mul(outputs) != Some(codes.len()) {
            return Err(AscendError::shape(
                "codes of a weight",
                format!("{inputs} x {outputs}"),
                codes.len().to_string(),
            ));
        }
        let codes = Arc::new(HostBuffer::from_slice(device, codes)?);
        Ok(Self { codes, shape: (inputs, outputs), nz: false })
    }

    /// The same, laid out as FRACTAL_NZ.
    ///
    /// # Errors
    /// As [`PipelineWeight::row_major`].
    pub fn nz(device: &Device, codes: &[i8], inputs: usize, outputs: usize) -> Result<Self> {
        let codes = Arc::new(HostBuffer::from_slice(device, &to_nz(codes, inputs, outputs)?)?);
        Ok(Self { codes, shape: (inputs, outputs), nz: true })
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

/// A model's weights, larger than the device, through two places on it: while one weight is multiplied, the next is copied.
///
/// Copies have a stream of their own. A product waits for its own weight, by `aclrtStreamWaitEvent`, and for no other; a copy waits for
/// the product that used its place before. The host waits for nothing.
///
/// ```no_run
/// # use ascend_kernels::{Cann, Device, OpenOptions, PipelineWeight, WeightPipeline};
/// # let device = Device::open(&Cann::open(&OpenOptions::new())?, 0)?;
/// let weights = vec![PipelineWeight::nz(&device, &vec![1; 64 * 64], 64, 64)?];
/// let mut pipeline = WeightPipeline::new(&device, weights)?;
/// pipeline.pass(|layer, weight, stream| {
///     // A QuantMatmul with `weight`, launched on `stream`.
///     # let _ = (layer, weight, stream);
///     Ok(())
/// })?;
/// pipeline.stream().synchronize()?;
/// # Ok::<(), ascend_kernels::AscendError>(())
/// ```
#[derive(Debug)]
pub struct WeightPipeline {
    compute: Stream,
    copies: Stream,
    slots: [Slot; 2],
    /// Weights of all passes before this one: places take turns across passes.
    turn: usize,
    weights: Vec<PipelineWeight>,
}

/// Events and memory that the copies may hold: a device has some thousand events.
const MOST_HELD: usize = 1024;

impl WeightPipeline {
    /// Two places as large as the largest weight, and two streams.
    ///
    /// # Errors
    /// [`AscendError::Shape`] without weights, or what CANN says.
    pub fn new(device: &Device, weights: Vec<PipelineWeight>) -> Result<Self> {
        let most = weights.iter().map(|weight| weight.codes.len()).max().unwrap_or(0);
        let slot = || -> Result<Slot> {
            Ok(Slot { memory: DeviceBuffer::new(device, most)?, used: None, filled: None })
        };
        Ok(Self {
            compute: Stream::new(device)?,
            copies: Stream::new(device)?,
            slots: [slot()?, slot()?],
            turn: 0,
            weights,
        })
    }

    /// The stream that products run on.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.compute
    }

    /// Bytes on the device.
    #[must_use]
    pub fn device_bytes(&self) -> usize {
        self.slots.iter().map(|slot| slot.memory.bytes()).sum()
    }

    /// Queues the copy of a weight into its place, behind the last use of it.
    fn copy(&mut self, layer: usize) -> Result<()> {
        let (Some(weight), slot) = (self.weights.get(layer), &mut self.slots[(self.turn + layer) % 2]) else {
            return Ok(());
        };
        if let Some(used) = &slot.used {
            self.copies.wait(used)?;
        }
        self.copies.upload(&weight.codes, &slot.memory)?;
        slot.filled = Some(self.copies.record()?);
        Ok(())
    }

    /// Goes through all weights once: `product` queues what is done with each on the given stream. Returns before any of it is done.
    ///
    /// # Errors
    /// What `product` or CANN says. Whatever was queued still runs; the next pass begins from the first weight.
    ///
    /// Events of copies are held until these were waited for, which happens here once in hundreds of weights.
    pub fn pass(&mut self, mut product: impl FnMut(usize, &Tensor, &Stream) -> Result<()>) -> Result<()> {
        if self.copies.held() > MOST_HELD {
            self.copies.synchronize()?;
        }
        self.copy(0)?;
        self.copy(1)?;
        for layer in 0..self.weights.len() {
            let (slot, weight) = (&mut self.slots[(self.turn + layer) % 2], &self.weights[layer]);
            if let Some(filled) = &slot.filled {
                self.compute.wait(filled)?;
            }
            let (inputs, outputs) = weight.shape;
            let tensor = if weight.nz {
                Tensor::nz(&slot.memory, inputs, outputs)?
            } else {
                Tensor::new(&slot.memory, &[inputs, outputs])?
            };
            debug_assert!(!weight.nz || weight.codes.len() == nz_length::<i8>(inputs, outputs));
            let done = product(layer, &tensor, &self.compute);
            // Also behind what a failed product may have queued.
            slot.used = Some(self.compute.record()?);
            done?;
            self.copy(layer + 2)?;
        }
        self.turn = (self.turn + self.weights.len()) % 2;
        Ok(())
    }
}
