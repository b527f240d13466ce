//! The body of a register tile, written once over the vector operations of an instruction set.

/// Implements [`Kernel`](crate::arch::kernel::Kernel) for `$name`: `MR` rows of `VECTORS` registers of sums, one
/// broadcast word of A against the registers of B per row and word of depth.
///
/// The operations are named by the caller: `load` (aligned, packed B), `broadcast` (one packed word of A), `madd`
/// (`sum + a * b`), and for the result `zero`, `splat`, `mul`, `add`, `read`, `write`.
macro_rules! register_tile {
    (
        $(#[$doc:meta])* $name:ident, level $level:ident, features $features:literal,
        $elem:ident in $lanes:literal lanes, $word:ident of $pair:literal, $mr:literal x $vectors:literal, block $kc:expr,
        rows [$($rows:literal),*],
        pack $pack:expr, transpose [$($transpose:ident)?], load $load:expr, broadcast $broadcast:expr, madd $madd:expr,
        zero $zero:ident, splat $splat:ident, mul $mul:ident, add $add:ident, read $read:ident, write $write:ident
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(in crate::arch) struct $name(());

        impl $name {
            /// The kernel, if the level has its instructions.
            pub(in crate::arch) fn new(level: Level) -> Option<Self> {
                (level.kind() >= InstructionSet::$level).then_some(Self(()))
            }

            /// The tile for exactly `ROWS >= rows` rows of registers.
            ///
            /// # Safety
            /// As `Kernel::tile`, with `ROWS` between `rows` and `MR`.
            #[target_feature(enable = $features)]
            unsafe fn rows<const ROWS: usize>(
                rows: usize,
                words: usize,
                mut a: *const $word,
                mut b: *const $word,
                alpha: $elem,
                accumulate: bool,
                c: *mut $elem,
                stride: isize,
            ) {
                for i in 0..ROWS {
                    // The result is touched only after the loop: ask for its cache lines now. A prefetch may name
                    // any address.
                    let row = c.wrapping_offset(i as isize * stride);
                    for v in 0..$vectors {
                        _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(v * $lanes).cast());
                    }
                }
                let mut sums = [[$zero(); $vectors]; ROWS];
                for _ in 0..words {
                    // SAFETY: word `d` of every lane of both panels, `d < words`.
                    unsafe {
                        let mut column = [$load(b); $vectors];
                        for v in 1..$vectors {
                            column[v] = $load(b.add(v * $lanes));
                        }
                        for i in 0..ROWS {
                            let factor = $broadcast(a.add(i));
                            for v in 0..$vectors {
                                sums[i][v] = $madd(sums[i][v], factor, column[v]);
                            }
                        }
                        a = a.add($mr);
                        b = b.add($vectors * $lanes);
                    }
                }
                let alpha = $splat(alpha);
                for i in 0..ROWS {
                    if i < rows {
                        for v in 0..$vectors {
                            // SAFETY: row i < rows of the caller's tile.
                            unsafe {
                                let out = c.offset(i as isize * stride).add(v * $lanes);
                                let product = $mul(alpha, sums[i][v]);
                                $write(out, if accumulate { $add($read(out), product) } else { product });
                            }
                        }
                    }
                }
            }
        }

        // SAFETY: `new` asks a level, which only detection makes, for the instructions.
        unsafe impl Kernel for $name {
            type Elem = $elem;
            type Word = $word;

            const MR: usize = $mr;
            const NR: usize = $vectors * $lanes;
            const PAIR: usize = $pair;
            const KC: usize = $kc;
            const ZERO: $word = 0 as $word;

            #[inline(always)]
            fn word(low: $elem, high: $elem) -> $word {
                $pack(low, high)
            }

            #[inline(always)]
            fn prefetch(address: *const $elem) {
                // SAFETY: every x86-64 machine has the instruction, and it may name any address.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
            }

            $(
                #[inline(always)]
                unsafe fn transpose(
                    block: &[[$word; STEP]; STEP],
                    columns: usize,
                    rows: usize,
                    dst: *mut $word,
                    width: usize,
                ) {
                    // SAFETY: the machine has the instructions, and the contract is the same.
                    unsafe { $transpose(block.as_ptr().cast(), columns, rows, dst.cast(), width) }
                }
            )?

            #[inline(always)]
            unsafe fn tile(
                self,
                rows: usize,
                words: usize,
                a: *const $word,
                b: *const $word,
                alpha: $elem,
                accumulate: bool,
                c: *mut $elem,
                stride: isize,
            ) {
                // SAFETY: the machine has the instructions, and the rest of the contract is forwarded.
                unsafe {
                    $(if rows <= $rows {
                        return Self::rows::<$rows>(rows, words, a, b, alpha, accumulate, c, stride);
                    })*
                    Self::rows::<$mr>(rows, words, a, b, alpha, accumulate, c, stride);
                }
            }
        }
    };
}
pub(super) use register_tile;
