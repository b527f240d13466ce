//! Which instruction sets this machine has.

use std::fmt;

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
}

impl Level {
    /// Portable code, the specification of the others. Available everywhere.
    pub const SCALAR: Self = Self(InstructionSet::Scalar);

    /// The best level of this machine.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx2") && has!("fma") {
                return Self(if has!("avx512bf16") {
                    InstructionSet::Avx512Bf16
                } else {
                    InstructionSet::Avx512
                });
            }
            if has!("avx2") && has!("fma") {
                return Self(InstructionSet::Avx2);
            }
        }
        Self::SCALAR
    }

    /// Every level of this machine, lowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let best = Self::detect();
        [InstructionSet::Scalar, InstructionSet::Avx2, InstructionSet::Avx512, InstructionSet::Avx512Bf16]
            .into_iter()
            .map(Self)
            .filter(|level| *level <= best)
            .collect()
    }

    /// `scalar`, `avx2`, `avx512` or `avx512_bf16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            InstructionSet::Scalar => "scalar",
            InstructionSet::Avx2 => "avx2",
            InstructionSet::Avx512 => "avx512",
            InstructionSet::Avx512Bf16 => "avx512_bf16",
        }
    }

    pub(super) fn kind(self) -> InstructionSet {
        self.0
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
    fn levels_are_ordered_and_end_with_the_detected_one() {
        let levels = Level::available();
        assert_eq!(levels.first(), Some(&Level::SCALAR));
        assert_eq!(levels.last(), Some(&Level::detect()));
        assert!(levels.is_sorted());
    }
}
