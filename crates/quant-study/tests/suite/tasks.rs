//! Tasks on the model of the repository.

use crate::tiny_reasoner;
use quant_data::{Task, built_in_task};
use quant_pipeline::{Event, Events, Registry, Silent};
use quant_study::{Record, Reference, StudyError, TaskJob, TaskOutcome, run_task};
use std::path::Path;

fn run(job: &TaskJob) -> Result<TaskOutcome, StudyError> {
    run_task(job, None, &mut Silent, &Registry::default())
}

fn job(task: &str, limit: usize) -> TaskJob {
    TaskJob { limit: Some(limit), threads: 2, ..TaskJob::new(tiny_reasoner(), built_in_task(task).unwrap()) }
}

/// Stops after so many looks.
struct Stops(std::cell::Cell<usize>);

impl Events for Stops {
    fn event(&mut self, _: Event<'_>) {}
    fn cancelled(&self) -> bool {
        self.0.set(self.0.get().saturating_sub(1));
        self.0.get() == 0
    }
}

fn items(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("items.jsonl")).unwrap()
}

#[test]
fn the_float_model_knows_its_tasks() {
    let mut right = 0.0;
    for kind in ["addition", "compare", "running", "sorting", "subtraction", "word"] {
        let outcome = run(&job(&format!("tiny-{kind}"), 10)).unwrap();
        let answers = outcome.result.answers.unwrap();
        assert_eq!((outcome.records.len(), outcome.result.items), (10, 10));
        assert!(answers.signs.collapsed <= 1, "{kind}: {:?}", answers.signs);
        assert!(answers.thought_tokens.unwrap() > 5.0 && answers.tokens > answers.thought_tokens.unwrap());
        right += outcome.result.figure.value.unwrap() / 10.0;
    }
    assert!(right > 54.0, "{right} of 60");
}

#[test]
fn an_item_does_not_depend_on_what_else_is_asked() {
    let all = run(&job("tiny-word", 12)).unwrap();
    let alone = TaskJob { batch: 1, threads: 1, ..job("tiny-word", 5) };
    assert_eq!(run(&alone).unwrap().records, all.records[..5]);
    // Drawn ones neither: the key of a draw is the item's number in its source.
    let warm = |text: &str| {
        let written = built_in_task("tiny-word").unwrap().written().replace("scorer: exact", text);
        Task::parse(&written).unwrap()
    };
    let task = warm("scorer: exact\nsampling: { temperature: 4.0, top_p: 1.0 }\nseeds: [7, 9]");
    let of = |limit, batch| {
        let job = TaskJob { task: task.clone(), batch, ..job("tiny-word", limit) };
        run(&job).unwrap()
    };
    let (four, two) = (of(4, 16), of(2, 3));
    let of_items = |outcome: &TaskOutcome, below: u64| {
        let mut kept = outcome.records.clone();
        kept.retain(|record| record.key().1 < below);
        kept
    };
    let second = four.records[1].key().1;
    assert_eq!(of_items(&four, second + 1), two.records);
    assert_eq!(four.result.seeds, [7, 9]);
    assert_eq!(four.result.answers.as_ref().unwrap().per_seed.len(), 2);
    let tokens = |record: &Record| match record {
        Record::Answer { tokens, .. } => tokens.clone(),
        _ => unreachable!(),
    };
    assert_ne!(tokens(&four.records[0]), tokens(&four.records[4]), "another seed, another answer");
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = TaskJob { output: Some(folder.path().join("whole")), ..job("tiny-compare", 9) };
    let expected = run(&whole).unwrap();
    let output = folder.path().join("stopped");
    let stopped = TaskJob { output: Some(output.clone()), batch: 2, ..whole.clone() };
    let mut looks = Stops(std::cell::Cell::new(120));
    let error = run_task(&stopped, None, &mut looks, &Registry::default()).unwrap_err();
    assert!(error.is_interrupted(), "{error}");
    let kept = items(&output).split(|&b| b == b'\n').count() - 1;
    assert!((1..9).contains(&kept), "{kept} items were finished");
    // Neither without being told to, nor as another job.
    let error = run(&stopped).unwrap_err().to_string();
    assert!(error.contains("--resume"), "{error}");
    let other = TaskJob { resume: true, limit: Some(8), ..stopped.clone() };
    let error = run(&other).unwrap_err().to_string();
    assert!(error.contains("--limit was 9 and is 8"), "{error}");
    // A line that was being written is written again.
    let torn = items(&output);
    std::fs::write(output.join("items.jsonl"), &torn[..torn.len() - 7]).unwrap();
    let resumed = run(&TaskJob { resume: true, threads: 1, batch: 5, ..stopped.clone() }).unwrap();
    assert_eq!(resumed.records, expected.records);
    for name in ["items.jsonl", "result.json", "job.json"] {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert_eq!(read(&output), read(&folder.path().join("whole")), "{name}");
    }
    // A finished one is not run again, and --restart throws it away.
    let before = items(&output);
    assert_eq!(run(&stopped).unwrap().result, expected.result);
    run(&TaskJob { restart: true, limit: Some(1), ..stopped.clone() }).unwrap();
    assert_ne!(items(&output), before);
    std::fs::write(output.join("items.jsonl"), "no json\n").unwrap();
    let error = run(&TaskJob { limit: Some(1), ..stopped }).unwrap_err().to_string();
    assert!(error.contains("items.jsonl, line 1"), "{error}");
}

#[test]
fn one_process_works_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let lock = std::fs::File::create(folder.path().join(".lock")).unwrap();
    lock.lock().unwrap();
    let job = TaskJob { output: Some(folder.path().to_owned()), ..job("tiny-compare", 1) };
    assert!(matches!(run(&job), Err(StudyError::Locked { .. })));
    drop(lock);
    run(&job).unwrap();
}

#[test]
fn a_text_beside_the_float_model() {
    let model = tiny_reasoner();
    let mut reference =
        Reference::open(&model, quant_kernels::Compute::F32, 2, &Registry::default()).unwrap();
    let job = job("tiny-text", 4);
    let of = |reference: Option<&mut Reference>| {
        run_task(&job, reference, &mut Silent, &Registry::default()).unwrap()
    };
    let beside = of(Some(&mut reference)).result;
    let text = beside.text.as_ref().unwrap();
    assert_eq!((text.kl, text.top1_agreement, text.tokens), (Some(0.0), Some(1.0), 4 * 255));
    assert_eq!((text.top5_agreement, text.unknown_words), (Some(1.0), None));
    // The second time the reference is remembered.
    assert_eq!(of(Some(&mut reference)).result, beside);
    let alone = of(None).result;
    assert_eq!((alone.figure.value, alone.text.unwrap().kl), (beside.figure.value, None));
    assert!((1.2..1.7).contains(&beside.figure.value.unwrap()), "{:?}", beside.figure);
}

#[test]
fn a_prompt_without_room_is_wrong_and_no_error() {
    let written =
        built_in_task("tiny-compare").unwrap().written().replace("max_new_tokens: 320", "max_tokens: 20");
    let job = TaskJob { task: Task::parse(&written).unwrap(), ..job("tiny-compare", 3) };
    let result = run(&job).unwrap().result;
    assert_eq!((result.figure.value, result.answers.unwrap().signs.do_not_fit), (Some(0.0), 3));
    assert!(result.problem.unwrap().contains("leave no room"));
}

#[test]
fn what_cannot_be_asked_is_said_before_anything_runs() {
    let other = built_in_task("tiny-compare").unwrap().written().replace("scorer: exact", "scorer: exakt");
    let error = run(&TaskJob { task: Task::parse(&other).unwrap(), ..job("tiny-compare", 1) }).unwrap_err();
    assert!(error.to_string().contains("did you mean \"exact\"?"), "{error}");
    let error = run(&job("gpqa-diamond", 1)).unwrap_err().to_string();
    assert!(error.contains("Idavidrein/gpqa") && error.contains("--data-dir"), "{error}");
    let job = TaskJob { execution: quant_model::Execution::Integer, ..job("tiny-compare", 1) };
    assert!(run(&job).unwrap_err().to_string().contains("--execute sim"));
}
