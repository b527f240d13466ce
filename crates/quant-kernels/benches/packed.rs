//! Products with packed weights beside what bounds them: the read bandwidth of memory for few tokens, the products of float or
//! integer weights for many, all measured in one run.
//!
//! Contenders take turns; medians of the rounds, and of their ratios. One thread is timed in CPU time of the thread where the
//! system tells it (Linux), several in wall time. Run with `cargo bench -p quant-kernels --bench packed`; add `-- quick` for few
//! rounds, `decode` or `prefill` for one part.

use std::hint::black_box;

use ndarray::Array2;
use quant_core::{Bits, Groups, QuantizedMatrix};
use quant_kernels::{Compute, Level, PackedWeight, Par, PreparedWeight};
use quant_testkit::timed;

/// A named piece of work.
type Contender<'a> = (String, Box<dyn FnMut() + 'a>);

fn main() {
    let has = |name: &str| std::env::args().any(|argument| argument == name);
    let rounds = if has("quick") { 3 } else { 9 };
    let (decoding, filling) = (has("decode") || !has("prefill"), has("prefill") || !has("decode"));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("level {}, {threads} thread(s) available, medians of {rounds} rounds", Level::detect());
    for par in [Par::Seq, Par::new(threads.min(2))] {
        if decoding {
            decode(par, rounds);
        }
        if filling {
            println!("{par}: prefill, time by that of the f32 product (GF/s of 2 m n k)");
            for (m, k, n) in [(16, 1536, 8960), (128, 1536, 8960), (2048, 1536, 8960), (2048, 4096, 4096)] {
                prefill(m, k, n, par, rounds);
            }
        }
    }
}

/// Seconds of all contenders by round, which they take in turn, after one round that counts for nothing.
fn measure(par: Par, rounds: usize, contenders: &mut [Contender<'_>]) -> Vec<Vec<f64>> {
    let mut seconds = vec![Vec::new(); contenders.len()];
    for round in 0..=rounds {
        for (seconds, (_, work)) in seconds.iter_mut().zip(contenders.iter_mut()) {
            let time = timed(par, work).0;
            if round > 0 {
                seconds.push(time);
            }
        }
    }
    seconds
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median over rounds of `a` by `b`.
fn ratio(a: &[f64], b: &[f64]) -> f64 {
    median(a.iter().zip(b).map(|(a, b)| a / b).collect())
}

/// A few tokens through as many weights as no cache holds, beside reading as many bytes.
fn decode(par: Par, rounds: usize) {
    const BYTES: usize = 5 << 28;
    let plain: Vec<u64> = vec![1; BYTES / 8];
    let (n, k) = (8960, 4096);
    println!(
        "{par}: decode over {:.2} GiB, GB/s (share of the bandwidth)",
        BYTES as f64 / (1_u64 << 30) as f64
    );
    for (name, bits, groups) in
        [("W4 g128", 4, Groups::Size(128)), ("W4 g32", 4, Groups::Size(32)), ("W8", 8, Groups::Channel)]
    {
        let one = PackedWeight::new(&matrix(bits, n, k, groups), par);
        let weights: Vec<PackedWeight> = vec![one.clone(); BYTES / one.bytes()];
        let size = (weights.len() * one.bytes()) as f64;
        let mut contenders: Vec<Contender<'_>> = vec![(
            "reading".to_owned(),
            Box::new(|| {
                let plain = &plain[..size as usize / 8];
                let parts = plain.chunks(plain.len().div_ceil(8 * par.threads()));
                black_box(quant_kernels::tasks::map(parts, par, |part| {
                    quant_kernels::vectorized(|| part.iter().fold(0_u64, |sum, &x| sum.wrapping_add(x)))
                }));
            }),
        )];
        for tokens in [1, 2, 4, 8] {
            let (x, mut y) = (random(tokens, k, 7), Array2::zeros((tokens, n)));
            let weights = &weights;
            contenders.push((
                format!("{tokens} token(s)"),
                Box::new(move || {
                    weights.iter().for_each(|w| w.forward_into(x.view(), None, y.view_mut(), par))
                }),
            ));
        }
        let seconds = measure(par, rounds, &mut contenders);
        print!("  {name}:");
        for ((name, _), time) in contenders.iter().zip(&seconds) {
            let share = 100.0 * ratio(&seconds[0], time);
            print!("  {name} {:.1} ({share:.0} %)", size / median(time.clone()) / 1e9);
        }
        println!();
    }
}

fn prefill(m: usize, k: usize, n: usize, par: Par, rounds: usize) {
    let x = random(m, k, 1);
    let floats = PreparedWeight::new(random(n, k, 2).view(), Compute::F32, par);
    let four = PackedWeight::new(&matrix(4, n, k, Groups::Size(128)), par);
    let eight = PackedWeight::new(&matrix(8, n, k, Groups::Channel), par);
    let [mut y0, mut y1, mut y2]: [Array2<f32>; 3] = std::array::from_fn(|_| Array2::zeros((m, n)));
    let mut contenders: Vec<Contender<'_>> = vec![
        ("f32".to_owned(), Box::new(|| floats.forward_into(x.view(), None, y0.view_mut(), par))),
        ("W4A16 g128".to_owned(), Box::new(|| four.forward_into(x.view(), None, y1.view_mut(), par))),
        ("W8A16".to_owned(), Box::new(|| eight.forward_into(x.view(), None, y2.view_mut(), par))),
    ];
    let seconds = measure(par, rounds, &mut contenders);
    print!("  {m}x{k}x{n}:");
    for ((name, _), time) in contenders.iter().zip(&seconds) {
        let rate = 2.0 * (m * n) as f64 * k as f64 / median(time.clone()) / 1e9;
        print!("  {name} {:.2} ({rate:.0})", ratio(time, &seconds[0]));
    }
    println!();
}

/// A quantised weight of which every level occurs.
fn matrix(bits: u32, n: usize, k: usize, groups: Groups) -> QuantizedMatrix {
    let bits = Bits::new(bits).unwrap_or(Bits::ONE);
    let top = bits.max_level() as u8;
    let mut state = 1_u32;
    let levels = Array2::from_shape_simple_fn((n, k), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 & top
    });
    let count = groups.count(k);
    let zeros = Array2::from_elem((n, count), bits.mid_level());
    QuantizedMatrix::new(bits, levels, Array2::from_elem((n, count), 0.01), zeros, groups)
        .unwrap_or_else(|_| QuantizedMatrix::unfilled(bits, (n, k), None))
}

fn random(rows: usize, cols: usize, seed: u32) -> Array2<f32> {
    let mut state = seed;
    Array2::from_shape_simple_fn((rows, cols), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    })
}
