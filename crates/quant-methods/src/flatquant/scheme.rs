//! What is quantised in a block, and which transforms stand in it.

use quant_core::{Bits, FloatType};
use quant_graph::{BlockSpec, LinearId, ModelSpec, Role, Site, Spot};
use quant_rotate::{RotateError, StraightThrough, kronecker_sides};

/// A learned matrix of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Matrix {
    /// Left side of the Kronecker pair at the input of q, k and v.
    InputLeft,
    /// Its right side.
    InputRight,
    /// `P_k` `[head_dim, head_dim]`.
    Key,
    /// `P_v` `[head_dim, head_dim]`.
    Value,
    /// `P_o` `[heads, heads]`.
    Output,
    /// Left side of the pair at the input of gate and up.
    MlpLeft,
    /// Its right side.
    MlpRight,
    /// Left side of the pair at the input of down.
    DownLeft,
    /// Its right side.
    DownRight,
    /// Left side of the pair at the attention output, in place of [`Self::Output`].
    OutputLeft,
    /// Its right side.
    OutputRight,
}

impl Matrix {
    /// All of them: those of the published algorithm in execution order, and the pair that may stand for its `P_o`.
    pub const ALL: [Self; 11] = [
        Self::InputLeft,
        Self::InputRight,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::MlpLeft,
        Self::MlpRight,
        Self::DownLeft,
        Self::DownRight,
        Self::OutputLeft,
        Self::OutputRight,
    ];

    /// In one word, for reports and as a part of the name that random numbers are keyed by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InputLeft => "ln.left",
            Self::InputRight => "ln.right",
            Self::Key => "kcache",
            Self::Value => "vcache",
            Self::Output => "o",
            Self::MlpLeft => "up_gate.left",
            Self::MlpRight => "up_gate.right",
            Self::DownLeft => "down.left",
            Self::DownRight => "down.right",
            Self::OutputLeft => "o.left",
            Self::OutputRight => "o.right",
        }
    }

    /// The matrices that need this one beside them: the other side of its pair; of `P_v`, what is undone in o with it.
    pub(super) fn comes_with(self) -> &'static [Self] {
        match self {
            Self::InputLeft => &[Self::InputRight],
            Self::InputRight => &[Self::InputLeft],
            Self::MlpLeft => &[Self::MlpRight],
            Self::MlpRight => &[Self::MlpLeft],
            Self::DownLeft => &[Self::DownRight],
            Self::DownRight => &[Self::DownLeft],
            Self::OutputLeft => &[Self::OutputRight],
            Self::OutputRight => &[Self::OutputLeft],
            Self::Value => &[Self::Output, Self::OutputLeft],
            Self::Key | Self::Output => &[],
        }
    }

    /// The two sides of the Kronecker pair at a site; that of the attention output stands in place of [`Self::Output`].
    pub(super) fn pair(site: Site) -> (Self, Self) {
        match site {
            Site::AttentionInput => (Self::InputLeft, Self::InputRight),
            Site::AttentionOutput => (Self::OutputLeft, Self::OutputRight),
            Site::MlpInput => (Self::MlpLeft, Self::MlpRight),
            Site::MlpActivation => (Self::DownLeft, Self::DownRight),
        }
    }

    /// The site whose pair it is a side of.
    pub(super) fn paired_at(self) -> Option<Site> {
        Site::ALL.into_iter().find(|site| [Self::pair(*site).0, Self::pair(*site).1].contains(&self))
    }

    /// Whether channels have factors at a site: at those whose channels a norm or the rows of a linear make.
    pub(super) fn scaled(site: Site) -> bool {
        site != Site::AttentionOutput
    }
}

/// The quantisers of a block; none is 16 bits or more, which nothing is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlatScheme {
    /// Of weights, one scale per row.
    pub weights: Option<StraightThrough>,
    /// Of the inputs of linears, one scale per token.
    pub activations: Option<StraightThrough>,
    /// Of keys, one scale per token and head.
    pub keys: Option<StraightThrough>,
    /// Of values, one scale per token and head.
    pub values: Option<StraightThrough>,
    /// Whether the linears of a site share the quantiser of their input, as loaders that multiply them as one matrix need; else
    /// each has clip factors of its own.
    pub share_inputs: bool,
    /// Whether the input of o has a Kronecker pair like the others, in place of a matrix across heads.
    pub output_pair: bool,
    /// Whether both ends of the range of an input have one clip factor: gradients of the two are added up, so that factors that begin
    /// alike stay alike.
    pub tied_clips: bool,
    /// Sites that are left without transforms and learned clip factors of their inputs, in the order of [`Site::ALL`].
    pub plain: [Option<PlainSite>; 4],
}

/// The quantisers of a site that is not transformed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlainSite {
    /// Of weights, one scale per row.
    pub weights: Option<StraightThrough>,
    /// Of the input, one scale per token.
    pub activations: Option<StraightThrough>,
}

impl FlatScheme {
    /// Symmetric weights of `weights` bits, activations of `activations` bits and a cache of `cache` bits, both symmetric or not; none
    /// is not quantised.
    ///
    /// ```
    /// use quant_methods::Bits;
    /// use quant_methods::flatquant::FlatScheme;
    ///
    /// let four = Some(Bits::new(4)?);
    /// let scheme = FlatScheme::new(four, four.map(|bits| (bits, false)), four.map(|bits| (bits, false)))?;
    /// assert!(scheme.share_inputs && scheme.keys == scheme.values);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RotateError::Setting`] for a symmetric quantiser of one bit.
    pub fn new(
        weights: Option<Bits>,
        activations: Option<(Bits, bool)>,
        cache: Option<(Bits, bool)>,
    ) -> Result<Self, RotateError> {
        let activation = |quantiser: Option<(Bits, bool)>| {
            quantiser.map(|(bits, symmetric)| StraightThrough::activations(bits, symmetric)).transpose()
        };
        let cache = activation(cache)?;
        Ok(Self {
            weights: weights.map(|bits| StraightThrough::weights(bits, true)).transpose()?,
            activations: activation(activations)?,
            keys: cache,
            values: cache,
            ..Self::NONE
        })
    }

    /// Nothing is quantised.
    pub(super) const NONE: Self = Self {
        weights: None,
        activations: None,
        keys: None,
        values: None,
        share_inputs: true,
        output_pair: false,
        tied_clips: false,
        plain: [None; 4],
    };

    /// Whether a matrix is there: pairs and `P_o` where weights or activations are quantised, `P_v` also where values are, `P_k`
    /// where keys are. Plain sites have none, and with o goes `P_v`.
    #[must_use]
    pub fn has(&self, matrix: Matrix) -> bool {
        let linears = self.weights.is_some() || self.activations.is_some();
        let o = self.plain_at(Site::AttentionOutput).is_none();
        match matrix {
            Matrix::Key => self.keys.is_some(),
            Matrix::Value => o && (linears || self.values.is_some()),
            Matrix::Output => o && linears && !self.output_pair,
            Matrix::OutputLeft | Matrix::OutputRight => o && linears && self.output_pair,
            other => linears && other.paired_at().is_some_and(|site| self.plain_at(site).is_none()),
        }
    }

    /// The same quantisers without any transform.
    pub(super) fn untransformed(&self) -> Self {
        let (weights, activations) = (|site| self.weights_at(site), |site| self.activations_at(site));
        let plain = |site| Some(PlainSite { weights: weights(site), activations: activations(site) });
        Self { plain: Site::ALL.map(plain), ..*self }
    }

    /// What is done at a site that is not transformed.
    pub(super) fn plain_at(&self, site: Site) -> Option<PlainSite> {
        self.plain[site as usize]
    }

    /// What quantises the weights of a site.
    pub(super) fn weights_at(&self, site: Site) -> Option<StraightThrough> {
        self.plain_at(site).map_or(self.weights, |plain| plain.weights)
    }

    /// What quantises the input of a site.
    pub(super) fn activations_at(&self, site: Site) -> Option<StraightThrough> {
        self.plain_at(site).map_or(self.activations, |plain| plain.activations)
    }

    /// Whether the clip factors at a spot are learned, if any are.
    pub(super) fn clips(&self, spot: Spot) -> bool {
        let site = match spot {
            Spot::Site(site) => site,
            Spot::Linear(id) => id.site(),
            Spot::Query | Spot::Key | Spot::Value => return true,
        };
        self.plain_at(site).is_none()
    }
}

/// Whether several devices each have a part of the input of a site: that of o and of down, whose outputs they add up.
pub(super) fn is_cut(site: Site) -> bool {
    matches!(site, Site::AttentionOutput | Site::MlpActivation)
}

/// The sizes of a block that its transforms depend on, and how a deployment has its pairs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatShape {
    pub(super) block: BlockSpec,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    /// The type of the matrices of a pair.
    pub(super) held: FloatType,
    /// The type to which everything that is deployed is cast by itself; f32 casts nothing.
    pub(super) cast: FloatType,
    /// Equal parts of the inputs of o and of down, which lie on as many devices.
    pub(super) shards: usize,
}

impl FlatShape {
    /// Of block `index` of a model; a deployment has pairs in f32.
    #[must_use]
    pub fn new(spec: &ModelSpec, index: usize) -> Self {
        let (heads, head_dim) = (spec.heads, spec.head_dim);
        let (held, cast) = (FloatType::F32, FloatType::F32);
        Self { block: spec.block(index), heads, head_dim, held, cast, shards: 1 }
    }

    /// The same with a deployment that has the matrices of Kronecker pairs, and the gains of norms, in this type:
    /// [`FlatParameters::merge`](super::FlatParameters::merge) rounds to it before it inverts.
    ///
    /// ```
    /// use quant_core::FloatType;
    /// use quant_methods::flatquant::FlatShape;
    /// # let config = serde_json::json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
    /// #     "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10 });
    /// # let spec = quant_model::model_spec(&config)?;
    ///
    /// let shape = FlatShape::new(&spec, 0);
    /// assert_ne!(shape.clone().held_in(FloatType::Bf16), shape.held_in(FloatType::F32));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn held_in(self, held: FloatType) -> Self {
        Self { held, ..self }
    }

    /// The same with a deployment as the authors' program makes it, in a model of this type: inverses are taken of the matrices as they were
    /// learned, and then matrices, merged weights and biases, and gains with the factors of channels in them are cast to the type, each by
    /// itself, before anything is rounded to levels. What multiplies an input and what its weight holds are no longer inverse to each other, by some
    /// 2⁻⁹ times the condition number for bfloat16. Keys and queries are left out: a folder holds matrices for them that are inverse to each
    /// other, so theirs stay in f32.
    ///
    /// ```
    /// use quant_core::FloatType;
    /// use quant_methods::flatquant::FlatShape;
    /// # let config = serde_json::json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
    /// #     "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10 });
    /// # let spec = quant_model::model_spec(&config)?;
    ///
    /// let shape = FlatShape::new(&spec, 0);
    /// assert_ne!(shape.clone().cast_to(FloatType::Bf16), shape.clone().held_in(FloatType::Bf16));
    /// assert_eq!(shape.clone().cast_to(FloatType::F32), shape);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn cast_to(self, cast: FloatType) -> Self {
        Self { cast, ..self }
    }

    /// The same for a deployment in which the inputs of o and of down lie in so many equal parts on as many devices. One Kronecker pair, of
    /// the size of a part, multiplies each of them, and each is quantised with a scale of its own per token; their clip factor is one. A
    /// matrix across heads is not cut.
    ///
    /// ```
    /// use quant_methods::flatquant::{FlatShape, Matrix};
    /// # let config = serde_json::json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
    /// #     "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10 });
    /// # let spec = quant_model::model_spec(&config)?;
    ///
    /// let shape = FlatShape::new(&spec, 0);
    /// assert_eq!([Matrix::OutputLeft, Matrix::OutputRight].map(|side| shape.side(side).ok()), [Some(2), Some(4)]);
    /// let shape = shape.in_shards(2);
    /// assert_eq!([Matrix::OutputLeft, Matrix::OutputRight].map(|side| shape.side(side).ok()), [Some(2), Some(2)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn in_shards(self, shards: usize) -> Self {
        Self { shards, ..self }
    }

    /// Parts of the input of a site.
    pub(super) fn shards_at(&self, site: Site) -> usize {
        if is_cut(site) { self.shards } else { 1 }
    }

    /// Rows and columns of a matrix.
    ///
    /// # Errors
    /// [`RotateError::NoKronecker`] where the features of a site have no pair.
    pub fn side(&self, matrix: Matrix) -> Result<usize, RotateError> {
        let Some(site) = matrix.paired_at() else {
            return Ok(if matrix == Matrix::Output { self.heads } else { self.head_dim });
        };
        let (left, right) = kronecker_sides(self.width(site) / self.shards_at(site).max(1))?;
        Ok(if matrix == Matrix::pair(site).0 { left } else { right })
    }

    /// Features at a site.
    pub(super) fn width(&self, site: Site) -> usize {
        self.block.stages.iter().find(|stage| stage.site == site).map_or(0, |stage| stage.width)
    }

    /// The spots whose activations a scheme quantises.
    pub(super) fn quantised<'s>(&'s self, scheme: &'s FlatScheme) -> impl Iterator<Item = Spot> + 's {
        let shared = Site::ALL.into_iter().map(Spot::Site);
        let own = self.block.linears.iter().map(|linear| Spot::Linear(linear.id));
        let spots = shared.chain(own).chain([Spot::Key, Spot::Value]);
        spots.filter(|spot| scheme.quantiser(*spot).is_some())
    }

    /// The rows of a linear that make values.
    pub(super) fn value_rows(&self, id: LinearId) -> Option<std::ops::Range<usize>> {
        let parts = &self.block.linear(id)?.parts;
        parts.iter().find(|(role, _)| *role == Role::V).map(|(_, rows)| rows.clone())
    }
}

impl FlatScheme {
    /// What quantises activations at a spot.
    pub(super) fn quantiser(&self, spot: Spot) -> Option<StraightThrough> {
        match spot {
            Spot::Site(site) => self.activations_at(site).filter(|_| self.share_inputs),
            Spot::Linear(id) => self.activations_at(id.site()).filter(|_| !self.share_inputs),
            Spot::Query => None,
            Spot::Key => self.keys,
            Spot::Value => self.values,
        }
    }
}
