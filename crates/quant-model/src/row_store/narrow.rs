//! Rows in half their bytes: the upper halves of f32 that were rounded to bfloat16.

use super::spare::Spare;
use super::spilled::{Spilled, StoreError, check_memory};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use quant_kernels::{Element, Par, tasks, vectorized, views};
use std::ops::Range;
use std::path::Path;

/// `[rows, width]`, of which every so manyth row is there as it was too.
#[derive(Debug)]
pub(super) struct Narrow {
    width: usize,
    step: usize,
    exact: Array2<f32>,
    halves: Halves,
    par: Par,
}

#[derive(Debug)]
enum Halves {
    Memory(Array2<u16>),
    /// The file, and what is on its way there or from there.
    File(Spilled, Spare<u16>),
}

impl Narrow {
    pub(super) fn new(
        (rows, width): (usize, usize),
        step: usize,
        spill: Option<&Path>,
        par: Par,
    ) -> Result<Self, StoreError> {
        let halves = match spill {
            None => {
                check_memory::<u16>(rows, width)?;
                Halves::Memory(Array2::zeros((rows, width)))
            }
            Some(folder) => {
                let spilled = Spilled::new(folder, rows * width * size_of::<u16>(), par)?;
                Halves::File(spilled, Spare::default())
            }
        };
        let step = step.max(1);
        Ok(Self { width, step, exact: Array2::zeros((rows.div_ceil(step), width)), halves, par })
    }

    /// Frees what is only memory to be used again.
    pub(super) fn rest(&self) {
        if let Halves::File(_, spare) = &self.halves {
            spare.free();
        }
    }

    pub(super) fn is_spilled(&self) -> bool {
        matches!(self.halves, Halves::File(..))
    }

    pub(super) fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<(), StoreError> {
        let mut out = views::matrix_mut(out, range.len(), self.width);
        match &self.halves {
            Halves::Memory(halves) => self.widen(views::rows(halves.view(), range.clone()), out.view_mut()),
            Halves::File(spilled, spare) => {
                let mut halves = spare.take(range.len() * self.width);
                spilled.read(range.start * self.width, &mut halves)?;
                self.widen(views::matrix(&halves, range.len(), self.width), out.view_mut());
                spare.give_back(halves);
            }
        }
        for row in self.exact_of(&range) {
            out.row_mut(row - range.start).assign(&self.exact.row(row / self.step));
        }
        Ok(())
    }

    pub(super) fn write(&mut self, range: Range<usize>, rows: &[f32]) -> Result<(), StoreError> {
        let rows = views::matrix(rows, range.len(), self.width);
        for row in self.exact_of(&range) {
            self.exact.row_mut(row / self.step).assign(&rows.row(row - range.start));
        }
        match &mut self.halves {
            Halves::Memory(halves) => narrow(rows, views::rows_mut(halves, range), self.par),
            Halves::File(spilled, spare) => {
                let mut halves = spare.take(rows.len());
                narrow(rows, views::matrix_mut(&mut halves, range.len(), self.width), self.par);
                spilled.write(range.start * self.width, &halves)?;
                spare.give_back(halves);
            }
        }
        Ok(())
    }

    /// The rows of a range that are kept as they are.
    fn exact_of(&self, range: &Range<usize>) -> std::iter::StepBy<Range<usize>> {
        (range.start.next_multiple_of(self.step)..range.end).step_by(self.step)
    }

    fn widen(&self, halves: ArrayView2<'_, u16>, out: ArrayViewMut2<'_, f32>) {
        tasks::for_rows(out, self.par, |first, mut out| {
            let halves = views::rows(halves, first..first + out.nrows());
            if let (Some(out), Some(halves)) = (out.as_slice_mut(), halves.to_slice()) {
                vectorized(
                    #[inline(always)]
                    || {
                        for (x, &half) in out.iter_mut().zip(halves) {
                            *x = f32::from_bits(u32::from(half) << 16);
                        }
                    },
                );
            }
        });
    }
}

/// Rounds as the operands of products are rounded.
fn narrow(rows: ArrayView2<'_, f32>, halves: ArrayViewMut2<'_, u16>, par: Par) {
    tasks::for_rows(halves, par, |first, mut halves| {
        let rows = views::rows(rows, first..first + halves.nrows());
        if let (Some(halves), Some(rows)) = (halves.as_slice_mut(), rows.to_slice()) {
            vectorized(
                #[inline(always)]
                || {
                    for (half, &x) in halves.iter_mut().zip(rows) {
                        *half = (rounded(x).to_bits() >> 16) as u16;
                    }
                },
            );
        }
    });
}

#[inline(always)]
pub(super) fn rounded<T: Element>(x: T) -> T {
    x.round_to_bf16()
}
