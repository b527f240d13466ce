//! Independent tasks on the caller's threads, with results that cannot depend on how many there are.

use ndarray::{ArrayViewMut2, Axis};
use quant_kernels::Par;
use std::sync::{Mutex, PoisonError};

/// Fewer rows than this are not worth another task.
const LEAST_ROWS: usize = 16;

/// Runs `work` once per task, taking tasks from the front of the list, on at most [`Par::threads`] workers that each
/// have their own scratch. A task owns everything it writes to, so who runs it, and when, changes nothing.
pub(crate) fn for_each<I: Send, S>(
    tasks: Vec<I>,
    par: Par,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, I) + Sync,
) {
    let workers = par.threads().min(tasks.len());
    if workers <= 1 {
        let mut own = scratch();
        tasks.into_iter().for_each(|task| work(&mut own, task));
        return;
    }
    let queue = Mutex::new(tasks.into_iter());
    let run = || {
        let mut own = scratch();
        loop {
            // The lock is held only for taking a task; an iterator of owned values cannot be left half-taken.
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            match next {
                Some(task) => work(&mut own, task),
                None => break,
            }
        }
    };
    rayon::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(|_| run());
        }
        run();
    });
}

/// Runs `work` on blocks of rows of `x`, with the index of each block's first row.
pub(crate) fn for_rows<T: Send>(
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
    let tasks = x.axis_chunks_iter_mut(Axis(0), block).enumerate().collect();
    for_each(tasks, par, || (), |(), (i, chunk)| work(i * block, chunk));
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn every_task_and_row_once() {
        for threads in [1, 2, 3, 8] {
            let mut seen = vec![0_usize; 37];
            let tasks = seen.iter_mut().enumerate().collect();
            for_each(tasks, Par::new(threads), || (), |(), (i, slot): (usize, &mut usize)| *slot += i + 1);
            assert!(seen.iter().enumerate().all(|(i, &s)| s == i + 1));
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
