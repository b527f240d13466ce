//! What becomes of FlatQuant at 4 bits where published code fails: channels of outliers, a platform that trains in 16 bits, a
//! learning rate ten times too high.
//!
//! ```text
//! cargo run --release --example flatquant_stability -- --calibration DATA --evaluate DATA [--evaluate DATA]... [--seed N]
//! ```
//!
//! DATA is what `ptq quantize --calibration` takes. Every stress stands alone, on the published algorithm (`variant: exact`) and on
//! the modifiers of the preset w4a4kv4-flatquant-research. Figures are perplexities; of a run that broke off, why.

use ptq::cli::Table;
use ptq::data::{CalibrationSpec, LoadOptions, TokenSet};
use ptq::eval::{EvalOptions, evaluate};
use ptq::kernels::{Compute, Par};
use ptq::model::{InMemoryModel, Precision};
use ptq::pipeline::run::{MemorySink, RunOptions, run};
use ptq::pipeline::{Plan, Recipe, Scored, Silent, open_folder, with_threads};
use std::error::Error;
use std::path::{Path, PathBuf};

type Fallible<T> = Result<T, Box<dyn Error>>;

/// What a training has to withstand.
#[derive(Clone, Copy)]
struct Stress {
    name: &'static str,
    /// Of channels of outliers in one block.
    outliers: f32,
    precision: Precision,
    /// Times the recipe's own.
    rate: f64,
}

const NONE: Stress = Stress { name: "none", outliers: 1.0, precision: Precision::Full, rate: 1.0 };

const STRESSES: [Stress; 5] = [
    NONE,
    Stress { name: "outliers x256 in one block", outliers: 256.0, ..NONE },
    Stress { name: "training in bf16", precision: Precision::Bf16, ..NONE },
    Stress { name: "training in fp16", precision: Precision::Fp16, ..NONE },
    Stress { name: "learning rate x10", rate: 10.0, ..NONE },
];

/// The modifiers of a recipe at a multiple of its learning rate, from a seed.
fn modifiers(variant: &str, rate: f64, seed: u64) -> String {
    let keys = |own: f64| format!("learning_rate: {:e}, seed: {seed}", own * rate);
    match variant {
        "exact" => format!("flatquant: {{ scheme: W4A4KV4, variant: exact, {} }}", keys(5e-3)),
        _ => format!(
            "flatquant: {{ lwc: false, batch_size: 1, {} }}, gptq: {{ scheme: W4A4KV4, convention: q-sym, mse_clip: true, sweeps: 4 }}",
            keys(1.25e-2)
        ),
    }
}

struct Job {
    model: PathBuf,
    calibration: String,
    evaluate: Vec<String>,
    seed: u64,
}

impl Job {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Fallible<Self> {
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner");
        let data = |name: &str| assets.join("tasks").join(name).to_string_lossy().into_owned();
        let mut job = Self {
            model: assets.clone(),
            calibration: data("calibration.jsonl"),
            evaluate: Vec::new(),
            seed: 0,
        };
        while let Some(argument) = arguments.next() {
            let value = arguments.next().ok_or(format!("{argument} wants a value"))?;
            match &*argument {
                "--model" => job.model = value.into(),
                "--calibration" => job.calibration = value,
                "--evaluate" => job.evaluate.push(value),
                "--seed" => job.seed = value.parse().map_err(|e| format!("--seed: {e}"))?,
                _ => return Err(format!("unknown option {argument}").into()),
            }
        }
        if job.evaluate.is_empty() {
            job.evaluate.push(data("test.jsonl"));
        }
        Ok(job)
    }

    fn rows(&self, data: &str, vocab_size: usize) -> Fallible<TokenSet> {
        let data = CalibrationSpec::parse(data)?;
        let windows = !matches!(data, CalibrationSpec::Tokens { .. });
        let options = LoadOptions {
            num_samples: windows.then_some(32),
            max_seq_len: windows.then_some(256),
            seed: 0,
            vocab_size,
            max_position_embeddings: 256,
        };
        Ok(ptq::data::load(&data, &options, &self.model)?)
    }
}

/// The perplexity on every data set, and what the training had to say.
fn figures(
    stress: Stress,
    (variant, seed): (&str, u64),
    (float, calibration): (&InMemoryModel, &TokenSet),
    sets: &[TokenSet],
    par: Par,
) -> Fallible<(Vec<f64>, Vec<String>)> {
    use ptq::graph::BlockSource;
    let modifiers = modifiers(variant, stress.rate, seed);
    let sections =
        "activations: { symmetric: false }\nkv_cache: { symmetric: false, granularity: token_head }";
    let recipe = Recipe::parse(&format!("version: 1\nmodifiers: [{modifiers}]\n{sections}\n"))?;
    let mut model = float.clone();
    let (spec, middle) = (model.spec().clone(), model.spec().layers / 2);
    quant_testkit::add_outliers(&mut model.blocks_mut()[middle], &spec, stress.outliers);
    let plan = Plan::new(&recipe, &spec)?;
    let (mut sink, options) =
        (MemorySink::default(), RunOptions { training: stress.precision, ..RunOptions::new(par) });
    let report = run(&plan, &mut model, Some(calibration), &mut sink, &mut Silent, &options)?;
    let quantised = sink.into_model(plan.stored.clone())?;
    let perplexity = |rows: &TokenSet| {
        let mut model = Scored::new(quantised.clone(), Compute::F32, par);
        let report = evaluate(&mut model, &rows.sequences, EvalOptions::default())?;
        Ok(report.perplexity.unwrap_or(f64::INFINITY))
    };
    Ok((sets.iter().map(perplexity).collect::<Fallible<_>>()?, report.of_lessons()))
}

fn main() -> Fallible<()> {
    let job = Job::parse(std::env::args().skip(1))?;
    let folder = open_folder(&job.model)?;
    let vocab = folder.spec.vocab;
    let float = InMemoryModel::load(&mut folder.into_source()?)?;
    let calibration = job.rows(&job.calibration, vocab)?;
    let sets = job.evaluate.iter().map(|data| job.rows(data, vocab)).collect::<Fallible<Vec<_>>>()?;
    let name = |data: &String| data.rsplit(['/', ':']).next().unwrap_or(data).to_owned();
    let mut heads: Vec<String> = ["stress", "variant"].map(str::to_owned).into();
    heads.extend(job.evaluate.iter().map(name));
    let mut table = Table::new(&heads.iter().map(String::as_str).collect::<Vec<_>>());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for stress in STRESSES {
        for variant in ["exact", "preset"] {
            let run = |par| {
                let found = figures(stress, (variant, job.seed), (&float, &calibration), &sets, par);
                found.map_err(|e| e.to_string())
            };
            let mut row = vec![stress.name.to_owned(), variant.to_owned()];
            match with_threads(threads, run)? {
                Ok((figures, told)) => {
                    eprintln!("{}, {variant}: {figures:.4?} {told:#?}", stress.name);
                    row.extend(figures.iter().map(|figure| format!("{figure:.4}")));
                }
                Err(error) => row.extend(sets.iter().map(|_| error.clone())),
            }
            table.row(row);
        }
    }
    println!("{table}");
    Ok(())
}
