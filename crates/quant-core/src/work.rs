//! What work that takes long is told besides its numbers.

use crate::Par;
use std::fmt;

/// How many threads work may use, and whether it is still wanted.
///
/// Work of many pieces asks between them ([`Work::go_on`]) and ends early with [`Stopped`]; no result depends on when it asks.
///
/// ```
/// use quant_core::{Par, Stopped, Work};
/// use std::sync::atomic::{AtomicUsize, Ordering};
///
/// let squares = |numbers: &[u32], work: Work<'_>| -> Result<u32, Stopped> {
///     numbers.iter().map(|n| work.go_on().map(|()| n * n)).sum()
/// };
/// assert_eq!(squares(&[1, 2, 3], Par::Seq.into()), Ok(14));
/// let asked = AtomicUsize::new(0);
/// let second = || asked.fetch_add(1, Ordering::Relaxed) == 1;
/// assert_eq!(squares(&[1, 2, 3], Work::until(Par::Seq, &second)), Err(Stopped));
/// assert_eq!(asked.into_inner(), 2);
/// ```
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// Threads.
    pub par: Par,
    stop: Option<&'a (dyn Fn() -> bool + Sync)>,
}

impl<'a> Work<'a> {
    /// Work that ends when `stop` says so, which is asked on any thread.
    #[must_use]
    pub fn until(par: Par, stop: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self { par, stop: Some(stop) }
    }
    /// The same on other threads.
    #[must_use]
    pub fn on(self, par: Par) -> Self {
        Self { par, ..self }
    }
    /// Asks whether to go on.
    ///
    /// # Errors
    /// [`Stopped`] if the work is not wanted any more.
    pub fn go_on(&self) -> Result<(), Stopped> {
        if self.stop.is_some_and(|stop| stop()) { Err(Stopped) } else { Ok(()) }
    }
}

impl From<Par> for Work<'_> {
    /// Work that goes on to its end.
    fn from(par: Par) -> Self {
        Self { par, stop: None }
    }
}

impl fmt::Debug for Work<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("par", &self.par).finish_non_exhaustive()
    }
}

/// Work that was not wanted any more ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped before its end")]
pub struct Stopped;
