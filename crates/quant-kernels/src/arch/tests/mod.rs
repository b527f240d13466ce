//! Every level against the portable one, on shapes that cross every tile and block edge.

use ndarray::{Array2, ArrayView2, s};

use super::{Level, Region};
use crate::element::Element;
use crate::{Compute, Par};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) mod emulator;
mod parts;

/// Every level that can run here, that of AMX among them where its instructions are emulated.
fn levels() -> Vec<Level> {
    let mut levels = Level::available();
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if let Some(tiles) = Level::with_tiles(&emulator::install())
        && !levels.contains(&tiles)
    {
        levels.push(tiles);
    }
    levels
}

/// Values in [-1, 1) from a fixed linear congruential sequence.
fn fill<T: Element>(rows: usize, cols: usize, seed: u32) -> Array2<T> {
    let mut state = seed;
    Array2::from_shape_simple_fn((rows, cols), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        T::from_f64(f64::from(state >> 8) / 8_388_608.0 - 1.0)
    })
}

/// Shapes `(m, n, k)`: single elements, tile edges of every kernel, and more than one block of each kind.
const SHAPES: [(usize, usize, usize); 14] = [
    (1, 1, 1),
    (1, 3, 17),
    (3, 1, 160),
    (14, 32, 384),
    (15, 33, 385),
    (13, 31, 767),
    (17, 172, 160),
    (172, 160, 3),
    (160, 17, 1000),
    (29, 65, 2),
    (5, 300, 770),
    (300, 5, 1),
    (4, 8, 0),
    (70, 90, 769),
];

fn run<T: Element>(
    level: Level,
    region: Region,
    accumulate: bool,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    compute: Compute,
    par: Par,
) -> Array2<T> {
    let mut dst = fill(a.nrows(), b.ncols(), 7);
    T::product(level, dst.view_mut(), region, accumulate, T::from_f64(0.75), a, b, compute, par);
    dst
}

/// Levels, regions, accumulation, thread counts, layouts and packing beforehand change no bit of a product whose
/// tile adds one product at a time.
fn exact_everywhere<T: Element>(compute: Compute, levels: &[Level]) {
    for (m, n, k) in SHAPES {
        let (a, b) = (fill::<T>(m, k, 1), fill::<T>(k, n, 2));
        let (a_columns, b_columns) =
            (a.t().as_standard_layout().into_owned(), b.t().as_standard_layout().into_owned());
        for region in [Region::Full, Region::Lower] {
            for accumulate in [false, true] {
                let want = run(Level::SCALAR, region, accumulate, a.view(), b.view(), compute, Par::Seq);
                for &level in levels {
                    let case = format!("{level} {m}x{k}x{n} {region:?} {accumulate}");
                    for par in [Par::Seq, Par::new(2), Par::new(5)] {
                        let got = run(level, region, accumulate, a.view(), b.view(), compute, par);
                        assert_eq!(got, want, "{case} {par}");
                    }
                    let got = run(level, region, accumulate, a_columns.t(), b_columns.t(), compute, Par::Seq);
                    assert_eq!(got, want, "{case} transposed operands");
                    let mut got = fill::<T>(n, m, 0);
                    got.assign(&fill::<T>(m, n, 7).t());
                    T::product(
                        level,
                        got.view_mut().reversed_axes(),
                        region,
                        accumulate,
                        T::from_f64(0.75),
                        a.view(),
                        b.view(),
                        compute,
                        Par::Seq,
                    );
                    assert_eq!(got.t(), want, "{case} column-major destination");
                    if region == Region::Full {
                        for par in [Par::Seq, Par::new(3)] {
                            let whole = T::pack_operand(level, b.view(), compute, par);
                            let columns =
                                T::pack_columns(level, (k, n), compute, par, &|j, column: &mut [T]| {
                                    column.iter_mut().zip(b.column(j)).for_each(|(to, from)| *to = *from);
                                });
                            for (packed, how) in [(whole, "packed before"), (columns, "packed by columns")] {
                                let mut got = fill(m, n, 7);
                                let alpha = T::from_f64(0.75);
                                T::product_packed(got.view_mut(), accumulate, alpha, a.view(), &packed, par);
                                assert_eq!(got, want, "{case} {how} {par}");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn f32_is_bit_identical_on_every_level() {
    exact_everywhere::<f32>(Compute::F32, &Level::available());
}

#[test]
fn f64_is_bit_identical_on_every_level() {
    exact_everywhere::<f64>(Compute::F32, &Level::available());
}

#[test]
fn rounded_f64_is_bit_identical_on_every_level() {
    exact_everywhere::<f64>(Compute::Bf16, &Level::available());
}

#[test]
fn rounded_f32_is_bit_identical_below_the_bf16_instructions() {
    let levels: Vec<Level> =
        Level::available().into_iter().filter(|level| !level.name().ends_with("_bf16")).collect();
    exact_everywhere::<f32>(Compute::Bf16, &levels);
}

/// What a lane of `vdpbf16ps` is documented to do, and does to the bit on Zen 5: the product of the high halves is
/// added first, then that of the low halves, each with one rounding.
fn bf16_specification(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    start: &Array2<f32>,
    alpha: f32,
) -> Array2<f32> {
    const BLOCK: usize = 2 * crate::arch::kernel::KC_F32;
    let (m, k) = a.dim();
    let round = |x: f32| half::bf16::from_f32(x).to_f32();
    Array2::from_shape_fn((m, b.ncols()), |(i, j)| {
        let mut result = start[(i, j)];
        for first in (0..k).step_by(BLOCK) {
            let end = k.min(first + BLOCK);
            let mut sum = 0.0_f32;
            for d in (first..end).step_by(2) {
                if d + 1 < end {
                    sum = round(a[(i, d + 1)]).mul_add(round(b[(d + 1, j)]), sum);
                }
                sum = round(a[(i, d)]).mul_add(round(b[(d, j)]), sum);
            }
            result += alpha * sum;
        }
        result
    })
}

#[test]
fn bf16_level_matches_its_specification() {
    for (m, n, k) in SHAPES {
        let (a, b) = (fill::<f32>(m, k, 1), fill::<f32>(k, n, 2));
        let start = fill(m, n, 7);
        let want = bf16_specification(a.view(), b.view(), &start, 0.75);
        for level in levels() {
            for par in [Par::Seq, Par::new(3)] {
                let got = run(level, Region::Full, true, a.view(), b.view(), Compute::Bf16, par);
                // Another order of summation: a few roundings of sums of size sqrt(k).
                let bound = 1e-6 * (k as f32).sqrt().max(1.0);
                let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
                assert!(worst <= bound, "{level} {m}x{k}x{n}: {worst:e} above {bound:e}");
            }
        }
    }
}

#[test]
fn rows_computed_alone_are_the_rows_of_the_whole() {
    for (m, n, k) in [(64, 65, 800), (29, 300, 1537), (7, 40, 40)] {
        let (a, b) = (fill::<f32>(m, k, 1), fill::<f32>(k, n, 2));
        for compute in [Compute::F32, Compute::Bf16] {
            for level in levels() {
                let whole = run(level, Region::Full, false, a.view(), b.view(), compute, Par::new(2));
                for rows in [0..1, 0..m / 2, m / 2..m, 3..5, m - 1..m] {
                    let part = a.slice(s![rows.clone(), ..]);
                    let alone = run(level, Region::Full, false, part, b.view(), compute, Par::Seq);
                    assert_eq!(alone, whole.slice(s![rows.clone(), ..]), "{level} {compute} rows {rows:?}");
                }
            }
        }
    }
}

#[test]
fn old_content_is_not_read_without_accumulate() {
    let (a, b) = (fill::<f32>(15, 800, 1), fill::<f32>(800, 33, 2));
    for level in levels() {
        for compute in [Compute::F32, Compute::Bf16] {
            let mut dst = Array2::from_elem((15, 33), f32::NAN);
            <f32 as super::Products>::product(
                level,
                dst.view_mut(),
                Region::Full,
                false,
                1.0,
                a.view(),
                b.view(),
                compute,
                Par::Seq,
            );
            assert!(dst.iter().all(|x| x.is_finite()));
        }
    }
}
