//! Several tensors on their way at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Tensors that are read at once on so many threads. Each holds buffers of its own and takes as long as its hash, which one thread makes
/// byte after byte while a few others read and convert: fewer threads than these have enough to do with one.
#[must_use]
pub fn tensors_at_once(threads: usize) -> usize {
    const THREADS: usize = 4;
    const MOST: usize = 4;
    (threads / THREADS).clamp(1, MOST)
}

/// What `work` makes of every item, [some](tensors_at_once) of them at once.
///
/// # Errors
/// That of the earliest item that has one: all before it are finished, and none is begun behind one that failed.
pub(crate) fn at_once<I: Sync, R: Send, E: Send>(
    items: &[I],
    work: impl Fn(&I) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    type Place<R, E> = Mutex<Option<Result<R, E>>>;
    let results: Vec<Place<R, E>> = items.iter().map(|_| Mutex::new(None)).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let run = || {
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let (Some(item), Some(place)) = (items.get(index), results.get(index)) else { break };
            let result = work(item);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        }
    };
    rayon::scope(|scope| {
        for _ in 1..tensors_at_once(rayon::current_num_threads()).min(items.len()) {
            scope.spawn(|_| run());
        }
        run();
    });
    results
        .into_iter()
        .filter_map(|place| place.into_inner().unwrap_or_else(PoisonError::into_inner))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_and_the_earliest_error_is_told() {
        for threads in [1, 2, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let items: Vec<usize> = (0..50).collect();
                let doubled = at_once(&items, |&i| Ok::<usize, usize>(2 * i)).unwrap();
                assert!(doubled.into_iter().enumerate().all(|(i, d)| d == 2 * i));
                let odd = |&i: &usize| if i >= 7 { Err(i) } else { Ok(i) };
                assert_eq!(at_once(&items, odd), Err(7));
                assert_eq!(at_once(&[], odd), Ok(Vec::new()));
            });
        }
    }

    #[test]
    fn as_many_as_said_are_on_their_way() {
        for threads in [1, 8, 20] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let work = |_: &u8| {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(2));
                now.fetch_sub(1, Ordering::SeqCst);
                Ok::<(), ()>(())
            };
            pool.install(|| at_once(&[0; 20], work)).unwrap();
            assert!(most.into_inner() <= tensors_at_once(threads));
        }
    }
}
