//! Independent tasks on the caller's threads, with results that cannot depend on how many there are.
//!
//! A task owns everything it writes to and is computed by the same code whoever takes it, so that the number of threads
//! changes nothing but the time. Tasks are taken from the front, in order, one at a time: a slow one delays nobody, and the
//! longest belong first. At most [`Par::threads`] workers of the caller's rayon pool take them, the caller among them; what
//! a worker keeps from task to task, its scratch, is made when it takes its first.
//!
//! Items are any iterator, also one that is made of borrowed parts of what is written. Taking the next one happens under a
//! lock, so it should cost nothing beside the task itself.
//!
//! ```
//! use quant_kernels::{Par, tasks};
//!
//! let mut squares = vec![0; 100];
//! tasks::for_each(squares.iter_mut().enumerate(), Par::new(4), |(i, square)| *square = i * i);
//! assert_eq!(squares[99], 99 * 99);
//! // Results come in the order of the tasks.
//! let sums = tasks::map(squares.chunks(10), Par::new(4), |part| part.iter().sum::<usize>());
//! assert_eq!(sums[0], 285);
//! // The first refusal of a run on one thread is that of a run on many.
//! let small = |&square: &usize| if square < 50 { Ok(()) } else { Err(square) };
//! assert_eq!(tasks::try_for_each(&squares, Par::new(4), small), Err(64));
//! ```

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use ndarray::{ArrayViewMut2, Axis};

use crate::Par;

/// Fewer rows than this are not worth another task.
const LEAST_ROWS: usize = 16;

/// Runs `work` on every item.
pub fn for_each<I>(items: I, par: Par, work: impl Fn(I::Item) + Sync)
where
    I: IntoIterator<IntoIter: Send>,
{
    for_each_with(items, par, || (), |(), item| work(item));
}

/// [`for_each`] with what `scratch` made for the worker.
pub fn for_each_with<I, S>(
    items: I,
    par: Par,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, I::Item) + Sync,
) where
    I: IntoIterator<IntoIter: Send>,
{
    let done = try_for_each_with(items, par, scratch, |scratch, item| {
        work(scratch, item);
        Ok::<(), Infallible>(())
    });
    match done {
        Ok(()) => {}
        Err(never) => match never {},
    }
}

/// What `work` makes of every item, in the order of the items.
pub fn map<I, R>(items: I, par: Par, work: impl Fn(I::Item) -> R + Sync) -> Vec<R>
where
    I: IntoIterator<IntoIter: ExactSizeIterator + Send, Item: Send>,
    R: Send,
{
    map_with(items, par, || (), |(), item| work(item))
}

/// [`map`] with what `scratch` made for the worker.
pub fn map_with<I, S, R>(
    items: I,
    par: Par,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, I::Item) -> R + Sync,
) -> Vec<R>
where
    I: IntoIterator<IntoIter: ExactSizeIterator + Send, Item: Send>,
    R: Send,
{
    let items = items.into_iter();
    let mut results: Vec<Option<R>> = (0..items.len()).map(|_| None).collect();
    for_each_with(items.zip(&mut results), par, scratch, |scratch, (item, result)| {
        *result = Some(work(scratch, item));
    });
    results.into_iter().flatten().collect()
}

/// Runs `work` on every item until one fails.
///
/// # Errors
/// That of the earliest item that failed, which is the same one on any number of threads: all items before it had been
/// taken, and were finished. After the first error no further item is taken.
pub fn try_for_each<I, E>(items: I, par: Par, work: impl Fn(I::Item) -> Result<(), E> + Sync) -> Result<(), E>
where
    I: IntoIterator<IntoIter: Send>,
    E: Send,
{
    try_for_each_with(items, par, || (), |(), item| work(item))
}

/// [`try_for_each`] with what `scratch` made for the worker.
///
/// # Errors
/// As [`try_for_each`].
pub fn try_for_each_with<I, S, E>(
    items: I,
    par: Par,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, I::Item) -> Result<(), E> + Sync,
) -> Result<(), E>
where
    I: IntoIterator<IntoIter: Send>,
    E: Send,
{
    let mut items = items.into_iter();
    let workers = par.threads().min(items.size_hint().1.unwrap_or(usize::MAX));
    if workers <= 1 {
        let mut own = None;
        return items.try_for_each(|item| work(own.get_or_insert_with(&scratch), item));
    }
    struct Queue<I, E> {
        items: I,
        next: usize,
        error: Option<(usize, E)>,
    }
    let queue = Mutex::new(Queue { items, next: 0, error: None });
    // A task that panics does not hold the lock, and its panic is raised again when all workers are done.
    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let take = || {
        let mut queue = lock();
        if queue.error.is_some() {
            return None;
        }
        let item = queue.items.next()?;
        queue.next += 1;
        Some((queue.next - 1, item))
    };
    on_workers(workers, || {
        let Some(mut taken) = take() else { return };
        let mut own = scratch();
        loop {
            let (index, item) = taken;
            if let Err(error) = work(&mut own, item) {
                let mut queue = lock();
                if queue.error.as_ref().is_none_or(|(earliest, _)| index < *earliest) {
                    queue.error = Some((index, error));
                }
                return;
            }
            let Some(next) = take() else { return };
            taken = next;
        }
    });
    let queue = queue.into_inner().unwrap_or_else(PoisonError::into_inner);
    queue.error.map_or(Ok(()), |(_, error)| Err(error))
}

/// Runs `work` on blocks of rows of `x`, with the index of each block's first row: one block for each thread, where that
/// leaves enough rows.
///
/// Where the blocks end depends on [`Par`], so a row must not depend on the others of its block.
pub fn for_rows<T: Send>(
    mut x: ArrayViewMut2<'_, T>,
    par: Par,
    work: impl Fn(usize, ArrayViewMut2<'_, T>) + Sync,
) {
    let rows = x.nrows();
    let block = rows.div_ceil(par.threads()).max(LEAST_ROWS);
    if rows <= block {
        if rows > 0 {
            work(0, x);
        }
        return;
    }
    for_each(x.axis_chunks_iter_mut(Axis(0), block).enumerate(), par, |(i, rows)| work(i * block, rows));
}

/// Runs `task(0)`, ..., `task(count - 1)`, at most `par.threads()` at a time. Tasks are handed out one by one, so a
/// slow thread delays nobody: by a counter, since the tasks of a product are short and many for the lock of a queue.
pub(crate) fn for_indices(par: Par, count: usize, task: impl Fn(usize) + Sync) {
    let workers = par.threads().min(count);
    if workers <= 1 {
        (0..count).for_each(task);
        return;
    }
    let next = AtomicUsize::new(0);
    on_workers(workers, || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            task(index);
        }
    });
}

/// Runs `work` that many times at once, in the caller and in other threads of its rayon pool.
pub(crate) fn on_workers(count: usize, work: impl Fn() + Sync) {
    rayon::scope(|scope| {
        for _ in 1..count {
            scope.spawn(|_| work());
        }
        work();
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn every_item_once_and_the_earliest_error() {
        for threads in [1, 2, 5] {
            let par = Par::new(threads);
            let mut seen = vec![0_u32; 100];
            for_each(&mut seen, par, |slot| *slot += 1);
            assert!(seen.iter().all(|&count| count == 1));
            let failed = try_for_each(0..1000, par, |i| if i >= 17 { Err(i) } else { Ok(()) });
            assert_eq!(failed, Err(17));
            let last = try_for_each(0..1000, par, |i| if i == 999 { Err(i) } else { Ok(()) });
            assert_eq!(last, Err(999));
            assert_eq!(try_for_each(0..1000, par, |_| Ok::<(), ()>(())), Ok(()));
        }
    }

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let expected: Vec<usize> = (0..37).map(|i| i * i).collect();
        for threads in [1, 2, 3, 8] {
            assert_eq!(map(0..37, Par::new(threads), |i| i * i), expected);
        }
        assert!(map(0..0, Par::new(3), |i: usize| i).is_empty());
    }

    /// No worker makes a scratch and finds nothing to do with it.
    #[test]
    fn scratch_is_made_for_workers_with_a_task() {
        for (items, threads) in [(0, 1), (0, 4), (1, 4), (3, 2), (40, 3)] {
            // With an iterator that knows its length, and with one that does not.
            for unsure in [false, true] {
                let (made, kept) = (AtomicUsize::new(0), AtomicUsize::new(0));
                let scratch = || {
                    made.fetch_add(1, Ordering::Relaxed);
                    0_usize
                };
                let work = |count: &mut usize, _: usize| {
                    *count += 1;
                    kept.fetch_add(usize::from(*count == 1), Ordering::Relaxed);
                };
                let par = Par::new(threads);
                if unsure {
                    for_each_with((0..items).filter(|_| true), par, scratch, work);
                } else {
                    for_each_with(0..items, par, scratch, work);
                }
                let (made, kept) = (made.into_inner(), kept.into_inner());
                assert_eq!(made, kept, "{items} items, {threads} threads");
                assert!(made <= items.min(threads), "{made} for {items} items, {threads} threads");
            }
        }
    }

    #[test]
    fn every_row_once_with_its_index() {
        for threads in [1, 2, 3, 8] {
            for rows in [0, 1, 15, 16, 17, 100] {
                let mut x = Array2::<usize>::zeros((rows, 2));
                for_rows(x.view_mut(), Par::new(threads), |first, mut block| {
                    for (i, mut row) in block.rows_mut().into_iter().enumerate() {
                        row += first + i + 1;
                    }
                });
                assert!(x.rows().into_iter().enumerate().all(|(i, r)| r.iter().all(|&v| v == i + 1)));
            }
        }
    }
}
