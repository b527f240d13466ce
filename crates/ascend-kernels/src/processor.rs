//! `quant-core`'s operators on an NPU.

use std::sync::{Arc, Mutex};

use half::{bf16, f16};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};
use quant_core::operators::{
    Bias, DynamicNumerics, DynamicQuant as DynamicQuantiser, IntegerLinear, Output, PreparedMatmul,
    QuantMatmul as Matmuls, QuantizedActivations, check_operands, finish, fp19, requantize,
};
use quant_core::{CoreError, Par};

use crate::cann::{Cann, locked};
use crate::device::Device;
use crate::error::{AscendError, Result};
use crate::layout::{pack_scale, to_nz, unpack_int4};
use crate::library::OpenOptions;
use crate::memory::DeviceBuffer;
use crate::operators::{DynamicQuant, QuantMatmul};
use crate::stream::Stream;
use crate::tensor::{Layout, Tensor, Typed};

/// The type that a model's activations have on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Model {
    /// bfloat16.
    #[default]
    Bf16,
    /// IEEE half precision.
    F16,
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

/// An NPU as a [`DynamicQuant`](quant_core::operators::DynamicQuant) and a [`QuantMatmul`](quant_core::operators::QuantMatmul).
///
/// Its numerics are those of the device: activations are rounded to the type of the model before they are quantised, results are
/// cast once to the type of the output, in the association of [`finish`]. Codes, scales and results equal those of the CPU for
/// activations that have been rounded so, on a device that uses this association (CANN has two and chooses by shape).
///
/// Weights are held by the device; activations and results are copied each time. What CANN has no operator for is made of the device's
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
    device: Device,
    model: Model,
    row_major: bool,
}

impl Processor {
    /// Opens the libraries and a device.
    ///
    /// # Errors
    /// [`AscendError::is_unavailable`] without library or device, or what CANN says.
    pub fn open(options: &ProcessorOptions) -> Result<Self> {
        let cann = Cann::open(&options.library)?;
        let device = Device::open(&cann, options.device)?;
        let stream = Mutex::new(Stream::new(&device)?);
        let shared = Shared { stream, device, model: options.model, row_major: options.row_major };
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
        let Shared { stream, device, .. } = Arc::try_unwrap(self.shared).map_err(|shared| {
            AscendError::InUse { what: "a processor", users: Arc::strong_count(&shared) - 1 }
        })?;
        drop(stream);
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
    /// Codes of finite rows of the model's type, with the scale of each.
    fn quantize_rows(&self, rows: &Array2<f32>, four: bool) -> Result<(Vec<i8>, Vec<f32>)> {
        let (m, k) = rows.dim();
        let x = match self.model {
            Model::Bf16 => {
                upload(&self.device, &rows.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(), &[m, k])
            }
            Model::F16 => {
                upload(&self.device, &rows.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>(), &[m, k])
            }
        }?;
        let scales = DeviceBuffer::<f32>::new(&self.device, m)?;
        let scale = Tensor::new(&scales, &[m])?;
        let launch = |codes: &Tensor| -> Result<_> {
            let stream = locked(&self.stream);
            let operator = DynamicQuant { x: &x, smooth: None, codes, scale: &scale, offset: None };
            operator.prepare(&self.device)?.launch(&stream)?;
            Ok(stream)
        };
        if four {
            let bytes = DeviceBuffer::<u8>::new(&self.device, m * k / 2)?;
            let stream = launch(&Tensor::int4(&bytes, &[m, k])?)?;
            Ok((unpack_int4(&bytes.read(&stream)?), scales.read(&stream)?))
        } else {
            let codes = DeviceBuffer::<i8>::new(&self.device, m * k)?;
            let stream = launch(&Tensor::new(&codes, &[m, k])?)?;
            Ok((codes.read(&stream)?, scales.read(&stream)?))
        }
    }
}

impl DynamicQuantiser for Processor {
    fn quantize(
        &self,
        numerics: &DynamicNumerics,
        x: ArrayView2<'_, f32>,
        _par: Par,
    ) -> Result<QuantizedActivations, CoreError> {
        let bits = numerics.bits().get();
        let ascend = matches!(numerics, DynamicNumerics::Ascend { .. });
        if !ascend || !matches!(bits, 4 | 8) {
            return Err(CoreError::Processor {
                message: format!(
                    "CANN quantises activations by Ascend's arithmetic to 8 or 4 bits alone; {numerics:?} runs with --backend cpu"
                ),
                out_of_memory: false,
            });
        }
        let (m, k) = x.dim();
        let round = |x: f32| match self.shared.model {
            Model::Bf16 => bf16::from_f32(x).to_f32(),
            Model::F16 => f16::from_f32(x).to_f32(),
        };
        let x = x.mapv(round);
        let top = if bits == 4 { 7.0_f32 } else { 127.0 };
        // Not documented on the device: no finite number, or none whose reciprocal is finite.
        let on_host = |row: &[f32]| {
            let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            row.iter().any(|x| !x.is_finite()) || (largest > 0.0 && (top / largest).is_infinite())
        };
        let rows: Vec<Vec<f32>> = x.rows().into_iter().map(|row| row.to_vec()).collect();
        let host: Vec<bool> = rows.iter().map(|row| on_host(row)).collect();
        // Codes of four bits come in pairs; a zero more changes no scale.
        let width = if bits == 4 { k.next_multiple_of(2) } else { k };
        let mut codes = Array2::zeros((m, k));
        let mut scales = vec![0.0; m];
        if m > 0 && k > 0 && host.contains(&false) {
            let device =
                Array2::from_shape_fn((m, width), |(i, j)| if host[i] || j >= k { 0.0 } else { x[(i, j)] });
            let (found, found_scales) = self.shared.quantize_rows(&device, bits == 4)?;
            codes = Array2::from_shape_fn((m, k), |(i, j)| found[i * width + j]);
            scales = found_scales;
        }
        for (i, row) in rows.iter().enumerate() {
            if host[i] || k == 0 {
                let mut into = vec![0; k];
                scales[i] = numerics.token(row, &mut into).scale;
                codes.row_mut(i).assign(&Array1::from(into));
            }
        }
        Ok(QuantizedActivations { codes, scales: scales.into(), zeros: None })
    }
}

impl Matmuls for Processor {
    fn prepare(&self, linear: &IntegerLinear, _par: Par) -> Result<Box<dyn PreparedMatmul>, CoreError> {
        Ok(Box::new(Prepared::new(Arc::clone(&self.shared), linear)?))
    }
}

/// A linear whose weight and scales are on the device.
#[derive(Debug)]
struct Prepared {
    /// None for a linear without inputs or outputs.
    device: Option<OnDevice>,
    shape: (usize, usize),
    scales: Array1<f32>,
    bias: Bias,
    row_sums: Array1<i32>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct OnDevice {
    weight: Tensor,
    transposed: bool,
    scale: Tensor,
    bias: Option<Tensor>,
}

impl Prepared {
    fn new(shared: Arc<Shared>, linear: &IntegerLinear) -> Result<Self> {
        let (n, k) = linear.codes().dim();
        let device = if n > 0 && k > 0 { Some(Self::upload(&shared, linear)?) } else { None };
        Ok(Self {
            device,
            shape: (n, k),
            scales: linear.scales().clone(),
            bias: linear.bias().clone(),
            row_sums: linear.row_sums(),
            shared,
        })
    }

    fn upload(shared: &Shared, linear: &IntegerLinear) -> Result<OnDevice> {
        let (device, (n, k)) = (&shared.device, linear.codes().dim());
        let nz = !shared.row_major && n > 1 && k > 1 && device.cann().has("aclnnQuantMatmulWeightNz");
        let weight = if nz {
            // Inputs by outputs, as vLLM-Ascend has it.
            let codes: Vec<i8> = linear.codes().t().iter().copied().collect();
            Tensor::nz(&DeviceBuffer::from_slice(device, &to_nz(&codes, k, n)?)?, k, n)?
        } else {
            let codes: Vec<i8> = linear.codes().iter().copied().collect();
            upload(device, &codes, &[n, k])?
        };
        let bias = match linear.bias() {
            Bias::None => None,
            Bias::Integer(bias) => Some(upload(device, &bias.to_vec(), &[n])?),
            Bias::Float(bias) => Some(upload(device, &bias.to_vec(), &[n])?),
        };
        let scale = upload(device, &linear.scales().to_vec(), &[n])?;
        Ok(OnDevice { transposed: weight.layout() == Layout::RowMajor, weight, scale, bias })
    }

    /// Runs a product into new memory and reads it.
    fn run<T: Typed>(
        &self,
        on: &OnDevice,
        codes: ArrayView2<'_, i8>,
        scale: &Tensor,
        token_scale: Option<&Tensor>,
        bias: Option<&Tensor>,
    ) -> Result<Vec<T>> {
        let (device, (m, k), n) = (&self.shared.device, codes.dim(), self.shape.0);
        let x = upload(device, &codes.iter().copied().collect::<Vec<_>>(), &[m, k])?;
        let results = DeviceBuffer::<T>::new(device, m * n)?;
        let out = Tensor::new(&results, &[m, n])?;
        let operator = QuantMatmul {
            x: &x,
            weight: &on.weight,
            transposed: on.transposed,
            scale,
            token_scale,
            offset: None,
            bias,
            out: &out,
        };
        let stream = locked(&self.shared.stream);
        operator.prepare(device)?.launch(&stream)?;
        results.read(&stream)
    }

    /// The integer bias with the zero point of all tokens in it, or that of the linear; none where the device cannot have it.
    fn bias_with(&self, on: &OnDevice, zeros: Option<&Array1<i32>>) -> Option<Result<Option<Tensor>>> {
        let zero = match zeros {
            None => return Some(Ok(on.bias.clone())),
            Some(zeros) if zeros.len() == 1 => zeros[0],
            Some(_) => return None,
        };
        let integer = match &self.bias {
            Bias::Float(_) => return None,
            Bias::Integer(bias) => bias.clone(),
            Bias::None => Array1::zeros(self.shape.0),
        };
        let shifted =
            integer.iter().zip(&self.row_sums).map(|(bias, sum)| bias.wrapping_sub(zero.wrapping_mul(*sum)));
        let shifted: Vec<i32> = shifted.collect();
        Some(upload(&self.shared.device, &shifted, &[self.shape.0]).map(Some))
    }

    /// Results in a float type that the device gives, or none where it cannot.
    fn on_device<T: Typed>(&self, x: &QuantizedActivations) -> Result<Option<Vec<T>>> {
        let (Some(on), m) = (&self.device, x.codes.nrows()) else { return Ok(None) };
        let Some(bias) = self.bias_with(on, x.zeros.as_ref()) else { return Ok(None) };
        let tokens: Vec<f32> = (0..m).map(|token| x.params(token).0).collect();
        let tokens = upload(&self.shared.device, &tokens, &[m])?;
        self.run(on, x.codes.view(), &on.scale, Some(&tokens), bias?.as_ref()).map(Some)
    }

    /// Codes of the next linear through the fix-pipe, or none where its arithmetic is another.
    fn codes_on_device(&self, x: &QuantizedActivations, offset: i32) -> Result<Option<Vec<i8>>> {
        let Some(on) = &self.device else { return Ok(None) };
        let one = x.scales.len() == 1 && x.scales[0] == 1.0;
        let exact = self.scales.iter().all(|&scale| fp19(scale).to_bits() == scale.to_bits());
        if !one || !exact || matches!(self.bias, Bias::Float(_)) || !(-256..=255).contains(&offset) {
            return Ok(None);
        }
        let Some(bias) = self.bias_with(on, x.zeros.as_ref()) else { return Ok(None) };
        let words: Vec<u64> = self.scales.iter().map(|&scale| pack_scale(scale, offset)).collect();
        let scale = upload(&self.shared.device, &words, &[self.shape.0])?;
        self.run(on, x.codes.view(), &scale, None, bias?.as_ref()).map(Some)
    }

    /// Exact sums from the device, `[tokens, out]`.
    fn device_sums(&self, codes: ArrayView2<'_, i8>) -> Result<Array2<i32>> {
        let shape = (codes.nrows(), self.shape.0);
        let Some(on) = &self.device else { return Ok(Array2::zeros(shape)) };
        let sums = self.run::<i32>(on, codes, &on.scale, None, None)?;
        Ok(Array2::from_shape_fn(shape, |(i, j)| sums[i * shape.1 + j]))
    }

    /// What [`finish`] makes of the device's sums.
    fn on_host(&self, x: &QuantizedActivations) -> Result<Array2<f32>> {
        let sums = self.device_sums(x.codes.view())?;
        Ok(Array2::from_shape_fn(sums.dim(), |(token, output)| {
            let (scale, zero) = x.params(token);
            let (integer, float) = match &self.bias {
                Bias::None => (0, -0.0),
                Bias::Integer(bias) => (bias[output], -0.0),
                Bias::Float(bias) => (0, bias[output]),
            };
            let integer = integer.wrapping_sub(zero.wrapping_mul(self.row_sums[output]));
            finish(sums[(token, output)], integer, self.scales[output], scale, float)
        }))
    }

    fn put<T: Typed>(
        &self,
        x: &QuantizedActivations,
        mut out: ArrayViewMut2<'_, T>,
        cast: impl Fn(f32) -> T,
    ) -> Result<()> {
        let n = self.shape.0;
        match self.on_device::<T>(x)? {
            Some(found) => out.indexed_iter_mut().for_each(|((i, j), out)| *out = found[i * n + j]),
            None => out.zip_mut_with(&self.on_host(x)?, |out, &value| *out = cast(value)),
        }
        Ok(())
    }
}

impl PreparedMatmul for Prepared {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn forward(&self, x: &QuantizedActivations, out: Output<'_>, _par: Par) -> Result<(), CoreError> {
        x.check()?;
        check_operands(self.shape, x.codes.dim(), out.dim())?;
        if out.dim().0 == 0 || out.dim().1 == 0 {
            return Ok(());
        }
        match out {
            Output::F32(mut out) => out.assign(&self.on_host(x)?),
            Output::Bf16(out) => self.put(x, out, bf16::from_f32)?,
            Output::F16(out) => self.put(x, out, f16::from_f32)?,
            Output::Codes { mut codes, offset } => match self.codes_on_device(x, offset)? {
                Some(found) => {
                    let n = self.shape.0;
                    codes.indexed_iter_mut().for_each(|((i, j), out)| *out = found[i * n + j]);
                }
                None => codes.zip_mut_with(&self.on_host(x)?, |out, &value| *out = requantize(value, offset)),
            },
            other => {
                return Err(CoreError::Processor {
                    message: format!("CANN gives no results of this kind: {other:?}"),
                    out_of_memory: false,
                });
            }
        }
        Ok(())
    }

    fn sums(
        &self,
        codes: ArrayView2<'_, i8>,
        mut out: ArrayViewMut2<'_, i32>,
        _par: Par,
    ) -> Result<(), CoreError> {
        check_operands(self.shape, codes.dim(), out.dim())?;
        if !out.is_empty() {
            out.assign(&self.device_sums(codes)?);
        }
        Ok(())
    }
}
