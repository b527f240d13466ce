//! A rounding method and a model family that `ptq` does not know, made known to it.
//!
//! Whatever reads a recipe or a folder takes a [`Registry`]; this crate adds a line to each of two of its lists:
//!
//! - [`diffuse`]: a method, with the keys of its section in a recipe;
//! - [`heron`]: a family, with the names of its tensors.
//!
//! That is all: recipes name the method, `config.json` names the family, and plans, runs, exports, `verify`, `eval`, the
//! schema and `list` follow. The binary of this crate is the `ptq` program with both; `tests/whole_way.rs` goes from a
//! checkpoint to measured folders by the library.
//!
//! ```
//! use ptq::pipeline::Recipe;
//!
//! let recipe = "version: 1\nmodifiers: [diffuse: { scheme: W4A16g32, strength: 0.75 }]\n";
//! let recipe = Recipe::parse_with(recipe, &outside::registry()?)?;
//! assert_eq!(recipe.rounding().method().id, "diffuse");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod diffuse;
pub mod heron;

use ptq::graph::Taken;
use ptq::pipeline::{Preset, Registry};

/// A recipe that has a name.
pub static PRESET: Preset = Preset {
    name: "w4a16g32-diffuse",
    text: "# 4-bit weights in groups of 32, errors handed along the row; for vLLM and transformers. No data.\n\
           version: 1\n\
           modifiers:\n  \
             - diffuse: { scheme: W4A16g32 }\n\
           export: { format: compressed-tensors }\n",
};

/// Everything that `ptq` knows, and what this crate adds.
///
/// # Errors
/// [`Taken`] once `ptq` has something of the same name.
pub fn registry() -> Result<Registry, Taken> {
    Registry::default().with_method(&diffuse::METHOD)?.with_family(&heron::FAMILY)?.with_preset(&PRESET)
}
