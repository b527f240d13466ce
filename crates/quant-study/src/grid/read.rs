//! Grids as they are written.

use super::{Grid, GridModel, GridRecipe, GridServer, NAME, Published, RecipeText};
use crate::StudyError;
use crate::files::slug;
use quant_core::meant;
use quant_kernels::Compute;
use quant_model::Execution;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

const TOP: [&str; 14] = [
    "version",
    "name",
    "note",
    "models",
    "recipes",
    "execution",
    "tasks",
    "seeds",
    "limit",
    "max_new_tokens",
    "data",
    "compute",
    "published",
    "blame",
];
const MODEL: [&str; 9] =
    ["name", "path", "calibration", "num_samples", "max_seq_len", "seed", "top_k", "config", "servers"];
const SERVER: [&str; 5] = ["name", "url", "model", "bits", "key_file"];
const RECIPE: [&str; 2] = ["name", "recipe"];

/// Reads a grid; `origin` names it in errors.
pub(super) struct Reader<'a> {
    pub(super) origin: &'a str,
}

type Fields = Map<String, Value>;

impl Reader<'_> {
    fn wrong(&self, key: &str, reason: impl Into<String>) -> StudyError {
        let place = if key.is_empty() { self.origin.to_owned() } else { format!("{}, {key}", self.origin) };
        StudyError::Grid { place, reason: reason.into() }
    }

    fn expected(&self, key: &str, what: &str, found: Option<&Value>) -> StudyError {
        let found = found.map_or_else(|| "it is missing".to_owned(), |value| format!("found {value}"));
        self.wrong(key, format!("expected {what}; {found}"))
    }

    fn known(&self, key: &str, fields: &Fields, known: &[&str]) -> Result<(), StudyError> {
        let Some(strange) = fields.keys().find(|name| !known.contains(&name.as_str())) else { return Ok(()) };
        let meant = meant(strange, known);
        Err(self.wrong(key, format!("unknown key {strange:?}{meant}; known keys: {}", known.join(", "))))
    }

    fn list<'v>(&self, fields: &'v Fields, key: &str, needed: bool) -> Result<&'v [Value], StudyError> {
        match fields.get(key) {
            None if !needed => Ok(&[]),
            Some(Value::Array(list)) if !needed || !list.is_empty() => Ok(list),
            found => Err(self.expected(key, "a list", found)),
        }
    }

    fn count(&self, fields: &Fields, key: &str) -> Result<Option<usize>, StudyError> {
        let Some(value) = fields.get(key) else { return Ok(None) };
        let count = value.as_u64().filter(|&n| n > 0).and_then(|n| usize::try_from(n).ok());
        count.map(Some).ok_or_else(|| self.expected(key, "a whole number from 1 on", Some(value)))
    }

    fn text(&self, fields: &Fields, key: &str) -> Result<Option<String>, StudyError> {
        match fields.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            found => Err(self.expected(key, "a text", found)),
        }
    }

    pub(super) fn grid(&self, text: &str) -> Result<Grid, StudyError> {
        let yaml: serde_yaml_ng::Value =
            serde_yaml_ng::from_str(text).map_err(|e| self.wrong("", format!("not YAML: {e}")))?;
        let value =
            serde_json::to_value(yaml).map_err(|e| self.wrong("", format!("keys must be texts: {e}")))?;
        let Value::Object(top) = value else {
            return Err(
                self.wrong("", "a mapping with the keys version, name, models, recipes, tasks is expected")
            );
        };
        self.known("", &top, &TOP)?;
        if top.get("version").and_then(Value::as_u64) != Some(1) {
            return Err(self.expected("version", "1", top.get("version")));
        }
        let texts = |key: &str| -> Result<Vec<String>, StudyError> {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let list = self.list(&top, key, false)?;
            list.iter()
                .map(|v| text(v).ok_or_else(|| self.expected(key, "a list of texts", Some(v))))
                .collect()
        };
        let models =
            self.list(&top, "models", true)?.iter().map(|m| self.model(m)).collect::<Result<Vec<_>, _>>()?;
        let recipes = self
            .list(&top, "recipes", false)?
            .iter()
            .map(|r| self.recipe(r))
            .collect::<Result<Vec<_>, _>>()?;
        let recipe_names = || recipes.iter().map(|r| &r.name);
        let mut named = vec![
            ("models", models.iter().map(|m| &m.name).collect::<Vec<_>>()),
            ("recipes", recipe_names().collect()),
        ];
        // Rows of a model stand side by side.
        for model in &models {
            named.push(("servers", recipe_names().chain(model.servers.iter().map(|s| &s.name)).collect()));
        }
        for (key, names) in named {
            for (i, name) in names.iter().enumerate() {
                // What is made of each lies in a folder of its name.
                let Some(before) = names[..i].iter().find(|before| slug(before) == slug(name)) else {
                    continue;
                };
                let told = if before == name {
                    format!("{name:?} stands there twice")
                } else {
                    format!("{before:?} and {name:?} would have one folder, {}", slug(name))
                };
                return Err(self.wrong(key, format!("{told}; give each a `name` of its own")));
            }
        }
        if let Some(name) = recipe_names().find(|name| slug(name) == "float") {
            return Err(self.wrong(
                "recipes",
                format!("{name:?} is the row of the model as it is; give another `name`"),
            ));
        }
        let mut execution = Vec::new();
        for word in texts("execution")? {
            execution.push(match word.as_str() {
                "sim" => Execution::Simulated,
                "int8" => Execution::Integer,
                _ => return Err(self.wrong("execution", format!("expected sim or int8; found {word:?}"))),
            });
        }
        if execution.is_empty() {
            execution.push(Execution::Simulated);
        }
        let tasks = texts("tasks")?;
        if tasks.is_empty() {
            return Err(self.expected("tasks", "a list of names or files", top.get("tasks")));
        }
        let seeds = match top.get("seeds") {
            None => None,
            Some(_) => {
                let list = self.list(&top, "seeds", true)?;
                let seed = |v: &Value| {
                    v.as_u64().ok_or_else(|| self.expected("seeds", "numbers from 0 on", Some(v)))
                };
                Some(list.iter().map(seed).collect::<Result<Vec<_>, _>>()?)
            }
        };
        let compute = match self.text(&top, "compute")?.as_deref() {
            None | Some("f32") => Compute::F32,
            Some("bf16") => Compute::Bf16,
            Some(_) => return Err(self.expected("compute", "f32 or bf16", top.get("compute"))),
        };
        Ok(Grid {
            name: self.text(&top, "name")?.ok_or_else(|| self.expected("name", "a text", None))?,
            note: self.text(&top, "note")?.unwrap_or_default(),
            models,
            recipes,
            execution,
            tasks,
            seeds,
            limit: self.count(&top, "limit")?,
            max_new_tokens: self.count(&top, "max_new_tokens")?,
            data: texts("data")?.into_iter().map(PathBuf::from).collect(),
            compute,
            published: self.published(&top)?,
            blame: self.text(&top, "blame")?,
            text: text.to_owned(),
        })
    }

    fn model(&self, value: &Value) -> Result<GridModel, StudyError> {
        let named = |path: &str| Path::new(path).file_name().map(|n| n.to_string_lossy().into_owned());
        let plain = |path: String| GridModel {
            name: if path == NAME {
                "tiny-reasoner".to_owned()
            } else {
                named(&path).unwrap_or_else(|| path.clone())
            },
            path: path.into(),
            calibration: None,
            num_samples: None,
            max_seq_len: None,
            seed: 0,
            top_k: None,
            config: None,
            servers: Vec::new(),
        };
        match value {
            Value::String(path) => Ok(plain(path.clone())),
            Value::Object(fields) => {
                self.known("models", fields, &MODEL)?;
                let path = self
                    .text(fields, "path")?
                    .ok_or_else(|| self.expected("models", "a `path` in each", None))?;
                let model = plain(path);
                Ok(GridModel {
                    name: self.text(fields, "name")?.unwrap_or(model.name),
                    calibration: self.text(fields, "calibration")?,
                    num_samples: self.count(fields, "num_samples")?,
                    max_seq_len: self.count(fields, "max_seq_len")?,
                    top_k: self.count(fields, "top_k")?,
                    config: fields.get("config").cloned(),
                    servers: self
                        .list(fields, "servers", false)?
                        .iter()
                        .map(|server| self.server(server))
                        .collect::<Result<_, _>>()?,
                    seed: match fields.get("seed") {
                        None => 0,
                        found => found
                            .and_then(Value::as_u64)
                            .ok_or_else(|| self.expected("models", "a `seed` from 0 on", found))?,
                    },
                    path: model.path,
                })
            }
            other => Err(self.expected("models", "a path, or a mapping with `path`", Some(other))),
        }
    }

    fn server(&self, value: &Value) -> Result<GridServer, StudyError> {
        let Value::Object(fields) = value else {
            return Err(self.expected("servers", "a mapping with name and url", Some(value)));
        };
        self.known("servers", fields, &SERVER)?;
        let needed = |key: &str| {
            let found = self.text(fields, key)?.filter(|text| !text.is_empty());
            found.ok_or_else(|| self.expected("servers", &format!("a `{key}` in each"), fields.get(key)))
        };
        Ok(GridServer {
            name: needed("name")?,
            url: needed("url")?,
            model: self.text(fields, "model")?,
            bits: self.text(fields, "bits")?,
            key_file: self.text(fields, "key_file")?.map(PathBuf::from),
        })
    }

    fn recipe(&self, value: &Value) -> Result<GridRecipe, StudyError> {
        match value {
            Value::String(name) => {
                let stem = Path::new(name).file_stem().map(|n| n.to_string_lossy().into_owned());
                let short = if name.ends_with(".yaml") || name.contains('/') { stem } else { None };
                Ok(GridRecipe {
                    name: short.unwrap_or_else(|| name.clone()),
                    text: RecipeText::Named(name.clone()),
                })
            }
            Value::Object(fields) => {
                self.known("recipes", fields, &RECIPE)?;
                let name = self
                    .text(fields, "name")?
                    .ok_or_else(|| self.expected("recipes", "a `name` in each", None))?;
                let text = match fields.get("recipe") {
                    Some(Value::String(named)) => RecipeText::Named(named.clone()),
                    Some(written @ Value::Object(_)) => {
                        let yaml = serde_yaml_ng::to_string(written);
                        RecipeText::Written(yaml.map_err(|e| self.wrong("recipes", e.to_string()))?)
                    }
                    found => {
                        return Err(self.expected("recipes", "a `recipe`: its name, file or text", found));
                    }
                };
                Ok(GridRecipe { name, text })
            }
            other => Err(self.expected(
                "recipes",
                "a name, a file, or a mapping with name and recipe",
                Some(other),
            )),
        }
    }

    /// `published: { MODEL: { ROW: { COLUMN: figure } } }`, or `{ LABEL: { COLUMN: figure } }` for a row of which there are several.
    fn published(&self, top: &Fields) -> Result<Vec<Published>, StudyError> {
        let mapping = |value: &Value| match value {
            Value::Object(fields) => Ok(fields.clone()),
            other => {
                Err(self.expected("published", "mappings of models, rows, columns and figures", Some(other)))
            }
        };
        let mut all = Vec::new();
        for (model, rows) in top.get("published").map(mapping).transpose()?.unwrap_or_default() {
            for (row, figures) in mapping(&rows)? {
                let number = |(column, value): (String, Value)| {
                    let figure =
                        value.as_f64().ok_or_else(|| self.expected("published", "a number", Some(&value)))?;
                    Ok((column, figure))
                };
                let figures = mapping(&figures)?;
                let several = figures.values().all(Value::is_object) && !figures.is_empty();
                let sets: Vec<(String, Fields)> = if several {
                    figures.iter().map(|(label, set)| Ok((label.clone(), mapping(set)?))).collect::<Result<
                        _,
                        StudyError,
                    >>(
                    )?
                } else {
                    vec![(String::new(), figures)]
                };
                for (label, set) in sets {
                    let figures = set.into_iter().map(number).collect::<Result<_, StudyError>>()?;
                    all.push(Published { model: model.clone(), row: row.clone(), label, figures });
                }
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "version: 1\nname: mine\nmodels:\n  - { path: a/b, calibration: c.jsonl }\nrecipes: [w8a8]\ntasks: [gsm8k]\n";

    #[test]
    fn what_is_wrong_with_a_grid_is_named() {
        let grid = Grid::parse(GOOD, "g").unwrap();
        assert_eq!((grid.models[0].name.as_str(), grid.execution.len()), ("b", 1));
        for (from, to, words) in [
            ("version: 1", "version: 3", "g, version: expected 1; found 3"),
            ("calibration: c.jsonl", "servers: [{ name: a }]", "a `url` in each"),
            ("calibration: c.jsonl", "servers: [a]", "a mapping with name and url"),
            ("calibration: c.jsonl", "servers: [{ nme: a }]", "did you mean \"name\"?"),
            (
                "calibration: c.jsonl",
                "servers: [{ name: w8a8, url: http://h }]",
                "servers: \"w8a8\" stands there twice",
            ),
            ("recipes", "recipe", "did you mean \"recipes\"?"),
            (
                "calibration",
                "calibraton",
                "g, models: unknown key \"calibraton\" (did you mean \"calibration\"?)",
            ),
            ("path: a/b", "name: a", "a `path` in each"),
            ("tasks: [gsm8k]", "tasks: []", "g, tasks: expected a list of names"),
            ("tasks: [gsm8k]", "tasks: [3]", "a list of texts; found 3"),
            ("[w8a8]", "[w8a8, w8a8]", "\"w8a8\" stands there twice"),
            (
                "[w8a8]",
                "[{ name: a/b, recipe: w8a8 }, { name: a_b, recipe: w8a8 }]",
                "recipes: \"a/b\" and \"a_b\" would have one folder, a_b; give each a `name` of its own",
            ),
            ("[w8a8]", "[{ name: float, recipe: w8a8 }]", "\"float\" is the row of the model as it is"),
            ("[w8a8]", "[{ name: x }]", "a `recipe`"),
            ("[w8a8]", "[w8a8]\nexecution: [int4]", "expected sim or int8; found \"int4\""),
            ("[w8a8]", "[w8a8]\nseeds: []", "g, seeds: expected a list"),
            ("[w8a8]", "[w8a8]\nlimit: 0", "g, limit: expected a whole number"),
            ("[w8a8]", "[w8a8]\ncompute: f64", "f32 or bf16"),
            ("[w8a8]", "[w8a8]\npublished: { a: { b: { c: x } } }", "expected a number"),
            ("name: mine\n", "", "g, name: expected a text; it is missing"),
        ] {
            let message = Grid::parse(&GOOD.replacen(from, to, 1), "g").unwrap_err().to_string();
            assert!(message.contains(words), "{to}: {message}");
        }
        assert!(Grid::parse("- 1", "g").unwrap_err().to_string().contains("a mapping"));
    }
}
