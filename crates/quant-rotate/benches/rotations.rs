//! Hadamard and Kronecker transforms beside a copy of the same bytes and beside the product of matrices, and quantisers with
//! gradients, measured in one run.
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
use quant_rotate::{Bits, ClipLogits, Hadamard, Kronecker, StraightThrough, hadamard_core, kronecker_sides};

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
    println!("\nKronecker transforms of 2048 rows: GF/s, and as a ratio to the f32 product");
    for columns in [1536, 4096, 8960] {
        kroneckers(columns, rounds.div_ceil(3));
    }
    println!("\nQuantisers with learned clipping: nanoseconds an element, a copy included");
    for columns in [1536, 8960] {
        for symmetric in [true, false] {
            quantisers(columns, symmetric, rounds.div_ceil(3));
        }
    }
}

/// Bytes of the buffer of the first table.
const BYTES: usize = 8 << 20;

/// Kronecker transforms of 2048 rows, there and back, beside the product.
fn kroneckers(columns: usize, rounds: usize) {
    let (l, r) = kronecker_sides(columns).expect("a size of the model zoo");
    let (left, right, x, g) = (random(l, l), random(r, r), random(2048, columns), random(2048, columns));
    let (mut y, mut input) = (x.clone(), x.clone());
    let transform = Kronecker::new(left.view(), right.view()).expect("square matrices");
    let (a, b) = (random(1024, 1024), random(1024, 1024));
    let mut c = Array2::<f32>::zeros((1024, 1024));
    let [product, forward, backward] = best(
        rounds,
        [
            &mut || linear_into(a.view(), b.view(), None, c.view_mut(), Compute::F32, Par::Seq),
            &mut || transform.apply_into(x.view(), y.view_mut(), Par::Seq),
            &mut || drop(transform.backward_into(x.view(), g.view(), input.view_mut(), Par::Seq)),
        ],
    );
    let rate = |operations: usize, seconds: f64| operations as f64 / seconds / 1e9;
    let products = rate(2 << 30, product);
    let once = 2 * 2048 * columns;
    let there = rate(once * (l + r), forward);
    // Two products with each matrix for the input and the matrices themselves, one more with the left.
    let back = rate(once * (3 * l + 2 * r), backward);
    println!(
        "{l:>3} x {r:<3}  product {products:.0}  forward {there:.0} ({:.2})  backward {back:.0} ({:.2})",
        there / products,
        back / products
    );
}

/// Quantisers of one scale per row on 2048 rows, beside a copy of them.
fn quantisers(columns: usize, symmetric: bool, rounds: usize) {
    let (x, g) = (random(2048, columns), random(2048, columns));
    let bits = Bits::new(4).expect("a width");
    let quantiser = StraightThrough::activations(bits, symmetric).expect("a quantiser");
    let logits = ClipLogits::initial(1);
    let (mut copied, mut y, mut input) = (x.clone(), x.clone(), x.clone());
    let [copy, forward, backward] = best(
        rounds,
        [
            &mut || copied.assign(black_box(&x)),
            &mut || {
                y.assign(&x);
                quantiser
                    .forward_in_place(y.view_mut(), columns, Some(&logits), Par::Seq)
                    .expect("whole rows");
            },
            &mut || {
                input.assign(&g);
                let to = input.view_mut();
                let clip = quantiser.backward_in_place(x.view(), to, columns, Some(&logits), Par::Seq);
                black_box(clip.expect("whole rows"));
            },
        ],
    );
    let each = |seconds: f64| seconds * 1e9 / (2048 * columns) as f64;
    println!(
        "rows of {columns:<5} symmetric {symmetric:<5}  copy {:.2}  forward {:.2}  backward {:.2}",
        each(copy),
        each(forward),
        each(backward)
    );
}

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
