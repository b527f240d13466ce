//! `quant-core`'s operators on an NPU.

mod cache;
mod product;
mod quantise;
mod room;
mod weight_only;
mod weights;

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};

use half::{bf16, f16};
use ndarray::Array1;
use quant_core::operators::{CodeCache, CodeCacheForm, Demand, Processor as Processes, WeightOnlyProduct};
use quant_core::{CoreError, FloatType, QuantizedMatrix};

use crate::cann::Cann;
use crate::device::Device;
use crate::doctor::NEEDED;
use crate::error::{AscendError, Result};
use crate::library::OpenOptions;
use crate::memory::DeviceBuffer;
use crate::stream::Stream;
use crate::tensor::{Tensor, Typed};

pub use weight_only::WeightOnly;
use weights::Weights;

/// The type that a model's activations have on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Model {
    /// bfloat16.
    #[default]
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Model {
    fn float(self) -> FloatType {
        match self {
            Self::Bf16 => FloatType::Bf16,
            Self::F16 => FloatType::F16,
        }
    }
}

/// What a [`Processor`] is opened with.
#[derive(Clone, Debug, Default)]
pub struct ProcessorOptions {
    /// Where the libraries are.
    pub library: OpenOptions,
    /// The number of the device.
    pub device: i32,
    /// The type of the model: activations are rounded to it before each quantisation.
    pub model: Model,
    /// Weights stay row-major even where CANN takes FRACTAL_NZ ones.
    pub row_major: bool,
}

/// An NPU as what runs the operators of a model ([`quant_core::operators::Processor`]).
///
/// Its numerics are those of the device: activations are rounded to the type of the model before they are quantised, results are
/// cast once to the type of the output, in the association of [`finish`](quant_core::operators::finish). Codes, scales and results equal those of the CPU for
/// activations that have been rounded so, on a device that uses this association (CANN has two and chooses by shape).
///
/// Weights are held by the device, and those that it has no room for ([`Processor::expect`](quant_core::operators::Processor::expect)) go
/// through two places on it, each copied while another is multiplied; activations and results are copied each time. What CANN has no operator for is made of the device's
/// exact sums on the host: f32 outputs, zero points of each token, a zero point beside a float bias, codes whose scales do not fit into
/// 19 bits. Tokens that hold numbers which are not finite, or are so small that no scale divides them, are quantised on the host.
#[derive(Debug)]
pub struct Processor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    // Before the device: it lives in it.
    stream: Mutex<Stream>,
    weights: Arc<Weights>,
    device: Device,
    model: Model,
    row_major: bool,
    /// Pages that a cache is expected to have at most.
    pages: AtomicUsize,
    /// Whether operators were told to sum in a fixed order.
    deterministic: AtomicBool,
}

impl Processor {
    /// Opens the libraries and a device.
    ///
    /// # Errors
    /// [`AscendError::is_unavailable`] without library, device or the operators that every folder needs, or what CANN says.
    pub fn open(options: &ProcessorOptions) -> Result<Self> {
        let cann = Cann::open(&options.library)?;
        for any in NEEDED {
            if let (Some(&symbol), true) = (any.first(), any.iter().all(|name| !cann.has(name))) {
                let libraries: Vec<String> =
                    cann.origins().into_iter().map(|(_, library, _)| library.to_owned()).collect();
                return Err(AscendError::Missing { symbol, library: libraries.join(", ") });
            }
        }
        let device = Device::open(&cann, options.device)?;
        let stream = Mutex::new(Stream::new(&device)?);
        let (model, row_major) = (options.model, options.row_major);
        let shared = Shared {
            stream,
            weights: Arc::default(),
            device,
            model,
            row_major,
            pages: AtomicUsize::new(usize::MAX),
            deterministic: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.shared.device
    }

    /// Gives everything back and tells of what could not be released; dropping the processor does the same in silence.
    ///
    /// # Errors
    /// [`AscendError::InUse`] while prepared linears or clones of the device are alive, or what CANN says.
    pub fn close(self) -> Result<()> {
        let Shared { stream, weights, device, .. } = Arc::try_unwrap(self.shared).map_err(|shared| {
            AscendError::InUse { what: "a processor", users: Arc::strong_count(&shared) - 1 }
        })?;
        drop((stream, weights));
        let cann = device.cann().clone();
        let device = device.close();
        device.and(cann.close())
    }
}

/// A row-major matrix on the device.
fn upload<T: Typed>(device: &Device, values: &[T], dims: &[usize]) -> Result<Tensor> {
    Tensor::new(&DeviceBuffer::from_slice(device, values)?, dims)
}

impl Shared {
    /// Numbers in the type of the model, on the device.
    fn numbers(&self, values: impl IntoIterator<Item = f32>, dims: &[usize]) -> Result<Tensor> {
        match self.model {
            Model::Bf16 => {
                upload(&self.device, &values.into_iter().map(bf16::from_f32).collect::<Vec<_>>(), dims)
            }
            Model::F16 => {
                upload(&self.device, &values.into_iter().map(f16::from_f32).collect::<Vec<_>>(), dims)
            }
        }
    }
}

impl Processes for Processor {
    fn name(&self) -> String {
        format!("cann:{}", self.shared.device.id())
    }
    fn float_type(&self) -> Option<FloatType> {
        Some(self.shared.model.float())
    }
    fn expect(&self, demand: &Demand) -> Result<(), CoreError> {
        self.shared.plan(demand)
    }
    fn code_cache(&self, form: &CodeCacheForm) -> Result<Option<Box<dyn CodeCache>>, CoreError> {
        cache::Cache::open(&self.shared, form)
    }
    fn weight_only(
        &self,
        weight: &QuantizedMatrix,
        bias: Option<&Array1<f32>>,
    ) -> Result<Option<Box<dyn WeightOnlyProduct>>, CoreError> {
        Ok(Some(Box::new(Self::weight_only(self, weight, bias)?)))
    }
}
