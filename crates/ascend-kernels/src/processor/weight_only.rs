//! Products of floats with coded weights.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use half::{bf16, f16};
use ndarray::{Array1, ArrayView2, ArrayViewMut2};
use quant_core::operators::{WeightOnlyProduct, check_operands};
use quant_core::{CoreError, FloatType, Groups, ProcessorProblem, QuantizedMatrix};

use super::weights::{Weight, form};
use super::{Model, Processor, Shared, upload};
use crate::cann::locked;
use crate::error::Result;
use crate::memory::DeviceBuffer;
use crate::operators::WeightOnlyMatmul;
use crate::places::Form;
use crate::tensor::{Tensor, Typed};

/// A coded weight on the device that floats are multiplied with ([`Processor::weight_only`]). `Send` and `Sync`: products take turns.
#[derive(Debug)]
pub struct WeightOnly {
    /// None for a linear without inputs or outputs.
    device: Option<OnDevice>,
    shape: (usize, usize),
    /// As it is added, for a linear without inputs.
    bias: Array1<f32>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct OnDevice {
    weight: Weight,
    scale: Tensor,
    offset: Option<Tensor>,
    bias: Option<Tensor>,
    group: Option<usize>,
}

fn refused(problem: String) -> CoreError {
    CoreError::Processor {
        message: format!("CANN multiplies no floats with this weight: {problem}"),
        kind: ProcessorProblem::Unavailable,
    }
}

/// Inputs that share a scale, none for all; an error for a weight that is not documented for the operator.
fn documented(weight: &QuantizedMatrix) -> Result<Option<usize>, CoreError> {
    let bits = weight.bits().get();
    if weight.widths().per_group().is_some() || !matches!(bits, 4 | 8) {
        return Err(refused(format!("it wants codes of 8 or 4 bits, these have {bits} in one group or all")));
    }
    if !weight.has_integer_zeros() {
        return Err(refused("it wants zero levels that are whole numbers".to_owned()));
    }
    let inputs = weight.dim().1;
    match weight.groups() {
        Groups::Channel => Ok(None),
        Groups::Size(size) if *size >= inputs => Ok(None),
        Groups::Size(size) if *size >= 32 && size.is_multiple_of(32) => Ok(Some(*size)),
        Groups::Size(size) => {
            Err(refused(format!("it wants groups of a multiple of 32 inputs, these have {size}")))
        }
        Groups::Index { .. } => Err(refused("its groups are not of consecutive inputs".to_owned())),
    }
}

impl Processor {
    /// Puts a coded weight `[out, in]` with a bias `[out]` on the device, for products with floats (`aclnnWeightQuantBatchMatmulV2`):
    /// of 8 or 4 bits, with whole zero levels or none, a scale for each output or for groups of a multiple of 32 inputs.
    ///
    /// Scales and zero codes are rounded to the type of the model, the bias is f16 beside f16 and f32 beside bf16. Codes of 4 bits
    /// lie there as such if there is an even number of outputs, else as bytes. From the first such weight on operators are told to sum
    /// in a fixed order ([`Device::set_deterministic`](crate::Device::set_deterministic)), where this CANN can be told.
    ///
    /// # Errors
    /// [`CoreError::Processor`]: [`ProcessorProblem::Unavailable`] for a weight that is not documented for the operator, or without it;
    /// or what CANN says. [`CoreError::Shape`] for a bias of another length.
    pub fn weight_only(
        &self,
        weight: &QuantizedMatrix,
        bias: Option<&Array1<f32>>,
    ) -> Result<WeightOnly, CoreError> {
        let (shared, (n, k)) = (&self.shared, weight.dim());
        let group = documented(weight)?;
        if let Some(bias) = bias.filter(|bias| bias.len() != n) {
            return Err(CoreError::Shape {
                what: "bias beside a coded weight",
                expected: format!("{n} (outputs)"),
                found: bias.len().to_string(),
            });
        }
        let device = if n > 0 && k > 0 { Some(OnDevice::new(shared, weight, bias, group)?) } else { None };
        let bias = bias.map_or_else(|| Array1::zeros(n), |bias| bias.mapv(|b| shared.bias(b)));
        Ok(WeightOnly { device, shape: (n, k), bias, shared: Arc::clone(shared) })
    }
}

impl Shared {
    /// A bias in the type that it has beside activations of the model's.
    fn bias(&self, bias: f32) -> f32 {
        match self.model {
            Model::F16 => FloatType::F16.round(bias),
            Model::Bf16 => bias,
        }
    }
}

impl OnDevice {
    fn new(
        shared: &Shared,
        weight: &QuantizedMatrix,
        bias: Option<&Array1<f32>>,
        group: Option<usize>,
    ) -> Result<Self> {
        let (device, (n, k)) = (&shared.device, weight.dim());
        let option = "aclrtCtxSetSysParamOpt";
        if device.cann().has(option) && !shared.deterministic.load(Ordering::Relaxed) {
            device.set_deterministic(true)?;
            shared.deterministic.store(true, Ordering::Relaxed);
        }
        // Inputs by outputs.
        let middle = weight.bits().mid_level();
        let code = |level: u8| (i32::from(level) - middle as i32) as i8;
        let codes: Vec<i8> = weight.levels().t().iter().map(|&level| code(level)).collect();
        let four = weight.bits().get() == 4 && n.is_multiple_of(2);
        let coded =
            Weight::new(shared, &codes, form(if four { Form::FourBits } else { Form::RowMajor }, k, n))?;
        let groups = [weight.scales().ncols(), n];
        let scale = shared.numbers(weight.scales().t().iter().copied(), &groups)?;
        // The offset is added to codes.
        let offsets = weight.zeros().t().mapv(|zero| middle - zero);
        let any = offsets.iter().any(|&offset| offset != 0.0);
        let offset = any.then(|| shared.numbers(offsets.iter().copied(), &groups)).transpose()?;
        let bias = bias.map(|bias| match shared.model {
            Model::F16 => shared.numbers(bias.iter().copied(), &[n]),
            Model::Bf16 => upload(device, &bias.to_vec(), &[n]),
        });
        Ok(Self { weight: coded, scale, offset, bias: bias.transpose()?, group })
    }
}

impl WeightOnly {
    /// Output and input features.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn run<T: Typed>(&self, on: &OnDevice, x: ArrayView2<'_, f32>) -> Result<Vec<T>> {
        let (shared, (m, k), n) = (&self.shared, x.dim(), self.shape.0);
        let x = shared.numbers(x.iter().copied(), &[m, k])?;
        let results = DeviceBuffer::<T>::new(&shared.device, m * n)?;
        let y = Tensor::new(&results, &[m, n])?;
        let stream = locked(&shared.stream);
        on.weight.run(&stream, |weight| {
            WeightOnlyMatmul {
                x: &x,
                weight,
                scale: &on.scale,
                offset: on.offset.as_ref(),
                bias: on.bias.as_ref(),
                group: on.group,
                fast: false,
                y: &y,
            }
            .prepare(&shared.device)?
            .launch(&stream)
        })?;
        let found = results.read(&stream)?;
        on.weight.done()?;
        Ok(found)
    }

    /// `out` `[tokens, out]` becomes the product of `x` `[tokens, in]`, which is rounded to the type of the model, as are results.
    ///
    /// # Errors
    /// [`CoreError::Shape`] where they do not fit, or what CANN says.
    pub fn forward(&self, x: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) -> Result<(), CoreError> {
        check_operands(self.shape, x.dim(), out.dim())?;
        if out.is_empty() {
            return Ok(());
        }
        let float = self.shared.model.float();
        let found: Vec<f32> = match (&self.device, self.shared.model) {
            (None, _) => {
                out.indexed_iter_mut().for_each(|((_, j), out)| *out = float.round(self.bias[j]));
                return Ok(());
            }
            (Some(on), Model::Bf16) => self.run::<bf16>(on, x)?.into_iter().map(bf16::to_f32).collect(),
            (Some(on), Model::F16) => self.run::<f16>(on, x)?.into_iter().map(f16::to_f32).collect(),
        };
        out.iter_mut().zip(found).for_each(|(out, found)| *out = found);
        Ok(())
    }
}

impl WeightOnlyProduct for WeightOnly {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn forward(&self, x: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) -> Result<(), CoreError> {
        Self::forward(self, x, out)
    }
}
