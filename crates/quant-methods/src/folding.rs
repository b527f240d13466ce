//! Moving a scale per channel from one operator into another: what all transforms that scale channels have in common.

use crate::{BlockContext, MethodError};
use ndarray::{Array1, Array2, ArrayView1, ArrayViewMut1, ArrayViewMut2};
use quant_core::{CoreError, FloatType};
use quant_graph::{BlockParams, EdgeSource, LinearId, LinearParams, LinearWeight, ScaleEdge};
use std::collections::BTreeMap;
use std::ops::Range;

/// The heads of grouped-query attention, where the scales between v and o are tied: a row of v feeds one channel of every
/// query head of its group, so those channels of o must have one scale.
///
/// Channels of o are `[heads · head_dim]`, rows of v `[kv_heads · head_dim]`; query head `h` reads the values of head
/// `h / (heads / kv_heads)`. With `kv_heads = heads` nothing is tied.
///
/// ```
/// use quant_methods::HeadTie;
/// use quant_methods::ndarray::array;
///
/// let tie = HeadTie { heads: 4, kv_heads: 2, head_dim: 1 };
/// let values = tie.reduce(array![1.0_f32, 3.0, 10.0, 20.0].view())?;
/// assert_eq!(values, array![2.0, 15.0]);
/// assert_eq!(tie.expand(values.view())?, array![2.0, 2.0, 15.0, 15.0]);
/// # Ok::<(), quant_methods::MethodError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadTie {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl HeadTie {
    /// The tie of an edge whose site has `width` channels, where it has one.
    #[must_use]
    pub fn of(edge: &ScaleEdge, width: usize) -> Option<Self> {
        let (heads, kv_heads) = edge.heads?;
        Some(Self { heads, kv_heads, head_dim: width / heads.max(1) })
    }
    /// The mean over the query heads of each value head: `[heads · head_dim]` to `[kv_heads · head_dim]`.
    ///
    /// The inverse of [`Self::expand`] without rounding: the mean of equal numbers, summed in f64, is that number.
    ///
    /// # Errors
    /// Another number of channels, or heads that do not divide.
    pub fn reduce(self, values: ArrayView1<'_, f32>) -> Result<Array1<f32>, MethodError> {
        let shared = self.shared()?;
        self.merge(values, |of_heads| {
            let sum: f64 = of_heads.map(f64::from).sum();
            (sum / shared as f64) as f32
        })
    }
    /// The largest over the query heads of each value head: `[heads · head_dim]` to `[kv_heads · head_dim]`.
    ///
    /// # Errors
    /// As [`Self::reduce`].
    pub fn largest(self, values: ArrayView1<'_, f32>) -> Result<Array1<f32>, MethodError> {
        self.merge(values, |of_heads| of_heads.fold(f32::NEG_INFINITY, f32::max))
    }
    /// Merges the values that the query heads of a value head have in a channel.
    fn merge(
        self,
        values: ArrayView1<'_, f32>,
        merge: impl Fn(&mut dyn Iterator<Item = f32>) -> f32,
    ) -> Result<Array1<f32>, MethodError> {
        let (shared, dim) = (self.shared()?, self.head_dim);
        if values.len() != self.heads * dim {
            return Err(shape("an array over query heads", self.heads * dim, values.len()));
        }
        Ok(Array1::from_shape_fn(self.kv_heads * dim, |i| {
            let first = i / dim * shared * dim + i % dim;
            merge(&mut (0..shared).map(|h| values[first + h * dim]))
        }))
    }
    /// Every value head repeated for its query heads: `[kv_heads · head_dim]` to `[heads · head_dim]`.
    ///
    /// # Errors
    /// Another number of channels, or heads that do not divide.
    pub fn expand(self, values: ArrayView1<'_, f32>) -> Result<Array1<f32>, MethodError> {
        let (shared, dim) = (self.shared()?, self.head_dim);
        if values.len() != self.kv_heads * dim {
            return Err(shape("an array over value heads", self.kv_heads * dim, values.len()));
        }
        Ok(Array1::from_shape_fn(self.heads * dim, |i| values[i / dim / shared * dim + i % dim]))
    }
    /// Query heads per value head.
    fn shared(self) -> Result<usize, MethodError> {
        let Self { heads, kv_heads, head_dim } = self;
        if heads == 0 || kv_heads == 0 || head_dim == 0 || heads % kv_heads != 0 {
            return Err(refused(
                "tied heads",
                "a positive number of query heads that value heads divide",
                format!("{heads} query heads, {kv_heads} value heads of width {head_dim}"),
            ));
        }
        Ok(heads / kv_heads)
    }
}

/// Folds the scales `c` of an edge into what is before it and the linears after it; gives what the inputs there were divided
/// by, `[in]`. All float weights of the site take part, those that stay float too.
///
/// # Errors
/// As the two kinds of edges; a part that the block lacks.
pub(crate) fn fold(
    method: &'static str,
    edge: &ScaleEdge,
    scales: Array1<f32>,
    block: &mut BlockParams,
    context: &BlockContext<'_>,
) -> Result<Array1<f32>, MethodError> {
    let missing = |what| MethodError::missing(method, what);
    let tie = HeadTie::of(edge, scales.len());
    let fed = context.block.at(edge.to);
    match edge.from {
        EdgeSource::Norm(norm) => {
            let norm = block.norms.get_mut(&norm).ok_or_else(|| missing("the norm before a site"))?;
            let mut weights = floats(&mut block.linears, fed);
            check(method, scales.view())?;
            divide_norm(method, scales.view(), norm, &mut weights, context.norm_type)
        }
        EdgeSource::Rows { linear, first } => {
            let mut before =
                block.linears.remove(&linear).ok_or_else(|| missing("the linear before a site"))?;
            let rows = tie.map_or(scales.len(), |tie| tie.kv_heads * tie.head_dim);
            let result = match &mut before.weight {
                LinearWeight::Float(weight) => {
                    let bias = before.bias.as_mut().map(|b| b.view_mut());
                    let mut weights = floats(&mut block.linears, fed);
                    divide_rows(
                        method,
                        scales.view(),
                        tie,
                        weight.view_mut(),
                        first..first + rows,
                        bias,
                        &mut weights,
                    )
                }
                LinearWeight::Quantized(_) | LinearWeight::Binary(_) => {
                    Err(missing("a float weight before a site"))
                }
            };
            block.linears.insert(linear, before);
            result.map(|()| scales)
        }
    }
}

/// Norm to linears: `γ ← γ/c`, `W ← W · c` per column. `factors` is `c`, `norm` `γ`, both `[in]`, `weights` `[out, in]`.
///
/// `norm_type` is what the folder will store norms in. The divided norm is rounded to it first and the columns take the
/// factor that rounding really produced, `γ / γ'`, so the block's function is kept however coarse the type. A norm entry
/// that would leave the type's range keeps its channel unscaled. Gives the factors that the columns really took, `[in]`.
///
/// # Errors
/// Channel counts that differ, in the name of `method`.
pub(crate) fn divide_norm(
    method: &'static str,
    factors: ArrayView1<'_, f32>,
    norm: &mut Array1<f32>,
    weights: &mut [&mut Array2<f32>],
    norm_type: FloatType,
) -> Result<Array1<f32>, MethodError> {
    let n = factors.len();
    let wrong = |what: &str, found| channels(method, what, n, found);
    if norm.len() != n {
        return Err(wrong("the norm", norm.len()));
    }
    if let Some(weight) = weights.iter().find(|w| w.ncols() != n) {
        return Err(wrong("a weight", weight.ncols()));
    }
    let mut columns = Array1::<f32>::ones(n);
    for j in 0..n {
        let gamma = norm[j];
        let divided = norm_type.round(gamma / factors[j]);
        if norm_type == FloatType::F32 {
            columns[j] = factors[j];
            norm[j] = divided;
        } else if gamma == 0.0 {
            // The channel carries nothing through the norm: any factor keeps the function.
            columns[j] = factors[j];
        } else if divided.is_finite() && divided != 0.0 {
            columns[j] = gamma / divided;
            norm[j] = divided;
        }
    }
    for weight in weights {
        for mut row in weight.rows_mut() {
            row *= &columns;
        }
    }
    Ok(columns)
}

/// Linear to linears: rows `rows` of `previous` `[out, in]` and of its `bias` `[out]` are divided by `c`, columns of the linears
/// after it multiplied. With a `tie` there are as many rows as channels over value heads, and each takes the scale its
/// query heads share.
///
/// # Errors
/// Counts that do not fit; a scale that is not a positive finite number; scales that differ between tied heads. Then nothing
/// has been changed.
pub(crate) fn divide_rows(
    method: &'static str,
    scales: ArrayView1<'_, f32>,
    tie: Option<HeadTie>,
    mut previous: ArrayViewMut2<'_, f32>,
    rows: Range<usize>,
    bias: Option<ArrayViewMut1<'_, f32>>,
    next: &mut [&mut Array2<f32>],
) -> Result<(), MethodError> {
    check(method, scales)?;
    let divisors = match tie {
        None => scales.to_owned(),
        Some(tie) => {
            let reduced = tie.reduce(scales)?;
            if let Some(channel) = tie.expand(reduced.view())?.iter().zip(scales).position(|(a, b)| a != b) {
                return Err(refused(
                    "tied scales",
                    "equal scales over the query heads of a value head",
                    format!("another one in channel {channel}"),
                ));
            }
            reduced
        }
    };
    if rows.len() != divisors.len() {
        return Err(channels(method, "the rows to divide", divisors.len(), rows.len()));
    }
    if rows.end > previous.nrows() {
        return Err(channels(method, "the weight whose rows are divided", rows.end, previous.nrows()));
    }
    if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != previous.nrows()) {
        return Err(channels(method, "its bias", previous.nrows(), bias.len()));
    }
    if let Some(weight) = next.iter().find(|w| w.ncols() != scales.len()) {
        return Err(channels(method, "a weight", scales.len(), weight.ncols()));
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
pub(crate) fn check(method: &'static str, scales: ArrayView1<'_, f32>) -> Result<(), MethodError> {
    match scales.iter().enumerate().find(|(_, c)| !(c.is_finite() && **c > 0.0)) {
        None => Ok(()),
        Some((channel, &value)) if value.is_finite() => {
            Err(refused("scales", "positive numbers", format!("{value} in channel {channel}")))
        }
        Some((channel, &value)) => Err(MethodError::NotFinite { method, what: "the scale", channel, value }),
    }
}

/// The float weights of some linears.
fn floats<'b>(
    linears: &'b mut BTreeMap<LinearId, LinearParams>,
    fed: &[LinearId],
) -> Vec<&'b mut Array2<f32>> {
    let of = linears.iter_mut().filter(|(id, _)| fed.contains(id));
    of.filter_map(|(_, linear)| match &mut linear.weight {
        LinearWeight::Float(weight) => Some(weight),
        LinearWeight::Quantized(_) | LinearWeight::Binary(_) => None,
    })
    .collect()
}

/// Arrays whose channels do not fit together.
fn channels(method: &'static str, what: impl Into<String>, expected: usize, found: usize) -> MethodError {
    MethodError::Channels { method, what: what.into(), expected, found }
}

/// An argument that no scale can be moved by.
fn refused(what: &'static str, expected: impl Into<String>, found: impl Into<String>) -> MethodError {
    CoreError::Shape { what, expected: expected.into(), found: found.into() }.into()
}

/// An array with another number of channels.
fn shape(what: &'static str, expected: usize, found: usize) -> MethodError {
    refused(what, format!("{expected} channels"), format!("{found}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn heads_that_do_not_fit_are_refused() {
        let tie = HeadTie { heads: 4, kv_heads: 3, head_dim: 2 };
        let error = tie.reduce(Array1::zeros(8).view()).unwrap_err().to_string();
        assert!(error.contains("4 query heads, 3 value heads"), "{error}");
        let tie = HeadTie { heads: 4, kv_heads: 2, head_dim: 2 };
        assert!(tie.reduce(Array1::zeros(4).view()).unwrap_err().to_string().contains("expected 8 channels"));
        assert!(tie.expand(Array1::zeros(8).view()).unwrap_err().to_string().contains("expected 4 channels"));
    }

    #[test]
    fn the_largest_of_tied_heads() {
        let tie = HeadTie { heads: 4, kv_heads: 2, head_dim: 2 };
        let values = array![1.0_f32, 5.0, 3.0, 4.0, 9.0, 0.0, 8.0, 2.0];
        assert_eq!(tie.largest(values.view()).unwrap(), array![3.0, 5.0, 9.0, 2.0]);
        assert!(tie.largest(array![1.0].view()).is_err());
        let each = HeadTie { kv_heads: 4, ..tie };
        assert_eq!(each.largest(values.view()).unwrap(), values);
    }
}
