//! FlatQuant's transform of activations with its quantisation.

use super::rules::{want, want_dims, want_plain, want_type};
use crate::call::{Arguments, Call, first_phase};
use crate::device::Device;
use crate::error::{AscendError, Result};
use crate::tensor::{DataType, Tensor};

/// `x″ = left · (x · right)` for each token, `scale = max|x″| · clip_ratio / 7`, `code = round(x″ / scale)` of four bits (FlatQuant,
/// arXiv 2410.09426).
#[derive(Clone, Copy, Debug)]
pub struct KroneckerQuant<'a> {
    /// Activations `[tokens, n1, n2]`, F16 or Bf16; at most 262144 tokens, axes up to 256.
    pub x: &'a Tensor,
    /// `[n1, n1]`, of the type of `x`.
    pub left: &'a Tensor,
    /// `[n2, n2]`, of the type of `x`.
    pub right: &'a Tensor,
    /// In (0, 1].
    pub clip_ratio: f64,
    /// Codes `[tokens, n1, n2]`, I4 or I4x8.
    pub codes: &'a Tensor,
    /// Scales `[tokens]`, F32.
    pub scale: &'a Tensor,
}

impl KroneckerQuant<'_> {
    /// Checks shapes and types.
    ///
    /// # Errors
    /// [`AscendError::Shape`] naming the argument that does not fit. Factors whose second is no multiple of 8 (148 · 128 = 18944 is
    /// one, if 148 is the second) have no codes in words.
    pub fn check(&self) -> Result<()> {
        want_type(self.x, "activations of FlatQuant", &[DataType::F16, DataType::Bf16])?;
        let &[tokens, n1, n2] = self.x.dims() else {
            return Err(AscendError::shape(
                "activations of FlatQuant",
                "[tokens, n1, n2]",
                format!("{:?}", self.x.dims()),
            ));
        };
        want(
            tokens <= 262_144 && n1 <= 256 && n2 <= 256,
            "activations of FlatQuant",
            || "at most [262144, 256, 256]".to_owned(),
            || format!("{:?}", self.x.dims()),
        )?;
        for (what, factor, n) in [("left factor", self.left, n1), ("right factor", self.right, n2)] {
            want_type(factor, what, &[self.x.data_type()])?;
            want_dims(factor, what, &[vec![n, n]])?;
        }
        want(
            self.clip_ratio > 0.0 && self.clip_ratio <= 1.0,
            "clip ratio of FlatQuant",
            || "above 0, at most 1".to_owned(),
            || self.clip_ratio.to_string(),
        )?;
        want_type(self.codes, "codes of FlatQuant", &[DataType::I4, DataType::I4x8])?;
        let each = if self.codes.data_type() == DataType::I4x8 { 8 } else { 2 };
        want(
            n2.is_multiple_of(each) && self.codes.code_dims() == self.x.dims(),
            "codes of FlatQuant",
            || format!("{:?} with a last axis that is a multiple of {each}", self.x.dims()),
            || format!("{:?}", self.codes.code_dims()),
        )?;
        want_type(self.scale, "scales of FlatQuant", &[DataType::F32])?;
        want_dims(self.scale, "scales of FlatQuant", &[vec![tokens]])?;
        want_plain(&[self.x, self.left, self.right, self.codes, self.scale])
    }

    /// Checks the arguments and prepares the operator.
    ///
    /// # Errors
    /// As [`KroneckerQuant::check`], [`AscendError::Missing`], or what CANN says.
    pub fn prepare(&self, device: &Device) -> Result<Call> {
        self.check()?;
        let mut a = Arguments::new(device)?;
        let (x, left, right) = (a.input(self.x)?, a.input(self.left)?, a.input(self.right)?);
        let (codes, scale) = (a.output(self.codes)?, a.output(self.scale)?);
        first_phase!(
            a,
            operators,
            aclnnFlatQuantGetWorkspaceSize,
            aclnnFlatQuant,
            (x, left, right, self.clip_ratio, codes, scale)
        )
    }
}
