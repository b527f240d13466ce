//! Register tiles of the x86-64 instruction sets.

mod amx;
mod avx2;
mod avx512;
mod avx512bf16;
mod hadamard;
mod integer;
mod mix;
mod nibbles;
mod peak;
mod tile;
mod transpose;
mod vector;

#[cfg(test)]
pub(super) use amx::SUM_BF16;
pub(super) use amx::{AmxBf16, AmxI8};
pub(super) use avx2::{Avx2F32, Avx2F64};
pub(super) use avx512::{Avx512F32, Avx512F64};
pub(super) use avx512bf16::Avx512Bf16;
pub(super) use hadamard::{first_pass, pass};
pub(super) use integer::{Avx2I8, Avx512VnniI8, AvxVnniI8};
pub(super) use mix::mix_in_place;
pub(super) use nibbles::{NibblesAvx2, NibblesAvx512, NibblesAvxVnni};
pub(super) use peak::{bf16_peak_operations, integer_peak_operations};
pub(super) use vector::{Ymm, Zmm};
