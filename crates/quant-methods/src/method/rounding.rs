//! The interface of methods that turn weights into levels, as a modifier of a recipe: its settings, and what it plans for one
//! linear.

use crate::settings::FieldKind;
use crate::{Field, Method, Settings, SettingsError, Solver};
use quant_core::{ActOrder, ClipSearch, Convention, CoreError, FloatType, Grid, Scheme, Variant};
use quant_graph::{LinearSpec, WeightForm, WeightScheme};
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
    /// What it will do to the weight of a linear whose scales the target's loader holds in `scale_type`; none where the scheme
    /// leaves weights alone.
    ///
    /// # Errors
    /// A convention that has no grid at this bit width.
    fn plan(&self, linear: &LinearSpec, scale_type: FloatType) -> Result<Option<PlannedRounding>, CoreError>;
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
}

impl WeightSettings {
    /// Reads the keys [`SCHEME`], [`SYMMETRIC`], [`CONVENTION`], [`MSE_CLIP`] and [`VARIANT`].
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
        let text = settings.text("scheme")?;
        let scheme: Scheme = text.parse().map_err(|e: CoreError| SettingsError::Value {
            path: format!("{}.scheme", settings.path()),
            expected: "W<bits>A<bits>[KV<bits>][g<size>]".into(),
            found: e.to_string(),
        })?;
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
        Ok(Self { scheme, convention, clip: None, variant })
    }

    /// The grid of a weight of `inputs` columns and how it is stored, by a method that takes the columns in `act_order`.
    ///
    /// # Errors
    /// [`CoreError::NoGrid`].
    pub fn stored(
        &self,
        inputs: usize,
        scale_type: FloatType,
        act_order: ActOrder,
    ) -> Result<Option<(Grid, WeightScheme)>, CoreError> {
        let Some(bits) = self.scheme.weights else { return Ok(None) };
        let grid = Grid::new(self.convention, bits, self.variant, scale_type)?;
        // A group as wide as the row is a scale per channel.
        let group = self.scheme.group.filter(|&g| g < inputs);
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
/// Mathematics or published code.
pub const VARIANT: Field = Field {
    name: "variant",
    kind: FieldKind::Choice(&["exact", "official"]),
    default: "\"exact\"",
    help: "exact: the mathematics; official: the published code with its quirks",
    run_wide: false,
};
