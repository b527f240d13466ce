//! Times BiLLM and SliM-LLM beside GPTQ on the two shapes that bound a 1.5B-parameter block, one thread.
//!
//! `cargo bench -p quant-hessian --bench low_bits [-- WHAT]`, where WHAT is `wide` (in = 8960), `narrow` (in = 1536) or both.
//! Seconds are the running time of this thread, because others may use the machine too. The Hessian is a diagonal plus a few
//! rank-one terms: timing does not depend on it.
#![allow(clippy::unwrap_used, missing_docs, reason = "a measurement program fails by panicking")]

use ndarray::Array2;
use quant_core::{Bits, Convention, FloatType, Grid, Variant};
use quant_hessian::{
    BillmConfig, FactorSettings, GptqConfig, Hessian, SalientMetric, SlimConfig, SlimFactor, billm, gptq,
    prepare, slim,
};
use quant_kernels::{Compute, Par};
use quant_testkit::{Numbers, timed};

fn random(rows: usize, columns: usize, seed: usize) -> Array2<f32> {
    Numbers::new(seed as u64).matrix(rows, columns, 1.0)
}

fn hessian(n: usize) -> Hessian {
    let x = random(64, n, n);
    let mut h = Hessian::new(n);
    h.add(x.view(), 2, Compute::F32, Par::Seq).unwrap();
    let mut h = h.finish().unwrap();
    for (j, d) in h.diag_mut().iter_mut().enumerate() {
        *d += 20.0 + (j % 97) as f32;
    }
    Hessian::from_matrix(h, 2).unwrap()
}

/// Tokens over which the Hessian is summed to be timed.
const TOKENS: usize = 2048;
/// Tokens of a usual calibration, 128 sequences of 2048.
const CALIBRATION: f64 = 262_144.0;

fn shape(n: usize, out: usize) {
    println!("in {n}, out {out}");
    let (weight, settings, par) = (random(out, n, 3), FactorSettings::default(), Par::Seq);
    let four = Bits::new(4).unwrap();
    let grid = Grid::new(Convention::QAsym, four, Variant::Exact, FloatType::F32).unwrap();
    let h = hessian(n);
    let (prepared, factor) = timed(par, || prepare(h.clone(), &settings, par).unwrap());
    let plain = GptqConfig { group: Some(128), ..GptqConfig::new(grid) };
    let (solved, _) = timed(par, || gptq(weight.view(), &factor, &plain, par).unwrap());
    let base = prepared + solved;
    let (x, mut summed) = (random(TOKENS, n, 4), Hessian::new(n));
    let (gram, ()) = timed(par, || summed.add(x.view(), 2, Compute::F32, par).unwrap());
    let statistics = gram * CALIBRATION / TOKENS as f64;
    println!("  the Hessian of {CALIBRATION} tokens takes {statistics:.1} s");
    let say = |what: &str, prepared: f64, solved: f64| {
        let took = prepared + solved;
        let (alone, with) = (took / base, (took + statistics) / (base + statistics));
        println!(
            "  {what:34} {prepared:7.3} s + {solved:7.3} s  {alone:5.2}x gptq, {with:5.2}x with the Hessian"
        );
    };
    say("gptq 4 bit g128", prepared, solved);
    for (metric, variant) in [
        (SalientMetric::Hessian, Variant::Exact),
        (SalientMetric::Hessian, Variant::Official),
        (SalientMetric::Magnitude, Variant::Exact),
    ] {
        let config = BillmConfig { metric, variant, ..BillmConfig::default() };
        let (seconds, _) = timed(par, || billm(weight.view(), &factor, &config, par).unwrap());
        say(&format!("billm {metric:?}, {variant:?}"), prepared, seconds);
    }
    let sample = random(512, n, 5);
    let (prepared, factor) = timed(par, || SlimFactor::new(h, &settings, Variant::Exact, par).unwrap());
    for (bits, group) in [(2, 32), (3, 32), (2, 128)] {
        let config = SlimConfig::new(Bits::new(bits).unwrap(), group);
        let (seconds, _) =
            timed(par, || slim(weight.view(), &factor, sample.view(), None, &config, par).unwrap());
        say(&format!("slim-llm {bits} bit g{group}, {} tokens", sample.nrows()), prepared, seconds);
    }
}

fn main() {
    let what: Vec<String> = std::env::args().skip(1).collect();
    let given = |name: &str| what.iter().any(|w| w == name);
    let wanted = |name: &str| given(name) || !(given("wide") || given("narrow"));
    if wanted("narrow") {
        shape(1536, 8960);
    }
    if wanted("wide") {
        shape(8960, 1536);
    }
}
