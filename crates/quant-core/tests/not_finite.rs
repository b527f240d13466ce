//! NaN and infinity never become numbers on their way through a quantiser of activations.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array1, Array2};
use quant_core::{ActQuant, ActRule, Bits, EntryQuant, FloatType, Observer, ObserverKind, QParams, Real};
use quant_testkit::Numbers;

const BAD: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
const RULES: [ActRule; 3] = [ActRule::Asymmetric, ActRule::Symmetric, ActRule::SymmetricFull];

fn with<T: Real>(at: (usize, usize), value: f32) -> Array2<T> {
    let mut x = Numbers::new(1).normals(3, 40);
    x[at] = value;
    x.mapv(T::from_f32)
}

/// Runs `quantise` on a batch with one bad value at every kind of place: inside the vectors and in the rest.
fn stays_bad<T: Real>(quantise: impl Fn(&mut Array2<T>), what: &str) {
    for bad in BAD {
        for column in [0, 5, 17, 31, 32, 39] {
            let mut x = with::<T>((1, column), bad);
            quantise(&mut x);
            assert!(x[(1, column)].is_nan(), "{what}: {bad} in column {column} became {:?}", x[(1, column)]);
            assert!(x.row(0).iter().chain(x.row(2)).all(|v| v.is_finite()), "{what}: other tokens");
        }
    }
    let mut x = with::<T>((1, 0), 0.5);
    quantise(&mut x);
    assert!(x.iter().all(|v| v.is_finite()), "{what}: a clean batch stays clean");
}

fn everywhere<T: Real>() {
    for b in [1, 4, 8] {
        let bits = Bits::new(b).unwrap();
        for rule in RULES {
            let dynamic = ActQuant::Dynamic { bits, rule, clip_ratio: 0.9.into(), shards: 1 };
            stays_bad::<T>(|x| dynamic.fake_quantize(x.view_mut()), &format!("dynamic {rule:?} at {b} bits"));
            let heads = EntryQuant::TokenHead { bits, rule, clip_ratio: 1.0.into() };
            stays_bad::<T>(
                |x| heads.fake_quantize(20, x.view_mut()),
                &format!("cache by token and head, {rule:?} at {b} bits"),
            );
        }
        let fixed = ActQuant::Static { bits, params: QParams { scale: 0.1, zero: bits.mid_level() } };
        stays_bad::<T>(|x| fixed.fake_quantize(x.view_mut()), &format!("static at {b} bits"));
        let scales = Array1::from_elem(40, 0.1);
        for zero in [0.0, bits.mid_level()] {
            let zeros = Array1::from_elem(40, zero);
            let channels = EntryQuant::Channel { bits, scales: scales.clone(), zeros };
            stays_bad::<T>(|x| channels.fake_quantize(20, x.view_mut()), "cache by channel");
        }
    }
}

#[test]
fn quantisers_pass_them_on_in_f32() {
    everywhere::<f32>();
}

#[test]
fn quantisers_pass_them_on_in_f64() {
    everywhere::<f64>();
}

#[test]
fn an_infinity_takes_its_dynamic_group_along() {
    for rule in RULES {
        let mut x = with::<f32>((1, 3), f32::INFINITY);
        let bits = Bits::new(8).unwrap();
        ActQuant::Dynamic { bits, rule, clip_ratio: 1.0.into(), shards: 1 }.fake_quantize(x.view_mut());
        assert!(x.row(1).iter().all(|v| v.is_nan()), "{rule:?}: no step divides an infinite range");
    }
}

#[test]
fn observers_remember_them() {
    for kind in [ObserverKind::Minmax, ObserverKind::Percentile, ObserverKind::Mse] {
        for bad in BAD {
            for (row, column) in [(0, 0), (1, 33), (2, 39)] {
                let mut observer = Observer::new(kind);
                observer.observe(with::<f32>((row, column), bad).view());
                observer.observe(Numbers::new(2).normals(5, 40).view());
                let (min, max) = observer.extremes();
                assert!(min.is_nan() && max.is_nan(), "{kind:?} {bad}");
                for rule in RULES {
                    let params = observer.params(Bits::new(8).unwrap(), rule, FloatType::Bf16);
                    assert!(params.scale.is_nan(), "{kind:?} {rule:?} {bad}: {params:?}");
                    // Whoever uses the parameters all the same sees it.
                    let mut x = Array2::ones((1, 4));
                    ActQuant::Static { bits: Bits::new(8).unwrap(), params }.fake_quantize(x.view_mut());
                    assert!(x.iter().all(|v: &f32| v.is_nan()));
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "KV cache channels and their static scales")]
fn scales_of_another_width_are_not_skipped() {
    let scales = Array1::ones(8);
    let kv = EntryQuant::Channel { bits: Bits::new(8).unwrap(), zeros: scales.clone(), scales };
    kv.fake_quantize(4, Array2::<f32>::zeros((2, 16)).view_mut());
}
