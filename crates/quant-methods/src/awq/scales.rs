//! The candidate scales of a ratio.

use super::{ID, refused};
use crate::{HeadTie, MethodError};
use ndarray::{Array1, ArrayView1};
use quant_core::elementary::pow_f32;

/// Lower bound on `m^r`, so that a channel that never speaks keeps a scale.
const FLOOR: f32 = 1e-4;

/// The scales of ratio `r`, `[in]`: `c = max(m^r, 1e-4)`, divided by `sqrt(max c · min c)` so that its extremes are inverse to
/// each other.
///
/// `mean_abs` is `m`, the mean `|x_j|` of every channel over the calibration tokens, `[in]`. With a `tie` it is averaged over
/// the query heads of each value head first, and `c` is equal over them. Ratio 0 gives ones.
///
/// ```
/// use quant_methods::awq::candidate;
/// use quant_methods::ndarray::array;
///
/// let mean = array![4.0_f32, 1.0, 0.25];
/// assert_eq!(candidate(mean.view(), 0.5, None)?, array![2.0, 1.0, 0.5]);
/// assert_eq!(candidate(mean.view(), 0.0, None)?, array![1.0, 1.0, 1.0]);
/// # Ok::<(), quant_methods::MethodError>(())
/// ```
///
/// # Errors
/// A mean that is not finite or negative, by channel; a tie that does not fit.
pub fn candidate(
    mean_abs: ArrayView1<'_, f32>,
    ratio: f32,
    tie: Option<HeadTie>,
) -> Result<Array1<f32>, MethodError> {
    if let Some((channel, &value)) = mean_abs.iter().enumerate().find(|(_, m)| !m.is_finite()) {
        return Err(MethodError::NotFinite { method: ID, what: "the mean activation", channel, value });
    }
    if let Some((channel, value)) = mean_abs.iter().enumerate().find(|(_, m)| **m < 0.0) {
        return Err(refused(
            "mean activations of AWQ",
            "means of absolute values",
            format!("{value} in channel {channel}"),
        ));
    }
    let powers = |mean: ArrayView1<'_, f32>| mean.mapv(|m| pow_f32(m, ratio).max(FLOOR));
    let mut c = match tie {
        None => powers(mean_abs),
        Some(tie) => tie.expand(powers(tie.reduce(mean_abs)?.view()).view())?,
    };
    let (min, max) = c.iter().fold((f32::INFINITY, 0.0_f32), |(min, max), &c| (min.min(c), max.max(c)));
    // In f64, where the product of two finite f32 is finite.
    let middle = (f64::from(max) * f64::from(min)).sqrt() as f32;
    c.mapv_inplace(|c| c / middle);
    Ok(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;

    #[test]
    fn bad_means_are_named_by_channel() {
        for bad in [f32::NAN, f32::INFINITY] {
            let error = candidate(array![1.0, bad].view(), 0.5, None).unwrap_err().to_string();
            assert!(error.contains("mean activation of channel 1"), "{error}");
        }
        let error = candidate(array![1.0, 2.0, -1.0].view(), 0.5, None).unwrap_err().to_string();
        assert!(error.contains("-1 in channel 2"), "{error}");
    }

    #[test]
    fn a_silent_channel_keeps_a_finite_scale() {
        let c = candidate(array![0.0, 1.0, 100.0].view(), 0.95, None).unwrap();
        assert!(c.iter().all(|c| c.is_finite() && *c > 0.0), "{c}");
        assert_eq!(candidate(array![0.0, 0.0].view(), 0.5, None).unwrap(), array![1.0, 1.0]);
    }

    proptest! {
        #[test]
        fn extremes_are_inverse_and_equal_channels_give_one(
            mean in prop::collection::vec(0.0_f32..1e4, 1..40), k in 0_usize..20, level in 1e-6_f32..1e6,
        ) {
            let ratio = k as f32 / 20.0;
            let c = candidate(Array1::from(mean.clone()).view(), ratio, None).unwrap();
            let (min, max) = c.iter().fold((f32::INFINITY, 0.0_f32), |(a, b), &c| (a.min(c), b.max(c)));
            prop_assert!((f64::from(min) * f64::from(max) - 1.0).abs() < 1e-5);
            if k == 0 {
                prop_assert!(c.iter().all(|&c| c == 1.0));
            }
            let equal = candidate(Array1::from_elem(mean.len(), level).view(), ratio, None).unwrap();
            prop_assert!(equal.iter().all(|&c| (c - 1.0).abs() < 1e-6));
        }

        #[test]
        fn tied_scales_are_equal_over_query_heads_and_reduce_exactly(
            kv_heads in 1_usize..4, shared in 1_usize..8, head_dim in 1_usize..6, seed in any::<u64>(), k in 0_usize..20,
        ) {
            let tie = HeadTie { heads: kv_heads * shared, kv_heads, head_dim };
            let mut numbers = quant_testkit::Numbers::new(seed);
            let mean = numbers.vector(tie.heads * head_dim, 1.0, 1.0);
            let c = candidate(mean.view(), k as f32 / 20.0, Some(tie)).unwrap();
            let reduced = tie.reduce(c.view()).unwrap();
            prop_assert_eq!(tie.expand(reduced.view()).unwrap(), c.clone());
            if shared == 1 {
                prop_assert_eq!(c, candidate(mean.view(), k as f32 / 20.0, None).unwrap());
            }
        }
    }
}
