//! Work that keeps nothing but the multipliers of an instruction set busy.

use super::integer_level::IntegerLevel;
use super::level::Level;

/// Multiplies and adds bytes in registers, `steps` times in each of several independent chains, and gives the operations done (a
/// product and its addition are two): whoever times it has the peak of a core. Absent where the level has no instruction that does
/// both.
///
/// ```
/// use quant_kernels::{IntegerLevel, integer_peak_operations};
///
/// let start = std::time::Instant::now();
/// if let Some(operations) = integer_peak_operations(IntegerLevel::detect(), 100_000) {
///     println!("{:.0} GOP/s", operations as f64 / start.elapsed().as_secs_f64() / 1e9);
/// }
/// ```
#[must_use]
pub fn integer_peak_operations(level: IntegerLevel, steps: usize) -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        super::x86::integer_peak_operations(level, steps)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (level, steps);
        None
    }
}

/// [`integer_peak_operations`] for products of bf16 that are summed in f32.
///
/// ```
/// use quant_kernels::{Level, bf16_peak_operations};
///
/// let start = std::time::Instant::now();
/// match bf16_peak_operations(Level::detect(), 100_000) {
///     Some(operations) => println!("{:.0} GF/s", operations as f64 / start.elapsed().as_secs_f64() / 1e9),
///     None => println!("{} multiplies bf16 as f32", Level::detect()),
/// }
/// ```
#[must_use]
pub fn bf16_peak_operations(level: Level, steps: usize) -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        super::x86::bf16_peak_operations(level, steps)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (level, steps);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{IntegerLevel, Level, bf16_peak_operations, integer_peak_operations};

    #[test]
    fn only_levels_that_multiply_and_add_bytes_have_a_peak() {
        for (name, level) in IntegerLevel::every() {
            let Some(level) = level else { continue };
            let want = match name {
                // Four products of registers: 16 x 16 sums of 64 products.
                "amx_int8" => Some(2 * 16 * 16 * 64 * 4 * 3),
                // Twelve chains of registers of 64 or 32 bytes.
                "avx512_vnni" => Some(2 * 64 * 12 * 3),
                "avx_vnni" => Some(2 * 32 * 12 * 3),
                _ => None,
            };
            assert_eq!(integer_peak_operations(level, 3), want, "{name}");
        }
    }

    #[test]
    fn only_levels_that_multiply_and_add_bf16_have_a_peak() {
        for level in Level::available() {
            let want = match level.name() {
                "amx_bf16" => Some(2 * 16 * 16 * 32 * 4 * 3),
                "avx512_bf16" => Some(2 * 32 * 12 * 3),
                _ => None,
            };
            assert_eq!(bf16_peak_operations(level, 3), want, "{level}");
        }
    }
}
