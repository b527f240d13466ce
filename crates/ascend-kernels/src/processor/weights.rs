//! Coded weights: on the device as long as there is room, the others in page-locked memory, from where they go through two places.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::Shared;
use crate::cann::{Cann, locked};
use crate::device::Device;
use crate::error::{AscendError, Result};
use crate::memory::DeviceBuffer;
use crate::pipeline::PipelineWeight;
use crate::places::{CodeForm, Form, Places};
use crate::stream::{Event, Stream};
use crate::tensor::Tensor;

/// What weights through two places need of CANN.
const ASYNCHRONOUS: [&str; 5] =
    ["aclrtMemcpyAsync", "aclrtMallocHost", "aclrtStreamWaitEvent", "aclrtCreateEvent", "aclrtRecordEvent"];

/// Whether weights can be copied while others are multiplied.
pub(super) fn can_stream(cann: &Cann) -> bool {
    ASYNCHRONOUS.iter().all(|name| cann.has(name))
}

/// The coded weights of a processor.
#[derive(Debug, Default)]
pub(super) struct Weights(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Bytes of codes that may stay on the device; none: all.
    room: Option<usize>,
    /// Bytes of those that do.
    held: usize,
    /// Those in page-locked memory, by the order in which they were prepared, which is that of their use.
    waiting: BTreeMap<u64, PipelineWeight>,
    /// Where those are multiplied, and which is in which place.
    places: Option<(Places, [Option<u64>; 2])>,
    /// Copies of those that stay, and the number of the last.
    copies: Option<(Stream, u64)>,
    next: u64,
}

impl Weights {
    /// Says how many bytes of codes prepared from now on may stay on the device; none: all.
    pub(super) fn set_room(&self, room: Option<usize>) {
        locked(&self.0).room = room;
    }

    /// Bytes of codes that stay on the device.
    pub(super) fn held(&self) -> usize {
        locked(&self.0).held
    }

    /// Lets go of the page-locked memory of the last weight that stays, once it is known to be on the device.
    fn arrived(&self, number: u64) -> Result<()> {
        match &locked(&self.0).copies {
            // It waits for nothing: this is the last of the copies.
            Some((copies, last)) if *last == number => copies.synchronize(),
            _ => Ok(()),
        }
    }

    /// Queues what `launch` does with a weight that is not on the device, and behind it, in the other place, the copy of the one that is
    /// used next.
    fn through<R>(&self, id: u64, stream: &Stream, launch: impl FnOnce(&Tensor) -> Result<R>) -> Result<R> {
        let State { waiting, places, .. } = &mut *locked(&self.0);
        let (Some(weight), Some((places, there))) = (waiting.get(&id), places) else {
            return Err(AscendError::shape("a weight on its way to the device", "one that is alive", "none"));
        };
        places.settle()?;
        let place = match there.iter().position(|there| *there == Some(id)) {
            Some(place) => place,
            // Nobody foresaw it: the first one, or somebody uses them in another order.
            None => {
                there[0] = None;
                places.fill(0, &weight.codes)?;
                there[0] = Some(id);
                0
            }
        };
        let tensor = places.take(place, weight.form, stream)?;
        let done = launch(&tensor);
        // Also behind what a failed product may have queued.
        let marked = places.used(place, stream);
        let done = done?;
        marked?;
        let behind = waiting.range(id + 1..).next().or_else(|| waiting.iter().next());
        if let Some((&next, weight)) = behind
            && !there.contains(&Some(next))
        {
            there[1 - place] = None;
            places.fill(1 - place, &weight.codes)?;
            there[1 - place] = Some(next);
        }
        Ok(done)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Queues the copy of a weight that stays. The copy of the one before, which ran while this one was laid out, is waited for, so that no
    /// more than two of them are in page-locked memory.
    fn send(
        &mut self,
        device: &Device,
        codes: &[i8],
        form: CodeForm,
    ) -> Result<(Tensor, Option<(Event, u64)>)> {
        if !can_stream(device.cann()) {
            let mut laid = vec![0; form.bytes(codes)?];
            form.lay(codes, &mut laid)?;
            return Ok((form.tensor(&DeviceBuffer::from_slice(device, &laid)?)?, None));
        }
        let (number, host) = (self.number(), PipelineWeight::new(device, codes, form)?);
        let (copies, last) = match &mut self.copies {
            Some(copies) => copies,
            none => none.insert((Stream::new(device)?, 0)),
        };
        if copies.held() > 0 {
            copies.synchronize()?;
        }
        let memory = DeviceBuffer::new(device, host.codes.len())?;
        copies.upload(&host.codes, &memory)?;
        let event = copies.record()?;
        *last = number;
        Ok((form.tensor(&memory)?, Some((event, number))))
    }

    /// Keeps a weight in page-locked memory, and makes the places large enough for it.
    fn keep(&mut self, device: &Device, codes: &[i8], form: CodeForm) -> Result<u64> {
        let weight = PipelineWeight::new(device, codes, form)?;
        let bytes = weight.codes.len();
        if self.places.as_ref().is_none_or(|(places, _)| places.room() < bytes) {
            self.places = None;
            self.places = Some((Places::new(device, bytes)?, [None; 2]));
        }
        let id = self.number();
        self.waiting.insert(id, weight);
        Ok(id)
    }
}

/// A coded weight of a processor.
#[derive(Debug)]
pub(super) struct Weight {
    weights: Arc<Weights>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// On the device, or on its way there until what is here has passed.
    Stays { tensor: Tensor, bytes: usize, arrives: Mutex<Option<(Event, u64)>> },
    /// In page-locked memory, by its number.
    Comes(u64),
}

impl Weight {
    /// Row-major codes, laid out in a form and brought to where there is room.
    pub(super) fn new(shared: &Shared, codes: &[i8], form: CodeForm) -> Result<Self> {
        let (device, weights) = (&shared.device, Arc::clone(&shared.weights));
        let bytes = form.bytes(codes)?;
        let mut state = locked(&weights.0);
        let fits = state.room.is_none_or(|room| state.held + bytes <= room);
        let place = if fits || !can_stream(device.cann()) {
            let (tensor, arrives) = state.send(device, codes, form)?;
            state.held += bytes;
            Place::Stays { tensor, bytes, arrives: Mutex::new(arrives) }
        } else {
            Place::Comes(state.keep(device, codes, form)?)
        };
        drop(state);
        Ok(Self { weights, place })
    }

    /// Queues a product with the weight; `stream` waits until it is there.
    pub(super) fn run<R>(&self, stream: &Stream, launch: impl FnOnce(&Tensor) -> Result<R>) -> Result<R> {
        match &self.place {
            Place::Stays { tensor, arrives, .. } => {
                if let Some((event, _)) = &*locked(arrives) {
                    stream.wait(event)?;
                }
                launch(tensor)
            }
            Place::Comes(id) => self.weights.through(*id, stream, launch),
        }
    }

    /// Notes that a product was waited for: the weight is there.
    pub(super) fn done(&self) -> Result<()> {
        let Place::Stays { arrives, .. } = &self.place else { return Ok(()) };
        let arrived = locked(arrives).take();
        arrived.map_or(Ok(()), |(_, number)| self.weights.arrived(number))
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        let mut state = locked(&self.weights.0);
        match self.place {
            Place::Stays { bytes, .. } => state.held -= bytes,
            Place::Comes(id) => {
                state.waiting.remove(&id);
                if state.waiting.is_empty() {
                    state.places = None;
                }
            }
        }
    }
}

/// The form of a weight `[rows, columns]`.
pub(super) fn form(form: Form, rows: usize, columns: usize) -> CodeForm {
    CodeForm { form, rows, columns }
}
