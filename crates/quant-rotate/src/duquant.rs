//! Rotations that look for outliers and permutations that spread them over blocks.

use ndarray::{Array2, ArrayView2, Axis};
use quant_core::{AxisTransform, CoreError, OnlineKind, OnlineTransform, Variant};
use quant_kernels::{Element, Par};

use crate::dense::{finite, narrow, product};
use crate::runs::in_runs;
use crate::{RotateError, haar, per_head};

/// Settings of a [`DuQuant`] transform.
#[derive(Clone, Debug, PartialEq)]
pub struct DuQuantSettings {
    /// Side of the blocks, which share one rotation. It must divide the features.
    pub block: usize,
    /// Most rotations tried, one after the other; fewer are kept where fewer give the smallest range.
    pub steps: usize,
    /// [`Variant::Official`] exchanges the channel whose number is the row of the outlier, modulo the block, as the published code does,
    /// instead of its column.
    pub variant: Variant,
    /// The seed of the random part of each rotation.
    pub seed: u64,
    /// The name of what is transformed, which the random part depends on as well.
    pub name: String,
}

impl Default for DuQuantSettings {
    fn default() -> Self {
        Self { block: 128, steps: 256, variant: Variant::Exact, seed: 0, name: String::new() }
    }
}

/// The transform of DuQuant (arXiv 2406.01721): `x -> x R1 P R2` with a rotation of all blocks, a permutation that deals channels out to
/// blocks by size, and a rotation again. It is orthogonal: weights are transformed by the same function.
///
/// ```
/// use quant_rotate::ndarray::Array2;
/// use quant_rotate::{DuQuant, DuQuantSettings, Par};
///
/// let x = Array2::from_shape_fn((8, 32), |(t, j)| if j == 3 { 50.0 } else { ((t * 31 + j * 17) % 23) as f32 / 11.0 - 1.0 });
/// let settings = DuQuantSettings { block: 16, steps: 32, ..DuQuantSettings::default() };
/// let transform = DuQuant::fit(x.view(), &settings, Par::Seq)?;
/// let flat = transform.apply(x.view(), Par::Seq);
/// assert!(flat.iter().all(|v| v.abs() < 25.0));
/// # Ok::<(), quant_rotate::RotateError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DuQuant {
    first: Array2<f64>,
    permutation: Vec<usize>,
    second: Array2<f64>,
}

impl DuQuant {
    /// Fits rotations and permutation to activations `[tokens, features]`: `steps` products with a matrix of the block's side for each
    /// rotation. Channels are to be smoothed before, where they are.
    ///
    /// # Errors
    /// [`RotateError::Setting`] for a block that does not divide the features or has one channel, [`RotateError::NotFinite`] for a NaN or
    /// an infinity.
    pub fn fit(x: ArrayView2<'_, f32>, settings: &DuQuantSettings, par: Par) -> Result<Self, RotateError> {
        let mut x = x.as_standard_layout().into_owned();
        let first = outlier_rotation(&mut x, settings, "first", par)?;
        let maxima: Vec<f32> =
            x.axis_iter(Axis(1)).map(|c| c.iter().fold(0.0, |a, b| b.abs().max(a))).collect();
        let permutation = zigzag(&maxima, settings.block)?;
        let mut x = x.select(Axis(1), &permutation);
        let second = outlier_rotation(&mut x, settings, "second", par)?;
        Self::new(first, permutation, second)
    }

    /// The transform of rotations `[block, block]` and a permutation that were fitted apart, by [`outlier_rotation`] and [`zigzag`]: on a
    /// sample of tokens the one, on the maxima of all tokens the other.
    ///
    /// ```
    /// use quant_rotate::ndarray::Array2;
    /// use quant_rotate::{DuQuant, DuQuantSettings, Par, outlier_rotation, zigzag};
    ///
    /// let mut x = Array2::from_shape_fn((8, 32), |(t, j)| if j == 3 { 50.0 } else { ((t * 31 + j * 17) % 23) as f32 / 11.0 - 1.0 });
    /// let settings = DuQuantSettings { block: 16, steps: 32, ..DuQuantSettings::default() };
    /// let first = outlier_rotation(&mut x, &settings, "first", Par::Seq)?;
    /// let maxima: Vec<f32> = x.columns().into_iter().map(|c| c.iter().fold(0.0, |a, b| b.abs().max(a))).collect();
    /// let transform = DuQuant::new(first, zigzag(&maxima, 16)?, Array2::eye(16))?;
    /// assert_eq!(transform.permutation().len(), 32);
    /// # Ok::<(), quant_rotate::RotateError>(())
    /// ```
    ///
    /// # Errors
    /// [`RotateError::Core`] for rotations that are not square, of one size, finite and of a block that divides the permutation, and for an
    /// order that is no permutation.
    pub fn new(
        first: Array2<f64>,
        permutation: Vec<usize>,
        second: Array2<f64>,
    ) -> Result<Self, RotateError> {
        let transform = Self { first, permutation, second };
        let (first, second) = (transform.first.dim(), transform.second.dim());
        if first != second || first.0 == 0 || !transform.permutation.len().is_multiple_of(first.0) {
            return Err(CoreError::Shape {
                what: "the rotations of a DuQuant transform",
                expected: format!("two of one block that divides {} features", transform.permutation.len()),
                found: format!("{first:?} and {second:?}"),
            }
            .into());
        }
        transform.online()?;
        Ok(transform)
    }

    /// `x R1 P R2` for rows `[rows, features]` of activations or weights.
    ///
    /// # Panics
    /// If `x` has another number of features.
    #[must_use]
    pub fn apply<T: Element>(&self, x: ArrayView2<'_, T>, par: Par) -> Array2<T> {
        assert_eq!(x.ncols(), self.permutation.len(), "features of x and of the DuQuant transform");
        let rotated = per_head(x, narrow(&self.first).view(), par);
        per_head(rotated.select(Axis(1), &self.permutation).view(), narrow(&self.second).view(), par)
    }

    /// The transform as data for a model that applies it while it runs, with rotations in f32.
    ///
    /// # Errors
    /// [`RotateError::Core`] for a transform wider than online transforms are.
    pub fn online(&self) -> Result<OnlineTransform, RotateError> {
        let blocks = self.permutation.len() / self.first.nrows();
        let rotation = |matrix: &Array2<f64>| {
            let axis = AxisTransform::Dense(matrix.mapv(|v| v as f32));
            OnlineTransform::kronecker(vec![AxisTransform::Identity(blocks), axis])
        };
        // A width above those of online transforms is refused by the first link, before an index could be cut off.
        let first = rotation(&self.first)?;
        let order = self.permutation.iter().map(|&from| from as u32).collect();
        let permutation = OnlineTransform::new(OnlineKind::Permutation(order))?;
        Ok(OnlineTransform::chain(vec![first, permutation, rotation(&self.second)?])?)
    }

    /// The first rotation `R1`, `[block, block]`.
    #[must_use]
    pub fn first(&self) -> ArrayView2<'_, f64> {
        self.first.view()
    }

    /// The permutation `P`: column `j` of `x P` is column `permutation[j]` of `x`.
    #[must_use]
    pub fn permutation(&self) -> &[usize] {
        &self.permutation
    }

    /// The second rotation `R2`, `[block, block]`.
    #[must_use]
    pub fn second(&self) -> ArrayView2<'_, f64> {
        self.second.view()
    }
}

/// The order that spreads channels over blocks: they are dealt out by falling size, to the blocks forth and back, and stand by falling
/// size in each. Column `j` of the result is column `order[j]` before. Equal channels keep their order.
///
/// ```
/// use quant_rotate::zigzag;
///
/// // The largest to the first block, the next two to the second, the last to the first.
/// assert_eq!(zigzag(&[1.0, 4.0, 3.0, 2.0], 2)?, [1, 0, 2, 3]);
/// # Ok::<(), quant_rotate::RotateError>(())
/// ```
///
/// # Errors
/// [`RotateError::Setting`] for a block that does not divide the number of channels.
pub fn zigzag(maxima: &[f32], block: usize) -> Result<Vec<usize>, RotateError> {
    if block == 0 || !maxima.len().is_multiple_of(block) {
        let expected = "a divisor of the number of features";
        return Err(RotateError::Setting { name: "block", value: block.to_string(), expected });
    }
    let mut by_size: Vec<usize> = (0..maxima.len()).collect();
    by_size.sort_by(|&a, &b| maxima[b].total_cmp(&maxima[a]));
    let blocks = maxima.len() / block;
    let mut order = vec![0; maxima.len()];
    for (rank, channel) in by_size.into_iter().enumerate() {
        let (round, turn) = (rank / blocks, rank % blocks);
        let to = if round % 2 == 0 { turn } else { blocks - 1 - turn };
        order[to * block + round] = channel;
    }
    Ok(order)
}

/// One rotation of all blocks of `x` `[tokens, features]`, which is turned by it in place, `[block, block]`: step by step the row of the
/// largest value is turned, until the steps are used up; those up to the smallest range are kept. `part` keys the random part of the
/// rotation, together with the name in the settings. [`DuQuant::fit`] makes one before and one behind a permutation.
///
/// # Errors
/// [`RotateError::Setting`] for a block that does not divide the features or has one channel, [`RotateError::NotFinite`] for a NaN or an
/// infinity.
pub fn outlier_rotation(
    x: &mut Array2<f32>,
    settings: &DuQuantSettings,
    part: &str,
    par: Par,
) -> Result<Array2<f64>, RotateError> {
    let block = settings.block;
    if block < 2 || !x.ncols().is_multiple_of(block) {
        let expected = "at least 2 and a divisor of the number of features";
        return Err(RotateError::Setting { name: "block", value: block.to_string(), expected });
    }
    finite("activations of a DuQuant transform", x.iter())?;
    let base = base_rotation(block, settings.seed, &format!("{}.{part}", settings.name));
    let mut turned = x.clone();
    let mut rotation = Array2::eye(block);
    let (mut best, mut ends) = (rotation.clone(), Ends::of(x));
    let mut smallest = ends.range();
    for _ in 0..settings.steps {
        let channel = match settings.variant {
            Variant::Exact => ends.outlier % block,
            Variant::Official => ends.outlier / block % block,
        };
        let step = exchanged(&base, channel);
        rotation = product(rotation.view(), step.view());
        turned = per_head(turned.view(), narrow(&step).view(), par);
        ends = Ends::of(&turned);
        if ends.range() < smallest {
            (smallest, best) = (ends.range(), rotation.clone());
        }
    }
    let kept = narrow(&best);
    in_runs(x.view_mut(), block, |mut runs| {
        let rotated = per_head(runs.view(), kept.view(), par);
        runs.assign(&rotated);
    });
    Ok(best)
}

/// The ends of the range of a matrix.
struct Ends {
    lowest: f32,
    highest: f32,
    /// The place in row-major order of the one that is larger in magnitude.
    outlier: usize,
}

impl Ends {
    fn of(x: &Array2<f32>) -> Self {
        let mut ends = Self { lowest: f32::INFINITY, highest: f32::NEG_INFINITY, outlier: 0 };
        let (mut low_at, mut high_at) = (0, 0);
        for (at, &value) in x.iter().enumerate() {
            if value < ends.lowest {
                (ends.lowest, low_at) = (value, at);
            }
            if value > ends.highest {
                (ends.highest, high_at) = (value, at);
            }
        }
        ends.outlier = if ends.highest.abs() > ends.lowest.abs() { high_at } else { low_at };
        ends
    }

    fn range(&self) -> f32 {
        self.highest - self.lowest
    }
}

/// A rotation with a row of equal entries, the reflection of the first axis into the diagonal, times a random rotation of the other axes.
fn base_rotation(side: usize, seed: u64, name: &str) -> Array2<f64> {
    let equal = 1.0 / (side as f64).sqrt();
    // I - 2 v v^T / (v^T v) with v the first axis less the diagonal; v^T v = 2 - 2 equal.
    let v = |i: usize| f64::from(u8::from(i == 0)) - equal;
    let reflection = Array2::from_shape_fn((side, side), |(i, j)| {
        f64::from(u8::from(i == j)) - v(i) * v(j) / (1.0 - equal)
    });
    let others = haar(side - 1, seed, name);
    let random = Array2::from_shape_fn((side, side), |(i, j)| match (i, j) {
        (0, 0) => 1.0,
        (0, _) | (_, 0) => 0.0,
        _ => others[(i - 1, j - 1)],
    });
    product(reflection.view(), random.view())
}

/// The same with axis 0 and another one exchanged, on both sides.
fn exchanged(base: &Array2<f64>, channel: usize) -> Array2<f64> {
    let at = |i: usize| match i {
        0 => channel,
        _ if i == channel => 0,
        _ => i,
    };
    Array2::from_shape_fn(base.dim(), |(i, j)| base[(at(i), at(j))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;
    use quant_testkit::Numbers;

    fn distance(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
        (a - b).iter().fold(0.0, |largest: f64, d| largest.max(d.abs()))
    }

    fn with_outliers(tokens: usize, features: usize) -> Array2<f32> {
        let mut x = Numbers::new(3).normals(tokens, features);
        x.column_mut(5).mapv_inplace(|v| 40.0 + v);
        x.column_mut(features - 2).mapv_inplace(|v| 25.0 * v);
        x
    }

    #[test]
    fn transforms_are_orthogonal_and_shrink_the_range() {
        for variant in [Variant::Exact, Variant::Official] {
            let x = with_outliers(20, 48);
            let settings = DuQuantSettings { block: 16, steps: 40, variant, seed: 1, name: "q".into() };
            let transform = DuQuant::fit(x.view(), &settings, Par::Seq).unwrap();
            for rotation in [transform.first(), transform.second()] {
                assert!(distance(&product(rotation, rotation.t()), &Array2::eye(16)) < 1e-12);
            }
            let w = Numbers::new(4).normals(7, 48);
            let product = transform.apply(x.view(), Par::Seq).dot(&transform.apply(w.view(), Par::Seq).t());
            let error = distance(&product.mapv(f64::from), &x.dot(&w.t()).mapv(f64::from));
            assert!(error < 1e-3, "{error}");
            let (before, after) =
                (Ends::of(&x).range(), Ends::of(&transform.apply(x.view(), Par::Seq)).range());
            assert!(
                after < if variant == Variant::Exact { 0.6 } else { 1.0 } * before,
                "{variant:?}: {before} to {after}"
            );
            assert_eq!(transform, DuQuant::fit(x.view(), &settings, Par::new(2)).unwrap());
        }
    }

    /// Without steps, or where no step makes the range smaller, the rotation is none.
    #[test]
    fn no_step_is_kept_that_makes_things_worse() {
        let x = with_outliers(6, 32);
        let none = DuQuantSettings { block: 16, steps: 0, ..DuQuantSettings::default() };
        let transform = DuQuant::fit(x.view(), &none, Par::Seq).unwrap();
        assert_eq!(transform.first(), Array2::<f64>::eye(16));
        let even = Array2::from_elem((4, 32), 1.0);
        let some = DuQuantSettings { block: 16, steps: 5, ..DuQuantSettings::default() };
        let transform = DuQuant::fit(even.view(), &some, Par::Seq).unwrap();
        assert_eq!(
            (transform.first().to_owned(), transform.second().to_owned()),
            (Array2::eye(16), Array2::eye(16))
        );
    }

    #[test]
    fn the_step_turns_the_row_of_the_outlier() {
        let base = base_rotation(8, 0, "x");
        assert!(distance(&product(base.view(), base.t()), &Array2::eye(8)) < 1e-13);
        // Its first column is the row of equal entries of the reflection, which the random part leaves alone.
        assert!(base.column(0).iter().all(|v| (v - 1.0 / 8.0_f64.sqrt()).abs() < 1e-14));
        let step = exchanged(&base, 3);
        assert!((step[(3, 3)] - base[(0, 0)]).abs() < 1e-15 && (step[(0, 5)] - base[(3, 5)]).abs() < 1e-15);
        // The outlier of channel 3 has an eighth of its energy left there.
        let turned = array![[0.0, 0.0, 0.0, 8.0, 0.0, 0.0, 0.0, 0.0]].dot(&step);
        assert!((turned[(0, 3)] - 8.0_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn settings_are_checked() {
        let x = Array2::<f32>::zeros((2, 20));
        let settings = |block| DuQuantSettings { block, ..DuQuantSettings::default() };
        for block in [0, 1, 16] {
            let error = DuQuant::fit(x.view(), &settings(block), Par::Seq).unwrap_err();
            assert!(matches!(error, RotateError::Setting { name: "block", .. }), "{error}");
        }
        assert!(DuQuant::fit(array![[f32::NAN, 1.0]].view(), &settings(2), Par::Seq).is_err());
        assert!(DuQuant::fit(Array2::zeros((0, 4)).view(), &settings(2), Par::Seq).is_ok());
        assert!(zigzag(&[1.0; 5], 2).is_err());
        let eye = Array2::<f64>::eye;
        assert!(DuQuant::new(eye(2), vec![3, 2, 1, 0], eye(2)).is_ok());
        for (first, order, second) in [
            (eye(2), vec![3, 2, 1, 0], eye(4)),
            (eye(2), vec![2, 1, 0], eye(2)),
            (eye(0), vec![], eye(0)),
            (eye(2), vec![0, 0, 1, 2], eye(2)),
            (array![[1.0, f64::NAN], [0.0, 1.0]], vec![1, 0], eye(2)),
        ] {
            assert!(DuQuant::new(first.clone(), order.clone(), second).is_err(), "{first} {order:?}");
        }
    }

    proptest! {
        #[test]
        fn zigzag_is_a_permutation_of_even_blocks(blocks in 1usize..6, block in 1usize..6, seed: u64) {
            let maxima: Vec<f32> = Numbers::new(seed).vector(blocks * block, 2.0, 1.0).to_vec();
            let order = zigzag(&maxima, block).unwrap();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert!(sorted.into_iter().eq(0..maxima.len()));
            let sizes: Vec<f32> = order.iter().map(|&c| maxima[c]).collect();
            let largest = maxima.iter().fold(0.0_f32, |a, &b| a.max(b));
            for part in sizes.chunks(block) {
                prop_assert!(part.is_sorted_by(|a, b| a >= b));
                // Every block has one of the largest channels, as many as there are blocks.
                let rank = maxima.iter().filter(|&&m| m > part[0]).count();
                prop_assert!(rank < blocks && part[0] <= largest);
            }
        }
    }
}
