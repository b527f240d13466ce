//! Scales as words of 64 bits.

/// Set in every packed scale.
const MARK: u64 = 1 << 46;

/// The number that the fix-pipe multiplies with: the low word, cut to 19 bits if `cut`.
pub(crate) fn unpack(word: u64, cut: bool) -> f32 {
    let low = (word & 0xFFFF_FFFF) as u32;
    f32::from_bits(if cut { low >> 13 << 13 } else { low })
}

/// The offset of nine bits.
pub(crate) fn unpack_offset(word: u64) -> i32 {
    let nine = (word >> 37 & 0x1FF) as i32;
    if nine > 255 { nine - 512 } else { nine }
}

fn with_offset(low: u32, offset: i32) -> u64 {
    let nine = (offset.clamp(-256, 255) & 0x1FF).cast_unsigned();
    u64::from(low) | u64::from(nine) << 37 | MARK
}

/// TransQuantParamV2, and V3 with rounding mode 0: cut to 19 bits, the offset rounded half to even.
pub(crate) fn pack_cut(scale: f32, offset: f32) -> u64 {
    with_offset(scale.to_bits() >> 13 << 13, offset.round_ties_even() as i32)
}

/// TransQuantParamV3 with rounding mode 1: rounded half to even at 19 bits, subnormals become zeros of their sign.
pub(crate) fn pack_rounded(scale: f32, offset: f32) -> u64 {
    let bits = scale.to_bits();
    let exponent = bits >> 23 & 0xFF;
    let low = if exponent == 0 {
        bits >> 31 << 31
    } else {
        let odd = bits >> 13 & 1;
        (bits + 0xFFF + odd) >> 13 << 13
    };
    with_offset(low, offset.round_ties_even() as i32)
}

/// The function for the host: no bit is cut, the offset is rounded half away from zero.
pub(crate) fn pack_host(scale: f32, offset: f32) -> u64 {
    with_offset(scale.to_bits(), offset.round() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_documents() {
        assert_eq!(pack_cut(1.0, 0.0), 0x4000_3F80_0000);
        assert_eq!(pack_cut(0.0123, 0.0), 0x4000_3C49_8000);
        assert_eq!(unpack(pack_cut(0.0123, 0.0), true), 0.012_298_584);
        assert_eq!(pack_cut(0.001, 0.0), 0x4000_3A83_0000);
        assert_eq!(pack_rounded(0.001, 0.0), 0x4000_3A83_2000);
        assert_eq!(pack_cut(0.001, 5.0), 0x40A0_3A83_0000);
        assert_eq!(pack_cut(0.001, -3.0), 0x7FA0_3A83_0000);
        assert_eq!(unpack_offset(0x7FA0_3A83_0000), -3);
        assert_eq!(unpack_offset(0x40A0_3A83_0000), 5);
        let host: Vec<u64> = [1.1, 2.2, 3.3, 4.4, 5.5].iter().map(|&s| pack_host(s, 0.0)).collect();
        assert_eq!(
            host,
            [
                70_369_810_369_741,
                70_369_818_758_349,
                70_369_823_372_083,
                70_369_827_146_957,
                70_369_829_453_824
            ]
        );
        // Errors that the documents give.
        let error = |word: u64, scale: f64| f64::from(unpack(word, true)) / scale - 1.0;
        assert!((error(pack_cut(0.0123, 0.0), 0.0123) + 1.15e-4).abs() < 1e-6);
        assert!((error(pack_cut(0.001, 0.0), 0.001) + 5.5e-4).abs() < 1e-5);
        assert!((error(pack_rounded(0.001, 0.0), 0.001) - 4.0e-4).abs() < 1e-5);
        assert_eq!(pack_rounded(-1e-40, 0.0), 0x4000_8000_0000);
        assert_eq!((pack_cut(1.0, 2.5) >> 37 & 0x1FF, pack_host(1.0, 2.5) >> 37 & 0x1FF), (2, 3));
        assert_eq!((unpack_offset(pack_cut(1.0, 900.0)), unpack_offset(pack_cut(1.0, -900.0))), (255, -256));
    }
}
