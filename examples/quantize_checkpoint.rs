//! From a checkpoint to measured folders, with the libraries: calibrate, quantise, export, verify, read back, compare.
//!
//! `cargo run --release --example quantize_checkpoint` does it to the model that comes with the repository, twice: INT8
//! weights, activations and KV cache for vLLM-Ascend, and 4-bit weights for vLLM and transformers. With arguments it does
//! the same to another model:
//!
//! ```text
//! cargo run --release --example quantize_checkpoint -- MODEL_DIR CALIBRATION.jsonl TEST.jsonl OUTPUT_DIR
//! ```

use ptq::checkpoint::verify::{Target, verify};
use ptq::cli::Table;
use ptq::data::{CalibrationSpec, LoadOptions};
use ptq::eval::{EvalOptions, LanguageModel, evaluate};
use ptq::kernels::Compute;
use ptq::pipeline::{
    Event, Events, QuantizeJob, Recipe, Scored, open_folder, peak_memory, quantize, reset_peak_memory,
    with_threads,
};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Preset recipe, the loader its output is for.
const JOBS: [(&str, Target); 2] = [("w8a8kv8-ascend", Target::VllmAscend), ("w4a16g32", Target::Vllm)];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner");
    let [model, calibration, test, output] = match arguments.as_slice() {
        [] => [
            assets.clone(),
            assets.join("tasks/calibration.jsonl"),
            assets.join("tasks/test.jsonl"),
            PathBuf::from("out"),
        ],
        [model, calibration, test, output] => {
            [model.clone(), calibration.clone(), test.clone(), output.clone()]
        }
        _ => return Err("usage: quantize_checkpoint [MODEL_DIR CALIBRATION TEST OUTPUT_DIR]".into()),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);

    // Held-out windows to score: the same for the float model and every folder.
    let spec = open_folder(&model)?.spec;
    let options = LoadOptions {
        num_samples: Some(48),
        max_seq_len: Some(256),
        seed: 7,
        vocab_size: spec.vocab,
        max_position_embeddings: spec.max_position_embeddings,
    };
    let windows = ptq::data::load(&CalibrationSpec::parse(&test.to_string_lossy())?, &options, &model)?;
    println!("scored on {}", windows.describe());

    let mut table = Table::new(&[
        "scheme",
        "bits/weight",
        "size",
        "perplexity",
        "KL (nats)",
        "top-1 agreement",
        "seconds",
        "peak memory",
    ]);
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let peak = || peak_memory().map_or_else(|| "-".to_owned(), megabytes);

    // The float model against itself: the row that the others are compared with, and a check of the measurement.
    let float = score(&model, &model, &windows.sequences, threads)?;
    let dtype_bits = 8.0 * spec.dtype.size() as f64;
    let size = open_folder(&model)?.checkpoint.total_bytes();
    let [perplexity, kl, agreement] = figures(&float);
    table.row(vec![
        "float".into(),
        format!("{dtype_bits:.2}"),
        megabytes(size),
        perplexity,
        kl,
        agreement,
        "-".into(),
        "-".into(),
    ]);

    for (preset, target) in JOBS {
        let started = Instant::now();
        reset_peak_memory();
        let folder = output.join(preset);
        let recipe = Recipe::from_preset(preset)?;
        let scheme = recipe.rounding().weights().scheme;
        let outcome = quantize(
            &QuantizeJob {
                calibration: Some(CalibrationSpec::parse(&calibration.to_string_lossy())?),
                num_samples: Some(32),
                max_seq_len: Some(256),
                threads,
                force: true,
                ..QuantizeJob::new(&model, recipe, &folder)
            },
            &mut Lines,
        )?;
        let seconds = started.elapsed().as_secs_f64();
        let memory = peak();

        // What the loader would say, then what the folder computes when it is read back.
        let opened = open_folder(&folder)?;
        let verdict = verify(&folder, &opened.spec, target)?;
        for check in verdict.checks.iter().filter(|c| !c.passed) {
            println!("{target}: {} failed: {}", check.name, check.detail);
        }
        if !verdict.passed() {
            return Err(format!("{} does not pass for {target}", folder.display()).into());
        }
        println!("{}: verified for {target}, {} checks", folder.display(), verdict.checks.len());
        let report = score(&folder, &model, &windows.sequences, threads)?;
        let [perplexity, kl, agreement] = figures(&report);
        table.row(vec![
            format!("{scheme} ({})", outcome.format),
            format!("{:.2}", outcome.bits_per_weight),
            megabytes(outcome.bytes),
            perplexity,
            kl,
            agreement,
            format!("{seconds:.1}"),
            memory,
        ]);
    }
    println!("\n{table}");
    println!(
        "KL and top-1 agreement are against the float model; seconds and peak memory are those of quantising."
    );
    Ok(())
}

/// Perplexity of a folder and its divergence from the float model.
fn score(
    folder: &Path,
    float: &Path,
    sequences: &[Vec<u32>],
    threads: usize,
) -> Result<ptq::eval::EvalReport, Box<dyn Error>> {
    let source = open_folder(folder)?.into_source()?;
    let reference = open_folder(float)?.into_source()?;
    Ok(with_threads(threads, |par| {
        let mut model = Scored::new(source, Compute::F32, par);
        let mut reference = Scored::new(reference, Compute::F32, par);
        let options = EvalOptions {
            reference: Some(&mut reference as &mut dyn LanguageModel),
            ..EvalOptions::default()
        };
        evaluate(&mut model, sequences, options)
    })??)
}

/// Perplexity, KL divergence and top-1 agreement for the table.
fn figures(report: &ptq::eval::EvalReport) -> [String; 3] {
    let missing = || "not finite".to_owned();
    let comparison = report.comparison.as_ref();
    [
        report.perplexity.map_or_else(missing, |p| format!("{p:.4}")),
        comparison.and_then(|c| c.kl).map_or_else(missing, |kl| format!("{kl:.5}")),
        comparison.and_then(|c| c.top1_agreement).map_or_else(missing, |a| format!("{:.2} %", 100.0 * a)),
    ]
}

/// Prints warnings and a line per block.
struct Lines;

impl Events for Lines {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Warning(text) => println!("warning: {text}"),
            Event::BlockDone { index, of, seconds } => println!("block {}/{of}: {seconds:.2} s", index + 1),
            _ => {}
        }
    }
}
