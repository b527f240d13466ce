//! Which recipe suits a model: quantise in memory by each, and score what came out.
//!
//! `cargo run --release --example compare_recipes` compares two presets on the model that comes with the repository. With arguments:
//!
//! ```text
//! cargo run --release --example compare_recipes -- --model MODEL_DIR --calibration DATA [--evaluate DATA]... [--draws N] RECIPE...
//! ```
//!
//! DATA is what `ptq quantize --calibration` takes. A RECIPE is a preset, a YAML file, or a file that ends in `.list`, with the
//! modifiers of a recipe on every line. With `--draws N` the calibration rows are cut into N parts, every recipe is run N times with
//! another part left out, and figures are means over these runs. The parts left out are scored too ("left out"): a recipe can so be
//! chosen on the calibration data alone, and the evaluation data only says what the choice was worth.

use ptq::cli::Table;
use ptq::data::{CalibrationSpec, LoadOptions, TokenSet};
use ptq::eval::{EvalOptions, evaluate};
use ptq::graph::{BlockSource, ModelSpec};
use ptq::kernels::{Compute, Par};
use ptq::pipeline::run::{MemorySink, RunOptions, run};
use ptq::pipeline::{Plan, Recipe, Scored, Silent, open_folder, read_recipe, with_threads};
use std::error::Error;
use std::path::{Path, PathBuf};

type Fallible<T> = Result<T, Box<dyn Error>>;

/// What the command line says.
struct Job {
    model: PathBuf,
    calibration: String,
    evaluate: Vec<String>,
    draws: usize,
    recipes: Vec<(String, Recipe)>,
}

impl Job {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Fallible<Self> {
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner");
        let data = |name: &str| assets.join("tasks").join(name).to_string_lossy().into_owned();
        let (mut model, mut calibration) = (assets.clone(), data("calibration.jsonl"));
        let (mut evaluate, mut draws, mut recipes) = (Vec::new(), 1, Vec::new());
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
            match &*argument {
                "--model" => model = value()?.into(),
                "--calibration" => calibration = value()?,
                "--evaluate" => evaluate.push(value()?),
                "--draws" => draws = value()?.parse().map_err(|e| format!("--draws: {e}"))?,
                option if option.starts_with("--") => return Err(format!("unknown option {option}").into()),
                list if list.ends_with(".list") => {
                    let text = std::fs::read_to_string(list).map_err(|e| format!("{list}: {e}"))?;
                    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
                    {
                        let recipe = Recipe::parse(&format!("version: 1\nmodifiers: [{line}]\n"));
                        let recipe = recipe.map_err(|e| format!("{list}: {line}: {e}"))?;
                        recipes.push((line.to_owned(), recipe));
                    }
                }
                recipe => recipes.push((recipe.to_owned(), read_recipe(recipe)?)),
            }
        }
        if recipes.is_empty() {
            recipes = ["w3a16g32-research", "w3a16g128-research"]
                .into_iter()
                .map(|name| Ok((name.to_owned(), read_recipe(name)?)))
                .collect::<Fallible<_>>()?;
        }
        if evaluate.is_empty() {
            evaluate.push(data("test.jsonl"));
        }
        if draws == 0 {
            return Err("--draws must be at least 1".into());
        }
        Ok(Self { model, calibration, evaluate, draws, recipes })
    }
}

/// Rows of a data set: all of a token tensor, some windows of a text.
fn rows(data: &str, model: &Path, spec: &ModelSpec) -> Fallible<Vec<Vec<u32>>> {
    let data = CalibrationSpec::parse(data)?;
    let windows = !matches!(data, CalibrationSpec::Tokens { .. });
    let options = LoadOptions {
        num_samples: windows.then_some(32),
        max_seq_len: windows.then_some(256),
        seed: 0,
        vocab_size: spec.vocab,
        max_position_embeddings: spec.max_position_embeddings,
    };
    Ok(ptq::data::load(&data, &options, model)?.sequences)
}

/// Infinite where the quantised model is lost altogether.
fn perplexity(model: impl BlockSource, rows: &[Vec<u32>], par: Par) -> Fallible<f64> {
    let report = evaluate(&mut Scored::new(model, Compute::F32, par), rows, EvalOptions::default())?;
    Ok(report.perplexity.unwrap_or(f64::INFINITY))
}

/// Stored bits per weight, and the perplexities of every data set of `scored`.
fn one(
    job: &Job,
    recipe: &Recipe,
    used: Vec<Vec<u32>>,
    scored: &[&[Vec<u32>]],
    par: Par,
) -> Fallible<(f64, Vec<f64>)> {
    let folder = open_folder(&job.model)?;
    let plan = Plan::new(recipe, &folder.spec)?;
    let (mut sink, options) = (MemorySink::default(), RunOptions::new(par));
    let used = plan.streams.calibration().then(|| TokenSet::from_sequences(used, &job.calibration));
    run(&plan, &mut folder.into_source()?, used.as_ref(), &mut sink, &mut Silent, &options)?;
    let model = sink.into_model(plan.stored.clone())?;
    let figures = scored.iter().map(|rows| perplexity(model.clone(), rows, par)).collect::<Fallible<_>>()?;
    Ok((plan.bits_per_weight(), figures))
}

fn main() -> Fallible<()> {
    let job = Job::parse(std::env::args().skip(1))?;
    let spec = open_folder(&job.model)?.spec;
    let calibration = rows(&job.calibration, &job.model, &spec)?;
    if job.draws > 1 && calibration.len() < job.draws {
        return Err(format!("{} calibration rows make no {} parts", calibration.len(), job.draws).into());
    }
    let sets: Vec<Vec<Vec<u32>>> =
        job.evaluate.iter().map(|data| rows(data, &job.model, &spec)).collect::<Fallible<_>>()?;

    let name = |data: &String| data.rsplit(['/', ':']).next().unwrap_or(data).to_owned();
    let mut heads: Vec<String> = ["recipe", "bits per weight"].map(str::to_owned).into();
    heads.extend(job.evaluate.iter().map(name));
    if job.draws > 1 {
        heads.push("left out".into());
    }
    let mut table = Table::new(&heads.iter().map(String::as_str).collect::<Vec<_>>());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for (name, recipe) in &job.recipes {
        let mut sums = vec![0.0; heads.len() - 1];
        for draw in 0..job.draws {
            // Parts as equal as they can be; a single draw leaves nothing out.
            let at = |part: usize| part * calibration.len() / job.draws;
            let out = if job.draws > 1 { at(draw)..at(draw + 1) } else { 0..0 };
            let used = [&calibration[..out.start], &calibration[out.end..]].concat();
            let mut scored: Vec<&[Vec<u32>]> = sets.iter().map(Vec::as_slice).collect();
            if !out.is_empty() {
                scored.push(&calibration[out]);
            }
            // The error of a thread cannot be a box that is not sent: in words.
            let run = |par| one(&job, recipe, used, &scored, par).map_err(|e| e.to_string());
            let (bits, figures) = with_threads(threads, run)??;
            for (sum, figure) in sums.iter_mut().zip(std::iter::once(bits).chain(figures)) {
                *sum += figure / job.draws as f64;
            }
        }
        eprintln!("{name}: {sums:.4?}");
        let mut row = vec![name.clone(), format!("{:.3}", sums[0])];
        row.extend(sums[1..].iter().map(|figure| format!("{figure:.4}")));
        table.row(row);
    }
    println!("{table}");
    Ok(())
}
