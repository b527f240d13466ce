//! The list of modifiers: the methods of a recipe, made from their sections.

use super::mapping;
use crate::error::RecipeError;
use quant_methods::settings::unknown_key;
use quant_methods::{Learner, Method, Methods, ModelTransform, Modifier, Rounding, Settings, Transform};
use serde_json::{Map, Value};
use std::sync::Arc;

/// What the list of modifiers says.
pub(super) struct Modifiers {
    pub(super) model: Option<Arc<dyn ModelTransform>>,
    pub(super) transforms: Vec<Arc<dyn Transform>>,
    pub(super) learner: Option<Arc<dyn Learner>>,
    pub(super) rounding: Arc<dyn Rounding>,
    /// The rounding's section as written, for overrides to build on.
    pub(super) written: Value,
    /// All sections with their defaults.
    pub(super) resolved: Vec<(&'static str, Value)>,
}

pub(super) fn parse_modifiers(value: Value, methods: &Methods) -> Result<Modifiers, RecipeError> {
    let Value::Array(modifiers) = value else {
        let expected = "a list such as [smoothquant: {alpha: 0.5}, gptq: {scheme: W8A8}]";
        return Err(RecipeError::value("modifiers", expected, &value));
    };
    let conflict = |problem: &str| RecipeError::conflict("modifiers", problem);
    let (mut transforms, mut rounding) = (Vec::<Arc<dyn Transform>>::new(), None);
    let mut model: Option<Arc<dyn ModelTransform>> = None;
    let mut learner = None;
    let mut resolved = Vec::new();
    for (i, modifier) in modifiers.into_iter().enumerate() {
        let path = format!("modifiers[{i}]");
        // A bare word is a method with its defaults.
        let entries = match modifier {
            Value::String(name) => Map::from_iter([(name, Value::Null)]),
            other => mapping(&path, other)?,
        };
        for (name, value) in entries {
            let known = || methods.iter().map(|m| m.id);
            let method = methods.get(&name).ok_or_else(|| unknown_key(&path, &name, known()))?;
            let settings = Settings::new(&format!("{path}.{name}"), value.clone(), method.fields)?;
            resolved.push((method.id, settings.resolved()));
            let Modifier { model: whole, transform, learner: learns, rounding: rounds } =
                (method.build)(&settings)?;
            if let Some(whole) = whole {
                if model.is_some() || !transforms.is_empty() || rounding.is_some() {
                    let problem = format!("{name} rewrites the whole model; it stands first, and once");
                    return Err(conflict(&problem));
                }
                model = Some(whole);
            }
            if transform.is_some() && learner.is_some() {
                return Err(conflict(
                    "nothing can rewrite a block between what is learned in it and its rounding",
                ));
            }
            if transform.is_some() && rounding.is_some() {
                return Err(conflict("a transform must stand before the rounding it prepares"));
            }
            if rounds.is_some() && rounding.is_some() {
                return Err(conflict("there are two rounding modifiers; use overrides for exceptions"));
            }
            if let Some(learns) = learns {
                if !transforms.is_empty() || learner.is_some() {
                    let problem = format!(
                        "{name} learns in the blocks as the checkpoint or quarot has them; drop the other modifiers before it"
                    );
                    return Err(conflict(&problem));
                }
                if rounding.is_some() {
                    let problem = format!("{name} learns for the rounding behind it; it stands before that");
                    return Err(conflict(&problem));
                }
                learner = Some(learns);
            }
            if let Some(transform) = transform {
                if transforms.iter().any(|t| t.method().id == method.id) {
                    let problem = format!("{name} appears twice; its scales would undo each other");
                    return Err(conflict(&problem));
                }
                transforms.push(transform);
            }
            if let Some(rounds) = rounds {
                rounding = Some((value, rounds));
            }
        }
    }
    let (written, rounding) = rounding.ok_or_else(|| {
        let roundings = methods.iter().filter(|m| m.kind.rounds());
        let (with, without): (Vec<&Method>, Vec<_>) =
            roundings.partition(|m| m.fields.iter().any(|field| field.name == "scheme"));
        let ids = |methods: &[&Method]| methods.iter().map(|m| m.id).collect::<Vec<_>>().join(" or ");
        let mut add = format!("{} with a scheme", ids(&with));
        if !without.is_empty() {
            add.push_str(&format!(", or {} without one", ids(&without)));
        }
        conflict(&format!("there is no rounding modifier; add {add}"))
    })?;
    Ok(Modifiers { model, transforms, learner, rounding, written, resolved })
}

/// The rounding of a recipe, for overrides to build on.
pub(super) struct Usual<'a> {
    pub(super) method: &'static Method,
    /// Its section as written.
    pub(super) written: &'a Value,
}

/// An override is the modifier with some keys replaced, or another method with a section of its own, which takes over the
/// scheme and the shards unless it has its own.
pub(super) fn parse_override(
    path: &str,
    usual: &Usual<'_>,
    methods: &Methods,
    value: Value,
) -> Result<Arc<dyn Rounding>, RecipeError> {
    let mut changes = mapping(path, value)?;
    let named = match changes.keys().next() {
        Some(name) if changes.len() == 1 => methods.get(name),
        _ => None,
    };
    let Some(method) = named else {
        let known = |key: &String| usual.method.fields.iter().any(|field| field.name == key);
        if let Some(name) = changes.keys().find(|key| !known(key) && methods.get(key).is_some()) {
            let problem =
                format!("a method stands alone in an override, its keys below it: {{ {name}: {{ ... }} }}");
            return Err(RecipeError::conflict(path, problem));
        }
        if let Some(key) = changes.keys().find(|key| !known(key)) {
            let fields = usual.method.fields.iter().map(|field| field.name);
            let roundings = methods.iter().filter(|method| method.kind.rounds()).map(|method| method.id);
            return Err(unknown_key(path, key, fields.chain(roundings)).into());
        }
        return overridden(path, usual, changes);
    };
    let path = format!("{path}.{}", method.id);
    let section = mapping(&path, changes.remove(method.id).unwrap_or_default())?;
    if method.id == usual.method.id {
        return overridden(&path, usual, section);
    }
    if !method.kind.rounds() {
        return Err(RecipeError::conflict(
            path,
            "a transform concerns whole blocks; write it among the modifiers",
        ));
    }
    check_changes(&path, method, &section)?;
    let known = |key: &str| method.fields.iter().any(|f| f.name == key);
    let taken = ["scheme", "input_shards"].into_iter().filter(|key| known(key));
    let mut merged: Map<String, Value> =
        taken.filter_map(|key| Some((key.to_owned(), usual.written.get(key)?.clone()))).collect();
    merged.extend(section);
    let Modifier { transform, learner, rounding, .. } =
        (method.build)(&Settings::new(&path, merged.into(), method.fields)?)?;
    match (transform, learner, rounding) {
        (None, None, Some(rounding)) => Ok(rounding),
        _ => Err(RecipeError::conflict(
            path,
            format!(
                "{} rewrites whole blocks before it rounds; make it the modifier and the others exceptions",
                method.id
            ),
        )),
    }
}

/// What no exception can change.
fn check_changes(path: &str, method: &Method, changes: &Map<String, Value>) -> Result<(), RecipeError> {
    if let Some(field) = method.fields.iter().find(|f| f.run_wide && changes.contains_key(f.name)) {
        let problem =
            format!("{} is a setting of the whole run; write it in the modifier itself", field.name);
        return Err(RecipeError::conflict(path, problem));
    }
    if changes.get("scheme").and_then(Value::as_str).is_some_and(|s| s.to_ascii_uppercase().contains("KV")) {
        return Err(RecipeError::conflict(
            path,
            "the KV cache belongs to no linear and has one scheme for the model; write the KV part in the modifier's scheme",
        ));
    }
    Ok(())
}

/// The modifier with some keys replaced.
fn overridden(
    path: &str,
    Usual { method, written }: &Usual<'_>,
    changes: Map<String, Value>,
) -> Result<Arc<dyn Rounding>, RecipeError> {
    Settings::new(path, changes.clone().into(), method.fields)?;
    check_changes(path, method, &changes)?;
    let mut merged = mapping(path, (*written).clone())?;
    if changes.contains_key("symmetric") || changes.contains_key("convention") {
        merged.remove("symmetric");
        merged.remove("convention");
    }
    merged.extend(changes);
    let settings = Settings::new(path, Value::Object(merged), method.fields)?;
    let rounding = (method.build)(&settings)?.rounding;
    rounding.ok_or_else(|| RecipeError::conflict(path, "only roundings have exceptions"))
}
