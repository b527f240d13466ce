//! A cache of int8 on the device, and attention over it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use half::{bf16, f16};
use ndarray::{ArrayView2, ArrayViewMut2};
use quant_core::CoreError;
use quant_core::operators::{CacheDemand, Cached, ChannelCodes, CodeCache, CodeCacheForm};

use super::{Model, Shared};
use crate::cann::{Cann, locked};
use crate::error::{AscendError, Result};
use crate::memory::DeviceBuffer;
use crate::operators::{OneTokenAttention, Pages};
use crate::stream::Stream;
use crate::tensor::{Tensor, Typed};

/// Codes of keys and values in pages `[page, kv_heads · head_dim]` on the device; here lie those alone that are on their way there.
#[derive(Debug)]
pub(super) struct Cache {
    shared: Arc<Shared>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Positions of a page.
    page: usize,
    /// Pages that there is room for.
    pages: usize,
    keys: Side,
    values: Side,
    /// What the device has not seen, in the order in which it came.
    fresh: Vec<Rows>,
}

#[derive(Debug)]
struct Side {
    scale: Tensor,
    /// What is added to codes: the zero codes, negated.
    offset: Option<Tensor>,
    /// None before there is room.
    codes: Option<DeviceBuffer<i8>>,
}

/// Codes of consecutive slots, counted over all pages.
#[derive(Debug)]
struct Rows {
    first: usize,
    keys: Vec<i8>,
    values: Vec<i8>,
}

/// Whether CANN has attention of one token for caches of this form.
pub(super) fn attends(cann: &Cann, form: &CacheDemand) -> bool {
    form.kv_heads > 0
        && form.heads.is_multiple_of(form.kv_heads)
        && form.head_dim.is_multiple_of(32)
        && form.page.is_multiple_of(32)
        && (1..=512).contains(&form.page)
        && cann.has("aclnnFusedInferAttentionScoreV3")
}

/// The pages that a cache makes room for where so many are asked for: twice as many, so that what is there is copied seldom, but no more
/// than are ever expected.
fn grown_to(pages: usize, expected: usize) -> usize {
    pages.next_power_of_two().min(expected.max(pages))
}

/// Bytes of caches that have grown as far as they do, one of them beside what it had before.
pub(super) fn bytes(of: &CacheDemand) -> u64 {
    let width = of.kv_heads * of.head_dim;
    let side = grown_to(of.pages, of.pages) * of.page * width;
    // Codes of keys and of values; scales and offsets of both in 16 bits.
    ((of.blocks + 1) * 2 * side + of.blocks * 2 * 2 * 2 * width) as u64
}

impl Side {
    fn new(shared: &Shared, form: &ChannelCodes, heads: usize) -> Result<Self> {
        // As CANN lists them for one token of queries.
        let dims = [1, heads, 1, form.scales.len() / heads];
        let any = form.zeros.iter().any(|&zero| zero != 0.0);
        Ok(Self {
            scale: shared.numbers(form.scales.iter().copied(), &dims)?,
            offset: any.then(|| shared.numbers(form.zeros.iter().map(|zero| -zero), &dims)).transpose()?,
            codes: None,
        })
    }

    /// Room for so many codes that holds what was there.
    fn grown(&self, stream: &Stream, shared: &Shared, codes: usize) -> Result<DeviceBuffer<i8>> {
        let room = DeviceBuffer::new(&shared.device, codes)?;
        if let Some(old) = &self.codes {
            stream.copy(old, &room)?;
        }
        Ok(room)
    }
}

impl Cache {
    /// None where CANN has no attention for this form.
    pub(super) fn open(
        shared: &Arc<Shared>,
        form: &CodeCacheForm,
    ) -> Result<Option<Box<dyn CodeCache>>, CoreError> {
        let CodeCacheForm { heads, kv_heads, head_dim, page, keys, values } = form;
        let demand = CacheDemand {
            blocks: 1,
            heads: *heads,
            kv_heads: *kv_heads,
            head_dim: *head_dim,
            page: *page,
            pages: 0,
        };
        let parameters = [&keys.scales, &keys.zeros, &values.scales, &values.zeros];
        let fits = parameters.iter().all(|of| of.len() == kv_heads * head_dim);
        if !fits || !attends(shared.device.cann(), &demand) {
            return Ok(None);
        }
        Ok(Some(Box::new(Self {
            keys: Side::new(shared, keys, *kv_heads)?,
            values: Side::new(shared, values, *kv_heads)?,
            shared: Arc::clone(shared),
            heads: *heads,
            kv_heads: *kv_heads,
            head_dim: *head_dim,
            page: *page,
            pages: 0,
            fresh: Vec::new(),
        })))
    }

    fn width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Outputs of attention in the type of the model.
    fn run<T: Typed>(&mut self, queries: ArrayView2<'_, f32>, sequences: &[Cached<'_>]) -> Result<Vec<T>> {
        self.send()?;
        let shared = &self.shared;
        let stream = locked(&shared.stream);
        let dims = [self.pages, self.page, self.width()];
        let tensor = |side: &Side| side.codes.as_ref().map(|codes| Tensor::new(codes, &dims)).transpose();
        let (Some(keys), Some(values)) = (tensor(&self.keys)?, tensor(&self.values)?) else {
            return Err(AscendError::shape("pages of a cache", "room for 1 or more", "none"));
        };
        let query_dims = [sequences.len(), self.heads, 1, self.head_dim];
        let query = shared.numbers(queries.iter().copied(), &query_dims)?;
        let results = DeviceBuffer::<T>::new(&shared.device, queries.len())?;
        let out = Tensor::new(&results, &query_dims)?;
        let longest = sequences.iter().map(|of| of.length.div_ceil(self.page)).max().unwrap_or(0);
        let table: Vec<i32> = sequences
            .iter()
            .flat_map(|of| {
                let pages =
                    of.pages.iter().take(of.length.div_ceil(self.page)).map(|&page| page.cast_signed());
                pages.chain(std::iter::repeat(0)).take(longest)
            })
            .collect();
        let lengths: Vec<usize> = sequences.iter().map(|of| of.length).collect();
        let operator = OneTokenAttention {
            query: &query,
            key: &keys,
            value: &values,
            key_scale: &self.keys.scale,
            value_scale: &self.values.scale,
            key_offset: self.keys.offset.as_ref(),
            value_offset: self.values.offset.as_ref(),
            pages: Some(Pages { table: &table, block: self.page }),
            lengths: &lengths,
            kv_heads: self.kv_heads,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
            fast: false,
            out: &out,
        };
        operator.prepare(&shared.device)?.launch(&stream)?;
        results.read(&stream)
    }

    /// Sends the device what it has not seen; what cannot be sent stays for the next time.
    fn send(&mut self) -> Result<()> {
        let stream = locked(&self.shared.stream);
        let width = self.kv_heads * self.head_dim;
        if let (Some(keys), Some(values)) = (&self.keys.codes, &self.values.codes) {
            for rows in &self.fresh {
                keys.write_at(&stream, rows.first * width, &rows.keys)?;
                values.write_at(&stream, rows.first * width, &rows.values)?;
            }
            self.fresh.clear();
        }
        Ok(())
    }

    /// Makes room for more pages: a new place beside the old one, which goes when everything is there.
    fn grow(&mut self, pages: usize) -> Result<()> {
        let codes = pages * self.page * self.width();
        let stream = locked(&self.shared.stream);
        let keys = self.keys.grown(&stream, &self.shared, codes)?;
        let values = self.values.grown(&stream, &self.shared, codes)?;
        stream.synchronize()?;
        (self.keys.codes, self.values.codes) = (Some(keys), Some(values));
        self.pages = pages;
        Ok(())
    }
}

impl CodeCache for Cache {
    fn reserve(&mut self, pages: usize) -> Result<(), CoreError> {
        if pages > self.pages {
            self.grow(grown_to(pages, self.shared.pages.load(Ordering::Relaxed)))?;
        }
        Ok(())
    }

    fn write(&mut self, page: u32, slot: usize, key: &[i8], value: &[i8]) -> Result<(), CoreError> {
        let (page, width) = (page as usize, self.width());
        if page >= self.pages || slot >= self.page || key.len() != width || value.len() != width {
            return Err(CoreError::Shape {
                what: "codes for a cache on the device",
                expected: format!(
                    "{width} of each side for one of {} slots of {} pages",
                    self.page, self.pages
                ),
                found: format!("{} and {} for slot {slot} of page {page}", key.len(), value.len()),
            });
        }
        let row = page * self.page + slot;
        match self.fresh.last_mut() {
            Some(rows) if rows.first * width + rows.keys.len() == row * width => {
                rows.keys.extend_from_slice(key);
                rows.values.extend_from_slice(value);
            }
            _ => self.fresh.push(Rows { first: row, keys: key.to_vec(), values: value.to_vec() }),
        }
        // A page of them, and the host need not hold more.
        let held: usize = self.fresh.iter().map(|rows| rows.keys.len()).sum();
        if held >= self.page * width {
            self.send()?;
        }
        Ok(())
    }

    fn attend(
        &mut self,
        mut queries: ArrayViewMut2<'_, f32>,
        sequences: &[Cached<'_>],
    ) -> Result<(), CoreError> {
        let expected = (sequences.len(), self.heads * self.head_dim);
        let known = |of: &Cached<'_>| {
            of.length > 0
                && of.length <= of.pages.len() * self.page
                && of
                    .pages
                    .iter()
                    .take(of.length.div_ceil(self.page))
                    .all(|&page| (page as usize) < self.pages)
        };
        if queries.dim() != expected || !sequences.iter().all(known) {
            return Err(CoreError::Shape {
                what: "queries or sequences of attention",
                expected: format!("{expected:?}, with 1 position or more on pages below {}", self.pages),
                found: format!("{:?}, {sequences:?}", queries.dim()),
            });
        }
        if queries.is_empty() {
            return Ok(());
        }
        let found: Vec<f32> = match self.shared.model {
            Model::Bf16 => self.run::<bf16>(queries.view(), sequences)?.iter().map(|x| x.to_f32()).collect(),
            Model::F16 => self.run::<f16>(queries.view(), sequences)?.iter().map(|x| x.to_f32()).collect(),
        };
        queries.iter_mut().zip(found).for_each(|(out, found)| *out = found);
        Ok(())
    }
}
