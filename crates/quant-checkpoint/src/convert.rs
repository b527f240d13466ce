//! f32, f16 and bf16 to f32 at memory speed, with the finite check fused into the same pass.

use half::f16;
use half::slice::HalfFloatSliceExt as _;
use safetensors::Dtype;

#[cfg(target_endian = "big")]
compile_error!("safetensors data is little-endian and is reinterpreted in place");

/// The floating dtypes that weights come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float {
    F32,
    F16,
    Bf16,
}

impl Float {
    pub(crate) fn from_dtype(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Bytes of one element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Converts `bytes` (little-endian, 4-byte aligned, `out.len()` elements) into `out`. Returns the position of the
/// first NaN or infinity, if any; `out` is complete in either case.
///
/// The vectorised loop only accumulates a flag; the position is looked for when it is set.
pub(crate) fn to_f32(kind: Float, bytes: &[u8], out: &mut [f32]) -> Option<usize> {
    debug_assert_eq!(bytes.len(), out.len() * kind.bytes());
    let bad = match kind {
        Float::F32 => {
            let words: &[u32] = bytemuck::cast_slice(bytes);
            words.iter().zip(&mut *out).fold(false, |bad, (&w, o)| {
                *o = f32::from_bits(w);
                bad | (w & 0x7f80_0000 == 0x7f80_0000)
            })
        }
        Float::Bf16 => {
            let words: &[u16] = bytemuck::cast_slice(bytes);
            words.iter().zip(&mut *out).fold(false, |bad, (&w, o)| {
                *o = f32::from_bits(u32::from(w) << 16);
                bad | (w & 0x7f80 == 0x7f80)
            })
        }
        Float::F16 => {
            let words: &[u16] = bytemuck::cast_slice(bytes);
            let halves: &[f16] = bytemuck::cast_slice(bytes);
            let mut bad = false;
            // Blocks that stay in the first-level cache, because the conversion (F16C when the CPU has it) and the
            // check are two loops.
            for (i, o) in out.chunks_mut(4096).enumerate() {
                let span = i * 4096..i * 4096 + o.len();
                halves[span.clone()].convert_to_f32_slice(o);
                bad |= words[span].iter().fold(false, |bad, &w| bad | (w & 0x7c00 == 0x7c00));
            }
            bad
        }
    };
    if bad { out.iter().position(|v| !v.is_finite()) } else { None }
}

/// Position and value of the first NaN or infinity among `bytes` (little-endian, of any alignment, whole elements).
pub(crate) fn first_non_finite(kind: Float, bytes: &[u8]) -> Option<(usize, f32)> {
    // All bits of the exponent are set in these values only.
    let at = match kind {
        Float::F32 => first_with(bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)), |w| {
            w & 0x7f80_0000 == 0x7f80_0000
        }),
        Float::Bf16 => first_with(words(bytes), |w| w & 0x7f80 == 0x7f80),
        Float::F16 => first_with(words(bytes), |w| w & 0x7c00 == 0x7c00),
    }?;
    let size = kind.bytes();
    let mut element = [0_u32];
    let aligned = &mut bytemuck::cast_slice_mut::<u32, u8>(&mut element)[..size];
    aligned.copy_from_slice(&bytes[at * size..(at + 1) * size]);
    let mut value = [0.0];
    to_f32(kind, aligned, &mut value);
    Some((at, value[0]))
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u16> + Clone {
    bytes.as_chunks().0.iter().map(|&b| u16::from_le_bytes(b))
}

/// As `position`, in two passes: the first vectorises and is nearly always the only one.
fn first_with<T>(mut items: impl Iterator<Item = T> + Clone, is: impl Fn(T) -> bool) -> Option<usize> {
    let any = items.clone().fold(false, |any, item| any | is(item));
    if any { items.position(is) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn aligned(words: &[u16]) -> Vec<u32> {
        let mut out = vec![0_u32; words.len().div_ceil(2)];
        bytemuck::cast_slice_mut::<u32, u16>(&mut out)[..words.len()].copy_from_slice(words);
        out
    }

    /// All 65,536 patterns of both 16-bit formats against the scalar definition.
    #[test]
    fn sixteen_bit_formats_exhaustively() {
        let words: Vec<u16> = (0..=u16::MAX).collect();
        let store = aligned(&words);
        let bytes: &[u8] = bytemuck::cast_slice(&store);
        let mut out = vec![0.0_f32; words.len()];
        for (kind, define) in [
            (Float::Bf16, (|w| bf16::from_bits(w).to_f32()) as fn(u16) -> f32),
            (Float::F16, |w| f16::from_bits(w).to_f32()),
        ] {
            let first = to_f32(kind, bytes, &mut out);
            assert_eq!(first, words.iter().position(|&w| !define(w).is_finite()));
            for (&w, &o) in words.iter().zip(&out) {
                let want = define(w);
                assert!(o.to_bits() == want.to_bits() || (o.is_nan() && want.is_nan()), "{kind:?} {w:#x}");
            }
        }
    }

    #[test]
    fn every_finite_half_passes_and_every_other_is_found_alone() {
        for (kind, mask) in [(Float::Bf16, 0x7f80_u16), (Float::F16, 0x7c00)] {
            for w in 0..=u16::MAX {
                let store = aligned(&[w, 0]);
                let mut out = [0.0; 2];
                let found = to_f32(kind, bytemuck::cast_slice(&store), &mut out);
                assert_eq!(found, (w & mask == mask).then_some(0), "{kind:?} {w:#x}");
                // The same by the check without conversion, wherever the element stands.
                let unaligned = [0, 0, 0, w.to_le_bytes()[0], w.to_le_bytes()[1]];
                let seen = first_non_finite(kind, &unaligned[1..]).map(|(at, value)| (at, value.to_bits()));
                assert_eq!(seen, found.map(|_| (1, out[0].to_bits())), "{kind:?} {w:#x}");
            }
        }
    }

    #[test]
    fn f32_is_copied_and_checked() {
        let mut values = vec![1.5_f32; 1000];
        let mut out = vec![0.0; values.len()];
        assert_eq!(to_f32(Float::F32, bytemuck::cast_slice(&values), &mut out), None);
        assert_eq!(out, values);
        values[700] = f32::NEG_INFINITY;
        values[900] = f32::NAN;
        assert_eq!(to_f32(Float::F32, bytemuck::cast_slice(&values), &mut out), Some(700));
        let seen = first_non_finite(Float::F32, bytemuck::cast_slice(&values));
        assert_eq!(seen, Some((700, f32::NEG_INFINITY)));
        assert_eq!(first_non_finite(Float::F32, bytemuck::cast_slice(&values[..700])), None);
    }
}
