use ndarray::{Array1, Array2, ArrayView2, array};
use proptest::prelude::*;
use quant_core::codec::{decoded, encoded};
use quant_core::{
    ActQuant, ActRule, Bits, Convention, FloatType, Grid, Groups, Variant, matrix::round_matrix,
};
use quant_kernels::{Element, Par};
use quant_testkit::{Golden, Numbers};

use super::*;
use crate::RotateError;

fn bits(n: u32) -> Bits {
    Bits::new(n).unwrap()
}

fn random(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
    Numbers::new(seed).matrix(rows, columns, 2.0).mapv(f64::from)
}

fn logits(count: usize, seed: u64) -> ClipLogits<f64> {
    let mut numbers = Numbers::new(seed);
    let mut draw = || numbers.vector(count, 1.5, 1.0).mapv(f64::from);
    ClipLogits { max: draw(), min: draw() }
}

fn sigmoid(c: f64) -> f64 {
    1.0 / (1.0 + (-c).exp())
}

/// Forward quantisation as the straight-through gradient sees it, of its own: what rounding added to each element, which elements are
/// clipped, to which level, and the zero level are those of a base point; the rest moves.
struct Frozen {
    /// Level of the base point, less what it is of `x / s` where it is not clipped.
    offset: Array2<f64>,
    clipped: Array2<bool>,
    quantiser: StraightThrough,
    run: usize,
    /// 1e-5, or 0.
    floor: f64,
}

impl Frozen {
    fn scale_and_zero(
        &self,
        x: ArrayView2<'_, f64>,
        clip: Option<&ClipLogits<f64>>,
        t: usize,
        r: usize,
    ) -> (f64, f64) {
        let run: Vec<f64> = (0..self.run).map(|j| x[(t, r * self.run + j)]).collect();
        let at = |c: &Array1<f64>| if c.len() == 1 { c[0] } else { c[r] };
        let (max, min) = clip.map_or((1.0, 1.0), |c| (sigmoid(at(&c.max)), sigmoid(at(&c.min))));
        let high = run.iter().fold(0.0_f64, |a, &b| a.max(b)) * max;
        let low = run.iter().fold(0.0_f64, |a, &b| a.min(b)) * min;
        let (mid, top) =
            (f64::from(self.quantiser.bits().mid_level()), f64::from(self.quantiser.bits().max_level()));
        if self.quantiser.is_symmetric() {
            let size = high.max(-low).max(self.floor);
            (if size == 0.0 { 1.0 } else { size / (mid - 1.0) }, mid)
        } else {
            let (low, high) = if low == 0.0 && high == 0.0 { (-1.0, 1.0) } else { (low, high) };
            let scale = (high - low).max(self.floor) / top;
            (scale, (-low / scale).round_ties_even())
        }
    }

    fn new(
        quantiser: StraightThrough,
        floor: f64,
        x: &Array2<f64>,
        run: usize,
        clip: Option<&ClipLogits<f64>>,
    ) -> Self {
        let mut frozen = Self {
            offset: Array2::zeros(x.dim()),
            clipped: Array2::from_elem(x.dim(), false),
            quantiser,
            run,
            floor,
        };
        let top = f64::from(quantiser.bits().max_level());
        for ((t, j), &v) in x.indexed_iter() {
            let (scale, zero) = frozen.scale_and_zero(x.view(), clip, t, j / run);
            let level = (v / scale).round_ties_even() + zero;
            frozen.clipped[(t, j)] = level < 0.0 || level > top;
            frozen.offset[(t, j)] = if frozen.clipped[(t, j)] {
                level.clamp(0.0, top) - zero
            } else {
                (v / scale).round_ties_even() - v / scale
            };
        }
        frozen
    }

    fn forward(&self, x: &Array2<f64>, clip: Option<&ClipLogits<f64>>) -> Array2<f64> {
        Array2::from_shape_fn(x.dim(), |(t, j)| {
            let (scale, _) = self.scale_and_zero(x.view(), clip, t, j / self.run);
            let steps = if self.clipped[(t, j)] { 0.0 } else { x[(t, j)] / scale };
            scale * (steps + self.offset[(t, j)])
        })
    }
}

fn close(what: &str, found: f64, want: f64) {
    assert!((found - want).abs() <= 1e-6 * want.abs().max(1.0), "{what}: {found}, by differences {want}");
}

/// Central difference of `f` at 0.
fn slope(f: impl Fn(f64) -> f64) -> f64 {
    let step = 1e-6;
    (f(step) - f(-step)) / (2.0 * step)
}

fn check_quantiser(
    quantiser: StraightThrough,
    floor: f64,
    x: &Array2<f64>,
    run: usize,
    clip: Option<&ClipLogits<f64>>,
) {
    let frozen = Frozen::new(quantiser, floor, x, run, clip);
    let y = quantiser.forward(x.view(), run, clip, Par::Seq).unwrap();
    let want = frozen.forward(x, clip);
    assert!((&y - &want).iter().all(|d| d.abs() < 1e-12), "forward");
    let c = random(x.nrows(), x.ncols(), 99);
    let gradient = quantiser.backward(x.view(), c.view(), run, clip, Par::Seq).unwrap();
    for (at, &found) in gradient.input.indexed_iter() {
        let want = slope(|by| {
            let mut moved = x.clone();
            moved[at] += by;
            (&c * &frozen.forward(&moved, clip)).sum()
        });
        close(&format!("{quantiser:?} {at:?}"), found, want);
    }
    if let (Some(clip), Some(found)) = (clip, &gradient.clip) {
        for at in 0..clip.max.len() {
            let upper = |by: f64| {
                let mut moved = clip.clone();
                moved.max[at] += by;
                (&c * &frozen.forward(x, Some(&moved))).sum()
            };
            let lower = |by: f64| {
                let mut moved = clip.clone();
                moved.min[at] += by;
                (&c * &frozen.forward(x, Some(&moved))).sum()
            };
            close("upper logit", found.max[at], slope(upper));
            close("lower logit", found.min[at], slope(lower));
        }
    }
    assert_eq!(gradient.clip.is_some(), clip.is_some());
    // Threads and layout change nothing.
    let columns = x.t().as_standard_layout().into_owned();
    assert_eq!(quantiser.forward(columns.t(), run, clip, Par::new(3)).unwrap(), y);
    assert_eq!(quantiser.backward(columns.t(), c.view(), run, clip, Par::new(3)).unwrap(), gradient);
}

#[test]
fn gradients_of_quantisers_are_differences() {
    for (n, symmetric) in [(2, true), (4, true), (8, true), (1, false), (2, false), (4, false), (8, false)] {
        let all = [
            (StraightThrough::activations(bits(n), symmetric).unwrap(), 0.0),
            (StraightThrough::weights(bits(n), symmetric).unwrap(), 1e-5),
        ];
        for (quantiser, floor) in all {
            for (rows, columns, run) in [(3, 7, 7), (2, 40, 20), (4, 6, 2), (50, 2, 2), (0, 4, 4)] {
                let mut x = random(rows, columns, u64::from(n));
                if rows > 2 {
                    // One-sided rows: the end that is 0 has no gradient.
                    x.row_mut(0).mapv_inplace(|v| v.abs() + 0.1);
                    x.row_mut(1).mapv_inplace(|v| -v.abs() - 0.1);
                }
                check_quantiser(quantiser, floor, &x, run, None);
                for count in [1, columns / run] {
                    check_quantiser(quantiser, floor, &x, run, Some(&logits(count, 5)));
                }
            }
        }
    }
}

#[test]
fn runs_of_nothing_have_no_scale_gradient() {
    let (x, g) = (Array2::<f64>::zeros((1, 4)), Array2::from_elem((1, 4), 2.0));
    let clip = ClipLogits::initial(1);
    for symmetric in [true, false] {
        for quantiser in
            [StraightThrough::activations(bits(4), symmetric), StraightThrough::weights(bits(4), symmetric)]
        {
            let quantiser = quantiser.unwrap();
            assert_eq!(quantiser.forward(x.view(), 4, Some(&clip), Par::Seq).unwrap(), x);
            let gradient = quantiser.backward(x.view(), g.view(), 4, Some(&clip), Par::Seq).unwrap();
            assert_eq!((gradient.input, gradient.clip), (g.clone(), Some(ClipLogits::zeros(1))));
        }
    }
    // Below the floor of weights: elements have their gradient, the floor has none.
    let x = array![[1e-7, -4e-6]];
    let weights = StraightThrough::weights(bits(4), true).unwrap();
    let gradient = weights.backward(x.view(), array![[1.0, 1.0]].view(), 2, None, Par::Seq).unwrap();
    assert_eq!(gradient.input, array![[1.0, 1.0]]);
}

/// The largest value lands on the last level: its own gradient passes. Two equal ends of a symmetric range share that of the scale.
#[test]
fn ends_of_the_range_pass_gradients() {
    let quantiser = StraightThrough::activations(bits(4), false).unwrap();
    let x = array![[15.0_f64, 0.0, 7.2]];
    let gradient = quantiser.backward(x.view(), array![[1.0, 0.0, 0.0]].view(), 3, None, Par::Seq).unwrap();
    assert_eq!(gradient.input, array![[1.0, 0.0, 0.0]]);
    let symmetric = StraightThrough::activations(bits(4), true).unwrap();
    let gradient = symmetric.backward(
        array![[-7.0_f64, 7.0, 2.5]].view(),
        array![[0.0, 0.0, 1.0]].view(),
        3,
        None,
        Par::Seq,
    );
    // Half a step of rounding, a seventh of it for the scale, by half to each end.
    let share = -0.5 / 7.0 / 2.0;
    let found = gradient.unwrap().input;
    let want = array![[-share, share, 1.0]];
    assert!((&found - &want).iter().all(|d| d.abs() < 1e-15), "{found}");
}

#[test]
fn what_is_not_a_number_stays_one() {
    let quantiser = StraightThrough::activations(bits(8), true).unwrap();
    let y = quantiser
        .forward(array![[1.0_f32, f32::NAN], [f32::INFINITY, 1.0]].view(), 2, None, Par::Seq)
        .unwrap();
    assert!(y[(0, 0)] == 1.0 && y[(0, 1)].is_nan() && y[(1, 0)].is_nan() && y[(1, 1)].is_nan(), "{y}");
}

fn equal_to_the_specification<T: Element>(x: &Array2<T>, n: u32, symmetric: bool, run: usize) {
    let rule = if symmetric { ActRule::Symmetric } else { ActRule::Asymmetric };
    let mut want = x.clone();
    let shards = x.ncols() / run;
    ActQuant::Dynamic { bits: bits(n), rule, clip_ratio: 1.0.into(), shards }.fake_quantize(want.view_mut());
    let got = StraightThrough::activations(bits(n), symmetric)
        .unwrap()
        .forward(x.view(), run, None, Par::Seq)
        .unwrap();
    assert_eq!(got, want, "{n} bits, symmetric {symmetric}");
}

proptest! {
    /// Forward is the dynamic quantiser of quant-core, and the official grid of weights, to the bit.
    #[test]
    fn forward_is_that_of_quant_core(rows in 0usize..5, runs in 1usize..4, run in 1usize..40, n in 2u32..9, symmetric: bool, seed: u64) {
        let x = Numbers::new(seed).matrix(rows, runs * run, 3.0);
        equal_to_the_specification(&x, n, symmetric, run);
        equal_to_the_specification(&x.mapv(f64::from), n, symmetric, run);
        let convention = if symmetric { Convention::QSym } else { Convention::QAsym };
        let grid = Grid::new(convention, bits(n), Variant::Official, FloatType::F32).unwrap();
        let want = round_matrix(&grid, None, Groups::Size(run), x.view()).unwrap().dequantize();
        let got = StraightThrough::weights(bits(n), symmetric).unwrap().forward(x.view(), run, None, Par::Seq).unwrap();
        prop_assert_eq!(got, want);
    }
}

/// Of an independent version that freezes which elements are clipped.
#[test]
fn gradients_of_clipped_weights_are_differences() {
    for (rows, columns, run) in [(3, 9, 9), (2, 40, 20), (5, 4, 2), (50, 3, 3), (0, 3, 3)] {
        let mut w = random(rows, columns, 3);
        if rows > 2 {
            w.row_mut(0).mapv_inplace(|v| v.abs() + 0.5);
            w.row_mut(1).mapv_inplace(|v| -v.abs() - 0.5);
        }
        let runs = rows * columns / run;
        let clip = logits(runs, 8);
        let forward = |w: &Array2<f64>, clip: &ClipLogits<f64>| {
            Array2::from_shape_fn(w.dim(), |(i, j)| {
                let r = i * (columns / run) + j / run;
                let values: Vec<f64> = (0..run).map(|k| w[(i, j / run * run + k)]).collect();
                let high = values.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b)) * sigmoid(clip.max[r]);
                let low = values.iter().fold(f64::INFINITY, |a, &b| a.min(b)) * sigmoid(clip.min[r]);
                w[(i, j)].max(low).min(high)
            })
        };
        let clipped = clip_weight(w.view(), run, &clip, Par::Seq).unwrap();
        assert!((&clipped - &forward(&w, &clip)).iter().all(|d| d.abs() < 1e-12));
        let c = random(rows, columns, 4);
        let (of_weight, of_logits) = clip_weight_gradient(w.view(), c.view(), run, &clip, Par::Seq).unwrap();
        let loss = |w: &Array2<f64>, clip: &ClipLogits<f64>| (&c * &forward(w, clip)).sum();
        for (at, &found) in of_weight.indexed_iter() {
            let want = slope(|by| {
                let mut moved = w.clone();
                moved[at] += by;
                loss(&moved, &clip)
            });
            close(&format!("weight {at:?}"), found, want);
        }
        for at in 0..runs {
            let upper = |by: f64| {
                let mut moved = clip.clone();
                moved.max[at] += by;
                loss(&w, &moved)
            };
            let lower = |by: f64| {
                let mut moved = clip.clone();
                moved.min[at] += by;
                loss(&w, &moved)
            };
            close("upper logit", of_logits.max[at], slope(upper));
            close("lower logit", of_logits.min[at], slope(lower));
        }
        assert_eq!(clip_weight(w.view(), run, &clip, Par::new(3)).unwrap(), clipped);
        let shared = clip_weight_gradient(w.view(), c.view(), run, &clip, Par::new(3)).unwrap();
        assert_eq!(shared, (of_weight, of_logits));
    }
}

/// At a bound the element has the gradient, as in PyTorch; where bounds are in the wrong order the upper one has all of it.
#[test]
fn bounds_of_weights() {
    let even = ClipLogits { max: array![0.0_f64], min: array![0.0] };
    let (w, g) = (array![[-2.0, 1.0, -1.0, 2.0]], array![[0.0, 1.0, 1.0, 0.0]]);
    let (of_weight, of_logits) = clip_weight_gradient(w.view(), g.view(), 4, &even, Par::Seq).unwrap();
    assert_eq!((of_weight, of_logits), (g, ClipLogits::zeros(1)));
    let wrong = ClipLogits { max: array![-2.0_f64], min: array![8.0] };
    let w = array![[3.0, 4.0]];
    let high = 4.0 * sigmoid(-2.0);
    assert!(clip_weight(w.view(), 2, &wrong, Par::Seq).unwrap().iter().all(|v| (v - high).abs() < 1e-15));
    let (of_weight, of_logits) =
        clip_weight_gradient(w.view(), array![[1.0, 1.0]].view(), 2, &wrong, Par::Seq).unwrap();
    assert!(of_weight[(0, 0)] == 0.0 && (of_weight[(0, 1)] - 2.0 * sigmoid(-2.0)).abs() < 1e-15);
    assert!(of_logits.min[0] == 0.0 && of_logits.max[0] > 0.0);
    // At the beginning every range shrinks by sigmoid(4) = 0.982013790.
    let begun = clip_weight(array![[-1.0, 0.0, 1.0]].view(), 3, &ClipLogits::initial(1), Par::Seq).unwrap();
    assert!((begun[(0, 2)] - 0.982_013_790_f64).abs() < 1e-9 && begun[(0, 0)] == -begun[(0, 2)]);
}

#[test]
fn logits_come_back_from_their_bytes() {
    let clip = ClipLogits { max: array![1.0_f32, 2.0], min: array![-0.5, 0.25] };
    assert_eq!(decoded::<ClipLogits<f32>>(&encoded(&clip)).unwrap(), clip);
}

#[test]
fn shapes_are_checked() {
    let (x, clip) = (Array2::<f32>::zeros((2, 6)), ClipLogits::<f32>::initial(3));
    let quantiser = StraightThrough::activations(bits(4), true).unwrap();
    let error = quantiser.forward(x.view(), 4, None, Par::Seq).unwrap_err().to_string();
    assert_eq!(error, "columns to quantise: expected a whole number of runs of 4, found 6");
    let error = quantiser.forward(x.view(), 3, Some(&clip), Par::Seq).unwrap_err().to_string();
    assert_eq!(error, "clip logits of a quantiser: expected 1 or 2 of each end, found 3 and 3");
    assert!(quantiser.backward(x.view(), Array2::zeros((2, 3)).view(), 3, None, Par::Seq).is_err());
    assert!(quantiser.forward(x.view(), 0, None, Par::Seq).is_err());
    assert!(clip_weight(x.view(), 6, &clip, Par::Seq).is_err());
    assert!(clip_weight(x.view(), 4, &clip, Par::Seq).is_err());
    assert!(
        clip_weight_gradient(x.view(), Array2::zeros((1, 6)).view(), 6, &ClipLogits::initial(2), Par::Seq)
            .is_err()
    );
    let one = StraightThrough::weights(bits(1), true).unwrap_err();
    assert_eq!(
        one,
        RotateError::Setting { name: "bits", value: "1".into(), expected: "2 to 8 where symmetric" }
    );
}

/// Every case of FlatQuant's activation quantiser, and of the row quantiser of its weights without a search.
#[test]
fn the_golden_file() {
    let Some(golden) = Golden::shared("quantizer.safetensors") else { return };
    let mut cases = 0;
    for (name, case) in golden.cases() {
        let n = u32::try_from(case["bits"].as_u64().unwrap_or(0)).unwrap();
        let symmetric = case["sym"].as_bool().unwrap_or(true);
        let (input, quantiser, clip) = match case["impl"].as_str().unwrap() {
            "flatquant_act" => {
                let logit = |end: &str| array![case[format!("clip_factor_a_{end}")].as_f64().unwrap() as f32];
                let clip = ClipLogits { max: logit("max"), min: logit("min") };
                ("X", StraightThrough::activations(bits(n), symmetric), Some(clip))
            }
            "qhs" if case["mse"] == false => ("W", StraightThrough::weights(bits(n), symmetric), None),
            _ => continue,
        };
        let x = golden.matrix(input);
        let run = case["groupsize"].as_u64().map_or(x.ncols(), |g| usize::try_from(g).unwrap());
        let got = quantiser.unwrap().forward(x.view(), run, clip.as_ref(), Par::Seq).unwrap();
        let part = |part: &str| golden.vector(&format!("{name}.{part}"));
        let (codes, scale, zero) = (golden.matrix(&format!("{name}.codes")), part("scale"), part("zero"));
        let mut different = 0;
        for ((i, j), &found) in got.indexed_iter() {
            let at = i * (x.ncols() / run) + j / run;
            let want = scale[at] * (codes[(i, j)] - zero.get(at).copied().unwrap_or(0.0));
            // Another code is allowed at half a step.
            let steps = x[(i, j)] / scale[at];
            let tie = (steps - steps.floor() - 0.5).abs() <= 1e-6 * steps.abs().max(1.0);
            let same = (found - want).abs() <= 1e-6 * want.abs();
            assert!(
                same || (tie && (found - want).abs() <= 1.001 * scale[at]),
                "{name} ({i}, {j}): {found} for {want}"
            );
            different += usize::from(!same);
        }
        assert!(different * 2000 <= got.len(), "{name}: {different} codes differ");
        cases += 1;
    }
    assert_eq!(cases, 20);
}
