//! What a processor says of itself beyond what the standard library asks it.

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

/// Which products of tiles a processor has.
#[derive(Clone, Copy, Debug)]
pub(super) struct TileUnits {
    pub(super) int8: bool,
    pub(super) bf16: bool,
}

/// The products of tiles that this process may run: the processor has them, and the kernel grants their registers, for which it is
/// asked once. The grant is a state of the process and cannot be anything else.
pub(super) fn tiles() -> Option<TileUnits> {
    static GRANTED: OnceLock<Option<TileUnits>> = OnceLock::new();
    *GRANTED.get_or_init(|| {
        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        const INT8: u32 = 1 << 25;
        let edx = features();
        let units = TileUnits { int8: edx & INT8 != 0, bf16: edx & BF16 != 0 };
        (edx & TILE != 0 && saves_tiles() && may_use_tiles()).then_some(units)
    })
}

/// What the processor says of its extensions in the last register of leaf 7.
fn features() -> u32 {
    const EXTENSIONS: u32 = 7;
    if __cpuid(0).eax < EXTENSIONS { 0 } else { __cpuid_count(EXTENSIONS, 0).edx }
}

/// Whether the system saves the registers of tiles and their configuration when threads take turns.
fn saves_tiles() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILES: u64 = 0b11 << 17;
    #[target_feature(enable = "xsave")]
    fn saved() -> u64 {
        // SAFETY: register 0 is there wherever the instruction is.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: the system has turned the instruction on.
    __cpuid(1).ecx & OSXSAVE != 0 && unsafe { saved() } & TILES == TILES
}

/// Asks the kernel for the registers.
fn may_use_tiles() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_ulong = 18;
        // SAFETY: the call reads its two numbers and changes what this process may do, nothing else.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    {
        false
    }
}

/// Whether the processor is one of Intel.
pub(super) fn is_intel() -> bool {
    let vendor = __cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}
