//! Runs that are stopped in the middle of a search.

use crate::common::{CALIBRATION, assert_same_files, tiny_reasoner};
use ptq::checkpoint::{Disk, Storage};
use ptq::data::CalibrationSpec;
use ptq::pipeline::{Event, Events, PipelineError, QuantizeJob, Recipe, Silent, quantize_on};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::tempdir;

/// Counts how often a phase asks whether to go on, and says no at one of them.
struct Asked {
    phase: &'static str,
    within: bool,
    asked: AtomicUsize,
    stop_at: usize,
}

impl Events for Asked {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Phase(phase) = event {
            self.within = phase == self.phase;
        }
    }
    fn cancelled(&self) -> bool {
        self.within && self.asked.fetch_add(1, Ordering::Relaxed) + 1 >= self.stop_at
    }
}

fn job(recipe: &str, output: &Path) -> QuantizeJob {
    QuantizeJob {
        calibration: Some(CalibrationSpec::parse(CALIBRATION).unwrap()),
        num_samples: Some(4),
        max_seq_len: Some(32),
        threads: 2,
        resume: true,
        ..QuantizeJob::new(tiny_reasoner(), Recipe::parse(recipe).unwrap(), output)
    }
}

/// A search asks between its candidates, what it left is gone on with, and the bytes are those of a run that nobody stopped.
#[test]
fn a_search_hears_that_it_is_to_stop() {
    let disk: Arc<dyn Storage> = Arc::new(Disk);
    // Recipe, phase, and how often it asks in each of six blocks at least.
    for (modifiers, phase, least) in [
        ("awq: { search_tokens: all, gqa: true }, gptq: { scheme: W4A16g32 }", "awq", 80),
        ("awq: { scheme: W4A16g32, search_tokens: 64 }", "round", 20),
        ("slim-llm: { scheme: W2A16g32, variant: official }", "round", 60),
    ] {
        let work = tempdir().unwrap();
        let recipe = format!("version: 1\nmodifiers: [{modifiers}]\n");
        let run = |output: &str, stop_at| {
            let mut events = Asked { phase, within: false, asked: AtomicUsize::new(0), stop_at };
            let outcome = quantize_on(&job(&recipe, &work.path().join(output)), &disk, &mut events);
            (outcome, events.asked.into_inner())
        };
        let (whole, asked) = run("whole", usize::MAX);
        whole.unwrap();
        assert!(asked >= 6 * least, "{modifiers}: asked {asked} times");
        let (stopped, _) = run("out", asked / 2);
        let Err(PipelineError::Kept { source, .. }) = stopped else { panic!("{modifiers}: {stopped:?}") };
        assert!(matches!(*source, PipelineError::Interrupted), "{source}");
        let output = work.path().join("out");
        let again = quantize_on(&job(&recipe, &output), &disk, &mut Silent).unwrap();
        assert!(again.resumed.is_some_and(|blocks| blocks > 0), "{modifiers}: {:?}", again.resumed);
        assert_same_files(&work.path().join("whole"), &output);
    }
}
