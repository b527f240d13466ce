//! Times `prepare` and `gptq` on the two shapes that bound a 1.5B-parameter block, on one and two threads.
//!
//! `cargo bench -p quant-hessian --bench gptq [-- WHAT]`, where WHAT is `wide` (in = 8960), `narrow` (in = 1536) or both, and
//! `one` for one thread only, `plain` without clip search and act-order.
//! Rates count `n³/3` operations for the factorisation and `out · n²` for the column loop, and are compared with an f32
//! product measured in the same run. The Hessian is a diagonal plus a few rank-one terms: timing does not depend on it.
#![allow(clippy::unwrap_used, missing_docs, reason = "a measurement program fails by panicking")]

use std::time::Instant;

use ndarray::Array2;
use quant_core::{Bits, ClipSearch, Convention, FloatType, Grid, Variant};
use quant_hessian::{ActOrder, FactorSettings, GptqConfig, Hessian, gptq, prepare};
use quant_kernels::{Compute, Par, matmul_nt};
use quant_testkit::Numbers;

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

/// Nanoseconds this thread has run, where the system tells.
fn thread_nanoseconds() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Seconds of a call: the running time of this thread for one thread, because others may use the machine too, the time on
/// the wall for more.
fn timed<R>(par: Par, f: impl FnOnce() -> R) -> (f64, R) {
    let (start, before) = (Instant::now(), thread_nanoseconds());
    let result = f();
    let wall = start.elapsed().as_secs_f64();
    match (par, before, thread_nanoseconds()) {
        (Par::Seq, Some(before), Some(after)) => ((after - before) as f64 / 1e9, result),
        _ => (wall, result),
    }
}

fn product_rate(par: Par) -> f64 {
    let (a, b) = (random(1024, 1536, 1), random(1536, 1536, 2));
    let mut c = Array2::zeros((1024, 1536));
    let mut run = || matmul_nt(c.view_mut(), false, 1.0, a.view(), b.view(), Compute::F32, par);
    run();
    let best = (0..5).map(|_| timed(par, &mut run).0).fold(f64::INFINITY, f64::min);
    2.0 * 1024.0 * 1536.0 * 1536.0 / best / 1e9
}

fn shape(n: usize, out: usize, threads: &[usize], plain_only: bool) {
    let weight = random(out, n, 3);
    let grid = Grid::new(Convention::QAsym, Bits::new(4).unwrap(), Variant::Exact, FloatType::F32).unwrap();
    let plain = GptqConfig { group: Some(128), ..GptqConfig::new(grid) };
    let clipped = GptqConfig { clip: Some(ClipSearch::default()), ..plain.clone() };
    let mut results = Vec::new();
    let mut one = [0.0; 3];
    for &threads in threads {
        let par = Par::new(threads);
        let rate = product_rate(par);
        println!("in {n}, out {out}, {par}: f32 product {rate:.0} GFLOP/s");
        let mut report = |what: &str, at: usize, seconds: f64, flops: f64| {
            let gflops = flops / seconds / 1e9;
            let scaling =
                if threads == 1 { String::new() } else { format!(", {:.2}x one thread", one[at] / seconds) };
            println!(
                "  {what:24} {seconds:7.3} s  {gflops:6.1} GFLOP/s  {:3.0} % of the product{scaling}",
                100.0 * gflops / rate
            );
            if threads == 1 {
                one[at] = seconds;
            }
        };
        let h = hessian(n);
        let (seconds, factor) = timed(par, || prepare(h, &FactorSettings::default(), par).unwrap());
        report("prepare", 0, seconds, (n as f64).powi(3) / 3.0);
        let flops = out as f64 * (n as f64).powi(2);
        let (seconds, result) = timed(par, || gptq(weight.view(), &factor, &plain, par).unwrap());
        report("gptq 4 bit g128", 1, seconds, flops);
        results.push(result);
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
    assert!(
        results.windows(2).all(|pair| pair[0] == pair[1]),
        "one and two threads must give the same result"
    );
}

fn main() {
    let what: Vec<String> = std::env::args().skip(1).collect();
    let given = |name: &str| what.iter().any(|w| w == name);
    let wanted = |name: &str| given(name) || !(given("wide") || given("narrow"));
    let threads: &[usize] = if given("one") { &[1] } else { &[1, 2] };
    if wanted("narrow") {
        shape(1536, 8960, threads, given("plain"));
    }
    if wanted("wide") {
        shape(8960, 1536, threads, given("plain"));
    }
}
