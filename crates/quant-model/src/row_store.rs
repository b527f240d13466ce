//! Activations of many tokens, in memory or in a file, as they are or rounded.

mod narrow;
mod spare;
mod spilled;

use narrow::Narrow;
use ndarray::{Array2, ArrayViewMut2, Axis, Slice};
use quant_kernels::{Par, views};
use spare::Spare;
pub use spare::StoredRows;
pub use spilled::StoreError;
use spilled::{Spilled, check_memory};
use std::ops::Range;
use std::path::Path;

/// `[tokens, features]` of f32, written and read by ranges of rows, which are in memory or in an unnamed file.
#[derive(Debug)]
pub struct RowStore {
    rows: usize,
    width: usize,
    backing: Backing,
    /// The rows that were read or worked on last, where they are elsewhere.
    spare: Spare<f32>,
}

#[derive(Debug)]
enum Backing {
    Memory(Array2<f32>),
    Elsewhere(Elsewhere),
}

/// Rows that are worked on in a copy.
#[derive(Debug)]
enum Elsewhere {
    File(Spilled),
    Rounded(Narrow),
}

impl Elsewhere {
    /// Rows `range` of `width` numbers, one after the other.
    fn read(&self, range: Range<usize>, width: usize, out: &mut [f32]) -> Result<(), StoreError> {
        match self {
            Self::File(spilled) => spilled.read(range.start * width, out),
            Self::Rounded(narrow) => narrow.read(range, out),
        }
    }

    fn write(&mut self, range: Range<usize>, width: usize, rows: &[f32]) -> Result<(), StoreError> {
        match self {
            Self::File(spilled) => spilled.write(range.start * width, rows),
            Self::Rounded(narrow) => narrow.write(range, rows),
        }
    }
}

impl RowStore {
    /// Zeros. `spill` names a folder to hold an unnamed file instead of memory, which `par` threads read and write.
    ///
    /// # Errors
    /// A file that cannot be made there; memory that the system has not.
    pub fn new(rows: usize, width: usize, spill: Option<&Path>, par: Par) -> Result<Self, StoreError> {
        let backing = match spill {
            None => {
                check_memory::<f32>(rows, width)?;
                Backing::Memory(Array2::zeros((rows, width)))
            }
            Some(folder) => {
                let spilled = Spilled::new(folder, rows * width * size_of::<f32>(), par)?;
                Backing::Elsewhere(Elsewhere::File(spilled))
            }
        };
        Ok(Self { rows, width, backing, spare: Spare::default() })
    }

    /// Zeros that take half the bytes: numbers are rounded as products in [`Compute::Bf16`](quant_kernels::Compute) round
    /// their operands, so that such a product of what is read has the bits of one of what was written. Rows `0`, `exact`,
    /// `2 · exact` and so on stay as they are, in memory, for who looks at some of the numbers themselves.
    ///
    /// ```
    /// use quant_model::{Par, RowStore, StoreError};
    ///
    /// let mut store = RowStore::rounded((4, 2), 3, None, Par::Seq)?;
    /// store.overwrite::<StoreError>(0..4, |mut rows| {
    ///     rows.fill(1.01);
    ///     Ok(())
    /// })?;
    /// assert_eq!(store.read(0..4)?.column(0).to_vec(), [1.01, 1.0078125, 1.0078125, 1.01]);
    /// # Ok::<(), StoreError>(())
    /// ```
    ///
    /// # Errors
    /// A file that cannot be made in `spill`.
    pub fn rounded(
        (rows, width): (usize, usize),
        exact: usize,
        spill: Option<&Path>,
        par: Par,
    ) -> Result<Self, StoreError> {
        let narrow = Narrow::new((rows, width), exact, spill, par)?;
        let backing = Backing::Elsewhere(Elsewhere::Rounded(narrow));
        Ok(Self { rows, width, backing, spare: Spare::default() })
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Whether they are in a file.
    #[must_use]
    pub fn is_spilled(&self) -> bool {
        match &self.backing {
            Backing::Memory(_) => false,
            Backing::Elsewhere(Elsewhere::File(_)) => true,
            Backing::Elsewhere(Elsewhere::Rounded(narrow)) => narrow.is_spilled(),
        }
    }

    /// Frees the rows that were read and worked on last, whose memory is otherwise used again for the next ones: for a store that
    /// has to wait beside many others. Where rows are in memory as they are, there are none.
    pub fn rest(&self) {
        self.spare.free();
        if let Backing::Elsewhere(Elsewhere::Rounded(narrow)) = &self.backing {
            narrow.rest();
        }
    }

    /// Rows `range`, borrowed from memory, or a copy of what is in a file or rounded.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(&self, range: Range<usize>) -> Result<StoredRows<'_>, StoreError> {
        match &self.backing {
            Backing::Memory(data) => Ok(views::rows(data.view(), range).into()),
            Backing::Elsewhere(elsewhere) => {
                let shape = (range.len(), self.width);
                let mut copy = self.spare.take(range.len() * self.width);
                elsewhere.read(range, self.width, &mut copy)?;
                Ok(StoredRows::copied(Array2::from_shape_vec(shape, copy).unwrap_or_default(), &self.spare))
            }
        }
    }

    /// Replaces rows `range` by what `f` writes into them; it finds old numbers there.
    ///
    /// # Errors
    /// A file that cannot be read or written, and those of `f`.
    pub fn overwrite<E: From<StoreError>>(
        &mut self,
        range: Range<usize>,
        f: impl FnOnce(ArrayViewMut2<'_, f32>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.work_on(range, false, f)
    }

    /// Changes rows `range` in place.
    ///
    /// # Errors
    /// A file that cannot be read or written, and those of `f`.
    pub fn modify<E: From<StoreError>>(
        &mut self,
        range: Range<usize>,
        f: impl FnOnce(ArrayViewMut2<'_, f32>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.work_on(range, true, f)
    }

    fn work_on<E: From<StoreError>>(
        &mut self,
        range: Range<usize>,
        read: bool,
        f: impl FnOnce(ArrayViewMut2<'_, f32>) -> Result<(), E>,
    ) -> Result<(), E> {
        debug_assert!(range.end <= self.rows, "rows outside the store");
        match &mut self.backing {
            Backing::Memory(data) => f(data.slice_axis_mut(Axis(0), Slice::from(range))),
            Backing::Elsewhere(elsewhere) => {
                let width = self.width;
                let mut rows = self.spare.take(range.len() * width);
                if read {
                    elsewhere.read(range.clone(), width, &mut rows)?;
                }
                f(views::matrix_mut(&mut rows, range.len(), width))?;
                elsewhere.write(range, width, &rows)?;
                self.spare.give_back(rows);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::ArrayView2;
    use quant_kernels::{Compute, gram_lower, linear};

    #[test]
    fn a_spilled_store_holds_what_memory_holds() {
        let folder = tempfile::tempdir().unwrap();
        let mut memory = RowStore::new(10, 3, None, Par::Seq).unwrap();
        let mut spilled = RowStore::new(10, 3, Some(folder.path()), Par::new(2)).unwrap();
        for store in [&mut memory, &mut spilled] {
            for start in [4, 0, 7] {
                let x = Array2::from_shape_fn((3, 3), |(i, j)| (start * 10 + i * 3 + j) as f32);
                let written = store.overwrite(start..start + 3, |mut rows| {
                    rows.assign(&x);
                    Ok::<(), StoreError>(())
                });
                written.unwrap();
            }
            let changed = store.modify(1..6, |mut rows| {
                rows += 0.5;
                Ok::<(), StoreError>(())
            });
            changed.unwrap();
            let failed = store.modify(0..2, |_| {
                Err(StoreError::File {
                    folder: folder.path().into(),
                    source: std::io::ErrorKind::Other.into(),
                })
            });
            assert!(failed.is_err());
            assert_eq!(store.read(1..2).unwrap()[(0, 0)], 3.5);
            store.rest();
        }
        assert_eq!(*memory.read(0..10).unwrap(), *spilled.read(0..10).unwrap());
        assert_eq!(*memory.read(5..6).unwrap(), *spilled.read(5..6).unwrap());
    }

    /// Ranges that are many pieces of a file, and no whole number of them.
    #[test]
    fn long_ranges_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (rows, width) = (2500, 300);
        let x = Array2::from_shape_fn((rows, width), |(i, j)| (i * width + j) as f32);
        for threads in [1, 3] {
            let par = Par::new(threads);
            let mut store = RowStore::new(rows, width, Some(folder.path()), par).unwrap();
            for range in [0..1700, 1700..rows] {
                let written = store.overwrite::<StoreError>(range.clone(), |mut out| {
                    out.assign(&views::rows(x.view(), range));
                    Ok(())
                });
                written.unwrap();
            }
            for range in [0..rows, 1..1400, 1400..2499] {
                assert_eq!(*store.read(range.clone()).unwrap(), views::rows(x.view(), range));
            }
            // Two copies at once have their own memory, and one that is given away is not used again.
            let (first, second) = (store.read(0..2).unwrap(), store.read(2..4).unwrap());
            assert_eq!(*first, views::rows(x.view(), 0..2));
            assert_eq!(*second, views::rows(x.view(), 2..4));
            let own = first.into_owned();
            drop(second);
            assert_eq!(store.read(5..6).unwrap()[(0, 0)], x[(5, 0)]);
            assert_eq!(own, views::rows(x.view(), 0..2));
        }
    }

    /// Against the rounding of the products, in memory and in a file, whatever the pieces and the threads.
    #[test]
    fn rounded_rows_are_what_products_see() {
        let folder = tempfile::tempdir().unwrap();
        let (rows, width, step) = (103, 37, 5);
        let mut special = [0.0, -0.0, 1e-40, -3e-39, 1.17e-38, f32::MAX, -65504.0, 1.0 + 0.5_f32.powi(8)]
            .into_iter()
            .cycle();
        let x = Array2::from_shape_fn((rows, width), |(i, j)| {
            if (i + j) % 7 == 0 {
                special.next().unwrap()
            } else {
                ((i * 31 + j * 17) as f32 * 0.37).sin() * 9.0
            }
        });
        let expected = Array2::from_shape_fn((rows, width), |(i, j)| {
            if i % step == 0 { x[(i, j)] } else { narrow::rounded(x[(i, j)]) }
        });
        let bits = |x: ArrayView2<'_, f32>| x.mapv(f32::to_bits);
        let weight = Array2::from_shape_fn((20, width), |(i, j)| ((i * 13 + j * 5) as f32 * 0.71).cos());
        let products = |x: ArrayView2<'_, f32>| {
            let (mut h, compute) = (Array2::zeros((width, width)), Compute::Bf16);
            gram_lower(h.view_mut(), false, 1.0, x, compute, Par::Seq);
            (bits(linear(x, weight.view(), None, compute, Par::Seq).view()), bits(h.view()))
        };
        let of_all = products(x.view());
        for spill in [None, Some(folder.path())] {
            for (threads, piece) in [(1, 103), (2, 50), (5, 7)] {
                let mut store = RowStore::rounded((rows, width), step, spill, Par::new(threads)).unwrap();
                assert_eq!(store.is_spilled(), spill.is_some());
                for start in (0..rows).step_by(piece) {
                    let range = start..(start + piece).min(rows);
                    let written = store.overwrite::<StoreError>(range.clone(), |mut out| {
                        out.assign(&views::rows(x.view(), range));
                        Ok(())
                    });
                    written.unwrap();
                }
                store.rest();
                assert_eq!(products(store.read(0..rows).unwrap().view()), of_all);
                assert_eq!(bits(store.read(0..rows).unwrap().view()), bits(expected.view()));
                assert_eq!(
                    bits(store.read(9..12).unwrap().view()),
                    bits(views::rows(expected.view(), 9..12))
                );
                // What is changed in place begins with what is there, and exact rows stay exact.
                let found = store.modify::<StoreError>(4..8, |mut out| {
                    assert_eq!(bits(out.view()), bits(views::rows(expected.view(), 4..8)));
                    out.fill(1.01);
                    Ok(())
                });
                found.unwrap();
                let changed = store.read(3..9).unwrap();
                assert_eq!(changed.column(0).to_vec()[1..5], [1.007_812_5, 1.01, 1.007_812_5, 1.007_812_5]);
                assert_eq!(bits(views::rows(changed.view(), 0..1)), bits(views::rows(expected.view(), 3..4)));
            }
        }
    }
}
