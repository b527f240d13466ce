//! `ptq study`

use super::progress::{Progress, on_interrupt, seconds};
use super::table::Table;
use super::{Failure, bytes, count, default_threads, human, print_json, print_line, say, threads};
use quant_pipeline::Registry;
use quant_study::{
    Grid, PartTime, ScoringCost, Status, StudyJob, StudyPlan, StudyResults, VariantResults, plan_study,
    report_study, run_study, study_preset,
};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["preset", "grid", "report"])))]
pub(super) struct Args {
    /// A study that ships with the program (`ptq list`)
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// A grid of models, recipes, executions and tasks (YAML)
    #[arg(long, value_name = "FILE")]
    grid: Option<PathBuf>,
    /// Make the report again from what is finished in --output, and run nothing
    #[arg(long)]
    report: bool,
    /// Folder for cells, results and reports; required
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Show what would be run and what it needs, and run nothing
    #[arg(long, conflicts_with = "report")]
    plan: bool,
    /// Folder with the files of tasks, looked in first; may be given more than once
    #[arg(long, value_name = "DIR")]
    data_dir: Vec<PathBuf>,
    #[command(flatten)]
    download: super::download::Args,
    /// Go on with what is in --output; finished cells stay
    #[arg(long)]
    resume: bool,
    /// Run finished cells again whose model, recipe, data or task has changed
    #[arg(long)]
    restart_changed: bool,
    /// Keep the folders of quantised models
    #[arg(long)]
    keep_folders: bool,
    /// Keep the texts of answers beside their tokens
    #[arg(long)]
    with_texts: bool,
    /// Run programs that models wrote, in a sandbox, for tasks that grade them so
    #[arg(long)]
    allow_code_execution: bool,
    /// With --allow-code-execution: interpreter of these programs (default: python3)
    #[arg(long, value_name = "FILE", requires = "allow_code_execution")]
    python: Option<PathBuf>,
    /// Texts that are worked on at a time; no text depends on it
    #[arg(long, value_name = "N", value_parser = count, default_value_t = 16)]
    batch: usize,
    /// Threads (default: all processors); no result depends on it
    #[arg(long, value_name = "T", value_parser = threads)]
    threads: Option<usize>,
    /// Memory budget, such as 8GB (default: none)
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<(), Failure> {
    if args.report {
        return show(&report_study(&args.output).map_err(Failure::of_study)?, args);
    }
    let grid = match (&args.preset, &args.grid) {
        (Some(name), _) => study_preset(name).map_err(Failure::of_study)?,
        (None, Some(path)) => Grid::from_file(path).map_err(Failure::of_study)?,
        (None, None) => return Err(Failure::usage("give --preset or --grid")),
    };
    let mut job = StudyJob {
        data: args.data_dir.clone(),
        threads: args.threads.unwrap_or_else(default_threads),
        memory: args.memory,
        batch: args.batch,
        resume: args.resume,
        restart_changed: args.restart_changed,
        keep_folders: args.keep_folders,
        with_texts: args.with_texts,
        allow_code_execution: args.allow_code_execution,
        python: args.python.clone(),
        ..StudyJob::new(grid, &args.output)
    };
    let mut progress = Progress::of_parts(on_interrupt()?);
    let fetched = super::download::for_study(&args.download, args.plan, &mut job, &mut progress);
    if fetched.is_err() || args.plan {
        progress.finish();
    }
    fetched?;
    if args.plan {
        let plan = plan_study(&job, registry).map_err(Failure::of_study)?;
        return if args.json { print_json(&plan) } else { print_plan(&plan) };
    }
    let outcome = run_study(&job, &mut progress, registry);
    progress.finish();
    let outcome = outcome.map_err(Failure::of_study)?;
    show(&outcome.results, args)?;
    say_times(&outcome.times);
    if outcome.failed > 0 {
        say(format_args!(
            "{} cells failed for other reasons than their setting; the report says why",
            outcome.failed
        ));
        return Err(Failure::check());
    }
    Ok(())
}

/// How long this run was at what.
fn say_times(times: &[PartTime]) {
    let each = |time: &PartTime| format!("{} {}", time.part, seconds(time.time.as_secs_f64()));
    let all = times.iter().map(|time| time.time.as_secs_f64()).sum();
    let parts: Vec<String> = times.iter().map(each).collect();
    say(format_args!("this run took {}: {}", seconds(all), parts.join(", ")));
}

fn print_plan(plan: &StudyPlan) -> Result<(), Failure> {
    let mut table =
        Table::new(&["model", "recipe", "method", "W-A-KV", "bits/weight", "run as", "time", "folder"]);
    for variant in &plan.variants {
        let runs: Vec<&str> = variant.runs().collect();
        table.row(vec![
            variant.model.clone(),
            variant.recipe.clone().unwrap_or_else(|| "float".into()),
            variant.method.clone(),
            variant.bits.clone(),
            number(variant.weight_bits, 2),
            variant.illegal.as_ref().map_or_else(|| runs.join(", "), |_| "not possible".into()),
            variant.seconds.map_or_else(|| "-".into(), seconds),
            if variant.disk > 0 { human(variant.disk) } else { "-".into() },
        ]);
    }
    print_line(table.to_string().trim_end())?;
    if let Some(absent) = plan.variants.iter().find_map(|variant| variant.absent.as_ref()) {
        print_line(format!("not to be run here as it is: {absent}"))?;
    }
    for variant in &plan.variants {
        let name = variant.recipe.as_deref().unwrap_or("float");
        if let Some(reason) = &variant.illegal {
            print_line(format!("{}, {name}: {reason}", variant.model))?;
        }
        for (execution, reason) in &variant.executions {
            if let Some(reason) = reason {
                print_line(format!("{}, {name}, {execution}: {reason}", variant.model))?;
            }
        }
    }
    let looks = || plan.variants.iter().filter(|v| v.illegal.is_none()).filter_map(|v| v.ranges);
    if looks().next().is_some() {
        print_line(format!(
            "activations before and behind transforms: {} rows, {} passes of a sample through a block, about {}",
            looks().count(),
            looks().map(|cost| cost.block_passes).sum::<usize>(),
            seconds(looks().map(|cost| cost.seconds).sum())
        ))?;
    }
    let blamed = || plan.variants.iter().filter(|v| v.illegal.is_none()).filter_map(|v| v.blame);
    if blamed().next().is_some() {
        print_line(format!(
            "causes of losses: {} rows, up to {} passes of a sample of up to {} tokens through a block, about {}",
            blamed().count(),
            blamed().map(|cost| cost.block_passes).sum::<usize>(),
            blamed().map(|cost| cost.tokens).max().unwrap_or(0),
            seconds(blamed().map(|cost| cost.seconds).sum())
        ))?;
    }
    print_line(format!(
        "{} cells: {}; quantising takes about {}, up to {} of memory ({} of it shared by rows), and {} on disk at a time",
        plan.cells,
        plan.tasks.join(", "),
        seconds(plan.seconds),
        human(plan.memory),
        human(plan.shared),
        human(plan.disk)
    ))?;
    plan.scoring.as_ref().map_or(Ok(()), print_scoring)
}

/// What scoring takes, in a line, and what is not in it.
fn print_scoring(cost: &ScoringCost) -> Result<(), Failure> {
    let written = match cost.written {
        0 => String::new(),
        most => format!(" and write at most {}", of_tokens(most)),
    };
    if cost.read > 0 {
        print_line(format!(
            "scoring: models read {}{written}, at most about {} here, less where codes are executed or answers are shorter",
            of_tokens(cost.read),
            seconds(cost.seconds)
        ))?;
    }
    if !cost.unknown.is_empty() {
        print_line(format!(
            "not counted in scoring, for want of items or a tokenizer: {}",
            cost.unknown.join(", ")
        ))?;
    }
    Ok(())
}

/// A number of tokens for people.
fn of_tokens(tokens: u64) -> String {
    match tokens {
        0..10_000 => format!("{tokens} tokens"),
        10_000..10_000_000 => format!("{:.0} thousand tokens", tokens as f64 / 1e3),
        _ => format!("{:.0} million tokens", tokens as f64 / 1e6),
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

fn show(results: &StudyResults, args: &Args) -> Result<(), Failure> {
    if args.json {
        return print_json(results);
    }
    for model in &results.models {
        let mut titles = vec!["recipe", "W-A-KV", "bits/weight"];
        titles.extend(results.columns.iter().map(|column| column.name.as_str()));
        let texts: Vec<String> = model
            .variants
            .first()
            .map(|v| v.texts.iter().map(|t| t.task.clone()).collect())
            .unwrap_or_default();
        titles.extend(texts.iter().map(String::as_str));
        titles.extend(["KL", "Avg.", "Drop", "class"]);
        let mut table = Table::new(&titles);
        for row in &model.variants {
            table.row(cells(row, &texts));
        }
        print_line(format!("{}\n{}", model.model, table.to_string().trim_end()))?;
    }
    print_line(format!("{}", args.output.join("report.html").display()))
}

fn cells(row: &VariantResults, texts: &[String]) -> Vec<String> {
    let mut cells = vec![row.title(), row.bits.clone(), number(row.weight_bits, 2)];
    cells.extend(row.columns.iter().map(|column| number(column.value, 1)));
    for text in texts {
        let figures = row.texts.iter().find(|figures| figures.task == *text);
        cells.push(number(figures.and_then(|figures| figures.perplexity), 3));
    }
    cells.push(number(row.texts.first().and_then(|figures| figures.kl), 4));
    cells.push(number(row.average, 1));
    cells.push(row.loss.as_ref().map_or_else(String::new, |loss| format!("{:+.1}", loss.drop)));
    cells.push(match (&row.status, &row.loss) {
        (Status::Illegal(_), _) => "not possible".into(),
        (Status::NotFinite(_), _) => "not finite".into(),
        (Status::Failed(_), _) => "failed".into(),
        (_, Some(loss)) if loss.verdict == loss.class => loss.class.clone(),
        (_, Some(loss)) => format!("{}?", loss.class),
        _ => row.incomplete().into(),
    });
    cells
}
