//! Progress on stderr: a bar on a terminal, plain lines elsewhere.

use super::{Failure, INTERRUPTED, say};
use indicatif::{ProgressBar, ProgressStyle};
use quant_pipeline::{Event, Events, peak_memory};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Shows the steps of a run or an evaluation.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    /// When the part that is counted began: the whole run, or one part of an evaluation.
    started: Instant,
    what: &'static str,
    done: usize,
    /// How much of the next one is done, from 0 to 1.
    inside: f64,
    of: usize,
    /// Without a terminal, only parts and warnings are told: for a work of hundreds of parts.
    parts_only: bool,
    interrupted: Arc<AtomicBool>,
}

impl Progress {
    /// `interrupted` is set from outside when the work is to stop.
    pub(super) fn new(interrupted: Arc<AtomicBool>) -> Self {
        // Words only, until there is something to count. Messages are cut at the width of the terminal.
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(style("{wide_msg}"));
            bar
        });
        Self {
            bar,
            started: Instant::now(),
            what: "",
            done: 0,
            inside: 0.0,
            of: 0,
            parts_only: false,
            interrupted,
        }
    }

    /// The same, without lines for what happens inside a part.
    pub(super) fn of_parts(interrupted: Arc<AtomicBool>) -> Self {
        Self { parts_only: true, ..Self::new(interrupted) }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => say(text),
        }
    }

    /// Moves the bar, if there is one.
    fn count(&mut self, what: &'static str, done: usize, of: usize) {
        let first = self.of == 0 && of > 0;
        (self.what, self.done, self.inside, self.of) = (what, done, 0.0, of);
        if let Some(bar) = &self.bar {
            if first {
                bar.set_style(style("{prefix} {pos}/{len} [{bar:12}] {wide_msg}"));
            }
            bar.set_prefix(what);
            bar.set_length(of as u64);
            bar.set_position(done as u64);
        }
    }

    /// A part of an evaluation, each with its own clock. Without a terminal a part has at most ten lines.
    fn evaluated(&mut self, what: &'static str, done: usize, of: usize, inside: f64) {
        let before = if self.what == what { self.done } else { 0 };
        if self.what != what {
            self.started = Instant::now();
        }
        self.count(what, done, of);
        self.inside = inside;
        let tenth = |n: usize| n * 10 / of.max(1);
        match &self.bar {
            Some(bar) => bar.set_message(self.status()),
            None if self.parts_only => {}
            None if tenth(done) > tenth(before) => {
                self.line(&format!("{what} {done}/{of}: {}", self.status()));
            }
            None => {}
        }
    }

    /// Time so far, remaining time from what is done so far, and memory. A bar has no room for the first beside the second.
    fn status(&self) -> String {
        let elapsed = self.started.elapsed().as_secs_f64();
        let left = |done: f64| elapsed / done * (self.of as f64 - done).max(0.0);
        let time = match self.done as f64 + self.inside {
            0.0 => seconds(elapsed),
            done if self.bar.is_some() => format!("{} left", seconds(left(done))),
            done => format!("{}, {} left", seconds(elapsed), seconds(left(done))),
        };
        let memory = peak_memory().map_or_else(String::new, |m| format!(", peak {}", super::human(m)));
        format!("{time}{memory}")
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Says nothing more of how far the work is where that could fall into a text on stdout: where both are one terminal, or neither is one
    /// and they may be one file.
    pub(super) fn give_way(&mut self) {
        if self.bar.is_some() == std::io::stdout().is_terminal() {
            self.finish();
            (self.bar, self.parts_only) = (None, true);
        }
    }
}

/// Progress that others have a word with while the work reports to it.
#[derive(Clone)]
pub(super) struct SharedProgress(Arc<Mutex<Progress>>);

impl SharedProgress {
    pub(super) fn new(interrupted: Arc<AtomicBool>) -> Self {
        Self(Arc::new(Mutex::new(Progress::new(interrupted))))
    }
    /// What a thread that panicked left is still what is shown.
    pub(super) fn get(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Events for SharedProgress {
    fn event(&mut self, event: Event<'_>) {
        self.get().event(event);
    }
    fn cancelled(&self) -> bool {
        self.get().cancelled()
    }
}

impl Events for Progress {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Resumed { index, of } => {
                self.line(&format!("going on where the run broke off: {index} of {of} blocks are finished"));
            }
            Event::Block { index, of } => {
                self.inside = 0.0;
                self.count("block", index, of);
            }
            Event::Step { done, of } => {
                self.inside = done as f64 / of.max(1) as f64;
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("step {done} of {of}, {}", self.status()));
                }
            }
            Event::Part(name) => {
                self.line(&name);
                // Each part is counted by itself.
                (self.what, self.of) = ("", 0);
            }
            Event::Phase(phase) => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("{phase}, {}", self.status()));
                }
            }
            Event::BlockDone { index, of, seconds: spent } => {
                self.count("block", index + 1, of);
                if self.bar.is_none() && !self.parts_only {
                    let spent = seconds(spent);
                    self.line(&format!("block {}/{of} done in {spent}; {}", index + 1, self.status()));
                }
            }
            Event::Evaluated { what, done, of, inside } => self.evaluated(what, done, of, inside),
            Event::Warning(text) => self.line(&format!("warning: {text}")),
            Event::Note(text) => self.line(text),
            _ => {}
        }
    }
    fn cancelled(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// A style from a template that is known to be one.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Seconds for people.
pub(super) fn seconds(s: f64) -> String {
    // Rounded first, so that no 60 stands where the next unit has one more.
    let (whole, minutes) = (s.round() as u64, (s / 60.0).round() as u64);
    match s {
        s if s < 59.95 => format!("{s:.1} s"),
        s if s < 3599.5 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", minutes / 60, minutes % 60),
    }
}

/// A flag that Ctrl-C sets, so that the work stops between two steps and keeps what can be gone on with, or removes what it
/// has begun. A second Ctrl-C ends the process where it is; what is left then is recognisably unfinished: a folder with a marker
/// that every reader refuses, with a journal if there was one, or a file that ends in `.partial`.
pub(super) fn on_interrupt() -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let handler = move || {
        if set.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        say("\ninterrupted: stopping at the next chunk of tokens; once more to stop at once");
    };
    ctrlc::set_handler(handler).map_err(|e| Failure::other(format!("cannot handle Ctrl-C: {e}")))?;
    Ok(flag)
}
