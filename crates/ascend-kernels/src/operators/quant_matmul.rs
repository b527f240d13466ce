//! Products of codes.

use super::rules::{want, want_dims, want_plain, want_type};
use crate::call::{Arguments, Call, first_phase};
use crate::device::Device;
use crate::error::{AscendError, Result};
use crate::tensor::{DataType, Layout, Tensor};

/// Which function of CANN makes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MatmulVersion {
    /// `aclnnQuantMatmulV3`: no scales of tokens.
    V3,
    /// `aclnnQuantMatmulV4`.
    V4,
    /// `aclnnQuantMatmulV5`.
    V5,
    /// `aclnnQuantMatmulWeightNz`: NZ weights alone.
    WeightNz,
}

impl MatmulVersion {
    /// Newest first.
    const ALL: [Self; 4] = [Self::WeightNz, Self::V5, Self::V4, Self::V3];

    /// The name in CANN.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V3 => "aclnnQuantMatmulV3",
            Self::V4 => "aclnnQuantMatmulV4",
            Self::V5 => "aclnnQuantMatmulV5",
            Self::WeightNz => "aclnnQuantMatmulWeightNz",
        }
    }
}

/// `out = (x · weight + bias) · scale · token_scale`, with what comes first by the types:
///
/// | x, weight | token_scale | scale | offset | bias | out |
/// |---|---|---|---|---|---|
/// | I8 | - | U64, I64 | - | -, I32 | F16 |
/// | I8 | - | U64, I64 | -, F32 | -, I32 | I8 |
/// | I8 | -, F32 | F32, Bf16 | - | -, I32, Bf16, F32 | Bf16 |
/// | I8 | F32 | F32 | - | -, I32, F16, F32 | F16 |
/// | I8 | - | F32, Bf16 | - | -, I32 | I32: bare sums, the scale is ignored |
/// | I4, I4x8 | - | U64, I64 | - | -, I32 | F16 |
/// | I4, I4x8 | F32 | F32, Bf16 | - | -, I32, Bf16, F32 | Bf16 |
/// | I4, I4x8 | F32 | F32 | - | -, I32, F16, F32 | F16 |
///
/// An I32 bias is added to the sum, a float one behind the scales. Scales as words ([`crate::layout::pack_scale`]) go through the
/// fix-pipe, which sees 19 bits of them; the others are f32 throughout, in an association that CANN chooses by shape.
///
/// `x` is `[…, m, k]` with 2 to 6 axes, `weight` `[k, n]`, or `[n, k]` if `transposed`; `scale` has 1 or `n` elements, `token_scale`
/// one for each row of `x`, `bias` `n`, `offset` 1 or `n`. Codes of four bits: row-major weights, even axes.
#[derive(Clone, Copy, Debug)]
pub struct QuantMatmul<'a> {
    /// Codes of activations.
    pub x: &'a Tensor,
    /// Codes of the weight.
    pub weight: &'a Tensor,
    /// Whether the weight is `[n, k]`.
    pub transposed: bool,
    /// Scales of outputs.
    pub scale: &'a Tensor,
    /// Scales of tokens.
    pub token_scale: Option<&'a Tensor>,
    /// Added to codes as outputs.
    pub offset: Option<&'a Tensor>,
    /// Bias.
    pub bias: Option<&'a Tensor>,
    /// Results.
    pub out: &'a Tensor,
}

/// The longest axis that the fix-pipe, and 32-bit outputs, take.
const LONGEST: usize = 65_535;

impl QuantMatmul<'_> {
    fn words(&self) -> bool {
        matches!(self.scale.data_type(), DataType::U64 | DataType::I64)
    }

    /// The rows of the table above.
    fn check_types(&self) -> Result<()> {
        use DataType::{Bf16, F16, F32, I8, I32};
        let (x, weight, scale, out) =
            (self.x.data_type(), self.weight.data_type(), self.scale.data_type(), self.out.data_type());
        let bias = |allowed: &[DataType]| self.bias.is_none_or(|bias| allowed.contains(&bias.data_type()));
        let (eight, four) = (x == I8 && weight == I8, x.is_four_bits() && x == weight);
        let token = self.token_scale.is_some();
        let fits = match (out, scale) {
            (F16, _) if self.words() => (eight || four) && !token && bias(&[I32]),
            (I8, _) if self.words() => eight && !token && bias(&[I32]),
            (Bf16, F32 | Bf16) => (eight || four && token) && bias(&[I32, Bf16, F32]),
            (F16, F32) => (eight || four) && token && bias(&[I32, F16, F32]),
            (I32, F32 | Bf16) => eight && !token && bias(&[I32]),
            _ => false,
        };
        want(
            fits && (self.offset.is_none() || out == I8),
            "types of a product of codes",
            || "a row of the table of QuantMatmul".to_owned(),
            || {
                let kind = |tensor: Option<&Tensor>| tensor.map(Tensor::data_type);
                format!(
                    "x {x:?}, weight {weight:?}, token_scale {:?}, scale {scale:?}, offset {:?}, bias {:?}, out {out:?}",
                    kind(self.token_scale),
                    kind(self.offset),
                    kind(self.bias)
                )
            },
        )
    }

    /// Checks shapes and types.
    ///
    /// # Errors
    /// [`AscendError::Shape`] naming the argument that does not fit.
    pub fn check(&self) -> Result<()> {
        self.check_types()?;
        want_plain(&[self.x, self.scale, self.out])?;
        let optional = [self.token_scale, self.offset, self.bias];
        want_plain(&optional.into_iter().flatten().collect::<Vec<_>>())?;
        let (dims, weight) = (self.x.code_dims(), self.weight.code_dims());
        let [front @ .., k] = dims.as_slice() else { return Err(shape_of_x(&dims)) };
        let (k, m) = (*k, front.iter().product::<usize>());
        want((2..=6).contains(&dims.len()), "axes of x", || "2 to 6".to_owned(), || dims.len().to_string())?;
        let &[first, second] = weight.as_slice() else {
            return Err(AscendError::shape("weight of a product", "two axes", format!("{weight:?}")));
        };
        let (depth, n) = if self.transposed { (second, first) } else { (first, second) };
        want(depth == k, "inputs of a weight", || k.to_string(), || depth.to_string())?;
        let kind = self.x.data_type();
        if kind.is_four_bits() {
            let even = k % 2 == 0 && (self.transposed || n % 2 == 0);
            want(
                even && self.weight.layout() == Layout::RowMajor,
                "weight of four bits",
                || "row-major, with even axes".to_owned(),
                || format!("{weight:?}, {:?}", self.weight.layout()),
            )?;
        }
        let free = kind == DataType::I8 && self.token_scale.is_some() && !self.words();
        want(
            free || (k <= LONGEST && n <= LONGEST),
            "axes of a product without scales of tokens",
            || format!("at most {LONGEST}"),
            || format!("k {k}, n {n}"),
        )?;
        want_dims(self.out, "output of a product", &[[front, &[n]].concat()])?;
        want_dims(self.scale, "scale of a product", &[vec![1], vec![n]])?;
        if let Some(token) = self.token_scale {
            want_type(token, "scales of tokens", &[DataType::F32])?;
            want_dims(token, "scales of tokens", &[vec![m]])?;
        }
        if let Some(bias) = self.bias {
            want_dims(bias, "bias of a product", &[vec![n]])?;
        }
        if let Some(offset) = self.offset {
            want_type(offset, "offset of outputs", &[DataType::F32])?;
            want_dims(offset, "offset of outputs", &[vec![1], vec![n]])?;
        }
        Ok(())
    }

    /// Whether a version can make this product.
    fn fits(&self, version: MatmulVersion) -> bool {
        match version {
            MatmulVersion::V3 => self.token_scale.is_none() && !self.x.data_type().is_four_bits(),
            MatmulVersion::V4 | MatmulVersion::V5 => true,
            MatmulVersion::WeightNz => self.weight.layout() == Layout::Nz,
        }
    }

    /// Checks the arguments and prepares the newest version that is there and fits.
    ///
    /// # Errors
    /// As [`QuantMatmul::check`], [`AscendError::Missing`] if there is no version that fits, or what CANN says.
    pub fn prepare(&self, device: &Device) -> Result<Call> {
        self.check()?;
        let there = |version: &MatmulVersion| self.fits(*version) && device.cann().has(version.name());
        match MatmulVersion::ALL.into_iter().find(there) {
            Some(version) => self.prepare_with(device, version),
            None => Err(device.cann().missing("aclnnQuantMatmulV5")),
        }
    }

    /// Checks the arguments and prepares one version.
    ///
    /// # Errors
    /// As [`QuantMatmul::prepare`], and [`AscendError::Shape`] for a version that does not fit.
    pub fn prepare_with(&self, device: &Device, version: MatmulVersion) -> Result<Call> {
        self.check()?;
        want(
            self.fits(version),
            "version of QuantMatmul",
            || "V4 or V5 for scales of tokens and four bits, WeightNz for NZ weights".to_owned(),
            || format!("{version:?}"),
        )?;
        let mut a = Arguments::new(device)?;
        let (x, weight, scale) = (a.input(self.x)?, a.input(self.weight)?, a.input(self.scale)?);
        let (token, offset, bias) =
            (a.optional(self.token_scale)?, a.optional(self.offset)?, a.optional(self.bias)?);
        let out = a.output(self.out)?;
        let (none, flag) = (std::ptr::null(), self.transposed);
        match version {
            MatmulVersion::V3 => first_phase!(
                a,
                operators,
                aclnnQuantMatmulV3GetWorkspaceSize,
                aclnnQuantMatmulV3,
                (x, weight, scale, offset, bias, false, flag, out.cast_const())
            ),
            MatmulVersion::V4 => first_phase!(
                a,
                operators,
                aclnnQuantMatmulV4GetWorkspaceSize,
                aclnnQuantMatmulV4,
                (x, weight, scale, offset, token, bias, false, flag, out.cast_const())
            ),
            MatmulVersion::V5 => first_phase!(
                a,
                operators,
                aclnnQuantMatmulV5GetWorkspaceSize,
                aclnnQuantMatmulV5,
                (x, weight, token, scale, none, none, offset, none, bias, false, flag, 0, out)
            ),
            MatmulVersion::WeightNz => first_phase!(
                a,
                operators,
                aclnnQuantMatmulWeightNzGetWorkspaceSize,
                aclnnQuantMatmulWeightNz,
                (x, weight, token, scale, none, none, offset, none, bias, false, flag, 0, out)
            ),
        }
    }
}

fn shape_of_x(dims: &[usize]) -> AscendError {
    AscendError::shape("activations of a product", "[…, m, k]", format!("{dims:?}"))
}
