use ndarray::{Array2, Axis, Slice};
use proptest::prelude::*;
use quant_kernels::{Element, Par};
use quant_testkit::{Golden, Numbers};

use super::*;
use crate::dense::product;

fn largest(x: impl IntoIterator<Item = f64>) -> f64 {
    x.into_iter().fold(0.0, |a: f64, b| a.max(b.abs()))
}

/// Applied to rows, transposed, in both types, one thread and several, against the dense matrix.
fn against_the_matrix<T: Element>(h: &Hadamard, runs: usize, tolerance: f64) {
    let n = h.size();
    let x = Numbers::new(n as u64).matrix(if n < 100 { 40 } else { 3 }, n * runs, 1.0).mapv(T::from_f32);
    let matrix = h.matrix();
    for transposed in [false, true] {
        let mut got = x.clone();
        h.rotate(got.view_mut(), transposed, Par::Seq);
        let mut shared = x.clone();
        h.rotate(shared.view_mut(), transposed, Par::new(3));
        let mut columns = x.t().as_standard_layout().into_owned();
        h.rotate(columns.view_mut().reversed_axes(), transposed, Par::Seq);
        assert!(shared == got && columns.t() == got, "size {n}: threads and layout");
        for run in 0..runs {
            let part = Slice::from(run * n..(run + 1) * n);
            let dense = if transposed { matrix.t() } else { matrix.view() };
            let want = product(x.slice_axis(Axis(1), part).mapv(|v| v.to_f64_exact()).view(), dense);
            let error = largest(&got.slice_axis(Axis(1), part).mapv(|v| v.to_f64_exact()) - &want);
            assert!(error <= tolerance * largest(want), "size {n}, run {run}: {error}");
        }
    }
}

#[test]
fn sizes_of_the_model_zoo_equal_their_matrix() {
    let sizes = [
        1, 2, 4, 12, 16, 20, 28, 36, 40, 44, 52, 60, 64, 68, 76, 96, 100, 108, 140, 148, 156, 172, 192, 576,
        924,
    ];
    for size in sizes {
        let h = Hadamard::new(size).unwrap();
        against_the_matrix::<f32>(&h, 1 + size % 3, 1e-5);
        against_the_matrix::<f64>(&h, 1, 1e-13);
    }
}

/// Rows are taken in pieces, of which this makes several: no row sees the others of its piece.
#[test]
fn many_rows_equal_each_alone() {
    for size in [12 << 7, 28 << 6, 148 << 3] {
        let h = Hadamard::new(size).unwrap();
        let x = Numbers::new(size as u64).matrix(300_000 / size, size, 1.0);
        for transposed in [false, true] {
            let mut alone = x.clone();
            for row in alone.axis_chunks_iter_mut(Axis(0), 1) {
                h.rotate(row, transposed, Par::Seq);
            }
            for par in [Par::Seq, Par::new(3)] {
                let mut together = x.clone();
                h.rotate(together.view_mut(), transposed, par);
                assert!(together == alone, "size {size}, transposed {transposed}, {par}");
            }
        }
    }
}

#[test]
fn matrices_are_orthogonal() {
    for size in [1, 2, 8, 12, 40, 156, 172, 224] {
        let m = Hadamard::new(size).unwrap().matrix();
        let error = largest(product(m.view(), m.t()) - Array2::<f64>::eye(size));
        assert!(error < 1e-13, "{size}: {error}");
    }
}

#[test]
fn the_smallest_core_is_taken() {
    let orders =
        [(1536, 12), (2560, 20), (3584, 28), (5120, 20), (2240, 140), (6912, 108), (14_336, 28), (9728, 76)];
    for (size, order) in
        orders.into_iter().chain([(18_944, 148), (4096, 1), (4864, 76), (8960, 140), (27_648, 108)])
    {
        assert_eq!(
            (Hadamard::order_of(size), Hadamard::new(size).unwrap().order()),
            (Some(order), order),
            "{size}"
        );
    }
    // 188 = 4 * 47 has no construction here, nor 376; 11008 = 2^8 * 43 has 172.
    assert_eq!(
        [0, 6, 18, 94, 188, 376, 11_008].map(Hadamard::order_of),
        [None, None, None, None, None, None, Some(172)]
    );
    let refused = Hadamard::new(94).unwrap_err().to_string();
    assert!(refused.contains("size 94") && refused.contains("12, 20, 28, 36, 44, 52, 60"), "{refused}");
    assert!(Hadamard::new(0).is_err());
}

#[test]
fn cores_are_checked() {
    let mut core = hadamard_core(12).unwrap();
    assert_eq!(Hadamard::with_core(48, core.view()).unwrap(), Hadamard::new(48).unwrap());
    let size = Hadamard::with_core(36, core.view()).unwrap_err().to_string();
    assert!(size.contains("12, the order of the core, times a power of two"), "{size}");
    core[(3, 4)] = -core[(3, 4)];
    let refused = Hadamard::with_core(48, core.view()).unwrap_err();
    assert!(matches!(refused, RotateError::NotHadamard { order: 12, .. }), "{refused}");
    core[(3, 4)] = 0;
    assert!(Hadamard::with_core(48, core.view()).is_err());
    assert!(Hadamard::with_core(8, Array2::ones((2, 4)).view()).is_err());
    assert!(Hadamard::with_core(8, Array2::ones((0, 0)).view()).is_err());
    // Order 1 may be -1.
    let negative = Hadamard::with_core(8, Array2::from_elem((1, 1), -1).view()).unwrap();
    against_the_matrix::<f64>(&negative, 2, 1e-14);
}

/// Of one-hot rows every entry becomes `1 / sqrt(n)`: an outlier is spread over all channels (rotations.md, property 6).
#[test]
fn outliers_are_spread() {
    let mut x = Array2::<f32>::zeros((1, 3584));
    x[(0, 1234)] = 1000.0;
    Hadamard::new(3584).unwrap().apply(x.view_mut(), Par::Seq);
    let level = 1000.0 / 3584.0_f32.sqrt();
    assert!(x.iter().all(|v| (v.abs() - level).abs() < 1e-3));
}

#[test]
fn random_rotations_equal_their_matrix_and_depend_on_seed_and_name() {
    let h = || Hadamard::new(12).unwrap();
    let rotation = RandomHadamard::new(h(), 48, 3, "residual").unwrap();
    let x = Numbers::new(1).matrix(5, 48, 1.0).mapv(f64::from);
    let mut got = x.clone();
    rotation.apply(got.view_mut(), Par::Seq);
    let want = product(x.view(), rotation.matrix().view());
    assert!(largest(&got - &want) < 1e-14);
    rotation.apply_transposed(got.view_mut(), Par::Seq);
    assert!(largest(&got - &x) < 1e-14);
    assert_eq!(rotation, RandomHadamard::new(h(), 48, 3, "residual").unwrap());
    assert_ne!(rotation.signs(), RandomHadamard::new(h(), 48, 3, "other").unwrap().signs());
    assert_ne!(rotation.signs(), RandomHadamard::new(h(), 48, 4, "residual").unwrap().signs());
    assert!(RandomHadamard::new(h(), 40, 0, "").is_err() && RandomHadamard::new(h(), 0, 0, "").is_err());
    assert!(RandomHadamard::with_signs(h(), vec![0; 12]).is_err());
}

proptest! {
    #[test]
    fn applying_and_transposing_gives_the_rows_back(k in 0usize..6, exponent in 0u32..6, tokens in 0usize..4, seed: u64) {
        let size = [1, 12, 20, 28, 52, 36][k] << exponent;
        let h = Hadamard::new(size).unwrap();
        let x = Numbers::new(seed).matrix(tokens, 2 * size, 1.0);
        let mut y = x.clone();
        h.apply(y.view_mut(), Par::Seq);
        h.apply_transposed(y.view_mut(), Par::new(2));
        prop_assert!(largest((&y - &x).into_iter().map(f64::from)) < 1e-5);
    }
}

#[test]
fn williamson_tables_are_the_official_ones() {
    let Some(golden) = Golden::shared("hadamard.safetensors") else { return };
    for order in [52, 156, 172] {
        let ours = hadamard_core(order).unwrap().mapv(f32::from);
        assert_eq!(ours, golden.matrix(&format!("hadK{order}")), "{order}");
    }
}

/// How many cases of a file there are: all of them are as published.
fn official_cases(golden: &Golden) -> usize {
    let official = |n: usize| {
        let first = |k: &usize| n.is_multiple_of(*k) && (n / k).is_power_of_two();
        let k = [172, 156, 140, 108, 60, 52, 36, 28, 40, 20, 12].into_iter().find(first);
        match k {
            Some(k) => {
                let table = golden.matrix(&format!("hadK{k}")).mapv(|v| v as i8);
                Hadamard::with_core(n, table.view()).unwrap()
            }
            None => Hadamard::new(n).unwrap(),
        }
    };
    let mut cases = 0;
    for (name, case) in golden.cases() {
        let n = usize::try_from(case["n"].as_u64().unwrap()).unwrap();
        let h = official(n);
        if let Some(expected) = case["K"].as_u64() {
            assert_eq!(h.order() as u64, expected, "{name}");
            let x = golden.matrix(&format!("{name}.x"));
            for (what, transposed) in [("hadU", false), ("hadUt", true)] {
                let mut got = x.clone();
                h.rotate(got.view_mut(), transposed, Par::Seq);
                let want = golden.matrix(&format!("{name}.{what}"));
                let error = largest((&got - &want).into_iter().map(f64::from));
                assert!(
                    error <= 1e-5 * largest(want.iter().map(|&v| f64::from(v))),
                    "{name} {what}: {error}"
                );
            }
        } else {
            let signs = golden.tensor(&format!("{name}.signs")).i64().iter().map(|&s| s as i8).collect();
            let q = RandomHadamard::with_signs(h, signs).unwrap().matrix();
            let want = Array2::from_shape_vec((n, n), golden.tensor(&format!("{name}.Q")).f64()).unwrap();
            // The official scale is the f32 square root of the size.
            let error = largest(&q - &want);
            assert!(error <= 1e-7 * largest(want), "{name}: {error}");
        }
        cases += 1;
    }
    cases
}

#[test]
fn official_results_of_the_subset() {
    let golden = Golden::parse(include_bytes!("../../tests/data/hadamard_subset.safetensors"));
    assert_eq!(official_cases(&golden), 8);
}

#[test]
fn official_results() {
    let Some(golden) = Golden::shared("hadamard.safetensors") else { return };
    assert_eq!(official_cases(&golden), 23);
}
