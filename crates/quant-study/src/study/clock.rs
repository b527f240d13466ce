//! How long the parts of a study took.

use quant_pipeline::{Event, Events};
use std::time::{Duration, Instant};

/// One kind of work of a study, and how long a run of it was at that.
#[derive(Clone, Debug, PartialEq)]
pub struct PartTime {
    /// What it was: `quantising`, `scoring`, `reading answers of the float model`, `looking at activations`, `putting blocks back`,
    /// `asking` for servers, and `the rest`: planning, models that are opened, reports.
    pub part: String,
    /// All of it.
    pub time: Duration,
}

/// Passes events on, and counts the time between the beginnings of parts.
pub(super) struct Clock<'e> {
    events: &'e mut dyn Events,
    parts: Vec<PartTime>,
    /// The part that runs, and since when.
    now: (String, Instant),
}

/// What is no named part.
const REST: &str = "the rest";

impl<'e> Clock<'e> {
    pub(super) fn new(events: &'e mut dyn Events) -> Self {
        Self { events, parts: Vec::new(), now: (REST.to_owned(), Instant::now()) }
    }

    /// A part begins, or what is none.
    fn begin(&mut self, part: &str) {
        let (ended, since) = std::mem::replace(&mut self.now, (part.to_owned(), Instant::now()));
        match self.parts.iter_mut().find(|known| known.part == ended) {
            Some(known) => known.time += since.elapsed(),
            None => self.parts.push(PartTime { part: ended, time: since.elapsed() }),
        }
    }

    /// The part that runs has ended.
    pub(super) fn rest(&mut self) {
        self.begin(REST);
    }

    /// All parts, the longest first.
    pub(super) fn parts(mut self) -> Vec<PartTime> {
        self.rest();
        self.parts.sort_by_key(|part| std::cmp::Reverse(part.time));
        self.parts
    }
}

impl Events for Clock<'_> {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Part(name) = &event {
            // The row is behind the colon.
            self.begin(name.split(':').next().unwrap_or(name));
        }
        self.events.event(event);
    }
    fn cancelled(&self) -> bool {
        self.events.cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_pipeline::Silent;

    #[test]
    fn parts_of_one_kind_are_added() {
        let mut silent = Silent;
        let mut clock = Clock::new(&mut silent);
        let pause = Duration::from_millis(20);
        for part in ["scoring: a, sim, x", "quantising: b", "scoring: b, sim, x"] {
            clock.event(Event::Part(part.to_owned()));
            std::thread::sleep(pause);
        }
        clock.rest();
        let parts = clock.parts();
        let of = |name: &str| parts.iter().find(|part| part.part == name).unwrap().time;
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[0].part, "scoring");
        assert!(of("scoring") >= 2 * pause && of("quantising") >= pause && of(REST) < of("scoring"));
    }
}
