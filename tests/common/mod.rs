//! What the end-to-end tests share: the model of the repository, the reference data if present, runs in memory.

#![allow(dead_code, reason = "every test binary uses its own part")]

use ptq::data::{CalibrationSpec, LoadOptions, TokenSet};
use ptq::eval::{EvalOptions, evaluate};
use ptq::kernels::Compute;
use ptq::model::InMemoryModel;
use ptq::pipeline::run::{MemorySink, RunOptions, run};
use ptq::pipeline::{Plan, Recipe, RunReport, Scored, Silent, open_folder, with_threads};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The embedded model.
pub(crate) fn tiny_reasoner() -> PathBuf {
    root().join("assets/tiny-reasoner")
}

/// Whether tests that have a long form take it: `cargo xtask long`.
pub(crate) fn long() -> bool {
    std::env::var_os("PTQ_LONG").is_some()
}

/// A file of the reference data beside the repository, or none with a note.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let file = root().join("../shared").join(path);
    if file.exists() {
        return Some(file);
    }
    quant_testkit::skipped(format_args!("the reference data ({path}) is not present"));
    None
}

/// Rows of a token tensor.
pub(crate) fn tokens(file: &Path, tensor: &str) -> TokenSet {
    let spec = CalibrationSpec::parse(&format!("{}:{tensor}", file.display())).unwrap();
    let options = LoadOptions {
        num_samples: None,
        max_seq_len: None,
        seed: 0,
        vocab_size: 1024,
        max_position_embeddings: 2048,
    };
    ptq::data::load(&spec, &options, Path::new(".")).unwrap()
}

/// A few calibration windows from the embedded tasks.
pub(crate) fn few_windows(samples: usize, length: usize) -> TokenSet {
    windows_of("calibration", samples, length)
}

/// A few windows from a file of the embedded tasks.
pub(crate) fn windows_of(name: &str, samples: usize, length: usize) -> TokenSet {
    let file = tiny_reasoner().join(format!("tasks/{name}.jsonl"));
    let options = LoadOptions {
        num_samples: Some(samples),
        max_seq_len: Some(length),
        seed: 3,
        vocab_size: 1024,
        max_position_embeddings: 2048,
    };
    let spec = CalibrationSpec::parse(&file.display().to_string()).unwrap();
    ptq::data::load(&spec, &options, &tiny_reasoner()).unwrap()
}

/// Quantises a model in memory.
pub(crate) fn quantize_in_memory(
    model: &Path,
    recipe: &str,
    calibration: Option<&TokenSet>,
    threads: usize,
) -> (InMemoryModel, RunReport) {
    let recipe = Recipe::parse(recipe).unwrap_or_else(|e| panic!("{e}\n{recipe}"));
    let folder = open_folder(model).unwrap();
    let plan = Plan::new(&recipe, &folder.spec).unwrap_or_else(|e| panic!("{e}"));
    let mut source = folder.into_source().unwrap();
    let mut blocks = MemorySink::default();
    let report = with_threads(threads, |par| {
        let options = RunOptions::new(par);
        run(&plan, &mut source, calibration, &mut blocks, &mut Silent, &options)
    })
    .unwrap()
    .unwrap_or_else(|e| panic!("{e}"));
    (blocks.into_model(plan.stored.clone()).unwrap(), report)
}

/// Calibration data that comes with the embedded model.
pub(crate) const CALIBRATION: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-reasoner/tasks/calibration.jsonl");

/// Arguments for a calibration of a fraction of a second: the windows of [`few_windows`] with 4 and 64.
pub(crate) const SMALL: &[&str] =
    &["--calibration", CALIBRATION, "--num-samples", "4", "--max-seq-len", "64", "--seed", "3"];

/// What a run of the command said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Ran {
    /// Checks the exit code, and that stderr holds every one of `words`.
    #[track_caller]
    pub(crate) fn expect(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in {:?}", self.err);
        }
        self
    }
    /// stdout as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }
}

/// Runs the command.
pub(crate) fn ptq(arguments: &[&str]) -> Ran {
    Command::new(env!("CARGO_BIN_EXE_ptq")).args(arguments).output().unwrap().into()
}

/// Runs the command, waits for a line of stderr that holds `word`, calls `meanwhile`, and sends Ctrl-C.
pub(crate) fn interrupt(arguments: &[&str], word: &str, meanwhile: impl FnOnce()) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ptq"))
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut err = String::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    while !err.contains(word) {
        assert!(lines.read_line(&mut err).unwrap() > 0, "it ended without {word:?}: {err}");
    }
    meanwhile();
    // Without a process in between: the work may be done within the tenth of a second.
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    lines.read_to_string(&mut err).unwrap();
    let output = child.wait_with_output().unwrap();
    Ran { code: output.status.code(), out: String::from_utf8(output.stdout).unwrap(), err }
}

/// `ptq quantize`, with more arguments at the end.
pub(crate) fn quantize(model: &Path, recipe: &str, output: &Path, more: &[&str]) -> Ran {
    let mut arguments =
        vec!["quantize", "--model", text(model), "--recipe", recipe, "--output", text(output)];
    arguments.extend(more);
    ptq(&arguments)
}

/// Makes a pipe at which nobody writes.
pub(crate) fn silent_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// A pipe that gives `content` to whoever opens it.
pub(crate) fn pipe(path: &Path, content: &str) -> std::thread::JoinHandle<()> {
    silent_pipe(path);
    let (path, content) = (path.to_owned(), content.to_owned());
    std::thread::spawn(move || std::fs::write(path, content).unwrap())
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every file below a folder with its bytes.
pub(crate) fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Checks that two folders hold the same files, naming the first that differs.
#[track_caller]
pub(crate) fn assert_same_files(a: &Path, b: &Path) {
    let (a, b) = (files(a), files(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(bytes == &b[name], "{} differs", name.display());
    }
}

/// A copy of the embedded model, `tiny-reasoner` in `parent`, that may be changed.
pub(crate) fn copy_of_model(parent: &Path) -> PathBuf {
    let copy = parent.join("tiny-reasoner");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(tiny_reasoner()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            // Not `fs::copy`, which would keep a read-only mode.
            std::fs::write(copy.join(path.file_name().unwrap()), std::fs::read(&path).unwrap()).unwrap();
        }
    }
    copy
}

/// Removes the stored head and ties it to the embedding.
pub(crate) fn tie(model: &Path) {
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["tie_word_embeddings"] = true.into();
    std::fs::write(path, config.to_string()).unwrap();
    let path = model.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let rest: Vec<_> = tensors.tensors().into_iter().filter(|(name, _)| name != "lm_head.weight").collect();
    assert_eq!(rest.len() + 1, tensors.len());
    safetensors::serialize_to_file(rest, None, &path).unwrap();
}

/// Replaces `model.safetensors` by two shards and their index.
pub(crate) fn split_in_two(model: &Path) {
    let single = model.join("model.safetensors");
    let bytes = std::fs::read(&single).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort_unstable();
    let mut weight_map = serde_json::Map::new();
    // Neighbours go to different shards, so that every block needs both.
    for shard in 0..2 {
        let file = format!("model-0000{}-of-00002.safetensors", shard + 1);
        let views = names.iter().skip(shard).step_by(2).map(|name| (*name, tensors.tensor(name).unwrap()));
        let views: Vec<_> = views.collect();
        for (name, _) in &views {
            weight_map.insert((*name).to_owned(), file.clone().into());
        }
        safetensors::serialize_to_file(views, None, &model.join(&file)).unwrap();
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    std::fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::remove_file(single).unwrap();
}

/// Writes token ids as one i64 tensor `[sequences, length]` and returns `FILE:TENSOR`.
pub(crate) fn write_tokens(path: &Path, rows: &[Vec<i64>], length: usize) -> String {
    let bytes: Vec<u8> = rows.iter().flatten().flat_map(|id| id.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::I64, vec![rows.len(), length], &bytes).unwrap();
    safetensors::serialize_to_file([("ids", view)], None, path).unwrap();
    format!("{}:ids", path.display())
}

/// [`write_tokens`] of whole rows.
pub(crate) fn write_rows(path: &Path, rows: &TokenSet) -> String {
    let ids: Vec<Vec<i64>> =
        rows.sequences.iter().map(|row| row.iter().map(|&t| t.into()).collect()).collect();
    write_tokens(path, &ids, rows.sequences[0].len())
}

/// What a folder computes of tokens (`data` holds `rows`) is what the recipe computes in memory.
#[track_caller]
pub(crate) fn computes_what_was_measured(
    model: &Path,
    recipe: &str,
    output: &Path,
    (rows, data): (&TokenSet, &str),
) {
    let read = ptq(&["eval", "--model", text(output), "--tokens", data, "--json"]).expect(0, &[]).json();
    let (in_memory, _) = quantize_in_memory(model, recipe, Some(rows), 2);
    let expected = perplexity(in_memory, &rows.sequences);
    let found = read["perplexity"].as_f64().unwrap();
    assert!((found / expected - 1.0).abs() < 1e-6, "{found} from the folder, {expected} in memory");
}

/// Runs the command where no file may grow beyond `kilobytes`: the nearest thing to a full disk that needs no rights.
pub(crate) fn on_a_full_disk(kilobytes: usize, arguments: &[&str]) -> Ran {
    // The units of `ulimit -f` are 512 bytes by POSIX, 1024 in some shells.
    let script = format!("trap '' XFSZ; ulimit -f {kilobytes}; exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_ptq")]).args(arguments);
    command.output().unwrap().into()
}

/// Of a model in memory on some rows.
pub(crate) fn perplexity(model: InMemoryModel, rows: &[Vec<u32>]) -> f64 {
    with_threads(2, |par| {
        let mut scored = Scored::new(model, Compute::F32, par);
        evaluate(&mut scored, rows, EvalOptions::default()).unwrap().perplexity.unwrap()
    })
    .unwrap()
}

/// Quantises and expects a refusal that leaves nothing behind.
#[track_caller]
pub(crate) fn refused(model: &Path, recipe: &str, more: &[&str], code: i32, words: &[&str]) -> Ran {
    let work = tempfile::tempdir().unwrap();
    let before = files(model);
    let ran = quantize(model, recipe, &work.path().join("out"), more).expect(code, words);
    assert!(ran.err.lines().last().unwrap().starts_with("error: "), "{ran:#?}");
    nothing_left(work.path());
    assert!(files(model) == before, "the input was touched");
    ran
}

#[track_caller]
pub(crate) fn nothing_left(folder: &Path) {
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// What `work` makes of each item, in their order, as many at a time as there are processors: small jobs of one thread each leave less
/// of them idle than one job of several threads.
pub(crate) fn side_by_side<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(items.len())));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(items.len()) {
            scope.spawn(|| {
                while let Some((place, item)) = Some(next.fetch_add(1, Ordering::Relaxed))
                    .and_then(|place| Some((place, items.get(place)?)))
                {
                    let result = work(item);
                    done.lock().unwrap().push((place, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}
