//! Rates of the products beside faer and beside the multiply-add peak of the core, measured in one run.
//!
//! Contenders of one shape take turns, and each keeps its best round, so that a disturbance of the machine hits all of
//! them alike. One thread is timed in CPU time of the thread where the system tells it (Linux), several in wall time.
//! Rates count every multiplication and addition of the full product; a Gram matrix does about half of them, which is
//! why its rate can exceed the peak.
//!
//! Run with `cargo bench -p quant-kernels --bench products`; add `-- quick` for one round.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::traits::RealField;
use faer::{Accum, MatMut, MatRef};
use ndarray::Array2;
use quant_core::Real;
use quant_kernels::{
    Compute, Element, Level, Par, PreparedWeight, bf16_peak_operations, float_peak_operations, gram_lower,
    linear_into,
};
use quant_testkit::timed;

/// A named piece of work.
type Contender<'a> = (&'a str, Box<dyn FnMut() + 'a>);

fn main() {
    let rounds = if std::env::args().any(|argument| argument == "quick") { 1 } else { 7 };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("level {}, {threads} thread(s) available, best of {rounds} rounds", Level::detect());
    println!(
        "f32 multiply-add peak of one core: {:.0} GF/s",
        peak(rounds, || Some(float_peak_operations(8_000_000)))
    );
    let bf16 = peak(rounds, || bf16_peak_operations(Level::detect(), 1_000_000));
    println!("bf16 peak of one core, 0 where f32 instructions do it: {bf16:.0} GF/s");
    for par in [Par::Seq, Par::new(threads.min(2))] {
        println!("\n{par}: rates in GF/s of 2 m n k, and as a ratio to the first column");
        for (m, k, n) in [(2048, 1536, 8960), (2048, 4096, 4096), (512, 1536, 1536), (1, 1536, 8960)] {
            linear_shapes(m, k, n, par, rounds);
        }
        for (tokens, n) in [(8192, 1536), (2048, 8960)] {
            gram_shapes::<f32>(tokens, n, par, rounds);
        }
        gram_shapes::<f64>(8192, 1536, par, rounds);
    }
}

/// `y = x W^T`, `x` `[m, k]`, `W` `[n, k]`.
fn linear_shapes(m: usize, k: usize, n: usize, par: Par, rounds: usize) {
    let (x, w) = (random::<f32>(m, k, 1), random::<f32>(n, k, 2));
    let outputs: [Array2<f32>; 5] = std::array::from_fn(|_| Array2::zeros((m, n)));
    let [mut y0, mut y1, mut y2, mut y3, mut y4] = outputs;
    let prepared = PreparedWeight::new(w.view(), Compute::F32, Par::Seq);
    let prepared_bf16 = PreparedWeight::new(w.view(), Compute::Bf16, Par::Seq);
    let contenders: Vec<Contender<'_>> = vec![
        (
            "faer",
            Box::new(|| {
                let w = row_major(&w).transpose();
                matmul(row_major_mut(&mut y0), Accum::Replace, row_major(&x), w, 1.0, faer_par(par));
            }),
        ),
        ("f32", Box::new(|| linear_into(x.view(), w.view(), None, y1.view_mut(), Compute::F32, par))),
        ("f32 prepared", Box::new(|| prepared.forward_into(x.view(), None, y2.view_mut(), par))),
        ("bf16", Box::new(|| linear_into(x.view(), w.view(), None, y3.view_mut(), Compute::Bf16, par))),
        ("bf16 prepared", Box::new(|| prepared_bf16.forward_into(x.view(), None, y4.view_mut(), par))),
    ];
    report(&format!("linear {m}x{k}x{n}"), (m * n) as f64 * k as f64, par, rounds, contenders);
}

/// Lower triangle of `X^T X`, `X` `[tokens, n]`.
fn gram_shapes<T: Element + RealField>(tokens: usize, n: usize, par: Par, rounds: usize) {
    let x = random::<T>(tokens, n, 3);
    let transposed = x.t().as_standard_layout().into_owned();
    let outputs: [Array2<T>; 3] = std::array::from_fn(|_| Array2::zeros((n, n)));
    let [mut h0, mut h1, mut h2] = outputs;
    let contenders: Vec<Contender<'_>> = vec![
        (
            "faer, X col-major",
            Box::new(|| {
                let left = row_major(&transposed);
                triangular::matmul(
                    row_major_mut(&mut h0),
                    BlockStructure::TriangularLower,
                    Accum::Add,
                    left,
                    BlockStructure::Rectangular,
                    left.transpose(),
                    BlockStructure::Rectangular,
                    <T as Real>::from_f64(1.0),
                    faer_par(par),
                );
            }),
        ),
        (
            "plain",
            Box::new(|| {
                gram_lower(h1.view_mut(), true, <T as Real>::from_f64(1.0), x.view(), Compute::F32, par);
            }),
        ),
        (
            "bf16",
            Box::new(|| {
                gram_lower(h2.view_mut(), true, <T as Real>::from_f64(1.0), x.view(), Compute::Bf16, par);
            }),
        ),
    ];
    let name = format!("gram {} {tokens}x{n}", std::any::type_name::<T>());
    report(&name, (n * n) as f64 * tokens as f64, par, rounds, contenders);
}

/// Products below which a contender runs more than once per round: about a tenth of a second.
const SHORT_WORK: f64 = 1e10;

fn report(name: &str, products: f64, par: Par, rounds: usize, mut contenders: Vec<Contender<'_>>) {
    let mut best = vec![f64::INFINITY; contenders.len()];
    // Short work repeats: the CPU clock of a running thread may advance in steps of milliseconds.
    let repeats = ((SHORT_WORK / products) as usize).clamp(1, 200);
    for round in 0..=rounds {
        for (best, (_, work)) in best.iter_mut().zip(&mut contenders) {
            let seconds = timed(par, || (0..repeats).for_each(|_| work())).0 / repeats as f64;
            // The first round only warms caches and memory.
            if round > 0 {
                *best = best.min(seconds);
            }
        }
    }
    print!("{name:<24}");
    for ((label, _), seconds) in contenders.iter().zip(&best) {
        print!("  {label} {:.0} ({:.2})", 2.0 * products / seconds / 1e9, best[0] / seconds);
    }
    println!();
}

/// The best rate of multiply-adds in registers only; zero where there are none.
fn peak(rounds: usize, work: impl Fn() -> Option<u64>) -> f64 {
    (0..=rounds).fold(0.0, |best: f64, _| {
        let (seconds, operations) = timed(Par::Seq, &work);
        operations.map_or(best, |operations| best.max(operations as f64 / seconds / 1e9))
    })
}

fn random<T: Element>(rows: usize, cols: usize, seed: u32) -> Array2<T> {
    let mut state = seed;
    Array2::from_shape_simple_fn((rows, cols), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        <T as Real>::from_f64(f64::from(state >> 8) / 8_388_608.0 - 1.0)
    })
}

fn row_major<T>(x: &Array2<T>) -> MatRef<'_, T> {
    MatRef::from_row_major_slice(x.as_slice().unwrap_or_default(), x.nrows(), x.ncols())
}

fn row_major_mut<T>(x: &mut Array2<T>) -> MatMut<'_, T> {
    let (rows, cols) = x.dim();
    MatMut::from_row_major_slice_mut(x.as_slice_mut().unwrap_or_default(), rows, cols)
}

fn faer_par(par: Par) -> faer::Par {
    if par.threads() == 1 { faer::Par::Seq } else { faer::Par::rayon(par.threads()) }
}
