//! Keys and values of many sequences in pages.

use ndarray::ArrayViewMut2;
use std::collections::BTreeSet;

use quant_core::operators::{Cached, ChannelCodes, CodeCache, CodeCacheForm, Processor};
use quant_core::{CoreError, EntryQuant, KvQuant};
use quant_graph::ModelSpec;
use quant_kernels::{PAGE, PageEntries};

/// The level of the signed code 0.
const MIDDLE: f32 = 128.0;

/// What one side of a block's cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheForm {
    /// Floats; what a quantiser before rope leaves, too.
    Float,
    /// Levels, with a scale and a zero level for each token and head.
    TokenHead,
    /// Levels, with fixed parameters of each channel.
    Channel,
}

impl CacheForm {
    /// Of keys and of values under a quantiser of the cache.
    #[must_use]
    pub fn of(kv: Option<&KvQuant>) -> [Self; 2] {
        let form = |entries: &EntryQuant| match entries {
            EntryQuant::TokenHead { .. } => Self::TokenHead,
            EntryQuant::Channel { .. } => Self::Channel,
        };
        match kv {
            None => [Self::Float; 2],
            // Codes from before rope would have to be rotated as they are read.
            Some(kv) if kv.before_rope => [Self::Float, form(&kv.values)],
            Some(kv) => [form(&kv.keys), form(&kv.values)],
        }
    }

    /// Bytes of a page of one head.
    #[must_use]
    pub fn page_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::Float => PAGE * head_dim * size_of::<f32>(),
            Self::TokenHead => PAGE * (head_dim + 2 * size_of::<f32>()),
            Self::Channel => PAGE * (head_dim + size_of::<f32>()),
        }
    }
}

/// The cache of one block: pages by their number, in which sequences have theirs.
#[derive(Debug)]
pub struct PagedCache {
    head_dim: usize,
    kv_heads: usize,
    keys: Side,
    values: Side,
    /// The same codes where a processor attends to them.
    codes: Option<Box<dyn CodeCache>>,
    /// Pages with entries that are not finite, for which there are no codes.
    broken: BTreeSet<u32>,
}

/// Pages of keys or of values, all heads of a page together.
#[derive(Debug)]
struct Side {
    entries: Option<EntryQuant>,
    floats: Vec<Vec<f32>>,
    codes: Vec<Codes>,
    /// Whether features lie one behind the other, and not positions.
    by_feature: bool,
}

/// A page of codes, `[kv_heads, ..]` of each part.
#[derive(Debug)]
struct Codes {
    levels: Vec<u8>,
    /// Scales of tokens and heads; what is added to a token's numbers where parameters are fixed.
    scales: Vec<f32>,
    zeros: Vec<f32>,
}

impl PagedCache {
    /// An empty cache of a block with this quantiser.
    #[must_use]
    pub fn new(spec: &ModelSpec, kv: Option<&KvQuant>) -> Self {
        let side = |entries: Option<&EntryQuant>, by_feature| Side {
            entries: entries.cloned(),
            floats: Vec::new(),
            codes: Vec::new(),
            by_feature,
        };
        let keys = kv.filter(|kv| !kv.before_rope).map(|kv| &kv.keys);
        Self {
            head_dim: spec.head_dim,
            kv_heads: spec.kv_heads,
            keys: side(keys, true),
            values: side(kv.map(|kv| &kv.values), false),
            codes: None,
            broken: BTreeSet::new(),
        }
    }

    /// An empty cache whose codes a processor holds as well, if they are of eight bits with fixed parameters of each channel on both
    /// sides and it attends to such: then [`attend`](Self::attend) works.
    ///
    /// # Errors
    /// What the processor says.
    pub fn on(processor: &dyn Processor, spec: &ModelSpec, kv: Option<&KvQuant>) -> Result<Self, CoreError> {
        let mut cache = Self::new(spec, kv);
        let of = |side: &Side| match &side.entries {
            Some(EntryQuant::Channel { bits, scales, zeros }) if bits.get() == 8 => {
                Some(ChannelCodes { scales: scales.clone(), zeros: zeros.mapv(|zero| zero - MIDDLE) })
            }
            _ => None,
        };
        if let (Some(keys), Some(values)) = (of(&cache.keys), of(&cache.values)) {
            let (heads, kv_heads, head_dim) = (spec.heads, spec.kv_heads, spec.head_dim);
            cache.codes = processor.code_cache(&CodeCacheForm {
                heads,
                kv_heads,
                head_dim,
                page: PAGE,
                keys,
                values,
            })?;
        }
        Ok(cache)
    }

    /// Whether a processor attends to these pages.
    #[must_use]
    pub fn is_on_processor(&self, pages: &[u32]) -> bool {
        self.codes.is_some() && !pages.iter().any(|page| self.broken.contains(page))
    }

    /// Attention of the newest token of each sequence on the processor that holds the codes: queries `[sequences, heads · head_dim]` become
    /// its outputs. Nothing is done where no processor [holds](Self::is_on_processor) them.
    ///
    /// # Errors
    /// What the processor says.
    pub fn attend(
        &mut self,
        queries: ArrayViewMut2<'_, f32>,
        sequences: &[Cached<'_>],
    ) -> Result<(), CoreError> {
        match &mut self.codes {
            Some(codes) => codes.attend(queries, sequences),
            None => Ok(()),
        }
    }

    /// Whether keys are kept as codes, so that whoever writes them must not quantise them first.
    #[must_use]
    pub fn quantises_keys(&self) -> bool {
        self.keys.entries.is_some()
    }

    /// Makes room for pages with numbers below `pages`.
    ///
    /// # Errors
    /// What the processor says that holds the codes as well, if there is one.
    pub fn reserve(&mut self, pages: usize) -> Result<(), CoreError> {
        for side in [&mut self.keys, &mut self.values] {
            side.reserve(pages, self.kv_heads, self.head_dim);
        }
        self.codes.as_mut().map_or(Ok(()), |codes| codes.reserve(pages))
    }

    /// Writes key and value of one token, `[kv_heads · head_dim]` each, into a slot of a page.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub fn write(&mut self, page: u32, slot: usize, key: &[f32], value: &[f32]) -> Result<(), CoreError> {
        let Some(codes) = &mut self.codes else {
            self.keys.write(page as usize, slot, key, self.head_dim, None);
            self.values.write(page as usize, slot, value, self.head_dim, None);
            return Ok(());
        };
        let (mut of_key, mut of_value) = (vec![0; key.len()], vec![0; value.len()]);
        let finite = self.keys.write(page as usize, slot, key, self.head_dim, Some(&mut of_key))
            & self.values.write(page as usize, slot, value, self.head_dim, Some(&mut of_value));
        if slot == 0 {
            // Somebody else's from here on.
            self.broken.remove(&page);
        }
        if !finite {
            // No code stands for what is not finite; here it is remembered beside the codes.
            self.broken.insert(page);
        }
        codes.write(page, slot, &of_key, &of_value)
    }

    /// Keys and values of a head on a page.
    #[must_use]
    pub fn page(&self, page: u32, head: usize) -> (PageEntries<'_>, PageEntries<'_>) {
        let page = page as usize;
        (self.keys.page(page, head, self.head_dim), self.values.page(page, head, self.head_dim))
    }
}

impl Side {
    fn reserve(&mut self, pages: usize, kv_heads: usize, head_dim: usize) {
        let size = PAGE * head_dim * kv_heads;
        let parameters = |wanted| if wanted { vec![0.0; PAGE * kv_heads] } else { Vec::new() };
        match &self.entries {
            None => self.floats.resize_with(pages.max(self.floats.len()), || vec![0.0; size]),
            Some(entries) => {
                let dynamic = matches!(entries, EntryQuant::TokenHead { .. });
                self.codes.resize_with(pages.max(self.codes.len()), || Codes {
                    levels: vec![0; size],
                    scales: parameters(true),
                    zeros: parameters(dynamic),
                });
            }
        }
    }

    /// Signed codes go to `codes` too; whether the row was finite comes back.
    fn write(
        &mut self,
        page: usize,
        slot: usize,
        row: &[f32],
        head_dim: usize,
        mut codes: Option<&mut [i8]>,
    ) -> bool {
        let mut finite = true;
        let size = PAGE * head_dim;
        let mut levels = vec![0; head_dim];
        for (head, x) in row.chunks_exact(head_dim).enumerate() {
            let place = |feature: usize| {
                head * size + if self.by_feature { feature * PAGE + slot } else { slot * head_dim + feature }
            };
            match &self.entries {
                None => {
                    let page = &mut self.floats[page];
                    x.iter().enumerate().for_each(|(feature, &x)| page[place(feature)] = x);
                }
                Some(entries) => {
                    let params = entries.levels(head * head_dim, x, &mut levels);
                    finite &= params.scale.is_finite();
                    if let Some(codes) = codes.as_deref_mut() {
                        let codes = codes[head * head_dim..].iter_mut();
                        codes.zip(&levels).for_each(|(code, level)| *code = (level ^ 0x80).cast_signed());
                    }
                    let page = &mut self.codes[page];
                    levels.iter().enumerate().for_each(|(feature, &x)| page.levels[place(feature)] = x);
                    page.scales[head * PAGE + slot] = params.scale;
                    if let Some(zero) = page.zeros.get_mut(head * PAGE + slot) {
                        *zero = params.zero;
                    }
                }
            }
        }
        finite
    }

    fn page(&self, page: usize, head: usize, head_dim: usize) -> PageEntries<'_> {
        let size = PAGE * head_dim;
        let (all, slots) = (head * size..(head + 1) * size, head * PAGE..(head + 1) * PAGE);
        match &self.entries {
            None => PageEntries::Float(&self.floats[page][all]),
            Some(entries) => {
                let Codes { levels, scales: of_tokens, zeros: zeros_of_tokens } = &self.codes[page];
                let levels = &levels[all];
                let channels = head * head_dim..(head + 1) * head_dim;
                match entries {
                    EntryQuant::TokenHead { .. } => PageEntries::TokenHead {
                        levels,
                        scales: &of_tokens[slots.clone()],
                        zeros: &zeros_of_tokens[slots],
                    },
                    EntryQuant::Channel { scales, zeros, .. } => PageEntries::Channel {
                        levels,
                        scales: scales.as_slice().map_or(&[], |s| &s[channels.clone()]),
                        zeros: zeros.as_slice().map_or(&[], |z| &z[channels]),
                        poison: &of_tokens[slots],
                    },
                }
            }
        }
    }
}
