//! Attention of one token over an int8 cache.

use super::rules::{want, want_dims, want_plain, want_type};
use crate::call::{Arguments, Call, first_phase};
use crate::device::Device;
use crate::error::{AscendError, Result};
use crate::memory::DeviceBuffer;
use crate::tensor::{DataType, Tensor};

/// Where the tokens of each sequence lie in a paged cache.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// Block numbers, `[batch, blocks of a sequence]`, row-major. From the host, where they are checked against the cache; unused ones
    /// are any block, 0 for instance.
    pub table: &'a [i32],
    /// Tokens of a block: a multiple of 32, at most 512.
    pub block: usize,
}

/// Attention of the newest token of each sequence over its cache of int8 (C8), `softmax(q kᵀ · scale) v`.
///
/// Keys and values are `(code + offset) · scale` with parameters of each channel (`keyAntiquantMode` and `valueAntiquantMode` 0). The
/// cache holds the newest token too.
#[derive(Clone, Copy, Debug)]
pub struct OneTokenAttention<'a> {
    /// `[batch, heads, 1, d]`, F16 or Bf16, `d` a multiple of 32.
    pub query: &'a Tensor,
    /// I8: `[batch, kv_heads, tokens, d]`, or paged `[blocks, block, kv_heads · d]` or `[blocks, kv_heads, block, d]`.
    pub key: &'a Tensor,
    /// As `key`.
    pub value: &'a Tensor,
    /// `[kv_heads · d]`, `[kv_heads, d]`, or one of these with axes of 1 as CANN allows; the type of the query.
    pub key_scale: &'a Tensor,
    /// As `key_scale`.
    pub value_scale: &'a Tensor,
    /// Added to the codes of keys; as `key_scale`.
    pub key_offset: Option<&'a Tensor>,
    /// Added to the codes of values; as `key_scale`.
    pub value_offset: Option<&'a Tensor>,
    /// Pages of the cache.
    pub pages: Option<Pages<'a>>,
    /// Tokens of each sequence in the cache, or one number for all; empty for a cache that is full.
    pub lengths: &'a [usize],
    /// Heads of keys and values; a divisor of those of the query.
    pub kv_heads: usize,
    /// What scores are multiplied by, `1/√d` as a rule.
    pub scale: f64,
    /// Sums in f16 (`innerPrecise` 1); for F16 queries.
    pub fast: bool,
    /// As `query`.
    pub out: &'a Tensor,
}

impl OneTokenAttention<'_> {
    /// Checks shapes, types, lengths and pages.
    ///
    /// # Errors
    /// [`AscendError::Shape`] naming the argument that does not fit.
    pub fn check(&self) -> Result<()> {
        let kind = self.query.data_type();
        want_type(self.query, "query", &[DataType::F16, DataType::Bf16])?;
        let &[batch, heads, 1, d] = self.query.dims() else {
            return Err(AscendError::shape(
                "query",
                "[batch, heads, 1, d]",
                format!("{:?}", self.query.dims()),
            ));
        };
        let kv = self.kv_heads;
        want(
            kv > 0 && heads.is_multiple_of(kv) && d.is_multiple_of(32),
            "heads of attention",
            || "heads of keys that divide those of the query, and a multiple of 32 channels".to_owned(),
            || format!("{heads} and {kv} heads, {d} channels"),
        )?;
        want_type(self.out, "output of attention", &[kind])?;
        want_dims(self.out, "output of attention", &[self.query.dims().to_vec()])?;
        want(!self.fast || kind == DataType::F16, "fast sums", || "F16".to_owned(), || format!("{kind:?}"))?;
        want(
            self.scale.is_finite(),
            "scale of attention",
            || "a number".to_owned(),
            || self.scale.to_string(),
        )?;
        let channels =
            [vec![kv * d], vec![kv, d], vec![1, kv * d], vec![1, kv, d], vec![kv, 1, d], vec![1, kv, 1, d]];
        let parameters = [Some(self.key_scale), Some(self.value_scale), self.key_offset, self.value_offset];
        for tensor in parameters.into_iter().flatten() {
            want_type(tensor, "parameters of the cache", &[kind])?;
            want_dims(tensor, "parameters of the cache", &channels)?;
            want_plain(&[tensor])?;
        }
        for cache in [self.key, self.value] {
            want_type(cache, "cache", &[DataType::I8])?;
        }
        want_dims(self.value, "cache of values", &[self.key.dims().to_vec()])?;
        want_plain(&[self.query, self.key, self.value, self.out])?;
        let room = self.room(batch, kv, d)?;
        let fits = match self.lengths {
            [] => self.pages.is_none(),
            lengths => {
                (lengths.len() == 1 || lengths.len() == batch)
                    && lengths.iter().all(|l| (1..=room).contains(l))
            }
        };
        want(
            fits,
            "lengths of sequences",
            || format!("1 or {batch} numbers from 1 to {room}, which a paged cache must have"),
            || format!("{:?}", self.lengths),
        )
    }

    /// Tokens that a sequence can have.
    fn room(&self, batch: usize, kv: usize, d: usize) -> Result<usize> {
        let dims = self.key.dims();
        let Some(Pages { table, block }) = self.pages else {
            return match *dims {
                [b, h, tokens, width] if b == batch && h == kv && width == d => Ok(tokens),
                _ => Err(AscendError::shape(
                    "cache",
                    format!("[{batch}, {kv}, tokens, {d}]"),
                    format!("{dims:?}"),
                )),
            };
        };
        let blocks = match *dims {
            [blocks, size, width] if size == block && width == kv * d => blocks,
            [blocks, h, size, width] if h == kv && size == block && width == d => blocks,
            _ => {
                return Err(AscendError::shape(
                    "paged cache",
                    format!("[blocks, {block}, {}] or [blocks, {kv}, {block}, {d}]", kv * d),
                    format!("{dims:?}"),
                ));
            }
        };
        want(
            block > 0 && block.is_multiple_of(32) && block <= 512,
            "tokens of a block",
            || "a multiple of 32, at most 512".to_owned(),
            || block.to_string(),
        )?;
        want(
            !table.is_empty() && table.len().is_multiple_of(batch),
            "table of blocks",
            || format!("as many for each of {batch} sequences, at least 1"),
            || table.len().to_string(),
        )?;
        let far = table.iter().find(|&&entry| !usize::try_from(entry).is_ok_and(|entry| entry < blocks));
        want(
            far.is_none(),
            "table of blocks",
            || format!("numbers from 0 to {}", blocks - 1),
            || format!("{far:?}"),
        )?;
        Ok(table.len() / batch * block)
    }

    /// Checks the arguments, copies the table of blocks to the device and prepares the operator.
    ///
    /// # Errors
    /// As [`OneTokenAttention::check`], [`AscendError::Missing`], or what CANN says.
    pub fn prepare(&self, device: &Device) -> Result<Call> {
        self.check()?;
        let batch = self.query.dims()[0];
        let table = match self.pages {
            Some(Pages { table, .. }) => {
                let buffer = DeviceBuffer::from_slice(device, table)?;
                Some(Tensor::new(&buffer, &[batch, table.len() / batch])?)
            }
            None => None,
        };
        let mut a = Arguments::new(device)?;
        let query = a.input(self.query)?;
        let (key, value) = (a.list(self.key)?, a.list(self.value)?);
        let lengths = a.lengths(self.lengths)?;
        let blocks = a.optional(table.as_ref())?;
        let (key_scale, key_offset) = (a.input(self.key_scale)?, a.optional(self.key_offset)?);
        let (value_scale, value_offset) = (a.input(self.value_scale)?, a.optional(self.value_offset)?);
        let out = a.output(self.out)?.cast_const();
        let layout = a.text("BNSD");
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let (none, all) = (std::ptr::null(), i64::from(i32::MAX));
        first_phase!(
            a,
            attention,
            aclnnFusedInferAttentionScoreV3GetWorkspaceSize,
            aclnnFusedInferAttentionScoreV3,
            (
                query,
                key,
                value,
                none,             // pseShift
                none,             // attenMask: one token sees all of its cache
                std::ptr::null(), // actualSeqLengths
                lengths,
                none, // deqScale1
                none, // quantScale1
                none, // deqScale2
                none, // quantScale2
                none, // quantOffset2
                none, // antiquantScale: keys and values have their own
                none, // antiquantOffset
                blocks,
                none, // queryPaddingSize
                none, // kvPaddingSize
                key_scale,
                key_offset,
                value_scale,
                value_offset,
                none,             // keySharedPrefix
                none,             // valueSharedPrefix
                std::ptr::null(), // actualSharedPrefixLen
                none,             // queryRope
                none,             // keyRope
                none,             // keyRopeAntiquantScale
                number(self.query.dims()[1]),
                self.scale,
                all, // preTokens
                all, // nextTokens
                layout,
                number(self.kv_heads),
                0, // sparseMode
                i64::from(self.fast),
                number(self.pages.map_or(0, |pages| pages.block)),
                0, // antiquantMode
                false,
                0, // keyAntiquantMode: of each channel
                0, // valueAntiquantMode
                out,
                none,
            )
        )
    }
}
