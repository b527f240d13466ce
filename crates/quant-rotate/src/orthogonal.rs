//! Haar-random orthogonal matrices.

use ndarray::Array2;

use crate::KeyedRandom;
use crate::dense::orthogonal_factor;

/// An orthogonal matrix `[side, side]` drawn from the Haar measure with the stream of `seed` and `name`: the factor `Q` of a matrix
/// of standard normal numbers, with signs such that `R` has a positive diagonal (Mezzadri 2007).
///
/// `4/3 side^3` multiply-adds in f64 on one thread: a moment for the matrices of a transform, minutes for a hidden size of
/// 8192, where a [`RandomHadamard`](crate::RandomHadamard) costs nothing.
///
/// ```
/// use quant_rotate::haar;
///
/// let q = haar(16, 0, "blocks.0.kcache");
/// assert_eq!(q, haar(16, 0, "blocks.0.kcache"));
/// let identity = q.dot(&q.t());
/// assert!(identity.indexed_iter().all(|((i, j), v)| (v - f64::from(u8::from(i == j))).abs() < 1e-13));
/// ```
#[must_use]
pub fn haar(side: usize, seed: u64, name: &str) -> Array2<f64> {
    let mut random = KeyedRandom::new(seed, name);
    let columns = Array2::from_shape_simple_fn((side, side), || random.normal());
    // The columns of Q come as rows. The transpose of a Haar matrix is one too, but Q is what is documented.
    orthogonal_factor(columns).reversed_axes().as_standard_layout().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dense::product;

    #[test]
    fn orthogonal_and_keyed() {
        for side in [0, 1, 2, 33, 128] {
            let q = haar(side, 4, "x");
            let error = product(q.view(), q.t()) - Array2::<f64>::eye(side);
            assert!(error.iter().all(|e| e.abs() < 1e-13), "{side}");
        }
        assert!(haar(8, 4, "x") != haar(8, 5, "x") && haar(8, 4, "x") != haar(8, 4, "y"));
    }

    /// Under the Haar measure an entry has mean 0 and variance 1/n, on the diagonal as elsewhere: without the rule of signs the
    /// diagonal would lean to one side.
    #[test]
    fn entries_are_those_of_the_haar_measure() {
        let (side, draws) = (4, 4000_u32);
        let mut sums = Array2::<f64>::zeros((side, side));
        let mut squares = Array2::<f64>::zeros((side, side));
        for draw in 0..draws {
            let q = haar(side, u64::from(draw), "");
            squares += &(&q * &q);
            sums += &q;
        }
        let n = f64::from(draws);
        assert!(sums.iter().all(|s| (s / n).abs() < 0.04), "{}", sums / n);
        assert!(squares.iter().all(|s| (s / n - 0.25).abs() < 0.02), "{}", squares / n);
    }
}
