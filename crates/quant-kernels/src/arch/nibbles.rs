//! The vector operations that sums of products with packed levels need: one implementation per instruction set.

/// Registers of words of eight levels, of sums, and of four bytes of a token.
///
/// # Safety
/// An implementor's operations may be called only where its instructions exist; all are inlined into a function that has them.
pub(in crate::arch) unsafe trait Nibbles {
    /// A register of 32-bit words.
    type Words: Copy;

    /// Words in a register.
    const LANES: usize;

    /// # Safety
    /// The machine has the instructions.
    unsafe fn zero() -> Self::Words;
    /// # Safety
    /// The machine has the instructions.
    unsafe fn splat(word: i32) -> Self::Words;
    /// # Safety
    /// `from` points to `LANES` words on the alignment of a register.
    unsafe fn words(from: *const u32) -> Self::Words;
    /// The lower halves of all bytes.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn low(words: Self::Words) -> Self::Words;
    /// The upper halves of all bytes.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn high(words: Self::Words) -> Self::Words;
    /// `sum` and the four products of unsigned bytes, 15 at most, with signed ones in every word.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn dot(sum: Self::Words, levels: Self::Words, x: Self::Words) -> Self::Words;
    /// # Safety
    /// The machine has the instructions.
    unsafe fn plus(a: Self::Words, b: Self::Words) -> Self::Words;
    /// # Safety
    /// `to` points to `LANES` writable words on the alignment of a register.
    unsafe fn store(words: Self::Words, to: *mut i32);
}

/// The portable register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain;

// SAFETY: it needs no instruction beyond the compilation target.
unsafe impl Nibbles for Plain {
    type Words = [u32; 4];

    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> [u32; 4] {
        [0; 4]
    }
    #[inline(always)]
    unsafe fn splat(word: i32) -> [u32; 4] {
        [word.cast_unsigned(); 4]
    }
    #[inline(always)]
    unsafe fn words(from: *const u32) -> [u32; 4] {
        // SAFETY: the caller's words.
        unsafe { *from.cast() }
    }
    #[inline(always)]
    unsafe fn low(words: [u32; 4]) -> [u32; 4] {
        words.map(|word| word & 0x0F0F_0F0F)
    }
    #[inline(always)]
    unsafe fn high(words: [u32; 4]) -> [u32; 4] {
        words.map(|word| (word >> 4) & 0x0F0F_0F0F)
    }
    #[inline(always)]
    unsafe fn dot(sum: [u32; 4], levels: [u32; 4], x: [u32; 4]) -> [u32; 4] {
        std::array::from_fn(|l| {
            let (levels, x) = (levels[l].to_le_bytes(), x[l].to_le_bytes());
            let products = (0..4).map(|b| i32::from(levels[b]) * i32::from(x[b].cast_signed()));
            sum[l].wrapping_add(products.sum::<i32>().cast_unsigned())
        })
    }
    #[inline(always)]
    unsafe fn plus(a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
        std::array::from_fn(|l| a[l].wrapping_add(b[l]))
    }
    #[inline(always)]
    unsafe fn store(words: [u32; 4], to: *mut i32) {
        // SAFETY: the caller's words.
        unsafe { *to.cast() = words };
    }
}
