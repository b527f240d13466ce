//! `ptq bench`

use super::html::{document, escaped};
use super::output::OutputFile;
use super::plots::{self, Axes};
use super::{Failure, Table, default_threads, execution, human, print_json, print_line, say, threads};
use crate::bench::{Product, Report, Shapes, ascend, measure, measure_model};
use quant_core::{CoreError, FloatType};
use quant_kernels::Compute;
use quant_model::Execution;
use quant_pipeline::{PipelineError, Registry, folder_spec_with, with_threads};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").args(["model", "shape", "named"])))]
pub(super) struct Args {
    /// Float model or quantised folder: its linears, and the whole of it at prefill and decode
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Tokens, inputs and outputs of a product; several times for several
    #[arg(long, value_name = "MxKxN")]
    shape: Vec<Product>,
    /// The linears of a published model at 2048 tokens
    #[arg(long, value_name = "NAME", value_parser = named)]
    named: Option<Shapes>,
    /// Threads (default: all processors)
    #[arg(long, value_name = "T", value_parser = threads)]
    threads: Option<usize>,
    /// With --model: simulate its codes (sim) or execute them (int8; default where there are any)
    #[arg(long, value_name = "HOW", value_parser = execution)]
    execute: Option<Execution>,
    #[command(flatten)]
    backend: super::backend::Args,
    /// Rates of the NPU that is predicted (default: --print-profile)
    #[arg(long, value_name = "FILE.yaml")]
    profile: Option<PathBuf>,
    /// Print the profile of the NPU, to be edited
    #[arg(long)]
    print_profile: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write a page with tables and drawings
    #[arg(long, value_name = "FILE.html")]
    output: Option<PathBuf>,
    /// Replace the file of --output
    #[arg(long)]
    force: bool,
}

fn named(text: &str) -> Result<Shapes, String> {
    Shapes::named(text)
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let (name, profile) = match &args.profile {
        None => ("embedded".to_owned(), ascend::DEFAULT.to_owned()),
        Some(path) => {
            let (name, read) = (path.display().to_string(), std::fs::read_to_string(path));
            let text = read.map_err(|e| Failure::usage(format!("--profile {name}: {e}")))?;
            (name, text)
        }
    };
    let parsed = ascend::Profile::parse(&profile)
        .map_err(|e| Failure::usage(format!("--profile {name}: {e}; --print-profile shows one")))?;
    if args.print_profile {
        return if args.json { print_json(&parsed) } else { print_line(profile.trim_end()) };
    }
    if args.profile.is_some() && !args.shape.is_empty() {
        let what = "--profile is of the NPU whose time for a whole model is predicted: give --model or --named instead of --shape";
        return Err(Failure::usage(what));
    }
    let folders: Vec<_> = args.model.iter().map(PathBuf::as_path).collect();
    let output =
        args.output.as_ref().map(|path| OutputFile::check(path, args.force, &folders)).transpose()?;
    let shapes = match (&args.model, &args.named) {
        (Some(dir), _) => Shapes::of_model(&folder_spec_with(dir, registry)?),
        (None, Some(named)) => named.clone(),
        (None, None) if args.shape.is_empty() => {
            return Err(Failure::usage("give --model, --shape or --named"));
        }
        (None, None) => Shapes::of(args.shape.clone()),
    };
    if args.execute.is_some() && args.model.is_none() {
        return Err(Failure::usage("--execute says how a folder runs: give --model too"));
    }
    let opened = match &args.model {
        Some(dir) => args.backend.open(args.execute, dir, registry)?,
        None => args.backend.processor(FloatType::Bf16)?,
    };
    let threads = args.threads.unwrap_or_else(default_threads);
    say("measuring the peaks of this machine and every kernel; other work on it shows in the figures");
    let mut report = with_threads(threads, |par| measure(&shapes, &parsed, opened.get().as_deref(), par))?
        .map_err(|error| match error {
            CoreError::Processor { .. } => PipelineError::from(error).into(),
            size => Failure::usage(size.to_string()),
        })?;
    if let Some(dir) = &args.model {
        say("measuring the model at prefill and decode");
        let execution = args.backend.execution(args.execute);
        let measured = with_threads(threads, |par| {
            measure_model(dir, execution, opened.get(), Compute::F32, par, registry)
        })?;
        report.end_to_end = Some(measured?);
    }
    opened.close();
    if args.json {
        print_json(&report)?;
    } else {
        print(&report)?;
    }
    // Behind what is printed, so that a disk that has become full does not take both.
    output.map_or(Ok(()), |output| output.write(page(&report)?.as_bytes()))
}

/// Columns of the table of kernels.
const KERNELS: [&str; 6] = ["shape", "kernel", "ms", "rate", "of peak", "of the int8 product's time"];

fn kernel_rows(report: &Report) -> Vec<[String; 6]> {
    let row = |k: &crate::bench::KernelRate| {
        let (m, inputs, n) = k.size;
        [
            if k.shape.contains('x') && k.shape.starts_with(char::is_numeric) {
                k.shape.clone()
            } else {
                format!("{} {m}x{inputs}x{n}", k.shape)
            },
            k.kernel.to_owned(),
            format!("{:.3}", 1e3 * k.seconds),
            format!("{:.1} {}", k.rate, k.unit),
            k.share_of_peak.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", 100.0 * share)),
            format!("{:.2}", k.by_product),
        ]
    };
    report.kernels.iter().map(row).collect()
}

fn peak_lines(report: &Report) -> Vec<String> {
    let p = &report.peaks;
    let integer = p.integer.map_or_else(
        || format!("no instruction for sums of products of bytes ({})", p.integer_level),
        |rate| format!("{rate:.0} GOP/s ({})", p.integer_level),
    );
    vec![
        format!("threads {}", p.threads),
        format!("f32 multiply-adds {:.0} GFLOP/s ({})", p.float, p.float_level),
        format!("products of bytes {integer}"),
        format!("reading {:.1} GB/s, copying a tensor of 2048 x 1536 {:.1} GB/s", p.reading, p.copying),
    ]
}

fn end_to_end_lines(report: &Report) -> Vec<String> {
    let Some(e) = &report.end_to_end else { return Vec::new() };
    vec![
        format!(
            "execution {}{}, weights {}",
            e.execution,
            e.processor.as_ref().map_or_else(String::new, |name| format!(" on {name}")),
            human(e.weight_bytes as u64)
        ),
        format!("prefill {:.1} tokens/s ({} tokens)", e.prefill, e.prompt),
        format!("decode {:.1} tokens/s behind {} tokens", e.decode, e.position),
        format!("decode {:.1} tokens/s in a batch of {}", e.decode_batch, e.batch),
    ]
}

fn prediction_rows(prediction: &ascend::Prediction) -> Vec<Vec<String>> {
    let row = |point: &ascend::Point| {
        let speedups = point.speedups.iter().map(|s| format!("{s:.2}"));
        [point.tokens.to_string(), format!("{:.3}", point.float_ms)].into_iter().chain(speedups).collect()
    };
    prediction.points.iter().map(row).collect()
}

fn pays_lines(prediction: &ascend::Prediction) -> Vec<String> {
    let pays = |(index, (kind, from)): (usize, (&&str, &Option<usize>))| {
        let last = prediction.points.iter().rev().find(|point| point.speedups[index] > 1.0);
        match (from, last) {
            (Some(1), _) => format!("{kind}: faster than BF16 at every number of tokens above"),
            (Some(tokens), _) => format!("{kind}: faster than BF16 from {tokens} tokens of a pass on"),
            (None, Some(last)) => format!("{kind}: faster than BF16 up to {} tokens of a pass", last.tokens),
            (None, None) => format!("{kind}: never faster than BF16 up to the largest pass"),
        }
    };
    let own = prediction.kinds.iter().zip(&prediction.pays_from).enumerate().map(pays);
    own.chain(prediction.published.iter().map(|line| format!("published: {line}"))).collect()
}

fn print(report: &Report) -> Result<(), Failure> {
    for line in peak_lines(report) {
        print_line(line)?;
    }
    let mut table = Table::new(&KERNELS);
    for row in kernel_rows(report) {
        table.row(row.into());
    }
    print_line(format!("\n{table}"))?;
    for line in end_to_end_lines(report) {
        print_line(line)?;
    }
    if let Some(prediction) = &report.prediction {
        print_line(format!(
            "\n{}, {}: times as fast as BF16, by tokens of a pass",
            prediction.profile.name, prediction.label
        ))?;
        let heads: Vec<&str> =
            ["tokens", "BF16 ms"].into_iter().chain(prediction.kinds.iter().copied()).collect();
        let mut table = Table::new(&heads);
        for row in prediction_rows(prediction) {
            table.row(row);
        }
        print_line(table)?;
        for line in pays_lines(prediction) {
            print_line(line)?;
        }
    }
    Ok(())
}

fn html_table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |tag: &str, row: &[String]| -> String {
        row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect()
    };
    let heads: Vec<String> = heads.iter().map(|&head| head.to_owned()).collect();
    let body: String = rows.iter().map(|row| format!("<tr>{}</tr>\n", cells("td", row))).collect();
    format!("<div class=\"wide\"><table><tr>{}</tr>\n{body}</table></div>\n", cells("th", &heads))
}

fn paragraphs(lines: &[String]) -> String {
    lines.iter().map(|line| format!("<p>{}</p>\n", escaped(line))).collect()
}

fn page(report: &Report) -> Result<String, Failure> {
    let rows: Vec<Vec<String>> = kernel_rows(report).into_iter().map(Vec::from).collect();
    let mut body = format!(
        "<h2>This machine</h2>\n{}<h2>Kernels</h2>\n{}",
        paragraphs(&peak_lines(report)),
        html_table(&KERNELS, &rows)
    );
    if report.end_to_end.is_some() {
        body += &format!("<h2>The model</h2>\n{}", paragraphs(&end_to_end_lines(report)));
    }
    if let Some(prediction) = &report.prediction {
        let line = |(series, _): (usize, &&str)| {
            let at = |(power, point): (usize, &ascend::Point)| (power as f64, point.speedups[series]);
            (series, prediction.points.iter().enumerate().map(at).collect::<Vec<_>>())
        };
        let lines: Vec<plots::Line> = prediction.kinds.iter().enumerate().map(line).collect();
        let axes =
            Axes { x: "tokens of a pass, as a power of two", y: "times as fast as BF16", size: (920, 320) };
        let legend: String = prediction
            .kinds
            .iter()
            .enumerate()
            .map(|(i, kind)| format!("<span><i class=\"s{i}\"></i>{}</span>", escaped(kind)))
            .collect();
        let heads: Vec<&str> =
            ["tokens", "BF16 ms"].into_iter().chain(prediction.kinds.iter().copied()).collect();
        body += &format!(
            "<h2>{}</h2>\n<p>{}</p>\n<figure>{}<figcaption class=\"keys\">{legend}</figcaption></figure>\n{}{}",
            escaped(&prediction.profile.name),
            escaped(prediction.label),
            plots::lines(&axes, &lines)?,
            html_table(&heads, &prediction_rows(prediction)),
            paragraphs(&pays_lines(prediction))
        );
    }
    Ok(document("Kernels of a quantised model", &body))
}
