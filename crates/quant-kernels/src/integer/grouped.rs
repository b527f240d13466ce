//! Codes of activations with weights of 4 bits in groups of inputs: W4A8 on the CPU.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Slice};
use quant_core::operators::{
    GroupedLinear, GroupedMatmul, Output, PreparedMatmul, QuantizedActivations, check_operands,
};
use quant_core::{CoreError, Groups, QuantizedMatrix};

use super::matmul::{Cpu, Results};
use crate::arch::{self, MAX_ROWS, PER_WORD};
use crate::panels::{LANES, LevelPanels, Row};
use crate::{IntegerLevel, Par, tasks, vectorized};

impl GroupedMatmul for Cpu {
    fn prepare_groups(&self, linear: &GroupedLinear, par: Par) -> Result<Box<dyn PreparedMatmul>, CoreError> {
        Ok(Box::new(PreparedGroups::new(self.level(), linear, par)))
    }
}

/// Levels in panels, every group of whole words, and what [`finish_groups`](quant_core::operators::finish_groups) takes.
#[derive(Debug)]
struct PreparedGroups {
    level: IntegerLevel,
    panels: LevelPanels,
    inputs: usize,
    /// The input at each column of the panels where columns are not inputs: none where a group was filled up.
    order: Option<Vec<Option<u32>>>,
    /// Words of the groups.
    groups: Vec<Range<usize>>,
    /// By panel and group: zero levels and sums of `level - zero`.
    zeros: Vec<Row<i32>>,
    group_sums: Vec<Row<i32>>,
    /// By panel.
    floats: Vec<Row<f32>>,
}

/// Tokens of a tile, as [`arch::pack_tokens`] packs them.
struct Tokens {
    first: usize,
    count: usize,
    words: Vec<i32>,
    /// By group and row: sums of codes.
    sums: Vec<i32>,
}

/// What stands between the sums of codes and levels of a group and those of `(code - zero) · (level - zero)`.
struct Corrections<'a> {
    /// Zero levels.
    zeros: &'a [i32; LANES],
    /// Sums of codes, by row.
    codes: &'a [i32],
    /// Sums of `level - zero`.
    weights: &'a [i32; LANES],
}

impl Corrections<'_> {
    /// The exact sums of a row whose tokens have this zero code.
    #[inline(always)]
    fn exact(&self, row: usize, sums: &[i32; LANES], zero: i32) -> [i32; LANES] {
        let codes = self.codes[row];
        let mut exact = [0; LANES];
        for l in 0..LANES {
            exact[l] = sums[l] - self.zeros[l] * codes;
        }
        if zero != 0 {
            for l in 0..LANES {
                exact[l] -= self.weights[l] * zero;
            }
        }
        exact
    }
}

/// Adds the terms of a group to the totals, or begins them: one step of [`finish_groups`](quant_core::operators::finish_groups).
#[inline(always)]
fn add_terms(sums: &[i32; LANES], scales: &[f32; LANES], begin: bool, totals: &mut [f32; LANES]) {
    let mut terms = [0.0; LANES];
    for l in 0..LANES {
        terms[l] = sums[l] as f32 * scales[l];
    }
    if begin {
        *totals = terms;
        return;
    }
    for l in 0..LANES {
        totals[l] += terms[l];
    }
}

impl PreparedGroups {
    fn new(level: IntegerLevel, linear: &GroupedLinear, par: Par) -> Self {
        let matrix = linear.matrix();
        let (outputs, inputs) = matrix.dim();
        let groups = matrix.scales().ncols();
        let size = matrix.groups().size(inputs);
        let ordered = matches!(matrix.groups(), Groups::Index { .. });
        // Words that cross groups would mix their sums: such groups are filled up, and those of an index are gathered.
        let (panels, order, words) = if ordered || (groups > 1 && !size.is_multiple_of(PER_WORD)) {
            let (order, of_place, words) = gather(matrix);
            (LevelPanels::in_order(matrix, &order, of_place, par), Some(order), words)
        } else {
            let (all, each) = (inputs.div_ceil(PER_WORD), size.div_ceil(PER_WORD));
            let words = (0..groups).map(|group| (group * each).min(all)..((group + 1) * each).min(all));
            (LevelPanels::new(matrix, par), None, words.collect())
        };
        let count = panels.count();
        let by_panel = |value: &dyn Fn(usize, usize) -> i32| {
            let mut rows = vec![Row([0; LANES]); count * groups];
            for (output, group) in
                (0..outputs).flat_map(|output| (0..groups).map(move |group| (output, group)))
            {
                rows[output / LANES * groups + group].0[output % LANES] = value(output, group);
            }
            rows
        };
        let sums = linear.group_sums();
        let mut floats = vec![Row([-0.0; LANES]); count];
        for output in 0..outputs {
            floats[output / LANES].0[output % LANES] = linear.float(output);
        }
        Self {
            level,
            inputs,
            order,
            groups: words,
            zeros: by_panel(&|output, group| matrix.zeros()[(output, group)] as i32),
            group_sums: by_panel(&|output, group| sums[(output, group)]),
            floats,
            panels,
        }
    }

    /// Packs the tokens of every tile.
    fn tokens(&self, codes: ArrayView2<'_, i8>, par: Par) -> Vec<Tokens> {
        let most = arch::most_rows(self.level);
        let tiles = (0..codes.nrows()).step_by(most);
        let codes = codes.as_standard_layout();
        let words = self.panels.inputs().div_ceil(PER_WORD);
        tasks::map(tiles, par, |first| {
            let count = most.min(codes.nrows() - first);
            let rows = arch::tile_rows(count);
            // Tokens in the order of the panels, and zeros where there is no input.
            let mut ordered = Array2::<i8>::zeros((rows, words * PER_WORD));
            for (mut to, from) in
                ordered.rows_mut().into_iter().zip(codes.rows().into_iter().skip(first).take(count))
            {
                match &self.order {
                    None => to.iter_mut().zip(from).for_each(|(to, &from)| *to = from),
                    Some(order) => {
                        to.iter_mut()
                            .zip(order)
                            .for_each(|(to, at)| *to = at.map_or(0, |at| from[at as usize]));
                    }
                }
            }
            let (mut packed, mut sums) = (Vec::new(), Vec::new());
            arch::pack_tokens(rows, words, &mut packed, |row, column| ordered[(row, column)]);
            for group in &self.groups {
                for row in ordered.rows() {
                    let codes = row
                        .slice_axis_move(Axis(0), Slice::from(group.start * PER_WORD..group.end * PER_WORD));
                    sums.push(codes.iter().map(|&code| i32::from(code)).sum());
                }
            }
            Tokens { first, count, words: packed, sums }
        })
    }

    /// Hands the sums of a panel and a tile to `take`, group by group: for every row of the tile a row of sums of codes and levels,
    /// with what is to be taken from them.
    #[inline(always)]
    fn for_groups(
        &self,
        panel: usize,
        tokens: &Tokens,
        mut take: impl FnMut(usize, &[Row<i32>], Corrections<'_>),
    ) {
        let mut sums = [Row([0; LANES]); MAX_ROWS];
        let sums = &mut sums[..arch::tile_rows(tokens.count)];
        let rows = sums.len();
        let words = self.panels.words(panel);
        for (group, range) in self.groups.iter().enumerate() {
            let x = &tokens.words[range.start * 2 * rows..range.end * 2 * rows];
            arch::group_sums(self.level, &words[range.clone()], x, sums);
            let at = panel * self.groups.len() + group;
            let codes = &tokens.sums[group * rows..][..rows];
            take(
                group,
                sums,
                Corrections { zeros: &self.zeros[at].0, codes, weights: &self.group_sums[at].0 },
            );
        }
    }

    /// Runs `work` on all tiles of every panel: the panel, the tile, and the place of its results.
    fn for_tiles<T: Copy + Send>(
        &self,
        tokens: &[Tokens],
        mut out: ArrayViewMut2<'_, T>,
        par: Par,
        work: impl Fn(usize, &Tokens, ArrayViewMut2<'_, T>) + Sync,
    ) {
        // A tile of tokens stays in a cache of the core while some panels, which stay there too, pass by.
        const PANELS: usize = 4;
        let chunks = out.axis_chunks_iter_mut(Axis(1), PANELS * LANES).enumerate();
        tasks::for_each(chunks, par, |(first, mut out)| {
            vectorized(
                #[inline(always)]
                || {
                    for tokens in tokens {
                        let rows = tokens.first..tokens.first + tokens.count;
                        let mut out = crate::views::rows_mut(&mut out, rows);
                        for (panel, out) in out.axis_chunks_iter_mut(Axis(1), LANES).enumerate() {
                            work(first * PANELS + panel, tokens, out);
                        }
                    }
                },
            );
        });
    }
}

impl Results for PreparedGroups {
    fn run<T: Copy + Default + Send>(
        &self,
        x: &QuantizedActivations,
        out: ArrayViewMut2<'_, T>,
        par: Par,
        convert: impl Fn(f32) -> T + Copy + Sync,
    ) {
        let tokens = self.tokens(x.codes.view(), par);
        self.for_tiles(
            &tokens,
            out,
            par,
            #[inline(always)]
            |panel, tokens, mut out| {
                let mut totals = [Row([0.0_f32; LANES]); MAX_ROWS];
                let scales = self.panels.scales(panel);
                self.for_groups(
                    panel,
                    tokens,
                    #[inline(always)]
                    |group, sums, corrections| {
                        for (r, (sums, total)) in sums.iter().zip(&mut totals).enumerate().take(tokens.count)
                        {
                            let zero = if x.zeros.is_some() { x.params(tokens.first + r).1 } else { 0 };
                            let sums = corrections.exact(r, &sums.0, zero);
                            add_terms(&sums, &scales[group].0, group == 0, &mut total.0);
                        }
                    },
                );
                let floats = &self.floats[panel];
                for (r, (mut out, totals)) in out.rows_mut().into_iter().zip(&totals).enumerate() {
                    let (scale, _) = x.params(tokens.first + r);
                    for ((out, &total), &float) in out.iter_mut().zip(&totals.0).zip(&floats.0) {
                        *out = convert(total * scale + float);
                    }
                }
            },
        );
    }
}

impl PreparedMatmul for PreparedGroups {
    fn shape(&self) -> (usize, usize) {
        (self.panels.outputs(), self.inputs)
    }

    fn forward(&self, x: &QuantizedActivations, out: Output<'_>, par: Par) -> Result<(), CoreError> {
        x.check()?;
        check_operands(self.shape(), x.codes.dim(), out.dim())?;
        self.write(x, out, par)
    }

    fn sums(
        &self,
        codes: ArrayView2<'_, i8>,
        mut out: ArrayViewMut2<'_, i32>,
        par: Par,
    ) -> Result<(), CoreError> {
        check_operands(self.shape(), codes.dim(), out.dim())?;
        out.fill(0);
        self.for_tiles(&self.tokens(codes, par), out, par, |panel, tokens, mut out| {
            self.for_groups(panel, tokens, |_, sums, corrections| {
                for (r, (mut out, sums)) in out.rows_mut().into_iter().zip(sums).enumerate() {
                    let sums = corrections.exact(r, &sums.0, 0);
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                }
            });
        });
        Ok(())
    }
}

/// An order of the columns of a matrix by group in which every group is filled up to whole words: the column at every place, none
/// where there is none, the group of every place, and the words of the groups.
fn gather(matrix: &QuantizedMatrix) -> (Vec<Option<u32>>, Vec<u32>, Vec<Range<usize>>) {
    let mut members = vec![Vec::new(); matrix.scales().ncols()];
    for column in 0..matrix.dim().1 {
        members[matrix.groups().of(column)].push(Some(column as u32));
    }
    let (mut order, mut groups, mut words) = (Vec::new(), Vec::new(), Vec::new());
    for (group, mut members) in members.into_iter().enumerate() {
        members.resize(members.len().next_multiple_of(PER_WORD), None);
        let first = order.len() / PER_WORD;
        order.extend(members);
        groups.resize(order.len(), group as u32);
        words.push(first..order.len() / PER_WORD);
    }
    (order, groups, words)
}
