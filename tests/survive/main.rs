//! Runs that end early go on: with any number of threads, from whatever moment they ended at, to the same bytes. Every moment is of the
//! long form (`cargo xtask long`); the short one takes some of them, others for every recipe.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod cuts;

use common::{
    CALIBRATION, Ran, SMALL, assert_same_files, copy_of_model, files, interrupt, long, on_a_full_disk, ptq,
    quantize, text, tiny_reasoner,
};
use ptq::checkpoint::{Disk, Storage};
use ptq::data::CalibrationSpec;
use ptq::pipeline::{
    Event, Events, PipelineError, QuantizeJob, QuantizeOutcome, Recipe, Silent, quantize_on,
};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::tempdir;

/// A recipe of every method, of every way through a block and of every kind of cache, by name.
const RECIPES: [(&str, &str); 17] = [
    ("gptq", "[gptq: { scheme: W4A16g32, actorder: dynamic, symmetric: false, convention: q-asym }]"),
    (
        "smoothquant, gptq at once",
        "[smoothquant: { pairs: [norm, v-o, up-down] }, gptq: { scheme: W8A8KV8, true_sequential: false }]\n\
         kv_cache: { granularity: channel_static }\nactivations: { in_calibration: true }",
    ),
    ("awq", "[awq: { scheme: W4A16g32, gqa: true }]\nexport: { format: compressed-tensors }"),
    ("awq, gptaq", "[awq: { gqa: true, search_tokens: 300 }, gptaq: { scheme: W4A16g32 }]"),
    (
        "smoothquant, gptaq at once",
        "[smoothquant: {}, gptaq: { scheme: W4A8g32, actorder: static, true_sequential: false }]\n\
         activations: { in_calibration: true }",
    ),
    ("qronos", "[qronos: { scheme: W4A16g32, float_stream: block }]"),
    (
        "methods within a block",
        "[smoothquant: {}, gptq: { scheme: W8A8 }]\nignore: [lm_head, \"*.0.self_attn.o_proj\"]\n\
         overrides: { \"*.1.self_attn.*\": { rtn: {} }, \"*.up_proj\": { gptaq: {} }, \"*.down_proj\": { rtn: {} } }\n\
         activations: { dynamic: false }",
    ),
    (
        "rtn, calibrated",
        "[rtn: { scheme: W8A8KV8 }]\nactivations: { dynamic: false, observer: percentile }\n\
         kv_cache: { granularity: channel_static }",
    ),
    ("rtn", "[rtn: { scheme: W8A8 }]"),
    (
        "a rounded head",
        "[gptq: { scheme: W4A16g32 }]\noverrides: { lm_head: { scheme: W8A16 }, model.embed_tokens: { rtn: { scheme: W8A16 } } }",
    ),
    ("quarot, gptq", "[quarot: { seed: 3 }, gptq: { scheme: W4A4KV4 }]"),
    ("flatquant", "[flatquant: { scheme: W4A4KV4, epochs: 2, batch_size: 1 }]"),
    (
        "flatquant, fallen back",
        "[flatquant: { scheme: W4A4KV4, epochs: 1, batch_size: 1, learning_rate: 1.0, fallback: [bits8] }]",
    ),
    (
        "flatquant, fallen back for a kernel",
        "[flatquant: { scheme: W4A4, unpaired: w8a8, epochs: 1, batch_size: 1, learning_rate: 1.0, fallback: [bits8] }]\n\
         export: { format: vllm-ascend }",
    ),
    ("duquant", "[duquant: { block: 64, steps: 9 }, gptq: { scheme: W4A4KV4 }]"),
    ("billm", "[billm: { block_size: 64 }]"),
    ("slim-llm", "[slim-llm: { scheme: W2A16g32 }]"),
];

fn recipe(modifiers: &str) -> String {
    format!("version: 1\nmodifiers: {modifiers}\n")
}

/// The first blocks of the embedded model, as a model of their own.
fn first_blocks(parent: &Path, layers: usize) -> PathBuf {
    let model = copy_of_model(parent);
    let config = model.join("config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    json["num_hidden_layers"] = layers.into();
    if let Some(types) = json.get_mut("layer_types").and_then(|t| t.as_array_mut()) {
        types.truncate(layers);
    }
    std::fs::write(&config, json.to_string()).unwrap();
    let weights = model.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let block = |name: &str| name.strip_prefix("model.layers.")?.split('.').next()?.parse::<usize>().ok();
    let kept = tensors.iter().filter(|(name, _)| block(name).is_none_or(|index| index < layers));
    safetensors::serialize_to_file(kept.collect::<Vec<_>>(), None, &weights).unwrap();
    model
}

fn small_job(model: &Path, modifiers: &str, output: &Path) -> QuantizeJob {
    QuantizeJob {
        calibration: Some(CalibrationSpec::parse(CALIBRATION).unwrap()),
        num_samples: Some(4),
        max_seq_len: Some(32),
        threads: 1,
        ..QuantizeJob::new(model, Recipe::parse(&recipe(modifiers)).unwrap(), output)
    }
}

fn disk(storage: impl Storage + 'static) -> Arc<dyn Storage> {
    Arc::new(storage)
}

/// Counts what is rounded, and stops after so many linears.
#[derive(Default)]
struct Count {
    linears: Vec<String>,
    stop: Option<usize>,
    resumed: bool,
}

impl Events for Count {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Linear(linear) => self.linears.push(linear.module.clone()),
            Event::Resumed { .. } => self.resumed = true,
            _ => {}
        }
    }
    fn cancelled(&self) -> bool {
        self.stop.is_some_and(|stop| self.linears.len() >= stop)
    }
}

/// Everything in a report but what depends on the clock.
fn report(outcome: &QuantizeOutcome) -> serde_json::Value {
    let mut json = serde_json::to_value(&outcome.run).unwrap();
    json["seconds"] = serde_json::Value::Null;
    for linear in json["linears"].as_array_mut().unwrap() {
        linear["seconds"] = serde_json::Value::Null;
    }
    json
}

/// The linears that share their input with one.
fn stage(module: &str) -> &'static [&'static str] {
    let name = module.rsplit('.').next().unwrap();
    let stages: [&[&str]; 4] =
        [&["q_proj", "k_proj", "v_proj"], &["o_proj"], &["gate_proj", "up_proj"], &["down_proj"]];
    stages.into_iter().find(|stage| stage.contains(&name)).unwrap()
}

/// A run that is stopped after any number of linears goes on without rounding one of them again, but for those of the stage it
/// was stopped in; and what it reports is what it would have reported.
#[test]
fn nothing_is_paid_for_twice() {
    let work = tempdir().unwrap();
    let model = first_blocks(work.path(), 3);
    let rounding = RECIPES.into_iter().filter(|(name, _)| !name.starts_with("rtn"));
    for (place, (name, modifiers)) in rounding.enumerate() {
        let whole = work.path().join("whole");
        let job = small_job(&model, modifiers, &whole);
        let reference = quantize_on(&job, &disk(Disk), &mut Silent).unwrap();
        let expected = files(&whole);
        let stops = [1, 5, 20];
        for stop in
            stops.into_iter().enumerate().filter(|(i, _)| long() || *i != place % 3).map(|(_, stop)| stop)
        {
            let output = work.path().join("out");
            let job = QuantizeJob { output: output.clone(), resume: true, ..job.clone() };
            let mut first = Count { stop: Some(stop), ..Count::default() };
            let error = quantize_on(&job, &disk(Disk), &mut first).unwrap_err();
            let kept = work.path().join("out.partial").exists();
            match &error {
                PipelineError::Kept { folder, source } => {
                    assert!(folder.ends_with("out.partial") && kept, "{error}");
                    assert!(matches!(**source, PipelineError::Interrupted), "{error}");
                }
                // Before the first stage there is nothing to keep.
                PipelineError::Interrupted => assert!(!kept && stop < 3, "{name} {stop}"),
                other => panic!("{name} {stop}: {other}"),
            }
            let mut second = Count::default();
            let job = QuantizeJob { threads: 2, ..job };
            let outcome = quantize_on(&job, &disk(Disk), &mut second).unwrap();
            assert_eq!((second.resumed, outcome.resumed.is_some()), (kept, kept), "{name} {stop}");
            let last = first.linears.last().unwrap();
            let block = last.rsplit_once(".self_attn").or_else(|| last.rsplit_once(".mlp")).unwrap().0;
            for linear in &second.linears {
                let again = first.linears.contains(linear);
                let running = linear.starts_with(block) && stage(last).iter().any(|l| linear.ends_with(l));
                assert!(
                    !again || running,
                    "{name}: {linear} is rounded again after {stop} linears, in {last}"
                );
            }
            assert_eq!(report(&outcome), report(&reference), "{name} {stop}");
            assert!(files(&output) == expected, "{name} {stop}");
            std::fs::remove_dir_all(&output).unwrap();
        }
        std::fs::remove_dir_all(&whole).unwrap();
    }
}

/// Kills in the loop below; the long form is `cargo xtask survive`, which sets another number and prints the table.
const KILLS: usize = RECIPES.len();

/// Numbers that look random (a linear congruence, as in Knuth's MMIX).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// A short job of every method, killed at random moments and resumed with another number of threads, again and again until it
/// is done.
#[test]
fn random_kills() {
    let asked: Option<usize> = std::env::var("SURVIVE_KILLS").ok().map(|n| n.parse().unwrap());
    let kills = asked.unwrap_or(KILLS);
    let each = kills.div_ceil(RECIPES.len());
    let work = tempdir().unwrap();
    let model = if asked.is_some() { tiny_reasoner() } else { first_blocks(work.path(), 3) };
    let mut dice = Dice(kills as u64);
    println!("\n| recipe | seconds | kills | runs | runs that went on | outputs, all equal |");
    println!("|---|---|---|---|---|---|");
    for (name, modifiers) in RECIPES {
        let file = work.path().join("recipe.yaml");
        std::fs::write(&file, recipe(modifiers)).unwrap();
        let arguments = |output: &Path, threads: u64, more: &[&str]| -> Vec<String> {
            let fixed =
                ["quantize", "--model", text(&model), "--recipe", text(&file), "--output", text(output)];
            let data =
                ["--calibration", CALIBRATION, "--num-samples", "6", "--max-seq-len", "128", "--threads"];
            let threads = threads.to_string();
            fixed
                .iter()
                .chain(&data)
                .copied()
                .chain([&*threads])
                .chain(more.iter().copied())
                .map(str::to_owned)
                .collect()
        };
        let run = |arguments: &[String]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ptq"));
            command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let whole = work.path().join("whole");
        let started = Instant::now();
        Ran::from(run(&arguments(&whole, 2, &[])).wait_with_output().unwrap()).expect(0, &[]);
        let took = started.elapsed();
        let (mut killed, mut runs, mut went_on, mut outputs) = (0, 0, 0, 0);
        while killed < each {
            let output = work.path().join("out");
            loop {
                runs += 1;
                let mut child = run(&arguments(&output, 1 + dice.roll(3), &["--resume"]));
                // Jobs that go on are short: most of the time is theirs, some of it is beyond their end.
                let wait = took.mul_f64(dice.roll(1000) as f64 / 900.0).max(Duration::from_millis(5));
                let began = Instant::now();
                let mut ended = None;
                while ended.is_none() && began.elapsed() < wait {
                    std::thread::sleep(Duration::from_millis(2));
                    ended = child.try_wait().unwrap();
                }
                if ended.is_none() {
                    child.kill().unwrap();
                }
                let ran = child.wait_with_output().unwrap();
                went_on += usize::from(String::from_utf8_lossy(&ran.stderr).contains("going on where"));
                match ran.status.code() {
                    Some(0) => break,
                    None => killed += 1,
                    Some(code) => {
                        panic!("{name}: exit code {code}: {}", String::from_utf8_lossy(&ran.stderr))
                    }
                }
            }
            assert_same_files(&whole, &output);
            outputs += 1;
            assert!(!work.path().join("out.partial").exists());
            std::fs::remove_dir_all(&output).unwrap();
        }
        println!("| {name} | {:.2} | {killed} | {runs} | {went_on} | {outputs} |", took.as_secs_f64());
        std::fs::remove_dir_all(&whole).unwrap();
    }
}

/// Arguments of a job that takes long enough to be stopped in.
fn stoppable<'a>(model: &'a str, output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed =
        ["quantize", "--model", model, "--recipe", "w8a8kv8-ascend", "--output", output, "--calibration"];
    [&fixed, &[CALIBRATION, "--num-samples", "64", "--max-seq-len", "256", "--seed", "3"][..], more].concat()
}

#[test]
fn an_interrupted_run_keeps_its_work_and_says_what_to_do_with_it() {
    let work = tempdir().unwrap();
    let output = work.path().join("out");
    let partial = work.path().join("out.partial");
    let model = copy_of_model(work.path());
    let job = |more: &[&'static str]| -> Vec<String> {
        stoppable(text(&model), text(&output), more).into_iter().map(str::to_owned).collect()
    };
    let run = |more: &[&'static str]| {
        let arguments = job(more);
        ptq(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let stop = |more: &[&'static str], word: &str| {
        let arguments = job(more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        interrupt(&arguments, word, || assert!(partial.exists()))
            .expect(130, &["interrupted", "out.partial", "--resume", "--restart", "delete that folder"])
    };
    stop(&["--threads", "1"], "block 1/6 done");
    assert!(partial.join("INCOMPLETE").exists() && partial.join("JOURNAL").is_dir() && !output.exists());
    // Neither a run nor a plan throws it away, and nothing else can be told of it.
    let before = files(&partial);
    let plan = |more: &[&str]| {
        let mut arguments = stoppable(text(&model), text(&output), more);
        arguments[0] = "plan";
        ptq(&arguments)
    };
    run(&[]).expect(2, &["--resume goes on with it", "--restart throws it away"]);
    plan(&[]).expect(2, &["--resume"]);
    plan(&["--resume"]).expect(0, &[]);
    run(&["--resume", "--restart"]).expect(2, &["cannot be used with"]);
    ptq(&["inspect", text(&partial)]).expect(4, &["unfinished output", "goes on with --resume"]);
    // Another job is refused, with what differs.
    run(&["--resume", "--max-seq-len", "255"]).expect(2, &["cannot be used multiple times"]);
    let other = |recipe: &'static str, seed: &'static str| {
        let fixed = ["quantize", "--model", text(&model), "--recipe", recipe, "--output", text(&output)];
        let data = ["--calibration", CALIBRATION, "--num-samples", "64", "--max-seq-len", "256", "--resume"];
        ptq(&[&fixed[..], &data, &["--seed", seed]].concat())
    };
    other("w8a8kv8-ascend", "4")
        .expect(2, &["another job", "--seed was 3 and is 4", "the calibration data was"]);
    let said = other("w4a16g32", "3").expect(2, &["the recipe was SHA-256"]).err;
    assert!(!said.contains("--seed") && !said.contains("model.safetensors"), "{said}");
    let config = model.join("config.json");
    let whole = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, whole.replacen('{', "{ ", 1)).unwrap();
    run(&["--resume"]).expect(2, &["config.json was SHA-256"]);
    std::fs::write(&config, whole).unwrap();
    assert!(files(&partial) == before, "the work was touched");
    // With other threads and another budget it goes on, and may be stopped again.
    stop(&["--resume", "--threads", "2"], "block 3/6 done");
    run(&["--resume", "--threads", "2", "--memory", "4GB"])
        .expect(0, &["going on where the run broke off: "]);
    assert!(!partial.exists() && !output.join("JOURNAL").exists() && !output.join("INCOMPLETE").exists());
    // A finished output of the same job is reported.
    let finished = files(&output);
    let said = run(&["--resume", "--threads", "1"]).expect(0, &[]).out;
    assert!(said.contains("finished before, by the same job") && said.contains("vllm serve"), "{said}");
    let json = run(&["--resume", "--json"]).expect(0, &[]).json();
    assert_eq!((&json["stood"], json["run"]["linears"].as_array().unwrap().len()), (&true.into(), 42));
    assert!(files(&output) == finished);
    // That of another is one that stands in the way.
    other("w8a8kv8-ascend", "4").expect(2, &["--force"]);
    // And what was made of it is what an undisturbed run makes.
    let undisturbed = work.path().join("undisturbed");
    ptq(&stoppable(text(&model), text(&undisturbed), &[])).expect(0, &[]);
    assert_same_files(&undisturbed, &output);
}

#[test]
fn a_changed_shard_is_another_model() {
    let work = tempdir().unwrap();
    let output = work.path().join("out");
    let model = copy_of_model(work.path());
    interrupt(&stoppable(text(&model), text(&output), &[]), "block 1/6 done", || {}).expect(130, &[]);
    let weights = model.join("model.safetensors");
    let file = std::fs::File::options().write(true).open(&weights).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1)).unwrap();
    ptq(&stoppable(text(&model), text(&output), &["--resume"]))
        .expect(2, &["model.safetensors was", "bytes of 1.000000000"]);
    ptq(&stoppable(text(&model), text(&output), &["--restart"])).expect(0, &[]);
    assert!(output.exists() && !work.path().join("out.partial").exists());
}

#[test]
fn two_runs_into_one_folder() {
    let work = tempdir().unwrap();
    let (model, output) = (tiny_reasoner(), work.path().join("out"));
    let job = stoppable(text(&model), text(&output), &["--resume"]);
    interrupt(&job, "block 1/6 done", || {
        ptq(&job).expect(2, &["another process is writing this output"]);
        ptq(&stoppable(text(&model), text(&output), &["--restart"])).expect(2, &["another process"]);
    })
    .expect(130, &[]);
    // The dead hold no lock.
    ptq(&job).expect(0, &["going on"]);
}

/// A disk that fills up keeps the work; as long as it is full there is no going on, and then there is.
#[test]
fn a_disk_that_fills_up() {
    let work = tempdir().unwrap();
    let output = work.path().join("out");
    let model = tiny_reasoner();
    let job = |more: &[&'static str]| {
        let fixed = ["quantize", "--model", text(&model), "--recipe", "w4a16g32", "--output", text(&output)];
        [&fixed[..], SMALL, more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let full = |more: &[&'static str]| {
        let arguments = job(more);
        on_a_full_disk(400, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    full(&[]).expect(5, &["no space left", "out.partial", "--resume"]);
    full(&["--resume"]).expect(5, &["no space left"]);
    assert!(work.path().join("out.partial/JOURNAL").is_dir());
    let arguments = job(&["--resume"]);
    ptq(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).expect(0, &["going on"]);
    let whole = work.path().join("whole");
    quantize(&model, "w4a16g32", &whole, SMALL).expect(0, &[]);
    assert_same_files(&whole, &output);
}

/// A journal of whole frames that make no sense to the run is refused.
#[test]
fn journals_that_make_no_sense() {
    let work = tempdir().unwrap();
    let model = first_blocks(work.path(), 2);
    let output = work.path().join("out");
    let job = QuantizeJob { resume: true, ..small_job(&model, RECIPES[0].1, &output) };
    let mut first = Count { stop: Some(10), ..Count::default() };
    quantize_on(&job, &disk(Disk), &mut first).unwrap_err();
    let folder = work.path().join("out.partial/JOURNAL");
    let journal = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&journal).unwrap();
    let mut outcomes = BTreeMap::new();
    // Frames of the run: each byte of their first ones is another, with a checksum that is right.
    let mut at = 8;
    while at + 16 <= whole.len() {
        let length = u64::from_le_bytes(whole[at + 8..at + 16].try_into().unwrap()) as usize;
        let content = at + 16..at + 16 + length;
        if whole[at] == 2 {
            for changed in content.clone().take(5) {
                let mut bytes = whole.clone();
                bytes[changed] ^= 0x81;
                let mut check = crc32fast::Hasher::new();
                check.update(&bytes[at..at + 4]);
                check.update(&bytes[at + 8..content.end]);
                bytes[at + 4..at + 8].copy_from_slice(&check.finalize().to_le_bytes());
                std::fs::write(&journal, bytes).unwrap();
                let mut stop = Count { stop: Some(0), ..Count::default() };
                let error = quantize_on(&job, &disk(Disk), &mut stop).unwrap_err();
                let source = match &error {
                    PipelineError::Kept { source, .. } => &**source,
                    other => other,
                };
                let kind = match source {
                    PipelineError::Interrupted => "stopped",
                    PipelineError::Checkpoint(e) => {
                        assert!(e.to_string().contains("--restart"), "{e}");
                        "refused"
                    }
                    other => panic!("{other}"),
                };
                *outcomes.entry(kind).or_insert(0) += 1;
            }
        }
        at = content.end;
    }
    assert!(outcomes["refused"] > 10, "{outcomes:?}");
}
