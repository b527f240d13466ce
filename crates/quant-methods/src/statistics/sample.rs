//! Tokens that are kept as they are.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, Slice};
use std::ops::Range;

/// How far sampled tokens stand apart; the first is always taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// As close as gives no more tokens than this.
    AtMost(usize),
    /// As far as gives no fewer tokens than this (every `⌊tokens / n⌋`-th, as published searches take them).
    AtLeast(usize),
}

impl Spacing {
    /// The distance, of so many tokens in all.
    #[must_use]
    pub fn step(self, tokens: usize) -> usize {
        match self {
            Self::AtMost(wanted) => tokens.div_ceil(wanted.max(1)).max(1),
            Self::AtLeast(wanted) => (tokens / wanted.max(1)).max(1),
        }
    }
    /// How many are taken of so many.
    #[must_use]
    pub fn count(self, tokens: usize) -> usize {
        tokens.div_ceil(self.step(tokens))
    }
}

/// Evenly spaced tokens of a stream, `[tokens, features]`.
#[derive(Clone, Debug)]
pub struct Sample {
    spacing: Spacing,
    step: usize,
    seen: usize,
    taken: usize,
    rows: Array2<f32>,
}

impl Sample {
    pub(super) fn new(spacing: Spacing, tokens: usize, width: usize) -> Self {
        let rows = Array2::zeros((spacing.count(tokens), width));
        Self { spacing, step: spacing.step(tokens), seen: 0, taken: 0, rows }
    }
    pub(super) fn spacing(&self) -> Spacing {
        self.spacing
    }
    pub(super) fn add(&mut self, x: ArrayView2<'_, f32>) {
        // The next token to take, counted from the first of these.
        let first = self.seen.next_multiple_of(self.step) - self.seen;
        for token in (first..x.nrows()).step_by(self.step) {
            if self.taken < self.rows.nrows() {
                self.rows.row_mut(self.taken).assign(&x.row(token));
                self.taken += 1;
            }
        }
        self.seen += x.nrows();
    }
    pub(super) fn divide(&mut self, factors: ArrayView1<'_, f32>) {
        self.rows.rows_mut().into_iter().for_each(|mut row| row /= &factors);
    }
    /// The tokens.
    #[must_use]
    pub fn view(&self) -> ArrayView2<'_, f32> {
        self.rows.view()
    }
    /// The tokens, taken out.
    #[must_use]
    pub fn into_rows(self) -> Array2<f32> {
        self.rows
    }
}

/// Tokens of one sequence that stay together, so that attention over a piece is enough to see more than a few keys.
const PIECE: usize = 128;

/// Beginnings of sequences, each of which attention can run alone.
#[derive(Clone, Debug)]
pub struct Sequences {
    limit: usize,
    /// Rows of the stream that are taken.
    pieces: Vec<Range<usize>>,
    seen: usize,
    starts: Vec<usize>,
    rows: Array2<f32>,
}

/// The rows that are taken of sequences with these first rows (and the number of rows at the end): evenly spaced sequences,
/// of each its beginning, in pieces as long as it takes.
fn pieces(starts: &[usize], limit: usize) -> Vec<Range<usize>> {
    let lengths = || starts.windows(2).map(|ends| ends[0]..ends[1]);
    let total = starts.last().copied().unwrap_or(0);
    let count = starts.len().saturating_sub(1);
    if total <= limit || count == 0 {
        return lengths().filter(|rows| !rows.is_empty()).collect();
    }
    let piece = limit.div_ceil(count).max(PIECE.min(limit));
    // Short sequences are taken whole, and more of them.
    let wanted = limit.div_ceil(piece.min(total.div_ceil(count))).clamp(1, count);
    let mut left = limit;
    let mut taken = Vec::new();
    for i in 0..wanted {
        let Some(rows) = lengths().nth(i * count / wanted) else { break };
        let length = rows.len().min(piece).min(left);
        left -= length;
        if length > 0 {
            taken.push(rows.start..rows.start + length);
        }
    }
    taken
}

impl Sequences {
    pub(super) fn new(limit: usize, starts: &[usize], width: usize) -> Self {
        let pieces = pieces(starts, limit);
        let mut at = vec![0];
        at.extend(pieces.iter().scan(0, |end, piece| {
            *end += piece.len();
            Some(*end)
        }));
        let rows = Array2::zeros((at.last().copied().unwrap_or(0), width));
        Self { limit, pieces, seen: 0, starts: at, rows }
    }
    /// Tokens that are taken of sequences with these first rows.
    pub(super) fn count(limit: usize, starts: &[usize]) -> usize {
        pieces(starts, limit).iter().map(Range::len).sum()
    }
    pub(super) fn limit(&self) -> usize {
        self.limit
    }
    pub(super) fn add(&mut self, x: ArrayView2<'_, f32>) {
        let here = self.seen..self.seen + x.nrows();
        for (piece, &to) in self.pieces.iter().zip(&self.starts) {
            let shared = piece.start.max(here.start)..piece.end.min(here.end);
            if shared.start >= shared.end {
                continue;
            }
            let from = Slice::from(shared.start - here.start..shared.end - here.start);
            let first = to + shared.start - piece.start;
            let to = Slice::from(first..first + shared.len());
            self.rows.slice_axis_mut(Axis(0), to).assign(&x.slice_axis(Axis(0), from));
        }
        self.seen = here.end;
    }
    pub(super) fn divide(&mut self, factors: ArrayView1<'_, f32>) {
        self.rows.rows_mut().into_iter().for_each(|mut row| row /= &factors);
    }
    /// The tokens, `[tokens, features]`, one piece after the other.
    #[must_use]
    pub fn view(&self) -> ArrayView2<'_, f32> {
        self.rows.view()
    }
    /// First row of every piece, and the number of rows at the end.
    #[must_use]
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spacings_are_what_they_say() {
        for tokens in [1, 2, 100, 511, 512, 513, 1023, 1024, 8192] {
            for wanted in [1, 7, 128, 512, usize::MAX] {
                let most = Spacing::AtMost(wanted).count(tokens);
                assert!(most <= wanted && most >= tokens.min(wanted).div_ceil(2), "{tokens} {wanted} {most}");
                let least = Spacing::AtLeast(wanted).count(tokens);
                assert!(least >= tokens.min(wanted), "{tokens} {wanted} {least}");
            }
            assert_eq!(Spacing::AtMost(usize::MAX).count(tokens), tokens);
        }
    }

    #[test]
    fn a_sample_does_not_depend_on_batches() {
        let x = Array2::from_shape_fn((101, 3), |(t, j)| (t * 3 + j) as f32);
        for spacing in [Spacing::AtMost(10), Spacing::AtLeast(10), Spacing::AtMost(1000)] {
            let gather = |step: usize| {
                let mut sample = Sample::new(spacing, 101, 3);
                x.axis_chunks_iter(Axis(0), step).for_each(|part| sample.add(part));
                sample.rows
            };
            let whole = gather(101);
            assert_eq!(whole.nrows(), spacing.count(101));
            for (i, row) in whole.rows().into_iter().enumerate() {
                assert_eq!(row, x.row(i * spacing.step(101)));
            }
            for step in [1, 3, 7, 50] {
                assert_eq!(gather(step), whole);
            }
        }
    }

    #[test]
    fn sequences_are_beginnings_of_evenly_spaced_ones() {
        let starts: Vec<usize> = (0..=32).map(|i| i * 256).collect();
        assert_eq!(pieces(&starts, 512), [0..128, 2048..2176, 4096..4224, 6144..6272]);
        assert_eq!(pieces(&starts, usize::MAX).len(), 32);
        let one = pieces(&[0, 1000], 512);
        assert_eq!((one.len(), one[0].clone()), (1, 0..512));
        assert_eq!(pieces(&[0, 5, 10, 15], 8), [0..5, 5..8]);
        assert_eq!(pieces(&[0], 8), Vec::<Range<usize>>::new());
        let x = Array2::from_shape_fn((8192, 2), |(t, j)| (t * 2 + j) as f32);
        let gather = |step: usize| {
            let mut kept = Sequences::new(512, &starts, 2);
            x.axis_chunks_iter(Axis(0), step).for_each(|part| kept.add(part));
            kept
        };
        let whole = gather(8192);
        assert_eq!(whole.starts(), [0, 128, 256, 384, 512]);
        assert_eq!(whole.view().row(128), x.row(2048));
        for step in [100, 256, 1024] {
            assert_eq!(gather(step).rows, whole.rows);
        }
    }
}
