//! What differences of weights do to the output: `e(d) = Σ_tokens (x · d)²`.

use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, Axis, Slice};
use quant_kernels::{Compute, Par, PreparedWeight, gram_lower, vectorized};

/// Columns of the Gram matrix that meet the differences in one product: more of them waste more on the empty half of the
/// diagonal block, fewer are slower products.
const NARROW_BLOCK: usize = 64;
const WIDE_BLOCK: usize = 512;

/// The inputs of a linear, packed once in the form that is cheaper for many differences.
#[derive(Debug)]
pub(super) enum Energy {
    /// `‖X d‖²`: the tokens as the rows of a product, `[tokens, in]`.
    Tokens(PreparedWeight<f32>),
    /// `dᵀ C d = 2 dᵀ L d`, with `L` the lower triangle of `C = XᵀX` and half its diagonal: half the work of the whole
    /// square. Entry `(j, L[j.., j..j + block]ᵀ)`.
    Gram(Vec<(usize, PreparedWeight<f32>)>),
}

impl Energy {
    /// From tokens `[tokens, in]` that will meet `differences` rows.
    ///
    /// A product of differences and tokens takes `differences · in · tokens` steps; the Gram matrix takes `tokens · in²/2`
    /// once and `differences · in²/2` for its triangle.
    pub(super) fn new(tokens: ArrayView2<'_, f32>, differences: usize, par: Par) -> Self {
        let (count, n) = tokens.dim();
        let steps = |a: usize, b: usize, c: usize| a as f64 * b as f64 * c as f64;
        let direct = steps(differences, n, count);
        let triangle = 0.5 * (steps(count, n, n) + steps(differences, n, n + block(n)));
        if direct <= triangle {
            return Self::Tokens(PreparedWeight::new(tokens, Compute::F32, par));
        }
        Self::of_tokens_by_gram(tokens, par)
    }
    /// By the Gram matrix of tokens, whatever it costs.
    fn of_tokens_by_gram(tokens: ArrayView2<'_, f32>, par: Par) -> Self {
        let n = tokens.ncols();
        let mut gram = ndarray::Array2::zeros((n, n));
        gram_lower(gram.view_mut(), false, 1.0, tokens, Compute::F32, par);
        Self::of_gram(gram.view(), par)
    }
    /// From a square Gram matrix, of which the lower triangle is read.
    pub(super) fn of_gram(gram: ArrayView2<'_, f32>, par: Par) -> Self {
        let (n, width) = (gram.nrows(), block(gram.nrows()));
        let blocks = (0..n).step_by(width).map(|first| {
            let fill = |column: usize, row: &mut [f32]| {
                row[..column].fill(0.0);
                row[column] = 0.5 * gram[(first + column, first + column)];
                let (_, below) = gram.column(first + column).split_at(Axis(0), first + column + 1);
                for (to, &c) in row[column + 1..].iter_mut().zip(below) {
                    *to = c;
                }
            };
            let shape = (width.min(n - first), n - first);
            (first, PreparedWeight::from_rows(shape, Compute::F32, par, fill))
        });
        Self::Gram(blocks.collect())
    }
    /// `e` of every row of `differences` `[rows, in]` into `out` `[rows]`, on the calling thread. `scratch` is kept from call
    /// to call.
    pub(super) fn of_rows(&self, differences: ArrayView2<'_, f32>, scratch: &mut Vec<f32>, out: &mut [f64]) {
        let rows = differences.nrows();
        out.fill(0.0);
        match self {
            Self::Tokens(tokens) => {
                let outputs = product(tokens, differences, scratch);
                vectorized(
                    #[inline(always)]
                    || {
                        for (out, y) in out.iter_mut().zip(outputs.chunks(tokens.out_features().max(1))) {
                            *out = dot(y, y);
                        }
                    },
                );
            }
            Self::Gram(blocks) => {
                for (first, block) in blocks {
                    let below = differences.slice_axis(Axis(1), Slice::from(*first..));
                    let outputs = product(block, below, scratch);
                    let width = block.out_features();
                    vectorized(
                        #[inline(always)]
                        || {
                            for i in 0..rows {
                                let y = &outputs[i * width..(i + 1) * width];
                                if let Some(d) = below.row(i).to_slice() {
                                    out[i] += 2.0 * dot(y, &d[..width]);
                                }
                            }
                        },
                    );
                }
            }
        }
    }
}

/// Columns of a block of a triangle of `n`.
fn block(n: usize) -> usize {
    if n <= 8 * NARROW_BLOCK { NARROW_BLOCK } else { WIDE_BLOCK }
}

/// `d Aᵀ`, `[rows, out]` of `A`, in the front of `scratch`.
fn product<'a>(
    operand: &PreparedWeight<f32>,
    differences: ArrayView2<'_, f32>,
    scratch: &'a mut Vec<f32>,
) -> &'a [f32] {
    let shape = (differences.nrows(), operand.out_features());
    let length = shape.0 * shape.1;
    if scratch.len() < length {
        scratch.resize(length, 0.0);
    }
    if let Ok(y) = ArrayViewMut2::from_shape(shape, &mut scratch[..length]) {
        operand.forward_into(differences, None::<ArrayView1<'_, f32>>, y, Par::Seq);
    }
    &scratch[..length]
}

/// `Σ a b` in f64, in 16 fixed lanes added as a tree.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0.0_f64; LANES];
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            lanes[l] += f64::from(a[l]) * f64::from(b[l]);
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
        *lane += f64::from(a) * f64::from(b);
    }
    fold(lanes, |a, b| a + b)
}

/// The lanes folded as a balanced tree, in arrays of fixed sizes that never leave the registers.
#[inline(always)]
pub(super) fn fold<T: Copy>(lanes: [T; 16], f: impl Fn(T, T) -> T) -> T {
    let eight: [T; 8] = std::array::from_fn(|l| f(lanes[l], lanes[l + 8]));
    let four: [T; 4] = std::array::from_fn(|l| f(eight[l], eight[l + 4]));
    f(f(four[0], four[2]), f(four[1], four[3]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use quant_testkit::Numbers;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn tokens_and_triangle_give_the_sum_of_squares(
            tokens in 1_usize..90, n in 1_usize..700, rows in 1_usize..20, seed in any::<u64>(),
        ) {
            let mut numbers = Numbers::new(seed);
            let (x, d) = (numbers.activations(tokens, n), numbers.matrix(rows, n, 0.1));
            let expected: Vec<f64> = d.rows().into_iter().map(|d| {
                x.rows().into_iter().map(|x| {
                    let y: f64 = x.iter().zip(d).map(|(&x, &d)| f64::from(x) * f64::from(d)).sum();
                    y * y
                }).sum()
            }).collect();
            let direct = Energy::Tokens(PreparedWeight::new(x.view(), Compute::F32, Par::Seq));
            for energy in [direct, Energy::of_tokens_by_gram(x.view(), Par::Seq)] {
                let mut out = vec![f64::NAN; rows];
                energy.of_rows(d.view(), &mut Vec::new(), &mut out);
                // The scale against which f32 sums round: all terms of the quadratic form with one sign.
                for (i, (got, want)) in out.iter().zip(&expected).enumerate() {
                    let size: f64 = x.rows().into_iter().map(|x| {
                        let y: f64 = x.iter().zip(d.row(i)).map(|(&x, &d)| f64::from((x * d).abs())).sum();
                        y * y
                    }).sum();
                    prop_assert!((got - want).abs() <= 1e-6 * size, "{got} {want} {size}");
                }
            }
        }
    }

    #[test]
    fn the_cheaper_form_is_taken() {
        let x = Numbers::new(1).matrix(64, 128, 1.0);
        assert!(matches!(Energy::new(x.view(), 1000, Par::Seq), Energy::Tokens(_)));
        let x = Numbers::new(1).matrix(512, 128, 1.0);
        assert!(matches!(Energy::new(x.view(), 1000, Par::Seq), Energy::Gram(_)));
        assert!(matches!(Energy::new(x.view(), 1, Par::Seq), Energy::Tokens(_)), "not worth a Gram matrix");
    }
}
