//! What a plan knows of a transform before there are numbers, and what a folder says of it beside them.

use super::{AxisTransform, OnlineKind, OnlineTransform};
use crate::CoreError;
use ndarray::Array2;
use serde::{Deserialize, Serialize};

/// The two sides `(L, R)` of the Kronecker pair of `size` features: the factors `L R = size` of one parity that are closest to each
/// other, `L <= R` (FlatQuant's `get_decompose_dim`). None for 0 and for sizes that are 2 modulo 4, which are no difference of two
/// squares.
///
/// ```
/// use quant_core::kronecker_sides;
///
/// assert_eq!(kronecker_sides(18_944), Some((128, 148)));
/// assert_eq!(kronecker_sides(18), None);
/// ```
#[must_use]
pub fn kronecker_sides(size: usize) -> Option<(usize, usize)> {
    if size == 0 || size % 4 == 2 {
        return None;
    }
    // The largest divisor up to the root whose partner has its parity: the same as the smallest a with a^2 - size a square.
    let same_parity = |left: &usize| {
        size.is_multiple_of(*left) && (size / left).is_multiple_of(2) == left.is_multiple_of(2)
    };
    let left = (1..=size.isqrt()).rev().find(same_parity)?;
    Some((left, size / left))
}

/// Kind and size of one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AxisShape {
    /// [`AxisTransform::Identity`].
    Identity(usize),
    /// [`AxisTransform::Walsh`].
    Walsh(usize),
    /// [`AxisTransform::Dense`].
    Dense(usize),
}

impl AxisShape {
    /// Entries of the axis.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::Identity(size) | Self::Walsh(size) | Self::Dense(size) => size,
        }
    }
}

/// A Kronecker product of at most three axes, behind which a row may be permuted and multiplied by a second one; once for a whole row
/// or once for each of its shards: the transforms that formats can store.
///
/// ```
/// use quant_core::ndarray::array;
/// use quant_core::{AxisShape, OnlineShape};
///
/// let shape = OnlineShape::new([AxisShape::Dense(2), AxisShape::Walsh(4)]);
/// assert_eq!((shape.width(), shape.matrices()), (8, vec![2]));
/// let transform = shape.build(vec![array![[0.0, 1.0], [1.0, 0.0]]])?;
/// assert_eq!(transform.shape(), Some(shape));
/// # Ok::<(), quant_core::CoreError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnlineShape {
    /// Consecutive parts of a row, each with matrices of its own; 1 is the whole row.
    pub shards: usize,
    /// The axes of a part; those that do not exist are `Identity(1)`, behind the others.
    pub axes: [AxisShape; 3],
    /// The axes of a second product of as many entries, if there is one: a part is multiplied by the first, its entries are permuted, and
    /// then it is multiplied by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permuted: Option<[AxisShape; 3]>,
}

/// The first three axes that are any; the others stay.
fn filled(axes: impl IntoIterator<Item = AxisShape>) -> [AxisShape; 3] {
    let mut filled = [AxisShape::Identity(1); 3];
    let axes = axes.into_iter().filter(|axis| *axis != AxisShape::Identity(1));
    filled.iter_mut().zip(axes).for_each(|(to, axis)| *to = axis);
    filled
}

impl OnlineShape {
    /// One Kronecker product with these axes, of which the first three count; an axis of one entry that stays is none.
    pub fn new(axes: impl IntoIterator<Item = AxisShape>) -> Self {
        Self { shards: 1, axes: filled(axes), permuted: None }
    }
    /// The same behind which entries are permuted and multiplied by a second product with these axes, as by DuQuant (arXiv 2406.01721).
    ///
    /// ```
    /// use quant_core::ndarray::Array2;
    /// use quant_core::{AxisShape, OnlineShape};
    ///
    /// let blocks = [AxisShape::Identity(2), AxisShape::Dense(4)];
    /// let shape = OnlineShape::new(blocks).and_permuted(blocks);
    /// assert_eq!((shape.width(), shape.matrices(), shape.orders()), (8, vec![4, 4], vec![8]));
    /// let order = vec![7, 6, 5, 4, 3, 2, 1, 0];
    /// let transform = shape.build_permuted(vec![Array2::eye(4); 2], vec![order])?;
    /// let mut row = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
    /// transform.apply(&mut row);
    /// assert_eq!(row, [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]);
    /// # Ok::<(), quant_core::CoreError>(())
    /// ```
    #[must_use]
    pub fn and_permuted(self, axes: impl IntoIterator<Item = AxisShape>) -> Self {
        Self { permuted: Some(filled(axes)), ..self }
    }
    /// Entries of a row.
    #[must_use]
    pub fn width(self) -> usize {
        self.axes.into_iter().fold(self.shards, |width, axis| width.saturating_mul(axis.size()))
    }
    /// Whether it is made of Hadamard matrices alone, which nobody has to learn.
    #[must_use]
    pub fn is_walsh(self) -> bool {
        !self.products().any(|axis| matches!(axis, AxisShape::Dense(_)))
    }
    /// The axes of a part, of both products.
    fn products(self) -> impl Iterator<Item = AxisShape> {
        self.axes.into_iter().chain(self.permuted.into_iter().flatten())
    }
    /// Sizes of its square matrices, in the order in which they are stored: shard by shard, axis by axis.
    #[must_use]
    pub fn matrices(self) -> Vec<usize> {
        let of_axis = |axis: AxisShape| if let AxisShape::Dense(size) = axis { Some(size) } else { None };
        let of_shard: Vec<usize> = self.products().filter_map(of_axis).collect();
        of_shard.repeat(self.shards)
    }
    /// Entries of its permutations, shard by shard.
    #[must_use]
    pub fn orders(self) -> Vec<usize> {
        if self.permuted.is_none() {
            return Vec::new();
        }
        vec![Self { shards: 1, ..self }.width(); self.shards]
    }
    /// The transform with these matrices, of a shape without permutations.
    ///
    /// # Errors
    /// As [`Self::build_permuted`] without orders.
    pub fn build(self, matrices: Vec<Array2<f32>>) -> Result<OnlineTransform, CoreError> {
        self.build_permuted(matrices, Vec::new())
    }
    /// The transform with these matrices and permutations: entry `j` behind one is entry `order[j]` before it.
    ///
    /// # Errors
    /// [`CoreError::Shape`] if they are not those of [`Self::matrices`] and [`Self::orders`], or the two products differ in width; and as
    /// [`OnlineTransform::new`].
    pub fn build_permuted(
        self,
        matrices: Vec<Array2<f32>>,
        orders: Vec<Vec<u32>>,
    ) -> Result<OnlineTransform, CoreError> {
        let found: Vec<(usize, usize)> = matrices.iter().map(Array2::dim).collect();
        if found != self.matrices().into_iter().map(|n| (n, n)).collect::<Vec<_>>() {
            return Err(CoreError::Shape {
                what: "the matrices of a transform",
                expected: format!("square ones of {:?}", self.matrices()),
                found: format!("{found:?}"),
            });
        }
        let found: Vec<usize> = orders.iter().map(Vec::len).collect();
        if found != self.orders() {
            return Err(CoreError::Shape {
                what: "the permutations of a transform",
                expected: format!("orders of {:?}", self.orders()),
                found: format!("{found:?}"),
            });
        }
        let (mut matrices, mut orders) = (matrices.into_iter(), orders.into_iter());
        let mut product = |axes: [AxisShape; 3]| {
            let axes = axes.into_iter().filter(|axis| *axis != AxisShape::Identity(1));
            let axes: Vec<AxisTransform> = axes
                .filter_map(|axis| match axis {
                    AxisShape::Identity(size) => Some(AxisTransform::Identity(size)),
                    AxisShape::Walsh(size) => Some(AxisTransform::Walsh(size)),
                    AxisShape::Dense(_) => matrices.next().map(AxisTransform::Dense),
                })
                .collect();
            OnlineTransform::kronecker(if axes.is_empty() { vec![AxisTransform::Identity(1)] } else { axes })
        };
        let mut part = || {
            let first = product(self.axes)?;
            let (Some(second), Some(order)) = (self.permuted, orders.next()) else { return Ok(first) };
            let permutation = OnlineTransform::new(OnlineKind::Permutation(order))?;
            OnlineTransform::chain(vec![first, permutation, product(second)?])
        };
        if self.shards == 1 {
            return part();
        }
        OnlineTransform::new(OnlineKind::Blocks((0..self.shards).map(|_| part()).collect::<Result<_, _>>()?))
    }
}

impl OnlineTransform {
    /// Its kind and sizes; none for what has more axes than three, links other than a permutation between two products, or shards that
    /// differ.
    #[must_use]
    pub fn shape(&self) -> Option<OnlineShape> {
        match self.kind() {
            OnlineKind::Kronecker(axes) => {
                let shape = OnlineShape::new(axes.iter().map(|axis| match axis {
                    AxisTransform::Identity(size) => AxisShape::Identity(*size),
                    AxisTransform::Walsh(size) => AxisShape::Walsh(*size),
                    AxisTransform::Dense(matrix) => AxisShape::Dense(matrix.nrows()),
                }));
                // More axes than it holds.
                (shape.width() == self.width()).then_some(shape)
            }
            OnlineKind::Blocks(parts) => {
                let first = parts.first()?.shape()?;
                let equal = first.shards == 1 && parts.iter().all(|part| part.shape() == Some(first));
                equal.then_some(OnlineShape { shards: parts.len(), ..first })
            }
            OnlineKind::Chain(links) => {
                let [first, permutation, second] = links.as_slice() else { return None };
                let (OnlineKind::Permutation(_), first, second) =
                    (permutation.kind(), first.shape()?, second.shape()?)
                else {
                    return None;
                };
                let plain = |shape: OnlineShape| shape.shards == 1 && shape.permuted.is_none();
                (plain(first) && plain(second)).then_some(first.and_permuted(second.axes))
            }
            OnlineKind::Permutation(_) => None,
        }
    }
    /// Its permutations, in the order of [`OnlineShape::orders`].
    #[must_use]
    pub fn orders(&self) -> Vec<&[u32]> {
        match self.kind() {
            OnlineKind::Kronecker(_) => Vec::new(),
            OnlineKind::Permutation(order) => vec![order],
            OnlineKind::Blocks(parts) | OnlineKind::Chain(parts) => {
                parts.iter().flat_map(Self::orders).collect()
            }
        }
    }
    /// Its matrices, in the order of [`OnlineShape::matrices`].
    #[must_use]
    pub fn matrices(&self) -> Vec<&Array2<f32>> {
        match self.kind() {
            OnlineKind::Kronecker(axes) => axes
                .iter()
                .filter_map(|axis| if let AxisTransform::Dense(matrix) = axis { Some(matrix) } else { None })
                .collect(),
            OnlineKind::Permutation(_) => Vec::new(),
            OnlineKind::Blocks(parts) | OnlineKind::Chain(parts) => {
                parts.iter().flat_map(Self::matrices).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_transforms_tell_the_same() {
        let dense = |n: usize, seed: usize| {
            Array2::from_shape_fn((n, n), |(i, j)| ((i * 7 + j * 3 + seed) % 11) as f32 - 5.0)
        };
        let axes = [AxisShape::Dense(3), AxisShape::Identity(2), AxisShape::Dense(2)];
        for shards in [1, 2] {
            let shape = OnlineShape { shards, ..OnlineShape::new(axes) };
            let matrices: Vec<_> =
                shape.matrices().into_iter().enumerate().map(|(seed, n)| dense(n, seed)).collect();
            assert_eq!((shape.width(), matrices.len()), (12 * shards, 2 * shards));
            let transform = shape.build(matrices.clone()).unwrap();
            assert_eq!(transform.shape(), Some(shape));
            assert_eq!(transform.matrices(), matrices.iter().collect::<Vec<_>>());
            assert!(shape.build(matrices[1..].to_vec()).unwrap_err().to_string().contains("square ones of"));
        }
        let one = AxisTransform::Identity(1);
        let loose = OnlineTransform::kronecker(vec![one.clone(), AxisTransform::Walsh(8), one]).unwrap();
        let walsh = OnlineShape::new([AxisShape::Walsh(8)]);
        assert_eq!(loose.shape(), Some(walsh));
        let many = vec![AxisTransform::Walsh(2); 4];
        assert_eq!(OnlineTransform::kronecker(many).unwrap().shape(), None);
        assert!(walsh.is_walsh() && !OnlineShape::new(axes).is_walsh());
        let one = walsh.build(Vec::new()).unwrap();
        assert_eq!(OnlineTransform::chain(vec![one.clone(), one]).unwrap().shape(), None);
        // A permutation between two products, in every shard.
        for shards in [1, 2] {
            let blocks = [AxisShape::Identity(2), AxisShape::Dense(3)];
            let shape = OnlineShape { shards, ..OnlineShape::new(blocks).and_permuted(axes) };
            assert_eq!(
                (shape.width(), shape.matrices(), shape.orders()),
                (6 * shards, [3, 3, 2].repeat(shards), vec![6; shards])
            );
            let shape = OnlineShape { permuted: Some(OnlineShape::new(blocks).axes), ..shape };
            let matrices: Vec<_> = (0..2 * shards).map(|seed| dense(3, seed)).collect();
            let orders: Vec<Vec<u32>> =
                (0..shards as u32).map(|s| (0..6).map(|i| (i * 5 + s) % 6).collect()).collect();
            let transform = shape.build_permuted(matrices.clone(), orders.clone()).unwrap();
            assert_eq!(transform.shape(), Some(shape));
            assert_eq!(transform.matrices(), matrices.iter().collect::<Vec<_>>());
            assert_eq!(transform.orders(), orders);
            let told = shape.build(matrices.clone()).unwrap_err().to_string();
            assert!(told.contains("orders of [6"), "{told}");
            let twice = vec![vec![0; 6]; shards];
            assert!(shape.build_permuted(matrices.clone(), twice).is_err());
            // Products of different widths.
            let wide = OnlineShape { permuted: Some(OnlineShape::new([AxisShape::Walsh(8)]).axes), ..shape };
            assert!(wide.build_permuted(matrices[..shards].to_vec(), orders).is_err());
            assert!(!shape.is_walsh());
        }
        // What a file can say and no transform can be.
        for wrong in [AxisShape::Walsh(12), AxisShape::Identity(0), AxisShape::Identity(usize::MAX)] {
            assert!(OnlineShape::new([wrong, AxisShape::Walsh(2)]).build(Vec::new()).is_err(), "{wrong:?}");
        }
        assert!(OnlineShape { shards: 0, ..walsh }.build(Vec::new()).is_err());
    }
}
