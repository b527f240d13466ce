//! What a program knows by name.

use crate::presets::Preset;
use quant_checkpoint::Formats;
use quant_checkpoint::formats::Format;
use quant_eval::{Scorer, Scorers};
use quant_graph::{Catalogue, Taken};
use quant_methods::{Method, Methods};
use quant_model::{Families, Family};

/// The recipes that have a name: ours, and those a program adds.
pub type Presets = Catalogue<Preset>;

/// The methods, families, formats, presets and scorers of a program. By default those of the crates here; a program adds its own
/// and hands the value to whatever reads a recipe or a folder:
///
/// ```
/// use quant_pipeline::{Preset, Recipe, Registry};
///
/// static PRESET: Preset = Preset {
///     name: "house-w4",
///     text: "# Four bits for the house.\nversion: 1\nmodifiers: [rtn: { scheme: W4A16g64 }]\n",
/// };
/// let registry = Registry::default().with_preset(&PRESET)?;
/// let recipe = Recipe::from_preset_with("house-w4", &registry)?;
/// assert_eq!(recipe.rounding().method().id, "rtn");
/// // A name is given once.
/// assert!(registry.with_preset(&PRESET).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A [`Recipe`](crate::Recipe) keeps the registry it was read with, and a [`QuantizeJob`](crate::QuantizeJob) goes by that
/// of its recipe. `examples/outside` of the repository is a program with a method and a family of its own. A clone shares
/// the lists.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    methods: Methods,
    families: Families,
    formats: Formats,
    presets: Presets,
    scorers: Scorers,
}

impl Registry {
    /// One that knows nothing, for a program that wants none of ours.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            methods: Methods::none(),
            families: Families::none(),
            formats: Formats::none(),
            presets: Presets::none(),
            scorers: Scorers::none(),
        }
    }

    /// With one more method.
    ///
    /// # Errors
    /// [`Taken`] for an id that another method has.
    pub fn with_method(self, method: &'static Method) -> Result<Self, Taken> {
        Ok(Self { methods: self.methods.with(method)?, ..self })
    }
    /// With one more family.
    ///
    /// # Errors
    /// [`Taken`] for an id, an architecture or a `model_type` that another family has.
    pub fn with_family(self, family: &'static Family) -> Result<Self, Taken> {
        Ok(Self { families: self.families.with(family)?, ..self })
    }
    /// With one more format.
    ///
    /// # Errors
    /// [`Taken`] for an id that another format has.
    pub fn with_format(self, format: &'static dyn Format) -> Result<Self, Taken> {
        Ok(Self { formats: self.formats.with(format)?, ..self })
    }
    /// With one more preset.
    ///
    /// # Errors
    /// [`Taken`] for a name that another preset has.
    pub fn with_preset(self, preset: &'static Preset) -> Result<Self, Taken> {
        Ok(Self { presets: self.presets.with(preset)?, ..self })
    }
    /// With one more scorer.
    ///
    /// # Errors
    /// [`Taken`] for an id that another scorer has.
    pub fn with_scorer(self, scorer: &'static Scorer) -> Result<Self, Taken> {
        Ok(Self { scorers: self.scorers.with(scorer)?, ..self })
    }

    /// What the modifiers of a recipe may name.
    #[must_use]
    pub fn methods(&self) -> &Methods {
        &self.methods
    }
    /// What the `config.json` of a model may name.
    #[must_use]
    pub fn families(&self) -> &Families {
        &self.families
    }
    /// What is read and written.
    #[must_use]
    pub fn formats(&self) -> &Formats {
        &self.formats
    }
    /// What grades the answers of tasks.
    #[must_use]
    pub fn scorers(&self) -> &Scorers {
        &self.scorers
    }
    /// Recipes by name.
    #[must_use]
    pub fn presets(&self) -> &Presets {
        &self.presets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Recipe, schema, schema_with};
    use quant_checkpoint::formats::Dequantized;
    use quant_methods::{Field, MethodKind, rounding, rtn, settings::FieldKind};

    /// A method of another crate: ours under its own name, with one key more.
    static METHOD: Method = Method {
        id: "rtne",
        summary: "a method of another crate",
        source: "this test",
        kind: MethodKind::Rounding,
        build: rtn::METHOD.build,
        fields: &[
            rounding::SCHEME,
            rounding::SYMMETRIC,
            rounding::CONVENTION,
            rounding::MSE_CLIP,
            rounding::VARIANT,
            Field {
                name: "swing",
                kind: FieldKind::Number(0.0, 1.0),
                default: "0.5",
                help: "a key of its own",
                run_wide: false,
            },
        ],
        tier: 3,
    };
    static PRESET: Preset = Preset { name: "outside-w4", text: RECIPE };
    const RECIPE: &str =
        "# Of another crate.\nversion: 1\nmodifiers:\n  - rtne: { scheme: W4A16, swing: 0.25 }\n";

    fn extended() -> Registry {
        Registry::default().with_method(&METHOD).unwrap().with_preset(&PRESET).unwrap()
    }

    #[test]
    fn a_recipe_names_what_its_registry_has() {
        let ours = Recipe::parse(RECIPE).unwrap_err().to_string();
        assert!(
            ours.starts_with("line 4: unknown key \"rtne\"") && ours.contains("did you mean \"rtn\"?"),
            "{ours}"
        );
        let registry = extended();
        let recipe = Recipe::parse_with(RECIPE, &registry).unwrap();
        let (id, settings) = &recipe.modifiers()[0];
        assert_eq!((*id, settings["swing"].as_f64()), ("rtne", Some(0.25)));
        assert!(recipe.registry().methods().get("rtne").is_some());
        let misspelt =
            Recipe::parse_with(&RECIPE.replace("rtne", "rtnee"), &registry).unwrap_err().to_string();
        assert!(
            misspelt.contains("did you mean \"rtne\"?") && misspelt.contains("smoothquant, rtne"),
            "{misspelt}"
        );
        let swing = Recipe::parse_with(&RECIPE.replace("0.25", "2"), &registry).unwrap_err().to_string();
        assert!(swing.contains("modifiers[0].rtne.swing: expected a number from 0 to 1"), "{swing}");
        let none = Recipe::parse_with("version: 1\nmodifiers: []", &registry).unwrap_err().to_string();
        assert!(none.contains("rtn or slim-llm or rtne with a scheme, or billm without one"), "{none}");
    }

    #[test]
    fn a_preset_is_read_with_the_registry_that_has_it() {
        assert_eq!(Recipe::from_preset_with("outside-w4", &extended()).unwrap().modifiers()[0].0, "rtne");
        let missing = Recipe::from_preset("outside-w4").unwrap_err().to_string();
        assert!(
            !missing.contains("outside-w4,") && missing.contains("is neither a recipe file nor a preset")
        );
        let meant = Recipe::from_preset_with("outside-w", &extended()).unwrap_err().to_string();
        assert!(meant.contains("did you mean \"outside-w4\"?"), "{meant}");
    }

    #[test]
    fn the_schema_has_the_keys_of_the_registry() {
        let of = |schema: serde_json::Value| {
            let methods = schema["properties"]["modifiers"]["items"]["oneOf"].as_array().unwrap().clone();
            let outside = methods.into_iter().find_map(|m| m["properties"].get("rtne").cloned());
            let overrides = &schema["properties"]["overrides"]["additionalProperties"]["properties"];
            (outside.map(|m| m["properties"]["swing"]["default"].clone()), overrides.get("swing").is_some())
        };
        assert_eq!(of(schema()), (None, false));
        assert_eq!(of(schema_with(&extended())), (Some(serde_json::json!(0.5)), true));
        let formats = Registry::empty().with_format(&Dequantized).unwrap();
        let export = &schema_with(&formats)["properties"]["export"]["properties"]["format"]["enum"];
        assert_eq!(*export, serde_json::json!(["dequantized"]));
    }

    #[test]
    fn a_name_is_given_once() {
        let refused = [
            extended().with_method(&METHOD).unwrap_err(),
            extended().with_method(&rtn::METHOD).unwrap_err(),
            extended().with_family(quant_model::FAMILIES[0]).unwrap_err(),
            extended().with_format(&Dequantized).unwrap_err(),
            extended().with_preset(&PRESET).unwrap_err(),
        ];
        let said: Vec<_> = refused.iter().map(|taken| (taken.kind, taken.owner)).collect();
        let expected = [
            ("method", "rtne"),
            ("method", "rtn"),
            ("family", "llama"),
            ("format", "dequantized"),
            ("preset", "outside-w4"),
        ];
        assert_eq!(said, expected);
        assert_eq!(
            refused[1].to_string(),
            "the id \"rtn\" belongs to the method \"rtn\"; give the new method another"
        );
    }
}
