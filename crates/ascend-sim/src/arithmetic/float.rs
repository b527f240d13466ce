//! Products of floats: Mm, and WeightQuantBatchMatmul.

use super::quantize::Model;

/// A number of 32 bits as HF32 sees it: eleven bits of mantissa, half up in magnitude.
pub(crate) fn hf32(x: f32) -> f32 {
    f32::from_bits(((x.to_bits() >> 11).wrapping_add(1) >> 1) << 12)
}

/// `[m, k] · [k, n]` with both operands row-major: exact products of 16-bit numbers, sums in f32 in the order of `k`.
pub(crate) fn product(a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize)) -> Vec<f32> {
    let mut out = vec![0.0_f32; m * n];
    for i in 0..m {
        for l in 0..k {
            let x = a[i * k + l];
            for j in 0..n {
                out[i * n + j] += x * b[l * n + j];
            }
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

/// The way of few rows: a row divided by its largest magnitude becomes two digits of eight bits, whose products with whole
/// weights are exact. Returns the row's products before the scales of the channels, rounded half away from zero by the caller.
pub(crate) fn digits_product(row: &[f32], codes: &[i32], n: usize) -> Vec<f32> {
    const FIRST: f32 = 127.499;
    let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let mut out = vec![0.0; n];
    if largest == 0.0 {
        return out;
    }
    let scaled: Vec<f32> = row.iter().map(|x| x / largest * FIRST).collect();
    let high: Vec<i32> = scaled.iter().map(|x| x.round_ties_even() as i32).collect();
    let low: Vec<i32> = scaled
        .iter()
        .zip(&high)
        .map(|(x, &h)| ((x - h as f32) * 2.0 * FIRST).round_ties_even() as i32)
        .collect();
    for j in 0..n {
        let sum =
            |digits: &[i32]| digits.iter().enumerate().map(|(l, d)| d * codes[l * n + j]).sum::<i32>() as f32;
        out[j] = (sum(&high) / FIRST + sum(&low) / (FIRST * FIRST * 2.0)) * largest;
    }
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
        assert_eq!(product(&[1.0, 2.0], &[3.0, 4.0, 5.0, 6.0], (1, 2, 2)), [13.0, 16.0]);
    }

    #[test]
    fn two_digits_carry_fifteen_bits() {
        let row: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
        let codes: Vec<i32> = (0..64).map(|i| i * 37 % 255 - 127).collect();
        let exact: f64 = row.iter().zip(&codes).map(|(&x, &c)| f64::from(x) * f64::from(c)).sum();
        let got = f64::from(digits_product(&row, &codes, 1)[0]);
        assert!((got - exact).abs() < 64.0 * 127.0 / (127.0 * 127.0 * 2.0), "{got} {exact}");
        assert_eq!(digits_product(&[0.0; 2], &[1, 2], 1), [0.0]);
    }
}
