//! Weights that are copied to the device while others are multiplied.

use std::sync::Arc;

use crate::device::Device;
use crate::error::Result;
use crate::memory::HostBuffer;
use crate::places::{CodeForm, Form, Places};
use crate::stream::Stream;
use crate::tensor::Tensor;

/// A weight of codes in page-locked memory. `Send` and `Sync`: nobody writes to it any more.
#[derive(Debug)]
pub struct PipelineWeight {
    pub(crate) codes: Arc<HostBuffer<i8>>,
    pub(crate) form: CodeForm,
}

impl PipelineWeight {
    /// Codes `[k, n]`, row-major: inputs by outputs.
    ///
    /// # Errors
    /// [`AscendError::Shape`](crate::AscendError::Shape) for another number of codes, or what CANN says.
    pub fn row_major(device: &Device, codes: &[i8], inputs: usize, outputs: usize) -> Result<Self> {
        Self::new(device, codes, CodeForm { form: Form::RowMajor, rows: inputs, columns: outputs })
    }

    /// The same, laid out as FRACTAL_NZ.
    ///
    /// # Errors
    /// As [`PipelineWeight::row_major`].
    pub fn nz(device: &Device, codes: &[i8], inputs: usize, outputs: usize) -> Result<Self> {
        Self::new(device, codes, CodeForm { form: Form::Nz, rows: inputs, columns: outputs })
    }

    /// Codes of four bits `[k, n]`, two a byte; the number of outputs is even.
    ///
    /// # Errors
    /// As [`PipelineWeight::row_major`], and for codes outside of -8 to 7.
    pub fn int4(device: &Device, codes: &[i8], inputs: usize, outputs: usize) -> Result<Self> {
        Self::new(device, codes, CodeForm { form: Form::FourBits, rows: inputs, columns: outputs })
    }

    /// Lays codes out in page-locked memory.
    pub(crate) fn new(device: &Device, codes: &[i8], form: CodeForm) -> Result<Self> {
        let mut laid = HostBuffer::new(device, form.bytes(codes)?)?;
        form.lay(codes, &mut laid)?;
        Ok(Self { codes: Arc::new(laid), form })
    }
}

/// A model's weights, larger than the device, through two places on it: while one weight is multiplied, the next is copied.
///
/// Copies have a stream of their own. A product waits for its own weight, by `aclrtStreamWaitEvent`, and for no other; a copy waits for
/// the product that used its place before. The host waits for nothing. `Send` and `Sync`: a pass has it alone.
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
    places: Places,
    /// Weights of all passes before this one: places take turns across passes.
    turn: usize,
    weights: Vec<PipelineWeight>,
}

impl WeightPipeline {
    /// Two places as large as the largest weight, and two streams.
    ///
    /// # Errors
    /// [`AscendError::Shape`](crate::AscendError::Shape) without weights, or what CANN says.
    pub fn new(device: &Device, weights: Vec<PipelineWeight>) -> Result<Self> {
        let most = weights.iter().map(|weight| weight.codes.len()).max().unwrap_or(0);
        Ok(Self { compute: Stream::new(device)?, places: Places::new(device, most)?, turn: 0, weights })
    }

    /// The stream that products run on.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.compute
    }

    /// Bytes on the device.
    #[must_use]
    pub fn device_bytes(&self) -> usize {
        2 * self.places.room()
    }

    /// Queues the copy of a weight into its place, behind the last use of it.
    fn copy(&mut self, layer: usize) -> Result<()> {
        let Some(weight) = self.weights.get(layer) else { return Ok(()) };
        self.places.fill((self.turn + layer) % 2, &weight.codes)
    }

    /// Goes through all weights once: `product` queues what is done with each on the given stream. Returns before any of it is done.
    ///
    /// # Errors
    /// What `product` or CANN says. Whatever was queued still runs; the next pass begins from the first weight.
    ///
    /// Events of copies are held until these were waited for, which happens here once in hundreds of weights.
    pub fn pass(&mut self, mut product: impl FnMut(usize, &Tensor, &Stream) -> Result<()>) -> Result<()> {
        self.places.settle()?;
        self.copy(0)?;
        self.copy(1)?;
        for layer in 0..self.weights.len() {
            let place = (self.turn + layer) % 2;
            let tensor = self.places.take(place, self.weights[layer].form, &self.compute)?;
            let done = product(layer, &tensor, &self.compute);
            // Also behind what a failed product may have queued.
            let marked = self.places.used(place, &self.compute);
            done?;
            marked?;
            self.copy(layer + 2)?;
        }
        self.turn = (self.turn + self.weights.len()) % 2;
        Ok(())
    }
}
