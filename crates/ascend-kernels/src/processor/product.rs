//! Products of codes.

use std::sync::Arc;

use half::{bf16, f16};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};
use quant_core::operators::{
    Bias, IntegerLinear, Output, PreparedMatmul, QuantMatmul as Matmuls, QuantizedActivations,
    check_operands, finish, fp19, requantize,
};
use quant_core::{CoreError, Par, ProcessorProblem};

use super::weights::{Weight, form};
use super::{Processor, Shared, upload};
use crate::cann::locked;
use crate::error::Result;
use crate::layout::pack_scale;
use crate::memory::DeviceBuffer;
use crate::operators::QuantMatmul;
use crate::places::Form;
use crate::tensor::{Tensor, Typed};

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
    weight: Weight,
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
            Weight::new(shared, &codes, form(Form::Nz, k, n))?
        } else {
            let codes: Vec<i8> = linear.codes().iter().copied().collect();
            Weight::new(shared, &codes, form(Form::RowMajor, n, k))?
        };
        let bias = match linear.bias() {
            Bias::None => None,
            Bias::Integer(bias) => Some(upload(device, &bias.to_vec(), &[n])?),
            Bias::Float(bias) => Some(upload(device, &bias.to_vec(), &[n])?),
        };
        let scale = upload(device, &linear.scales().to_vec(), &[n])?;
        Ok(OnDevice { transposed: !nz, weight, scale, bias })
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
        let stream = locked(&self.shared.stream);
        on.weight.run(&stream, |weight| {
            let (x, transposed, offset, out) = (&x, on.transposed, None, &out);
            QuantMatmul { x, weight, transposed, scale, token_scale, offset, bias, out }
                .prepare(device)?
                .launch(&stream)
        })?;
        let found = results.read(&stream)?;
        on.weight.done()?;
        Ok(found)
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
                    kind: ProcessorProblem::Unavailable,
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
