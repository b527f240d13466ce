//! Floats times coded weights.

use super::rules::{want, want_dims, want_plain, want_type};
use crate::call::{Arguments, Call, first_phase};
use crate::device::Device;
use crate::error::{AscendError, Result};
use crate::tensor::{DataType, Layout, Tensor};

/// `y = x · ((weight + offset) · scale) + bias`.
///
/// `x` is `[m, k]`, F16 or Bf16; `weight` `[k, n]`, I8, I4 or I4x8; `scale` and `offset` have the type of `x` and 1, `[1, n]` or, for
/// groups of inputs, `[⌈k/group⌉, n]` elements; `bias` `[n]` is F16 beside F16 and F32 beside Bf16.
///
/// CANN chooses between dequantised weights and, for few rows, activations in integer digits: results of one row differ with the number
/// of rows. Sums are in no fixed order unless [`Device::set_deterministic`] says so.
#[derive(Clone, Copy, Debug)]
pub struct WeightOnlyMatmul<'a> {
    /// Activations.
    pub x: &'a Tensor,
    /// Codes; an NZ weight wants `aclnnWeightQuantBatchMatmulNz`, which is for later chips than A2.
    pub weight: &'a Tensor,
    /// Scales.
    pub scale: &'a Tensor,
    /// Offsets, added.
    pub offset: Option<&'a Tensor>,
    /// Bias.
    pub bias: Option<&'a Tensor>,
    /// Inputs that share a scale: a multiple of 32, at least 32 and less than `k`; none for all.
    pub group: Option<usize>,
    /// Takes `innerPrecise` 1 (V3): faster, F16 sums.
    pub fast: bool,
    /// `[m, n]`, of the type of `x`.
    pub y: &'a Tensor,
}

impl WeightOnlyMatmul<'_> {
    /// Checks shapes and types.
    ///
    /// # Errors
    /// [`AscendError::Shape`] naming the argument that does not fit.
    pub fn check(&self) -> Result<()> {
        let kind = self.x.data_type();
        want_type(self.x, "activations", &[DataType::F16, DataType::Bf16])?;
        want_type(self.weight, "coded weight", &[DataType::I8, DataType::I4, DataType::I4x8])?;
        let (&[m, k], &[depth, n]) = (self.x.dims(), self.weight.code_dims().as_slice()) else {
            return Err(AscendError::shape(
                "activations and weight",
                "two axes each",
                format!("{:?} and {:?}", self.x.dims(), self.weight.code_dims()),
            ));
        };
        want(depth == k, "inputs of a coded weight", || k.to_string(), || depth.to_string())?;
        let parameters = match self.group {
            None => vec![vec![1], vec![1, n]],
            Some(group) => {
                want(
                    group >= 32 && group.is_multiple_of(32) && group < k,
                    "inputs that share a scale",
                    || format!("a multiple of 32 from 32 to {}", k.saturating_sub(1)),
                    || group.to_string(),
                )?;
                vec![vec![k.div_ceil(group), n]]
            }
        };
        want_type(self.scale, "scales of a coded weight", &[kind])?;
        want_dims(self.scale, "scales of a coded weight", &parameters)?;
        if let Some(offset) = self.offset {
            want_type(offset, "offsets of a coded weight", &[kind])?;
            want_dims(offset, "offsets of a coded weight", &[self.scale.dims().to_vec()])?;
            want_plain(&[offset])?;
        }
        if let Some(bias) = self.bias {
            let wanted = if kind == DataType::F16 { DataType::F16 } else { DataType::F32 };
            want_type(bias, "bias beside a coded weight", &[wanted])?;
            want_dims(bias, "bias beside a coded weight", &[vec![n]])?;
            want_plain(&[bias])?;
        }
        want_type(self.y, "product with a coded weight", &[kind])?;
        want_dims(self.y, "product with a coded weight", &[vec![m, n]])?;
        want(
            !(self.fast && self.weight.layout() == Layout::Nz),
            "fast sums",
            || "a row-major weight".to_owned(),
            || "an NZ one".to_owned(),
        )?;
        want_plain(&[self.x, self.scale, self.y])
    }

    /// Checks the arguments and prepares V2, V3 for [`WeightOnlyMatmul::fast`], or Nz for an NZ weight.
    ///
    /// # Errors
    /// As [`WeightOnlyMatmul::check`], [`AscendError::Missing`], or what CANN says.
    pub fn prepare(&self, device: &Device) -> Result<Call> {
        self.check()?;
        let mut a = Arguments::new(device)?;
        let (x, weight, scale) = (a.input(self.x)?, a.input(self.weight)?, a.input(self.scale)?);
        let (offset, bias) = (a.optional(self.offset)?, a.optional(self.bias)?);
        let (y, none) = (a.output(self.y)?.cast_const(), std::ptr::null());
        let group = i32::try_from(self.group.unwrap_or(0)).unwrap_or(i32::MAX);
        match (self.weight.layout(), self.fast) {
            (Layout::Nz, _) => first_phase!(
                a,
                operators,
                aclnnWeightQuantBatchMatmulNzGetWorkspaceSize,
                aclnnWeightQuantBatchMatmulNz,
                (x, weight, scale, offset, none, none, bias, group, y)
            ),
            (Layout::RowMajor, true) => first_phase!(
                a,
                operators,
                aclnnWeightQuantBatchMatmulV3GetWorkspaceSize,
                aclnnWeightQuantBatchMatmulV3,
                (x, weight, scale, offset, none, none, bias, group, 1, y)
            ),
            (Layout::RowMajor, false) => first_phase!(
                a,
                operators,
                aclnnWeightQuantBatchMatmulV2GetWorkspaceSize,
                aclnnWeightQuantBatchMatmulV2,
                (x, weight, scale, offset, none, none, bias, group, y)
            ),
        }
    }
}
