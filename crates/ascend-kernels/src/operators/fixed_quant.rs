//! Codes under given scales, and numbers of codes.

use super::rules::{destination, want, want_codes_of, want_dims, want_plain, want_type};
use crate::call::{Arguments, Call, first_phase};
use crate::device::Device;
use crate::error::Result;
use crate::tensor::{DataType, Tensor};

/// How numbers become whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// Half to even.
    Nearest,
    /// Down.
    Floor,
    /// Up.
    Ceil,
    /// Towards zero.
    Trunc,
}

impl Round {
    fn name(self) -> &'static str {
        match self {
            Self::Nearest => "round",
            Self::Floor => "floor",
            Self::Ceil => "ceil",
            Self::Trunc => "trunc",
        }
    }
}

/// `code = round(x · scale + offset)`: the scale is the *reciprocal* of the step.
///
/// `scale` and `offset` have the type of `x` (F32, F16, Bf16) and 1 element, or one for each element of the last axis.
#[derive(Clone, Copy, Debug)]
pub struct StaticQuant<'a> {
    /// Activations.
    pub x: &'a Tensor,
    /// What they are multiplied by.
    pub scale: &'a Tensor,
    /// What is added before rounding.
    pub offset: Option<&'a Tensor>,
    /// How it is rounded.
    pub round: Round,
    /// Codes: I8, I4 or I4x8, of the shape of `x`.
    pub codes: &'a Tensor,
}

fn want_parameters(
    what: &'static str,
    scale: &Tensor,
    offset: Option<&Tensor>,
    kinds: &[DataType],
    last: usize,
) -> Result<()> {
    want_type(scale, what, kinds)?;
    want_dims(scale, what, &[vec![1], vec![last]])?;
    want_plain(&[scale])?;
    if let Some(offset) = offset {
        want_type(offset, what, &[scale.data_type()])?;
        want_dims(offset, what, &[scale.dims().to_vec()])?;
        want_plain(&[offset])?;
    }
    Ok(())
}

impl StaticQuant<'_> {
    /// Checks shapes and types.
    ///
    /// # Errors
    /// [`AscendError::Shape`](crate::AscendError::Shape) naming the argument that does not fit.
    pub fn check(&self) -> Result<()> {
        want_type(self.x, "activations to quantise", &[DataType::F32, DataType::F16, DataType::Bf16])?;
        want_codes_of(self.codes, "codes of activations", self.x)?;
        want_plain(&[self.x, self.codes])?;
        let last = self.x.dims().last().copied();
        want(last.is_some(), "axes of activations", || "at least 1".to_owned(), || "none".to_owned())?;
        let what = "parameters of static quantisation";
        want_parameters(what, self.scale, self.offset, &[self.x.data_type()], last.unwrap_or(0))
    }

    /// Checks the arguments and prepares the operator.
    ///
    /// # Errors
    /// As [`StaticQuant::check`], [`AscendError::Missing`](crate::AscendError::Missing), or what CANN says.
    pub fn prepare(&self, device: &Device) -> Result<Call> {
        self.check()?;
        let mut a = Arguments::new(device)?;
        let (x, scale, offset) = (a.input(self.x)?, a.input(self.scale)?, a.optional(self.offset)?);
        let codes = a.output(self.codes)?.cast_const();
        let round = a.text(self.round.name()).cast_const();
        first_phase!(
            a,
            operators,
            aclnnAscendQuantV3GetWorkspaceSize,
            aclnnAscendQuantV3,
            (x, scale, offset, false, round, destination(self.codes), -1, codes)
        )
    }
}

/// `y = (code + offset) · scale`: the offset is added (the scale files of some tools mean one that is subtracted).
///
/// `scale` and `offset` have the type of `y` or F32, and 1 element, or one for each of the last axis of the codes.
#[derive(Clone, Copy, Debug)]
pub struct AntiQuant<'a> {
    /// Codes: I8, I4 or I4x8.
    pub codes: &'a Tensor,
    /// Scales.
    pub scale: &'a Tensor,
    /// Offsets.
    pub offset: Option<&'a Tensor>,
    /// Numbers, F16 or Bf16.
    pub y: &'a Tensor,
}

impl AntiQuant<'_> {
    /// Checks shapes and types.
    ///
    /// # Errors
    /// [`AscendError::Shape`](crate::AscendError::Shape) naming the argument that does not fit.
    pub fn check(&self) -> Result<()> {
        want_type(self.y, "numbers of codes", &[DataType::F16, DataType::Bf16])?;
        want_codes_of(self.codes, "codes", self.y)?;
        want_plain(&[self.codes, self.y])?;
        let last = self.y.dims().last().copied();
        want(last.is_some(), "axes of codes", || "at least 1".to_owned(), || "none".to_owned())?;
        let kinds = [DataType::F32, self.y.data_type()];
        want_parameters("parameters of codes", self.scale, self.offset, &kinds, last.unwrap_or(0))
    }

    /// Checks the arguments and prepares the operator.
    ///
    /// # Errors
    /// As [`AntiQuant::check`], [`AscendError::Missing`](crate::AscendError::Missing), or what CANN says.
    pub fn prepare(&self, device: &Device) -> Result<Call> {
        self.check()?;
        let mut a = Arguments::new(device)?;
        let (x, scale, offset) = (a.input(self.codes)?, a.input(self.scale)?, a.optional(self.offset)?);
        let y = a.output(self.y)?.cast_const();
        first_phase!(
            a,
            operators,
            aclnnAscendAntiQuantGetWorkspaceSize,
            aclnnAscendAntiQuant,
            (x, scale, offset, i64::from(self.y.data_type().raw()), false, y)
        )
    }
}
