//! The operators of integer execution on the CPU.

use half::{bf16, f16};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use quant_core::operators::{
    DynamicNumerics, DynamicQuant, IntegerLinear, Output, PreparedMatmul, Processor, QuantMatmul,
    QuantizedActivations, StaticNumerics, StaticQuant, check_operands, finish, requantize,
};
use quant_core::{Bits, CoreError, QParams};

use super::quantize::{quantize_static, quantize_tokens};
use super::weight::IntegerWeight;
use crate::{IntegerLevel, Par, arch};

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
/// let x = cpu.quantize(&DynamicNumerics::Ascend { bits: Bits::new(8)? }, array![[1.0, 0.5]].view(), Par::Seq)?;
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

    pub(super) fn level(self) -> IntegerLevel {
        self.level
    }
}

impl Default for Cpu {
    /// With the best instructions of this machine.
    fn default() -> Self {
        Self::for_level(IntegerLevel::detect())
    }
}

impl DynamicQuant for Cpu {
    fn quantize(
        &self,
        numerics: &DynamicNumerics,
        x: ArrayView2<'_, f32>,
        par: Par,
    ) -> Result<QuantizedActivations, CoreError> {
        Ok(quantize_tokens(*numerics, x, par))
    }
}

impl StaticQuant for Cpu {
    fn quantize_static(
        &self,
        numerics: StaticNumerics,
        bits: Bits,
        params: QParams,
        x: ArrayView2<'_, f32>,
        par: Par,
    ) -> Result<QuantizedActivations, CoreError> {
        Ok(quantize_static(numerics, bits, params, x, par))
    }
}

impl Processor for Cpu {
    fn name(&self) -> String {
        format!("cpu ({})", self.level)
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
            row_sums: linear.row_sums().to_vec(),
        }))
    }
}

/// A prepared linear whose results are f32 before they become what an output holds.
pub(super) trait Results {
    /// Makes the results of all tokens, each by `convert`.
    fn run<T: Copy + Default + Send>(
        &self,
        x: &QuantizedActivations,
        out: ArrayViewMut2<'_, T>,
        par: Par,
        convert: impl Fn(f32) -> T + Copy + Sync,
    );

    /// Makes them in the type of the output; shapes were checked by the caller.
    fn write(&self, x: &QuantizedActivations, out: Output<'_>, par: Par) -> Result<(), CoreError> {
        // Closures that are inlined into vectorised code.
        match out {
            Output::F32(out) => self.run(
                x,
                out,
                par,
                #[inline(always)]
                |value| value,
            ),
            Output::Bf16(out) => self.run(
                x,
                out,
                par,
                #[inline(always)]
                |value| bf16::from_bits(crate::bf16::bits(value) as u16),
            ),
            Output::F16(out) => self.run(
                x,
                out,
                par,
                #[inline(always)]
                |value| f16::from_bits(crate::f16::bits(value)),
            ),
            Output::Codes { codes, offset } => self.run(
                x,
                codes,
                par,
                #[inline(always)]
                |value| requantize(value, offset),
            ),
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
}

/// A packed weight, and by output what [`finish`] takes.
#[derive(Debug)]
struct Prepared {
    weight: IntegerWeight,
    scales: Vec<f32>,
    integers: Vec<i32>,
    floats: Vec<f32>,
    row_sums: Vec<i32>,
}

impl PreparedMatmul for Prepared {
    fn shape(&self) -> (usize, usize) {
        (self.weight.out_features(), self.weight.in_features())
    }

    fn forward(&self, x: &QuantizedActivations, out: Output<'_>, par: Par) -> Result<(), CoreError> {
        x.check()?;
        check_operands(self.shape(), x.codes.dim(), out.dim())?;
        self.write(x, out, par)
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

impl Results for Prepared {
    fn run<T: Copy + Default + Send>(
        &self,
        x: &QuantizedActivations,
        mut out: ArrayViewMut2<'_, T>,
        par: Par,
        convert: impl Fn(f32) -> T + Copy + Sync,
    ) {
        if !arch::has_adjacent_columns(&out) {
            let mut rows = Array2::from_elem(out.dim(), T::default());
            self.run(x, rows.view_mut(), par, convert);
            out.assign(&rows);
            return;
        }
        self.weight.finish_into(
            x.codes.view(),
            out,
            par,
            #[inline(always)]
            |token, first, sums: &[i32], out: &mut [T]| {
                let outputs = first..first + sums.len();
                let (scales, floats) = (&self.scales[outputs.clone()], &self.floats[outputs.clone()]);
                let (integers, row_sums) = (&self.integers[outputs.clone()], &self.row_sums[outputs]);
                let (scale, zero) = x.params(token);
                let parameters = integers.iter().zip(row_sums).zip(scales).zip(floats);
                for ((out, &sum), (((integer, row_sum), &channel), &float)) in
                    out.iter_mut().zip(sums).zip(parameters)
                {
                    let integer = integer.wrapping_sub(zero.wrapping_mul(*row_sum));
                    *out = convert(finish(sum, integer, channel, scale, float));
                }
            },
        );
    }
}
