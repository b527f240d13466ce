//! Studies on the embedded model: what is finished stays, what a setting does to a model is a result.

use crate::tiny_reasoner;
use quant_pipeline::{Event, Events, Registry, Silent};
use quant_study::{
    Grid, Status, StudyError, StudyJob, StudyOutcome, StudyResults, VariantResults, plan_study, report_study,
    run_study,
};
use std::path::{Path, PathBuf};

const HEAD: &str = "version: 1\nname: test\nmodels:\n  - path: embedded:tiny-reasoner\n    calibration: tasks/calibration.jsonl\n    \
                    num_samples: 8\n    max_seq_len: 128\n";

/// A grid whose text is `few`: two windows of the tasks.
fn grid(rest: &str) -> Grid {
    let few = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/few.yaml");
    Grid::parse(&format!("{HEAD}{rest}").replace("FEW", few), "a test").unwrap()
}

const ROWS: &str = "recipes:\n  - { name: rtn W4, recipe: { version: 1, modifiers: [rtn: { scheme: W4A16g32 }] } }\n  \
                    - { name: gptq W3, recipe: { version: 1, modifiers: [gptq: { scheme: W3A16g32 }] } }\n";
const TASKS: &str = "tasks: [tiny-compare, tiny-word, FEW]\nlimit: 3\nmax_new_tokens: 200\n";

fn job(output: &Path, grid: Grid) -> StudyJob {
    StudyJob { threads: 2, ..StudyJob::new(grid, output) }
}

fn run(job: &StudyJob) -> Result<StudyResults, StudyError> {
    run_study(job, &mut Silent, &Registry::default()).map(|outcome| outcome.results)
}

fn row<'r>(results: &'r StudyResults, recipe: &str) -> &'r VariantResults {
    results.models[0].variants.iter().find(|row| row.recipe == recipe).unwrap()
}

/// Breaks off at the first look after a part whose name holds a word, as a kill would.
struct BreaksAt<'a> {
    word: &'a str,
    after: usize,
    seen: bool,
}

impl Events for BreaksAt<'_> {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Part(name) = event
            && name.contains(self.word)
        {
            self.after -= 1;
            self.seen |= self.after == 0;
        }
    }
    fn cancelled(&self) -> bool {
        self.seen
    }
}

fn read(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).unwrap()
}

#[test]
fn a_study_that_broke_off_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let outcome = run_study(
        &job(&whole, grid(&format!("{ROWS}{TASKS}blame: few\n"))),
        &mut Silent,
        &Registry::default(),
    );
    let StudyOutcome { results, times, .. } = outcome.unwrap();
    assert_eq!(results.models[0].variants.len(), 3);
    let mut parts: Vec<&str> = times.iter().map(|time| time.part.as_str()).collect();
    parts.sort_unstable();
    let known =
        ["putting blocks back", "quantising", "reading answers of the float model", "scoring", "the rest"];
    assert_eq!(parts, known);
    let float = row(&results, "float");
    assert_eq!((float.average, float.answers, &float.loss), (Some(100.0), 6, &None));
    let gptq = row(&results, "gptq W3");
    assert_eq!((gptq.bits.as_str(), gptq.method.as_str(), &gptq.status), ("3-16-16", "gptq", &Status::Ok));
    assert!((3.5..4.1).contains(&gptq.weight_bits.unwrap()) && gptq.texts[0].kl.unwrap() > 0.0);
    assert!(gptq.layers.len() == 42 && gptq.layers[0].output_error.unwrap() > 0.0);
    let plan =
        plan_study(&job(&whole, grid(&format!("{ROWS}{TASKS}blame: few\n"))), &Registry::default()).unwrap();
    let costs: Vec<_> =
        plan.variants.iter().map(|v| v.blame.map(|cost| (cost.block_passes, cost.tokens))).collect();
    // Both models and six beginnings, what lies behind each of these, and seven linears of the first block.
    let passes = 3 * 6 + (5 + 4 + 3 + 2 + 1) + 7 * 6;
    assert_eq!(costs, [None, Some((passes, 8 * 128)), Some((passes, 8 * 128))]);
    // Three rows with two tasks of three answers, and two windows.
    let scoring = plan.scoring.unwrap();
    assert_eq!((scoring.written, scoring.unknown.len()), (3 * 2 * 3 * 200, 0));
    let texts = 3 * 2 * 128;
    assert!((texts + 3 * 6 * 10..texts + 3 * 6 * 120).contains(&scoring.read), "{scoring:?}");
    assert!(scoring.seconds > 0.0);
    let blame = gptq.blame.as_ref().unwrap();
    assert_eq!((blame.blocks.len(), blame.linears.len()), (6, 7));
    assert!(blame.blocks[0].regained >= blame.blocks[5].regained);
    assert!(gptq.prediction.as_ref().unwrap().answers == 6);
    assert!(!whole.join("work").exists() && whole.join("report.html").exists());
    // Stopped while quantising, while scoring, while reading answers, while putting back: each time it goes on.
    let broken = folder.path().join("broken");
    let again = |rest: &str| StudyJob {
        resume: broken.join("plan.json").exists(),
        threads: 1,
        batch: 2,
        ..job(&broken, grid(rest))
    };
    let rest = format!("{ROWS}{TASKS}blame: few\n");
    for (word, after) in
        [("scoring", 2), ("quantising", 1), ("scoring", 3), ("reading", 1), ("putting", 1), ("quantising", 1)]
    {
        let mut events = BreaksAt { word, after, seen: false };
        let stopped = run_study(&again(&rest), &mut events, &Registry::default());
        assert!(stopped.unwrap_err().is_interrupted(), "{word}");
        // A report can be made of what there is.
        let partial = report_study(&broken).unwrap();
        assert_eq!(partial.models[0].variants.len(), 3);
    }
    run(&again(&rest)).unwrap();
    // The weights' fingerprints have times of their own; everything that is measured is equal.
    for name in ["results.json", "results.csv", "report.md"] {
        assert_eq!(read(&broken, name), read(&whole, name), "{name}");
    }
    // Nothing is run again.
    let mut parts = BreaksAt { word: "", after: 1, seen: false };
    run_study(&again(&rest), &mut parts, &Registry::default()).unwrap();
    assert!(!parts.seen);
}

#[test]
fn what_is_finished_stays_when_a_grid_grows_and_is_named_when_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("study");
    let one = "recipes: [{ name: rtn W4, recipe: { version: 1, modifiers: [rtn: { scheme: W4A16g32 }] } }]\n";
    run(&job(&output, grid(&format!("{one}{TASKS}")))).unwrap();
    let begun = run(&job(&output, grid(&format!("{one}{TASKS}")))).unwrap_err().to_string();
    assert!(begun.contains("--resume"), "{begun}");
    let stamp = |recipe: &str| {
        let path = output.join("cells/tiny-reasoner").join(recipe).join("sim/tiny-word/items.jsonl");
        std::fs::metadata(path).unwrap().modified().unwrap()
    };
    let before = stamp("rtn_W4");
    let resume = |rest: &str| StudyJob { resume: true, ..job(&output, grid(rest)) };
    let grown = run(&resume(&format!("{ROWS}{TASKS}"))).unwrap();
    assert_eq!((grown.models[0].variants.len(), stamp("rtn_W4")), (3, before));
    let shrunk = run(&resume(&format!("{one}{TASKS}"))).unwrap();
    assert_eq!((shrunk.models[0].variants.len(), stamp("rtn_W4")), (2, before));
    // Another recipe under the same name, another number of items.
    let other = one.replace("W4A16g32", "W4A16g64");
    for (rest, words) in [
        (format!("{other}{TASKS}"), "tiny-reasoner, rtn W4 (the recipe was"),
        (
            format!("{one}{}", TASKS.replace("limit: 3", "limit: 2")),
            "float, tiny-compare (--limit was 3 and is 2)",
        ),
    ] {
        let error = run(&resume(&rest)).unwrap_err();
        assert!(matches!(error, StudyError::Changed { .. }));
        assert!(
            error.to_string().contains(words) && error.to_string().contains("--restart-changed"),
            "{error}"
        );
        assert_eq!(stamp("rtn_W4"), before);
    }
    // The same name of the calibration data, and other data in it.
    let data = output.join("embedded/tiny-reasoner/tasks/calibration.jsonl");
    let text = std::fs::read_to_string(&data).unwrap();
    std::fs::write(&data, text.replacen("What is 7", "What is 8", 1)).unwrap();
    let error = run(&resume(&format!("{one}{TASKS}"))).unwrap_err().to_string();
    assert!(error.contains("rtn W4 (the calibration was") && !error.contains("float"), "{error}");
    std::fs::write(&data, &text).unwrap();
    let changed = StudyJob { restart_changed: true, ..resume(&format!("{other}{TASKS}")) };
    let float = stamp("float");
    let results = run(&changed).unwrap();
    assert!(stamp("rtn_W4") > before && stamp("float") == float);
    assert!((4.25..4.6).contains(&row(&results, "rtn W4").weight_bits.unwrap()));
    let lock = std::fs::File::create(output.join(".lock")).unwrap();
    lock.lock().unwrap();
    assert!(matches!(run(&resume(&format!("{one}{TASKS}"))), Err(StudyError::Locked { .. })));
}

/// What was found of a smaller grid is not what is found of a larger one: a prediction is read again where there are more answers to read,
/// causes are looked for where they were not. The results are those of the larger grid alone.
#[test]
fn findings_do_not_outlive_what_they_were_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let one = "recipes: [{ name: rtn W3, recipe: { version: 1, modifiers: [rtn: { scheme: W3A16g32 }] } }]\n";
    let small = format!("{one}tasks: [tiny-compare, FEW]\nlimit: 3\nmax_new_tokens: 200\n");
    let large = format!("{one}{TASKS}blame: few\n");
    let (grown, alone) = (folder.path().join("grown"), folder.path().join("alone"));
    let results = run(&job(&grown, grid(&small))).unwrap();
    assert_eq!(row(&results, "rtn W3").prediction.as_ref().unwrap().answers, 3);
    let resume = |rest: &str| StudyJob { resume: true, ..job(&grown, grid(rest)) };
    let results = run(&resume(&large)).unwrap();
    assert_eq!(row(&results, "rtn W3").prediction.as_ref().unwrap().answers, 6);
    run(&job(&alone, grid(&large))).unwrap();
    for name in ["results.json", "results.csv", "report.md"] {
        assert_eq!(read(&grown, name), read(&alone, name), "{name}");
    }
    // A shrunk one has no finding of what it does not ask.
    let results = run(&resume(&small)).unwrap();
    let found = row(&results, "rtn W3");
    assert_eq!((found.prediction.as_ref().unwrap().answers, &found.blame), (3, &None));
    // Fewer items: the cells are run again, and so is what was read from them.
    let fewer = small.replace("limit: 3", "limit: 2");
    let changed = StudyJob { restart_changed: true, ..resume(&fewer) };
    let results = run(&changed).unwrap();
    assert_eq!(row(&results, "rtn W3").prediction.as_ref().unwrap().answers, 2);
    // With nothing changed nothing is run, also where it may be.
    let mut parts = BreaksAt { word: "", after: 1, seen: false };
    run_study(&changed, &mut parts, &Registry::default()).unwrap();
    assert!(!parts.seen);
}

/// A task whose answers cannot be read fails in its cells, and nowhere else.
#[test]
fn a_cell_that_fails_takes_nothing_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let task = "version: 1\nname: sums\nkind: generate\nsource: { files: [sums.jsonl] }\nprompt: '{{ q }}'\ngold: '{{ a }}'\nscorer: gsm8k\n";
    std::fs::write(at("sums.yaml"), task).unwrap();
    let item =
        |right: &str| format!("{{\"id\": \"first\", \"q\": \"What is 1 + 1?\", \"a\": \"{right}\"}}\n");
    std::fs::write(at("sums.jsonl"), item("two")).unwrap();
    let rest = format!(
        "recipes: [{{ name: rtn W8, recipe: {{ version: 1, modifiers: [rtn: {{ scheme: W8A16 }}] }} }}]\ntasks: [{}, tiny-compare]\nlimit: 2\n",
        at("sums.yaml").display()
    );
    let study =
        StudyJob { data: vec![folder.path().to_owned()], resume: true, ..job(&at("out"), grid(&rest)) };
    let outcome = run_study(&study, &mut Silent, &Registry::default()).unwrap();
    assert_eq!(outcome.failed, 2);
    for name in ["float", "rtn W8"] {
        let found = row(&outcome.results, name);
        assert_eq!(
            (&found.status, found.columns[0].value, found.columns[1].value),
            (&Status::Ok, None, Some(100.0))
        );
        assert_eq!((found.failed.len(), found.incomplete(), found.missing.len()), (1, "failed", 0));
        let reason = &found.failed[0].reason;
        assert!(reason.contains("item \"first\"") && reason.contains("####"), "{reason}");
    }
    let page = String::from_utf8(read(&at("out"), "report.md")).unwrap();
    assert!(page.contains("- rtn W8: sums: failed: task sums, item \"first\""), "{page}");
    // Once it can be read, what is missing is run, and nothing else.
    std::fs::write(at("sums.jsonl"), item("#### 2")).unwrap();
    let mut compare = BreaksAt { word: "sim, tiny-compare", after: 3, seen: false };
    let outcome = run_study(&study, &mut compare, &Registry::default()).unwrap();
    assert_eq!((outcome.failed, row(&outcome.results, "rtn W8").incomplete()), (0, ""));
    assert!(
        row(&outcome.results, "rtn W8").average.is_some()
            && !at("out/cells/tiny-reasoner/float/failures.json").exists()
    );
}

/// A tokenised text is called so, and what was published of the raw one does not stand beside it.
#[test]
fn published_figures_stand_beside_raw_text_only() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, text) in [("plain", "What is 1 + 1? "), ("cut", "What is <unk> + 1? ")] {
        let task =
            format!("version: 1\nname: {name}\nkind: text\nsource: {{ files: [{name}.txt] }}\nwindow: 32\n");
        std::fs::write(at(&format!("{name}.yaml")), task).unwrap();
        std::fs::write(at(&format!("{name}.txt")), text.repeat(9)).unwrap();
    }
    let text = format!(
        "version: 1\nname: texts\nmodels: [embedded:tiny-reasoner]\nrecipes: [{{ name: rtn W8, recipe: {{ version: 1, modifiers: [rtn: \
         {{ scheme: W8A16 }}] }} }}]\ntasks: [{}, {}]\npublished: {{ tiny-reasoner: {{ float: {{ here: {{ plain: 5.25, cut: 5.5 }}, there: \
         {{ plain: 6.25 }} }} }} }}\n",
        at("plain.yaml").display(),
        at("cut.yaml").display()
    );
    let grid = Grid::parse(&text, "a test").unwrap();
    let results = run(&StudyJob { data: vec![folder.path().to_owned()], ..job(&at("out"), grid) }).unwrap();
    let words: Vec<_> = row(&results, "float").texts.iter().map(|text| text.unknown_words).collect();
    assert_eq!(words, [Some(0), Some(9)]);
    let page = String::from_utf8(read(&at("out"), "report.md")).unwrap();
    assert!(page.contains("| plain (raw) |") && page.contains("| 5.25 (here), 6.25 (there) |"), "{page}");
    assert!(
        page.contains("| cut (tokenised, 9 <unk>) |") && page.contains("| of raw text: not comparable |"),
        "{page}"
    );
    assert!(!page.contains("5.5"), "{page}");
    assert!(page.contains("|   published, there |"), "{page}");
}

/// Hashes of the tensors of a folder, by its manifest.
fn hashes(folder: &Path) -> serde_json::Value {
    let manifest: serde_json::Value = serde_json::from_slice(&read(folder, "manifest.json")).unwrap();
    assert!(manifest["output"].as_object().unwrap().len() > 42);
    manifest["output"].clone()
}

#[test]
fn a_row_has_the_hashes_of_quantize_alone_whatever_it_shares() {
    use quant_data::CalibrationSpec;
    use quant_pipeline::{QuantizeJob, Recipe, quantize};
    let folder = tempfile::tempdir().unwrap();
    let recipes = [
        ("awq_W4", "{ version: 1, modifiers: [awq: { scheme: W4A16g32 }] }"),
        ("awq_W3", "{ version: 1, modifiers: [awq: { scheme: W3A16g32 }] }"),
        ("sq_W8", "{ version: 1, modifiers: [smoothquant: {}, rtn: { scheme: W8A8KV8 }] }"),
        ("sq_gptq", "{ version: 1, modifiers: [smoothquant: {}, gptq: { scheme: W4A8 }] }"),
        ("gptaq", "{ version: 1, modifiers: [gptaq: { scheme: W3A16g32 }] }"),
    ];
    let rows: String =
        recipes.iter().map(|(name, text)| format!("  - {{ name: {name}, recipe: {text} }}\n")).collect();
    let grid = grid(&format!("recipes:\n{rows}tasks: [FEW]\nlimit: 2\n"));
    let output = folder.path().join("study");
    let keeping = StudyJob { keep_folders: true, ..job(&output, grid.clone()) };
    let plan = plan_study(&keeping, &Registry::default()).unwrap();
    assert!(plan.shared > 0 && plan.memory > plan.shared);
    let results = run(&keeping).unwrap();
    let model = tiny_reasoner();
    for (name, _) in recipes {
        let alone = folder.path().join(name);
        // A study writes the text that YAML makes of what stands in its grid.
        let written =
            std::fs::read_to_string(output.join("work/tiny-reasoner").join(name).join("recipe.yaml"));
        let recipe = Recipe::parse(&written.unwrap()).unwrap();
        let calibration = model.join("tasks/calibration.jsonl").display().to_string();
        let job = QuantizeJob {
            calibration: Some(CalibrationSpec::parse(&calibration).unwrap()),
            num_samples: Some(8),
            max_seq_len: Some(128),
            force_unsupported: true,
            threads: 1,
            ..QuantizeJob::new(&model, recipe, &alone)
        };
        quantize(&job, &mut Silent).unwrap();
        assert_eq!(hashes(&output.join("work/tiny-reasoner").join(name)), hashes(&alone), "{name}");
    }
    // Rows with transforms say what became of activations; the others, and the float model, have none.
    for (name, transforms) in
        [("float", false), ("awq_W4", true), ("sq_W8", true), ("sq_gptq", true), ("gptaq", false)]
    {
        let ranges = &row(&results, name).ranges;
        let places = if name == "sq_W8" { 6 } else { 4 };
        assert_eq!(ranges.len(), if transforms { 6 * places } else { 0 }, "{name}");
    }
    let flatter = row(&results, "sq_W8").ranges.iter().filter(|seen| seen.place == "q, k, v");
    assert!(flatter.clone().all(|seen| seen.behind.largest.unwrap() < seen.float.largest.unwrap()));
    // The float model's are the same in every row.
    let float = |name: &str| {
        let ranges = row(&results, name).ranges.iter().filter(|seen| !seen.place.ends_with('s'));
        ranges.map(|seen| (seen.block, seen.place.clone(), seen.float)).collect::<Vec<_>>()
    };
    assert_eq!(float("sq_W8"), float("awq_W4"));
    let html = String::from_utf8(read(&output, "report.html")).unwrap();
    assert!(html.contains("largest activation") && html.contains("input of q, k, v: largest"));
    let costs = plan.variants.iter().map(|v| v.ranges.map_or(0, |cost| cost.block_passes));
    assert_eq!(costs.collect::<Vec<_>>(), [0, 12, 12, 12, 12, 0]);
}

#[test]
fn one_damaged_layer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let rest = "recipes: [{ name: one bad, recipe: { version: 1, modifiers: [rtn: { scheme: W8A16 }], overrides: \
                { 'model.layers.2.mlp.up_proj': { scheme: W2A16 } } } }]\ntasks: [FEW]\nblame: few\n";
    let results = run(&job(folder.path(), grid(rest))).unwrap();
    let blame = row(&results, "one bad").blame.as_ref().unwrap();
    assert_eq!(blame.blocks[0].part, "model.layers.2");
    assert_eq!(blame.linears[0].part, "model.layers.2.mlp.up_proj");
    assert!(blame.blocks[0].regained.unwrap() > 0.9 * blame.kl.unwrap(), "{blame:?}");
    assert!(blame.blocks[1].regained.unwrap() < 0.1 * blame.kl.unwrap(), "{blame:?}");
}

/// A copy of the model with a tensor whose values are enormous: the product with it overflows in that block.
fn overflowing(into: &Path) -> PathBuf {
    let model = into.join("overflowing");
    std::fs::create_dir_all(model.join("tasks")).unwrap();
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tasks/test.jsonl",
        "tasks/calibration.jsonl",
    ] {
        std::fs::copy(tiny_reasoner().join(name), model.join(name)).unwrap();
    }
    let mut bytes = read(&tiny_reasoner(), "model.safetensors");
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let range = |end: usize| {
        tensors["model.layers.3.mlp.down_proj.weight"]["data_offsets"][end].as_u64().unwrap() as usize
    };
    // 2^125 in bf16, in every value.
    for value in bytes[8 + header + range(0)..8 + header + range(1)].chunks_exact_mut(2) {
        value.copy_from_slice(&0x7e00_u16.to_le_bytes());
    }
    std::fs::write(model.join("model.safetensors"), bytes).unwrap();
    model
}

#[test]
fn numbers_that_are_not_finite_are_results() {
    let folder = tempfile::tempdir().unwrap();
    let model = overflowing(folder.path());
    let text = format!(
        "version: 1\nname: broken\nmodels: [{{ path: {}, calibration: tasks/calibration.jsonl, num_samples: 4, max_seq_len: 64 }}]\n\
         recipes:\n  - {{ name: rtn W8, recipe: {{ version: 1, modifiers: [rtn: {{ scheme: W8A16 }}] }} }}\n  \
         - {{ name: gptq W4, recipe: {{ version: 1, modifiers: [gptq: {{ scheme: W4A16g32 }}] }} }}\n\
         tasks: [tiny-compare, tiny-text]\nlimit: 2\n",
        model.display()
    );
    let output = folder.path().join("study");
    let job = job(&output, Grid::parse(&text, "a test").unwrap());
    let outcome = run_study(&job, &mut Silent, &Registry::default()).unwrap();
    assert_eq!(outcome.failed, 0);
    // No answer to read is a finding too, for which no row is made again.
    let mut parts = BreaksAt { word: "", after: 1, seen: false };
    run_study(&StudyJob { resume: true, ..job }, &mut parts, &Registry::default()).unwrap();
    assert!(!parts.seen);
    let float = row(&outcome.results, "float");
    assert_eq!((float.texts[0].perplexity, float.signs.non_finite), (None, 2));
    assert!(float.problems.iter().any(|p| p.contains("after block 3")), "{:?}", float.problems);
    let gptq = row(&outcome.results, "gptq W4");
    assert!(matches!(&gptq.status, Status::NotFinite(reason) if reason.contains('3')), "{:?}", gptq.status);
    let json = String::from_utf8(read(&output, "results.json")).unwrap();
    assert!(!json.contains("NaN") && json.contains("\"not_finite\""));
    let csv = String::from_utf8(read(&output, "results.csv")).unwrap();
    assert!(csv.contains("not finite in calibration") && csv.contains("perplexity,,"));
    for page in ["report.md", "report.html"] {
        let page = String::from_utf8(read(&output, page)).unwrap();
        assert!(
            page.contains("float: tiny-text: logits of the model are not finite")
                && page.contains("after block 3"),
            "{page}"
        );
    }
}

#[test]
fn rows_that_cannot_be_are_shown_and_the_others_are_run() {
    let folder = tempfile::tempdir().unwrap();
    let rest = "recipes:\n  - { name: three bits, recipe: { version: 1, modifiers: [rtn: { scheme: W3A16 }], export: { format: vllm-ascend } } }\n  \
                - { name: rtn W8, recipe: { version: 1, modifiers: [rtn: { scheme: W8A16 }] } }\nexecution: [sim, int8]\ntasks: [tiny-compare]\nlimit: 2\n";
    let results = run(&job(&folder.path().join("a"), grid(rest))).unwrap();
    assert!(matches!(row(&results, "three bits").status, Status::Illegal(_)));
    let rows: Vec<_> = results.models[0].variants.iter().filter(|row| row.recipe == "rtn W8").collect();
    assert_eq!((&rows[0].status, rows[0].execution.as_str()), (&Status::Ok, "sim"));
    assert!(matches!(&rows[1].status, Status::Illegal(reason) if reason.contains("no codes")));
    let nothing = rest.replace("W8A16 }] }", "W3A16 }], export: { format: vllm-ascend } }");
    let error = run(&job(&folder.path().join("b"), grid(&nothing))).unwrap_err();
    assert!(matches!(error, StudyError::NothingLegal(_)), "{error}");
    // Neither is there anything to run where no codes can be executed, or causes to be looked for on what is no text of the grid.
    let executed = rest.replace("[sim, int8]", "[int8]");
    let error = run(&job(&folder.path().join("d"), grid(&executed))).unwrap_err();
    assert!(matches!(error, StudyError::NothingLegal(_)), "{error}");
    for (blame, words) in
        [("tiny-cmpare", "did you mean \"tiny-compare\"?"), ("tiny-compare", "no task of the kind text")]
    {
        let error =
            run(&job(&folder.path().join("e"), grid(&format!("{rest}blame: {blame}\n")))).unwrap_err();
        assert!(matches!(&error, StudyError::Grid { .. }) && error.to_string().contains(words), "{error}");
    }
    // Without calibration data a recipe that needs some cannot be.
    let bare = Grid::parse(
        "version: 1\nname: bare\nmodels: [embedded:tiny-reasoner]\nrecipes: [w4a16g32]\ntasks: [tiny-compare]\n",
        "x",
    );
    let plan = plan_study(&job(&folder.path().join("c"), bare.unwrap()), &Registry::default()).unwrap();
    assert!(plan.variants[1].illegal.as_ref().unwrap().contains("calibration: FILE"));
}

#[test]
fn studies_of_models_that_are_elsewhere_are_planned() {
    for name in ["case-study", "case-study-int8", "case-study-qa", "openpangu"] {
        let folder = tempfile::tempdir().unwrap();
        let grid = quant_study::study_preset(name).unwrap();
        let plan = plan_study(&job(folder.path(), grid.clone()), &Registry::default()).unwrap();
        assert_eq!(plan.variants.len(), grid.models.len() * (1 + grid.recipes.len()));
        let illegal: Vec<_> =
            plan.variants.iter().filter_map(|v| v.illegal.as_ref().map(|why| (&v.recipe, why))).collect();
        assert!(illegal.is_empty(), "{illegal:?}");
        assert!(plan.variants.iter().all(|v| v.absent.is_some()));
        assert!(plan.seconds > 100.0 && plan.disk > 1 << 29);
        // What has no tokenizer here cannot be counted, and is named.
        let scoring = plan.scoring.unwrap();
        assert_eq!((scoring.read, scoring.written), (0, 0));
        assert_eq!(scoring.unknown.len(), grid.models.len() * plan.tasks.len());
        let error = run(&job(folder.path(), grid)).unwrap_err().to_string();
        assert!(["DeepSeek", "Llama", "openPangu"].iter().any(|name| error.contains(name)), "{error}");
    }
}
