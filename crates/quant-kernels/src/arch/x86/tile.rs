//! The body of a register tile, written once over the vector operations of an instruction set.

/// Implements [`Panel`](crate::arch::kernel::Panel) for `$name`: words of `$pair` elements that `$word` makes of a function of
/// their index, transposed by `$transpose` where one is named.
macro_rules! panel {
    ($name:ident, $in:ident as $store:ident of $pair:literal, $word:expr, transpose [$($transpose:ident)?] $(, run $run:ident)? $(, rounds $rounds:literal)?) => {
        // SAFETY: whoever names a transposition belongs to a level that has its instructions.
        unsafe impl Panel for $name {
            type In = $in;
            type Word = $store;

            const PAIR: usize = $pair;
            const ZERO: $store = 0 as $store;
            $(const RUN: usize = $run;)?
            $(const ROUNDS: bool = $rounds;)?

            #[inline(always)]
            fn word(at: impl Fn(usize) -> $in) -> $store {
                $word(at)
            }

            #[inline(always)]
            fn prefetch(address: *const $in) {
                // SAFETY: every x86-64 machine has the instruction, and it may name any address.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
            }

            $(
                #[inline(always)]
                unsafe fn transpose(
                    block: &[[$store; STEP]; STEP],
                    columns: usize,
                    rows: usize,
                    dst: *mut $store,
                    width: usize,
                ) {
                    // SAFETY: the machine has the instructions, and the contract is the same.
                    unsafe { $transpose(block.as_ptr().cast(), columns, rows, dst.cast(), width) }
                }
            )?
        }
    };
}
pub(super) use panel;

/// The word of panels whose words are elements.
#[inline(always)]
pub(super) fn first<T>(at: impl Fn(usize) -> T) -> T {
    at(0)
}

/// Implements [`Kernel`](crate::arch::kernel::Kernel) for `$name`: `MR` rows of `VECTORS` registers of sums, one
/// broadcast word of A against the registers of B per row and word of depth.
///
/// The operations are named by the caller: `start` (what a register of sums begins with, from the head of B), `load`
/// (aligned, packed B), `broadcast` (one packed word of A), `madd` (`sum + a * b`), and for the result `scaled`
/// (`alpha * sum`), `add`, `read`, `write`.
macro_rules! register_tile {
    (
        $(#[$doc:meta])* $name:ident, $level:ident where $has:expr, features $features:literal,
        $in:ident to $out:ident in $lanes:literal lanes, alpha $alpha:ty, panels $left:ident, $right:ident, $mr:literal x $vectors:literal,
        block $kc:expr, rows [$($rows:literal),*], head $head:literal $(by $fill:ident)?,
        start $start:expr, load $load:expr, broadcast $broadcast:expr, madd $madd:expr,
        scaled $scaled:expr, add $add:ident, read $read:expr, write $write:expr
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(in crate::arch) struct $name(());

        impl $name {
            /// The kernel, if the level has its instructions.
            pub(in crate::arch) fn new(level: $level) -> Option<Self> {
                let has: fn($level) -> bool = $has;
                has(level).then_some(Self(()))
            }

            /// The tile for exactly `ROWS >= rows` rows of registers.
            ///
            /// # Safety
            /// As `Kernel::tile`, with `ROWS` between `rows` and `MR`.
            #[target_feature(enable = $features)]
            unsafe fn rows<const ROWS: usize>(
                rows: usize,
                words: usize,
                mut a: *const LeftWord<Self>,
                mut b: *const RightWord<Self>,
                alpha: $alpha,
                accumulate: bool,
                c: *mut $out,
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
                // SAFETY: the head of the panel, where there is one.
                let mut sums = unsafe {
                    let mut first = [$start(b); $vectors];
                    for v in 1..$vectors {
                        first[v] = $start(b.wrapping_add(v * $lanes));
                    }
                    b = b.add($head * $vectors * $lanes);
                    [first; ROWS]
                };
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
                for i in 0..ROWS {
                    if i < rows {
                        for v in 0..$vectors {
                            // SAFETY: row i < rows of the caller's tile.
                            unsafe {
                                let out = c.offset(i as isize * stride).add(v * $lanes);
                                let product = $scaled(alpha, sums[i][v]);
                                $write(out, if accumulate { $add($read(out), product) } else { product });
                            }
                        }
                    }
                }
            }
        }

        // SAFETY: `new` asks a level, which only detection makes, for the instructions.
        unsafe impl Kernel for $name {
            type In = $in;
            type Out = $out;
            type Alpha = $alpha;
            type Left = $left;
            type Right = $right;
            type Session = ();

            const MR: usize = $mr;
            const NR: usize = $vectors * $lanes;
            const KC: usize = $kc;
            const HEAD: usize = $head;

            fn session(self) {}

            $(
                #[inline(always)]
                unsafe fn head(block: *mut RightWord<Self>, words: usize) {
                    // SAFETY: the contract is the same.
                    unsafe { $fill(block, words, Self::NR) }
                }
            )?

            #[inline(always)]
            unsafe fn tile(
                self,
                rows: usize,
                words: usize,
                a: *const LeftWord<Self>,
                b: *const RightWord<Self>,
                alpha: $alpha,
                accumulate: bool,
                c: *mut $out,
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
