//! Which instruction sets this machine has.

use std::fmt;

use crate::Compute;

/// A level of SIMD instructions that this machine was seen to have: only detection makes one, so holding a value is
/// the proof that its instructions may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(InstructionSet);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum InstructionSet {
    Scalar,
    Avx2,
    Avx512,
    Avx512Bf16,
    AmxBf16,
}

impl InstructionSet {
    const ALL: [Self; 5] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::AmxBf16];

    fn is_present(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            match self {
                Self::Scalar => true,
                Self::Avx2 => has!("avx2") && has!("fma"),
                Self::Avx512 => has!("avx512f") && Self::Avx2.is_present(),
                Self::Avx512Bf16 => has!("avx512bf16") && Self::Avx512.is_present(),
                Self::AmxBf16 => {
                    Self::Avx512Bf16.is_present() && super::processor::tiles().is_some_and(|tiles| tiles.bf16)
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Scalar
        }
    }

    /// Whether products on this level are as fast as on the level below, or faster. Processors of Intel take four times as long for
    /// a `vdpbf16ps` as for a multiply-add of f32, which does half as much; those of AMD take as long for both.
    fn is_worth_it(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            self != Self::Avx512Bf16 || !super::processor::is_intel()
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            true
        }
    }
}

impl Level {
    /// Portable code, the specification of the others. Available everywhere.
    pub const SCALAR: Self = Self(InstructionSet::Scalar);

    /// The best level of this machine: it follows from what the processor says of itself, never from a measurement.
    ///
    /// A processor of Intel with AVX-512 BF16 but without AMX has `avx512` as its best level: its `vdpbf16ps` is slower than
    /// multiply-adds of rounded operands.
    #[must_use]
    pub fn detect() -> Self {
        let best = |set: &InstructionSet| set.is_present() && set.is_worth_it();
        InstructionSet::ALL.into_iter().rev().find(best).map_or(Self::SCALAR, Self)
    }

    /// The level whose instructions multiply f32 operands with this setting here, where that decides their bits: always with those of
    /// bf16, never with f32, in which all levels agree.
    ///
    /// ```
    /// use quant_kernels::{Compute, Level};
    ///
    /// assert_eq!(Level::that_decides(Compute::F32), None);
    /// assert_eq!(Level::that_decides(Compute::Bf16), Some(Level::detect()));
    /// ```
    #[must_use]
    pub fn that_decides(compute: Compute) -> Option<Self> {
        (compute != Compute::F32).then(Self::detect)
    }

    /// Every level of this machine, lowest first; not all are worth choosing, see [`Level::detect`].
    #[must_use]
    pub fn available() -> Vec<Self> {
        InstructionSet::ALL.into_iter().filter(|set| set.is_present()).map(Self).collect()
    }

    /// `scalar`, `avx2`, `avx512`, `avx512_bf16` or `amx_bf16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            InstructionSet::Scalar => "scalar",
            InstructionSet::Avx2 => "avx2",
            InstructionSet::Avx512 => "avx512",
            InstructionSet::Avx512Bf16 => "avx512_bf16",
            InstructionSet::AmxBf16 => "amx_bf16",
        }
    }

    pub(super) fn kind(self) -> InstructionSet {
        self.0
    }

    /// The level with tiles, on a machine where something else runs their instructions.
    #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
    pub(super) fn with_tiles(_: &super::tests::emulator::Installed) -> Option<Self> {
        InstructionSet::Avx512Bf16.is_present().then_some(Self(InstructionSet::AmxBf16))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Level;

    #[test]
    fn levels_are_ordered_and_one_of_them_is_the_detected_one() {
        let levels = Level::available();
        assert_eq!(levels.first(), Some(&Level::SCALAR));
        assert!(levels.contains(&Level::detect()) && levels.is_sorted());
    }
}
