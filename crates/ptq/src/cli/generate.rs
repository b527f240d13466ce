//! `ptq generate`

use super::progress::{SharedProgress, on_interrupt};
use super::{Failure, bytes, count, default_threads, execution, human, print_json, say, threads, written};
use quant_data::PromptSource;
use quant_model::{Execution, Sampling};
use quant_pipeline::{GenerateJob, Registry, generate_with};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["prompt", "prompts"])))]
pub(super) struct Args {
    /// Float model or quantised folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Text to be continued, as it is written
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// JSON lines, each with `prompt` or `messages`
    #[arg(long, value_name = "FILE.jsonl")]
    prompts: Option<PathBuf>,
    /// A prompt is a turn of a user, in the chat template of the model
    #[arg(long)]
    chat: bool,
    /// New tokens of a text at most
    #[arg(long, value_name = "N", value_parser = count, default_value = "256")]
    max_new_tokens: usize,
    /// 0 takes the likeliest token
    #[arg(long, value_name = "T", value_parser = temperature, default_value = "0", allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from the likeliest tokens that together have this much of the probability
    #[arg(long, value_name = "P", value_parser = probability, default_value = "1", allow_negative_numbers = true)]
    top_p: f64,
    /// Draw from so many of the likeliest tokens; 0 is all
    #[arg(long, value_name = "K", default_value = "0")]
    top_k: usize,
    /// Seed of the draws
    #[arg(long, value_name = "S", default_value = "0")]
    seed: u64,
    /// Texts that are worked on at a time; no text depends on it
    #[arg(long, value_name = "B", value_parser = count, default_value = "16")]
    batch: usize,
    /// Simulate the codes of the folder as floats (sim), or multiply the codes themselves (int8; default where there are any)
    #[arg(long, value_name = "HOW", value_parser = execution)]
    execute: Option<Execution>,
    #[command(flatten)]
    backend: super::backend::Args,
    /// Threads (default: all processors); no text depends on them
    #[arg(long, value_name = "T", value_parser = threads)]
    threads: Option<usize>,
    /// Memory budget, such as 8GB (default: none); a job that may exceed it is refused
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
    /// Arithmetic of float products: f32, bf16 operands with f32 accumulation, or sums of two or three bf16 numbers (bf16x2, bf16x3)
    #[arg(long, value_name = "COMPUTE", default_value = "f32")]
    compute: quant_kernels::Compute,
    /// Print a JSON list, in the order of the prompts
    #[arg(long)]
    json: bool,
}

fn temperature(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|t| t.is_finite() && *t >= 0.0);
    value.ok_or_else(|| "expected a number of at least 0".into())
}

fn probability(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|p| *p > 0.0 && *p <= 1.0);
    value.ok_or_else(|| "expected a number above 0 and at most 1".into())
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let prompts = match (&args.prompt, &args.prompts) {
        (Some(text), _) => PromptSource::Text(text.clone()),
        (None, Some(path)) => PromptSource::Lines(path.clone()),
        (None, None) => return Err(Failure::usage("give --prompt or --prompts")),
    };
    let opened = args.backend.open(args.execute, &args.model, registry)?;
    let job = GenerateJob {
        model: args.model.clone(),
        chat: args.chat,
        max_new_tokens: args.max_new_tokens,
        sampling: Sampling {
            temperature: args.temperature,
            top_p: args.top_p,
            top_k: args.top_k,
            seed: args.seed,
        },
        batch: args.batch,
        execution: args.backend.execution(args.execute),
        processor: opened.get(),
        threads: args.threads.unwrap_or_else(default_threads),
        memory: args.memory,
        compute: args.compute,
        prompts,
    };
    let progress = SharedProgress::new(on_interrupt()?);
    let mut texts = InOrder::new(args.prompts.is_some());
    let mut begun = false;
    let mut piece = |index: usize, text: &str| {
        if !args.json {
            if !std::mem::replace(&mut begun, true) {
                progress.get().give_way();
            }
            texts.take(index, text);
        }
    };
    let result = generate_with(&job, &mut progress.clone(), &mut piece, registry);
    progress.get().finish();
    let processor = job.processor.as_ref().map(|processor| processor.name());
    drop(job);
    opened.close();
    let outcome = result?;
    let (executed, quantised) = outcome.executed;
    let how = match &processor {
        Some(processor) => format!("executed as codes on {processor}"),
        None if executed > 0 => "executed as codes".to_owned(),
        None => "simulated".to_owned(),
    };
    let memory = outcome.peak_memory.map_or_else(String::new, |peak| {
        format!(", peak {} (predicted {})", human(peak), human(outcome.predicted_memory))
    });
    let linears = match (quantised, executed) {
        (0, _) if outcome.format == "float" => "float".to_owned(),
        (0, _) => format!("{}, weights as floats", outcome.format),
        (all, 0) => format!("{all} quantised linears {how}"),
        (all, some) => format!("{some} of {all} quantised linears {how}"),
    };
    say(format_args!(
        "{} tokens in {:.2} s, {:.1} tokens/s; {linears}{memory}",
        outcome.tokens(),
        outcome.seconds,
        outcome.tokens() as f64 / outcome.seconds.max(1e-9)
    ));
    for text in outcome.texts.iter().filter(|text| text.finish_reason == "non_finite") {
        say(format_args!("warning: prompt {}: the model's logits are not finite", text.index));
    }
    if args.json { print_json(&outcome.texts) } else { texts.result }
}

/// Prints texts in the order of their prompts: the first that is not finished as it comes, the others when it is their turn.
struct InOrder {
    titles: bool,
    next: usize,
    begun: bool,
    /// What waits, and whether it is all.
    waiting: BTreeMap<usize, (String, bool)>,
    result: Result<(), Failure>,
}

impl InOrder {
    fn new(titles: bool) -> Self {
        Self { titles, next: 0, begun: false, waiting: BTreeMap::new(), result: Ok(()) }
    }

    /// Some more of a text; an empty piece ends it.
    fn take(&mut self, index: usize, text: &str) {
        let held = self.waiting.entry(index).or_default();
        held.0.push_str(text);
        held.1 |= text.is_empty();
        while let Some((text, done)) = self.waiting.get_mut(&self.next) {
            let (text, done) = (std::mem::take(text), *done);
            self.print(&text, done);
            if !done {
                return;
            }
            self.waiting.remove(&self.next);
            (self.next, self.begun) = (self.next + 1, false);
        }
    }

    fn print(&mut self, text: &str, done: bool) {
        if self.result.is_err() {
            return;
        }
        let mut stdout = io::stdout().lock();
        let mut print = || {
            if self.titles && !self.begun {
                writeln!(stdout, "--- {}", self.next)?;
            }
            write!(stdout, "{text}")?;
            if done {
                writeln!(stdout)?;
            }
            stdout.flush()
        };
        self.result = written(print());
        self.begun = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_draws_are_checked() {
        assert_eq!((temperature("0.6"), probability("1")), (Ok(0.6), Ok(1.0)));
        for bad in ["-1", "nan", "inf", "x"] {
            assert!(temperature(bad).is_err());
        }
        for bad in ["0", "1.1", "nan", ""] {
            assert!(probability(bad).is_err());
        }
    }
}
