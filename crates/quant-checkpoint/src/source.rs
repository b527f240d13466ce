//! Opening a checkpoint folder: `config.json` and the tensors of one or many shards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use safetensors::Dtype;
use serde_json::Value;

use crate::error::{CheckpointError, Result};
use crate::hash::TensorHash;
use crate::header::{Header, MAX_HEADER_BYTES};
use crate::hints;
use crate::index::ShardIndex;
use crate::json::{LARGE_JSON_BYTES, SMALL_JSON_BYTES, open_regular, parse_strict_json, read_json_text};
use crate::listing::list_files;
use crate::marker::{JOURNAL, MARKER};
use crate::scratch::{Counters, WavePool};

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Full name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Element type as stored.
    pub dtype: Dtype,
    /// Shape, row-major; empty for a scalar.
    pub shape: Vec<usize>,
    /// Name of the file that holds it.
    pub file: Arc<str>,
    /// Its bytes in that file, counted from the start of the file.
    pub range: Range<u64>,
    /// Position of `file` in the list of shards.
    pub(crate) shard: usize,
}

impl TensorInfo {
    /// Stored size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        // The product was checked when the header was parsed.
        self.shape.iter().product()
    }
}

/// An open shard. The handle stays open, so that the header that was checked and the data that is read belong to the
/// same file even if the name is replaced meanwhile.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
}

/// A checked, open checkpoint. Headers are in memory, weights are read when asked for, by positioned reads (no memory
/// map: what is resident is what the caller holds). All methods take `&self` and may be called from many threads.
#[derive(Debug)]
pub struct Checkpoint {
    pub(crate) path: PathBuf,
    config: Value,
    config_text: String,
    pub(crate) shards: Vec<Shard>,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
    index: Option<String>,
    declared_bytes: Option<u64>,
    pub(crate) counters: Counters,
    pub(crate) waves: WavePool,
}

/// Prefixes that [`Checkpoint::open`] tries, in order.
const PREFIXES: [&str; 2] = ["model", "quant_model_weights"];
/// What the prefixes of older msmodelslim begin with (`quant_model_weight_w8a8_dynamic`).
const OLDER: &str = "quant_model_weight_";
const CONFIG: &str = "config.json";
const SINGLE: &str = ".safetensors";
const INDEX: &str = ".safetensors.index.json";

impl Checkpoint {
    /// Opens a folder: `config.json` and `model.safetensors` or `model.safetensors.index.json` with its shards; in
    /// the absence of both, the same with `quant_model_weights` (the names msmodelslim uses), or with the one
    /// `quant_model_weight_<type>` there is (those that it used).
    ///
    /// # Errors
    /// Any fault of the folder: an unfinished output of ours, missing files, malformed or lying headers, an index
    /// that disagrees with its shards. See [`CheckpointError`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        check_folder(dir)?;
        if let Some(prefix) = PREFIXES.into_iter().find(|prefix| has_weights(dir, prefix)) {
            return Self::open_named(dir, prefix);
        }
        match older_prefix(dir)? {
            Some(prefix) => Self::open_named(dir, &prefix),
            None => Err(foreign_weights(dir)?),
        }
    }

    /// Opens a folder whose weights are `{prefix}.safetensors`, or shards listed by
    /// `{prefix}.safetensors.index.json`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_named(dir: impl AsRef<Path>, prefix: &str) -> Result<Self> {
        let dir = dir.as_ref();
        check_folder(dir)?;
        let (value, config_text) = config_of(dir)?;
        let (single, index) = (format!("{prefix}{SINGLE}"), format!("{prefix}{INDEX}"));
        let mut out = if dir.join(&index).symlink_metadata().is_ok() {
            let bytes = read_json_text(&dir.join(&index), &index, "the list of shards", LARGE_JSON_BYTES)?;
            let parsed = ShardIndex::parse(&index, &bytes)?;
            // Loaders disagree on which of the two wins, so a stale one would silently change the model.
            if dir.join(&single).symlink_metadata().is_ok()
                && !parsed.weight_map.values().any(|s| *s == single)
            {
                return Err(CheckpointError::AmbiguousWeights { path: dir.to_path_buf(), single, index });
            }
            Self::from_index(dir, &index, &parsed)?
        } else {
            let mut out = Self::empty(dir);
            out.add_shard(dir.join(&single), &single)?;
            out
        };
        out.config = value;
        out.config_text = config_text;
        Ok(out)
    }

    /// Opens one safetensors file alone, such as a token file or a set of reference tensors. The configuration is
    /// `null`.
    ///
    /// # Errors
    /// Any fault of the file; see [`Header::parse`].
    pub fn open_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.file_name().map_or_else(|| path.to_string_lossy(), |n| n.to_string_lossy());
        let mut out = Self::empty(path);
        out.add_shard(path.to_path_buf(), &name)?;
        Ok(out)
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            config: Value::Null,
            config_text: String::new(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
            index: None,
            declared_bytes: None,
            counters: Counters::default(),
            waves: WavePool::default(),
        }
    }

    fn from_index(dir: &Path, index: &str, parsed: &ShardIndex) -> Result<Self> {
        let mut by_shard: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (tensor, shard) in &parsed.weight_map {
            by_shard.entry(shard).or_default().insert(tensor);
        }
        let mut out = Self::empty(dir);
        out.index = Some(index.to_owned());
        out.declared_bytes = parsed.total_size;
        for (shard, expected) in by_shard {
            let found = out.add_shard(dir.join(shard), shard).map_err(|e| match e {
                CheckpointError::MissingFile { .. } => CheckpointError::MissingShard {
                    index: index.to_owned(),
                    shard: shard.to_owned(),
                    tensor: expected.first().map_or_else(String::new, ToString::to_string),
                },
                other => other,
            })?;
            let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
            if let Some(tensor) = expected.difference(&found).next() {
                return Err(CheckpointError::TensorNotInShard {
                    index: index.to_owned(),
                    shard: shard.to_owned(),
                    tensor: (*tensor).to_owned(),
                });
            }
            if let Some(tensor) = found.difference(&expected).next() {
                return Err(CheckpointError::TensorNotInIndex {
                    index: index.to_owned(),
                    shard: shard.to_owned(),
                    tensor: (*tensor).to_owned(),
                    count: found.difference(&expected).count(),
                });
            }
        }
        Ok(out)
    }

    /// Opens one shard, checks its header and adds its tensors; returns their names. A name that another shard also
    /// holds is caught by the caller's comparison with the index, which places it in one shard only.
    fn add_shard(&mut self, path: PathBuf, name: &str) -> Result<Vec<String>> {
        let file = open_regular(&path, "the weights")?;
        let header = Header::read(&path, name, &file)?;
        let shard = self.shards.len();
        let label: Arc<str> = Arc::from(name);
        let mut names = Vec::with_capacity(header.tensors.len());
        for (tensor, entry) in header.tensors {
            names.push(tensor.clone());
            let info = TensorInfo {
                name: tensor.clone(),
                dtype: entry.dtype,
                shape: entry.shape,
                file: Arc::clone(&label),
                range: entry.start..entry.end,
                shard,
            };
            self.tensors.insert(tensor, info);
        }
        self.metadata.extend(header.metadata);
        self.shards.push(Shard { path, file });
        Ok(names)
    }

    /// What tells this checkpoint from one that was changed, without reading its weights: a hash of `config.json` and of the
    /// index, and of each shard the size, the time of its last change and a hash of its header.
    ///
    /// # Errors
    /// [`CheckpointError::Read`]
    pub fn fingerprint(&self) -> Result<Vec<(String, String)>> {
        let mut fields = vec![(CONFIG.to_owned(), TensorHash::of(self.config_text.as_bytes()).short())];
        if let Some(index) = &self.index {
            let path = self.path.join(index);
            let text = read_json_text(&path, index, "the list of shards", LARGE_JSON_BYTES)?;
            fields.push((index.clone(), TensorHash::of(&text).short()));
        }
        for Shard { path, file } in &self.shards {
            let fail = |e| CheckpointError::read(path, e);
            let meta = file.metadata().map_err(fail)?;
            let changed = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            let changed = changed
                .map_or_else(|| "unknown".to_owned(), |t| format!("{}.{:09}", t.as_secs(), t.subsec_nanos()));
            // The header was checked when the file was opened: its length is one that a file may have.
            let mut length = [0; 8];
            file.read_exact_at(&mut length, 0).map_err(fail)?;
            let length = u64::from_le_bytes(length).min(MAX_HEADER_BYTES);
            let mut header = vec![0; usize::try_from(length).unwrap_or_default()];
            file.read_exact_at(&mut header, 8).map_err(fail)?;
            let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
            let header = TensorHash::of(&header).short();
            fields.push((name, format!("{} bytes of {changed}, header {header}", meta.len())));
        }
        Ok(fields)
    }

    /// The folder (or the file, for [`Checkpoint::open_file`]) as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json` with its keys in their order; `null` for [`Checkpoint::open_file`].
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// `config.json` byte for byte.
    #[must_use]
    pub fn config_text(&self) -> &str {
        &self.config_text
    }

    /// `__metadata__` of the shards, joined.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// One tensor's description, if the checkpoint has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// One tensor's description.
    ///
    /// # Errors
    /// [`CheckpointError::NoSuchTensor`].
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors
            .get(name)
            .ok_or_else(|| CheckpointError::NoSuchTensor { path: self.path.clone(), tensor: name.to_owned() })
    }

    /// One tensor's description, which must have the given shape.
    ///
    /// # Errors
    /// [`CheckpointError::NoSuchTensor`], [`CheckpointError::ShapeMismatch`].
    pub fn tensor_shaped(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let info = self.tensor(name)?;
        if info.shape != shape {
            return Err(shape_mismatch(info, format!("shape {shape:?}")));
        }
        Ok(info)
    }

    /// Bytes of all tensors together, headers not counted.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(TensorInfo::bytes).sum()
    }

    /// `metadata.total_size` of the index, if there is an index that states one. Not relied on; compare it with
    /// [`Checkpoint::total_bytes`] to find a sloppy writer.
    #[must_use]
    pub fn declared_bytes(&self) -> Option<u64> {
        self.declared_bytes
    }

    /// Name of the index in use; `None` for a single file.
    #[must_use]
    pub fn index_file(&self) -> Option<&str> {
        self.index.as_deref()
    }

    /// Names of the weight files in use, sorted.
    #[must_use]
    pub fn weight_files(&self) -> Vec<String> {
        let names = self.shards.iter().filter_map(|s| s.path.file_name());
        let mut names: Vec<_> = names.map(|n| n.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// `*.safetensors` and `*.safetensors.index.json` files of the folder that are not part of this checkpoint,
    /// sorted. Some loaders read every file that matches, so a verifier refuses strays.
    ///
    /// # Errors
    /// [`CheckpointError::Read`] when the folder cannot be listed.
    pub fn stray_weight_files(&self) -> Result<Vec<String>> {
        let used: BTreeSet<String> = self.weight_files().into_iter().collect();
        let stray = |name: &String| {
            (name.ends_with(".safetensors") && !used.contains(name))
                || (name.ends_with(".safetensors.index.json") && self.index.as_ref() != Some(name))
        };
        Ok(list_files(&self.path)?.into_iter().filter(stray).collect())
    }
}

pub(crate) fn shape_mismatch(info: &TensorInfo, expected: String) -> CheckpointError {
    CheckpointError::ShapeMismatch {
        file: info.file.to_string(),
        tensor: info.name.clone(),
        expected,
        found: info.shape.clone(),
    }
}

/// `config.json` of a folder with its keys in their order; the weights are not looked at.
///
/// # Errors
/// An unfinished output of ours, a missing or oversized file, and text that is not one JSON object without repeated
/// keys.
pub fn read_config(dir: impl AsRef<Path>) -> Result<Value> {
    check_folder(dir.as_ref())?;
    config_of(dir.as_ref()).map(|(value, _)| value)
}

/// `config.json`, parsed and as text.
fn config_of(dir: &Path) -> Result<(Value, String)> {
    let bytes = read_json_text(&dir.join(CONFIG), CONFIG, "the model's configuration", SMALL_JSON_BYTES)?;
    let value = parse_strict_json(CONFIG, &bytes)?;
    if !value.is_object() {
        let detail = "expected an object".to_owned();
        return Err(CheckpointError::Json { file: CONFIG.to_owned(), detail });
    }
    // JSON that parsed is UTF-8, so nothing is lost here.
    Ok((value, String::from_utf8_lossy(&bytes).into_owned()))
}

fn check_folder(dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        return Err(CheckpointError::NotAFolder { path: dir.to_path_buf(), hint: hints::not_a_folder(dir) });
    }
    if dir.join(CONFIG).symlink_metadata().is_err()
        && let Some(hint) = hints::model_is_elsewhere(dir)
    {
        return Err(CheckpointError::NotAModel { path: dir.to_path_buf(), hint });
    }
    if dir.join(MARKER).symlink_metadata().is_ok() {
        let advice = if dir.join(JOURNAL).is_dir() {
            "the command that began it goes on with --resume; use what it makes"
        } else {
            "quantise again and use the result"
        };
        return Err(CheckpointError::PartialOutput { path: dir.to_path_buf(), marker: MARKER, advice });
    }
    Ok(())
}

/// Whether a folder has weights of this prefix, alone or in shards.
pub(crate) fn has_weights(dir: &Path, prefix: &str) -> bool {
    [SINGLE, INDEX].iter().any(|ending| dir.join(format!("{prefix}{ending}")).symlink_metadata().is_ok())
}

/// The prefix of weights under the names of older msmodelslim, if the folder has such.
pub(crate) fn older_prefix(dir: &Path) -> Result<Option<String>> {
    let names = list_files(dir)?;
    let prefix = |name: &String| {
        let prefix = name.strip_suffix(INDEX).or_else(|| name.strip_suffix(SINGLE))?;
        // The shards of an index are not weights by themselves.
        (prefix.starts_with(OLDER) && !prefix.contains("-of-")).then(|| prefix.to_owned())
    };
    let mut prefixes: BTreeSet<String> = names.iter().filter_map(prefix).collect();
    if prefixes.len() > 1 {
        let found = prefixes.into_iter().collect::<Vec<_>>().join(", ");
        return Err(CheckpointError::SeveralWeights { path: dir.to_path_buf(), found });
    }
    Ok(prefixes.pop_first())
}

/// The error for a folder without weights that are read: names others if there are any.
fn foreign_weights(dir: &Path) -> Result<CheckpointError> {
    const FOREIGN: [&str; 6] = [".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"];
    let names = list_files(dir)?;
    let path = dir.to_path_buf();
    if let Some(found) = names.iter().find(|name| name.ends_with(SINGLE)) {
        return Ok(CheckpointError::UnlistedWeights { path, found: found.clone() });
    }
    let found = names.into_iter().find(|n| FOREIGN.iter().any(|f| n.ends_with(f)));
    Ok(match found {
        Some(found) => CheckpointError::UnsupportedWeights { path, found },
        None => CheckpointError::MissingFile {
            path: dir.join("model.safetensors"),
            role: "the weights (or model.safetensors.index.json, or quant_model_weights.safetensors)",
        },
    })
}
