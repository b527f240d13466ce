//! `ptq eval --task`

use super::eval::Args;
use super::progress::{Progress, on_interrupt};
use super::{Failure, default_threads, print_json, print_line};
use quant_data::{Task, built_in_task};
use quant_kernels::Compute;
use quant_model::Execution;
use quant_pipeline::Registry;
use quant_study::{TaskJob, TaskOutcome, run_task};
use serde_json::json;
use std::path::Path;

/// Texts at a time where nobody says how many.
const BATCH: usize = 16;

/// A task by its name, or from a file.
pub(super) fn task(name: &str) -> Result<Task, Failure> {
    let path = Path::new(name);
    let task = if path.extension().is_some() || path.is_file() {
        Task::from_file(path)
    } else {
        built_in_task(name)
    };
    Ok(task?)
}

pub(super) fn run(name: &str, args: &Args, registry: &Registry) -> Result<(), Failure> {
    let of_texts = [
        (args.seq_len.is_some(), "--seq-len"),
        (args.limit_tokens.is_some(), "--limit-tokens"),
        (args.reference.is_some(), "--reference"),
        (args.save_logits.is_some(), "--save-logits"),
        (args.spill.is_some(), "--spill"),
        (args.flips, "--flips"),
        (args.card, "--card"),
        (args.per_sequence, "--per-sequence"),
    ];
    Failure::none_given(&of_texts, "--text or --tokens, not with --task")?;
    // Of a model behind a server, what is here is its tokenizer.
    let (model, url) = match (&args.server.server, &args.model, &args.server.tokenizer) {
        (Some(url), _, Some(tokenizer)) => (tokenizer, Some(url)),
        (None, Some(model), _) => (model, None),
        _ => return Err(Failure::usage("give --model, or --server with --tokenizer")),
    };
    if url.is_some() {
        let of_models = [
            (args.backend.is_given(), "--backend"),
            (args.execution() != Execution::Simulated, "--execute"),
            (args.compute != Compute::F32, "--compute"),
            (args.memory.is_some(), "--memory"),
        ];
        Failure::none_given(&of_models, "--model: the server has its own way")?;
    }
    let task = task(name)?;
    let mut data = args.data_dir.clone();
    data.extend([Path::new(".").to_owned(), model.clone()]);
    let mut progress = Progress::new(on_interrupt()?);
    let fetched =
        super::download::for_task(&args.download, &task, args.data_dir.len(), &mut data, &mut progress);
    if fetched.is_err() {
        progress.finish();
    }
    fetched?;
    let opened = args.backend.open(args.execute, model, registry)?;
    let job = TaskJob {
        data,
        limit: args.limit,
        seeds: (!args.seed.is_empty()).then(|| args.seed.clone()),
        max_new_tokens: args.max_new_tokens,
        execution: args.execution(),
        processor: opened.get(),
        compute: args.compute,
        threads: args.threads.unwrap_or_else(default_threads),
        memory: args.memory,
        batch: args.batch.unwrap_or(BATCH),
        with_texts: args.with_texts,
        allow_code_execution: args.allow_code_execution,
        python: args.python.clone(),
        output: args.output.clone(),
        resume: args.resume,
        restart: args.restart,
        ..TaskJob::new(model, task)
    };
    let outcome = match url {
        Some(url) => super::server::run(url, &args.server, &job, &mut progress, registry),
        None => run_task(&job, None, &mut progress, registry).map_err(Failure::of_study),
    };
    progress.finish();
    drop(job);
    opened.close();
    let outcome = outcome?;
    if args.json {
        return print_json(
            &json!({ "result": outcome.result, "run": outcome.run, "items": outcome.records }),
        );
    }
    print(&outcome)
}

fn print(outcome: &TaskOutcome) -> Result<(), Failure> {
    let TaskOutcome { result, run, .. } = outcome;
    let unit = if result.figure.name == "perplexity" { "" } else { " %" };
    let value = result.figure.value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}{unit}"));
    let interval = result
        .figure
        .interval
        .map_or_else(String::new, |[low, high]| format!("   95 %: {low:.2} to {high:.2}"));
    print_line(format!(
        "task              {} ({} items, wording: {})",
        result.task, result.items, result.wording
    ))?;
    print_line(format!("{:17} {value}{interval}", result.figure.name))?;
    if let Some(choice) = &result.choice {
        for (name, share) in [("acc", choice.acc), ("acc_norm", choice.acc_norm)] {
            share.map_or(Ok(()), |share| print_line(format!("{name:17} {share:.2} %")))?;
        }
        print_line(format!("greedy            {:.2} %", choice.greedy))?;
    }
    if let Some(answers) = &result.answers {
        for (seed, accuracy) in result.seeds.iter().zip(&answers.per_seed) {
            print_line(format!("seed {seed:<12} {accuracy:.2} %"))?;
        }
        if let Some(deviation) = answers.deviation {
            print_line(format!(
                "deviation         {deviation:.2} over {} seeds (n - 1)",
                result.seeds.len()
            ))?;
        }
        let s = &answers.signs;
        print_line(format!(
            "broken answers    {}: {} without an end, {} in a loop, {} with an open thought, {} empty",
            s.collapsed, s.no_end, s.loops, s.unclosed_thought, s.empty
        ))?;
        print_line(format!("seen, not given   {}", s.seen_not_given))?;
        print_line(format!("tokens            {:.1} an answer", answers.tokens))?;
        if run.decode_seconds > 0.0 {
            print_line(format!(
                "speed             {:.0} tokens/s",
                run.new_tokens as f64 / run.decode_seconds
            ))?;
        }
    }
    if let Some(text) = &result.text {
        print_line(format!("predicted tokens  {} in {} windows", text.tokens, result.items))?;
        if let Some(form) = text.form() {
            print_line(format!("text              {form}"))?;
        }
    }
    if let Some(problem) = &result.problem {
        print_line(format!("PROBLEM           {problem}"))?;
    }
    Ok(())
}
