//! Folding scales into the operator before a unit, without changing the function of the block.

use super::ID;
use crate::{HeadTie, MethodError, folding};
use ndarray::{Array1, Array2, ArrayView1, ArrayViewMut1, ArrayViewMut2};
use quant_core::FloatType;
use std::ops::Range;

/// Norm to linears: `γ ← γ/c`, `W ← W · c` per column. `scales` and `norm` are `[in]`, `weights` `[out, in]`.
///
/// The divided norm is rounded to the type the folder stores norms in, and the columns take the
/// factor that rounding really produced, which is given back, `[in]`: the inputs of the linears were divided by it.
///
/// # Errors
/// Channel counts that differ; a scale that is not a positive finite number.
pub fn divide_norm(
    scales: ArrayView1<'_, f32>,
    norm: &mut Array1<f32>,
    weights: &mut [&mut Array2<f32>],
    norm_type: FloatType,
) -> Result<Array1<f32>, MethodError> {
    folding::check(ID, scales)?;
    folding::divide_norm(ID, scales, norm, weights, norm_type)
}

/// Linear to linears (v to o, up to down): rows and bias of the linear before are divided by `c`, columns of the linears
/// after it multiplied.
///
/// `scales` is `c`, `[in]` of `next`; `rows` are the rows of `previous` `[out, in]` whose outputs `next` reads: all of them, or the
/// values of a weight that holds queries, keys and values. With a `tie` there are as many rows as channels over value
/// heads, and each takes the scale its query heads share. `bias` is `[out]` of `previous`. Nothing is rounded to a storage type:
/// both weights are quantised afterwards.
///
/// ```
/// use quant_methods::awq::divide_rows;
/// use quant_methods::ndarray::array;
///
/// let (mut up, mut down) = (array![[2.0_f32, 4.0], [6.0, 8.0]], array![[1.0_f32, 1.0]]);
/// divide_rows(array![2.0, 0.5].view(), None, up.view_mut(), 0..2, None, &mut [&mut down])?;
/// assert_eq!((up, down), (array![[1.0, 2.0], [12.0, 16.0]], array![[2.0, 0.5]]));
/// # Ok::<(), quant_methods::MethodError>(())
/// ```
///
/// # Errors
/// Counts that do not fit; a scale that is not a positive finite number; scales that differ between tied heads. Then nothing
/// has been changed.
pub fn divide_rows(
    scales: ArrayView1<'_, f32>,
    tie: Option<HeadTie>,
    previous: ArrayViewMut2<'_, f32>,
    rows: Range<usize>,
    bias: Option<ArrayViewMut1<'_, f32>>,
    next: &mut [&mut Array2<f32>],
) -> Result<(), MethodError> {
    folding::divide_rows(ID, scales, tie, previous, rows, bias, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn rows_of_a_fused_weight_and_its_bias() {
        let mut fused = array![[1.0_f32, 1.0], [2.0, 2.0], [3.0, 3.0]];
        let mut bias = array![1.0_f32, 4.0, 8.0];
        let mut next = array![[1.0_f32, 1.0, 1.0, 1.0]];
        let tie = HeadTie { heads: 4, kv_heads: 2, head_dim: 1 };
        let c = array![2.0, 2.0, 4.0, 4.0];
        divide_rows(c.view(), Some(tie), fused.view_mut(), 1..3, Some(bias.view_mut()), &mut [&mut next])
            .unwrap();
        assert_eq!(fused, array![[1.0, 1.0], [1.0, 1.0], [0.75, 0.75]]);
        assert_eq!(bias, array![1.0, 2.0, 2.0]);
        assert_eq!(next, array![[2.0, 2.0, 4.0, 4.0]]);
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let tie = Some(HeadTie { heads: 4, kv_heads: 2, head_dim: 1 });
        let cases = [
            (array![1.0, 2.0], None, 0..3, 3, 2, "the rows to divide has 3 channels, expected 2"),
            (array![1.0, 2.0], None, 2..4, 3, 2, "rows are divided has 3 channels, expected 4"),
            (array![1.0, 2.0], None, 0..2, 2, 2, "its bias has 2 channels, expected 3"),
            (array![1.0, 2.0], None, 0..2, 3, 3, "a weight has 3 channels, expected 2"),
            (array![1.0, 0.0], None, 0..2, 3, 2, "0 in channel 1"),
            (array![1.0, f32::NAN], None, 0..2, 3, 2, "the scale of channel 1 is NaN"),
            (array![1.0, 2.0, 3.0, 3.0], tie, 0..2, 3, 4, "another one in channel 0"),
        ];
        for (c, tie, rows, bias, columns, message) in cases {
            let mut previous = Array2::<f32>::ones((3, 2));
            let (mut bias, mut next) = (Array1::<f32>::ones(bias), Array2::<f32>::ones((2, columns)));
            let result = divide_rows(
                c.view(),
                tie,
                previous.view_mut(),
                rows,
                Some(bias.view_mut()),
                &mut [&mut next],
            );
            let error = result.unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
            assert!(previous.iter().chain(&bias).chain(&next).all(|&v| v == 1.0));
        }
    }

    #[test]
    fn a_norm_that_does_not_fit_names_this_method() {
        let error = divide_norm(
            array![1.0, 2.0].view(),
            &mut Array1::ones(3),
            &mut [&mut Array2::ones((1, 2))],
            FloatType::F32,
        );
        assert_eq!(error.unwrap_err().to_string(), "awq: the norm has 3 channels, expected 2");
    }
}
