//! Functions that only the simulator has.

use std::ffi::c_char;

use super::string;
use crate::control::{SWITCHES, Switch};
use crate::memory::Place;
use crate::world::{Handle, forget, world};

#[unsafe(no_mangle)]
extern "C" fn ascendSimSet(switch: i32, value: i64) {
    if let Some(slot) = usize::try_from(switch).ok().filter(|&at| at < SWITCHES) {
        let mut world = world();
        world.switches[slot] = value;
        world.memory.saturates = world.switch(Switch::Saturation) != 0;
    }
}

#[unsafe(no_mangle)]
extern "C" fn ascendSimSetMemory(bytes: usize) {
    world().memory.capacity = bytes;
}

#[unsafe(no_mangle)]
extern "C" fn ascendSimCount(kind: i32) -> u64 {
    const HANDLES: [Handle; 7] = [
        Handle::Context,
        Handle::Stream,
        Handle::Event,
        Handle::Tensor,
        Handle::IntArray,
        Handle::TensorList,
        Handle::Executor,
    ];
    let world = world();
    let Ok(kind) = usize::try_from(kind) else { return 0 };
    if let Some(&handle) = HANDLES.get(kind) {
        return world.live(handle) as u64;
    }
    match kind {
        7 => u64::from(world.devices.values().sum::<u32>()),
        8 => world.memory.used(Place::Device) as u64,
        9 => world.memory.used(Place::Host) as u64,
        10 => u64::from(world.initialised),
        11 => world.memory.peak as u64,
        12 => world.streams.dropped,
        13 => world.calls.len() as u64,
        14 => world.streams.trace.len() as u64,
        15 => world.reports.len() as u64,
        _ => 0,
    }
}

#[unsafe(no_mangle)]
extern "C" fn ascendSimFailCall(number: u64) {
    let mut world = world();
    world.fail_at = number;
    world.calls.clear();
}

/// # Safety
/// `name` ends with a zero byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn ascendSimFailNext(name: *const c_char, code: i32) {
    // SAFETY: the caller's promise.
    world().fail_name = unsafe { string(name) }.map(|name| (name, code));
}

#[unsafe(no_mangle)]
extern "C" fn ascendSimKeepReports() {
    world().keep_reports = true;
}

#[unsafe(no_mangle)]
extern "C" fn ascendSimForget() {
    forget();
}

#[unsafe(no_mangle)]
extern "C" fn ascendSimClearTrace() {
    world().streams.trace.clear();
}

/// Copies a text and its zero byte into a caller's buffer, cut to fit.
///
/// # Safety
/// `into` has room for `room` bytes.
unsafe fn answer(text: &str, into: *mut c_char, room: usize) {
    let bytes = text.len().min(room.saturating_sub(1));
    if room > 0 {
        // SAFETY: at most `room` bytes with the zero byte, by the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), into.cast::<u8>(), bytes);
            *into.add(bytes) = 0;
        }
    }
}

/// # Safety
/// As [`answer`].
#[unsafe(no_mangle)]
unsafe extern "C" fn ascendSimCallName(number: u64, into: *mut c_char, room: usize) {
    let at = usize::try_from(number).unwrap_or(0).wrapping_sub(1);
    let name = world().calls.get(at).copied().unwrap_or_default();
    // SAFETY: the caller's promise.
    unsafe { answer(name, into, room) };
}

/// # Safety
/// As [`answer`].
#[unsafe(no_mangle)]
unsafe extern "C" fn ascendSimReport(at: u64, into: *mut c_char, room: usize) {
    let text = usize::try_from(at).ok().and_then(|at| world().reports.get(at).cloned()).unwrap_or_default();
    // SAFETY: the caller's promise.
    unsafe { answer(&text, into, room) };
}

/// # Safety
/// As [`answer`].
#[unsafe(no_mangle)]
unsafe extern "C" fn ascendSimTrace(at: u64, into: *mut c_char, room: usize) {
    let step = usize::try_from(at).ok().and_then(|at| world().streams.trace.get(at).cloned());
    let list = |numbers: &[usize]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let text = step.map_or_else(String::new, |step| {
        let (reads, writes, after) = (list(&step.reads), list(&step.writes), list(&step.after));
        format!("{}|{}|{reads}|{writes}|{after}", step.name, step.stream)
    });
    // SAFETY: the caller's promise.
    unsafe { answer(&text, into, room) };
}
