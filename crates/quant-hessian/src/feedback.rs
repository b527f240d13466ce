//! The innermost step of every triangular solve here: what solved columns add to one column of a tile.

use quant_kernels::Element;

/// `target += Σ_j solved_j · feedback_j` over all rows of a tile, fused, the sum in the order of j.
#[inline(always)]
pub(crate) fn add_feedback<T: Element, const L: usize>(
    target: &mut [T; L],
    solved: &[[T; L]],
    feedback: &[T],
) {
    // As many rows at a time as stay in registers.
    const ROWS: usize = 64;
    const { assert!(L.is_multiple_of(ROWS), "a tile is whole parts") }
    for part in 0..L / ROWS {
        let range = part * ROWS..(part + 1) * ROWS;
        let mut acc = [T::zero(); ROWS];
        acc.copy_from_slice(&target[range.clone()]);
        for (lanes, &u) in solved.iter().zip(feedback) {
            let lanes = &lanes[range.clone()];
            for r in 0..ROWS {
                acc[r] = lanes[r].mul_add(u, acc[r]);
            }
        }
        target[range].copy_from_slice(&acc);
    }
}
