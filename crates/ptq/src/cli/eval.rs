//! `ptq eval`

use super::progress::{Progress, on_interrupt};
use super::{Failure, bytes, count, default_threads, human, print_json, print_line, say, threads};
use quant_data::CalibrationSpec;
use quant_model::Execution;
use quant_pipeline::{Card, EvalData, EvalJob, Registry, evaluate_with};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("data").required(true).args(["tokens", "text", "task"])))]
pub(super) struct Args {
    /// Float model or quantised folder
    #[arg(long, value_name = "DIR", required_unless_present = "server")]
    pub(super) model: Option<PathBuf>,
    /// A task by its name (`ptq list`), or a task file: continuations compared, answers graded, a text predicted
    #[arg(long, value_name = "NAME|FILE")]
    pub(super) task: Option<String>,
    /// With --task: folder with the task's files, looked in first; may be given more than once
    #[arg(long, value_name = "DIR", requires = "task")]
    pub(super) data_dir: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) download: super::download::Args,
    /// With --task: the first N items only
    #[arg(long, value_name = "N", value_parser = count, requires = "task")]
    pub(super) limit: Option<usize>,
    /// With --task: seed of the draws instead of the task's; may be given more than once
    #[arg(long, value_name = "S", requires = "task")]
    pub(super) seed: Vec<u64>,
    /// With --task: new tokens of an answer at most
    #[arg(long, value_name = "N", value_parser = count, requires = "task")]
    pub(super) max_new_tokens: Option<usize>,
    /// With --task: texts that are worked on at a time, or requests to --server (default: 16); no text of a folder depends on it
    #[arg(long, value_name = "N", value_parser = count, requires = "task")]
    pub(super) batch: Option<usize>,
    /// With --task: folder for the items as they are finished, and the result
    #[arg(long, value_name = "DIR", requires = "task")]
    pub(super) output: Option<PathBuf>,
    /// With --output: go on with what is there
    #[arg(long, requires = "output", conflicts_with = "restart")]
    pub(super) resume: bool,
    /// With --output: throw away what is there
    #[arg(long, requires = "output")]
    pub(super) restart: bool,
    /// With --task: keep the texts of answers beside their tokens
    #[arg(long, requires = "task")]
    pub(super) with_texts: bool,
    /// With --task: run programs that the model wrote, in a sandbox, for tasks that grade them so
    #[arg(long, requires = "task")]
    pub(super) allow_code_execution: bool,
    /// With --allow-code-execution: interpreter of these programs (default: python3)
    #[arg(long, value_name = "FILE", requires = "allow_code_execution")]
    pub(super) python: Option<PathBuf>,
    #[command(flatten)]
    pub(super) server: super::server::Args,
    /// Token ids `[sequences, length]`; each row is scored alone
    #[arg(long, value_name = "FILE.safetensors:TENSOR")]
    tokens: Option<String>,
    /// Text, or JSON lines whose `text` is joined by blank lines, scored by the WikiText-2 protocol
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens per sequence
    #[arg(long, value_name = "L", value_parser = count)]
    pub(super) seq_len: Option<usize>,
    /// Score the first N tokens only
    #[arg(long, value_name = "N", value_parser = count)]
    pub(super) limit_tokens: Option<usize>,
    /// Model to compare with (usually the float one): adds KL divergence and top-1 agreement
    #[arg(long, value_name = "DIR")]
    pub(super) reference: Option<PathBuf>,
    /// Write the logits as one tensor `logits`, f32 [sequences, length, vocabulary]; only logits saved before are replaced
    #[arg(long, value_name = "FILE")]
    pub(super) save_logits: Option<PathBuf>,
    /// Threads (default: all processors); the result does not depend on it
    #[arg(long, value_name = "T", value_parser = threads)]
    pub(super) threads: Option<usize>,
    /// Memory budget, such as 8GB (default: none), kept by hidden states on disk; an evaluation that may exceed it is refused
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(super) memory: Option<u64>,
    /// Folder for hidden states on disk (default: the system's folder for temporary files)
    #[arg(long, value_name = "DIR")]
    pub(super) spill: Option<PathBuf>,
    /// Arithmetic of the products: f32, bf16 operands with f32 accumulation, or sums of two or three bf16 numbers (bf16x2, bf16x3)
    #[arg(long, value_name = "COMPUTE", default_value = "f32")]
    pub(super) compute: quant_kernels::Compute,
    /// Simulate the codes of --model as floats (sim; default without --backend), or multiply the codes themselves (int8)
    #[arg(long, value_name = "HOW", value_parser = super::execution)]
    pub(super) execute: Option<Execution>,
    #[command(flatten)]
    pub(super) backend: super::backend::Args,
    /// With --execute int8: run the simulation as well and count the codes of inputs that differ from it
    #[arg(long)]
    pub(super) flips: bool,
    /// Write the result into the model card of --model too, a finished folder of `ptq quantize`
    #[arg(long)]
    pub(super) card: bool,
    /// Report the sum of negative log-likelihoods of every sequence as well
    #[arg(long)]
    pub(super) per_sequence: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Args {
    /// Whether codes are executed.
    pub(super) fn execution(&self) -> Execution {
        self.backend.execution(self.execute).unwrap_or_default()
    }
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<(), Failure> {
    if args.server.server.is_some() {
        return Err(Failure::usage("--server answers tasks: give --task"));
    }
    if args.download.given() {
        return Err(Failure::usage("--download goes with --task: nothing else has data on the hub"));
    }
    // That they require --task is not asked of those beside a flag that excludes it.
    let of_tasks = [
        (!args.data_dir.is_empty(), "--data-dir"),
        (args.limit.is_some(), "--limit"),
        (!args.seed.is_empty(), "--seed"),
        (args.max_new_tokens.is_some(), "--max-new-tokens"),
        (args.batch.is_some(), "--batch"),
        (args.output.is_some(), "--output"),
        (args.with_texts, "--with-texts"),
        (args.allow_code_execution, "--allow-code-execution"),
        (args.server.tokenizer.is_some(), "--tokenizer"),
    ];
    Failure::none_given(&of_tasks, "--task, not with --text or --tokens")?;
    let Some(model) = &args.model else { return Err(Failure::usage("give --model")) };
    let data = match (&args.tokens, &args.text) {
        (Some(tokens), _) => EvalData::Tokens(CalibrationSpec::parse(tokens)?),
        (None, Some(text)) => EvalData::Text(text.clone()),
        (None, None) => return Err(Failure::usage("give --tokens, --text or --task")),
    };
    let opened = args.backend.open(args.execute, model, registry)?;
    let job = EvalJob {
        model: model.clone(),
        reference: args.reference.clone(),
        data,
        seq_len: args.seq_len,
        limit_tokens: args.limit_tokens,
        per_sequence: args.per_sequence,
        save_logits: args.save_logits.clone(),
        threads: args.threads.unwrap_or_else(default_threads),
        memory: args.memory,
        spill: args.spill.clone(),
        compute: args.compute,
        execution: args.execution(),
        processor: opened.get(),
        flips: args.flips,
    };
    if args.flips && args.execution() == Execution::Simulated {
        return Err(Failure::usage(
            "--flips compares an execution with its simulation: give --execute int8 too",
        ));
    }
    // What cannot be written is said before anything is measured.
    let card = args.card.then(|| Card::open(model)).transpose()?;
    let mut progress = Progress::new(on_interrupt()?);
    let result = evaluate_with(&job, &mut progress, registry);
    progress.finish();
    let outcome = result?;
    // Whoever is behind it goes first.
    let job = EvalJob { processor: None, ..job };
    opened.close();
    if let Some(at) = &outcome.first_overflow {
        say(format_args!("warning: hidden states are not finite from here on: {at}"));
    }
    if let Some(card) = card {
        card.record(&job, &outcome)?;
    }
    if args.json {
        return print_json(&outcome);
    }
    print_line(format!("model             {} ({})", outcome.model.display(), outcome.format))?;
    if let Some(reference) = &outcome.reference {
        print_line(format!("reference         {}", reference.display()))?;
    }
    print_line(format!(
        "computed by       {}, {} products, {} with the arithmetic of {}",
        outcome.version,
        outcome.compute,
        match &outcome.processor {
            Some(processor) => format!("codes executed on {processor}"),
            None if outcome.format == "float" => "floats".to_owned(),
            None if outcome.execution == "sim" => "codes simulated".to_owned(),
            None => "codes executed".to_owned(),
        },
        outcome.profile
    ))?;
    print_line(outcome.report.to_string().trim_end())?;
    if !outcome.flips.is_empty() {
        let sum = |of: fn(&quant_pipeline::CodeFlips) -> u64| outcome.flips.iter().map(of).sum::<u64>();
        let (codes, flipped) = (sum(|f| f.codes), sum(|f| f.flipped));
        let share = 100.0 * flipped as f64 / codes.max(1) as f64;
        print_line(format!("flipped codes     {flipped} of {codes} ({share:.4} %)"))?;
        for (block, flips) in outcome.flips.iter().enumerate() {
            let share = 100.0 * flips.flipped as f64 / flips.codes.max(1) as f64;
            print_line(format!("  block {block:<9} {share:.4} %"))?;
        }
    }
    if let Some(peak) = outcome.peak_memory {
        print_line(format!(
            "peak memory       {} (predicted {})",
            human(peak),
            human(outcome.predicted_memory)
        ))?;
    }
    for (sequence, nll) in outcome.report.nll_per_sequence.iter().enumerate() {
        let nll = nll.map_or_else(|| "-".to_owned(), |nll| format!("{nll:.6}"));
        print_line(format!("sequence {sequence:<8} NLL {nll} nats"))?;
    }
    Ok(())
}
