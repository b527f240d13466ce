//! Codes and a scale for each token.

use super::rules::{destination, want, want_codes_of, want_dims, want_plain, want_type};
use crate::call::{Arguments, Call, first_phase};
use crate::device::Device;
use crate::error::Result;
use crate::tensor::{DataType, Tensor};

/// Which function of CANN quantises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DynamicVersion {
    /// `aclnnDynamicQuant`: codes of eight bits, symmetric.
    V1,
    /// `aclnnDynamicQuantV2`.
    V2,
    /// `aclnnDynamicQuantV3`, mode `pertoken`.
    V3,
    /// `aclnnDynamicQuantV4`, mode `pertoken`.
    V4,
}

impl DynamicVersion {
    /// The name in CANN.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "aclnnDynamicQuant",
            Self::V2 => "aclnnDynamicQuantV2",
            Self::V3 => "aclnnDynamicQuantV3",
            Self::V4 => "aclnnDynamicQuantV4",
        }
    }
}

/// Codes of `x` `[…, k]` (F16 or Bf16) with parameters of each token.
///
/// Symmetric without `offset`: `code = round(x · (T / A))`, `scale = A · (1/T)`, with `A` the largest magnitude of the token and `T`
/// 127 or 7. With `offset`: `scale = max((max − min)/255, 1e-12)`, `offset = 127 − max/scale`, `code = round(x/scale + offset)`, with
/// 15 and 7 for four bits.
#[derive(Clone, Copy, Debug)]
pub struct DynamicQuant<'a> {
    /// Activations.
    pub x: &'a Tensor,
    /// What channels are multiplied by first, `[k]`, of the type of `x`.
    pub smooth: Option<&'a Tensor>,
    /// Codes: I8, I4 or I4x8, of the shape of `x`.
    pub codes: &'a Tensor,
    /// Scales, F32, the shape of `x` without its last axis.
    pub scale: &'a Tensor,
    /// Offsets, as scales; makes the codes asymmetric.
    pub offset: Option<&'a Tensor>,
}

impl DynamicQuant<'_> {
    /// Checks shapes and types.
    ///
    /// # Errors
    /// [`AscendError::Shape`](crate::AscendError::Shape) naming the argument that does not fit.
    pub fn check(&self) -> Result<()> {
        want_type(self.x, "activations to quantise", &[DataType::F16, DataType::Bf16])?;
        want_codes_of(self.codes, "codes of activations", self.x)?;
        want_plain(&[self.x, self.codes, self.scale])?;
        let (&last, front) = match self.x.dims().split_last() {
            Some(split) => split,
            None => {
                return want(false, "axes of activations", || "at least 1".to_owned(), || "none".to_owned());
            }
        };
        for parameters in [Some(self.scale), self.offset].into_iter().flatten() {
            want_type(parameters, "parameters of tokens", &[DataType::F32])?;
            want_dims(parameters, "parameters of tokens", &[front.to_vec()])?;
            want_plain(&[parameters])?;
        }
        if let Some(smooth) = self.smooth {
            want_type(smooth, "smooth scales", &[self.x.data_type()])?;
            want_dims(smooth, "smooth scales", &[vec![last]])?;
            want_plain(&[smooth])?;
        }
        Ok(())
    }

    /// Checks the arguments and prepares the first version that is there and can: V1, where codes of eight bits without offsets are enough, to V4.
    ///
    /// # Errors
    /// As [`DynamicQuant::check`], [`AscendError::Missing`](crate::AscendError::Missing), or what CANN says.
    pub fn prepare(&self, device: &Device) -> Result<Call> {
        let plain = self.codes.data_type() == DataType::I8 && self.offset.is_none();
        let versions = [DynamicVersion::V1, DynamicVersion::V2, DynamicVersion::V3, DynamicVersion::V4];
        let there = |version: &DynamicVersion| {
            (plain || *version != DynamicVersion::V1) && device.cann().has(version.name())
        };
        self.prepare_with(device, versions.into_iter().find(there).unwrap_or(DynamicVersion::V2))
    }

    /// Checks the arguments and prepares one version.
    ///
    /// # Errors
    /// As [`DynamicQuant::prepare`].
    pub fn prepare_with(&self, device: &Device, version: DynamicVersion) -> Result<Call> {
        self.check()?;
        let plain = self.codes.data_type() == DataType::I8 && self.offset.is_none();
        want(
            plain || version != DynamicVersion::V1,
            "version of DynamicQuant for four bits or offsets",
            || "V2 or later".to_owned(),
            || "V1".to_owned(),
        )?;
        let mut a = Arguments::new(device)?;
        let (x, smooth) = (a.input(self.x)?, a.optional(self.smooth)?);
        let (codes, scale) = (a.output(self.codes)?.cast_const(), a.output(self.scale)?.cast_const());
        let offset = match self.offset {
            Some(offset) => a.output(offset)?.cast_const(),
            None => std::ptr::null(),
        };
        let (kind, symmetric) = (i64::from(destination(self.codes)), self.offset.is_none());
        let (none, mode) = (std::ptr::null(), a.text("pertoken").cast_const());
        match version {
            DynamicVersion::V1 => first_phase!(
                a,
                operators,
                aclnnDynamicQuantGetWorkspaceSize,
                aclnnDynamicQuant,
                (x, smooth, codes, scale)
            ),
            DynamicVersion::V2 => first_phase!(
                a,
                operators,
                aclnnDynamicQuantV2GetWorkspaceSize,
                aclnnDynamicQuantV2,
                (x, smooth, none, kind, codes, scale, offset)
            ),
            DynamicVersion::V3 => first_phase!(
                a,
                operators,
                aclnnDynamicQuantV3GetWorkspaceSize,
                aclnnDynamicQuantV3,
                (x, smooth, none, kind, symmetric, mode, codes, scale, offset)
            ),
            DynamicVersion::V4 => first_phase!(
                a,
                operators,
                aclnnDynamicQuantV4GetWorkspaceSize,
                aclnnDynamicQuantV4,
                (x, smooth, none, kind, symmetric, mode, 0.0, codes, scale, offset)
            ),
        }
    }
}
