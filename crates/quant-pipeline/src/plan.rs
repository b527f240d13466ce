//! From a recipe and a model to a plan: what happens to every linear, decided and checked before a weight is read.

use crate::PipelineError;
use crate::recipe::{Recipe, RecipeError, RoundingSpec};
use quant_checkpoint::formats::Unsupported;
use quant_core::{ActOrder, ActRule, Bits, FloatType, Grid, KvGranularity};
use quant_graph::{
    InputScheme, KvScheme, LinearScheme, ModelScheme, ModelSpec, Role, STAGES, Site, WeightScheme,
};
use quant_hessian::{FactorSettings, GptqConfig};
use quant_methods::{Rounding, gptq::Gptq, rtn::Rtn};
use std::collections::BTreeMap;

/// What happens to one linear.
#[derive(Clone, Debug)]
pub struct LinearPlan {
    /// Full module name.
    pub module: String,
    /// Storage.
    pub scheme: LinearScheme,
    /// How its weight is rounded; none leaves it float.
    pub rounding: Option<Rounding>,
    /// How the factor of its input's Hessian is prepared, where the rounding needs one.
    pub factor: FactorSettings,
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
        let format = recipe.format;
        let (scale_type, norm_type) = (format.scale_type(spec), format.float_type(spec));
        let modules: Vec<(usize, Role, String)> =
            (0..spec.layers).flat_map(|i| Role::ALL.map(|role| (i, role, spec.module(i, role)))).collect();
        for (glob, _) in &recipe.overrides {
            if !modules.iter().any(|(_, _, name)| glob.matches(name)) {
                return Err(RecipeError::Conflict {
                    path: format!("overrides.{:?}", glob.pattern()),
                    problem: format!(
                        "it matches no linear of this model (they are called like {})",
                        modules[0].2
                    ),
                }
                .into());
            }
        }
        let mut warnings = Vec::new();
        for glob in &recipe.ignore {
            let head = glob.matches(ModelSpec::HEAD_MODULE);
            if !head && !modules.iter().any(|(_, _, name)| glob.matches(name)) {
                warnings.push(format!("ignore: {:?} matches nothing in this model", glob.pattern()));
            }
        }
        let mut blocks = vec![BTreeMap::new(); spec.layers];
        for (index, role, module) in modules {
            let ignored = recipe.ignore.iter().any(|glob| glob.matches(&module));
            let linear = if ignored {
                LinearPlan {
                    module,
                    scheme: LinearScheme::default(),
                    rounding: None,
                    factor: FactorSettings::default(),
                }
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
        self.recipe.rounding.true_sequential
    }

    /// Whether any linear fed from this site of any block is rounded with a Hessian.
    #[must_use]
    pub fn hessian_at(&self, block: usize, site: Site) -> bool {
        site.stage().linears.iter().any(|role| {
            self.blocks[block][role].rounding.as_ref().is_some_and(|r| r.quantizer().method().needs.hessian)
        })
    }
}

fn plan_linear(
    recipe: &Recipe,
    spec: &ModelSpec,
    rounding: &RoundingSpec,
    role: Role,
    module: String,
) -> Result<LinearPlan, PipelineError> {
    let scheme = rounding.scheme;
    let inputs = spec.linear(role).inputs;
    // A group as wide as the row is a scale per channel.
    let group = scheme.group.filter(|&g| g < inputs);
    let input = match scheme.activations {
        Some(bits) => Some(plan_input(recipe, bits)?),
        None => None,
    };
    let Some(bits) = scheme.weights else {
        let scheme = LinearScheme { weight: None, input };
        return Ok(LinearPlan { module, scheme, rounding: None, factor: FactorSettings::default() });
    };
    let scale_type = recipe.format.scale_type(spec);
    let grid = Grid::new(rounding.convention, bits, rounding.variant, scale_type)?;
    let method = if rounding.method.needs.hessian {
        Rounding::Gptq(Gptq {
            config: GptqConfig {
                group,
                clip: rounding.clip,
                act_order: rounding.act_order,
                block: rounding.block_size,
                ..GptqConfig::new(grid)
            },
        })
    } else {
        Rounding::Rtn(Rtn { grid, group, clip: rounding.clip })
    };
    let weight = WeightScheme {
        bits,
        symmetric: rounding.convention.is_symmetric() && !grid.is_binary(),
        group,
        act_order: if group.is_some() { rounding.act_order } else { ActOrder::None },
        binary: grid.is_binary(),
    };
    Ok(LinearPlan {
        module,
        scheme: LinearScheme { weight: Some(weight), input },
        rounding: Some(method),
        factor: FactorSettings {
            damping: rounding.damping,
            act_order: rounding.act_order.permutes(),
            precision: rounding.factor,
            ..FactorSettings::default()
        },
    })
}

fn plan_input(recipe: &Recipe, bits: Bits) -> Result<InputScheme, Unsupported> {
    let a = &recipe.activations;
    let rule = recipe.format.activation_rule(a.dynamic, a.symmetric)?;
    Ok(InputScheme { bits, rule, dynamic: a.dynamic, clip_ratio: a.clip_ratio })
}

fn plan_kv(recipe: &Recipe) -> Result<Option<KvScheme>, RecipeError> {
    let Some(bits) = recipe.rounding.scheme.kv_cache else { return Ok(None) };
    let granularity = recipe.kv_cache.granularity.unwrap_or_else(|| match recipe.kv_cache.symmetric {
        // Asymmetric entries exist per token only.
        Some(false) => KvGranularity::TokenHead,
        _ => recipe.format.kv_granularity(),
    });
    let symmetric = recipe.kv_cache.symmetric.unwrap_or(granularity == KvGranularity::ChannelStatic);
    let rule = if symmetric { ActRule::Symmetric } else { ActRule::Asymmetric };
    Ok(Some(KvScheme { bits, rule, granularity }))
}

/// Linears with a common input share one factor, so they must agree on how it is made.
fn check_shared_factors(blocks: &[BTreeMap<Role, LinearPlan>]) -> Result<(), RecipeError> {
    for block in blocks {
        for stage in &STAGES {
            let mut factors = stage
                .linears
                .iter()
                .map(|role| &block[role])
                .filter(|l| l.rounding.as_ref().is_some_and(|r| r.quantizer().method().needs.hessian));
            let Some(first) = factors.next() else { continue };
            if let Some(other) = factors.find(|l| l.factor != first.factor) {
                return Err(RecipeError::Conflict {
                    path: "overrides".into(),
                    problem: format!(
                        "{} and {} have the same input and share its factor: give them the same damping, actorder and factor",
                        first.module, other.module
                    ),
                });
            }
        }
    }
    Ok(())
}

fn stream_needs(recipe: &Recipe, blocks: &[BTreeMap<Role, LinearPlan>], kv: Option<KvScheme>) -> StreamNeeds {
    let linears = || blocks.iter().flat_map(BTreeMap::values);
    StreamNeeds {
        hessian: linears().any(|l| l.rounding.as_ref().is_some_and(|r| r.quantizer().method().needs.hessian)),
        channel_max: recipe.smoothquant.is_some(),
        static_inputs: linears().any(|l| l.scheme.input.is_some_and(|i| !i.dynamic)),
        static_kv: kv.is_some_and(|kv| kv.granularity == KvGranularity::ChannelStatic),
    }
}
