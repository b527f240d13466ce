//! Streams as queues, events, and who must wait for whom.

use std::collections::{BTreeMap, VecDeque};

use crate::memory::Access;

/// How far every stream is known to have come.
pub(crate) type Clock = BTreeMap<usize, u64>;

fn merge(into: &mut Clock, other: &Clock) {
    for (&stream, &position) in other {
        let known = into.entry(stream).or_insert(0);
        *known = (*known).max(position);
    }
}

/// One entry of the trace: a task with those that it waits for.
#[derive(Clone, Debug)]
pub(crate) struct Traced {
    pub(crate) name: &'static str,
    pub(crate) stream: usize,
    pub(crate) reads: Vec<usize>,
    pub(crate) writes: Vec<usize>,
    /// Tasks, by their place in the trace, directly before this one.
    pub(crate) after: Vec<usize>,
}

pub(crate) enum Task<W> {
    Work(W),
    /// Another stream must have come so far.
    Wait(usize, u64),
    Record(usize),
}

struct Stream<W> {
    context: usize,
    queue: VecDeque<Task<W>>,
    /// Tasks that have run, and tasks that were ever queued.
    done: u64,
    queued: u64,
    clock: Clock,
    /// The tasks of the trace that whatever comes next stands behind.
    tail: Vec<usize>,
}

#[derive(Clone, Debug, Default)]
struct Event {
    recorded: Option<(usize, u64, Clock, Vec<usize>)>,
    /// The tick at which it was passed.
    passed: Option<u64>,
}

pub(crate) struct Streams<W> {
    streams: BTreeMap<usize, Stream<W>>,
    events: BTreeMap<usize, Event>,
    host: Clock,
    pub(crate) trace: Vec<Traced>,
    /// Tasks that were thrown away with their stream.
    pub(crate) dropped: u64,
    ticks: u64,
}

impl<W> Streams<W> {
    pub(crate) const fn new() -> Self {
        Self {
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            host: BTreeMap::new(),
            trace: Vec::new(),
            dropped: 0,
            ticks: 0,
        }
    }

    pub(crate) fn streams(&self) -> usize {
        self.streams.len()
    }
    pub(crate) fn events(&self) -> usize {
        self.events.len()
    }
    pub(crate) fn all(&self) -> Vec<usize> {
        self.streams.keys().copied().collect()
    }

    pub(crate) fn context_of(&self, stream: usize) -> Option<usize> {
        self.streams.get(&stream).map(|stream| stream.context)
    }

    pub(crate) fn create(&mut self, stream: usize, context: usize) {
        let clock = Clock::new();
        let queue = VecDeque::new();
        self.streams.insert(stream, Stream { context, queue, done: 0, queued: 0, clock, tail: Vec::new() });
    }

    /// Forgets a stream with what is still queued on it.
    pub(crate) fn destroy(&mut self, stream: usize) {
        if let Some(gone) = self.streams.remove(&stream) {
            self.dropped += gone.queue.len() as u64;
            // What was known of it is of no use any more: what is gone is over. Thousands come and go in one test.
            self.host.remove(&stream);
            for other in self.streams.values_mut() {
                other.clock.remove(&stream);
            }
        }
    }

    /// Queues a task and gives the place it has; the task's uses of memory that another stream may be at, as reports.
    pub(crate) fn push(&mut self, stream: usize, task: Task<W>, traced: Option<Traced>) -> u64 {
        let place = self.trace.len();
        let Some(at) = self.streams.get_mut(&stream) else { return 0 };
        merge(&mut at.clock, &self.host);
        at.queued += 1;
        at.clock.insert(stream, at.queued);
        at.queue.push_back(task);
        if let Some(traced) = traced {
            self.trace.push(Traced { after: std::mem::replace(&mut at.tail, vec![place]), stream, ..traced });
        }
        at.queued
    }

    /// Whether a use of memory is known to be over when the next task of a stream begins.
    pub(crate) fn is_before(&self, access: &Access, stream: Option<usize>) -> bool {
        let known =
            |clock: &Clock| clock.get(&access.stream).is_some_and(|&position| position >= access.position);
        !self.streams.contains_key(&access.stream)
            || known(&self.host)
            || stream.is_some_and(|stream| {
                stream == access.stream || self.streams.get(&stream).is_some_and(|s| known(&s.clock))
            })
    }

    pub(crate) fn create_event(&mut self, event: usize) {
        self.events.insert(event, Event::default());
    }
    pub(crate) fn has_event(&self, event: usize) -> bool {
        self.events.contains_key(&event)
    }
    pub(crate) fn destroy_event(&mut self, event: usize) {
        self.events.remove(&event);
    }

    pub(crate) fn record(&mut self, event: usize, stream: usize) {
        let position = self.push(stream, Task::Record(event), None);
        let (clock, tail) =
            self.streams.get(&stream).map(|s| (s.clock.clone(), s.tail.clone())).unwrap_or_default();
        self.events.insert(event, Event { recorded: Some((stream, position, clock, tail)), passed: None });
    }

    /// Makes a stream wait; false if the event was never recorded.
    pub(crate) fn wait(&mut self, stream: usize, event: usize) -> bool {
        let Some((other, position, clock, tail)) = self.events.get(&event).and_then(|e| e.recorded.clone())
        else {
            return false;
        };
        self.push(stream, Task::Wait(other, position), None);
        if let Some(at) = self.streams.get_mut(&stream) {
            merge(&mut at.clock, &clock);
            for task in tail {
                if !at.tail.contains(&task) {
                    at.tail.push(task);
                }
            }
        }
        true
    }

    /// Where an event was recorded.
    pub(crate) fn recorded_at(&self, event: usize) -> Option<(usize, u64)> {
        self.events.get(&event)?.recorded.as_ref().map(|(stream, position, ..)| (*stream, *position))
    }

    /// When an event was passed.
    pub(crate) fn passed(&self, event: usize) -> Option<u64> {
        self.events.get(&event)?.passed
    }

    /// The end of a stream's queue.
    pub(crate) fn end(&self, stream: usize) -> u64 {
        self.streams.get(&stream).map_or(0, |s| s.queued)
    }

    /// The host has waited for all of a stream.
    pub(crate) fn host_knows_stream(&mut self, stream: usize) {
        if let Some(at) = self.streams.get(&stream) {
            merge(&mut self.host, &at.clock);
        }
    }

    /// The host has waited for an event.
    pub(crate) fn host_knows_event(&mut self, event: usize) {
        if let Some((.., clock, _)) = self.events.get(&event).and_then(|e| e.recorded.as_ref()) {
            merge(&mut self.host, clock);
        }
    }

    /// The next piece of work so that `stream` comes to `position`: waits and records on the way are done here.
    pub(crate) fn next_work(&mut self, stream: usize, position: u64) -> Option<W> {
        loop {
            let at = self.streams.get_mut(&stream)?;
            if at.done >= position {
                return None;
            }
            if let Some(Task::Wait(other, until)) = at.queue.front() {
                let (other, until) = (*other, *until);
                if let Some(work) = self.next_work(other, until) {
                    return Some(work);
                }
            }
            let at = self.streams.get_mut(&stream)?;
            at.done += 1;
            self.ticks += 1;
            match at.queue.pop_front()? {
                Task::Work(work) => return Some(work),
                Task::Record(event) => {
                    let ticks = self.ticks;
                    if let Some(event) = self.events.get_mut(&event) {
                        event.passed = Some(ticks);
                    }
                }
                Task::Wait(..) => {}
            }
        }
    }
}
