//! Degree of parallelism, passed as an argument.

use std::fmt;
use std::num::NonZeroUsize;

/// How many threads a kernel may use. Always an argument, never a global, and never visible in a result: every
/// output element is computed by one fixed sequence of operations whatever the partition of the work.
///
/// Threads come from the rayon pool of the caller (`ThreadPool::install`, or the global pool outside one), so
/// the true concurrency is the smaller of this number and the size of that pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Par {
    /// Everything on the calling thread.
    Seq,
    /// At most this many tasks at a time.
    Threads(NonZeroUsize),
}

impl Par {
    /// `0` and `1` give [`Par::Seq`], anything else [`Par::Threads`].
    #[must_use]
    pub fn new(threads: usize) -> Self {
        match NonZeroUsize::new(threads) {
            Some(count) if count.get() > 1 => Self::Threads(count),
            _ => Self::Seq,
        }
    }

    /// The number of tasks that may run at a time, at least 1.
    #[must_use]
    pub fn threads(self) -> usize {
        match self {
            Self::Seq => 1,
            Self::Threads(count) => count.get(),
        }
    }
}

impl fmt::Display for Par {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} thread(s)", self.threads())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_one_are_sequential() {
        assert_eq!(Par::new(0), Par::Seq);
        assert_eq!(Par::new(1), Par::Seq);
        assert_eq!(Par::new(3).threads(), 3);
        assert_eq!(Par::new(3).to_string(), "3 thread(s)");
    }
}
