//! A process with bounds on its time and its output.

use super::tree::resident;
use crate::error::SandboxError;
use rustix::process::{Pid, Signal, kill_process_group};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Time between two looks at what is held in memory. A process fills some tens of MiB in it.
const LOOK: Duration = Duration::from_millis(20);

/// How a process ended.
#[derive(Debug)]
pub(crate) enum End {
    /// By itself.
    Status(ExitStatus),
    /// Stopped for its time.
    Late,
    /// Stopped for its output.
    Capped,
    /// Stopped for its memory.
    Full,
}

/// What a process left.
#[derive(Debug)]
pub(crate) struct Executed {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) end: End,
}

enum Event {
    /// More than may be.
    Capped,
    /// An output is at its end.
    Closed,
}

/// Runs a command with `input` as its stdin. It is stopped, with its process group, behind `wall`, when its stdout has more than
/// `most` bytes, or when it and its descendants hold more than `memory` bytes; of stderr `most` are kept.
///
/// It returns when both outputs are closed: what still held them is gone.
pub(crate) fn execute(
    mut command: Command,
    input: &[&[u8]],
    wall: Duration,
    most: u64,
    memory: u64,
) -> Result<Executed, SandboxError> {
    let failed = |what| move |source| SandboxError::System { what, source };
    let deadline = Instant::now() + wall;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(failed("start the sandbox"))?;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(stderr)) = pipes else {
        stop(&child);
        return Err(failed("reach the sandbox")(io::Error::other("a pipe is missing")));
    };
    let (sender, events) = channel();
    let errors = sender.clone();
    std::thread::scope(|scope| {
        // A program that does not read its input to the end is none that failed.
        scope.spawn(move || input.iter().try_for_each(|piece| stdin.write_all(piece)).ok());
        let stdout = scope.spawn(move || collect(stdout, most, &sender, true));
        let stderr = scope.spawn(move || collect(stderr, most, &errors, false));
        let stopped = watch(&mut child, &events, deadline, memory);
        let status = child.wait().map_err(failed("wait for the sandbox"))?;
        // A thread that only collects bytes does not panic.
        let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
        Ok(Executed { stdout, stderr, end: stopped.unwrap_or(End::Status(status)) })
    })
}

/// Waits for the end of a process, or stops it and says why.
fn watch(child: &mut Child, events: &Receiver<Event>, deadline: Instant, memory: u64) -> Option<End> {
    let mut closed = 0;
    let why = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break End::Late;
        }
        // Behind the end of its output only the process itself is waited for.
        let event = if closed < 2 {
            events.recv_timeout(left.min(LOOK))
        } else {
            // Where its state cannot be had, waiting for it says why.
            match child.try_wait() {
                Ok(None) => std::thread::sleep(left.min(LOOK / 10)),
                _ => return None,
            }
            Err(RecvTimeoutError::Timeout)
        };
        match event {
            Ok(Event::Closed) => closed += 1,
            Ok(Event::Capped) => break End::Capped,
            Err(RecvTimeoutError::Disconnected) => closed = 2,
            Err(RecvTimeoutError::Timeout) if resident(child.id()) > memory => break End::Full,
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    stop(child);
    Some(why)
}

/// Kills the group: bubblewrap, and the first process of its namespace, with which the kernel ends all others there.
fn stop(child: &Child) {
    // It is not waited for yet, so its number is still its own. That it is gone already is no error.
    kill_process_group(Pid::from_child(child), Signal::KILL).ok();
}

/// Reads to the end and keeps the first bytes.
fn collect(mut pipe: impl Read, most: u64, events: &Sender<Event>, capped: bool) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 16 << 10]);
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                let room = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(kept.len());
                kept.extend_from_slice(&buffer[..count.min(room)]);
                if count > room && capped {
                    // The watcher may have stopped it already.
                    events.send(Event::Capped).ok();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    events.send(Event::Closed).ok();
    kept
}

/// Number of the signal that ended a process, by itself or as bubblewrap reports it.
pub(crate) fn signal_of(status: ExitStatus) -> Option<u8> {
    let reported = status.code().and_then(|code| u8::try_from(code - 128).ok()).filter(|&signal| signal > 0);
    status.signal().and_then(|signal| u8::try_from(signal).ok()).or(reported)
}

/// The last line that is not empty, or that there is none.
pub(crate) fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
    line.chars().take(300).collect()
}
