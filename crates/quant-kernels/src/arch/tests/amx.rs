//! The tiles of AMX: on the processor where it has them, emulated elsewhere.

use ndarray::{Array2, ArrayView2, s};

use super::emulator;
use super::{SHAPES, fill, run};
use crate::arch::dispatch::{pack_columns, pack_operand, product, product_packed};
use crate::arch::{
    IntegerLevel, Level, PackedInteger, Region, bf16_peak_operations, integer_peak_operations,
    integer_product, integer_through, pack_integer,
};
use crate::{Compute, Par};

/// The level, unless the rest of its instructions is missing.
fn float_level() -> Option<Level> {
    let level = Level::with_tiles(&emulator::install());
    if level.is_none() {
        quant_testkit::skipped("level amx_bf16 was not run: this machine lacks AVX-512 BF16");
    }
    level
}

fn integer_level() -> Option<IntegerLevel> {
    let level = IntegerLevel::with_tiles(&emulator::install());
    if level.is_none() {
        quant_testkit::skipped("level amx_int8 was not run: this machine lacks AVX-512 VNNI");
    }
    level
}

/// Shapes around the sides of a tile and its steps, and those of the other levels.
fn shapes() -> impl Iterator<Item = (usize, usize, usize)> {
    const AROUND: [(usize, usize, usize); 11] = [
        (16, 32, 32),
        (17, 33, 33),
        (32, 64, 31),
        (31, 16, 64),
        (33, 31, 65),
        (48, 47, 128),
        (2, 600, 100),
        (65, 129, 800),
        (300, 300, 40),
        // More than one sum, and rows and columns of more than one task.
        (19, 36, 2080),
        (490, 70, 530),
    ];
    AROUND.into_iter().chain(SHAPES)
}

/// What a tile of bf16 is documented to do.
fn specification(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    old: Option<&Array2<f32>>,
    alpha: f32,
) -> Array2<f32> {
    const BLOCK: usize = crate::arch::x86::SUM_BF16;
    const STEP: usize = 32;
    let (m, k) = a.dim();
    let round = |x: f32| half::bf16::from_f32(x).to_f32();
    Array2::from_shape_fn((m, b.ncols()), |(i, j)| {
        let mut result = old.map(|old| old[(i, j)]);
        for first in (0..k).step_by(BLOCK) {
            let end = k.min(first + BLOCK);
            let mut sum = 0.0_f32;
            for step in (first..end).step_by(STEP) {
                let mut halves = [0.0_f32; 2];
                for d in step..end.min(step + STEP) {
                    let half = &mut halves[d % 2];
                    *half = round(a[(i, d)]).mul_add(round(b[(d, j)]), *half);
                }
                sum += halves[0] + halves[1];
            }
            result = Some(result.map_or(alpha * sum, |old| old + alpha * sum));
        }
        result.unwrap_or(0.0)
    })
}

#[test]
fn bf16_tiles_do_what_they_are_documented_to_do() {
    let Some(level) = float_level() else { return };
    let before = emulator::executed();
    for (m, n, k) in shapes() {
        let (a, b) = (fill::<f32>(m, k, 1), fill::<f32>(k, n, 2));
        let (a_columns, b_columns) =
            (a.t().as_standard_layout().into_owned(), b.t().as_standard_layout().into_owned());
        let old = fill::<f32>(m, n, 7);
        for accumulate in [false, true] {
            let full = specification(a.view(), b.view(), accumulate.then_some(&old), 0.75);
            for region in [Region::Full, Region::Lower] {
                let outside = |i, j| region == Region::Lower && j > i;
                let want =
                    Array2::from_shape_fn((m, n), |at| if outside(at.0, at.1) { old[at] } else { full[at] });
                for (a, b, par) in [
                    (a.view(), b.view(), Par::Seq),
                    (a_columns.t(), b_columns.t(), Par::new(2)),
                    (a.view(), b_columns.t(), Par::new(5)),
                    (a_columns.t(), b.view(), Par::Seq),
                ] {
                    let got = run(level, region, accumulate, a, b, Compute::Bf16, par);
                    assert_eq!(got, want, "{m}x{k}x{n} {region:?} {accumulate} {par}");
                }
            }
            let whole = pack_operand(level, b_columns.t(), Compute::Bf16, Par::new(2));
            let columns = pack_columns(level, (k, n), Compute::Bf16, Par::Seq, &|j, column: &mut [f32]| {
                column.iter_mut().zip(b.column(j)).for_each(|(to, from)| *to = *from);
            });
            for packed in [whole, columns] {
                let mut got = old.clone();
                product_packed(got.view_mut(), accumulate, 0.75, a.view(), &packed, Par::new(2));
                assert_eq!(got, full, "{m}x{k}x{n} {accumulate} packed");
            }
        }
    }
    assert!(emulator::executed() > before || !emulator::is_needed(), "no tile was emulated");
}

#[test]
fn operands_with_strides_in_both_directions_are_packed_alike() {
    let Some(level) = float_level() else { return };
    let (m, n, k) = (45, 70, 100);
    let (a, b) = (fill::<f32>(2 * m, 3 * k, 1), fill::<f32>(3 * k, 2 * n, 2));
    let (a, b) = (a.slice(s![..;2, ..;3]), b.slice(s![..;3, ..;2]));
    let want = specification(a, b, None, 0.75);
    assert_eq!(run(level, Region::Full, false, a, b, Compute::Bf16, Par::Seq), want);
}

#[test]
fn subnormal_operands_count_as_zero() {
    let Some(level) = float_level() else { return };
    let least = f32::MIN_POSITIVE;
    let a = Array2::from_elem((3, 40), least / 4.0);
    let b = Array2::from_elem((40, 5), 1e30_f32);
    let mut got = Array2::from_elem((3, 5), f32::NAN);
    product(level, got.view_mut(), Region::Full, false, 1.0, a.view(), b.view(), Compute::Bf16, Par::Seq);
    assert_eq!(got, Array2::<f32>::zeros((3, 5)));
    let a = Array2::from_elem((3, 40), least);
    product(level, got.view_mut(), Region::Full, false, 1.0, a.view(), b.view(), Compute::Bf16, Par::Seq);
    assert!(got.iter().all(|&x| x > 0.0));
}

fn bytes(rows: usize, cols: usize, seed: u32) -> Array2<i8> {
    fill::<f32>(rows, cols, seed).mapv(|x| (x * 128.0).floor() as i8)
}

fn sums(a: ArrayView2<'_, i8>, w: ArrayView2<'_, i8>) -> Array2<i32> {
    Array2::from_shape_fn((a.nrows(), w.nrows()), |(i, j)| {
        a.row(i).into_iter().zip(w.row(j)).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum()
    })
}

fn multiplied(packed: &PackedInteger, a: ArrayView2<'_, i8>, par: Par) -> Array2<i32> {
    let mut got = Array2::from_elem((a.nrows(), packed.cols()), i32::MIN);
    integer_product(got.view_mut(), a, packed, par);
    got
}

#[test]
fn products_of_bytes_are_exact() {
    let Some(level) = integer_level() else { return };
    for (m, n, k) in shapes() {
        let (a, w) = (bytes(m, k, 1), bytes(n, k, 2));
        let want = sums(a.view(), w.view());
        let a_columns = a.t().as_standard_layout().into_owned();
        for par in [Par::Seq, Par::new(3)] {
            let packed = pack_integer(level, w.view(), par);
            assert_eq!(multiplied(&packed, a.view(), par), want, "{m}x{k}x{n} {par}");
            assert_eq!(multiplied(&packed, a_columns.t(), par), want, "{m}x{k}x{n} {par}, columns");
            let mut doubled = Array2::from_elem((m, n), f64::NAN);
            integer_through(
                doubled.view_mut(),
                a.view(),
                &packed,
                par,
                |_, _, sums: &[i32], out: &mut [f64]| {
                    out.iter_mut().zip(sums).for_each(|(out, &sum)| *out = 2.0 * f64::from(sum));
                },
            );
            assert_eq!(doubled, want.mapv(|sum| 2.0 * f64::from(sum)), "{m}x{k}x{n} {par}, finished");
        }
    }
}

#[test]
fn the_extremes_of_bytes_and_depth_are_exact() {
    let Some(level) = integer_level() else { return };
    for k in [1, 63, 64, 65, 29_568] {
        for (x, y) in [(-128, -128), (-128, 127), (127, 127), (-1, -128)] {
            let (a, w) = (Array2::from_elem((18, k), x), Array2::from_elem((35, k), y));
            let packed = pack_integer(level, w.view(), Par::Seq);
            let want = i32::from(x) * i32::from(y) * i32::try_from(k).unwrap();
            assert!(multiplied(&packed, a.view(), Par::new(2)).iter().all(|&sum| sum == want), "{k} {x} {y}");
        }
    }
}

/// A thread that kept its registers would pay for them at every switch to another.
#[test]
fn no_thread_keeps_its_registers() {
    let Some(level) = float_level() else { return };
    let (a, b) = (fill::<f32>(70, 90, 1), fill::<f32>(90, 80, 2));
    let before = emulator::executed();
    for _ in 0..20 {
        run(level, Region::Full, false, a.view(), b.view(), Compute::Bf16, Par::new(4));
    }
    if emulator::is_needed() {
        assert!(emulator::executed() > before);
        // Tests beside this one may be in the middle of a product: none is for ever.
        let released = || emulator::configured() == 0;
        let found = (0..10_000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            released()
        });
        assert!(found, "{} threads are configured", emulator::configured());
    }
}

#[test]
fn peaks_count_products_of_registers() {
    if let Some(level) = float_level() {
        assert_eq!(bf16_peak_operations(level, 3), Some(2 * 16 * 16 * 32 * 4 * 3));
        assert_eq!(bf16_peak_operations(level, 0), Some(0));
    }
    if let Some(level) = integer_level() {
        assert_eq!(integer_peak_operations(level, 2), Some(2 * 16 * 16 * 64 * 4 * 2));
    }
}
