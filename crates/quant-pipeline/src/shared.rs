//! What several jobs share: values that are equal by construction, made once.
//!
//! A value is found again by everything that determines it, written out as a key. Whoever has the jobs owns the memory and says how
//! large it may become. It lives in one process, so that everything in it was computed with one set of instructions; the number of
//! threads changes no bit.

use crate::PipelineError;
use quant_checkpoint::TensorHash;
use std::any::Any;
use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files beside a model that decide what tokens a text becomes.
const OF_TEXT: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];

/// A bounded memory that jobs share: tokenised data, and statistics of the float stream. Clones are the same memory; by default nothing is
/// shared. An output has the same bytes either way.
///
/// ```
/// use quant_pipeline::{QuantizeJob, Recipe, Shared, Silent, quantize};
/// use quant_data::CalibrationSpec;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-reasoner");
/// # let output = tempfile::tempdir()?;
/// let shared = Shared::new(1 << 30);
/// for scheme in ["W8A8", "W4A8"] {
///     let text = format!("version: 1\nmodifiers: [smoothquant: {{}}, rtn: {{ scheme: {scheme} }}]\n");
///     let job = QuantizeJob {
///         calibration: Some(CalibrationSpec::parse(&format!("{model}/tasks/calibration.jsonl"))?),
///         num_samples: Some(1),
///         max_seq_len: Some(16),
///         force_unsupported: true,
///         shared: shared.clone(),
///         ..QuantizeJob::new(model, Recipe::parse(&text)?, output.path().join(scheme))
///     };
///     quantize(&job, &mut Silent)?;
/// }
/// // The second job found the tokens and the largest activations that the first one left.
/// assert_eq!(shared.found(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Shared(Option<Arc<Mutex<Held>>>);

#[derive(Default)]
struct Held {
    most: u64,
    bytes: u64,
    found: usize,
    /// The oldest first.
    values: VecDeque<Value>,
}

struct Value {
    key: String,
    bytes: u64,
    value: Arc<dyn Any + Send + Sync>,
}

impl Shared {
    /// A memory of at most so many bytes.
    #[must_use]
    pub fn new(most: u64) -> Self {
        Self(Some(Arc::new(Mutex::new(Held { most, ..Held::default() }))))
    }

    fn held(&self) -> Option<MutexGuard<'_, Held>> {
        self.0.as_ref().map(|held| held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Bytes it may hold.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.held().map_or(0, |held| held.most)
    }

    /// Bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.held().map_or(0, |held| held.bytes)
    }

    /// How often something was found in it.
    #[must_use]
    pub fn found(&self) -> usize {
        self.held().map_or(0, |held| held.found)
    }

    /// What was kept under a key.
    #[must_use]
    pub fn get<T: Send + Sync + 'static>(&self, key: &str) -> Option<Arc<T>> {
        let mut held = self.held()?;
        let value = held.values.iter().find(|value| value.key == key)?.value.clone().downcast().ok()?;
        held.found += 1;
        Some(value)
    }

    /// Keeps a value of so many bytes under a key by which nothing else can be found. What is oldest makes room; a value that is larger
    /// than the whole memory is not kept.
    pub fn keep<T: Send + Sync + 'static>(&self, key: String, value: Arc<T>, bytes: u64) {
        let Some(mut held) = self.held() else { return };
        let bytes = bytes + key.len() as u64;
        if bytes > held.most || held.values.iter().any(|value| value.key == key) {
            return;
        }
        while held.bytes + bytes > held.most {
            let Some(oldest) = held.values.pop_front() else { break };
            held.bytes -= oldest.bytes;
        }
        held.bytes += bytes;
        held.values.push_back(Value { key, bytes, value });
    }

    /// What was kept under a key, or what `make` makes and is then kept. Where nothing is shared, `key` is not asked for.
    ///
    /// # Errors
    /// Those of `key` and `make`.
    pub fn or_make<T: Send + Sync + 'static, E>(
        &self,
        key: impl FnOnce() -> Result<String, E>,
        bytes: impl FnOnce(&T) -> u64,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        if self.0.is_none() {
            return make().map(Arc::new);
        }
        let key = key()?;
        if let Some(value) = self.get(&key) {
            return Ok(value);
        }
        let value = Arc::new(make()?);
        let bytes = bytes(&value);
        self.keep(key, Arc::clone(&value), bytes);
        Ok(value)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.held() {
            Some(held) => write!(f, "Shared({} of {} bytes)", held.bytes, held.most),
            None => f.write_str("Shared(nothing)"),
        }
    }
}

/// What tells tokenised data apart: the content of its files, and of those beside the model that make tokens of them.
///
/// # Errors
/// [`PipelineError::Io`] for a file that cannot be read.
pub fn text_identity(files: &[PathBuf], model: &Path) -> Result<String, PipelineError> {
    let beside = OF_TEXT.iter().map(|name| model.join(name)).filter(|path| path.exists());
    let mut identity = String::new();
    for path in files.iter().cloned().chain(beside) {
        let hash = File::open(&path).and_then(TensorHash::of_reader);
        let hash = hash.map_err(|source| PipelineError::Io { path: path.clone(), source })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Writing to a text cannot fail.
        let _ = write!(identity, "{name} {hash}; ");
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(shared: &Shared, key: &str, bytes: u64) -> bool {
        shared.keep(key.to_owned(), Arc::new(bytes), bytes - key.len() as u64);
        shared.get::<u64>(key).is_some()
    }

    #[test]
    fn the_oldest_makes_room_and_the_bound_is_kept() {
        let shared = Shared::new(100);
        assert!(keep(&shared, "a", 40) && keep(&shared, "b", 40));
        assert_eq!((shared.bytes(), shared.found()), (80, 2));
        assert!(keep(&shared.clone(), "c", 50), "clones are one memory");
        assert_eq!(
            (shared.bytes(), shared.get::<u64>("a"), shared.get::<u64>("b").as_deref()),
            (90, None, Some(&40))
        );
        assert!(!keep(&shared, "d", 101) && shared.bytes() == 90, "what does not fit throws nothing out");
        assert!(shared.get::<String>("b").is_none(), "another type is another value");
    }

    #[test]
    fn nothing_is_shared_by_default_and_errors_are_not_kept() {
        let nothing = Shared::default();
        let never = || -> Result<String, String> { Err("asked for a key".into()) };
        assert_eq!(nothing.or_make(never, |_| 1, || Ok(7)).as_deref(), Ok(&7));
        assert_eq!((nothing.bytes(), nothing.most()), (0, 0));
        let shared = Shared::new(100);
        let key = || Ok::<_, String>("k".to_owned());
        assert!(shared.or_make::<i32, _>(key, |_| 1, || Err("no".to_owned())).is_err());
        assert_eq!(shared.or_make(key, |_| 1, || Ok(3)).as_deref(), Ok(&3));
        assert_eq!(shared.or_make(key, |_| 1, || Ok(4)).as_deref(), Ok(&3));
    }

    #[test]
    fn texts_are_told_apart_by_what_is_in_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let (data, tokenizer) = (folder.path().join("d.txt"), folder.path().join("tokenizer.json"));
        std::fs::write(&data, "a").unwrap();
        let of = || text_identity(std::slice::from_ref(&data), folder.path()).unwrap();
        let bare = of();
        std::fs::write(&tokenizer, "{}").unwrap();
        let with = of();
        std::fs::write(&data, "b").unwrap();
        assert!(bare != with && with != of());
        std::fs::write(&data, "a").unwrap();
        assert_eq!(with, of());
        let missing = text_identity(&[folder.path().join("none")], folder.path()).unwrap_err().to_string();
        assert!(missing.contains("none"), "{missing}");
    }
}
