//! Safe run-time dispatch for loops that the compiler vectorises by itself.

/// Runs `f` compiled for the best instruction set of this machine (AVX-512, AVX2 or the baseline).
///
/// The closure and the `#[inline(always)]` functions it calls are compiled once per instruction set, which lets
/// plain loops of any crate use wide registers without a line of `unsafe`. The compiler never contracts `a * b + c`
/// into a fused operation and never reorders a float sum, so the result is bit-identical on all of them. Only what
/// is inlined into the closure profits: mark helpers `#[inline(always)]`.
#[inline]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

#[cfg(test)]
mod tests {
    use super::vectorized;

    #[test]
    fn returns_what_the_closure_returns() {
        let x: Vec<f32> = (0..1000u16).map(|i| f32::from(i) * 0.37 - 100.0).collect();
        let plain: Vec<f32> = x.iter().map(|&v| v * 1.1 + 0.3).collect();
        let wide: Vec<f32> = vectorized(|| x.iter().map(|&v| v * 1.1 + 0.3).collect());
        assert_eq!(plain, wide);
    }
}
