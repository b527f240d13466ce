//! Many requests at a time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Calls `f` with each item and its index, on `concurrency` threads (at least one), and returns the results in the items'
/// order.
///
/// # Errors
///
/// Once a call failed no further one begins; those that run are waited for. The error is that of the first item, in their
/// order, among those that failed.
///
/// ```
/// let squares = quant_client::for_each_concurrently(&[3, 4, 5], 2, |_, n| Ok::<i32, ()>(n * n));
/// assert_eq!(squares, Ok(vec![9, 16, 25]));
/// ```
pub fn for_each_concurrently<T: Sync, R: Send, E: Send>(
    items: &[T],
    concurrency: usize,
    f: impl Fn(usize, &T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return };
            let result = f(index, item);
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            // A call that panics holds no lock, and ends the scope with its panic.
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((index, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..concurrency.min(items.len()).max(1) {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn results_stand_in_the_items_order() {
        let items: Vec<u64> = (0..100).collect();
        for concurrency in [0, 1, 7, 1000] {
            let results = for_each_concurrently(&items, concurrency, |index, item| {
                // Later ones finish first.
                std::thread::sleep(Duration::from_micros(50 * (3 - item % 4)));
                Ok::<_, ()>((index as u64, 2 * item))
            });
            assert_eq!(results.unwrap(), (0..100).map(|i| (i, 2 * i)).collect::<Vec<_>>());
        }
        assert_eq!(for_each_concurrently(&[0; 0], 4, |_, _| Ok::<_, ()>(0)), Ok(vec![]));
    }

    #[test]
    fn the_first_error_ends_the_work() {
        let begun = AtomicUsize::new(0);
        let items: Vec<usize> = (0..1000).collect();
        let result = for_each_concurrently(&items, 4, |index, _| {
            begun.fetch_add(1, Ordering::Relaxed);
            if index == 10 || index == 11 { Err(index) } else { Ok(()) }
        });
        assert!(result == Err(10) || result == Err(11));
        assert!(begun.into_inner() < 1000);
        assert_eq!(for_each_concurrently(&items, 1, |i, _| if i > 4 { Err(i) } else { Ok(()) }), Err(5));
    }

    #[test]
    fn several_run_at_a_time() {
        // Each waits for the other: one thread alone would never return.
        let barrier = std::sync::Barrier::new(2);
        let result = for_each_concurrently(&[(), ()], 2, |_, ()| {
            barrier.wait();
            Ok::<_, ()>(())
        });
        assert_eq!(result, Ok(vec![(), ()]));
    }
}
