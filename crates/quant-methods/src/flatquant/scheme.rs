//! What is quantised in a block, and which transforms stand in it.

use quant_core::Bits;
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
}

impl Matrix {
    /// All of them, in execution order.
    pub const ALL: [Self; 9] = [
        Self::InputLeft,
        Self::InputRight,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::MlpLeft,
        Self::MlpRight,
        Self::DownLeft,
        Self::DownRight,
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
        }
    }

    /// The matrix that needs this one beside it: the other side of its pair; of `P_v`, `P_o`.
    pub(super) fn comes_with(self) -> Option<Self> {
        match self {
            Self::InputLeft => Some(Self::InputRight),
            Self::InputRight => Some(Self::InputLeft),
            Self::MlpLeft => Some(Self::MlpRight),
            Self::MlpRight => Some(Self::MlpLeft),
            Self::DownLeft => Some(Self::DownRight),
            Self::DownRight => Some(Self::DownLeft),
            Self::Value => Some(Self::Output),
            Self::Key | Self::Output => None,
        }
    }

    /// The two sides of the Kronecker pair at a site; the attention output has none.
    pub(super) fn pair(site: Site) -> Option<(Self, Self)> {
        match site {
            Site::AttentionInput => Some((Self::InputLeft, Self::InputRight)),
            Site::MlpInput => Some((Self::MlpLeft, Self::MlpRight)),
            Site::MlpActivation => Some((Self::DownLeft, Self::DownRight)),
            Site::AttentionOutput => None,
        }
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
            share_inputs: true,
        })
    }

    /// Nothing is quantised.
    pub(super) const NONE: Self =
        Self { weights: None, activations: None, keys: None, values: None, share_inputs: true };

    /// Whether a matrix is there: pairs and `P_o` where weights or activations are quantised, `P_v` also where values are, `P_k`
    /// where keys are.
    #[must_use]
    pub fn has(&self, matrix: Matrix) -> bool {
        let linears = self.weights.is_some() || self.activations.is_some();
        match matrix {
            Matrix::Key => self.keys.is_some(),
            Matrix::Value => linears || self.values.is_some(),
            _ => linears,
        }
    }
}

/// The sizes of a block that its transforms depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatShape {
    pub(super) block: BlockSpec,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

impl FlatShape {
    /// Of block `index` of a model.
    #[must_use]
    pub fn new(spec: &ModelSpec, index: usize) -> Self {
        Self { block: spec.block(index), heads: spec.heads, head_dim: spec.head_dim }
    }

    /// Rows and columns of a matrix.
    ///
    /// # Errors
    /// [`RotateError::NoKronecker`] where the features of a site have no pair.
    pub fn side(&self, matrix: Matrix) -> Result<usize, RotateError> {
        let sides = |site| kronecker_sides(self.width(site));
        Ok(match matrix {
            Matrix::InputLeft => sides(Site::AttentionInput)?.0,
            Matrix::InputRight => sides(Site::AttentionInput)?.1,
            Matrix::Key | Matrix::Value => self.head_dim,
            Matrix::Output => self.heads,
            Matrix::MlpLeft => sides(Site::MlpInput)?.0,
            Matrix::MlpRight => sides(Site::MlpInput)?.1,
            Matrix::DownLeft => sides(Site::MlpActivation)?.0,
            Matrix::DownRight => sides(Site::MlpActivation)?.1,
        })
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
            Spot::Site(_) => self.activations.filter(|_| self.share_inputs),
            Spot::Linear(_) => self.activations.filter(|_| !self.share_inputs),
            Spot::Query => None,
            Spot::Key => self.keys,
            Spot::Value => self.values,
        }
    }
}
