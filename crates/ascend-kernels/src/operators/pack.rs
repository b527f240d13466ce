//! Scales as words, and codes of four bits.

use super::rules::{want, want_dims, want_plain, want_type};
use crate::call::{Arguments, Call, first_phase};
use crate::cann::{Cann, acl};
use crate::device::Device;
use crate::error::{AscendError, Result};
use crate::memory::DeviceBuffer;
use crate::tensor::{DataType, Tensor};

/// Scales and offsets as the words that [`QuantMatmul`](super::QuantMatmul) takes, on the device.
///
/// Cut to 19 bits, or with `round` rounded to the nearest; offsets are rounded half to even and held in −256..=255.
#[derive(Clone, Copy, Debug)]
pub struct PackScales<'a> {
    /// `[n]`, F32, finite.
    pub scale: &'a Tensor,
    /// 1 or `n` elements, F32.
    pub offset: Option<&'a Tensor>,
    /// Whether scales are rounded (`aclnnTransQuantParamV3`, mode 1) instead of cut.
    pub round: bool,
    /// `[n]`, U64 or I64.
    pub out: &'a Tensor,
}

impl PackScales<'_> {
    /// Checks shapes and types.
    ///
    /// # Errors
    /// [`AscendError::Shape`] naming the argument that does not fit.
    pub fn check(&self) -> Result<()> {
        want_type(self.scale, "scales to pack", &[DataType::F32])?;
        let &[n] = self.scale.dims() else {
            return Err(AscendError::shape("scales to pack", "one axis", format!("{:?}", self.scale.dims())));
        };
        if let Some(offset) = self.offset {
            want_type(offset, "offsets to pack", &[DataType::F32])?;
            want_dims(offset, "offsets to pack", &[vec![1], vec![n]])?;
        }
        want_type(self.out, "packed scales", &[DataType::U64, DataType::I64])?;
        want_dims(self.out, "packed scales", &[vec![n]])?;
        want_plain(&[self.scale, self.out])
    }

    /// Checks the arguments and prepares V3, or V2 where that is not there and scales are cut.
    ///
    /// # Errors
    /// As [`PackScales::check`], [`AscendError::Missing`], or what CANN says.
    pub fn prepare(&self, device: &Device) -> Result<Call> {
        self.check()?;
        let second = !self.round && !device.cann().has("aclnnTransQuantParamV3");
        let mut a = Arguments::new(device)?;
        let (scale, offset) = (a.input(self.scale)?, a.optional(self.offset)?);
        let out = a.output(self.out)?.cast_const();
        if second {
            return first_phase!(
                a,
                operators,
                aclnnTransQuantParamV2GetWorkspaceSize,
                aclnnTransQuantParamV2,
                (scale, offset, out)
            );
        }
        first_phase!(
            a,
            operators,
            aclnnTransQuantParamV3GetWorkspaceSize,
            aclnnTransQuantParamV3,
            (scale, offset, i64::from(self.round), out)
        )
    }
}

/// Scales and offsets as words by CANN's function for the host: no bit of a scale is cut, offsets are rounded half away from zero, and
/// more than one word is padded with zeros to a multiple of 16.
///
/// # Errors
/// [`AscendError::Shape`] for no scales, scales that are not finite, or lengths that do not fit; [`AscendError::Missing`]; or what CANN
/// says.
pub fn pack_scales_on_host(cann: &Cann, scales: &[f32], offsets: &[f32]) -> Result<Vec<u64>> {
    let (n, m) = (scales.len(), offsets.len());
    want(
        n > 0 && (m <= 1 || n == 1 || n == m),
        "lengths of scales and offsets",
        || "equal, or 1, or no offsets".to_owned(),
        || format!("{n} and {m}"),
    )?;
    let finite = scales.iter().chain(offsets).all(|x| x.is_finite());
    want(
        finite,
        "scales and offsets to pack",
        || "finite numbers".to_owned(),
        || "one that is not".to_owned(),
    )?;
    let (mut words, mut count) = (std::ptr::null_mut(), 0);
    let offset = if m == 0 { std::ptr::null() } else { offsets.as_ptr() };
    // SAFETY: the lengths belong to the slices, and the pointers are for these answers.
    unsafe {
        acl!(
            cann,
            operators,
            aclnnTransQuantParam(scales.as_ptr(), n as u64, offset, m as u64, &mut words, &mut count)
        )
    }?;
    let count = usize::try_from(count).unwrap_or(0);
    if words.is_null() || count < n.max(m) {
        return Err(AscendError::shape(
            "words of aclnnTransQuantParam",
            format!("at least {}", n.max(m)),
            count.to_string(),
        ));
    }
    // SAFETY: CANN wrote so many words there.
    let packed = unsafe { std::slice::from_raw_parts(words, count) }.to_vec();
    // SAFETY: CANN took the memory from the C library and leaves it to its caller.
    unsafe { libc::free(words.cast()) };
    Ok(packed)
}

/// Codes of four bits of a weight, packed on the device. The codes come from the host, where they are checked.
#[derive(Clone, Copy, Debug)]
pub struct PackInt4<'a> {
    /// Codes in −8..=7, row-major.
    pub codes: &'a [i32],
    /// Rows and columns.
    pub shape: (usize, usize),
    /// The same shape in codes: I4 or I4x8.
    pub out: &'a Tensor,
}

impl PackInt4<'_> {
    /// Checks codes, shapes and types.
    ///
    /// # Errors
    /// [`AscendError::Shape`] naming what does not fit.
    pub fn check(&self) -> Result<()> {
        let (rows, columns) = self.shape;
        want(
            rows.checked_mul(columns) == Some(self.codes.len()) && !self.codes.is_empty(),
            "codes of a weight",
            || format!("{rows} x {columns}, at least 1"),
            || self.codes.len().to_string(),
        )?;
        let far = self.codes.iter().find(|code| !(-8..=7).contains(*code));
        want(far.is_none(), "codes of four bits", || "-8 to 7".to_owned(), || format!("{far:?}"))?;
        want_type(self.out, "packed weight", &[DataType::I4, DataType::I4x8])?;
        want_plain(&[self.out])?;
        want(
            self.out.code_dims() == [rows, columns],
            "packed weight",
            || format!("codes [{rows}, {columns}]"),
            || format!("{:?}", self.out.code_dims()),
        )
    }

    /// Checks the arguments, copies the codes to the device and prepares the operator.
    ///
    /// # Errors
    /// As [`PackInt4::check`], [`AscendError::Missing`], or what CANN says.
    pub fn prepare(&self, device: &Device) -> Result<Call> {
        self.check()?;
        let codes = DeviceBuffer::from_slice(device, self.codes)?;
        let weight = Tensor::new(&codes, &[self.shape.0, self.shape.1])?;
        let mut a = Arguments::new(device)?;
        let (weight, out) = (a.input(&weight)?, a.output(self.out)?);
        a.hold(Box::new(codes));
        first_phase!(
            a,
            operators,
            aclnnConvertWeightToINT4PackGetWorkspaceSize,
            aclnnConvertWeightToINT4Pack,
            (weight, out)
        )
    }
}
