//! The tables outside the blocks: embedding and head are quantised only where an override has the name of one of them, since
//! most loaders want them as floats and a glob is easily wider than it was meant.

use super::{MEASURED, Plan};
use crate::error::{PipelineError, RecipeError};
use crate::recipe::Recipe;
use quant_core::{Bytes, Scheme};
use quant_graph::{ModelSpec, Outer, WeightSpec};
use quant_methods::{Method, Modifier, PlannedRounding, Rounding, Settings, Solver, Statistic, Stream};
use serde_json::json;
use std::collections::BTreeMap;

/// What happens to embedding and head, as far as anything does.
pub(super) fn plan_tables(
    recipe: &Recipe,
    spec: &ModelSpec,
) -> Result<BTreeMap<Outer, PlannedRounding>, PipelineError> {
    let mut tables = BTreeMap::new();
    for table in Outer::TABLES {
        if let Some(rounding) = recipe.rounding_of_table(table) {
            tables.extend(plan_table(recipe, spec, table, rounding)?.map(|planned| (table, planned)));
        }
    }
    Ok(tables)
}

fn plan_table(
    recipe: &Recipe,
    spec: &ModelSpec,
    table: Outer,
    rounding: &dyn Rounding,
) -> Result<Option<PlannedRounding>, PipelineError> {
    let conflict =
        |problem: String| RecipeError::conflict(format!("overrides.{:?}", table.module()), problem);
    let scheme = rounding.weights().scheme;
    let floats = Scheme { activations: None, kv_cache: None, ..scheme };
    if scheme.activations.is_some() {
        let problem = match table {
            Outer::Embedding => "the embedding is looked up, it has no activations to quantise",
            _ => "the activations at the head stay floats",
        };
        return Err(conflict(format!("the scheme is {scheme}, and {problem}; write scheme: {floats}")).into());
    }
    let planned = rounding.plan(weight(spec, table), recipe.format().scale_type(spec))?;
    let Some(problem) = planned.as_ref().and_then(|planned| obstacle(table, &*planned.solver)) else {
        return Ok(planned);
    };
    let able = recipe.registry().methods().iter().filter(|method| rounds(method, spec, table, floats));
    let able: Vec<String> = able.map(|m| format!("{{ {}: {{ scheme: {floats} }} }}", m.id)).collect();
    Err(conflict(format!("{problem}; write {}", able.join(" or "))).into())
}

fn weight(spec: &ModelSpec, table: Outer) -> WeightSpec<'static> {
    WeightSpec::table(table.module(), (spec.vocab, spec.hidden))
}

/// Why a solver cannot round a table: it is there some rows at a time, and of its input only the head's final hidden states
/// in the deployed model are known.
fn obstacle(table: Outer, solver: &dyn Solver) -> Option<String> {
    let method = solver.method().id;
    let needs = solver.needs();
    if table == Outer::Embedding && !needs.is_empty() {
        return Some(format!(
            "{method} looks at what a weight is multiplied with, and the embedding is not multiplied"
        ));
    }
    let known = |(stream, statistic): &(Stream, Statistic)| {
        *stream == Stream::Deployed && statistic.float_beside().is_none()
    };
    if !needs.iter().all(known) {
        return Some(format!(
            "{method} looks at activations of the float model, which are not carried to the head"
        ));
    }
    (!solver.rows_alone())
        .then(|| format!("{method} looks at a whole weight, and a table comes some rows at a time"))
}

/// Whether a method with its defaults rounds a table.
fn rounds(method: &Method, spec: &ModelSpec, table: Outer, scheme: Scheme) -> bool {
    let built = Settings::new(method.id, json!({"scheme": scheme.to_string()}), method.fields)
        .and_then(|settings| (method.build)(&settings));
    // What works on whole blocks before it rounds is no exception for a table.
    let alone = |m: &Modifier| m.model.is_none() && m.transform.is_none() && m.learner.is_none();
    let rounding = built.ok().filter(alone).and_then(|m| m.rounding);
    let planned =
        rounding.and_then(|r| r.plan(weight(spec, table), quant_core::FloatType::F32).ok().flatten());
    planned.is_some_and(|planned| obstacle(table, &*planned.solver).is_none())
}

impl Plan {
    /// Everything that is gathered of the final hidden states, behind the norm: the input of the head.
    #[must_use]
    pub fn needs_of_head(&self) -> Vec<Statistic> {
        let Some(head) = self.tables.get(&Outer::Head).filter(|_| self.streams.deployed) else {
            return Vec::new();
        };
        let needs = head.solver.needs().into_iter().map(|(_, statistic)| statistic);
        needs.chain([Statistic::Sample(MEASURED)]).collect()
    }

    /// Stored bits per weight of a quantised table, as the report of the run will have it.
    #[must_use]
    pub fn table_bits_per_weight(&self, table: &PlannedRounding) -> f64 {
        table.weight.bits_per_weight((self.spec.vocab, self.spec.hidden), 8 * self.norm_type.size())
    }

    /// What a tied head costs that is tied no more.
    pub(super) fn untying(&self) -> Option<String> {
        if self.spec.tied == self.stored.tied {
            return None;
        }
        let declared = self.recipe.format().declare(&self.stored, &self.scheme, &|_| None);
        let head = declared.iter().find(|tensor| tensor.name == ModelSpec::HEAD)?;
        let bytes = (head.shape.iter().product::<usize>() * head.dtype.bitsize()).div_ceil(8) as u64;
        let named: Vec<&str> = self.tables.keys().map(|table| table.module()).collect();
        let reason = match self.recipe.model_transform() {
            Some(model) => model.method().id.to_owned(),
            None => format!("quantising {}", named.join(" and ")),
        };
        Some(format!(
            "the head of this model is its embedding; {reason} unties them: the output has a table {} of its own, {} more \
             ({bytes} bytes), and tie_word_embeddings: false",
            ModelSpec::HEAD,
            Bytes(bytes)
        ))
    }
}
