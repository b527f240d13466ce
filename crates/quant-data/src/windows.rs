//! The two ways a long token stream becomes sequences.

use crate::PyRandom;

/// `count` windows of `length` tokens at random places of one stream.
///
/// The sampling of `get_loaders` in the Quantized-Reasoning-Models study: seed once, then for every window
/// draw `i = randint(0, N - length - 1)` and take `[i, i + length)`. Windows may overlap. The last token of
/// the stream is never reached; that is the published rule.
///
/// A stream shorter than `length + 1` gives one window with all of it, an empty stream none.
pub fn random_windows(stream: &[u32], count: usize, length: usize, seed: u64) -> Vec<Vec<u32>> {
    let last_start = stream.len().checked_sub(length).and_then(|n| n.checked_sub(1));
    let Some(last_start) = last_start else {
        return whole(stream, length);
    };
    let mut random = PyRandom::seed(seed);
    (0..count)
        .filter_map(|_| random.randint(0, last_start as u64))
        .map(|start| stream[start as usize..start as usize + length].to_vec())
        .collect()
}

/// `floor(N / length)` windows from the start of the stream without overlap; the tail is dropped.
///
/// The WikiText-2 perplexity protocol. A stream shorter than `length` gives one window with all of it, an
/// empty stream (or a length of zero) none.
pub fn consecutive_windows(stream: &[u32], length: usize) -> Vec<Vec<u32>> {
    if length == 0 || stream.len() < length {
        return whole(stream, length);
    }
    stream.chunks_exact(length).map(<[u32]>::to_vec).collect()
}

fn whole(stream: &[u32], length: usize) -> Vec<Vec<u32>> {
    if stream.is_empty() || length == 0 { Vec::new() } else { vec![stream.to_vec()] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(n: usize) -> Vec<u32> {
        (0..n as u32).collect()
    }

    #[test]
    fn random_windows_start_where_cpython_draws_them() {
        // randint(0, 2497951) of seed 0 is the test vector; N - L - 1 = 2497951 with L = 4.
        let windows = random_windows(&stream(2_497_956), 4, 4, 0);
        let starts: Vec<u32> = windows.iter().map(|w| w[0]).collect();
        assert_eq!(starts, [1_615_835, 1_764_005, 169_803, 1_085_975]);
        assert_eq!(windows[2], [169_803, 169_804, 169_805, 169_806]);
    }

    #[test]
    fn short_streams_give_one_window() {
        assert_eq!(random_windows(&stream(5), 3, 5, 0), [stream(5)]);
        assert_eq!(random_windows(&stream(6), 2, 5, 0), [stream(5), stream(5)]);
        assert!(random_windows(&[], 3, 5, 0).is_empty());
        assert_eq!(consecutive_windows(&stream(4), 5), [stream(4)]);
        assert!(consecutive_windows(&[], 5).is_empty());
        assert!(consecutive_windows(&stream(4), 0).is_empty());
    }

    #[test]
    fn the_tail_is_dropped() {
        assert_eq!(consecutive_windows(&stream(7), 3), [vec![0, 1, 2], vec![3, 4, 5]]);
        assert_eq!(consecutive_windows(&stream(6), 3).len(), 2);
    }

    proptest! {
        #[test]
        fn random_windows_are_runs_of_the_stream(n in 0_usize..200, count in 0_usize..8, length in 1_usize..40, seed: u64) {
            let windows = random_windows(&stream(n), count, length, seed);
            if n > length {
                prop_assert_eq!(windows.len(), count);
            }
            for window in windows {
                prop_assert!(window.len() == length.min(n));
                prop_assert!(window.windows(2).all(|w| w[1] == w[0] + 1));
                prop_assert!((window[0] as usize) + window.len() <= n);
            }
        }

        #[test]
        fn consecutive_windows_cover_the_start(n in 0_usize..200, length in 1_usize..40) {
            let windows = consecutive_windows(&stream(n), length);
            let joined = windows.concat();
            prop_assert_eq!(&joined, &stream(joined.len()));
            prop_assert_eq!(joined.len(), if n < length { n } else { n / length * length });
        }
    }
}
