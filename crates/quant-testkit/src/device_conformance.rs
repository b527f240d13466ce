//! What a device does beside integer products: floats times coded weights, and attention over a cache of codes.

use ndarray::{Array1, Array2, ArrayView2};
use quant_core::operators::{Cached, ChannelCodes, CodeCacheForm, Processor};
use quant_core::{Bits, CoreError, FloatType, Groups, QuantizedMatrix};

use crate::Numbers;
use crate::conformance::{Conformance, canonical};

/// A whole product of floats `[tokens, in]` with a coded weight `[out, in]` and a bias `[out]`, with results of the type of the model.
pub type WeightOnlyProduct<'a> = dyn Fn(&QuantizedMatrix, Option<&Array1<f32>>, ArrayView2<'_, f32>) -> Result<Array2<f32>, CoreError>
    + 'a;

/// Inputs of one sum.
const PIECE: usize = 256;

/// The stated arithmetic of such a product, number by number, for a model of type `model`.
///
/// Activations, scales and zero codes are rounded to that type; a weight is `(code + offset) · scale`, rounded once, in f16 after each
/// operation; exact products are added in f32 in the order of inputs, within pieces of 256 whose sums are added in their order; the bias,
/// rounded to f16 beside f16, is added to that, and the result rounded.
#[must_use]
pub fn weight_only_reference(
    weight: &QuantizedMatrix,
    bias: Option<&Array1<f32>>,
    x: ArrayView2<'_, f32>,
    model: FloatType,
) -> Array2<f32> {
    let f16 = model == FloatType::F16;
    let number = |row: usize, column: usize| {
        let params = weight.params(row, weight.groups().of(column));
        let middle = weight.bits().mid_level();
        let code = f32::from(weight.levels()[(row, column)]) - middle;
        let sum = code + model.round(middle - params.zero);
        model.round(if f16 { model.round(sum) } else { sum } * model.round(params.scale))
    };
    Array2::from_shape_fn((x.nrows(), weight.dim().0), |(token, output)| {
        let mut total: Option<f32> = None;
        for first in (0..x.ncols()).step_by(PIECE) {
            let piece = first..x.ncols().min(first + PIECE);
            let sum =
                piece.fold(0.0_f32, |sum, l| model.round(x[(token, l)]).mul_add(number(output, l), sum));
            total = Some(total.map_or(sum, |total| total + sum));
        }
        let total = total.unwrap_or(0.0);
        let bias = bias.map(|bias| if f16 { model.round(bias[output]) } else { bias[output] });
        model.round(bias.map_or(total, |bias| total + bias))
    })
}

/// A weight of random levels; `zeros` says whether each group has a zero level of its own.
fn coded(bits: u32, (n, k): (usize, usize), groups: Groups, zeros: bool) -> QuantizedMatrix {
    let bits = Bits::new(bits).unwrap();
    let mut numbers = Numbers::new(u64::from(bits.get()) + k as u64);
    let middle = bits.mid_level();
    let level = |x: f32| (x + middle).round().clamp(0.0, bits.max_level()) as u8;
    let mut levels = numbers.matrix(n, k, middle).mapv(level);
    // Behind two pieces of a sum come the weights of the second.
    for mut row in levels.rows_mut() {
        (2 * PIECE..k).for_each(|column| row[column] = row[column - PIECE]);
    }
    let dim = (n, groups.count(k));
    let scales = Array2::from_shape_fn(dim, |(i, g)| 0.011 + 0.0007 * ((i * 7 + g * 3) % 13) as f32);
    let zero = |i: usize, g: usize| if zeros { level((i * 5 + g) as f32 % 7.0 - 3.0).into() } else { middle };
    let zeros = Array2::from_shape_fn(dim, |(i, g)| zero(i, g));
    QuantizedMatrix::new(bits, levels, scales, zeros, groups).unwrap()
}

impl Conformance {
    /// Products of floats with weights of 8 and 4 bits, with scales of outputs and of groups, with zero levels and without: equal to
    /// [`weight_only_reference`], bit for bit.
    ///
    /// # Panics
    /// Where the implementation differs, with the case.
    pub fn check_weight_only(&self, name: &str, product: &WeightOnlyProduct<'_>) {
        let model = self.inputs;
        for (m, n, k) in
            [(1, 1, 1), (3, 64, 96), (1, 70, 129), (5, 33, 64), (5, 70, 640), (2, 4, 0), (0, 4, 8)]
        {
            let mut x = Numbers::new(17).matrix(m, k, 2.0);
            if m > 2 && k > 1 {
                x.row_mut(0).fill(0.0);
                x[(1, 1)] = f32::NAN;
                x[(2, 0)] = f32::INFINITY;
            }
            if m > 3 && k > 2 * PIECE + 5 {
                // Two pieces that cancel cut something off the first, unless they meet before it.
                (x[(3, PIECE + 5)], x[(3, 2 * PIECE + 5)]) = (32_768.0, -32_768.0);
            }
            let bias = Array1::from_shape_fn(n, |j| j as f32 * 0.37 - 1.03);
            for (bits, groups, zeros) in [
                (8, Groups::Channel, false),
                (8, Groups::Channel, true),
                (8, Groups::Size(32), true),
                (4, Groups::Channel, false),
                (4, Groups::Size(32), true),
                (4, Groups::Size(32), false),
                // Not a divisor of all of these, and more than some have.
                (4, Groups::Size(128), false),
            ] {
                let case = format!("{name} {m}x{k}x{n} {bits} bits, {groups:?}, zero levels {zeros}");
                let weight = coded(bits, (n, k), groups, zeros);
                for bias in [None, Some(&bias)] {
                    let want = weight_only_reference(&weight, bias, x.view(), model).mapv(canonical);
                    let got = product(&weight, bias, x.view()).unwrap().mapv(canonical);
                    assert_eq!(got, want, "{case}, bias {}", bias.is_some());
                }
            }
        }
    }

    /// A cache that grows, with sequences on pages out of order and slots that are written twice, beside attention in f64. Whether the
    /// implementation has one: without, nothing is compared.
    ///
    /// # Panics
    /// Where a result is farther off than rounding, with the case.
    pub fn check_cache(&self, name: &str, operators: &dyn Processor) -> bool {
        let (heads, kv_heads, head_dim, page) = (6, 2, 32, 64);
        let width = kv_heads * head_dim;
        let round = |x: f32| self.inputs.round(x);
        // Half a last place of the model's type, twice: of the result, and for what the device's own sums round.
        let rounding = match self.inputs {
            FloatType::F16 => 2.0_f64.powi(-10),
            FloatType::Bf16 | FloatType::F32 => 2.0_f64.powi(-8),
        };
        let mut scales = Numbers::new(22);
        let mut side = |zero: f32| ChannelCodes {
            scales: scales.vector(width, 0.02, 0.01).mapv(round),
            zeros: Array1::from_shape_fn(width, |i| zero * (i % 5) as f32),
        };
        let mut numbers = Numbers::new(21);
        // Without zero codes there is no offset.
        for (keys, values) in [(side(-3.0), side(7.0)), (side(0.0), side(0.0))] {
            let form =
                CodeCacheForm { heads, kv_heads, head_dim, page, keys: keys.clone(), values: values.clone() };
            let Some(mut cache) = operators.code_cache(&form).unwrap() else { return false };
            let (pages, lengths) = ([vec![2_u32, 0, 4], vec![1, 3]], [130, 65]);
            let mut codes = |count: usize| -> Vec<i8> {
                numbers.matrix(count, width, 127.0).iter().map(|&x| x as i8).collect()
            };
            let held = lengths.map(|length| [codes(length), codes(length)]);
            // The second sequence is short at first, and the cache grows between; the last time nothing is new.
            for (reserved, begins, ends) in
                [(4, [0, 0], [100, 1]), (5, [0, 1], [130, 65]), (5, [130, 65], [130, 65])]
            {
                cache.reserve(reserved).unwrap();
                for sequence in 0..2 {
                    for position in begins[sequence]..ends[sequence] {
                        let row = position * width..(position + 1) * width;
                        let (at, slot) = (pages[sequence][position / page], position % page);
                        // Somebody else's before.
                        cache.write(at, slot, &vec![-7; width], &vec![9; width]).unwrap();
                        let [key, value] = &held[sequence];
                        cache.write(at, slot, &key[row.clone()], &value[row]).unwrap();
                    }
                }
                let queries = Numbers::new(4).matrix(2, heads * head_dim, 1.0).mapv(round);
                let mut out = queries.clone();
                let sequences = [0, 1].map(|i| Cached { pages: &pages[i], length: ends[i] });
                cache.attend(out.view_mut(), &sequences).unwrap();
                for sequence in 0..2 {
                    let [key, value] = &held[sequence];
                    let (key, value) = (numbers_of(key, &keys), numbers_of(value, &values));
                    for head in 0..heads {
                        let queries = queries.row(sequence);
                        let query = (0..head_dim).map(|i| f64::from(queries[head * head_dim + i]));
                        let first = head / (heads / kv_heads) * head_dim;
                        let score = |t: usize| -> f64 {
                            let products =
                                query.clone().enumerate().map(|(i, q)| q * key[t * width + first + i]);
                            products.sum::<f64>() / (head_dim as f64).sqrt()
                        };
                        let weights: Vec<f64> = (0..ends[sequence]).map(|t| score(t).exp()).collect();
                        for i in 0..head_dim {
                            let sum =
                                weights.iter().enumerate().map(|(t, w)| w * value[t * width + first + i]);
                            let want = sum.sum::<f64>() / weights.iter().sum::<f64>();
                            let got = f64::from(out[(sequence, head * head_dim + i)]);
                            let bound = rounding * want.abs() + 1e-4;
                            assert!((got - want).abs() <= bound, "{name} sequence {sequence}: {got} {want}");
                        }
                    }
                }
            }
        }
        true
    }
}

/// The numbers of codes `[tokens, channels]`.
fn numbers_of(codes: &[i8], of: &ChannelCodes) -> Vec<f64> {
    let width = of.scales.len();
    let value = |(i, &code): (usize, &i8)| {
        f64::from(of.scales[i % width]) * (f64::from(code) - f64::from(of.zeros[i % width]))
    };
    codes.iter().enumerate().map(value).collect()
}
