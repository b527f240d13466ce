//! Times `prepare` and `gptq`, and beside them what GPTAQ takes, on the two shapes that bound a 1.5B-parameter block, on one and
//! two threads.
//!
//! `cargo bench -p quant-hessian --bench gptq [-- WHAT]`, where WHAT is `wide` (in = 8960), `narrow` (in = 1536) or both, and
//! `one` for one thread only, `plain` without clip search and act-order, `statistics` with the accumulation over 4096 tokens.
//! With `--features openblas-system` every factorisation stands beside the one by LAPACK, whose threads are its own
//! (`OPENBLAS_NUM_THREADS`).
//! Rates count `n³/3` operations for the factorisation and `out · n²` for the column loop, and are compared with an f32
//! product measured in the same run. The Hessian is a diagonal plus a few rank-one terms: timing does not depend on it.
#![allow(clippy::unwrap_used, missing_docs, reason = "a measurement program fails by panicking")]

use ndarray::Array2;
use quant_core::{Bits, ClipSearch, Convention, FloatType, Grid, Variant};
use quant_hessian::{
    ActOrder, Correction, CrossGram, FactorSettings, GptaqConfig, GptqConfig, Hessian, gptaq, gptq, prepare,
};
use quant_kernels::{Compute, Par, matmul_nt};
use quant_testkit::{Numbers, timed};

fn random(rows: usize, columns: usize, seed: usize) -> Array2<f32> {
    Numbers::new(seed as u64).matrix(rows, columns, 1.0)
}

fn hessian(n: usize) -> Hessian {
    let x = random(64, n, n);
    let mut h = Hessian::new(n);
    h.add(x.view(), 2, Compute::F32, Par::new(2)).unwrap();
    let mut h = h.finish().unwrap();
    for (j, d) in h.diag_mut().iter_mut().enumerate() {
        *d += 20.0 + (j % 97) as f32;
    }
    Hessian::from_matrix(h, 2).unwrap()
}

fn product_rate(par: Par) -> f64 {
    let (a, b) = (random(1024, 1536, 1), random(1536, 1536, 2));
    let mut c = Array2::zeros((1024, 1536));
    let mut run = || matmul_nt(c.view_mut(), false, 1.0, a.view(), b.view(), Compute::F32, par);
    run();
    let best = (0..5).map(|_| timed(par, &mut run).0).fold(f64::INFINITY, f64::min);
    2.0 * 1024.0 * 1536.0 * 1536.0 / best / 1e9
}

/// Seconds that the sums of GPTQ and those of GPTAQ beside them take, with the triangle of `D` and with all of it.
fn statistics(n: usize, par: Par) -> [f64; 3] {
    let (x, float) = (random(TOKENS, n, 5), random(TOKENS, n, 6));
    let gram = || {
        let mut h = Hessian::new(n);
        timed(par, || h.add(x.view(), 2, Compute::F32, par).unwrap()).0
    };
    let cross = |all| {
        let mut d = CrossGram::new(n, all);
        timed(par, || d.add(float.view(), x.view(), 2, Compute::F32, par).unwrap()).0
    };
    [gram(), cross(false), cross(true)]
}

/// Tokens of [`statistics`].
const TOKENS: usize = 4096;
/// Tokens of a usual calibration, 128 sequences of 2048.
const CALIBRATION: f64 = 262_144.0;

fn shape(n: usize, out: usize, threads: &[usize], plain_only: bool, with_statistics: bool) {
    let weight = random(out, n, 3);
    let grid = Grid::new(Convention::QAsym, Bits::new(4).unwrap(), Variant::Exact, FloatType::F32).unwrap();
    let plain = GptqConfig { group: Some(128), ..GptqConfig::new(grid) };
    let clipped = GptqConfig { clip: Some(ClipSearch::default()), ..plain.clone() };
    let (mut results, mut asymmetric) = (Vec::new(), Vec::new());
    let mut one = [0.0; 7];
    for &threads in threads {
        let par = Par::new(threads);
        let rate = product_rate(par);
        println!("in {n}, out {out}, {par}: f32 product {rate:.0} GFLOP/s");
        let mut report = |what: &str, at: usize, seconds: f64, flops: f64| {
            let gflops = flops / seconds / 1e9;
            let scaling =
                if threads == 1 { String::new() } else { format!(", {:.2}x one thread", one[at] / seconds) };
            println!(
                "  {what:26} {seconds:7.3} s  {gflops:6.1} GFLOP/s  {:3.0} % of the product{scaling}",
                100.0 * gflops / rate
            );
            if threads == 1 {
                one[at] = seconds;
            }
        };
        let h = hessian(n);
        let cube = (n as f64).powi(3) / 3.0;
        let (prepared, factor) = timed(par, || prepare(h, &FactorSettings::default(), par).unwrap());
        report("prepare", 0, prepared, cube);
        #[cfg(feature = "lapack")]
        for precision in [quant_hessian::Precision::F32, quant_hessian::Precision::F64] {
            let seconds =
                [quant_hessian::FactorBackend::Native, quant_hessian::FactorBackend::Lapack].map(|backend| {
                    let settings = FactorSettings { backend, precision, ..FactorSettings::default() };
                    let h = hessian(n);
                    timed(par, || prepare(h, &settings, par).unwrap()).0
                });
            let ratio = seconds[1] / seconds[0];
            println!(
                "  prepare, {precision}: {:.3} s, by LAPACK {:.3} s ({ratio:.2}x)",
                seconds[0], seconds[1]
            );
        }
        let flops = out as f64 * (n as f64).powi(2);
        let (solved, result) = timed(par, || gptq(weight.view(), &factor, &plain, par).unwrap());
        report("gptq 4 bit g128", 1, solved, flops);
        results.push(result);
        let sums = with_statistics.then(|| statistics(n, par));
        if let Some([gram, half, all]) = sums {
            println!(
                "  statistics, {TOKENS} tokens: H {gram:.3} s, D above the diagonal {half:.3} s, all of D {all:.3} s"
            );
        }
        let mut cross = CrossGram::new(n, false);
        let (x, float) = (random(64, n, 5), random(64, n, 6));
        cross.add(float.view(), x.view(), 2, Compute::F32, par).unwrap();
        for (i, variant) in [Variant::Exact, Variant::Official].into_iter().enumerate() {
            let cross = cross.clone();
            let (corrected, correction) =
                timed(par, || Correction::new(cross, &factor, 0.25, variant, par).unwrap());
            report(&format!("correction, {variant:?}"), 3 + 2 * i, corrected, cube * (1 + i) as f64);
            let config = GptaqConfig { variant, ..GptaqConfig::new(plain.clone()) };
            let (seconds, result) =
                timed(par, || gptaq(weight.view(), &factor, &correction, &config, par).unwrap());
            report(&format!("gptaq 4 bit g128, {variant:?}"), 4 + 2 * i, seconds, 2.0 * flops);
            let (ours, theirs) = (prepared + corrected + seconds, prepared + solved);
            println!("  {:.2}x gptq for prepare and solve", ours / theirs);
            if let Some([gram, half, _]) = sums {
                let times = CALIBRATION / TOKENS as f64;
                let ratio = (ours + times * (gram + half)) / (theirs + times * gram);
                println!("  {ratio:.2}x gptq with the statistics of {CALIBRATION} tokens");
            }
            if i == 0 {
                asymmetric.push(result);
            }
        }
        if n < 4096 && !plain_only {
            let (seconds, _) = timed(par, || gptq(weight.view(), &factor, &clipped, par).unwrap());
            report("gptq 4 bit g128 + clip", 2, seconds, flops);
            let h = hessian(n);
            let settings = FactorSettings { act_order: true, ..FactorSettings::default() };
            let (seconds, factor) = timed(par, || prepare(h, &settings, par).unwrap());
            println!("  prepare, act-order       {seconds:7.3} s");
            let config = GptqConfig { act_order: ActOrder::Static, ..plain.clone() };
            let (seconds, _) = timed(par, || gptq(weight.view(), &factor, &config, par).unwrap());
            println!("  gptq, act-order static   {seconds:7.3} s");
        }
    }
    for results in [results, asymmetric] {
        let same = results.windows(2).all(|pair| pair[0] == pair[1]);
        assert!(same, "one and two threads must give the same result");
    }
}

fn main() {
    let what: Vec<String> = std::env::args().skip(1).collect();
    let given = |name: &str| what.iter().any(|w| w == name);
    let wanted = |name: &str| given(name) || !(given("wide") || given("narrow"));
    let threads: &[usize] = if given("one") { &[1] } else { &[1, 2] };
    if wanted("narrow") {
        shape(1536, 8960, threads, given("plain"), given("statistics"));
    }
    if wanted("wide") {
        shape(8960, 1536, threads, given("plain"), given("statistics"));
    }
}
