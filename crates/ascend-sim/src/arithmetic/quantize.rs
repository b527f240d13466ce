//! DynamicQuant, AscendQuant, AscendAntiQuant, FlatQuant.

use half::{bf16, f16};

/// Rounds to a type of 16 bits, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Model {
    F16,
    Bf16,
    F32,
}

impl Model {
    pub(crate) fn round(self, x: f32) -> f32 {
        match self {
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::Bf16 => bf16::from_f32(x).to_f32(),
            Self::F32 => x,
        }
    }
}

/// The cast of the vector unit: f32 to int32 (saturating, NaN to 0), to half, to a code (saturating).
fn cast(x: f32, (low, high): (f32, f32)) -> i32 {
    let whole = x as i32;
    f16::from_f32(whole as f32).to_f32().clamp(low, high) as i32
}

/// The ends of codes of eight or four bits.
fn ends(four: bool) -> (f32, f32) {
    if four { (-8.0, 7.0) } else { (-128.0, 127.0) }
}

/// A symmetric row: codes into `codes`, the scale as result.
///
/// `inverse` says that the scale is `1 / (top/amax)` instead of `amax · (1/top)`, `most` what a number becomes that has no place in f32:
/// an infinity, or the largest that has.
pub(crate) fn symmetric(row: &[f32], four: bool, (inverse, most): (bool, f32), codes: &mut [i32]) -> f32 {
    let top = if four { 7.0_f32 } else { 127.0 };
    let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let factor = (top / largest).min(most);
    for (code, &x) in codes.iter_mut().zip(row) {
        *code = cast((x * factor).round_ties_even(), ends(four));
    }
    if inverse { 1.0 / factor } else { largest * (1.0 / top) }
}

/// An asymmetric row: codes into `codes`, scale and offset as result.
pub(crate) fn asymmetric(row: &[f32], four: bool, codes: &mut [i32]) -> (f32, f32) {
    let (steps, top) = if four { (15.0_f32, 7.0_f32) } else { (255.0, 127.0) };
    let low = row.iter().fold(f32::INFINITY, |low, &x| low.min(x));
    let high = row.iter().fold(f32::NEG_INFINITY, |high, &x| high.max(x));
    let scale = ((high - low) / steps).max(1e-12);
    let offset = top - high / scale;
    let factor = 1.0 / scale;
    for (code, &x) in codes.iter_mut().zip(row) {
        *code = cast((x * factor + offset).round_ties_even(), ends(four));
    }
    (scale, offset)
}

/// How AscendQuant rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    Even,
    Floor,
    Ceil,
    Trunc,
}

impl Rounding {
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "round" => Some(Self::Even),
            "floor" => Some(Self::Floor),
            "ceil" => Some(Self::Ceil),
            "trunc" => Some(Self::Trunc),
            _ => None,
        }
    }
    fn apply(self, x: f32) -> f32 {
        match self {
            Self::Even => x.round_ties_even(),
            Self::Floor => x.floor(),
            Self::Ceil => x.ceil(),
            Self::Trunc => x.trunc(),
        }
    }
}

/// AscendQuant: multiplied by the scale, the offset added, rounded.
pub(crate) fn fixed(x: f32, scale: f32, offset: f32, rounding: Rounding, four: bool) -> i32 {
    cast(rounding.apply(x * scale + offset), ends(four))
}

/// AscendAntiQuant: the offset is added to the code.
pub(crate) fn anti(code: i32, scale: f32, offset: f32) -> f32 {
    (code as f32 + offset) * scale
}

/// A code of a weight as a number of the model: int to half, then in f16, or in f32 and rounded to bf16.
pub(crate) fn dequantized(code: i32, scale: f32, offset: f32, model: Model) -> f32 {
    match model {
        Model::F16 => model.round(model.round(code as f32 + offset) * scale),
        _ => model.round((code as f32 + offset) * scale),
    }
}

/// One token of FlatQuant, `[n1, n2]`: `p1 · (x · p2)`, codes of four bits and their scale.
pub(crate) fn kronecker(
    x: &[f32],
    (p1, p2): (&[f32], &[f32]),
    (n1, n2): (usize, usize),
    clip: f64,
    between: Model,
    codes: &mut [i32],
) -> f32 {
    let mut first = vec![0.0_f32; n1 * n2];
    for i in 0..n1 {
        for j in 0..n2 {
            let sum = (0..n2).fold(0.0_f32, |sum, l| sum + x[i * n2 + l] * p2[l * n2 + j]);
            first[i * n2 + j] = between.round(sum);
        }
    }
    let mut second = vec![0.0_f32; n1 * n2];
    for i in 0..n1 {
        for j in 0..n2 {
            second[i * n2 + j] = (0..n1).fold(0.0_f32, |sum, l| sum + p1[i * n1 + l] * first[l * n2 + j]);
        }
    }
    let largest = second.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let scale = largest / (7.0 / clip) as f32;
    for (code, x) in codes.iter_mut().zip(&second) {
        *code = cast((x / scale).round_ties_even(), ends(true));
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_rows_of_the_documents() {
        let mut codes = [0; 4];
        // Half to even, and the two formulas of the scale.
        let scale = symmetric(&[127.0, 0.5, 1.5, -2.5], false, (false, f32::INFINITY), &mut codes);
        assert_eq!((codes, scale), ([127, 0, 2, -2], 127.0 * (1.0 / 127.0_f32)));
        let row = [0.37_f32, -0.1, 0.2, 0.3];
        assert_eq!(symmetric(&row, false, (true, f32::INFINITY), &mut codes), 1.0 / (127.0_f32 / 0.37));
        assert_eq!(symmetric(&row, false, (false, f32::INFINITY), &mut codes), 0.37 * (1.0 / 127.0_f32));
        // Zeros: no guard, 0 · inf is NaN, which becomes 0.
        assert_eq!((symmetric(&[0.0; 4], false, (false, f32::INFINITY), &mut codes), codes), (0.0, [0; 4]));
        assert_eq!((symmetric(&[0.0; 4], false, (true, f32::INFINITY), &mut codes), codes), (0.0, [0; 4]));
        // Saturated, 127/0 is the largest number, and codes are 0 all the same.
        assert_eq!((symmetric(&[0.0; 4], false, (false, f32::MAX), &mut codes), codes), (0.0, [0; 4]));
        assert_eq!(
            (symmetric(&[0.0; 4], false, (true, f32::MAX), &mut codes), codes),
            (1.0 / f32::MAX, [0; 4])
        );
        symmetric(&[7.0, 2.5, -3.5, -7.0], true, (false, f32::INFINITY), &mut codes);
        assert_eq!(codes, [7, 2, -4, -7]);
        let (scale, offset) = asymmetric(&[0.0, 255.0, 127.0, 1.0], false, &mut codes);
        assert_eq!((scale, offset, codes), (1.0, -128.0, [-128, 127, -1, -127]));
        let (scale, _) = asymmetric(&[3.0; 4], true, &mut codes);
        assert_eq!(scale, 1e-12);
    }

    #[test]
    fn fixed_scales_multiply() {
        assert_eq!(fixed(3.0, 0.5, 0.0, Rounding::Even, false), 2);
        assert_eq!(fixed(5.0, 0.5, 0.0, Rounding::Even, false), 2);
        assert_eq!(fixed(5.0, 0.5, 0.0, Rounding::Ceil, false), 3);
        assert_eq!(fixed(-5.0, 0.5, 0.0, Rounding::Floor, false), -3);
        assert_eq!(fixed(-5.0, 0.5, 0.0, Rounding::Trunc, false), -2);
        assert_eq!(
            (fixed(1e9, 1.0, 0.0, Rounding::Even, false), fixed(-99.0, 1.0, 0.0, Rounding::Even, true)),
            (127, -8)
        );
        assert_eq!(anti(5, 0.5, -3.0), 1.0);
        assert_eq!(dequantized(3, 0.1, 0.0, Model::Bf16), bf16::from_f32(0.1 * 3.0).to_f32());
    }

    /// `x · p2` first, then `p1` times that.
    #[test]
    fn kronecker_products_in_their_order() {
        let mut codes = [0; 4];
        // p2 swaps columns, p1 doubles the first row.
        let (p1, p2) = ([2.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]);
        let scale = kronecker(&[0.9, 2.0, 3.0, 3.5], (&p1, &p2), (2, 2), 1.0, Model::F32, &mut codes);
        assert_eq!((scale, codes), (4.0 / 7.0, [7, 3, 6, 5]));
        let scale = kronecker(&[0.9, 2.0, 3.0, 3.5], (&p1, &p2), (2, 2), 0.5, Model::F32, &mut codes);
        assert_eq!((scale, codes), (4.0 / 14.0, [7, 6, 7, 7]));
    }
}
