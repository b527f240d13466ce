//! Products of floats.

use super::rules::{want, want_dims, want_plain, want_type};
use crate::call::{Arguments, Call, first_phase};
use crate::device::Device;
use crate::error::{AscendError, Result};
use crate::tensor::{DataType, Tensor};

/// What the cube unit may do to its inputs (`cubeMathType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub enum CubeMath {
    /// Compute in the given type.
    Keep = 0,
    /// F32 may be rounded to HF32, eleven bits of mantissa.
    AllowLess = 1,
    /// Inputs are rounded to F16; not for Bf16.
    F16 = 2,
    /// F32 is rounded to HF32.
    Hf32 = 3,
    /// Long sums of F32 are made of groups.
    F32Add = 4,
}

/// `out = a · b`, with `a` `[m, k]`, `b` `[k, n]`, all of one type: F32, F16 or Bf16. Sums are f32, in an order of CANN's own.
#[derive(Clone, Copy, Debug)]
pub struct Matmul<'a> {
    /// `[m, k]`.
    pub a: &'a Tensor,
    /// `[k, n]`.
    pub b: &'a Tensor,
    /// `[m, n]`.
    pub out: &'a Tensor,
    /// What may be done to the inputs.
    pub math: CubeMath,
}

impl Matmul<'_> {
    /// Checks shapes and types.
    ///
    /// # Errors
    /// [`AscendError::Shape`] naming the argument that does not fit.
    pub fn check(&self) -> Result<()> {
        let kind = self.a.data_type();
        want_type(self.a, "first factor", &[DataType::F32, DataType::F16, DataType::Bf16])?;
        want_type(self.b, "second factor", &[kind])?;
        want_type(self.out, "product", &[kind])?;
        let (&[m, k], &[_, n]) = (self.a.dims(), self.b.dims()) else {
            return Err(AscendError::shape(
                "factors of a product",
                "two axes each",
                format!("{:?} and {:?}", self.a.dims(), self.b.dims()),
            ));
        };
        want_dims(self.b, "second factor", &[vec![k, n]])?;
        want_dims(self.out, "product", &[vec![m, n]])?;
        want(
            self.math != CubeMath::F16 || kind != DataType::Bf16,
            "CubeMath::F16",
            || "F16 or F32 factors".to_owned(),
            || "Bf16".to_owned(),
        )?;
        want_plain(&[self.a, self.b, self.out])
    }

    /// Checks the arguments and prepares the operator.
    ///
    /// # Errors
    /// As [`Matmul::check`], [`AscendError::Missing`], or what CANN says.
    pub fn prepare(&self, device: &Device) -> Result<Call> {
        self.check()?;
        let mut a = Arguments::new(device)?;
        let (first, second, out) = (a.input(self.a)?, a.input(self.b)?, a.output(self.out)?);
        first_phase!(a, operators, aclnnMmGetWorkspaceSize, aclnnMm, (first, second, out, self.math as i8))
    }
}
