//! Which tokens go through the model next.

use super::resident::ResidentModel;
use super::sampling::Sampling;
use crate::{ModelError, PagedCache, RopeTables, Span};
use ndarray::ArrayView1;
use quant_graph::BlockSource;
use quant_kernels::PAGE;
use std::ops::{ControlFlow, Range};

/// A prompt to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its number, by which draws are keyed: that of the item in its source, whatever else is run.
    pub index: u64,
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// Tokens to add at most.
    pub max_new_tokens: usize,
}

impl Request {
    /// Positions it may come to.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.prompt.len().saturating_add(self.max_new_tokens)
    }
    /// Pages its cache may need: the last token is not read again.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.positions().saturating_sub(1).div_ceil(PAGE)
    }
}

/// Settings of a [`Generator`]. None but `sampling` and `stop` changes a token.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Tokens that end a text.
    pub stop: Vec<u32>,
    /// Requests that are worked on at a time.
    pub batch: usize,
    /// Tokens of a pass at most, prompts and continuations together.
    pub chunk: usize,
    /// Pages of the cache that exist at most; the requests at work never need more. At least what the largest request needs is used.
    pub pages: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { sampling: Sampling::GREEDY, stop: Vec::new(), batch: 16, chunk: 512, pages: usize::MAX }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finish {
    /// With a token that ends texts.
    Stop,
    /// With as many tokens as were allowed.
    Length,
    /// The model's logits were not finite.
    NonFinite,
}

impl Finish {
    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::NonFinite => "non_finite",
        }
    }
}

/// A continued prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The new tokens, a last one that ended the text included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// A token as it comes.
#[derive(Clone, Debug)]
pub struct Generated<'a> {
    /// Which of the requests, in the order they were given.
    pub request: usize,
    /// The token; none where the logits are not finite.
    pub token: Option<u32>,
    /// Whether the text ended, and why.
    pub finish: Option<Finish>,
    /// The logits it was drawn from.
    pub logits: ArrayView1<'a, f32>,
}

/// Runs requests through a model, as many at a time as there is room for: when one ends, the next one takes its place.
///
/// ```
/// use quant_model::{Compute, GenerateOptions, Generator, Par, Request, ResidentModel, model_spec};
/// use std::ops::ControlFlow;
/// # use quant_model::{InMemoryModel, ndarray::Array1};
/// # let config = serde_json::json!({ "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 12,
/// #     "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10, "max_position_embeddings": 64 });
/// # let spec = model_spec(&config)?;
/// # let mut numbers = quant_testkit::Numbers::new(1);
/// # let block = quant_testkit::random_block(&spec, &mut numbers);
/// # let mut table = || numbers.matrix(10, 8, 1.0);
/// # let model = InMemoryModel::new(spec, vec![block], table(), Array1::ones(8), Some(table()))?;
///
/// let mut model = ResidentModel::load(model, Compute::F32, Par::Seq, &mut |_, _| ControlFlow::Continue(()))?;
/// let request = |index, prompt: &[u32]| Request { index, prompt: prompt.to_vec(), max_new_tokens: 5 };
/// let requests = [request(0, &[1, 2, 3]), request(1, &[4])];
/// let options = GenerateOptions::default();
/// let both = Generator::new(&mut model, options.clone()).run(&requests, &mut |_| ControlFlow::Continue(()))?;
/// assert_eq!(both[1].tokens.len(), 5);
/// // What one becomes does not depend on the other.
/// let alone = Generator::new(&mut model, options).run(&requests[1..], &mut |_| ControlFlow::Continue(()))?;
/// assert_eq!(alone[0], both[1]);
/// # Ok::<(), quant_model::ModelError>(())
/// ```
#[derive(Debug)]
pub struct Generator<'m, S> {
    model: &'m mut ResidentModel<S>,
    options: GenerateOptions,
}

/// A request at work.
struct Active {
    request: usize,
    pages: Vec<u32>,
    /// Tokens in the cache.
    past: usize,
    /// New tokens so far.
    tokens: Vec<u32>,
}

impl Active {
    /// Tokens that are known and not in the cache.
    fn waiting(&self, request: &Request) -> usize {
        request.prompt.len() + self.tokens.len() - self.past
    }
    fn token(&self, request: &Request, position: usize) -> u32 {
        let prompt = request.prompt.len();
        if position < prompt { request.prompt[position] } else { self.tokens[position - prompt] }
    }
}

impl<'m, S: BlockSource> Generator<'m, S> {
    /// A generator on a model.
    #[must_use]
    pub fn new(model: &'m mut ResidentModel<S>, options: GenerateOptions) -> Self {
        Self { model, options }
    }

    /// Continues every request; results come in the order of the requests. `see` is told every token as it comes and may stop the work.
    ///
    /// # Errors
    /// [`ModelError::Stopped`] after `see` has said `Break`; [`ModelError::Prompt`] for a request without tokens, with a token outside the
    /// vocabulary, or longer than the model's context; as of [`ResidentModel::step`].
    pub fn run(
        &mut self,
        requests: &[Request],
        see: &mut dyn FnMut(Generated<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Completion>, ModelError> {
        self.check(requests)?;
        let ropes = RopeTables::new(self.model.spec(), requests.iter().map(Request::positions));
        let largest = requests.iter().map(Request::pages).max().unwrap_or(0);
        let mut pool = Pool { free: Vec::new(), made: 0, limit: self.options.pages.max(largest) };
        let mut caches = self.model.caches()?;
        let mut done: Vec<Option<Completion>> = requests.iter().map(|_| None).collect();
        let mut next = 0;
        let mut active: Vec<Active> = Vec::new();
        loop {
            while next < requests.len() && active.len() < self.options.batch.max(1) {
                if requests[next].max_new_tokens == 0 {
                    done[next] = Some(Completion { tokens: Vec::new(), finish: Finish::Length });
                    next += 1;
                    continue;
                }
                let Some(pages) = pool.take(requests[next].pages()) else { break };
                active.push(Active { request: next, pages, past: 0, tokens: Vec::new() });
                next += 1;
            }
            if active.is_empty() {
                break;
            }
            for (block, cache) in caches.iter_mut().enumerate() {
                let made = cache.reserve(pool.made as usize);
                let what = "its cache".to_owned();
                made.map_err(|cause| ModelError::Operator { block, what, cause })?;
            }
            self.pass(requests, &ropes, &mut active, &mut caches, see)?;
            active.retain_mut(|one| {
                let Some(finish) = self.finished(&requests[one.request], one) else { return true };
                pool.free.append(&mut one.pages);
                let tokens = std::mem::take(&mut one.tokens);
                done[one.request] = Some(Completion { tokens, finish });
                false
            });
        }
        Ok(done.into_iter().flatten().collect())
    }

    fn check(&self, requests: &[Request]) -> Result<(), ModelError> {
        let spec = self.model.spec();
        for (index, request) in requests.iter().enumerate() {
            let refused = |problem: String| Err(ModelError::Prompt { index, problem });
            if request.prompt.is_empty() {
                return refused("it has no tokens".to_owned());
            }
            if let Some(token) = request.prompt.iter().find(|&&token| token as usize >= spec.vocab) {
                return refused(format!("token {token} is outside the vocabulary of {}", spec.vocab));
            }
            if request.positions() > spec.max_position_embeddings {
                return refused(format!(
                    "{} tokens and {} new ones are more than the model's context of {}",
                    request.prompt.len(),
                    request.max_new_tokens,
                    spec.max_position_embeddings
                ));
            }
        }
        Ok(())
    }

    /// The end of a request, if it has come. A request whose logits are not finite gets no further token.
    fn finished(&self, request: &Request, one: &Active) -> Option<Finish> {
        if one.waiting(request) == 0 {
            return Some(Finish::NonFinite);
        }
        match one.tokens.last() {
            Some(last) if self.options.stop.contains(last) => Some(Finish::Stop),
            Some(_) if one.tokens.len() >= request.max_new_tokens => Some(Finish::Length),
            _ => None,
        }
    }

    /// One pass of the model: a token of every request that goes on, and as much of the prompts as there is room for.
    fn pass(
        &mut self,
        requests: &[Request],
        ropes: &RopeTables,
        active: &mut [Active],
        caches: &mut [PagedCache],
        see: &mut dyn FnMut(Generated<'_>) -> ControlFlow<()>,
    ) -> Result<(), ModelError> {
        let mut room = self.options.chunk.max(1);
        let mut taken: Vec<(usize, usize)> = Vec::with_capacity(active.len());
        let continues = |one: &Active| !one.tokens.is_empty();
        let order = (0..active.len()).filter(|&i| continues(&active[i]));
        for at in order.chain((0..active.len()).filter(|&i| !continues(&active[i]))) {
            let count = active[at].waiting(&requests[active[at].request]).min(room);
            if count > 0 {
                taken.push((at, count));
                room -= count;
            }
        }
        let (mut ids, mut spans, mut drawn) = (Vec::new(), Vec::with_capacity(taken.len()), Vec::new());
        for &(at, count) in &taken {
            let (one, request) = (&active[at], &requests[active[at].request]);
            let rows: Range<usize> = ids.len()..ids.len() + count;
            ids.extend((one.past..one.past + count).map(|position| one.token(request, position)));
            if count == one.waiting(request) {
                drawn.push((at, rows.end - 1));
            }
            let rope = ropes.table(request.positions());
            let generated = continues(one) && count == 1;
            spans.push(Span { rows, past: one.past, generated, pages: &one.pages, rope });
        }
        let rows: Vec<usize> = drawn.iter().map(|&(_, row)| row).collect();
        let logits = self.model.step(&ids, &spans, caches, &rows)?;
        drop(spans);
        for (at, count) in taken {
            active[at].past += count;
        }
        for ((at, _), logits) in drawn.into_iter().zip(logits.rows()) {
            let request = &requests[active[at].request];
            let one = &mut active[at];
            let row = logits.to_slice().unwrap_or_default();
            let token = self.options.sampling.draw(row, request.index, one.past as u64);
            one.tokens.extend(token);
            let finish = self.finished(request, one);
            let generated = Generated { request: one.request, token, finish, logits };
            if see(generated).is_break() {
                return Err(ModelError::Stopped);
            }
        }
        Ok(())
    }
}

/// Numbers of pages.
struct Pool {
    free: Vec<u32>,
    made: u32,
    limit: usize,
}

impl Pool {
    /// So many pages, those that were given back first; none while there are too few.
    fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        let new = count.saturating_sub(self.free.len());
        if self.made as usize + new > self.limit {
            return None;
        }
        let mut pages = self.free.split_off(self.free.len() - (count - new));
        let first = self.made;
        self.made += u32::try_from(new).ok()?;
        pages.extend(first..self.made);
        Some(pages)
    }
}
