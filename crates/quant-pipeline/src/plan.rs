//! From a recipe and a model to a plan: what happens to every linear, decided and checked before a weight is read.

use crate::PipelineError;
use crate::recipe::{Recipe, RecipeError};
use quant_checkpoint::formats::{FORMATS, Format, Unsupported};
use quant_core::{ActRule, Bits, FloatType, KvGranularity};
use quant_graph::{InputScheme, KvScheme, LinearScheme, ModelScheme, ModelSpec, Role, STAGES, Site};
use quant_hessian::FactorSettings;
use quant_methods::{PlannedRounding, Rounding};
use std::collections::BTreeMap;

/// What happens to one linear.
#[derive(Clone, Debug)]
pub struct LinearPlan {
    /// Full module name.
    pub module: String,
    /// Storage.
    pub scheme: LinearScheme,
    /// How its weight is rounded; none leaves it float.
    pub rounding: Option<PlannedRounding>,
}

impl LinearPlan {
    /// How the factor of its input's Hessian is prepared, if its rounding needs one.
    #[must_use]
    pub fn factor(&self) -> Option<&FactorSettings> {
        self.rounding.as_ref()?.factor.as_ref()
    }
}

/// Statistics a run gathers, and so which activation streams it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StreamNeeds {
    /// Second moments of the inputs in the quantised stream.
    pub hessian: bool,
    /// Channel maxima in the float stream.
    pub channel_max: bool,
    /// Ranges of the inputs in the quantised stream.
    pub static_inputs: bool,
    /// Ranges of keys and values in the quantised stream.
    pub static_kv: bool,
}

impl StreamNeeds {
    /// Whether the stream of the quantised model is carried.
    #[must_use]
    pub fn quantized_stream(&self) -> bool {
        self.hessian || self.static_inputs || self.static_kv
    }
    /// Whether any calibration data is needed.
    #[must_use]
    pub fn calibration(&self) -> bool {
        self.quantized_stream() || self.channel_max
    }
}

/// A legal job: recipe and model resolved against each other.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model.
    pub spec: ModelSpec,
    /// The recipe it came from.
    pub recipe: Recipe,
    /// Storage of every linear and the cache.
    pub scheme: ModelScheme,
    /// Per block, every linear.
    pub blocks: Vec<BTreeMap<Role, LinearPlan>>,
    /// Statistics to gather.
    pub needs: StreamNeeds,
    /// Type the target's loader holds scales in.
    pub scale_type: FloatType,
    /// Type the target stores norms in.
    pub norm_type: FloatType,
    /// What the person should know before starting.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Resolves a recipe against a model and refuses what cannot work.
    ///
    /// # Errors
    /// An override that matches nothing, factor settings that differ among linears with a common input, and whatever the
    /// export format cannot hold, with the alternatives named.
    pub fn new(recipe: &Recipe, spec: &ModelSpec) -> Result<Self, PipelineError> {
        let mut plan = Self::resolve(recipe, spec).map_err(|error| match error {
            PipelineError::Recipe(error) => recipe.placed(error).into(),
            other => other,
        })?;
        if !recipe.names_format() {
            plan.warnings.push(format_left_open(recipe, spec));
        }
        Ok(plan)
    }

    fn resolve(recipe: &Recipe, spec: &ModelSpec) -> Result<Self, PipelineError> {
        let format = recipe.format();
        let (scale_type, norm_type) = (format.scale_type(spec), format.float_type(spec));
        let modules: Vec<(usize, Role, String)> =
            (0..spec.layers).flat_map(|i| Role::ALL.map(|role| (i, role, spec.module(i, role)))).collect();
        for (glob, _) in recipe.overrides() {
            if !modules.iter().any(|(_, _, name)| glob.matches(name)) {
                let problem =
                    format!("it matches no linear of this model (they are called like {})", modules[0].2);
                return Err(RecipeError::conflict(format!("overrides.{:?}", glob.pattern()), problem).into());
            }
        }
        let mut warnings = Vec::new();
        for glob in recipe.ignore() {
            let head = glob.matches(ModelSpec::HEAD_MODULE);
            if !head && !modules.iter().any(|(_, _, name)| glob.matches(name)) {
                warnings.push(format!("ignore: {:?} matches nothing in this model", glob.pattern()));
            }
        }
        let mut blocks = vec![BTreeMap::new(); spec.layers];
        for (index, role, module) in modules {
            let ignored = recipe.ignore().iter().any(|glob| glob.matches(&module));
            let linear = if ignored {
                LinearPlan { module, scheme: LinearScheme::default(), rounding: None }
            } else {
                plan_linear(recipe, spec, recipe.rounding_of(&module), role, module)?
            };
            blocks[index].insert(role, linear);
        }
        let kv = plan_kv(recipe)?;
        let scheme = ModelScheme {
            blocks: blocks
                .iter()
                .map(|block| block.iter().map(|(role, linear)| (*role, linear.scheme)).collect())
                .collect(),
            kv,
        };
        format.supports(spec, &scheme)?;
        check_shared_factors(&blocks)?;
        let needs = stream_needs(recipe, &blocks, kv);
        if scheme.linears().all(|(_, _, s)| s.is_float()) && kv.is_none() {
            warnings
                .push("the scheme leaves everything in 16 bits: the output is a copy of the model".into());
        }
        Ok(Self {
            spec: spec.clone(),
            recipe: recipe.clone(),
            scheme,
            blocks,
            needs,
            scale_type,
            norm_type,
            warnings,
        })
    }

    /// Whether later linears of a block see already quantised earlier ones.
    #[must_use]
    pub fn true_sequential(&self) -> bool {
        self.recipe.rounding().true_sequential()
    }

    /// Whether any linear fed from this site of any block is rounded with a Hessian.
    #[must_use]
    pub fn hessian_at(&self, block: usize, site: Site) -> bool {
        self.factor_at(block, site).is_some()
    }

    /// How the factor of a site's Hessian is prepared: the linears fed from it agree.
    #[must_use]
    pub fn factor_at(&self, block: usize, site: Site) -> Option<&FactorSettings> {
        site.stage().linears.iter().find_map(|role| self.blocks[block][role].factor())
    }
}

/// What a recipe without a format gets, and which formats it could name.
fn format_left_open(recipe: &Recipe, spec: &ModelSpec) -> String {
    let holds = |format: &&&'static dyn Format| {
        format.id() != recipe.format().id() && Plan::resolve(&recipe.with_format(**format), spec).is_ok()
    };
    let others: Vec<&str> = FORMATS.iter().filter(holds).map(|f| f.id()).collect();
    let others = if others.is_empty() {
        "no other format holds what it asks for".to_owned()
    } else {
        format!("`export: {{ format: ... }}` could name {}", others.join(" or "))
    };
    format!("the recipe names no export format, so the output is {}; {others}", recipe.format().id())
}

fn plan_linear(
    recipe: &Recipe,
    spec: &ModelSpec,
    rounding: &dyn Rounding,
    role: Role,
    module: String,
) -> Result<LinearPlan, PipelineError> {
    let bits = rounding.weights().scheme.activations;
    let input = bits.map(|bits| plan_input(recipe, bits)).transpose()?;
    let rounding = rounding.plan(spec.linear(role).inputs, recipe.format().scale_type(spec))?;
    let weight = rounding.as_ref().map(|r| r.weight);
    Ok(LinearPlan { module, scheme: LinearScheme { weight, input }, rounding })
}

fn plan_input(recipe: &Recipe, bits: Bits) -> Result<InputScheme, Unsupported> {
    let a = recipe.activations();
    let rule = recipe.format().activation_rule(a.dynamic, a.symmetric)?;
    Ok(InputScheme { bits, rule, dynamic: a.dynamic, clip_ratio: a.clip_ratio })
}

fn plan_kv(recipe: &Recipe) -> Result<Option<KvScheme>, RecipeError> {
    let Some(bits) = recipe.rounding().weights().scheme.kv_cache else { return Ok(None) };
    let granularity = recipe.kv_cache().granularity.unwrap_or_else(|| match recipe.kv_cache().symmetric {
        // Asymmetric entries exist per token only.
        Some(false) => KvGranularity::TokenHead,
        _ => recipe.format().kv_granularity(),
    });
    let symmetric = recipe.kv_cache().symmetric.unwrap_or(granularity == KvGranularity::ChannelStatic);
    let rule = if symmetric { ActRule::Symmetric } else { ActRule::Asymmetric };
    Ok(Some(KvScheme { bits, rule, granularity }))
}

/// Linears with a common input share one factor, so they must agree on how it is made.
fn check_shared_factors(blocks: &[BTreeMap<Role, LinearPlan>]) -> Result<(), RecipeError> {
    for block in blocks {
        for stage in &STAGES {
            let mut linears = stage.linears.iter().map(|role| &block[role]).filter(|l| l.factor().is_some());
            let Some(first) = linears.next() else { continue };
            if let Some(other) = linears.find(|l| l.factor() != first.factor()) {
                return Err(RecipeError::conflict(
                    "overrides",
                    format!(
                        "{} and {} have the same input and share its factor: give them the same damping, actorder and factor",
                        first.module, other.module
                    ),
                ));
            }
        }
    }
    Ok(())
}

fn stream_needs(recipe: &Recipe, blocks: &[BTreeMap<Role, LinearPlan>], kv: Option<KvScheme>) -> StreamNeeds {
    let linears = || blocks.iter().flat_map(BTreeMap::values);
    StreamNeeds {
        hessian: linears().any(|l| l.factor().is_some()),
        channel_max: recipe.transforms().iter().any(|t| t.needs().channel_max),
        static_inputs: linears().any(|l| l.scheme.input.is_some_and(|i| !i.dynamic)),
        static_kv: kv.is_some_and(|kv| kv.granularity == KvGranularity::ChannelStatic),
    }
}
