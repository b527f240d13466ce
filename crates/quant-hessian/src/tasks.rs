//! Ordered work queues: at most `par.threads()` workers, each with its own scratch.

use std::sync::Mutex;

use quant_kernels::Par;

/// Runs `work` on every item, handing items out in order to at most `par.threads()` workers of the caller's rayon pool.
///
/// Every item is computed by the same code whatever the worker, so nothing but time depends on the thread count. After
/// the first error no further item starts; the error of the earliest item is returned, which is the same one on any
/// number of threads because all earlier items were handed out before it.
pub(crate) fn for_each<I, S, E>(
    items: I,
    par: Par,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, I::Item) -> Result<(), E> + Sync,
) -> Result<(), E>
where
    I: Iterator + Send,
    E: Send,
{
    struct Queue<I, E> {
        items: I,
        next: usize,
        error: Option<(usize, E)>,
    }
    let queue = Mutex::new(Queue { items, next: 0, error: None });
    // A worker that panicked poisons the lock; rayon re-raises that panic, so the others only have to finish.
    let lock = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let worker = || {
        let mut scratch = scratch();
        loop {
            let (index, item) = {
                let mut queue = lock();
                if queue.error.is_some() {
                    return;
                }
                let Some(item) = queue.items.next() else { return };
                queue.next += 1;
                (queue.next - 1, item)
            };
            if let Err(error) = work(&mut scratch, item) {
                let mut queue = lock();
                if queue.error.as_ref().is_none_or(|(earliest, _)| index < *earliest) {
                    queue.error = Some((index, error));
                }
                return;
            }
        }
    };
    match par {
        Par::Seq => worker(),
        Par::Threads(count) => rayon::scope(|scope| {
            for _ in 0..count.get() {
                scope.spawn(|_| worker());
            }
        }),
    }
    let queue = queue.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    queue.error.map_or(Ok(()), |(_, error)| Err(error))
}

/// [`for_each`] for work that cannot fail and needs no scratch.
pub(crate) fn run<I>(items: I, par: Par, work: impl Fn(I::Item) + Sync)
where
    I: Iterator + Send,
{
    let result: Result<(), std::convert::Infallible> = for_each(
        items,
        par,
        || (),
        |(), item| {
            work(item);
            Ok(())
        },
    );
    match result {
        Ok(()) => {}
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_once_and_the_earliest_error() {
        for threads in [1, 2, 5] {
            let mut seen = vec![0_u32; 100];
            run(seen.iter_mut(), Par::new(threads), |slot| *slot += 1);
            assert!(seen.iter().all(|&count| count == 1));
            let failed =
                for_each(0..1000, Par::new(threads), || (), |(), i| if i >= 17 { Err(i) } else { Ok(()) });
            assert_eq!(failed, Err(17));
        }
    }
}
