//! QuantMatmul.

/// Exact sums of products of codes `[m, k]` and `[k, n]` (the latter stored `[n, k]`), wrapping at 32 bits.
pub(crate) fn sums(x: &[i32], weight: &[i32], (m, k, n): (usize, usize, usize)) -> Vec<i32> {
    let mut out = vec![0_i32; m * n];
    for i in 0..m {
        for j in 0..n {
            let (row, column) = (&x[i * k..(i + 1) * k], &weight[j * k..(j + 1) * k]);
            out[i * n + j] = row.iter().zip(column).fold(0_i32, |sum, (a, b)| sum.wrapping_add(a * b));
        }
    }
    out
}

/// The order of the two multiplications behind a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Association {
    /// `((f32)sum · scale) · pertoken + bias`
    ScaleFirst,
    /// `(f32)sum · (pertoken · scale) + bias`
    ScalesFirst,
}

/// The vector unit's end of a product: f32 throughout.
pub(crate) fn vector_end(sum: i32, scale: f32, token: Option<f32>, bias: f32, order: Association) -> f32 {
    let sum = sum as f32;
    let scaled = match (token, order) {
        (None, _) => sum * scale,
        (Some(token), Association::ScaleFirst) => sum * scale * token,
        (Some(token), Association::ScalesFirst) => sum * (token * scale),
    };
    scaled + bias
}

/// The fix-pipe's end of a product with codes as outputs: rounded, held in nine signed bits, the offset added, held in eight.
pub(crate) fn fixpipe_code(sum: i32, scale: f32, offset: i32) -> i32 {
    let rounded = (sum as f32 * scale).round_ties_even();
    let nine = if rounded.is_nan() { 0 } else { rounded.clamp(-256.0, 255.0) as i32 };
    (nine + offset).clamp(-128, 127)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_and_the_ends() {
        assert_eq!(sums(&[1, 2, 3, 4], &[1, 1, -1, 2], (2, 2, 2)), [3, 3, 7, 5]);
        let (scale, token) = (0.1_f32, 0.7_f32);
        assert_eq!(
            vector_end(12_345, scale, Some(token), 0.0, Association::ScaleFirst),
            12_345.0 * scale * token
        );
        assert_eq!(
            vector_end(12_345, scale, Some(token), 0.0, Association::ScalesFirst),
            12_345.0 * (token * scale)
        );
        // A whole number beyond 24 bits is rounded to even as it becomes a float.
        assert_eq!(vector_end((1 << 24) + 1, 1.0, None, 0.0, Association::ScaleFirst), 16_777_216.0);
        assert_eq!([1, 3, 5, 1000, -1000].map(|sum| fixpipe_code(sum, 0.5, 0)), [0, 2, 2, 127, -128]);
        // Nine bits first: 1000 becomes 255 before the offset is added.
        assert_eq!(fixpipe_code(1000, 1.0, -200), 55);
        assert_eq!(fixpipe_code(-1000, 1.0, 200), -56);
        assert_eq!(fixpipe_code(1, f32::NAN, 3), 3);
    }

    /// Of 131072 inputs, the fewest that can leave 32 bits.
    #[test]
    fn sums_wrap_like_32_bits() {
        let k = 1 << 17;
        let (x, w) = (vec![-128; k], vec![-128; k]);
        assert_eq!(sums(&x, &w, (1, k, 1)), [i32::MIN]);
    }
}
