//! Backwards against finite differences of their forwards, in f64, and f32 against f64.

use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use quant_kernels::{
    CausalSoftmax, Compute, Element, Par, matmul_nn, matmul_nt, rms_norm, rms_norm_backward, rope_in_place,
    row_dots, silu_mul, silu_mul_backward, softmax_rows_causal, softmax_tile_backward,
};
use quant_testkit::Numbers;

fn random(rows: usize, columns: usize, scale: f32, numbers: &mut Numbers) -> Array2<f64> {
    numbers.matrix(rows, columns, scale).mapv(f64::from)
}

/// `d/dt loss(x + t direction)` at 0: central differences of two steps, combined so that their fourth-order error goes.
fn slope(x: &Array2<f64>, direction: &Array2<f64>, loss: impl Fn(Array2<f64>) -> f64) -> f64 {
    let central = |h: f64| (loss(x + &(direction * h)) - loss(x - &(direction * h))) / (2.0 * h);
    (4.0 * central(5e-4) - central(1e-3)) / 3.0
}

fn close(got: f64, want: f64, what: &str) {
    assert!((got - want).abs() <= 1e-6 * want.abs().max(1e-2), "{what}: {got} is not {want}");
}

fn dot(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    (a * b).sum()
}

fn columns_first<T: Element>(x: &Array2<T>) -> Array2<T> {
    let mut turned = Array2::zeros((x.ncols(), x.nrows())).reversed_axes();
    turned.assign(x);
    turned
}

#[test]
fn norms() {
    let numbers = &mut Numbers::new(1);
    for (tokens, n) in [(1, 1), (3, 17), (4, 160)] {
        let (x, c) = (random(tokens, n, 2.0, numbers), random(tokens, n, 1.0, numbers));
        let (v, weight) = (random(tokens, n, 1.0, numbers), random(1, n, 1.0, numbers).remove_axis(Axis(0)));
        let eps = 1e-3;
        let mut grad = c.clone();
        rms_norm_backward(x.view(), weight.view(), eps, grad.view_mut());
        let want = slope(&x, &v, |x| dot(&rms_norm(x.view(), weight.view(), eps), &c));
        close(dot(&grad, &v), want, "norm");
        let mut turned = columns_first(&c);
        rms_norm_backward(columns_first(&x).view(), weight.view(), eps, turned.view_mut());
        assert_eq!(turned, grad);
        let mut narrow = c.mapv(|x| x as f32);
        let (x32, w32) = (x.mapv(|x| x as f32), weight.mapv(|x| x as f32));
        rms_norm_backward(x32.view(), w32.view(), eps as f32, narrow.view_mut());
        // Where n = 1 almost everything cancels.
        let size = grad.iter().fold(1.0_f64, |m, x| m.max(x.abs()));
        assert!(narrow.iter().zip(&grad).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5 * size));
    }
    rms_norm_backward(
        Array2::<f32>::zeros((0, 4)).view(),
        Array1::ones(4).view(),
        1.0,
        Array2::zeros((0, 4)).view_mut(),
    );
}

#[test]
fn gated_activations() {
    let numbers = &mut Numbers::new(2);
    let (gate, up) = (random(5, 37, 4.0, numbers), random(5, 37, 2.0, numbers));
    let (c, v) = (random(5, 37, 1.0, numbers), random(5, 37, 1.0, numbers));
    let loss = |gate: &Array2<f64>, up: &Array2<f64>| {
        let mut y = gate.clone();
        silu_mul(y.view_mut(), up.view());
        dot(&y, &c)
    };
    let (mut d_gate, mut d_up) = (gate.clone(), up.clone());
    silu_mul_backward(d_gate.view_mut(), d_up.view_mut(), c.view());
    close(dot(&d_gate, &v), slope(&gate, &v, |x| loss(&x, &up)), "gate");
    close(dot(&d_up, &v), slope(&up, &v, |x| loss(&gate, &x)), "up");
    let (mut turned_gate, mut turned_up) = (columns_first(&gate), columns_first(&up));
    silu_mul_backward(turned_gate.view_mut(), turned_up.view_mut(), columns_first(&c).view());
    assert_eq!((turned_gate, turned_up), (d_gate.clone(), d_up.clone()));
    let (mut gate32, mut up32) = (gate.mapv(|x| x as f32), up.mapv(|x| x as f32));
    silu_mul_backward(gate32.view_mut(), up32.view_mut(), c.mapv(|x| x as f32).view());
    for (narrow, wide) in [(gate32, d_gate), (up32, d_up)] {
        assert!(narrow.iter().zip(&wide).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
    }
}

#[test]
fn saturated_gates_have_finite_gradients() {
    let mut gate = ndarray::array![[-200.0_f32, -90.0, 90.0, 200.0]];
    let mut up = Array2::ones((1, 4));
    silu_mul_backward(gate.view_mut(), up.view_mut(), Array2::ones((1, 4)).view());
    assert_eq!(gate.slice(s![0, 2..]).to_vec(), [1.0, 1.0]);
    assert_eq!(up.slice(s![0, 2..]).to_vec(), [90.0, 200.0]);
    assert!(gate.iter().chain(&up).all(|x| x.is_finite()));
}

#[test]
fn rotations_turn_back() {
    let numbers = &mut Numbers::new(3);
    // Two heads of width 10, of which 6 channels are rotated.
    let (x, c, v) = (random(7, 20, 1.0, numbers), random(7, 20, 1.0, numbers), random(7, 20, 1.0, numbers));
    let angles = random(7, 3, 3.0, numbers);
    let (cos, sin) = (angles.mapv(f64::cos), angles.mapv(f64::sin));
    let mut grad = c.clone();
    rope_in_place(grad.view_mut(), 2, cos.view(), sin.mapv(|s| -s).view());
    let want = slope(&x, &v, |mut x| {
        rope_in_place(x.view_mut(), 2, cos.view(), sin.view());
        dot(&x, &c)
    });
    close(dot(&grad, &v), want, "rope");
}

/// Scores in tiles of `tile` keys against the softmax of whole rows.
fn check_softmax(queries: usize, keys: usize, first: usize, window: Option<usize>, tile: usize) {
    let numbers = &mut Numbers::new((queries * keys + first) as u64);
    let (scores, direction) = (random(queries, keys, 3.0, numbers), random(queries, keys, 1.0, numbers));
    let (values, c) = (random(keys, 5, 1.0, numbers), random(queries, 5, 1.0, numbers));
    let attend = |weights: ArrayView2<'_, f64>| {
        let mut out = Array2::zeros((queries, 5));
        matmul_nn(out.view_mut(), false, 1.0, weights, values.view(), Compute::F32, Par::Seq);
        out
    };
    let whole = |mut scores: Array2<f64>| {
        softmax_rows_causal(scores.view_mut(), first, window);
        scores
    };

    let (mut softmax, mut sums) = (CausalSoftmax::default(), Array2::from_elem((queries, 5), f64::NAN));
    softmax.start(queries);
    for from in (0..keys).step_by(tile) {
        let range = from..(from + tile).min(keys);
        let mut part = scores.slice(s![.., range.clone()]).to_owned();
        softmax.tile(part.view_mut(), from, first, window, sums.view_mut());
        let values = values.slice(s![range, ..]);
        matmul_nn(sums.view_mut(), true, 1.0, part.view(), values, Compute::F32, Par::Seq);
    }
    let (largest, total) = (softmax.rows().0.to_vec(), softmax.rows().1.to_vec());
    softmax.finish(sums.view_mut());

    let mut along = vec![f64::NAN; queries];
    row_dots(sums.view(), c.view(), &mut along);
    let weights = whole(scores.clone());
    let mut got = 0.0;
    for from in (0..keys).step_by(tile) {
        let range = from..(from + tile).min(keys);
        let mut part = scores.slice(s![.., range.clone()]).to_owned();
        let mut grad = Array2::zeros(part.dim());
        let values = values.slice(s![range.clone(), ..]);
        matmul_nt(grad.view_mut(), false, 1.0, c.view(), values, Compute::F32, Par::Seq);
        let rows = (largest.as_slice(), total.as_slice());
        softmax_tile_backward(part.view_mut(), grad.view_mut(), from, first, window, rows, &along);
        let expected = weights.slice(s![.., range.clone()]);
        assert!(part.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-14), "weights come again");
        assert!(part.iter().zip(&grad).all(|(p, g)| *p != 0.0 || *g == 0.0), "nothing passes the mask");
        got += (&grad * &direction.slice(s![.., range])).sum();
    }
    let want = slope(&scores, &direction, |scores| dot(&attend(whole(scores).view()), &c));
    close(got, want, "softmax");
}

#[test]
fn softmax_tiles() {
    for tile in [1, 7, 64] {
        check_softmax(5, 5, 0, None, tile);
        check_softmax(6, 40, 34, None, tile);
        check_softmax(20, 20, 0, Some(4), tile);
        // The first rows attend nothing that is there.
        check_softmax(4, 3, 6, Some(5), tile);
    }
}
