//! Progress on stderr: a bar on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use quant_pipeline::{Event, Events, peak_memory};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Shows the steps of a run.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    block: usize,
    of: usize,
    interrupted: Arc<AtomicBool>,
}

impl Progress {
    /// `interrupted` is set from outside when the run is to stop.
    pub(super) fn new(interrupted: Arc<AtomicBool>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = "block {pos}/{len} [{bar:24}] {msg}";
            bar.set_style(
                ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        Self { bar, started: Instant::now(), block: 0, of: 0, interrupted }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Remaining time from the blocks done so far, and memory.
    fn status(&self) -> String {
        let elapsed = self.started.elapsed().as_secs_f64();
        let eta = match self.block {
            0 => String::new(),
            done => format!(", {} left", seconds(elapsed / done as f64 * (self.of - done) as f64)),
        };
        let memory = peak_memory().map_or_else(String::new, |m| format!(", peak {}", super::human(m)));
        format!("{}{eta}{memory}", seconds(elapsed))
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Events for Progress {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Block { index, of } => {
                (self.block, self.of) = (index, of);
                if let Some(bar) = &self.bar {
                    bar.set_length(of as u64);
                    bar.set_position(index as u64);
                }
            }
            Event::Phase(phase) => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("{phase}, {}", self.status()));
                }
            }
            Event::BlockDone { index, of, seconds: spent } => {
                self.block = index + 1;
                if let Some(bar) = &self.bar {
                    bar.set_position(self.block as u64);
                } else {
                    self.line(&format!(
                        "block {}/{of} done in {}; {}",
                        index + 1,
                        seconds(spent),
                        self.status()
                    ));
                }
            }
            Event::Warning(text) => self.line(&format!("warning: {text}")),
            Event::Note(text) => self.line(text),
            _ => {}
        }
    }
    fn cancelled(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// Seconds for people.
pub(super) fn seconds(s: f64) -> String {
    match s {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), s % 60.0),
        s => format!("{:.0} h {:02.0} min", (s / 3600.0).floor(), (s % 3600.0) / 60.0),
    }
}
