//! Where in the text of a recipe an error stands.

use crate::error::RecipeError;
use quant_methods::SettingsError;
use saphyr::{LoadableYamlNode, MarkedYaml, YamlData};

/// The line, from 1, of the section or key that an error speaks of; none if the error names none, or the text does not hold it.
pub(super) fn line_of(text: &str, error: &RecipeError) -> Option<usize> {
    let RecipeError::Settings(error) = error else { return None };
    let (path, key) = match error {
        SettingsError::UnknownKey { path, key, .. } => (path, Some(key.as_str())),
        SettingsError::MissingKey { path, .. }
        | SettingsError::Value { path, .. }
        | SettingsError::Conflict { path, .. }
        | SettingsError::Unsupported { path, .. } => (path, None),
        _ => return None,
    };
    let mut documents = MarkedYaml::load_from_str(text).ok()?;
    let mut node = documents.drain(..).next()?;
    let mut line = None;
    for step in steps(path).chain(key.map(str::to_owned)) {
        // What is not there is missing from the last place that is.
        let Some((at, below)) = descend(node, &step) else { break };
        (line, node) = (Some(at), below);
    }
    line
}

/// The names and indices of a path such as `modifiers[0].gptq.scheme` or `overrides."*.down_proj"`.
fn steps(path: &str) -> impl Iterator<Item = String> {
    let mut rest = path.trim_start_matches("the recipe");
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(['.', ']']);
        let (step, after) = match rest.chars().next()? {
            '"' => rest[1..].split_once('"')?,
            '[' => rest[1..].split_once(']')?,
            _ => rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len())),
        };
        rest = after;
        Some(step.to_owned())
    })
}

/// The value below a key or index, and the line on which it is named.
fn descend<'a>(node: MarkedYaml<'a>, step: &str) -> Option<(usize, MarkedYaml<'a>)> {
    match node.data {
        YamlData::Mapping(entries) => entries
            .into_iter()
            .find(|(key, _)| key.data.as_str() == Some(step))
            .map(|(key, value)| (key.span.start.line(), value)),
        YamlData::Sequence(items) => {
            let item = items.into_iter().nth(step.parse().ok()?)?;
            Some((item.span.start.line(), item))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Recipe;

    const GOOD: &str = "version: 1\nmodifiers:\n  - smoothquant: { alpha: 0.5 }\n  - gptq:\n      scheme: W8A8\n      \
                        damping: 0.01\noverrides:\n  \"*.down_proj\": { scheme: W8A16 }\nexport:\n  format: vllm-ascend\n";

    #[test]
    fn errors_name_their_line() {
        Recipe::parse(GOOD).unwrap();
        for (from, to, line, words) in [
            ("version: 1", "version: 2", 1, "version"),
            ("alpha", "alfa", 3, "did you mean \"alpha\"?"),
            ("alpha: 0.5", "alpha: 7", 3, "a number from"),
            ("  - gptq:", "  - gptk:", 4, "did you mean \"gptq\"?"),
            ("damping: 0.01", "damping: much", 6, "modifiers[1].gptq.damping"),
            ("damping: 0.01", "actorder: statik", 6, "did you mean \"static\"?"),
            ("scheme: W8A16", "scheme: 8", 8, "overrides.\"*.down_proj\".scheme"),
            ("format: vllm-ascend", "format: vllm-ascent", 10, "did you mean \"vllm-ascend\"?"),
            ("export:", "exports:", 9, "did you mean \"export\"?"),
            ("      scheme: W8A8\n", "", 4, "scheme"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            let message = Recipe::parse(&text).unwrap_err().to_string();
            assert!(message.starts_with(&format!("line {line}: ")), "{to}: {message}");
            assert!(message.contains(words), "{to}: {message}");
        }
    }

    #[test]
    fn a_recipe_that_is_no_yaml_has_the_place_of_the_parser() {
        let message = Recipe::parse("version: 1\nmodifiers: [").unwrap_err().to_string();
        assert!(message.contains("line"), "{message}");
    }
}
