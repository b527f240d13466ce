//! From a recipe and a model to a plan: what happens to every linear, decided and checked before a weight is read.

mod learned;
mod said;
mod tables;
mod waiting;

use crate::cache_plan::plan_cache;
use crate::error::{PipelineError, RecipeError};
use crate::recipe::Recipe;
pub use learned::FallbackPlan;
use learned::{LearnedBlocks, check_fallbacks, fallen, plan_learned, schemes};
use quant_checkpoint::formats::Format;
use quant_core::{Bits, CoreError, FloatType};
use quant_graph::{
    BlockSpec, Clipping, InputScheme, KvScheme, LinearId, LinearScheme, LinearSpec, ModelScheme, ModelSpec,
    OnlineScheme, Outer, ScaleEdge, StageSpec,
};
use quant_methods::{
    BlockPlan, FloatStream, Learner, Need, PlannedRounding, Rounding, Solver, Spacing, Statistic, Stream,
};
use said::{notices, unused_keys};
use std::collections::BTreeMap;
use tables::plan_tables;

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
    /// What rounds its weight, if anything does.
    #[must_use]
    pub fn solver(&self) -> Option<&dyn Solver> {
        self.rounding.as_ref().map(|r| &*r.solver)
    }
}

/// The sample of every input on which the error of an output is measured.
pub(crate) const MEASURED: Spacing = Spacing::AtMost(128);

/// Which activations a run carries from block to block.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Streams {
    /// Those of the float model.
    pub float: bool,
    /// Those of the model with the weights it will be deployed with.
    pub deployed: bool,
    /// The float stream of statistics that look at both at once: it goes through the transformed block with the deployed one.
    pub together: Option<FloatStream>,
    /// What they are good for, for the person who has to give calibration data.
    pub reasons: Vec<&'static str>,
}

impl Streams {
    /// Whether any calibration data is needed.
    #[must_use]
    pub fn calibration(&self) -> bool {
        self.float || self.deployed
    }
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        let begins_anew = self.together == Some(FloatStream::Block);
        usize::from(self.float) + usize::from(self.deployed) + usize::from(begins_anew)
    }
}

/// Everything a run gathers at the input of one stage.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct StageNeeds {
    /// Of the float stream.
    pub float: Vec<Statistic>,
    /// Of the deployed stream.
    pub deployed: Vec<Statistic>,
}

/// A legal job: recipe and model resolved against each other.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model as it is.
    pub spec: ModelSpec,
    /// The model as it will be stored: a tied head may get a table of its own.
    pub stored: ModelSpec,
    /// The recipe it came from.
    pub recipe: Recipe,
    /// Storage of every linear, the cache, embedding and head.
    pub scheme: ModelScheme,
    /// Per block, every linear.
    pub blocks: Vec<BTreeMap<LinearId, LinearPlan>>,
    /// How embedding and head are rounded, where they are.
    pub tables: BTreeMap<Outer, PlannedRounding>,
    /// What a transform of the whole model leaves to be multiplied in every block, before anything is learned there.
    pub whole: OnlineScheme,
    /// Per block, whether the recipe's learner trains in it.
    pub learned: Vec<bool>,
    /// Per block, how it is stored if it falls back to more bits; none where it never does.
    pub fallbacks: Vec<Option<FallbackPlan>>,
    /// Activations to carry.
    pub streams: Streams,
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
    /// An override that matches nothing or asks for what a table cannot be, methods that are compared with different float
    /// streams, and whatever the export format cannot hold, with the alternatives named.
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
        let block = |i| spec.block(i).linears.into_iter().map(move |linear| (i, linear));
        let modules: Vec<(usize, LinearSpec)> = (0..spec.layers).flat_map(block).collect();
        for (glob, _) in recipe.overrides() {
            let of_table = |table: &Outer| table.module() == glob.pattern();
            if !modules.iter().any(|(_, l)| glob.matches(&l.module)) && !Outer::TABLES.iter().any(of_table) {
                let like = modules.first().map_or("", |(_, l)| l.module.as_str());
                let mut problem = format!("it matches no linear of this model (they are called like {like})");
                if let Some(table) = Outer::TABLES.iter().find(|table| glob.matches(table.module())) {
                    problem += &format!("; {0} is quantised only where the key is {0}", table.module());
                }
                return Err(RecipeError::conflict(format!("overrides.{:?}", glob.pattern()), problem).into());
            }
        }
        let whole = recipe.model_transform().map(|model| model.plan(spec)).transpose();
        let whole = whole.map_err(RecipeError::from)?;
        let mut warnings = Vec::new();
        let mut online = Vec::new();
        let left = whole.as_ref().map(|whole| whole.online.clone()).unwrap_or_default();
        warnings.extend(whole.iter().flat_map(|whole| whole.notices.iter().cloned()));
        if !left.is_empty() {
            online = vec![left.clone(); spec.layers];
        }
        for index in 0..spec.layers {
            let block = movable(spec.block(index), online.get(index));
            for transform in recipe.transforms() {
                transform.check(&block).map_err(RecipeError::from)?;
            }
        }
        for glob in recipe.ignore() {
            let table = Outer::TABLES.iter().any(|table| glob.matches(table.module()));
            if !table && !modules.iter().any(|(_, l)| glob.matches(&l.module)) {
                warnings.push(format!("ignore: {:?} matches nothing in this model", glob.pattern()));
            }
        }
        let mut blocks = vec![BTreeMap::new(); spec.layers];
        for (index, linear) in modules {
            let ignored = recipe.ignore().iter().any(|glob| glob.matches(&linear.module));
            let planned = if ignored {
                LinearPlan { module: linear.module, scheme: LinearScheme::default(), rounding: None }
            } else {
                plan_linear(recipe, spec, recipe.rounding_of(&linear.module), &linear)?
            };
            blocks[index].insert(linear.id, planned);
        }
        let mut kv = plan_cache(recipe, spec, &mut warnings)?;
        let LearnedBlocks { learned, fallbacks } =
            plan_learned(recipe, spec, &mut blocks, &mut kv, &left, (&mut online, &mut warnings))?;
        let tables = plan_tables(recipe, spec)?;
        let scheme = ModelScheme {
            blocks: blocks.iter().map(schemes).collect(),
            online,
            kv,
            tables: tables.iter().map(|(table, planned)| (*table, planned.weight)).collect(),
            fused: whole.is_some(),
        };
        let stored = scheme.stored(spec);
        format.supports(&stored, &scheme)?;
        check_fallbacks(format, &stored, &scheme, &fallbacks)?;
        check_float_streams(&blocks)?;
        warnings.extend(notices(&blocks));
        warnings.extend(unused_keys(recipe, &scheme));
        let streams = streams(recipe, spec, &blocks, &tables, &scheme, learned.contains(&true));
        if whole.is_none()
            && scheme.linears().all(|(_, _, s)| s.is_float())
            && kv.is_none()
            && tables.is_empty()
        {
            warnings
                .push("the scheme leaves everything in 16 bits: the output is a copy of the model".into());
        }
        let mut plan = Self {
            whole: left,
            spec: spec.clone(),
            stored,
            recipe: recipe.clone(),
            scheme,
            blocks,
            tables,
            learned,
            fallbacks,
            streams,
            scale_type,
            norm_type,
            warnings,
        };
        plan.warnings.extend(plan.untying());
        Ok(plan)
    }

    /// Ids of the methods that round: that of the modifier, and those that overrides and tables have besides.
    #[must_use]
    pub fn roundings(&self) -> Vec<&'static str> {
        let mut ids = vec![self.recipe.rounding().method().id];
        for id in self.solvers().map(|solver| solver.method().id) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    /// What rounds anything, from the first block to the head.
    pub(crate) fn solvers(&self) -> impl Iterator<Item = &dyn Solver> {
        let linears = self.blocks.iter().flat_map(BTreeMap::values).filter_map(LinearPlan::solver);
        linears.chain(self.tables.values().map(|table| &*table.solver))
    }

    /// Whether the recipe's learner trains in a block.
    #[must_use]
    pub fn learns(&self, block: usize) -> bool {
        self.learned.get(block) == Some(&true)
    }

    /// The linears of a block as they are stored, where it fell back to more bits or where it did not.
    #[must_use]
    pub(crate) fn linears(&self, block: usize, fell_back: bool) -> &BTreeMap<LinearId, LinearPlan> {
        let fallback = self.fallbacks.get(block).and_then(Option::as_ref).filter(|_| fell_back);
        fallback.map_or(&self.blocks[block], |fallback| &fallback.linears)
    }

    /// Storage of the model when the blocks of which `fell_back` says so have fallen back to more bits; of all blocks, the worst case.
    ///
    /// ```
    /// use quant_pipeline::{Plan, Recipe, open_folder};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-reasoner");
    /// let folder = open_folder(model.as_ref())?;
    /// let text = "{ version: 1, modifiers: [flatquant: { scheme: W4A4KV4, fallback: [bits8] }] }";
    /// let plan = Plan::new(&Recipe::parse(text)?, &folder.spec)?;
    /// let worst = plan.scheme_with(|_| true);
    /// assert!(worst.linears().all(|(_, _, linear)| linear.weight.is_some_and(|weight| weight.bits.get() == 8)));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn scheme_with(&self, fell_back: impl Fn(usize) -> bool) -> ModelScheme {
        fallen(&self.scheme, &self.fallbacks, fell_back)
    }

    /// A block as its learner sees it.
    #[must_use]
    pub fn block_plan<'p>(&'p self, index: usize) -> Option<BlockPlan<'p>> {
        let scheme = self.scheme.blocks.get(index).filter(|_| self.learns(index))?;
        let kernel = self.recipe.format().pair_kernel(&self.spec);
        Some(BlockPlan { spec: &self.spec, index, scheme, kv: self.scheme.kv, kernel, online: &self.whole })
    }

    /// What a block consists of, with the edges along which scales can still move.
    #[must_use]
    pub fn block(&self, index: usize) -> BlockSpec {
        movable(self.spec.block(index), self.scheme.online.get(index))
    }

    /// Whether later linears of a block see already quantised earlier ones.
    #[must_use]
    pub fn true_sequential(&self) -> bool {
        self.recipe.rounding().true_sequential()
    }

    /// Whether keys have a bias that could be taken off before rope: no norm comes between.
    pub(crate) fn key_bias(&self) -> bool {
        self.spec.qkv_bias && !self.spec.qk_norm
    }

    /// Whether attention of the deployed stream reads a quantised cache.
    pub(crate) fn cache_in_calibration(&self) -> bool {
        self.scheme.kv.is_some() && self.streams.deployed && self.recipe.activations().in_calibration
    }

    /// The cache, if its ranges need a pass over keys and values of their own: attention has no keys before rope to show, and
    /// where it is to read quantised ones their ranges must be there already.
    pub(crate) fn cache_ahead(&self) -> Option<KvScheme> {
        self.scheme.kv.filter(|kv| kv.is_static() && (kv.before_rope || self.cache_in_calibration()))
    }

    /// The linears of a stage by what they share: those of one method that make the same of the statistics of their input
    /// follow each other. Linears left float are with those that make nothing of them.
    #[must_use]
    pub fn sharing(&self, block: usize, stage: &StageSpec) -> Vec<Vec<LinearId>> {
        let key = |id: &LinearId| {
            let solver = self.blocks.get(block)?.get(id)?.solver()?;
            Some((solver.method().id, solver.sharing_key())).filter(|(_, key)| !key.is_empty())
        };
        let mut groups: Vec<Vec<LinearId>> = Vec::new();
        for id in &stage.linears {
            match groups.iter_mut().find(|group| group.first().is_some_and(|first| key(first) == key(id))) {
                Some(group) => group.push(*id),
                None => groups.push(vec![*id]),
            }
        }
        groups
    }

    /// Everything that is gathered at the input of a stage of a block.
    #[must_use]
    pub fn needs_at(&self, block: usize, stage: &StageSpec) -> StageNeeds {
        let mut needs = StageNeeds::default();
        let linears = || stage.linears.iter().filter_map(|id| self.blocks.get(block)?.get(id));
        for (stream, statistic) in linears().filter_map(LinearPlan::solver).flat_map(Solver::needs) {
            needs.of_mut(stream).push(statistic);
        }
        let spec = self.block(block);
        let transforms = self.recipe.transforms().iter().flat_map(|t| t.needs(&spec));
        for need in transforms.filter(|need| need.site == stage.site) {
            needs.of_mut(need.stream).push(need.statistic);
        }
        if self.streams.deployed {
            if linears().any(|l| l.scheme.input.is_some_and(|i| !i.dynamic)) {
                needs.deployed.push(Statistic::Range(self.recipe.activations().observer));
            }
            needs.deployed.push(Statistic::Sample(MEASURED));
        }
        needs
    }
}

impl StageNeeds {
    fn of_mut(&mut self, stream: Stream) -> &mut Vec<Statistic> {
        match stream {
            Stream::Float => &mut self.float,
            Stream::Deployed => &mut self.deployed,
        }
    }
}

/// A block without the edges whose scales would have to pass a transform that runs online: rows that make what is mixed behind them.
fn movable(mut block: BlockSpec, online: Option<&OnlineScheme>) -> BlockSpec {
    let mixed = |edge: &ScaleEdge| online.is_some_and(|online| online.sites.contains_key(&edge.to));
    block.edges.retain(|edge| !mixed(edge));
    block
}

/// What a recipe without a format gets, and which formats it could name.
fn format_left_open(recipe: &Recipe, spec: &ModelSpec) -> String {
    let holds = |format: &&'static dyn Format| {
        format.id() != recipe.format().id() && Plan::resolve(&recipe.with_format(*format), spec).is_ok()
    };
    let others: Vec<&str> = recipe.registry().formats().iter().filter(holds).map(|f| f.id()).collect();
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
    linear: &LinearSpec,
) -> Result<LinearPlan, PipelineError> {
    let weights = rounding.weights();
    let shards = weights.shards_of(linear.into());
    let input = weights.scheme.activations.map(|bits| plan_input(recipe, bits, shards)).transpose()?;
    let rounding =
        rounding.plan(linear.into(), recipe.format().scale_type(spec)).map_err(|error| match error {
            CoreError::Shards { .. } => RecipeError::conflict("input_shards", error.to_string()).into(),
            other => PipelineError::from(other),
        })?;
    let weight = rounding.as_ref().map(|r| r.weight);
    Ok(LinearPlan { module: linear.module.clone(), scheme: LinearScheme { weight, input }, rounding })
}

fn plan_input(recipe: &Recipe, bits: Bits, shards: usize) -> Result<InputScheme, PipelineError> {
    let a = recipe.activations();
    if shards > 1 && !a.dynamic {
        let problem = "a static scale belongs to the whole tensor; use activations: { dynamic: true }, or input_shards: 1";
        return Err(RecipeError::conflict("input_shards", problem).into());
    }
    let rule = recipe.format().activation_rule(a.dynamic, a.symmetric)?;
    let clip_ratio = Clipping::Fixed(a.clip_ratio);
    Ok(InputScheme { bits, rule, dynamic: a.dynamic, clip_ratio, shards })
}

/// Only one float stream goes beside the deployed one, through all blocks.
fn check_float_streams(blocks: &[BTreeMap<LinearId, LinearPlan>]) -> Result<(), RecipeError> {
    let beside = |linear: &LinearPlan| {
        let solver = linear.solver()?;
        let stream = solver.needs().into_iter().find_map(|(_, statistic)| statistic.float_beside())?;
        Some((solver.method().id, stream))
    };
    let mut looking = blocks.iter().flat_map(BTreeMap::values).filter_map(|l| Some((l, beside(l)?)));
    let Some((first, (method, stream))) = looking.next() else { return Ok(()) };
    match looking.find(|(_, (_, found))| *found != stream) {
        None => Ok(()),
        Some((other, (found_method, found))) => Err(RecipeError::conflict(
            "overrides",
            format!(
                "one float stream goes with the quantised one through all blocks, and {} ({method}) asks for float_stream: {}, {} \
                 ({found_method}) for float_stream: {}; write float_stream: model, which gptaq always has, wherever it can be chosen",
                first.module,
                stream.name(),
                other.module,
                found.name()
            ),
        )),
    }
}

/// Which activations have to be carried, and what for.
fn streams(
    recipe: &Recipe,
    spec: &ModelSpec,
    blocks: &[BTreeMap<LinearId, LinearPlan>],
    tables: &BTreeMap<Outer, PlannedRounding>,
    scheme: &ModelScheme,
    learns: bool,
) -> Streams {
    let (kv, online) = (scheme.kv, scheme.online.first());
    let linears = || blocks.iter().flat_map(BTreeMap::values);
    let mut streams = Streams::default();
    let mut need = |stream: Stream, reason: &'static str| {
        match stream {
            Stream::Float => streams.float = true,
            Stream::Deployed => streams.deployed = true,
        }
        if !streams.reasons.contains(&reason) {
            streams.reasons.push(reason);
        }
    };
    let solvers = linears().filter_map(LinearPlan::solver).chain(tables.values().map(|t| &*t.solver));
    let of_solvers: Vec<_> = solvers.flat_map(Solver::needs).collect();
    for (stream, statistic) in &of_solvers {
        need(*stream, statistic.reason());
    }
    let block = movable(spec.block(0), online);
    for Need { stream, statistic, .. } in recipe.transforms().iter().flat_map(|t| t.needs(&block)) {
        need(stream, statistic.reason());
    }
    if learns {
        need(Stream::Float, "a method trains on the inputs of the blocks");
        if let Some(Stream::Deployed) = recipe.learner().map(Learner::inputs) {
            need(Stream::Deployed, "a method trains on the inputs of the blocks");
        }
    }
    if linears().any(|l| l.scheme.input.is_some_and(|i| !i.dynamic)) {
        need(Stream::Deployed, Statistic::Range(recipe.activations().observer).reason());
    }
    if kv.is_some_and(|kv| kv.is_static()) {
        need(Stream::Deployed, "a static KV cache needs its range");
    }
    streams.together = of_solvers.iter().find_map(|(_, statistic)| statistic.float_beside());
    streams.float |= streams.together == Some(FloatStream::Model);
    streams
}
