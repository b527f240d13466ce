//! The operators of integer execution on the CPU.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};
use quant_core::CoreError;
use quant_core::operators::{
    DynamicNumerics, DynamicQuant, IntegerLinear, Output, PreparedMatmul, QuantMatmul, QuantizedActivations,
    check_operands, finish, requantize,
};

use super::quantize::quantize_tokens;
use super::weight::IntegerWeight;
use crate::{IntegerLevel, Par, arch, vectorized};

/// The operators on the processor, with the instructions of a level; results do not depend on it.
///
/// ```
/// use quant_kernels::ndarray::{Array2, array};
/// use quant_kernels::{Cpu, Par};
/// use quant_core::Bits;
/// use quant_core::operators::{Bias, DynamicNumerics, DynamicQuant, IntegerLinear, QuantMatmul};
///
/// let cpu = Cpu::default();
/// let linear = IntegerLinear::new(array![[127, -64]], array![0.01], Bias::None)?;
/// let prepared = cpu.prepare(&linear, Par::Seq)?;
/// let x = cpu.quantize(&DynamicNumerics::Ascend { bits: Bits::new(8)? }, array![[1.0, 0.5]].view(), Par::Seq);
/// let mut y = Array2::<f32>::zeros((1, 1));
/// prepared.forward(&x, y.view_mut().into(), Par::new(2))?;
/// assert!((y[(0, 0)] - 0.95).abs() < 0.01);
/// # Ok::<(), quant_core::CoreError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    level: IntegerLevel,
}

impl Cpu {
    /// With the instructions of this level.
    #[must_use]
    pub fn for_level(level: IntegerLevel) -> Self {
        Self { level }
    }
}

impl Default for Cpu {
    /// With the best instructions of this machine.
    fn default() -> Self {
        Self::for_level(IntegerLevel::detect())
    }
}

impl DynamicQuant for Cpu {
    fn quantize(&self, numerics: &DynamicNumerics, x: ArrayView2<'_, f32>, par: Par) -> QuantizedActivations {
        quantize_tokens(*numerics, x, par)
    }
}

impl QuantMatmul for Cpu {
    fn prepare(&self, linear: &IntegerLinear, par: Par) -> Result<Box<dyn PreparedMatmul>, CoreError> {
        let outputs = linear.codes().nrows();
        let channels = (0..outputs).map(|output| linear.channel(output));
        Ok(Box::new(Prepared {
            weight: IntegerWeight::for_level(self.level, linear.codes().view(), par)?,
            scales: linear.scales().to_vec(),
            integers: channels.clone().map(|(_, integer, _)| integer).collect(),
            floats: channels.map(|(_, _, float)| float).collect(),
            row_sums: linear.row_sums(),
        }))
    }
}

/// A packed weight, and by output what [`finish`] takes.
#[derive(Debug)]
struct Prepared {
    weight: IntegerWeight,
    scales: Vec<f32>,
    integers: Vec<i32>,
    floats: Vec<f32>,
    row_sums: Array1<i32>,
}

impl PreparedMatmul for Prepared {
    fn shape(&self) -> (usize, usize) {
        (self.weight.out_features(), self.weight.in_features())
    }

    fn forward(&self, x: &QuantizedActivations, out: Output<'_>, par: Par) -> Result<(), CoreError> {
        x.check()?;
        check_operands(self.shape(), x.codes.dim(), out.dim())?;
        match out {
            Output::F32(out) => self.run(x, out, par, &|values, out| out.copy_from_slice(values)),
            Output::Bf16(out) => self.run(x, out, par, &|values, out| {
                for (out, &value) in out.iter_mut().zip(values) {
                    *out = bf16::from_bits(crate::bf16::bits(value) as u16);
                }
            }),
            Output::F16(out) => {
                self.run(x, out, par, &|values, out: &mut [f16]| out.convert_from_f32_slice(values));
            }
            Output::Codes { codes, offset } => self.run(x, codes, par, &|values, out| {
                for (out, &value) in out.iter_mut().zip(values) {
                    *out = requantize(value, offset);
                }
            }),
            // The enum may grow; what it grows by is refused until there is code for it.
            other => {
                return Err(CoreError::Shape {
                    what: "output of an integer linear",
                    expected: "f32, bf16, f16 or codes".to_owned(),
                    found: format!("{other:?}"),
                });
            }
        }
        Ok(())
    }

    fn sums(
        &self,
        codes: ArrayView2<'_, i8>,
        mut out: ArrayViewMut2<'_, i32>,
        par: Par,
    ) -> Result<(), CoreError> {
        check_operands(self.shape(), codes.dim(), out.dim())?;
        if arch::has_adjacent_columns(&out) {
            self.weight.sums_into(codes, out, par);
        } else {
            out.assign(&self.weight.sums(codes, par));
        }
        Ok(())
    }
}

/// Results that are finished together.
const TOGETHER: usize = 32;

impl Prepared {
    /// Finishes sums in f32 and hands them to `convert`.
    fn run<T: Copy + Default + Send>(
        &self,
        x: &QuantizedActivations,
        mut out: ArrayViewMut2<'_, T>,
        par: Par,
        convert: &(dyn Fn(&[f32], &mut [T]) + Sync),
    ) {
        if !arch::has_adjacent_columns(&out) {
            let mut rows = Array2::from_elem(out.dim(), T::default());
            self.run(x, rows.view_mut(), par, convert);
            out.assign(&rows);
            return;
        }
        self.weight.finish_into(x.codes.view(), out, par, &|token, first, sums, out| {
            let (scale, zero) = x.params(token);
            for (at, (sums, out)) in sums.chunks(TOGETHER).zip(out.chunks_mut(TOGETHER)).enumerate() {
                let outputs = first + at * TOGETHER..first + at * TOGETHER + sums.len();
                let mut values = [0.0; TOGETHER];
                let values = &mut values[..sums.len()];
                vectorized(
                    #[inline(always)]
                    || self.finish(sums, outputs, scale, zero, values),
                );
                convert(values, out);
            }
        });
    }

    #[inline(always)]
    fn finish(
        &self,
        sums: &[i32],
        outputs: std::ops::Range<usize>,
        scale: f32,
        zero: i32,
        values: &mut [f32],
    ) {
        let (scales, floats) = (&self.scales[outputs.clone()], &self.floats[outputs.clone()]);
        let integers = &self.integers[outputs.clone()];
        let Some(row_sums) = self.row_sums.as_slice().and_then(|sums| sums.get(outputs)) else { return };
        for j in 0..values.len().min(sums.len()).min(row_sums.len()) {
            let integer = integers[j].wrapping_sub(zero.wrapping_mul(row_sums[j]));
            values[j] = finish(sums[j], integer, scales[j], scale, floats[j]);
        }
    }
}
