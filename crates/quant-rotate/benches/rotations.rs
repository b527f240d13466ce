//! Fast Hadamard transforms beside a copy of the same bytes and beside the product of matrices, measured in one run.
//!
//! Contenders of one shape take turns, and each keeps its best round, so that a disturbance of the machine hits all of them
//! alike. One thread.
//!
//! Run with `cargo bench -p quant-rotate --bench rotations`; add `-- quick` for one round.

#![allow(clippy::expect_used, missing_docs, reason = "a measurement program fails by panicking")]

use std::hint::black_box;
use std::time::Instant;

use quant_kernels::{Compute, Level, Par, linear_into, mix_blocks_in_place};
use quant_rotate::ndarray::Array2;
use quant_rotate::{Hadamard, hadamard_core};

fn main() {
    let rounds = if std::env::args().any(|argument| argument == "quick") { 1 } else { 30 };
    println!("level {}, best of {rounds} rounds", Level::detect());
    println!("\nK = 1, in place on 8 MiB: GB/s of the buffer, and as a ratio to memcpy of it");
    for columns in [64, 128, 1024, 4096, 16_384] {
        powers_of_two(columns, rounds);
    }
    println!(
        "\nK > 1 on 512 rows: GF/s of 2 K operations an element for the core alone, and as a ratio to the f32 product"
    );
    for columns in [12 * 128, 28 * 128, 28 * 512, 108 * 64, 140 * 16, 148 * 128, 924 * 4] {
        cores(columns, rounds);
    }
}

/// Bytes of the buffer of the first table.
const BYTES: usize = 8 << 20;

/// Rows of a power of two that fill the buffer.
fn powers_of_two(columns: usize, rounds: usize) {
    let rows = BYTES / size_of::<f32>() / columns;
    let mut x = random(rows, columns);
    let source = vec![1.0_f32; rows * columns];
    let mut target = source.clone();
    let hadamard = Hadamard::new(columns).expect("a power of two");
    let [copy, transform] = best(
        rounds,
        [&mut || black_box(&mut target[..]).copy_from_slice(black_box(&source)), &mut || {
            hadamard.apply(black_box(&mut x).view_mut(), Par::Seq);
        }],
    );
    let rate = |seconds: f64| BYTES as f64 / seconds / 1e9;
    let ratio = copy / transform;
    println!("rows of {columns:<6}  memcpy {:.1}  transform {:.1} ({ratio:.2})", rate(copy), rate(transform));
}

/// The core of one size, beside the product of a shape the products are good at.
fn cores(columns: usize, rounds: usize) {
    let hadamard = Hadamard::new(columns).expect("a size of the model zoo");
    let (order, rows) = (hadamard.order(), 512);
    let core = hadamard_core(order).expect("the core of that size").mapv(f32::from);
    // Orthogonal, so that repeating it keeps numbers as large as they are.
    let alpha = 1.0 / (order as f32).sqrt();
    let (mut x, mut y) = (random(rows, columns), random(rows, columns));
    let (a, b) = (random(1024, 1024), random(1024, 1024));
    let mut c = Array2::<f32>::zeros((1024, 1024));
    let [product, mix, whole] = best(
        rounds,
        [
            &mut || linear_into(a.view(), b.view(), None, c.view_mut(), Compute::F32, Par::Seq),
            &mut || mix_blocks_in_place(x.view_mut(), alpha, core.view(), Par::Seq),
            &mut || hadamard.apply(y.view_mut(), Par::Seq),
        ],
    );
    let rate = |operations: usize, seconds: f64| operations as f64 / seconds / 1e9;
    let products = rate(2 << 30, product);
    let mixed = rate(2 * order * rows * columns, mix);
    println!(
        "{order:>3} * {:<4} product {products:.0}  core {mixed:.0} ({:.2})  whole {:.2} ms, {:.2} of it the core",
        columns / order,
        mixed / products,
        whole * 1e3,
        mix / whole
    );
}

/// The best seconds of each contender over all rounds, the first of which only warms caches.
fn best<const N: usize>(rounds: usize, mut contenders: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut best = [f64::INFINITY; N];
    for round in 0..=rounds {
        for (best, work) in best.iter_mut().zip(&mut contenders) {
            let began = Instant::now();
            work();
            if round > 0 {
                *best = best.min(began.elapsed().as_secs_f64());
            }
        }
    }
    best
}

fn random(rows: usize, columns: usize) -> Array2<f32> {
    let mut state = 1_u32;
    Array2::from_shape_simple_fn((rows, columns), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    })
}
