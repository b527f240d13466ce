//! The operators in plain loops: what every other implementation is compared with.

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};

use super::{
    DynamicNumerics, DynamicQuant, IntegerLinear, Output, PreparedMatmul, QuantMatmul, QuantizedActivations,
    finish,
};
use crate::{CoreError, Par};

/// The scalar specification as an implementation. Slow, and on the calling thread alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl DynamicQuant for Reference {
    fn quantize(
        &self,
        numerics: &DynamicNumerics,
        x: ArrayView2<'_, f32>,
        _par: Par,
    ) -> Result<QuantizedActivations, CoreError> {
        let mut codes = Array2::zeros(x.dim());
        let params = x.rows().into_iter().zip(codes.rows_mut()).map(|(token, mut into)| {
            let token = token.to_vec();
            let mut row = vec![0; token.len()];
            let params = numerics.token(&token, &mut row);
            into.assign(&Array1::from(row));
            params
        });
        let params = params.collect();
        Ok(numerics.collect(codes, params))
    }
}

impl QuantMatmul for Reference {
    fn prepare(&self, linear: &IntegerLinear, _par: Par) -> Result<Box<dyn PreparedMatmul>, CoreError> {
        Ok(Box::new(Plain { row_sums: linear.row_sums(), linear: linear.clone() }))
    }
}

#[derive(Debug)]
struct Plain {
    linear: IntegerLinear,
    row_sums: Array1<i32>,
}

impl PreparedMatmul for Plain {
    fn shape(&self) -> (usize, usize) {
        self.linear.codes().dim()
    }

    fn forward(&self, x: &QuantizedActivations, out: Output<'_>, _par: Par) -> Result<(), CoreError> {
        x.check()?;
        check_operands(self.shape(), x.codes.dim(), out.dim())?;
        let mut sums = Array2::zeros(out.dim());
        self.fill(x.codes.view(), sums.view_mut());
        let value = |(token, output): (usize, usize)| {
            let (scale, zero) = x.params(token);
            let (channel, integer, float) = self.linear.channel(output);
            let integer = integer.wrapping_sub(zero.wrapping_mul(self.row_sums[output]));
            finish(sums[(token, output)], integer, channel, scale, float)
        };
        out.fill_with(value);
        Ok(())
    }

    fn sums(
        &self,
        codes: ArrayView2<'_, i8>,
        out: ArrayViewMut2<'_, i32>,
        _par: Par,
    ) -> Result<(), CoreError> {
        check_operands(self.shape(), codes.dim(), out.dim())?;
        self.fill(codes, out);
        Ok(())
    }
}

impl Plain {
    fn fill(&self, codes: ArrayView2<'_, i8>, mut out: ArrayViewMut2<'_, i32>) {
        for (token, mut out) in codes.rows().into_iter().zip(out.rows_mut()) {
            for (weights, out) in self.linear.codes().rows().into_iter().zip(&mut out) {
                *out = token.iter().zip(weights).map(|(&x, &w)| i32::from(x) * i32::from(w)).sum();
            }
        }
    }
}

/// Whether codes `[tokens, in]` and an output `[tokens, out]` fit a linear `(out, in)`.
///
/// # Errors
/// [`CoreError::Shape`] naming the one that does not.
pub fn check_operands(
    (outputs, inputs): (usize, usize),
    codes: (usize, usize),
    out: (usize, usize),
) -> Result<(), CoreError> {
    let shape = |what, expected: String, found: (usize, usize)| {
        Err(CoreError::Shape { what, expected, found: format!("[{}, {}]", found.0, found.1) })
    };
    if codes.1 != inputs {
        return shape("codes for an integer linear", format!("[tokens, {inputs}]"), codes);
    }
    if out != (codes.0, outputs) {
        return shape("output of an integer linear", format!("[{}, {outputs}]", codes.0), out);
    }
    Ok(())
}
