//! Small cases worked out by another program (`tests/data/make_facts.py`), through the public functions only.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use quant_rotate::ndarray::{Array1, Array2};
use quant_rotate::{
    AdamW, AdamWSettings, Bits, ClipLogits, CosineSchedule, Hadamard, Kronecker, Learned, Par,
    StraightThrough, Update, clip_weight, clip_weight_gradient, kronecker_sides,
};
use serde_json::Value;

fn facts(what: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("data/facts.json")).unwrap();
    all[what].clone()
}

fn vector(value: &Value) -> Array1<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn matrix(value: &Value) -> Array2<f64> {
    let rows: Vec<Array1<f64>> = value.as_array().unwrap().iter().map(vector).collect();
    Array2::from_shape_fn((rows.len(), rows[0].len()), |(i, j)| rows[i][j])
}

fn near<'a>(
    what: &str,
    found: impl IntoIterator<Item = &'a f64>,
    want: impl IntoIterator<Item = &'a f64>,
    within: f64,
) {
    let (found, want): (Vec<_>, Vec<_>) = (found.into_iter().collect(), want.into_iter().collect());
    assert_eq!(found.len(), want.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(&want).enumerate() {
        assert!((**a - **b).abs() <= within * b.abs().max(1.0), "{what}, entry {i}: {a} for {b}");
    }
}

#[test]
fn hadamard_transforms() {
    for case in facts("hadamard").as_array().unwrap() {
        let (x, y) = (matrix(&case["x"]), matrix(&case["y"]));
        let h = Hadamard::new(x.ncols()).unwrap();
        let mut found = x.clone();
        h.apply(found.view_mut(), Par::Seq);
        near("y", &found, &y, 1e-13);
        h.apply_transposed(found.view_mut(), Par::Seq);
        near("x", &found, &x, 1e-13);
    }
}

#[test]
fn kronecker_transforms() {
    for case in facts("kronecker").as_array().unwrap() {
        let [left, right, x, g] = ["left", "right", "x", "g"].map(|part| matrix(&case[part]));
        let transform = Kronecker::new(left.view(), right.view()).unwrap();
        near("y", &transform.apply(x.view(), Par::Seq), &matrix(&case["y"]), 1e-13);
        let found = transform.backward(x.view(), g.view(), Par::Seq);
        for (part, found) in [("dx", &found.input), ("dl", &found.left), ("dr", &found.right)] {
            near(part, found, &matrix(&case[part]), 1e-13);
        }
    }
}

/// The pairs of the models that matter, and those of their shards.
#[test]
fn sides_of_kronecker_transforms() {
    let sides = [
        (512, 16, 32),
        (768, 24, 32),
        (896, 28, 32),
        (1024, 32, 32),
        (1536, 32, 48),
        (2048, 32, 64),
        (2560, 40, 64),
        (3072, 48, 64),
        (3584, 56, 64),
        (4096, 64, 64),
        (4864, 64, 76),
        (5120, 64, 80),
        (6144, 64, 96),
        (8960, 80, 112),
        (9728, 76, 128),
        (11_008, 86, 128),
        (12_288, 96, 128),
        (13_824, 108, 128),
        (14_336, 112, 128),
        (18_944, 128, 148),
        (27_648, 144, 192),
        (28_672, 128, 224),
        (2240, 40, 56),
        (4736, 64, 74),
        (3456, 54, 64),
        (6912, 72, 96),
    ];
    for (size, left, right) in sides {
        assert_eq!(kronecker_sides(size).unwrap(), (left, right), "{size}");
    }
}

#[test]
fn learned_matrices() {
    for case in facts("learned").as_array().unwrap() {
        let parameters = &case["parameters"];
        let learned = if parameters.get("matrix").is_some() {
            Learned::free(matrix(&parameters["matrix"]).view()).unwrap()
        } else {
            let [u, v, t] = ["u", "v", "t"].map(|part| matrix(&parameters[part]));
            Learned::svd(u.view(), v.view(), t.row(0)).unwrap()
        };
        let realised = learned.realise().unwrap();
        near("P", realised.matrix(), &matrix(&case["matrix"]), 1e-12);
        near("P^-T", realised.inverse_transpose(), &matrix(&case["inverse_transpose"]), 1e-12);
        let gradient = realised.backward(matrix(&case["gp"]).view(), matrix(&case["gm"]).view()).unwrap();
        for (name, found) in gradient.tensors() {
            near(name, found, &vector(&case["gradients"][name]), 1e-7);
        }
    }
}

#[test]
fn quantisers() {
    for case in facts("quantiser").as_array().unwrap() {
        let bits = Bits::new(u32::try_from(case["bits"].as_u64().unwrap()).unwrap()).unwrap();
        let symmetric = case["symmetric"].as_bool().unwrap();
        let [x, g, y, dx] = ["x", "g", "y", "dx"].map(|part| matrix(&case[part]));
        let (logits, want) = (vector(&case["logits"]), vector(&case["dlogits"]));
        let clip = ClipLogits { max: Array1::from_elem(1, logits[0]), min: Array1::from_elem(1, logits[1]) };
        // No range of these cases is below the floor of weights, so both kinds are the same.
        for quantiser in
            [StraightThrough::activations(bits, symmetric), StraightThrough::weights(bits, symmetric)]
        {
            let quantiser = quantiser.unwrap();
            let found = quantiser.forward(x.view(), x.ncols(), Some(&clip), Par::Seq).unwrap();
            near("y", &found, &y, 1e-13);
            let found = quantiser.backward(x.view(), g.view(), x.ncols(), Some(&clip), Par::Seq).unwrap();
            near("dx", &found.input, &dx, 1e-12);
            let found = found.clip.unwrap();
            near("logits", [found.max[0], found.min[0]].iter(), &want, 1e-12);
        }
    }
}

#[test]
fn clipped_weights() {
    let case = facts("clip");
    let (w, g) = (matrix(&case["w"]), matrix(&case["g"]));
    let logits = ClipLogits { max: vector(&case["logits"][0]), min: vector(&case["logits"][1]) };
    near("y", &clip_weight(w.view(), 8, &logits, Par::Seq).unwrap(), &matrix(&case["y"]), 1e-14);
    let (of_weight, of_logits) = clip_weight_gradient(w.view(), g.view(), 8, &logits, Par::Seq).unwrap();
    near("dw", &of_weight, &matrix(&case["dw"]), 1e-13);
    near("upper logits", &of_logits.max, &vector(&case["dlogits"][0]), 1e-13);
    near("lower logits", &of_logits.min, &vector(&case["dlogits"][1]), 1e-13);
}

#[test]
fn a_training() {
    let case = facts("training");
    let number = |name: &str| case[name].as_f64().unwrap();
    let (rates, gradients) = (vector(&case["rates"]), matrix(&case["gradients"]));
    let mut schedule = CosineSchedule::new(&[number("rate")], number("floor"), 20, true).unwrap();
    let mut optimiser = AdamW::new(AdamWSettings::default()).unwrap();
    let mut parameters = vector(&case["start"]).to_vec();
    for (rate, gradient) in rates.iter().zip(gradients.rows()) {
        near("learning rate", schedule.rates(), [rate], 1e-15);
        let gradient = gradient.to_vec();
        let learning_rate = schedule.rates()[0];
        optimiser.step([Update { parameters: &mut parameters, gradient: &gradient, learning_rate }]).unwrap();
        schedule.advance();
    }
    near("parameters", &parameters, &vector(&case["end"]), 1e-13);
}
