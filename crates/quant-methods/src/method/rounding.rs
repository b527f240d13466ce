//! The interface of methods that turn weights into levels, as a modifier of a recipe: its settings, and what it plans for one
//! linear.

use crate::settings::FieldKind;
use crate::{Field, Method, Settings, SettingsError, Solver};
use quant_core::{ActOrder, ClipSearch, Convention, CoreError, FloatType, Grid, Scheme, Variant};
use quant_graph::{Site, WeightForm, WeightScheme, WeightSpec};
use std::fmt::Debug;
use std::sync::Arc;

/// A rounding modifier of a recipe: a method and its settings, before it meets a linear.
pub trait Rounding: Debug + Send + Sync {
    /// Its registry line.
    fn method(&self) -> &'static Method;
    /// What it says about weights, activations and cache.
    fn weights(&self) -> &WeightSettings;
    /// Whether later linears of a block are calibrated on the quantised earlier ones.
    fn true_sequential(&self) -> bool {
        true
    }
    /// What it will do to a weight whose scales the target's loader holds in `scale_type`; none where the scheme leaves weights
    /// alone.
    ///
    /// # Errors
    /// A convention that has no grid at this bit width.
    fn plan(
        &self,
        weight: WeightSpec<'_>,
        scale_type: FloatType,
    ) -> Result<Option<PlannedRounding>, CoreError>;
}

/// What happens to one weight.
#[derive(Clone, Debug)]
pub struct PlannedRounding {
    /// How the result is stored.
    pub weight: WeightScheme,
    /// How a group gets its parameters: what a transform before it prepares the weight for.
    pub grid: Grid,
    /// What makes it.
    pub solver: Arc<dyn Solver>,
}

/// What every rounding modifier says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightSettings {
    /// Bits and groups.
    pub scheme: Scheme,
    /// How groups get their parameters.
    pub convention: Convention,
    /// Clip search, if wanted.
    pub clip: Option<ClipSearch>,
    /// Mathematics or official code.
    pub variant: Variant,
    /// Devices over which a deployment cuts the inputs of o and down; see [`Self::shards_of`].
    pub input_shards: usize,
}

impl WeightSettings {
    /// Reads the keys [`SCHEME`], [`SYMMETRIC`], [`CONVENTION`], [`MSE_CLIP`], [`VARIANT`] and, where the method has it, [`INPUT_SHARDS`].
    ///
    /// # Errors
    /// A scheme that is not understood, a convention that contradicts the symmetry or has no grid at these bits.
    pub fn read(settings: &Settings) -> Result<Self, SettingsError> {
        let clip = settings.bool("mse_clip")?.then(ClipSearch::default);
        Self::read_without_clip(settings, Convention::QSym, Convention::QAsym)
            .map(|weights| Self { clip, ..weights })
    }

    /// The same without [`MSE_CLIP`], for a method whose weights are rounded by `usual` where nothing is said of symmetry, and
    /// by `asymmetric` where they are to be asymmetric.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_without_clip(
        settings: &Settings,
        usual: Convention,
        asymmetric: Convention,
    ) -> Result<Self, SettingsError> {
        let conflict =
            |problem: String| SettingsError::Conflict { path: settings.path().to_owned(), problem };
        let scheme = read_scheme(settings)?;
        let symmetric = settings.given("symmetric").and_then(serde_json::Value::as_bool);
        let convention = settings.word::<Convention>("convention")?;
        let convention = match (symmetric, convention) {
            (Some(symmetric), Some(c)) if c.is_symmetric() != symmetric => {
                let is = if c.is_symmetric() { "symmetric" } else { "asymmetric" };
                return Err(conflict(format!(
                    "symmetric: {symmetric} contradicts convention: {}, which is {is}; drop one of them",
                    c.name()
                )));
            }
            (_, Some(c)) => c,
            (Some(false), None) => asymmetric,
            (Some(true), None) => Convention::QSym,
            (None, None) => usual,
        };
        let variant: Variant = settings.word("variant")?.unwrap_or_default();
        if let Some(bits) = scheme.weights {
            Grid::new(convention, bits, variant, FloatType::F32).map_err(|e| conflict(e.to_string()))?;
        }
        // A method for weights alone has no such key.
        let input_shards = settings.given(INPUT_SHARDS.name).and_then(serde_json::Value::as_u64);
        let input_shards = input_shards.map_or(1, |n| n as usize);
        Ok(Self { scheme, convention, clip: None, variant, input_shards })
    }

    /// Reads the keys [`SCHEME`] and [`VARIANT`], for a method that has one convention.
    ///
    /// # Errors
    /// A scheme that is not understood.
    pub fn read_scheme(settings: &Settings, convention: Convention) -> Result<Self, SettingsError> {
        let variant = settings.word("variant")?.unwrap_or_default();
        Ok(Self { scheme: read_scheme(settings)?, convention, clip: None, variant, input_shards: 1 })
    }

    /// Equal parts into which the inputs of a linear are cut, each with scales of its own: in tensor parallelism every
    /// device holds some columns of o and down (the linears whose inputs the stages before compute apart) and the inputs that
    /// meet them. Weights alone are not cut: their groups are what the scheme says.
    #[must_use]
    pub fn shards_of(&self, weight: WeightSpec<'_>) -> usize {
        let apart = matches!(weight.site, Some(Site::AttentionOutput | Site::MlpActivation));
        if apart && self.scheme.activations.is_some() { self.input_shards.max(1) } else { 1 }
    }

    /// The grid of a weight and how it is stored, by a method that takes the columns in `act_order`. A shard of
    /// the inputs has a scale per row of its own.
    ///
    /// # Errors
    /// [`CoreError::NoGrid`]; [`CoreError::Shards`] for inputs that cannot be cut into shards of whole groups.
    pub fn stored(
        &self,
        weight: WeightSpec<'_>,
        scale_type: FloatType,
        act_order: ActOrder,
    ) -> Result<Option<(Grid, WeightScheme)>, CoreError> {
        let (inputs, shards) = (weight.inputs, self.shards_of(weight));
        let refused = |group| CoreError::Shards { module: weight.module.to_owned(), inputs, shards, group };
        if !inputs.is_multiple_of(shards) {
            return Err(refused(None));
        }
        let Some(bits) = self.scheme.weights else { return Ok(None) };
        let grid = Grid::new(self.convention, bits, self.variant, scale_type)?;
        let width = inputs / shards;
        let cut = self.scheme.group.filter(|&g| g < width);
        if shards > 1 && cut.is_some_and(|g| !width.is_multiple_of(g)) {
            return Err(refused(cut));
        }
        // A group as wide as the row is a scale per channel.
        let group = cut.or((shards > 1).then_some(width));
        let weight = WeightScheme {
            bits,
            symmetric: self.convention.is_symmetric() && !grid.is_binary(),
            group,
            // Without groups nothing tells in which order columns were rounded.
            act_order: if group.is_some() { act_order } else { ActOrder::None },
            form: if grid.is_binary() { WeightForm::Binary } else { WeightForm::Integer },
        };
        Ok(Some((grid, weight)))
    }
}

fn read_scheme(settings: &Settings) -> Result<Scheme, SettingsError> {
    settings.text("scheme")?.parse().map_err(|e: CoreError| SettingsError::Value {
        path: format!("{}.scheme", settings.path()),
        expected: "W<bits>A<bits>[KV<bits>][g<size>]".into(),
        found: e.to_string(),
    })
}

/// The scheme: bits and groups.
pub const SCHEME: Field = Field {
    name: "scheme",
    kind: FieldKind::Scheme,
    default: "",
    help: "bits of weights, activations and KV cache and the group size: W4A16g128, W8A8, W8A8KV8, W4A4KV4; 16 leaves a part alone",
    run_wide: false,
};
/// Symmetry of weights.
pub const SYMMETRIC: Field = Field {
    name: "symmetric",
    kind: FieldKind::Bool,
    default: "true",
    help: "whether the zero level of weights is fixed in the middle; follows `convention` where that is given",
    run_wide: false,
};
/// Convention of scales and zeros.
pub const CONVENTION: Field = Field {
    name: "convention",
    kind: FieldKind::Choice(&["q-asym", "q-sym", "q-sym-gptq", "q-awq"]),
    default: "null",
    help: "how scale and zero point follow from a group's range; default q-sym when symmetric, q-asym otherwise",
    run_wide: false,
};
/// Clip search.
pub const MSE_CLIP: Field = Field {
    name: "mse_clip",
    kind: FieldKind::Bool,
    default: "false",
    help: "search the range of every group for the least |error|^2.4",
    run_wide: false,
};
/// Shards of the inputs of o and down.
pub const INPUT_SHARDS: Field = Field {
    name: "input_shards",
    kind: FieldKind::Integer(1, 1024),
    default: "1",
    help: "where activations are quantised: devices over which tensor parallelism cuts the inputs of o and down, each with scales of its own for its part of a token and of a weight row; above 1 for dequantized only",
    run_wide: false,
};
/// Mathematics or published code.
pub const VARIANT: Field = Field {
    name: "variant",
    kind: FieldKind::Choice(&["exact", "official"]),
    default: "\"exact\"",
    help: "exact: the mathematics; official: the published code with its quirks",
    run_wide: false,
};
