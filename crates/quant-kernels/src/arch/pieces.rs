//! How a product is cut into pieces. Nothing here is visible in the result.

use std::ops::Range;

use crate::Par;

use super::kernel::{Kernel, LeftWord, RightWord};
use super::operand::{Columns, block_words, lane_words, span_words};

/// Rows packed at a time, and their bytes over several blocks of the summed index: they are read as one stream per
/// group of columns, so main memory will do.
const ROW_GROUP: usize = 4096;
const ROW_GROUP_BYTES: usize = 16 << 20;
/// Packed columns over the same blocks of the summed index: inside a third-level cache, and enough of them for every thread.
const COLUMN_GROUP_BYTES: usize = 4 << 20;
const COLUMN_GROUP_BYTES_A_THREAD: usize = 512 << 10;
/// Packed panels copied by one task.
const PACK_TASK_BYTES: usize = 128 << 10;
/// Heights and widths that are tried for tasks, so that there is work for every thread: 1, 3/4, 1/2, 3/8 and so on of the most.
const SIZES: usize = 10;

/// How a product is cut.
pub(super) struct Pieces {
    /// Rows packed at a time, and the part of the summed index they are packed over: whole blocks of it.
    pub(super) row_group: usize,
    pub(super) depth_group: usize,
    /// Columns that share a pass over that part.
    pub(super) column_group: usize,
    /// Whether the columns of a group are packed for all tasks; otherwise they came packed, or a task makes its own.
    pub(super) shared_columns: bool,
    /// Panels that one packing task copies.
    pub(super) pack_panels: usize,
    /// Rows and columns of a task at most.
    task_rows: usize,
    task_columns: usize,
    threads: usize,
}

/// A task: rows and columns of the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

impl Pieces {
    pub(super) fn new<K: Kernel>(m: usize, n: usize, k: usize, b: &Columns<'_, K::In>, par: Par) -> Self {
        let threads = par.threads();
        let words = block_words::<K>(k);
        let (left_bytes, right_bytes) = (words * size_of::<LeftWord<K>>(), words * size_of::<RightWord<K>>());
        let sum_bytes = span_words::<K>(k.min(K::SUM)) * size_of::<LeftWord<K>>();
        let row_group = balanced(m, ROW_GROUP.min(fitting(ROW_GROUP_BYTES, sum_bytes, K::MR)), K::MR);
        let group_bytes = row_group * K::SUM / K::PAIR * size_of::<LeftWord<K>>();
        // Whole sums.
        let depth_group = (ROW_GROUP_BYTES / group_bytes).max(1) * K::SUM;
        let task_rows = balanced(row_group, fitting(K::TASK_BYTES.0, left_bytes, K::MR), K::MR);
        // Where one task has all rows, nobody else needs the columns it makes.
        let one_row_of_tasks = m <= task_rows;
        let made = one_row_of_tasks && matches!(b, Columns::Made(_));
        // What is made goes from the first-level cache into the registers, or not far beyond.
        let task_columns = fitting(if made { PACK_TASK_BYTES } else { K::TASK_BYTES.1 }, right_bytes, K::NR);
        let shared_columns = !one_row_of_tasks && !matches!(b, Columns::Packed(_));
        let column_group = if shared_columns {
            let bytes = COLUMN_GROUP_BYTES.max(COLUMN_GROUP_BYTES_A_THREAD * threads);
            let lane = lane_words::<K>(k.min(depth_group)) * size_of::<RightWord<K>>();
            // Whole tasks.
            balanced(n, fitting(bytes, lane, task_columns), K::NR)
        } else {
            n.next_multiple_of(K::NR)
        };
        Self {
            row_group,
            depth_group,
            column_group,
            shared_columns,
            pack_panels: fitting(PACK_TASK_BYTES, left_bytes.max(right_bytes) * K::MR.max(K::NR), 1),
            task_rows,
            task_columns,
            threads,
        }
    }

    /// The tasks of a group, each row of which reaches to its own end among the columns.
    ///
    /// As large as they may be on one thread. For several, the size that lets them finish first if all tasks take as long as their
    /// sizes say.
    pub(super) fn tasks<K: Kernel>(
        &self,
        rows: &Range<usize>,
        columns: &Range<usize>,
        reach: impl Fn(usize) -> usize,
    ) -> Vec<Task> {
        let cut = |height: usize, width: usize| {
            rows.clone().step_by(height).flat_map({
                let reach = &reach;
                move |top| {
                    let bottom = (top + height).min(rows.end);
                    let end = reach(bottom).min(columns.end);
                    (columns.start..end)
                        .step_by(width)
                        .map(move |left| (top..bottom, left..(left + width).min(end)))
                }
            })
        };
        let sizes = |most: usize, total: usize, lanes: usize| {
            let sizes = if self.threads == 1 { 1 } else { SIZES };
            let parts = (0..sizes).map(move |i| if i % 2 == 0 { most } else { 3 * most / 4 } >> (i / 2));
            parts.map(move |part| balanced(total, part.max(lanes), lanes))
        };
        let mut best = (f64::INFINITY, (self.task_rows, self.task_columns));
        for height in sizes(self.task_rows, rows.len(), K::MR) {
            for width in sizes(self.task_columns, columns.len(), K::NR) {
                let rounds = cut(height, width).count().div_ceil(self.threads);
                let (h, w) = (height as f64, width as f64);
                let takes = rounds as f64 * (h * w + K::EDGE * (h + w));
                if takes < best.0 {
                    best = (takes, (height, width));
                }
            }
        }
        let (height, width) = best.1;
        let mut tasks: Vec<Task> = cut(height, width).map(|(rows, columns)| Task { rows, columns }).collect();
        // Neighbours in time share their columns.
        tasks.sort_by_key(|task| (task.columns.start, task.rows.start));
        tasks
    }

    /// The panels of a packing task.
    pub(super) fn panels(&self, task: usize, count: usize) -> Range<usize> {
        task * self.pack_panels..((task + 1) * self.pack_panels).min(count)
    }
}

/// Lanes, a multiple of `width`, that fit into so many bytes; `width` at least.
fn fitting(bytes: usize, lane: usize, width: usize) -> usize {
    (bytes / lane / width).max(1) * width
}

/// A block size of at most `limit` that cuts `total` into equal parts, as a multiple of `width`.
fn balanced(total: usize, limit: usize, width: usize) -> usize {
    let parts = total.div_ceil(limit).max(1);
    total.div_ceil(parts).next_multiple_of(width)
}

#[cfg(test)]
mod tests {
    use super::super::pack::Source;
    use super::super::portable::Portable;
    use super::*;
    use ndarray::Array2;

    /// The tasks of every group of a product, one depth group after the other left aside.
    fn groups_of_tasks<K: Kernel>(
        m: usize,
        n: usize,
        k: usize,
        lower: bool,
        threads: usize,
    ) -> Vec<Vec<Task>> {
        let matrix = Array2::<K::In>::default((1, 1));
        let columns = Columns::Source(Source::new(&matrix.view()));
        let pieces = Pieces::new::<K>(m, n, k, &columns, Par::new(threads));
        let reach = |rows: usize| if lower { n.min(rows) } else { n };
        let mut all = Vec::new();
        for top in (0..m).step_by(pieces.row_group) {
            let rows = top..(top + pieces.row_group).min(m);
            for left in (0..reach(rows.end)).step_by(pieces.column_group) {
                let columns = left..(left + pieces.column_group).min(reach(rows.end));
                all.push(pieces.tasks::<K>(&rows, &columns, reach));
            }
        }
        all
    }

    #[test]
    fn tasks_have_every_element_once_and_begin_where_panels_do() {
        type K = Portable<f32>;
        for (m, n, k) in [(1, 1, 1), (37, 70, 5), (300, 150, 900), (1000, 1000, 400), (4200, 33, 70)] {
            for lower in [false, true] {
                for threads in [1, 2, 16, 128] {
                    let mut seen = Array2::<u8>::zeros((m, n));
                    for task in groups_of_tasks::<K>(m, n, k, lower && m == n, threads).concat() {
                        assert!(
                            task.rows.start.is_multiple_of(K::MR) && task.columns.start.is_multiple_of(K::NR)
                        );
                        for i in task.rows {
                            task.columns.clone().for_each(|j| seen[(i, j)] += 1);
                        }
                    }
                    for ((i, j), &count) in seen.indexed_iter() {
                        // Above the diagonal a task may reach where its tiles do not.
                        let wanted = !(lower && m == n) || j <= i;
                        assert!(
                            count == 1 || (!wanted && count == 0),
                            "{m} x {n}, {threads} threads: ({i}, {j})"
                        );
                    }
                }
            }
        }
    }

    /// How much of the time of so many threads the tasks of a product fill, if each takes as long as it is large.
    fn filled<K: Kernel>(m: usize, n: usize, k: usize, lower: bool, threads: usize) -> f64 {
        let (mut work, mut time) = (0, 0);
        for tasks in groups_of_tasks::<K>(m, n, k, lower, threads) {
            let mut busy = vec![0; threads];
            for task in tasks {
                let area: usize = task
                    .rows
                    .map(|i| {
                        if lower {
                            (i + 1).clamp(task.columns.start, task.columns.end)
                        } else {
                            task.columns.end
                        }
                    })
                    .map(|end| end - task.columns.start)
                    .sum();
                work += area;
                if let Some(first) = busy.iter_mut().min() {
                    *first += area;
                }
            }
            time += busy.iter().max().copied().unwrap_or(0);
        }
        work as f64 / (time * threads) as f64
    }

    fn products_of_models<K: Kernel>(least: f64, least_of_gram: f64) {
        for threads in [2, 8, 16, 64, 128] {
            for (m, n, k) in [(1024, 1536, 1536), (1024, 8960, 1536), (2048, 1536, 8960), (2048, 3584, 18944)]
            {
                let share = filled::<K>(m, n, k, false, threads);
                println!("{m} x {n} x {k}, {threads} threads: {share:.2}");
                assert!(share > least, "{m} x {n} x {k}, {threads} threads: {share:.2}");
            }
            for (n, k) in [(1536, 1024), (8960, 1024), (18944, 2048)] {
                let share = filled::<K>(n, n, k, true, threads);
                println!("Gram of {n}, {k} tokens, {threads} threads: {share:.2}");
                assert!(share > least_of_gram, "Gram of {n}, {k} tokens, {threads} threads: {share:.2}");
            }
        }
    }

    #[test]
    fn products_of_models_keep_many_threads_busy() {
        products_of_models::<Portable<f32>>(0.9, 0.85);
    }

    /// Panels from the cache that the cores share cost tiles more than a few idle threads.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn products_of_tiles_keep_many_threads_busy() {
        products_of_models::<super::super::x86::AmxBf16>(0.7, 0.7);
    }
}
