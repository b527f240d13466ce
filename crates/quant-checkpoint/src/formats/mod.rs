//! The on-disk formats: what each can hold, its tensors and side files, and the way back.
//!
//! A format is a row of [`FORMATS`]. It answers three questions: may this scheme be stored ([`Format::supports`],
//! before the first weight is read), which bytes stand for a block ([`Format::declare`], [`Format::encode_block`]),
//! and which block stands in these bytes ([`Format::decode`]). For every supported scheme
//! `decode(encode(block)) == block`, except that [`Dequantized`] gives back the values of the levels.
//!
//! | id | folder |
//! |---|---|
//! | `compressed-tensors` | `quantization_config` in `config.json`; vLLM and transformers |
//! | `dequantized` | f32 values of the quantised weights and `ptq_scheme.json`; for research |
//! | `vllm-ascend` | `quant_model_description.json` beside `quant_model_weights-*`; vLLM on Ascend |

mod block;
mod bytes;
mod compressed_tensors;
mod dequantized;
mod input;
mod layout;
mod online;
mod plain;
mod slots;
mod vllm_ascend;

use std::collections::BTreeMap;
use std::fmt::Debug;

use quant_core::operators::Profile;
use quant_core::{ActQuant, ActRule, FloatType, KvGranularity, KvQuant};
use quant_graph::{BlockParams, Catalogue, Entry, LinearId, ModelScheme, ModelSpec, PairKernel};
use safetensors::Dtype;
use serde_json::{Map, Value};

use crate::error::{Result, not_encodable};
use crate::source::Checkpoint;
use crate::writer::ShardNaming;

pub use self::compressed_tensors::CompressedTensors;
pub use self::dequantized::Dequantized;
pub use self::layout::ExpectedTensor;
pub use self::vllm_ascend::VllmAscend;
pub use crate::writer::TensorDecl;
pub use quant_graph::Unsupported;

pub(crate) use self::bytes::{float_dtype, read_int8};
pub(crate) use self::compressed_tensors::config as compressed_tensors_config;
pub(crate) use self::layout::{FLOATS, faults, modules as layout_modules, plain_expected};
pub(crate) use self::plain::{read_block as read_plain_block, visit_block as visit_plain_block};
pub(crate) use self::vllm_ascend::{
    description as ascend_description, flatquant as ascend_flatquant, types as ascend_types,
};

/// Makes `config.json` name the type of the model. A loader that finds none takes the commonest type of the shards, and
/// the f32 scales of a float16 model then make it run as another model. The key is `dtype` since transformers 5 and
/// `torch_dtype` before; a config may have either or both. A type that is declared stays, unless `replace` says otherwise.
pub(crate) fn declare_dtype(config: &mut Map<String, Value>, dtype: FloatType, replace: bool) {
    const KEYS: [&str; 2] = ["torch_dtype", "dtype"];
    let name = match dtype {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::Bf16 => "bfloat16",
    };
    let spelt: Vec<&str> = KEYS.into_iter().filter(|key| config.contains_key(*key)).collect();
    for key in if spelt.is_empty() { vec![KEYS[0]] } else { spelt } {
        if replace || config.get(key).is_none_or(Value::is_null) {
            config.insert(key.to_owned(), name.into());
        }
    }
}

/// Makes `config.json` say whether head and embedding are one table, where the scheme may have taken them apart.
pub(crate) fn declare_tie(config: &mut Map<String, Value>, stored: &ModelSpec, scheme: &ModelScheme) {
    if scheme.fused || !scheme.tables.is_empty() {
        config.insert("tie_word_embeddings".to_owned(), stored.tied.into());
    }
}

/// A tensor ready to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Full name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// Little-endian bytes.
    pub bytes: Vec<u8>,
}

/// Names of the observers, which compressed-tensors records and no loader acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigNotes {
    /// How weight ranges were found: `memoryless_minmax`, `mse`.
    pub weight_observer: String,
    /// How static activation ranges were found: `minmax`.
    pub input_observer: String,
}

impl Default for ConfigNotes {
    fn default() -> Self {
        Self { weight_observer: "memoryless_minmax".to_owned(), input_observer: "minmax".to_owned() }
    }
}

/// The small numbers of a quantised block that a side file may need after the block itself has been written and freed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockSideData {
    /// Quantisers of the linears' inputs.
    pub inputs: BTreeMap<LinearId, ActQuant>,
    /// Quantiser of the cache.
    pub kv: Option<KvQuant>,
}

impl BlockSideData {
    /// Copies them out of a block.
    #[must_use]
    pub fn of(block: &BlockParams) -> Self {
        let inputs =
            block.linears.iter().filter_map(|(role, l)| l.input.map(|input| (*role, input))).collect();
        Self { inputs, kv: block.kv.clone() }
    }
}

/// The bytes of floats in an element type, for the parts of a model that no format changes: rounded to the nearest number it
/// holds.
///
/// # Errors
/// [`CheckpointError::NotEncodable`](crate::CheckpointError::NotEncodable) naming the first value that the type does not hold,
/// or a type that is no float type.
pub fn stored_floats(name: &str, values: impl IntoIterator<Item = f32>, dtype: Dtype) -> Result<Vec<u8>> {
    let kinds = [FloatType::F32, FloatType::F16, FloatType::Bf16];
    match kinds.into_iter().find(|kind| float_dtype(*kind) == dtype) {
        Some(kind) => bytes::float_bytes("a folder", name, values, kind, bytes::Loss::Rounding),
        None => Err(not_encodable("a folder", name, "a float type", dtype.to_string())),
    }
}

/// An on-disk format.
pub trait Format: Sync + Debug {
    /// The name in recipes.
    fn id(&self) -> &'static str;
    /// One line for people.
    fn summary(&self) -> &'static str;
    /// 1 for a format that deployments load, 2 for research.
    fn tier(&self) -> u8;
    /// What it holds, in one line.
    fn schemes(&self) -> &'static str;
    /// Programs that load it.
    fn clients(&self) -> &'static [&'static str];

    /// The type in which the loader holds weight scales, static input scales and static cache scales. Scales must be
    /// rounded to it before levels are computed from them. A float32 model is held in bfloat16.
    fn scale_type(&self, spec: &ModelSpec) -> FloatType;
    /// The type in which norms, float linears and (unless the format keeps them in f32) biases are stored.
    fn float_type(&self, spec: &ModelSpec) -> FloatType;
    /// The kernel for Kronecker pairs that is all its loader multiplies inputs by; none where it applies no transforms, or any.
    fn pair_kernel(&self, spec: &ModelSpec) -> Option<PairKernel> {
        let _ = spec;
        None
    }
    /// Whose arithmetic quantises the inputs of linears where such a folder runs.
    fn profile(&self, spec: &ModelSpec) -> Profile {
        let _ = spec;
        Profile::Calibration
    }
    /// Whether weights are stored as the codes that a deployment multiplies by, and not as the numbers they stand for.
    fn stores_codes(&self) -> bool {
        true
    }
    /// The activation rule that the loader executes; `symmetric` none asks for the format's default.
    ///
    /// # Errors
    /// [`Unsupported`] where the loader has no such arithmetic.
    fn activation_rule(&self, dynamic: bool, symmetric: Option<bool>) -> Result<ActRule, Unsupported>;
    /// The cache granularity when the recipe names none.
    fn kv_granularity(&self) -> KvGranularity;
    /// Whether the format can hold a scheme of a model.
    ///
    /// # Errors
    /// [`Unsupported`] naming the first module that does not fit and what would.
    fn supports(&self, spec: &ModelSpec, scheme: &ModelScheme) -> Result<(), Unsupported>;
    /// How the weight files are called.
    fn naming(&self) -> ShardNaming;

    /// All tensors of the folder in write order: the blocks, then embedding, final norm and head (unless tied), which
    /// keep the input's bytes; `source_dtype` tells the type a tensor has in the input. The scheme is a supported one, `spec`
    /// the model [as it stores it](ModelScheme::stored); tables it quantises are written as their values, which the declared
    /// type must hold.
    fn declare(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
        source_dtype: &dyn Fn(&str) -> Option<Dtype>,
    ) -> Vec<TensorDecl>;
    /// The tensors of one block, exactly the declared ones in their order; it is given away, so that levels can become bytes where
    /// they lie. The scales that the loader holds must be exact
    /// in [`Format::scale_type`]; norms, float weights and biases are rounded to the nearest stored value.
    ///
    /// # Errors
    /// [`CheckpointError::NotEncodable`](crate::CheckpointError::NotEncodable) if the block is not what the scheme and
    /// the model say, or a number cannot be stored.
    fn encode_block(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
        index: usize,
        block: BlockParams,
    ) -> Result<Vec<Encoded>>;
    /// `config.json` of the folder, from that of the input.
    fn config(&self, spec: &ModelSpec, scheme: &ModelScheme, config: &Value, notes: &ConfigNotes) -> Value;
    /// Files that describe the weights, by name. `declared` is the answer of [`Format::declare`], `blocks` has one
    /// entry per block.
    fn side_files(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
        declared: &[TensorDecl],
        blocks: &[BlockSideData],
    ) -> Vec<(String, Vec<u8>)>;

    /// Whether a folder is of this format.
    fn detect(&self, checkpoint: &Checkpoint) -> bool;
    /// What the folder says it stores.
    ///
    /// # Errors
    /// [`CheckpointError::BadFormat`](crate::CheckpointError::BadFormat) for a description that contradicts itself or
    /// the model, [`CheckpointError::Unsupported`](crate::CheckpointError::Unsupported) for one this crate cannot read.
    fn scheme(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<ModelScheme>;
    /// Every tensor the folder must or may have according to its own description.
    ///
    /// # Errors
    /// As [`Format::scheme`].
    fn expected(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Vec<ExpectedTensor>>;
    /// Reads the description of a folder once, for the reading of its blocks.
    ///
    /// # Errors
    /// As [`Format::scheme`].
    fn decoder(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Box<dyn Decoder>>;
    /// Reads one block back; whoever reads several asks for a [`Decoder`].
    ///
    /// # Errors
    /// As [`Format::scheme`] and [`Decoder::block`].
    fn decode(&self, checkpoint: &Checkpoint, spec: &ModelSpec, index: usize) -> Result<BlockParams> {
        self.decoder(checkpoint, spec)?.block(checkpoint, spec, index)
    }
}

/// The parsed description of a quantised folder.
pub trait Decoder: Send + Sync + Debug {
    /// Reads one block of the folder the description is of.
    ///
    /// # Errors
    /// [`CheckpointError::BadFormat`](crate::CheckpointError::BadFormat) for tensors that contradict the description,
    /// and what reading them can give.
    fn block(&self, checkpoint: &Checkpoint, spec: &ModelSpec, index: usize) -> Result<BlockParams>;
}

/// All formats of this crate, by id.
pub static FORMATS: &[&dyn Format] = &[&CompressedTensors, &Dequantized, &VllmAscend];

/// The formats that are read and written: ours, and those a program adds.
pub type Formats = Catalogue<dyn Format>;

impl Entry for dyn Format {
    const KIND: &'static str = "format";
    fn ours() -> &'static [&'static Self] {
        FORMATS
    }
    fn id(&self) -> &'static str {
        Format::id(self)
    }
}

/// The format of this crate called `id`.
#[must_use]
pub fn format(id: &str) -> Option<&'static dyn Format> {
    FORMATS.iter().copied().find(|f| f.id() == id)
}

/// The format of a folder; none for a plain float checkpoint (or one quantised in a way not known here, which
/// [`FolderSource::open`](crate::FolderSource::open) refuses).
#[must_use]
pub fn detect(checkpoint: &Checkpoint) -> Option<&'static dyn Format> {
    detect_with(checkpoint, &Formats::default())
}

/// The same among `formats`. Those from outside are asked first, so that one may refine a format of this crate.
#[must_use]
pub fn detect_with(checkpoint: &Checkpoint, formats: &Formats) -> Option<&'static dyn Format> {
    let ours = |f: &&'static dyn Format| format(f.id()).is_some();
    let outside = formats.iter().filter(|f| !ours(f));
    outside.chain(formats.iter().filter(ours)).find(|f| f.detect(checkpoint))
}
