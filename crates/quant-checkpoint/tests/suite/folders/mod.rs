//! Tiny models, their blocks under any scheme, and folders that can be edited tensor by tensor.
#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{Array1, Array2, Array3};
use quant_checkpoint::formats::{BlockSideData, ConfigNotes, Format};
use quant_checkpoint::{Checkpoint, DEFAULT_SHARD_BYTES, Dtype, OutputFolder, OutputOptions, ShardPlan};
use quant_core::{
    ActQuant, ActRule, BinaryMatrix, Bits, ClipRatio, EntryQuant, FloatType, Groups, KvGranularity, KvQuant,
    OnlineShape, PairTransform, QParams, QuantizedMatrix, Widths,
};
use quant_graph::{
    ActOrder, BlockLayout, BlockParams, Clipping, InputScheme, LinearParams, LinearScheme, LinearWeight,
    ModelScheme, ModelSpec, Online, OnlineScheme, RopeScaling, RopeSpec, WeightForm, WeightScheme,
};
use serde_json::{Value, json};

/// A two-layer model with grouped heads. `full` gives it every optional part: biases everywhere and q/k norms.
pub(crate) fn spec(dtype: FloatType, tied: bool, full: bool) -> ModelSpec {
    ModelSpec {
        family: "qwen2".into(),
        architecture: "Qwen2ForCausalLM".into(),
        model_type: "qwen2".into(),
        hidden: 24,
        intermediate: 40,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        vocab: 32,
        norm_eps: 1e-6,
        rope: RopeSpec { theta: 1e4, scaling: RopeScaling::Default, rotary_dim: None },
        max_position_embeddings: 64,
        tied,
        qkv_bias: true,
        o_bias: full,
        mlp_bias: full,
        qk_norm: full,
        windows: vec![None; 2],
        layout: &BlockLayout::SEPARATE,
        dtype,
    }
}

pub(crate) fn bits(n: u32) -> Bits {
    Bits::new(n).unwrap()
}

/// Numbers from a seed (splitmix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    /// In -1..1, exact in `kind`.
    pub(crate) fn value(&mut self, kind: FloatType) -> f32 {
        kind.round((self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0)
    }
    /// A positive scale, exact in `kind`.
    pub(crate) fn scale(&mut self, kind: FloatType) -> f32 {
        kind.round_scale(0.001 + self.value(kind).abs() * 0.1)
    }
    fn values(&mut self, n: usize, kind: FloatType) -> Array1<f32> {
        Array1::from_shape_simple_fn(n, || self.value(kind))
    }
}

pub(crate) fn weight(n: u32, symmetric: bool, group: Option<usize>) -> WeightScheme {
    WeightScheme::integer(bits(n), symmetric, group)
}

pub(crate) fn input(rule: ActRule, dynamic: bool) -> InputScheme {
    InputScheme { bits: bits(8), rule, dynamic, clip_ratio: 1.0.into(), shards: 1 }
}

pub(crate) fn linear(weight: Option<WeightScheme>, input: Option<InputScheme>) -> LinearScheme {
    LinearScheme { weight, input }
}

/// The same scheme for every linear.
pub(crate) fn uniform(spec: &ModelSpec, scheme: LinearScheme) -> ModelScheme {
    let block: BTreeMap<_, _> = spec.layout.ids().map(|id| (id, scheme)).collect();
    ModelScheme { blocks: vec![block; spec.layers], ..ModelScheme::default() }
}

/// A matrix of random levels. Zero levels are random where the scheme has them.
pub(crate) fn matrix(
    w: WeightScheme,
    shape: (usize, usize),
    kind: FloatType,
    numbers: &mut Numbers,
) -> QuantizedMatrix {
    let top = w.bits.max_level() as u64 + 1;
    let groups = match (w.group, w.act_order) {
        (None, _) => Groups::Channel,
        (Some(size), ActOrder::Dynamic) => {
            let count = shape.1.div_ceil(size) as u64;
            Groups::Index { size, of_column: (0..shape.1).map(|_| numbers.below(count) as u32).collect() }
        }
        (Some(size), _) => Groups::Size(size),
    };
    let count = groups.count(shape.1);
    let levels = Array2::from_shape_simple_fn(shape, || numbers.below(top) as u8);
    let scales = Array2::from_shape_simple_fn((shape.0, count), || numbers.scale(kind));
    let zeros = Array2::from_shape_simple_fn((shape.0, count), || {
        let zero = numbers.below(top) as f32;
        match (w.symmetric, w.form == WeightForm::Binary) {
            (true, _) => w.bits.mid_level(),
            (false, false) => zero,
            (false, true) => 0.5 + 0.37 * zero,
        }
    });
    if w.form == WeightForm::MixedInteger {
        // As many groups of a bit less as of a bit more; the levels of the former are halved into theirs.
        let width =
            |g: usize| if g < count / 3 * 3 { w.bits.get() + 1 - (g % 3) as u32 } else { w.bits.get() };
        let mut levels = levels;
        for (j, mut column) in levels.columns_mut().into_iter().enumerate() {
            if width(groups.of(j)) < w.bits.get() {
                column.mapv_inplace(|level| level / 2);
            }
        }
        let widths = Widths::PerGroup((0..count).map(|g| bits(width(g))).collect());
        return QuantizedMatrix::new(widths, levels, scales, zeros, groups).unwrap();
    }
    QuantizedMatrix::new(w.bits, levels, scales, zeros, groups).unwrap()
}

/// Random binary residual codes.
fn codes(group: Option<usize>, shape: (usize, usize), numbers: &mut Numbers) -> BinaryMatrix {
    let block = group.unwrap_or(shape.1);
    let values = (shape.0, shape.1.div_ceil(block), 8);
    let codes = Array2::from_shape_simple_fn(shape, || numbers.below(4) as u8);
    let salient = (0..shape.1).map(|_| numbers.below(3) == 0).collect();
    let values = Array3::from_shape_simple_fn(values, || numbers.value(FloatType::F32));
    BinaryMatrix::new(block, salient, codes, values).unwrap()
}

/// A block of a scheme, random, with numbers the format stores exactly.
pub(crate) fn block(
    spec: &ModelSpec,
    format: &dyn Format,
    scheme: &ModelScheme,
    index: usize,
    seed: u64,
) -> BlockParams {
    let mut numbers = Numbers(seed.wrapping_add(index as u64 * 7919));
    let (scale_type, float_type) = (format.scale_type(spec), format.float_type(spec));
    let mut linears = BTreeMap::new();
    let mut inputs: BTreeMap<_, ActQuant> = BTreeMap::new();
    for shape in spec.block(index).linears {
        let (id, dim) = (shape.id, shape.shape());
        let linear = scheme.blocks[index][&id];
        let weight = match linear.weight {
            Some(w) if w.form == WeightForm::BinaryResidual => {
                LinearWeight::Binary(codes(w.group, dim, &mut numbers))
            }
            Some(w) => LinearWeight::Quantized(matrix(w, dim, scale_type, &mut numbers)),
            None => LinearWeight::Float(Array2::from_shape_simple_fn(dim, || numbers.value(float_type))),
        };
        let bias = shape.bias.then(|| numbers.values(shape.outputs, float_type));
        let params = QParams {
            scale: numbers.scale(scale_type),
            zero: match linear.input {
                Some(i) if i.rule == ActRule::Asymmetric => {
                    // The middle would read back as symmetric.
                    numbers.below(i.bits.mid_level() as u64) as f32
                }
                Some(i) => i.bits.mid_level(),
                None => 0.0,
            },
        };
        let input = linear.input.map(|i| {
            let ratio = i.clip_ratio.fixed().unwrap_or_else(|| any_ratio(i.clip_ratio, &mut numbers));
            let fresh = i.clipped(ratio).unwrap_or(ActQuant::Static { bits: i.bits, params });
            // Linears that share an input and its scheme share its parameters.
            *inputs.entry((id.site(), format!("{i:?}"))).or_insert(fresh)
        });
        linears.insert(id, LinearParams { weight, bias, input });
    }
    let norms = spec.norms().into_iter().map(|(n, width)| (n, numbers.values(width, float_type))).collect();
    let kv = scheme.kv.map(|kv| {
        let mut side = |granularity| match granularity {
            KvGranularity::TokenHead => {
                kv.clipped(kv.clip_ratio.fixed().unwrap_or_else(|| any_ratio(kv.clip_ratio, &mut numbers)))
            }
            KvGranularity::ChannelStatic => {
                let width = spec.kv_width();
                let mut zero = || match kv.rule {
                    ActRule::Asymmetric => numbers.below(1 << kv.bits.get()) as f32,
                    _ => kv.bits.mid_level(),
                };
                let zeros = Array1::from_shape_simple_fn(width, &mut zero);
                let scales = Array1::from_shape_simple_fn(width, || numbers.scale(scale_type));
                EntryQuant::Channel { bits: kv.bits, scales, zeros }
            }
        };
        let (keys, values) = (side(kv.keys), side(kv.values));
        KvQuant { keys, values, before_rope: kv.before_rope, pre_bias: kv.pre_bias }
    });
    let online = scheme.online.get(index).map(|online| online_of(online, scale_type, &mut numbers));
    BlockParams { linears, norms, online: online.unwrap_or_default(), kv }
}

/// Learned ratios.
fn any_ratio(clipping: Clipping, numbers: &mut Numbers) -> ClipRatio {
    let mut end = || (1 + numbers.below(1 << 20)) as f32 / (1 << 20) as f32;
    let ratio = ClipRatio { upper: end(), lower: end() };
    if clipping == Clipping::Tied { ratio.upper.into() } else { ratio }
}

/// Transforms of these shapes, exact in a type; a pair has no numbers of its own.
fn online_of(scheme: &OnlineScheme, kind: FloatType, numbers: &mut Numbers) -> Online {
    let mut build = |shape: OnlineShape| {
        let matrices = shape.matrices().into_iter();
        let mut matrices: Vec<Array2<f32>> =
            matrices.map(|n| Array2::from_shape_simple_fn((n, n), || numbers.value(kind))).collect();
        // Of a Kronecker pair all parts have the same.
        if matrices.len() == 2 * shape.shards {
            matrices = (0..shape.shards).flat_map(|_| matrices[..2].to_vec()).collect();
        }
        let order = |length: usize| {
            let mut order: Vec<u32> = (0..length as u32).collect();
            (1..length).rev().for_each(|at| order.swap(at, numbers.below(at as u64 + 1) as usize));
            order
        };
        let orders = shape.orders().into_iter().map(order).collect();
        shape.build_permuted(matrices, orders).unwrap()
    };
    let sites = scheme.sites.iter().map(|(site, shape)| (*site, Arc::new(build(*shape)))).collect();
    let pair = scheme.pair.map(|[key, query]| PairTransform::new(build(key), build(query)).unwrap().into());
    Online { sites, pair }
}

/// `config.json` of the tiny model.
pub(crate) fn config(spec: &ModelSpec) -> Value {
    let dtype = match spec.dtype {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::Bf16 => "bfloat16",
    };
    json!({"architectures": [spec.architecture], "model_type": spec.model_type, "torch_dtype": dtype,
           "quantization_config": {"quant_method": "gptq"}})
}

fn float_dtype(kind: FloatType) -> Dtype {
    match kind {
        FloatType::F32 => Dtype::F32,
        FloatType::F16 => Dtype::F16,
        FloatType::Bf16 => Dtype::BF16,
    }
}

/// Writes a folder through the crate's writer, the way a pipeline does; returns its blocks.
pub(crate) fn write(
    dir: &Path,
    spec: &ModelSpec,
    format: &dyn Format,
    scheme: &ModelScheme,
    seed: u64,
) -> Vec<BlockParams> {
    let declared = format.declare(spec, scheme, &|_| Some(float_dtype(spec.dtype)));
    let plan = ShardPlan::new(declared.clone(), &format.naming(), DEFAULT_SHARD_BYTES).unwrap();
    let mut out = OutputFolder::create(dir, &OutputOptions::default()).unwrap();
    out.begin_weights(plan).unwrap();
    let blocks: Vec<_> = (0..spec.layers).map(|i| block(spec, format, scheme, i, seed)).collect();
    let mut names = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        for tensor in format.encode_block(spec, scheme, index, block.clone()).unwrap() {
            out.tensor(&tensor.name, tensor.dtype, &tensor.shape, &tensor.bytes).unwrap();
            names.push((tensor.name, tensor.dtype, tensor.shape));
        }
    }
    let of_blocks = &declared[..names.len()];
    assert!(of_blocks.iter().zip(&names).all(|(d, n)| (&d.name, d.dtype, &d.shape) == (&n.0, n.1, &n.2)));
    for decl in &declared[names.len()..] {
        let count: usize = decl.shape.iter().product();
        let bytes: Vec<u8> = match decl.dtype {
            Dtype::F32 => (0..count).flat_map(|i| (i as f32 * 0.01).to_le_bytes()).collect(),
            // 0x3800 is 0.5 in half precision and tiny in bfloat16: finite in both.
            _ => (0..count).flat_map(|i| (0x3800_u16 + (i % 64) as u16).to_le_bytes()).collect(),
        };
        out.tensor(&decl.name, decl.dtype, &decl.shape, &bytes).unwrap();
    }
    out.end_weights().unwrap();
    let config = format.config(spec, scheme, &config(spec), &ConfigNotes::default());
    out.write_file("config.json", config.to_string().as_bytes()).unwrap();
    let side: Vec<_> = blocks.iter().map(BlockSideData::of).collect();
    for (name, bytes) in format.side_files(spec, scheme, &declared, &side) {
        out.write_file(&name, &bytes).unwrap();
    }
    out.finish().unwrap();
    blocks
}

/// The shared reference data, if this checkout has it.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let full = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")).join(path);
    if full.exists() {
        return Some(full);
    }
    quant_testkit::skipped(format_args!("../shared/{path} not present"));
    None
}

/// Everything of a folder in memory, to be edited and saved elsewhere.
#[derive(Clone)]
pub(crate) struct Folder {
    pub(crate) tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    pub(crate) json: BTreeMap<String, Value>,
}

impl Folder {
    pub(crate) fn load(dir: &Path) -> Self {
        let checkpoint = Checkpoint::open(dir).unwrap();
        let tensor = |t: &quant_checkpoint::TensorInfo| {
            (t.name.clone(), (t.dtype, t.shape.clone(), checkpoint.read(&t.name).unwrap()))
        };
        let tensors = checkpoint.tensors().map(tensor).collect();
        let mut json = BTreeMap::new();
        for name in ["config.json", "quant_model_description.json", "ptq_scheme.json"] {
            if let Ok(bytes) = std::fs::read(dir.join(name)) {
                json.insert(name.to_owned(), serde_json::from_slice(&bytes).unwrap());
            }
        }
        Self { tensors, json }
    }
    /// Saves with one weight file.
    pub(crate) fn save(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        let description = self.json.contains_key("quant_model_description.json");
        let file = if description { "quant_model_weights.safetensors" } else { "model.safetensors" };
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, (dtype, shape, bytes)) in &self.tensors {
            let start = data.len();
            data.extend_from_slice(bytes);
            let entry =
                json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [start, data.len()]});
            header.insert(name.clone(), entry);
        }
        let header = Value::Object(header).to_string();
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&data);
        std::fs::write(dir.join(file), out).unwrap();
        for (name, value) in &self.json {
            std::fs::write(dir.join(name), value.to_string()).unwrap();
        }
    }
    pub(crate) fn description(&mut self) -> &mut serde_json::Map<String, Value> {
        self.json.get_mut("quant_model_description.json").unwrap().as_object_mut().unwrap()
    }
    pub(crate) fn section(&mut self) -> &mut Value {
        &mut self.json.get_mut("config.json").unwrap()["quantization_config"]
    }
    pub(crate) fn bytes(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.tensors.get_mut(name).unwrap().2
    }
}
