//! `ptq synth`

use super::{Failure, count, human, print_line};
use crate::synth::{Shape, Synthetic, synthesize};
use quant_pipeline::Sample;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Shape of a block: smollm2-135m, qwen2-0.5b, qwen2-1.5b or qwen2-7b
    #[arg(long, default_value = "qwen2-1.5b")]
    shape: Shape,
    /// Number of blocks
    #[arg(long, default_value = "2", value_parser = count)]
    layers: usize,
    /// Size of the vocabulary
    #[arg(long, default_value = "8192", value_parser = count)]
    vocab: usize,
    /// Random calibration sequences to write beside the weights, and the tokens of each
    #[arg(long, value_name = "NxL", default_value = "16x512")]
    tokens: Sample,
    /// Seed of the weights and tokens
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replace an existing folder
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let Args { shape, layers, vocab, tokens, seed, .. } = *args;
    let bytes = synthesize(&args.output, &Synthetic { shape, layers, vocab, tokens, seed }, args.force)?;
    print_line(format!(
        "{}: {layers} blocks, {} of random bf16 weights; calibration tokens in tokens.safetensors:calibration [{}, {}]",
        args.output.display(),
        human(bytes),
        tokens.sequences,
        tokens.tokens
    ))?;
    Ok(())
}
