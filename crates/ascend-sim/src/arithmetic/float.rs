//! Products of floats: Mm, and WeightQuantBatchMatmul.

use super::quantize::Model;

/// A number of 32 bits as HF32 sees it: eleven bits of mantissa, half up in magnitude.
pub(crate) fn hf32(x: f32) -> f32 {
    f32::from_bits(((x.to_bits() >> 11).wrapping_add(1) >> 1) << 12)
}

/// Of so many elements of `k` the products are one sum; the sums of such pieces are added behind each other.
pub(crate) const PIECE: usize = 256;

/// `[m, k] · [k, n]` with both operands row-major, added in f32: in the order of `k` within a piece, and piece after piece, the last one
/// first where `backwards` says so. Products of 16-bit numbers are exact (but where bf16 goes below 2^-126).
pub(crate) fn product(a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize), backwards: bool) -> Vec<f32> {
    let mut out = vec![0.0_f32; m * n];
    let pieces = k.div_ceil(PIECE);
    for (i, out) in out.chunks_mut(n.max(1)).enumerate() {
        let mut sums = vec![0.0_f32; n];
        for step in 0..pieces {
            let piece = if backwards { pieces - 1 - step } else { step };
            sums.fill(0.0);
            for l in piece * PIECE..k.min((piece + 1) * PIECE) {
                let x = a[i * k + l];
                sums.iter_mut().zip(&b[l * n..(l + 1) * n]).for_each(|(sum, w)| *sum += x * w);
            }
            out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = if step == 0 { *sum } else { *out + sum });
        }
    }
    out
}

/// What Mm does to its inputs before the product, by `cubeMathType`; none if the type may not be combined with it.
pub(crate) fn prepared(x: &[f32], model: Model, cube: i8) -> Option<Vec<f32>> {
    let all = |round: &dyn Fn(f32) -> f32| Some(x.iter().map(|&x| round(x)).collect());
    match (cube, model) {
        (0 | 4, _) => Some(x.to_vec()),
        (1 | 3, Model::F32) => all(&hf32),
        (1 | 3, _) => Some(x.to_vec()),
        (2, Model::Bf16) => None,
        (2, _) => all(&|x| Model::F16.round(x)),
        _ => None,
    }
}

/// Digits that a row becomes on the way of few rows: the factor of the first and what each further one is finer by, and how many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Digits {
    first: f32,
    step: f32,
    count: usize,
}

impl Digits {
    /// Two of eight bits.
    pub(crate) const EIGHT: Self = Self { first: 127.499, step: 2.0 * 127.499, count: 2 };
    /// Three of four bits.
    pub(crate) const FOUR: Self = Self { first: 7.49, step: 14.98, count: 3 };

    /// The digits of a number between −1 and 1, the coarsest first.
    fn of(self, x: f32) -> impl Iterator<Item = i32> {
        let mut rest = x * self.first;
        (0..self.count).map(move |_| {
            let digit = rest.round_ties_even();
            rest = (rest - digit) * self.step;
            digit as i32
        })
    }
}

/// The way of few rows: a row divided by its largest magnitude becomes digits, whose products with whole weights `[k, n]` are exact.
/// Returns the row's products `[groups, n]` of groups of so many elements, before the scales; rounded half away from zero by the caller.
pub(crate) fn digits_product(row: &[f32], codes: &[i32], n: usize, group: usize, digits: Digits) -> Vec<f32> {
    let groups = row.len().div_ceil(group);
    let mut out = vec![0.0; groups * n];
    let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    if largest == 0.0 {
        return out;
    }
    let mut sums = vec![0_i32; digits.count * groups * n];
    for (l, &x) in row.iter().enumerate() {
        for (at, digit) in digits.of(x / largest).enumerate() {
            let into = (at * groups + l / group) * n;
            let sums = sums[into..into + n].iter_mut().zip(&codes[l * n..(l + 1) * n]);
            sums.for_each(|(sum, code)| *sum += digit * code);
        }
    }
    let mut unit = digits.first;
    for of_digit in sums.chunks(groups * n) {
        out.iter_mut().zip(of_digit).for_each(|(out, &sum)| *out += sum as f32 / unit);
        unit *= digits.step;
    }
    out.iter_mut().for_each(|x| *x *= largest);
    out
}

/// Rounds to a type of 16 bits, halves away from zero.
pub(crate) fn half_away(x: f32, model: Model) -> f32 {
    let near = model.round(x);
    // Only a tie that went to the nearer zero is different.
    let beyond = model.round(x + (x - near));
    if near.abs() < x.abs() && (x - near).abs() == (beyond - x).abs() && beyond.abs() > near.abs() {
        beyond
    } else {
        near
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_hf32() {
        let power = |e: i32| 1.0 + 2.0_f32.powi(e);
        assert_eq!(hf32(power(-12)), power(-11));
        assert_eq!(hf32(power(-13)), 1.0);
        assert_eq!(hf32(std::f32::consts::PI), 3.141_601_6);
        assert_eq!(prepared(&[1.0 + 2.0_f32.powi(-13)], Model::F32, 1).unwrap(), [1.0]);
        assert!(prepared(&[1.0], Model::Bf16, 2).is_none());
        assert_eq!(product(&[1.0, 2.0], &[3.0, 4.0, 5.0, 6.0], (1, 2, 2), false), [13.0, 16.0]);
        // 2^24 swallows a 1, twice, and not their sum.
        let mut x = vec![0.0; 2 * PIECE + 1];
        (x[0], x[PIECE], x[2 * PIECE]) = (2.0_f32.powi(24), 1.0, 1.0);
        let sum = |backwards| product(&x, &vec![1.0; x.len()], (1, x.len(), 1), backwards)[0];
        assert_eq!([sum(false), sum(true)], [16_777_216.0, 16_777_218.0]);
    }

    #[test]
    fn two_digits_carry_fifteen_bits() {
        let row: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
        let codes: Vec<i32> = (0..64).map(|i| i * 37 % 255 - 127).collect();
        let exact: f64 = row.iter().zip(&codes).map(|(&x, &c)| f64::from(x) * f64::from(c)).sum();
        let got = f64::from(digits_product(&row, &codes, 1, 64, Digits::EIGHT)[0]);
        assert!((got - exact).abs() < 64.0 * 127.0 / (127.0 * 127.0 * 2.0), "{got} {exact}");
        assert_eq!(digits_product(&[0.0; 2], &[1, 2], 1, 2, Digits::EIGHT), [0.0]);
    }

    /// 7.49 and 14.98: a half is 3.745, four less 0.255, of which 14.98 parts are 3.82, and so on.
    #[test]
    fn three_digits_of_four_bits() {
        assert_eq!(Digits::FOUR.of(1.0).collect::<Vec<_>>(), [7, 7, 5]);
        assert_eq!(Digits::FOUR.of(-0.5).collect::<Vec<_>>(), [-4, 4, -3]);
        assert_eq!(Digits::EIGHT.of(1.0).collect::<Vec<_>>(), [127, 127]);
        let row: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
        let codes: Vec<i32> = (0..64).map(|i| i * 5 % 16 - 8).collect();
        let got = digits_product(&row, &codes, 1, 32, Digits::FOUR);
        for (got, at) in got.iter().zip([0..32, 32..64]) {
            let exact: f64 = at.map(|l| f64::from(row[l]) * f64::from(codes[l])).sum();
            // Half of the last digit for each element.
            assert!(
                (f64::from(*got) - exact).abs() < 32.0 * 8.0 * 0.5 / (7.49 * 14.98 * 14.98),
                "{got} {exact}"
            );
        }
    }
}
