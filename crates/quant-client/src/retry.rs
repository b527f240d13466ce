//! Which failures are tried again, and when.

use crate::error::ClientError;
use crate::options::ServerOptions;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a wait looks whether it is stopped.
const LOOK: Duration = Duration::from_millis(50);

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The next attempt may succeed; the server may have said after how long.
    Passing(ClientError, Option<Duration>),
    /// It will not.
    Final(ClientError),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Final(error)
    }
}

/// Calls `attempt` until it succeeds, fails for good, or was called `retries + 1` times. `body` keys the jitter: the same
/// request waits for the same times, two requests that failed together do not come back together. None once it is stopped.
pub(crate) fn with_retries<T>(
    options: &ServerOptions,
    body: &[u8],
    stopped: &AtomicBool,
    mut attempt: impl FnMut(u32) -> Result<T, Failure>,
) -> Option<Result<T, ClientError>> {
    let mut sent = 0;
    loop {
        if stopped.load(Ordering::Relaxed) {
            return None;
        }
        let failure = match attempt(sent) {
            Ok(value) => return Some(Ok(value)),
            Err(failure) => failure,
        };
        sent += 1;
        let (error, asked) = match failure {
            Failure::Final(error) => return Some(Err(error.after(sent))),
            Failure::Passing(error, asked) => (error.after(sent), asked),
        };
        if sent > options.retries {
            return Some(Err(error));
        }
        match wait(options, body, sent, asked) {
            Ok(time) => sleep(time, stopped),
            Err(too_long) => return Some(Err(with_advice(error, too_long))),
        }
    }
}

/// Waits, unless it is stopped meanwhile.
fn sleep(time: Duration, stopped: &AtomicBool) {
    let until = Instant::now() + time;
    while !stopped.load(Ordering::Relaxed) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(LOOK));
    }
}

/// The time before attempt number `sent`, counted from 0, or what the server asks for if that is too long.
fn wait(
    options: &ServerOptions,
    body: &[u8],
    sent: u32,
    asked: Option<Duration>,
) -> Result<Duration, Duration> {
    let doubled = options.backoff.saturating_mul(1_u32.checked_shl(sent - 1).unwrap_or(u32::MAX));
    let bounded = doubled.min(options.most_backoff);
    // Between half and all of it.
    let own = bounded / 2 + (bounded / 2).mul_f64(fraction(body, sent));
    match asked {
        Some(asked) if asked > options.most_backoff => Err(asked),
        Some(asked) => Ok(asked.max(own)),
        None => Ok(own),
    }
}

/// A number in `[0, 1)` from the request and the number of the attempt: FNV-1a of the bytes, finished by SplitMix64.
fn fraction(body: &[u8], sent: u32) -> f64 {
    let bytes = body.iter().copied().chain(sent.to_le_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let z = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // The upper 53 bits fit a double exactly.
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

fn with_advice(error: ClientError, asked: Duration) -> ClientError {
    match error {
        ClientError::Status { request, status, attempts, body, .. } => {
            let advice =
                format!("it asks to wait {} seconds, which is too long: ask again then", asked.as_secs());
            ClientError::Status { request, status, attempts, body, advice }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ServerOptions {
        ServerOptions { most_backoff: Duration::from_secs(3), ..ServerOptions::new("http://h") }
    }

    #[test]
    fn waits_grow_within_their_bounds_and_repeat() {
        for body in [b"a".as_slice(), b"b", b""] {
            for (sent, full) in [(1, 0.5), (2, 1.0), (3, 2.0), (4, 3.0), (40, 3.0)] {
                let time = wait(&options(), body, sent, None).unwrap();
                assert!((full / 2.0..=full).contains(&time.as_secs_f64()), "{sent}: {time:?}");
                assert_eq!(wait(&options(), body, sent, None), Ok(time));
            }
        }
        assert_ne!(wait(&options(), b"a", 1, None), wait(&options(), b"b", 1, None));
        assert_ne!(fraction(b"a", 1), fraction(b"a", 2));
    }

    #[test]
    fn the_server_is_heard_up_to_a_bound() {
        let seconds = Duration::from_secs;
        assert_eq!(wait(&options(), b"a", 1, Some(seconds(2))), Ok(seconds(2)));
        // Never before one's own time.
        assert!(wait(&options(), b"a", 1, Some(seconds(0))).unwrap() >= Duration::from_millis(250));
        assert_eq!(wait(&options(), b"a", 1, Some(seconds(4))), Err(seconds(4)));
    }
}
