//! Transforms that are applied to activations while the model runs, before they are quantised.
//!
//! A quantised model may multiply what enters a linear by an invertible matrix `P`, whose inverse its weight has taken in
//! (`x Wᵀ = (x P)(W P⁻ᵀ)ᵀ`), so that what is quantised has no outliers: Hadamard matrices (QuaRot, arXiv 2404.00456), learned
//! Kronecker products (FlatQuant, arXiv 2410.09426), permuted block rotations (DuQuant, arXiv 2406.01721). All of them are products of
//! few cheap pieces; this module has them as data, and the scalar arithmetic that specifies the fast one.

mod pair;
mod shape;

pub use pair::PairTransform;
pub use shape::{AxisShape, OnlineShape, kronecker_sides};

use crate::codec::{Bytes, Codec, bad_tag};
use crate::{CoreError, Real};
use ndarray::{Array2, Axis};

/// The widest transform: wider than any activation of a known model, and small enough that sizes cannot overflow.
const MAX_WIDTH: usize = 1 << 24;
/// Transforms within transforms.
const MAX_DEPTH: usize = 4;

/// What one axis of a Kronecker product is multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub enum AxisTransform {
    /// Nothing: so many entries stay.
    Identity(usize),
    /// The Walsh-Hadamard matrix of this power of two, `H[i, j] = (−1)^popcount(i & j) / √n`.
    Walsh(usize),
    /// This square matrix.
    Dense(Array2<f32>),
}

impl AxisTransform {
    /// Entries of the axis.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Identity(size) | Self::Walsh(size) => *size,
            Self::Dense(matrix) => matrix.nrows(),
        }
    }
    fn check(&self) -> Result<(), CoreError> {
        let wrong = |expected: &str, found: String| {
            Err(CoreError::Shape { what: "an axis of a transform", expected: expected.to_owned(), found })
        };
        match self {
            Self::Identity(0) => wrong("at least one entry", "none".to_owned()),
            Self::Walsh(size) if !size.is_power_of_two() => wrong("a power of two", size.to_string()),
            Self::Dense(matrix) if matrix.nrows() != matrix.ncols() || matrix.is_empty() => {
                wrong("a square matrix", format!("{:?}", matrix.dim()))
            }
            Self::Dense(matrix) => crate::matrix::check_finite(matrix.view()),
            Self::Identity(_) | Self::Walsh(_) => Ok(()),
        }
    }
    fn transposed(&self) -> Self {
        match self {
            Self::Identity(_) | Self::Walsh(_) => self.clone(),
            Self::Dense(matrix) => Self::Dense(matrix.t().to_owned()),
        }
    }
    /// Multiply-adds of an axis of a row of `width`.
    fn operations(&self, width: usize) -> f64 {
        let each = match self {
            Self::Identity(_) => 0.0,
            Self::Walsh(size) => f64::from(size.ilog2()),
            Self::Dense(matrix) => matrix.nrows() as f64,
        };
        each * width as f64
    }
}

/// What an [`OnlineTransform`] consists of.
#[derive(Clone, Debug, PartialEq)]
pub enum OnlineKind {
    /// `x (A₁ ⊗ A₂ ⊗ …)`: a row seen as an array with these axes, the last one contiguous, each of them multiplied from the
    /// right. `L ⊗ R` gives `vec(Lᵀ X R)`.
    Kronecker(Vec<AxisTransform>),
    /// `y[j] = x[order[j]]`.
    Permutation(Vec<u32>),
    /// Consecutive parts of a row, each with its own transform: what the devices of a tensor-parallel deployment do.
    Blocks(Vec<OnlineTransform>),
    /// One after the other, the first first.
    Chain(Vec<OnlineTransform>),
}

/// An invertible linear map of rows `[.., width]`, made of few cheap pieces.
///
/// ```
/// use quant_core::{AxisTransform, OnlineTransform};
/// use quant_core::ndarray::array;
///
/// // Mixes two heads of two channels each, and the channels of every head by a Hadamard matrix.
/// let across = AxisTransform::Dense(array![[0.6, 0.8], [-0.8, 0.6]]);
/// let transform = OnlineTransform::kronecker(vec![across, AxisTransform::Walsh(2)])?;
/// let mut row = [1.0_f64, 0.0, 0.0, 0.0];
/// transform.apply(&mut row);
/// let s = 0.5_f64.sqrt();
/// let expected = [0.6 * s, 0.6 * s, 0.8 * s, 0.8 * s];
/// assert!(row.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-7));
/// # Ok::<(), quant_core::CoreError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct OnlineTransform {
    kind: OnlineKind,
    width: usize,
}

impl OnlineTransform {
    /// Checks what it consists of.
    ///
    /// # Errors
    /// [`CoreError::Shape`] for nothing at all, a Walsh axis that is no power of two, a matrix that is not square, an order that is
    /// no permutation, links of a chain that differ in width, more than four transforms within each other, or a row of more than
    /// `2^24`; [`CoreError::NotFinite`] for a matrix with such a number.
    pub fn new(kind: OnlineKind) -> Result<Self, CoreError> {
        let wrong = |expected: &str, found: String| {
            Err(CoreError::Shape { what: "an online transform", expected: expected.to_owned(), found })
        };
        let width = match &kind {
            OnlineKind::Kronecker(axes) => {
                axes.iter().try_for_each(AxisTransform::check)?;
                axes.iter().try_fold(1_usize, |n, axis| n.checked_mul(axis.size())).unwrap_or(usize::MAX)
            }
            OnlineKind::Permutation(order) => {
                let mut seen = vec![false; order.len()];
                for &from in order {
                    match seen.get_mut(from as usize) {
                        Some(seen) if !*seen => *seen = true,
                        _ => return wrong("every index once", format!("index {from}, again or too large")),
                    }
                }
                order.len()
            }
            OnlineKind::Blocks(parts) => parts.iter().map(Self::width).fold(0, usize::saturating_add),
            OnlineKind::Chain(links) => {
                let width = links.first().map_or(0, Self::width);
                if let Some(other) = links.iter().find(|link| link.width != width) {
                    return wrong(&format!("links of width {width}"), other.width.to_string());
                }
                width
            }
        };
        if width == 0 || width > MAX_WIDTH {
            return wrong(&format!("a row of 1 to {MAX_WIDTH}"), width.to_string());
        }
        let transform = Self { kind, width };
        let depth = transform.depth();
        if depth > MAX_DEPTH {
            return wrong(&format!("at most {MAX_DEPTH} within each other"), depth.to_string());
        }
        Ok(transform)
    }
    /// [`OnlineKind::Kronecker`].
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn kronecker(axes: Vec<AxisTransform>) -> Result<Self, CoreError> {
        Self::new(OnlineKind::Kronecker(axes))
    }
    /// [`OnlineKind::Chain`].
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn chain(links: Vec<Self>) -> Result<Self, CoreError> {
        Self::new(OnlineKind::Chain(links))
    }
    /// What it consists of.
    #[must_use]
    pub fn kind(&self) -> &OnlineKind {
        &self.kind
    }
    /// Entries of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }
    fn parts(&self) -> &[Self] {
        match &self.kind {
            OnlineKind::Blocks(parts) | OnlineKind::Chain(parts) => parts,
            OnlineKind::Kronecker(_) | OnlineKind::Permutation(_) => &[],
        }
    }
    fn depth(&self) -> usize {
        1 + self.parts().iter().map(Self::depth).max().unwrap_or(0)
    }
    /// Multiply-adds a row takes.
    #[must_use]
    pub fn operations(&self) -> f64 {
        match &self.kind {
            OnlineKind::Kronecker(axes) => axes.iter().map(|axis| axis.operations(self.width)).sum(),
            OnlineKind::Permutation(_) => 0.0,
            OnlineKind::Blocks(parts) | OnlineKind::Chain(parts) => parts.iter().map(Self::operations).sum(),
        }
    }
    /// Numbers that a folder stores of it: the entries of its matrices and permutations.
    #[must_use]
    pub fn numbers(&self) -> usize {
        match &self.kind {
            OnlineKind::Kronecker(axes) => axes
                .iter()
                .map(|axis| if let AxisTransform::Dense(matrix) = axis { matrix.len() } else { 0 })
                .sum(),
            OnlineKind::Permutation(order) => order.len(),
            OnlineKind::Blocks(parts) | OnlineKind::Chain(parts) => parts.iter().map(Self::numbers).sum(),
        }
    }
    /// `row ← row P`, in the arithmetic of `T`: the specification of every faster implementation.
    ///
    /// # Panics
    /// If the row has not [`Self::width`] entries.
    pub fn apply<T: Real>(&self, row: &mut [T]) {
        assert_eq!(row.len(), self.width, "a row and the width of its transform");
        match &self.kind {
            OnlineKind::Kronecker(axes) => {
                let mut after = self.width;
                for axis in axes {
                    after /= axis.size();
                    apply_axis(axis, after, row);
                }
            }
            OnlineKind::Permutation(order) => {
                let permuted: Vec<T> = order.iter().map(|&from| row[from as usize]).collect();
                row.copy_from_slice(&permuted);
            }
            OnlineKind::Blocks(parts) => {
                let mut rest = row;
                for part in parts {
                    let (block, behind) = rest.split_at_mut(part.width);
                    part.apply(block);
                    rest = behind;
                }
            }
            OnlineKind::Chain(links) => links.iter().for_each(|link| link.apply(row)),
        }
    }
    /// `Pᵀ`, of as many operations: what takes a gradient with respect to `x P` to that with respect to `x`, and the inverse of an
    /// orthogonal `P`.
    ///
    /// ```
    /// use quant_core::{OnlineKind, OnlineTransform};
    ///
    /// let dealt = OnlineTransform::new(OnlineKind::Permutation(vec![2, 0, 1]))?;
    /// let mut row = [1.0, 2.0, 3.0];
    /// dealt.apply(&mut row);
    /// assert_eq!(row, [3.0, 1.0, 2.0]);
    /// dealt.transposed().apply(&mut row);
    /// assert_eq!(row, [1.0, 2.0, 3.0]);
    /// # Ok::<(), quant_core::CoreError>(())
    /// ```
    #[must_use]
    pub fn transposed(&self) -> Self {
        let kind = match &self.kind {
            OnlineKind::Kronecker(axes) => {
                OnlineKind::Kronecker(axes.iter().map(AxisTransform::transposed).collect())
            }
            OnlineKind::Permutation(order) => {
                let mut back = vec![0; order.len()];
                for (to, &from) in (0..).zip(order) {
                    back[from as usize] = to;
                }
                OnlineKind::Permutation(back)
            }
            OnlineKind::Blocks(parts) => OnlineKind::Blocks(parts.iter().map(Self::transposed).collect()),
            OnlineKind::Chain(links) => OnlineKind::Chain(links.iter().rev().map(Self::transposed).collect()),
        };
        Self { kind, width: self.width }
    }
    /// The matrix `P` `[width, width]`, for checks and for inverses of small ones.
    #[must_use]
    pub fn dense(&self) -> Array2<f64> {
        let mut matrix = Array2::eye(self.width);
        for mut row in matrix.axis_iter_mut(Axis(0)) {
            if let Some(row) = row.as_slice_mut() {
                self.apply(row);
            }
        }
        matrix
    }
}

/// One axis of a row, of entries that are `after` apart.
fn apply_axis<T: Real>(axis: &AxisTransform, after: usize, row: &mut [T]) {
    let size = axis.size();
    match axis {
        AxisTransform::Identity(_) => {}
        AxisTransform::Walsh(_) => {
            let mut stride = after;
            while stride < size * after {
                for pair in row.chunks_exact_mut(2 * stride) {
                    let (low, high) = pair.split_at_mut(stride);
                    for (a, b) in low.iter_mut().zip(high) {
                        (*a, *b) = (*a + *b, *a - *b);
                    }
                }
                stride *= 2;
            }
            let factor = T::from_f64((size as f64).sqrt().recip());
            row.iter_mut().for_each(|x| *x = *x * factor);
        }
        AxisTransform::Dense(matrix) => {
            let mut mixed = vec![T::zero(); size];
            for block in row.chunks_exact_mut(size * after) {
                for at in 0..after {
                    for (j, out) in mixed.iter_mut().enumerate() {
                        let terms = (0..size).map(|i| block[i * after + at] * T::from_f32(matrix[(i, j)]));
                        *out = terms.fold(T::zero(), |sum, term| sum + term);
                    }
                    mixed.iter().enumerate().for_each(|(j, &value)| block[j * after + at] = value);
                }
            }
        }
    }
}

impl Codec for AxisTransform {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Identity(size) => {
                out.push(0);
                size.encode(out);
            }
            Self::Walsh(size) => {
                out.push(1);
                size.encode(out);
            }
            Self::Dense(matrix) => {
                out.push(2);
                matrix.encode(out);
            }
        }
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        match u8::decode(from)? {
            0 => Ok(Self::Identity(usize::decode(from)?)),
            1 => Ok(Self::Walsh(usize::decode(from)?)),
            2 => Ok(Self::Dense(Array2::decode(from)?)),
            tag => bad_tag("an axis of a transform", tag),
        }
    }
}

impl Codec for OnlineTransform {
    fn encode(&self, out: &mut Vec<u8>) {
        match &self.kind {
            OnlineKind::Kronecker(axes) => {
                out.push(0);
                axes.encode(out);
            }
            OnlineKind::Permutation(order) => {
                out.push(1);
                order.encode(out);
            }
            OnlineKind::Blocks(parts) => {
                out.push(2);
                parts.encode(out);
            }
            OnlineKind::Chain(links) => {
                out.push(3);
                links.encode(out);
            }
        }
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        within(from, MAX_DEPTH)
    }
}

/// A transform of at most `depth` within each other: bytes that nest deeper must not exhaust the stack.
fn within(from: &mut Bytes<'_>, depth: usize) -> Result<OnlineTransform, CoreError> {
    let tag = u8::decode(from)?;
    let kind = match tag {
        0 => OnlineKind::Kronecker(Vec::decode(from)?),
        1 => OnlineKind::Permutation(Vec::decode(from)?),
        2 | 3 if depth > 1 => {
            let count = usize::decode(from)?;
            let parts = (0..count).map(|_| within(from, depth - 1)).collect::<Result<_, _>>()?;
            if tag == 2 { OnlineKind::Blocks(parts) } else { OnlineKind::Chain(parts) }
        }
        tag => return bad_tag("an online transform", tag),
    };
    OnlineTransform::new(kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decoded, encoded};
    use ndarray::linalg::kron;
    use proptest::prelude::*;

    fn matrix(size: usize, seed: u64) -> Array2<f32> {
        let mut state = seed | 1;
        Array2::from_shape_simple_fn((size, size), || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
        })
    }

    fn axis() -> impl Strategy<Value = AxisTransform> {
        prop_oneof![
            (1_usize..5).prop_map(AxisTransform::Identity),
            (0_u32..4).prop_map(|m| AxisTransform::Walsh(1 << m)),
            (1_usize..6, any::<u64>()).prop_map(|(n, seed)| AxisTransform::Dense(matrix(n, seed))),
        ]
    }

    fn dense(axis: &AxisTransform) -> Array2<f64> {
        match axis {
            AxisTransform::Identity(size) => Array2::eye(*size),
            AxisTransform::Walsh(size) => Array2::from_shape_fn((*size, *size), |(i, j)| {
                let sign = if (i & j).count_ones() % 2 == 0 { 1.0 } else { -1.0 };
                sign / (*size as f64).sqrt()
            }),
            AxisTransform::Dense(matrix) => matrix.mapv(f64::from),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn axes_are_a_kronecker_product(axes in prop::collection::vec(axis(), 1..4)) {
            let expected = axes.iter().map(dense).reduce(|a, b| kron(&a, &b)).unwrap();
            let transform = OnlineTransform::kronecker(axes).unwrap();
            let worst = (&transform.dense() - &expected).iter().fold(0.0_f64, |m, e| m.max(e.abs()));
            prop_assert!(worst < 1e-12, "{worst}");
            let worst = (&transform.transposed().dense() - &expected.t()).iter().fold(0.0_f64, |m, e| m.max(e.abs()));
            prop_assert!(worst < 1e-12, "transposed: {worst}");
            prop_assert_eq!(decoded::<OnlineTransform>(&encoded(&transform)).unwrap(), transform);
        }
    }

    #[test]
    fn parts_stand_beside_and_behind_each_other() {
        let two = |seed| OnlineTransform::kronecker(vec![AxisTransform::Dense(matrix(2, seed))]).unwrap();
        let blocks = OnlineTransform::new(OnlineKind::Blocks(vec![two(1), two(2)])).unwrap();
        let order = OnlineTransform::new(OnlineKind::Permutation(vec![3, 0, 1, 2])).unwrap();
        let mut row = [1.0_f32, 2.0, 3.0, 4.0];
        order.apply(&mut row);
        assert_eq!(row, [4.0, 1.0, 2.0, 3.0]);
        let chain = OnlineTransform::chain(vec![blocks.clone(), order.clone()]).unwrap();
        assert_eq!(chain.dense(), blocks.dense().dot(&order.dense()));
        assert_eq!(chain.transposed().dense(), chain.dense().t());
        assert_eq!((chain.width(), chain.numbers(), chain.operations()), (4, 12, 8.0));
        let bytes = encoded(&chain);
        assert_eq!(decoded::<OnlineTransform>(&bytes).unwrap(), chain);
        assert!((0..bytes.len()).all(|cut| decoded::<OnlineTransform>(&bytes[..cut]).is_err()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let kronecker = OnlineTransform::kronecker;
        let some = || kronecker(vec![AxisTransform::Identity(4)]).unwrap();
        let mut nested = some();
        for _ in 0..3 {
            nested = OnlineTransform::chain(vec![nested]).unwrap();
        }
        let nan = Array2::from_elem((1, 1), f32::NAN);
        for (wrong, words) in [
            (kronecker(vec![AxisTransform::Walsh(12)]), "a power of two, found 12"),
            (kronecker(vec![AxisTransform::Identity(0)]), "at least one entry"),
            (kronecker(vec![AxisTransform::Dense(Array2::zeros((2, 3)))]), "a square matrix, found (2, 3)"),
            (kronecker(vec![AxisTransform::Dense(nan)]), "not finite"),
            (kronecker(vec![AxisTransform::Identity(1 << 40); 2]), "a row of 1 to"),
            (OnlineTransform::new(OnlineKind::Permutation(vec![0, 2, 2])), "every index once, found index 2"),
            (OnlineTransform::new(OnlineKind::Permutation(vec![0, 3])), "index 3"),
            (OnlineTransform::new(OnlineKind::Blocks(Vec::new())), "a row of 1 to"),
            (
                OnlineTransform::chain(vec![some(), kronecker(vec![AxisTransform::Walsh(2)]).unwrap()]),
                "links of width 4, found 2",
            ),
            (OnlineTransform::chain(vec![nested.clone()]), "at most 4 within each other, found 5"),
        ] {
            let error = wrong.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        // Bytes that nest without end are refused before the stack is.
        let mut deep: Vec<u8> = Vec::new();
        for _ in 0..100_000 {
            deep.push(3);
            1_usize.encode(&mut deep);
        }
        assert!(decoded::<OnlineTransform>(&deep).is_err());
    }
}
