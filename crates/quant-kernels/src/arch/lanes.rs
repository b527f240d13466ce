//! The vector operations that products with packed levels need: one implementation per instruction set.

/// A register of f32, and one of as many words of levels.
///
/// # Safety
/// An implementor's operations may be called only where its instructions exist; all are inlined into a function that has them.
pub(in crate::arch) unsafe trait Vector: Copy {
    /// A register of words.
    type Words: Copy;

    /// Numbers in a register.
    const LANES: usize;

    /// # Safety
    /// `from` points to `LANES` words on the alignment of a register.
    unsafe fn words(from: *const u32) -> Self::Words;
    /// # Safety
    /// The machine has the instructions.
    unsafe fn left<const BITS: u32>(words: Self::Words) -> Self::Words;
    /// # Safety
    /// The machine has the instructions.
    unsafe fn right<const BITS: u32>(words: Self::Words) -> Self::Words;
    /// # Safety
    /// The machine has the instructions, and `bits` is below 32.
    unsafe fn right_by(words: Self::Words, bits: u32) -> Self::Words;
    /// The floats whose bits are those of the words under `MASK`, and those of `REST`.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn field<const MASK: i32, const REST: i32>(words: Self::Words) -> Self;
    /// # Safety
    /// The machine has the instructions.
    unsafe fn splat(value: f32) -> Self;
    /// # Safety
    /// `from` points to `LANES` numbers on the alignment of a register.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `to` points to `LANES` writable numbers on the alignment of a register.
    unsafe fn store(self, to: *mut f32);
    /// # Safety
    /// The machine has the instructions.
    unsafe fn plus(self, other: Self) -> Self;
    /// # Safety
    /// The machine has the instructions.
    unsafe fn minus(self, other: Self) -> Self;
    /// # Safety
    /// The machine has the instructions.
    unsafe fn times(self, other: Self) -> Self;
    /// `factor * self + sum`, rounded once.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn times_plus(self, factor: Self, sum: Self) -> Self;
}

/// The portable register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain([f32; 4]);

// SAFETY: it needs no instruction beyond the compilation target.
unsafe impl Vector for Plain {
    type Words = [u32; 4];

    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn words(from: *const u32) -> Self::Words {
        // SAFETY: the caller's words.
        unsafe { *from.cast() }
    }
    #[inline(always)]
    unsafe fn left<const BITS: u32>(words: Self::Words) -> Self::Words {
        words.map(|word| word << BITS)
    }
    #[inline(always)]
    unsafe fn right<const BITS: u32>(words: Self::Words) -> Self::Words {
        words.map(|word| word >> BITS)
    }
    #[inline(always)]
    unsafe fn right_by(words: Self::Words, bits: u32) -> Self::Words {
        words.map(|word| word >> bits)
    }
    #[inline(always)]
    unsafe fn field<const MASK: i32, const REST: i32>(words: Self::Words) -> Self {
        Self(words.map(|word| f32::from_bits((word & MASK.cast_unsigned()) | REST.cast_unsigned())))
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's numbers.
        Self(unsafe { *from.cast() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's numbers.
        unsafe { *to.cast() = self.0 };
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        Self(std::array::from_fn(|l| self.0[l] + other.0[l]))
    }
    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        Self(std::array::from_fn(|l| self.0[l] - other.0[l]))
    }
    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        Self(std::array::from_fn(|l| self.0[l] * other.0[l]))
    }
    #[inline(always)]
    unsafe fn times_plus(self, factor: Self, sum: Self) -> Self {
        Self(std::array::from_fn(|l| factor.0[l].mul_add(self.0[l], sum.0[l])))
    }
}
