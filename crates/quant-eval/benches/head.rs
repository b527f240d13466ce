//! Time of scoring beside that of the head's product alone, at the shape of a 1.5B model with a vocabulary of 151936.
//!
//! Scoring reads the head from bf16, prepares it panel by panel, multiplies, and carries log-sum-exp, arg-max and target
//! logit along; with a reference, divergence and agreement too, over two products. The product alone multiplies the same
//! hidden states with the same panels, prepared beforehand. The two take turns and each keeps its best round, so that a
//! disturbance of the machine hits both.
//!
//! Run with `cargo bench -p quant-eval --bench head`; positions, rounds and threads may follow `--`.

use std::ops::Range;
use std::time::Instant;

use ndarray::{Array2, ArrayViewMut2, Axis, Slice};
use quant_eval::{BoxError, EncodeProgress, EvalOptions, LanguageModel, evaluate};
use quant_kernels::{Compute, Par, PreparedWeight};

const HIDDEN: usize = 1536;
const VOCABULARY: usize = 151_936;
const PANEL: usize = 2048;

/// A head in bf16, as checkpoints hold it, and hidden states.
struct Head {
    weights: Vec<u16>,
    hidden: Array2<f32>,
    par: Par,
}

impl Head {
    fn new(positions: usize, seed: u32, par: Par) -> Self {
        let mut state = seed;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let weights = (0..VOCABULARY * HIDDEN).map(|_| ((0.1 * noise()).to_bits() >> 16) as u16).collect();
        Self { weights, hidden: Array2::from_shape_simple_fn((positions, HIDDEN), noise), par }
    }
    fn prepared(&self, tokens: Range<usize>) -> PreparedWeight<f32> {
        let shape = (tokens.len(), HIDDEN);
        PreparedWeight::from_rows(shape, Compute::F32, self.par, |row, out| {
            let stored = &self.weights[(tokens.start + row) * HIDDEN..][..HIDDEN];
            for (x, &bits) in out.iter_mut().zip(stored) {
                *x = f32::from_bits(u32::from(bits) << 16);
            }
        })
    }
}

impl LanguageModel for Head {
    fn vocab_size(&self) -> usize {
        VOCABULARY
    }
    fn encode(&mut self, _: &[Vec<u32>], _: &mut EncodeProgress<'_>) -> Result<(), BoxError> {
        Ok(())
    }
    fn logits(
        &mut self,
        positions: Range<usize>,
        tokens: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), BoxError> {
        let x = self.hidden.slice_axis(Axis(0), Slice::from(positions));
        self.prepared(tokens).forward_into(x, None, out, self.par);
        Ok(())
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let number = |i: usize, default: usize| numbers.get(i).copied().unwrap_or(default);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (positions, rounds, threads) = (number(0, 4096), number(1, 3), number(2, threads));
    let par = Par::new(threads);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let mut model = Head::new(positions, 1, par);
    let mut reference = Head::new(positions, 2, par);
    let panels: Vec<_> = (0..VOCABULARY)
        .step_by(PANEL)
        .map(|first| model.prepared(first..VOCABULARY.min(first + PANEL)))
        .collect();
    let sequences: Vec<Vec<u32>> = vec![(0..positions as u32).collect()];
    let mut buffer = vec![0.0_f32; positions * PANEL];
    let mut best = [f64::INFINITY; 3];
    for _ in 0..rounds {
        pool.install(|| {
            let product = seconds(|| {
                for panel in &panels {
                    let shape = (positions, panel.out_features());
                    let out = &mut buffer[..shape.0 * shape.1];
                    if let Ok(out) = ArrayViewMut2::from_shape(shape, out) {
                        panel.forward_into(model.hidden.view(), None, out, par);
                    }
                }
            });
            let mut failed = None;
            let alone = seconds(|| failed = evaluate(&mut model, &sequences, EvalOptions::default()).err());
            let options = EvalOptions { reference: Some(&mut reference), ..EvalOptions::default() };
            let compared = seconds(|| failed = evaluate(&mut model, &sequences, options).err());
            if let Some(error) = failed {
                eprintln!("{error}");
            }
            for (best, time) in best.iter_mut().zip([product, alone, compared]) {
                *best = best.min(time);
            }
        });
    }
    let [product, alone, compared] = best;
    println!("{positions} positions, {threads} thread(s), best of {rounds} rounds");
    println!("product alone    {product:7.2} s");
    println!("scored           {alone:7.2} s  {:.3}x", alone / product);
    println!("with a reference {compared:7.2} s  {:.3}x of two products", compared / (2.0 * product));
    Ok(())
}
