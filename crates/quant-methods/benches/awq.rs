//! Times the searches of AWQ on the shapes of a 1.5B-parameter block, beside the rate of a plain product in the same run.
//!
//! `cargo bench -p quant-methods --bench awq [-- one]`, where `one` is one thread only. A rate counts the multiplications and
//! additions that the form taken needs (all of a product with tokens, half of one with a Gram matrix); what is lost
//! against the product is rounding and packing. "one token" is the same search with one token: all of the rounding, and a product
//! as narrow as a register tile.
#![allow(clippy::unwrap_used, missing_docs, reason = "a measurement program fails by panicking")]

use ndarray::{Array1, Array2, Axis};
use quant_core::{Bits, Convention, FloatType, Grid, Variant};
use quant_kernels::{Compute, Par, matmul_nt};
use quant_methods::awq::{Clip, Loss, Search, clip_ranges, search_scales};
use quant_testkit::{Numbers, timed};

const ROUNDS: usize = 3;

fn main() {
    let one = std::env::args().any(|argument| argument == "one");
    for threads in if one { &[1][..] } else { &[1, 2] } {
        let par = Par::new(*threads);
        let peak = product_rate(par);
        println!("{par}: a product {peak:.0} GF/s");
        let clip = |group| Clip { n_grid: 20, max_shrink: 0.5, grid: grid(), group };
        ranges("clip gate, g 128", &clip(Some(128)), (8960, 1536), peak, par);
        ranges("clip down, g 128", &clip(Some(128)), (1536, 8960), peak, par);
        ranges("clip gate, per channel", &clip(None), (8960, 1536), peak, par);
        scales("search down, tokens", (1536, 8960), false, peak, par);
        scales("search o, tokens", (1536, 1536), false, peak, par);
        scales("search o, Gram", (1536, 1536), true, peak, par);
    }
}

fn grid() -> Grid {
    Grid::new(Convention::QAwq, Bits::new(4).unwrap(), Variant::Official, FloatType::F32).unwrap()
}

const TOKENS: usize = 512;

fn ranges(name: &str, clip: &Clip, (out, n): (usize, usize), peak: f64, par: Par) {
    let (weight, x) = (random(out, n, 1), random(TOKENS, n, 2));
    let run = |tokens: usize| {
        let x = x.slice_axis(Axis(0), ndarray::Slice::from(..tokens));
        best(par, || drop(clip_ranges(clip, weight.view(), x, par).unwrap()))
    };
    let width = clip.group.unwrap_or(n);
    // Multiply-adds of a row of differences in the cheaper form.
    let form = if clip.group.is_some() { width as f64 / 2.0 } else { TOKENS as f64 };
    report(name, 2.0 * 10.0 * (out * n) as f64 * form, run(TOKENS), run(1), peak);
}

fn scales(name: &str, (out, n): (usize, usize), by_gram: bool, peak: f64, par: Par) {
    let (weight, x) = (random(out, n, 1), random(TOKENS, n, 2));
    let mean: Array1<f32> = x.map(|v| v.abs()).mean_axis(Axis(0)).unwrap();
    let search = Search { n_grid: 20, grid: grid(), group: Some(128), tie: None };
    let mut gram = Array2::zeros((0, 0));
    if by_gram {
        gram = Array2::zeros((n, n));
        matmul_nt(gram.view_mut(), false, 1.0, x.t(), x.t(), Compute::F32, par);
    }
    let run = |tokens: usize| {
        let x = x.slice_axis(Axis(0), ndarray::Slice::from(..tokens));
        let loss = if by_gram && tokens > 1 {
            Loss::Gram { gram: gram.view(), tokens: TOKENS }
        } else {
            Loss::Tokens(x)
        };
        best(par, || drop(search_scales(&search, mean.view(), &[weight.view()], loss, par).unwrap()))
    };
    let form = if by_gram { n as f64 / 2.0 } else { TOKENS as f64 };
    report(name, 2.0 * 20.0 * (out * n) as f64 * form, run(TOKENS), run(1), peak);
}

fn report(name: &str, operations: f64, seconds: f64, one: f64, peak: f64) {
    let rate = operations / seconds / 1e9;
    println!(
        "  {name:<24} {:8.1} ms  {rate:6.0} GF/s ({:.2} of the product)  one token {:6.1} ms ({:.2})",
        1e3 * seconds,
        rate / peak,
        1e3 * one,
        one / seconds,
    );
}

fn random(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    Numbers::new(seed).matrix(rows, columns, 1.0)
}

fn product_rate(par: Par) -> f64 {
    let (a, b) = (random(2048, 1536, 1), random(1536, 1536, 2));
    let mut c = Array2::zeros((2048, 1536));
    let seconds = best(par, || matmul_nt(c.view_mut(), false, 1.0, a.view(), b.view(), Compute::F32, par));
    2.0 * 2048.0 * 1536.0 * 1536.0 / seconds / 1e9
}

/// Seconds of the best round.
fn best(par: Par, mut work: impl FnMut()) -> f64 {
    (0..ROUNDS).map(|_| timed(par, &mut work).0).fold(f64::INFINITY, f64::min)
}
