//! Levels of a weight packed bit by bit, or its bf16 numbers, in the order in which products read them.
//!
//! A panel is [`LANES`] rows of the weight (output features) side by side. It is a run of words: word `w` of a row holds its
//! levels from column `w * per_word` on, eight of 4 bits or four of 8 or two numbers of 16, the first one lowest, and the words
//! `w` of all rows of a panel are adjacent.

use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{Array2, ArrayView1};
use quant_core::{Groups, QuantizedMatrix};

use crate::{Par, tasks};

/// Rows of a panel: two AVX-512 registers of f32.
pub(crate) const LANES: usize = 32;

/// Something of every row of a panel, aligned to a cache line.
#[repr(align(64))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<T>(pub(crate) [T; LANES]);

/// Levels, scales and zero levels of a weight `[out, in]` in panels; of bf16 numbers there are no scales and zeros. Rows that do
/// not exist have levels, scales and zeros of 0.
#[derive(Clone, Debug)]
pub(crate) struct LevelPanels {
    outputs: usize,
    inputs: usize,
    bits: usize,
    /// Words of a panel, panel after panel.
    words: Vec<Row<u32>>,
    /// By panel and group.
    scales: Vec<Row<f32>>,
    zeros: Vec<Row<f32>>,
    groups: usize,
    columns: Columns,
}

/// The groups of the columns.
#[derive(Clone, Debug)]
enum Columns {
    /// Runs of this many columns, the last one perhaps shorter.
    Runs(usize),
    /// The group of every column.
    Each(Vec<u32>),
}

impl LevelPanels {
    /// Packs the levels of a matrix as 4 bits where they fit, as 8 otherwise.
    pub(crate) fn new(matrix: &QuantizedMatrix, par: Par) -> Self {
        let inputs = matrix.dim().1;
        let columns = match matrix.groups() {
            Groups::Channel | Groups::Size(_) => Columns::Runs(matrix.groups().size(inputs)),
            Groups::Index { of_column, .. } => Columns::Each(of_column.clone()),
        };
        Self::pack(matrix, inputs, columns, par, &|row, place| row[place])
    }

    /// Packs the columns of a matrix in this order, with levels of 0 where it names none. `groups` are those of the places.
    pub(crate) fn in_order(
        matrix: &QuantizedMatrix,
        order: &[Option<u32>],
        groups: Vec<u32>,
        par: Par,
    ) -> Self {
        Self::pack(matrix, order.len(), Columns::Each(groups), par, &|row, place| {
            order[place].map_or(0, |column| row[column as usize])
        })
    }

    /// Packs the weight `(out, in)` whose row `i` is what `fill(i, row)` writes into `row` `[in]`; none if a number is not one of
    /// bf16.
    pub(crate) fn of_bf16(
        (outputs, inputs): (usize, usize),
        par: Par,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Option<Self> {
        let bits = 16;
        let (panels, panel_words) = (outputs.div_ceil(LANES), inputs.div_ceil(2));
        let mut words = vec![Row([0; LANES]); panels * panel_words];
        let fits = AtomicBool::new(true);
        let chunks = words.chunks_mut(panel_words.max(1)).enumerate();
        tasks::for_each(chunks, par, |(panel, words)| {
            let first = panel * LANES;
            let mut row = vec![0.0_f32; inputs];
            for lane in 0..LANES.min(outputs - first) {
                if !fits.load(Ordering::Relaxed) {
                    return;
                }
                fill(first + lane, &mut row);
                let mut rest = 0;
                for (word, pair) in words.iter_mut().zip(row.chunks(2)) {
                    let (low, high) = (pair[0].to_bits(), pair.get(1).map_or(0, |high| high.to_bits()));
                    rest |= (low | high) << 16;
                    word.0[lane] = low >> 16 | high & 0xFFFF_0000;
                }
                if rest != 0 {
                    fits.store(false, Ordering::Relaxed);
                }
            }
        });
        let (scales, zeros, columns) = (Vec::new(), Vec::new(), Columns::Runs(inputs.max(1)));
        fits.into_inner().then_some(Self { outputs, inputs, bits, words, scales, zeros, groups: 0, columns })
    }

    fn pack(
        matrix: &QuantizedMatrix,
        inputs: usize,
        columns: Columns,
        par: Par,
        level: &(dyn Fn(ArrayView1<'_, u8>, usize) -> u8 + Sync),
    ) -> Self {
        let outputs = matrix.dim().0;
        let bits = if matrix.bits().get() <= 4 { 4 } else { 8 };
        let groups = matrix.scales().ncols();
        let panels = outputs.div_ceil(LANES);
        let per_word = 32 / bits;
        let panel_words = inputs.div_ceil(per_word);
        let mut words = vec![Row([0; LANES]); panels * panel_words];
        let chunks = words.chunks_mut(panel_words.max(1)).enumerate();
        tasks::for_each(chunks, par, |(panel, words)| {
            let first = panel * LANES;
            for lane in 0..LANES.min(outputs - first) {
                let row = matrix.levels().row(first + lane);
                for place in 0..inputs {
                    let shift = place % per_word * bits;
                    words[place / per_word].0[lane] |= u32::from(level(row, place)) << shift;
                }
            }
        });
        let by_panel = |values: &Array2<f32>| {
            let mut rows = vec![Row([0.0; LANES]); panels * groups];
            for (output, values) in values.rows().into_iter().enumerate() {
                for (group, &value) in values.into_iter().enumerate() {
                    rows[output / LANES * groups + group].0[output % LANES] = value;
                }
            }
            rows
        };
        let (scales, zeros) = (by_panel(matrix.scales()), by_panel(matrix.zeros()));
        Self { outputs, inputs, bits, words, scales, zeros, groups, columns }
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bits of a stored level, 4 or 8, or of a bf16 number.
    pub(crate) fn bits(&self) -> usize {
        self.bits
    }

    /// Columns of a word.
    pub(crate) fn per_word(&self) -> usize {
        32 / self.bits
    }

    /// Number of panels.
    pub(crate) fn count(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// Words of a panel.
    pub(crate) fn words(&self, panel: usize) -> &[Row<u32>] {
        let count = self.inputs.div_ceil(self.per_word());
        &self.words[panel * count..(panel + 1) * count]
    }

    /// Scales of a panel by group.
    pub(crate) fn scales(&self, panel: usize) -> &[Row<f32>] {
        &self.scales[panel * self.groups..(panel + 1) * self.groups]
    }

    /// Zero levels of a panel by group.
    pub(crate) fn zeros(&self, panel: usize) -> &[Row<f32>] {
        &self.zeros[panel * self.groups..(panel + 1) * self.groups]
    }

    /// The group of a column, and where the run of columns with it ends.
    pub(crate) fn run(&self, column: usize) -> (usize, usize) {
        match &self.columns {
            Columns::Runs(size) => (column / size, ((column / size + 1) * size).min(self.inputs)),
            Columns::Each(groups) => {
                let group = groups[column];
                let same = groups[column..].iter().take_while(|&&g| g == group).count();
                (group as usize, column + same)
            }
        }
    }

    /// Bytes of memory held.
    pub(crate) fn bytes(&self) -> usize {
        let columns = match &self.columns {
            Columns::Runs(_) => 0,
            Columns::Each(groups) => size_of_val(groups.as_slice()),
        };
        size_of_val(self.words.as_slice())
            + size_of_val(self.scales.as_slice())
            + size_of_val(self.zeros.as_slice())
            + columns
    }
}
