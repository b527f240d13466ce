//! Which instructions this machine multiplies bytes with.

use std::fmt;

/// Instructions for products of bytes that this machine was seen to have. They do not follow from a [`Level`](crate::Level):
/// machines with AVX-512 lack them, and machines without it have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IntegerLevel(IntegerSet);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum IntegerSet {
    Portable,
    Avx2,
    AvxVnni,
    Avx512Vnni,
    AmxInt8,
}

impl IntegerSet {
    const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512Vnni, Self::AmxInt8];

    fn is_present(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            match self {
                Self::Portable => true,
                Self::Avx2 => has!("avx2"),
                Self::AvxVnni => has!("avxvnni") && has!("avx2"),
                Self::Avx512Vnni => has!("avx512vnni") && has!("avx512f"),
                Self::AmxInt8 => {
                    Self::Avx512Vnni.is_present() && super::processor::tiles().is_some_and(|tiles| tiles.int8)
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx_vnni",
            Self::Avx512Vnni => "avx512_vnni",
            Self::AmxInt8 => "amx_int8",
        }
    }
}

impl IntegerLevel {
    /// Code that the compiler vectorises for whatever processor it compiles for. Available everywhere.
    pub const PORTABLE: Self = Self(IntegerSet::Portable);

    /// The best level of this machine.
    #[must_use]
    pub fn detect() -> Self {
        IntegerSet::ALL.into_iter().rev().find(|set| set.is_present()).map_or(Self::PORTABLE, Self)
    }

    /// All levels there are, slowest first, by name, with a value where this machine has them.
    ///
    /// ```
    /// use quant_kernels::IntegerLevel;
    ///
    /// for (name, level) in IntegerLevel::every() {
    ///     println!("{name}: {}", if level.is_some() { "present" } else { "not run" });
    /// }
    /// ```
    #[must_use]
    pub fn every() -> [(&'static str, Option<Self>); 5] {
        IntegerSet::ALL.map(|set| (set.name(), set.is_present().then_some(Self(set))))
    }

    /// `portable`, `avx2`, `avx_vnni`, `avx512_vnni` or `amx_int8`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    pub(super) fn kind(self) -> IntegerSet {
        self.0
    }

    /// The level with tiles, on a machine where something else runs their instructions.
    #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
    pub(super) fn with_tiles(_: &super::tests::emulator::Installed) -> Option<Self> {
        IntegerSet::Avx512Vnni.is_present().then_some(Self(IntegerSet::AmxInt8))
    }
}

impl fmt::Display for IntegerLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::IntegerLevel;

    #[test]
    fn the_best_level_is_the_last_one_present() {
        let every = IntegerLevel::every();
        assert_eq!(every[0].1, Some(IntegerLevel::PORTABLE));
        assert_eq!(every.iter().filter_map(|(_, level)| *level).next_back(), Some(IntegerLevel::detect()));
        for (name, level) in every {
            assert!(level.is_none_or(|level| level.name() == name));
        }
    }
}
