//! Rates of integer execution beside the peaks of the core, measured in one run.
//!
//! Contenders take turns, and each keeps its best round. One thread is timed in CPU time of the thread where the system tells it
//! (Linux), several in wall time. Run with `cargo bench -p quant-kernels --bench integer`; add `-- quick` for few rounds, `quantise`
//! for quantisation alone.

use std::hint::black_box;

use ndarray::{Array1, Array2};
use quant_core::Bits;
use quant_core::operators::{Bias, DynamicNumerics, IntegerLinear, QuantMatmul};
use quant_kernels::{
    Compute, Cpu, IntegerLevel, IntegerWeight, Par, PreparedWeight, integer_peak_operations, quantize_tokens,
    rms_norm_quantize, silu_mul_quantize,
};
use quant_testkit::timed;

/// A named piece of work.
type Contender<'a> = (&'a str, Box<dyn FnMut() + 'a>);

fn main() {
    let rounds = if std::env::args().any(|argument| argument == "quick") { 2 } else { 9 };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("level {}, {threads} thread(s) available, best of {rounds} rounds", IntegerLevel::detect());
    let peak = peak(rounds);
    println!("sums of four products of bytes, peak of one core: {peak:.0} GOP/s");
    let only = std::env::args().any(|argument| argument == "quantise");
    for par in [Par::Seq, Par::new(threads.min(2))] {
        println!("\n{par}: products, GOP/s of 2 m n k (share of the peak of as many cores)");
        for (m, k, n) in [(2048, 1536, 8960), (2048, 8960, 1536), (2048, 4096, 4096), (16, 1536, 8960)] {
            if !only {
                products(m, k, n, par, rounds, peak * par.threads() as f64);
            }
        }
        println!("{par}: quantisation, GB/s of f32 read (and time by that of a copy of the f32 tensor)");
        for (tokens, features) in [(2048, 1536), (2048, 4096)] {
            quantisation(tokens, features, par, rounds);
        }
        if !only {
            decode(par, rounds);
        }
    }
}

/// Runs all contenders in turn, after one round that counts for nothing. Short work repeats: the CPU clock of a running thread may
/// advance in steps of milliseconds.
fn best(par: Par, rounds: usize, repeats: usize, contenders: &mut [Contender<'_>]) -> Vec<f64> {
    let mut best = vec![f64::INFINITY; contenders.len()];
    for round in 0..=rounds {
        for (best, (_, work)) in best.iter_mut().zip(contenders.iter_mut()) {
            let seconds = timed(par, || (0..repeats).for_each(|_| work())).0 / repeats as f64;
            if round > 0 {
                *best = best.min(seconds);
            }
        }
    }
    best
}

fn products(m: usize, k: usize, n: usize, par: Par, rounds: usize, peak: f64) {
    let (codes, weights) = (bytes(m, k, 1), bytes(n, k, 2));
    let packed = match IntegerWeight::new(weights.view(), par) {
        Ok(packed) => packed,
        Err(error) => return println!("{error}"),
    };
    let numerics = DynamicNumerics::Ascend { bits: eight() };
    let float = codes.mapv(f32::from);
    let x = quantize_tokens(numerics, float.view(), par);
    let dense = PreparedWeight::new(weights.mapv(f32::from).view(), Compute::F32, par);
    let linear = IntegerLinear::new(weights, Array1::from_elem(n, 0.01), Bias::None);
    let Ok(prepared) = linear.and_then(|linear| Cpu::default().prepare(&linear, par)) else { return };
    let (mut sums, mut y, mut z) =
        (Array2::zeros((m, n)), Array2::from_elem((m, n), half::bf16::ZERO), Array2::zeros((m, n)));
    let mut contenders: Vec<Contender<'_>> = vec![
        ("i32", Box::new(|| packed.sums_into(codes.view(), sums.view_mut(), par))),
        ("bf16", Box::new(|| drop(black_box(prepared.forward(&x, y.view_mut().into(), par))))),
        ("our f32", Box::new(|| dense.forward_into(float.view(), None, z.view_mut(), par))),
    ];
    let seconds = best(par, rounds, 1, &mut contenders);
    print!("  {m}x{k}x{n}:");
    for ((name, _), &seconds) in contenders.iter().zip(&seconds) {
        let rate = 2.0 * (m * n) as f64 * k as f64 / seconds / 1e9;
        print!("  {name} {rate:.0} ({:.0} %)", 100.0 * rate / peak);
    }
    println!("  i32 / f32 {:.2}", seconds[2] / seconds[0]);
}

fn quantisation(tokens: usize, features: usize, par: Par, rounds: usize) {
    let x = bytes(tokens, features, 3).mapv(|code| f32::from(code) * 0.01);
    let up = x.clone();
    let weight = Array1::from_elem(features, 1.0);
    let numerics = DynamicNumerics::Ascend { bits: eight() };
    let mut copy = Array2::zeros(x.dim());
    let (mut normed, mut gated) =
        (quantize_tokens(numerics, x.view(), par), quantize_tokens(numerics, x.view(), par));
    let mut contenders: Vec<Contender<'_>> = vec![
        ("copy", Box::new(|| copy.assign(&x))),
        (
            "norm + quantise",
            Box::new(|| rms_norm_quantize(x.view(), weight.view(), 1e-6, numerics, &mut normed, par)),
        ),
        ("swiglu + quantise", Box::new(|| silu_mul_quantize(x.view(), up.view(), numerics, &mut gated, par))),
        ("quantise, new memory", Box::new(|| drop(black_box(quantize_tokens(numerics, x.view(), par))))),
    ];
    let seconds = best(par, 2 * rounds, 200, &mut contenders);
    print!("  {tokens}x{features}:");
    for ((name, _), &time) in contenders.iter().zip(&seconds) {
        print!("  {name} {:.1} ({:.2})", 4.0 * x.len() as f64 / time / 1e9, time / seconds[0]);
    }
    println!();
}

/// One token through as many weights as no cache holds, beside reading that many bytes.
fn decode(par: Par, rounds: usize) {
    let (n, k, count) = (8960, 4096, 30);
    let weights: Vec<IntegerWeight> =
        (0..count).flat_map(|seed| IntegerWeight::new(bytes(n, k, seed).view(), par)).collect();
    let size = (n * k * weights.len()) as f64;
    let plain: Vec<u64> = vec![1; (size / 8.0) as usize];
    let x = bytes(1, k, 7);
    let mut sums = Array2::zeros((1, n));
    let mut contenders: Vec<Contender<'_>> = vec![
        (
            "reading",
            Box::new(|| {
                let parts = plain.chunks(plain.len().div_ceil(8 * par.threads()));
                black_box(quant_kernels::tasks::map(parts, par, |part| {
                    quant_kernels::vectorized(|| part.iter().fold(0_u64, |sum, &x| sum.wrapping_add(x)))
                }));
            }),
        ),
        ("one token", Box::new(|| weights.iter().for_each(|w| w.sums_into(x.view(), sums.view_mut(), par)))),
    ];
    let seconds = best(par, rounds, 1, &mut contenders);
    print!("{par}: decode over {:.2} GiB, GB/s:", size / (1_u64 << 30) as f64);
    for ((name, _), &time) in contenders.iter().zip(&seconds) {
        print!("  {name} {:.1} ({:.0} %)", size / time / 1e9, 100.0 * seconds[0] / time);
    }
    println!();
}

/// Multiply-adds in registers only; zero where the level has no such instruction.
fn peak(rounds: usize) -> f64 {
    (0..=rounds).fold(0.0, |best, _| {
        let (seconds, done) = timed(Par::Seq, || integer_peak_operations(IntegerLevel::detect(), 8_000_000));
        done.map_or(best, |done| best.max(done as f64 / seconds / 1e9))
    })
}

fn eight() -> Bits {
    Bits::new(8).unwrap_or(Bits::ONE)
}

fn bytes(rows: usize, cols: usize, seed: u32) -> Array2<i8> {
    let mut state = seed;
    Array2::from_shape_simple_fn((rows, cols), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 24) as u8).cast_signed()
    })
}
