//! Folding scales into the operator before a unit, without changing the function of the block.

use super::{HeadTie, ID, channels, refused};
use crate::{MethodError, smoothquant};
use ndarray::{Array1, Array2, ArrayView1, ArrayViewMut1, ArrayViewMut2};
use quant_core::FloatType;
use std::ops::Range;

/// Norm to linears: `γ ← γ/c`, `W ← W · c` per column. `scales` and `norm` are `[in]`, `weights` `[out, in]`.
///
/// As [`smoothquant::apply`]: the divided norm is rounded to the type the folder stores norms in, and the columns take the
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
    check(scales)?;
    smoothquant::apply(scales, norm, weights, norm_type).map_err(|error| match error {
        MethodError::Channels { what, expected, found, .. } => channels(what, expected, found),
        other => other,
    })
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
    mut previous: ArrayViewMut2<'_, f32>,
    rows: Range<usize>,
    bias: Option<ArrayViewMut1<'_, f32>>,
    next: &mut [&mut Array2<f32>],
) -> Result<(), MethodError> {
    check(scales)?;
    let divisors = match tie {
        None => scales.to_owned(),
        Some(tie) => {
            let reduced = tie.reduce(scales)?;
            if let Some(channel) = tie.expand(reduced.view())?.iter().zip(scales).position(|(a, b)| a != b) {
                return Err(refused(
                    "tied scales of AWQ",
                    "equal scales over the query heads of a value head",
                    format!("another one in channel {channel}"),
                ));
            }
            reduced
        }
    };
    if rows.len() != divisors.len() {
        return Err(channels("the rows to divide", divisors.len(), rows.len()));
    }
    if rows.end > previous.nrows() {
        return Err(channels("the weight whose rows are divided", rows.end, previous.nrows()));
    }
    if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != previous.nrows()) {
        return Err(channels("its bias", previous.nrows(), bias.len()));
    }
    if let Some(weight) = next.iter().find(|w| w.ncols() != scales.len()) {
        return Err(channels("a weight", scales.len(), weight.ncols()));
    }
    for (&c, row) in divisors.iter().zip(rows.clone()) {
        previous.row_mut(row).mapv_inplace(|w| w / c);
    }
    if let Some(mut bias) = bias {
        for (&c, row) in divisors.iter().zip(rows) {
            bias[row] /= c;
        }
    }
    for weight in next {
        for mut row in weight.rows_mut() {
            row *= &scales;
        }
    }
    Ok(())
}

/// Scales must be divisors.
fn check(scales: ArrayView1<'_, f32>) -> Result<(), MethodError> {
    match scales.iter().enumerate().find(|(_, c)| !(c.is_finite() && **c > 0.0)) {
        None => Ok(()),
        Some((channel, &value)) if value.is_finite() => {
            Err(refused("scales of AWQ", "positive numbers", format!("{value} in channel {channel}")))
        }
        Some((channel, &value)) => {
            Err(MethodError::NotFinite { method: ID, what: "the scale", channel, value })
        }
    }
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
