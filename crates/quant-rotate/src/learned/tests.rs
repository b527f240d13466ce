use ndarray::{Array1, Array2, array};
use quant_core::codec::{decoded, encoded};
use quant_testkit::{Golden, Numbers};

use super::*;

fn random(numbers: &mut Numbers, n: usize) -> Array2<f64> {
    numbers.matrix(n, n, 1.0).mapv(f64::from)
}

/// Parameters of both kinds, of a well conditioned matrix; a `t` below zero among them.
fn examples(n: usize) -> [Learned<f64>; 2] {
    let mut numbers = Numbers::new(n as u64);
    let t = Array1::from_shape_fn(n, |i| if i == 1 { -0.7 } else { 1.0 + 0.1 * i as f64 });
    let (u, v) = (random(&mut numbers, n), random(&mut numbers, n));
    let free = random(&mut numbers, n) + Array2::<f64>::eye(n) * 2.0;
    [Learned::free(free.view()).unwrap(), Learned::svd(u.view(), v.view(), t.view()).unwrap()]
}

fn distance(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    (a - b).iter().fold(0.0, |largest: f64, d| largest.max(d.abs()))
}

#[test]
fn the_inverse_transpose_is_one() {
    for n in [1, 2, 5, 16] {
        for parameters in examples(n) {
            let both = parameters.realise().unwrap();
            let error = distance(&both.matrix().dot(&both.inverse_transpose().t()), &Array2::eye(n));
            assert!(error < 1e-12, "{:?} {n}: {error}", parameters.parametrisation());
            assert_eq!(parameters.side(), n);
        }
    }
}

/// `sum(C_P * P) + sum(C_M * P^-T)` against finite differences of every parameter.
#[test]
fn gradients_are_the_differences_of_every_parameter() {
    for n in [1, 2, 6] {
        let mut numbers = Numbers::new(77);
        let (c_p, c_m) = (random(&mut numbers, n), random(&mut numbers, n));
        let loss = |parameters: &Learned<f64>| {
            let both = parameters.realise().unwrap();
            (&c_p * &both.matrix()).sum() + (&c_m * &both.inverse_transpose()).sum()
        };
        for parameters in examples(n) {
            let gradient = parameters.realise().unwrap().backward(c_p.view(), c_m.view()).unwrap();
            assert_eq!(gradient.parametrisation(), parameters.parametrisation());
            for (tensor, (name, values)) in gradient.tensors().into_iter().enumerate() {
                for (at, &found) in values.iter().enumerate() {
                    let moved = |by: f64| {
                        let mut moved = parameters.clone();
                        moved.tensors_mut()[tensor].1[at] += by;
                        loss(&moved)
                    };
                    let step = 1e-5;
                    let want = (moved(step) - moved(-step)) / (2.0 * step);
                    let error = (found - want).abs() / want.abs().max(1.0);
                    assert!(error < 1e-6, "{name}[{at}] of {n}: {found} for {want}");
                }
            }
        }
    }
}

#[test]
fn beginnings_are_those_of_the_official_code() {
    let n = 64;
    let free = Learned::<f64>::initial(n, Parametrisation::Inverse, 0, "x");
    let both = free.realise().unwrap();
    // Orthogonal, so its own inverse transpose.
    assert!(distance(&both.matrix().to_owned(), &both.inverse_transpose().to_owned()) < 1e-12);
    let svd = Learned::<f64>::initial(n, Parametrisation::Svd, 0, "x");
    let p = svd.realise().unwrap();
    assert!(distance(&p.matrix().to_owned(), &p.inverse_transpose().to_owned()) < 1e-12);
    // Not Haar-random: U is near 0.65 on its diagonal, U V^T near 0.4.
    let Form::Svd { u, .. } = &svd.form else { panic!("svd") };
    let mean = |m: &Array2<f64>| m.diag().sum() / n as f64;
    let rotation = Cayley::new(u.view()).unwrap().orthogonal();
    assert!((mean(&rotation) - 0.65).abs() < 0.1, "{}", mean(&rotation));
    assert!((mean(&p.matrix().to_owned()) - 0.4).abs() < 0.1);
    assert_eq!(svd, Learned::initial(n, Parametrisation::Svd, 0, "x"));
    assert_ne!(svd, Learned::initial(n, Parametrisation::Svd, 0, "y"));
    assert_ne!(svd.tensors()[0].1, svd.tensors()[1].1, "U and V have streams of their own");
}

#[test]
fn figures_of_condition() {
    let svd = Learned::<f32>::svd(
        Array2::ones((3, 3)).view(),
        Array2::zeros((3, 3)).view(),
        array![2.0, -0.5, 1.0].view(),
    );
    let figures = svd.unwrap().conditioning().unwrap();
    assert_eq!(figures, Conditioning { condition: 4.0, determinant_sign: -1, smallest_diagonal: Some(0.5) });
    // The same from the matrix itself.
    for parameters in examples(6) {
        let of_matrix = Conditioning::of(parameters.realise().unwrap().matrix()).unwrap();
        let figures = parameters.conditioning().unwrap();
        assert!((figures.condition / of_matrix.condition - 1.0).abs() < 1e-10);
        assert_eq!(figures.determinant_sign, of_matrix.determinant_sign);
    }
    let singular = Conditioning::of(array![[1.0, 1.0], [0.0, 0.0]].view()).unwrap();
    assert_eq!((singular.condition, singular.determinant_sign), (f64::INFINITY, 0));
    assert!(Conditioning::of(array![[f64::NAN]].view()).is_err());
}

#[test]
fn what_cannot_be_learned_is_refused() {
    let zero = Learned::svd(array![[0.0]].view(), array![[0.0]].view(), array![0.0].view()).unwrap();
    let error = zero.realise().unwrap_err().to_string();
    assert_eq!(error, "inverse of a learned matrix: entry 0 is inf, expected a finite number");
    let singular = Learned::free(Array2::<f32>::ones((2, 2)).view()).unwrap().realise().unwrap_err();
    assert_eq!(singular, RotateError::Singular { what: "learned matrix", side: 2, column: 1 });
    assert!(Learned::free(array![[f32::NAN]].view()).is_err());
    assert!(Learned::free(Array2::<f32>::ones((2, 3)).view()).is_err());
    assert!(
        Learned::<f32>::svd(Array2::ones((2, 2)).view(), Array2::ones((2, 2)).view(), Array1::ones(3).view())
            .is_err()
    );
    let both = Learned::<f32>::initial(3, Parametrisation::Inverse, 0, "").realise().unwrap();
    assert!(both.backward(both.matrix(), Array2::zeros((2, 2)).view()).is_err());
}

#[test]
fn parameters_come_back_from_their_bytes() {
    for parametrisation in [Parametrisation::Inverse, Parametrisation::Svd] {
        let parameters = Learned::<f32>::initial(5, parametrisation, 2, "x");
        let bytes = encoded(&parameters);
        assert_eq!(decoded::<Learned<f32>>(&bytes).unwrap(), parameters);
        assert!(decoded::<Learned<f32>>(&bytes[..bytes.len() - 1]).is_err());
        let mut wrong = bytes;
        let end = wrong.len() - 4;
        wrong[end..].copy_from_slice(&f32::NAN.to_le_bytes());
        let error = decoded::<Learned<f32>>(&wrong).unwrap_err().to_string();
        assert!(error.contains("NaN"), "{error}");
    }
    assert!(decoded::<Learned<f32>>(&[7]).is_err());
}

/// Every Cayley transform and every pair of the golden file.
#[test]
fn the_golden_file() {
    let Some(golden) = Golden::shared("flatquant.safetensors") else { return };
    let mut orthogonal = 0;
    for (name, tensor) in golden.tensors.iter().filter(|(name, _)| name.contains(".orth.")) {
        let (case, module) = name.split_once(".orth.").unwrap();
        let z = golden.matrix(&format!("{case}.param.{module}.parametrizations.weight.original"));
        let q = Cayley::new(z.mapv(f64::from).view()).unwrap().orthogonal();
        let error = distance(&q, &tensor.matrix().mapv(f64::from));
        assert!(error < 1e-5, "{name}: {error}");
        orthogonal += 1;
    }
    assert!(orthogonal == 36, "{orthogonal}");

    // What the matrices of a merged block are of its parameters, and their inverses.
    let mut pairs = 0;
    for case in golden.cases().keys() {
        let modules = ["self_attn.kcache_trans", "self_attn.vcache_trans", "self_attn.o_trans.trans_list.0"];
        for module in modules {
            let rep = |part: &str| format!("{case}.rep.{module}.{part}");
            if !golden.has(&rep("matrix")) {
                continue;
            }
            let final_part = |part: &str| format!("{case}.final.{module}.{part}");
            let free = format!("{case}.final.{module}.linear.weight");
            let parameters = if golden.has(&free) {
                Learned::free(golden.matrix(&free).view()).unwrap()
            } else if golden.has(&final_part("linear_diag")) {
                let z = |part: &str| {
                    golden.matrix(&final_part(&format!("{part}.parametrizations.weight.original")))
                };
                Learned::svd(
                    z("linear_u").view(),
                    z("linear_v").view(),
                    golden.vector(&final_part("linear_diag")).view(),
                )
                .unwrap()
            } else {
                continue;
            };
            let both = parameters.realise().unwrap();
            for (found, part) in [(both.matrix(), "matrix"), (both.inverse_transpose(), "matrix_inv_t")] {
                let want = golden.matrix(&rep(part)).mapv(f64::from);
                let error = distance(&found.mapv(f64::from), &want);
                assert!(
                    error < 1e-4 * want.fold(0.0_f64, |a, b| a.max(b.abs())),
                    "{case} {module} {part}: {error}"
                );
            }
            pairs += 1;
        }
    }
    assert_eq!(pairs, 12);
}
