//! Products with packed weights beside what bounds them: the read bandwidth of memory for few tokens, the products of float or
//! integer weights for many, all measured in one run.
//!
//! Contenders take turns; medians of the rounds, and of their ratios. One thread is timed in CPU time of the thread where the
//! system tells it (Linux), several in wall time. Run with `cargo bench -p quant-kernels --bench packed`; add `-- quick` for few
//! rounds, `decode` or `prefill` for one part.

use std::hint::black_box;

use ndarray::Array2;
use quant_core::operators::{DynamicNumerics, GroupedLinear, GroupedMatmul, PreparedMatmul};
use quant_core::{Bits, CoreError, Groups, QuantizedMatrix};
use quant_kernels::{
    Compute, Cpu, IntegerLevel, IntegerWeight, Level, PackedWeight, Par, PreparedWeight,
    integer_peak_operations, quantize_tokens,
};
use quant_testkit::timed;

/// A named piece of work.
type Contender<'a> = (String, Box<dyn FnMut() + 'a>);

fn main() {
    let has = |name: &str| std::env::args().any(|argument| argument == name);
    let rounds = if has("quick") { 3 } else { 9 };
    let (decoding, filling) = (has("decode") || !has("prefill"), has("prefill") || !has("decode"));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("level {}, {threads} thread(s) available, medians of {rounds} rounds", Level::detect());
    let peak = peak(rounds);
    println!("sums of four products of bytes, peak of one core: {peak:.0} GOP/s");
    for par in [Par::Seq, Par::new(threads.min(2))] {
        if decoding {
            decode(par, rounds);
        }
        if filling {
            println!(
                "{par}: prefill, time by that of the f32 product (GOP/s of 2 m n k, share of the integer peak)"
            );
            for (m, k, n) in [(16, 1536, 8960), (128, 1536, 8960), (2048, 1536, 8960), (2048, 4096, 4096)] {
                prefill(m, k, n, par, rounds, peak);
            }
        }
    }
}

/// Seconds of all contenders by round, which they take in turn, after one round that counts for nothing.
fn measure(par: Par, rounds: usize, repeats: usize, contenders: &mut [Contender<'_>]) -> Vec<Vec<f64>> {
    let mut seconds = vec![Vec::new(); contenders.len()];
    for round in 0..=rounds {
        for (seconds, (_, work)) in seconds.iter_mut().zip(contenders.iter_mut()) {
            // Short work repeats: the CPU clock of a running thread may advance in steps of milliseconds.
            let time = timed(par, || (0..repeats).for_each(|_| work())).0 / repeats as f64;
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
    let quantised = |bits, groups| PackedWeight::new(&matrix(bits, n, k, groups), par);
    let halves = PackedWeight::of_bf16((n, k), par, |i, row| {
        row.iter_mut().enumerate().for_each(|(j, x)| *x = ((i * 7 + j * 3) % 256) as f32);
    });
    let mut weights = vec![
        ("W4 g128", quantised(4, Groups::Size(128))),
        ("W4 g32", quantised(4, Groups::Size(32))),
        ("W8", quantised(8, Groups::Channel)),
    ];
    weights.extend(halves.map(|weight| ("bf16", weight)));
    for (name, one) in weights {
        let weights: Vec<PackedWeight> = vec![one.clone(); BYTES / one.bytes()];
        let size = (weights.len() * one.bytes()) as f64;
        let mut contenders: Vec<Contender<'_>> =
            vec![("reading".to_owned(), Box::new(|| read(&plain, size, par)))];
        for tokens in [1, 2, 4, 8] {
            let (x, mut y) = (random(tokens, k, 7), Array2::zeros((tokens, n)));
            let weights = &weights;
            contenders.push((
                format!("{tokens} token(s)"),
                Box::new(move || {
                    weights.iter().for_each(|w| w.forward_into(x.view(), None, y.view_mut(), par));
                }),
            ));
        }
        report_decode(name, size, &measure(par, rounds, 1, &mut contenders), &contenders);
    }
    let count = BYTES / (n * k / 2);
    let Ok(weights) = (0..count).map(|_| grouped(n, k, par)).collect::<Result<Vec<_>, _>>() else { return };
    // Levels, scales and zeros; sums of weights are read only where tokens have zeros.
    let size = (count * n * (k / 2 + 2 * k / 128 * 4)) as f64;
    let mut contenders: Vec<Contender<'_>> =
        vec![("reading".to_owned(), Box::new(|| read(&plain, size, par)))];
    for tokens in [1, 4, 12] {
        let numerics = DynamicNumerics::Ascend { bits: Bits::new(8).unwrap_or(Bits::ONE) };
        let (x, mut y) =
            (quantize_tokens(numerics, random(tokens, k, 7).view(), par), Array2::<f32>::zeros((tokens, n)));
        let weights = &weights;
        contenders.push((
            format!("{tokens} token(s)"),
            Box::new(move || {
                for weight in weights {
                    drop(black_box(weight.forward(&x, y.view_mut().into(), par)));
                }
            }),
        ));
    }
    report_decode("W4A8 g128", size, &measure(par, rounds, 1, &mut contenders), &contenders);
}

fn report_decode(name: &str, size: f64, seconds: &[Vec<f64>], contenders: &[Contender<'_>]) {
    print!("  {name}:");
    for ((name, _), time) in contenders.iter().zip(seconds) {
        let share = 100.0 * ratio(&seconds[0], time);
        print!("  {name} {:.1} ({share:.0} %)", size / median(time.clone()) / 1e9);
    }
    println!();
}

/// Reads so many bytes of memory.
fn read(plain: &[u64], size: f64, par: Par) {
    let plain = &plain[..(size as usize / 8).min(plain.len())];
    let parts = plain.chunks(plain.len().div_ceil(8 * par.threads()));
    black_box(quant_kernels::tasks::map(parts, par, |part| {
        quant_kernels::vectorized(|| part.iter().fold(0_u64, |sum, &x| sum.wrapping_add(x)))
    }));
}

/// Multiply-adds in registers only; zero where the level has no such instruction.
fn peak(rounds: usize) -> f64 {
    (0..=rounds).fold(0.0, |best, _| {
        let (seconds, done) = timed(Par::Seq, || integer_peak_operations(IntegerLevel::detect(), 8_000_000));
        done.map_or(best, |done| best.max(done as f64 / seconds / 1e9))
    })
}

/// A weight of 4 bits in groups of 128 for products with codes.
fn grouped(n: usize, k: usize, par: Par) -> Result<Box<dyn PreparedMatmul>, CoreError> {
    let linear = GroupedLinear::new(matrix(4, n, k, Groups::Size(128)), None)?;
    Cpu::default().prepare_groups(&linear, par)
}

fn codes_of(n: usize, k: usize) -> Array2<i8> {
    matrix(8, n, k, Groups::Channel).levels().mapv(u8::cast_signed)
}

fn prefill(m: usize, k: usize, n: usize, par: Par, rounds: usize, peak: f64) {
    let x = random(m, k, 1);
    let floats = PreparedWeight::new(random(n, k, 2).view(), Compute::F32, par);
    let four = PackedWeight::new(&matrix(4, n, k, Groups::Size(128)), par);
    let eight = PackedWeight::new(&matrix(8, n, k, Groups::Channel), par);
    let numerics = DynamicNumerics::Ascend { bits: Bits::new(8).unwrap_or(Bits::ONE) };
    let codes = quantize_tokens(numerics, x.view(), par);
    let Ok(grouped) = grouped(n, k, par) else { return };
    let Ok(bytes) = IntegerWeight::new(codes_of(n, k).view(), par) else { return };
    let halves = random(n, k, 2).mapv(|x| f32::from_bits(x.to_bits() & 0xFFFF_0000));
    let fill = |i: usize, row: &mut [f32]| row.iter_mut().zip(halves.row(i)).for_each(|(to, x)| *to = *x);
    let Some(sixteen) = PackedWeight::of_bf16((n, k), par, fill) else { return };
    let [mut y0, mut y1, mut y2, mut y3, mut y4]: [Array2<f32>; 5] =
        std::array::from_fn(|_| Array2::zeros((m, n)));
    let mut sums = Array2::zeros((m, n));
    let mut contenders: Vec<Contender<'_>> = vec![
        ("f32".to_owned(), Box::new(|| floats.forward_into(x.view(), None, y0.view_mut(), par))),
        ("W4A16 g128".to_owned(), Box::new(|| four.forward_into(x.view(), None, y1.view_mut(), par))),
        ("W8A16".to_owned(), Box::new(|| eight.forward_into(x.view(), None, y2.view_mut(), par))),
        ("bf16".to_owned(), Box::new(|| sixteen.forward_into(x.view(), None, y4.view_mut(), par))),
        (
            "W4A8 g128".to_owned(),
            Box::new(|| drop(black_box(grouped.forward(&codes, y3.view_mut().into(), par)))),
        ),
        ("W8A8 sums".to_owned(), Box::new(|| bytes.sums_into(codes.codes.view(), sums.view_mut(), par))),
    ];
    let seconds = measure(par, rounds, ((2e10 / (m * n * k) as f64) as usize).max(1), &mut contenders);
    print!("  {m}x{k}x{n}:");
    for ((name, _), time) in contenders.iter().zip(&seconds) {
        let rate = 2.0 * (m * n) as f64 * k as f64 / median(time.clone()) / 1e9;
        print!("  {name} {:.2} ({rate:.0}", ratio(time, &seconds[0]));
        if name.contains("A8") && peak > 0.0 {
            print!(", {:.0} %", 100.0 * rate / peak / par.threads() as f64);
        }
        print!(")");
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
