//! Recipes that say nothing, too much, or what a model or a format cannot do: each has its exit code and a message that names the
//! place.

use crate::common::{Ran, SMALL, ptq, quantize, refused, text, tiny_reasoner};
use tempfile::tempdir;

/// A refusal of a recipe for the embedded model.
#[track_caller]
fn refused_recipe(recipe: &str, code: i32, words: &[&str]) -> Ran {
    let folder = tempdir().unwrap();
    let file = folder.path().join("recipe.yaml");
    std::fs::write(&file, recipe).unwrap();
    refused(&tiny_reasoner(), text(&file), SMALL, code, words)
}

fn gptq(keys: &str, rest: &str) -> String {
    format!("version: 1\nmodifiers:\n  - gptq: {{ scheme: W8A8, {keys} }}\n{rest}")
}

#[test]
fn unknown_recipe_keys() {
    refused_recipe(
        &gptq("dampning: 0.1", ""),
        2,
        &["modifiers[0].gptq", "\"dampning\"", "did you mean \"damping\""],
    );
    refused_recipe(&gptq("", "kvcache: {}\n"), 2, &["\"kvcache\"", "did you mean \"kv_cache\""]);
    refused_recipe(
        &gptq("", "activations: { dynamics: true }\n"),
        2,
        &["activations", "did you mean \"dynamic\""],
    );
    refused_recipe(
        &gptq("", "export: { formats: dequantized }\n"),
        2,
        &["export", "did you mean \"format\""],
    );
    refused_recipe(
        "version: 1\nmodifiers: [gptk: { scheme: W8A8 }]\n",
        2,
        &["\"gptk\"", "did you mean \"gptq\""],
    );
    refused(&tiny_reasoner(), "w8a8kv8-ascent", SMALL, 2, &["did you mean \"w8a8kv8-ascend\""]);
    refused(&tiny_reasoner(), "./no-such-recipe.yaml", SMALL, 2, &["no-such-recipe.yaml"]);
}

#[test]
fn recipes_that_contradict_themselves() {
    refused_recipe(&gptq("symmetric: true, convention: q-asym", ""), 2, &["modifiers[0].gptq", "q-asym"]);
    refused_recipe(
        "version: 1\nmodifiers:\n  - rtn: { scheme: W8A8 }\n  - gptq: { scheme: W8A8 }\n",
        2,
        &["modifiers", "two rounding modifiers"],
    );
    refused_recipe(
        "version: 1\nmodifiers:\n  - rtn: { scheme: W8A8 }\n  - smoothquant: {}\n",
        2,
        &["modifiers", "before the rounding"],
    );
    refused_recipe("version: 1\nmodifiers: [smoothquant: {}]\n", 2, &["no rounding modifier"]);
    let rest = "activations: { dynamic: false, clip_ratio: 0.9 }\n";
    refused_recipe(&gptq("", rest), 2, &["activations", "clip_ratio"]);
    let rest = "kv_cache: { pre_bias: true, granularity: channel_static }\n";
    refused_recipe(&gptq("", rest), 2, &["kv_cache.pre_bias", "before_rope: true"]);
    let rest = "overrides: { \"*.down_proj\": { true_sequential: false } }\n";
    refused_recipe(&gptq("", rest), 2, &["overrides", "*.down_proj", "true_sequential"]);
    let rest = "overrides: { \"*.down_proj\": { scheme: W8A8KV8 } }\n";
    refused_recipe(&gptq("", rest), 2, &["overrides", "*.down_proj", "KV"]);
    let rest = "overrides: { \"*.q_proj\": { rtn: { damping: 0.1 } } }\n";
    refused_recipe(&gptq("", rest), 2, &["overrides", "*.q_proj", "rtn", "unknown key \"damping\""]);
    let rest = "overrides: { \"*.q_proj\": { smoothquant: {} } }\n";
    refused_recipe(&gptq("", rest), 2, &["overrides", "*.q_proj", "whole blocks"]);
    let rest = "overrides: { \"*.q_proj\": { awq: {} } }\n";
    refused_recipe(&gptq("", rest), 2, &["overrides", "*.q_proj", "make it the modifier"]);
    let rest = "overrides: { \"*.q_proj\": { gptaq: { true_sequential: false } } }\n";
    refused_recipe(&gptq("", rest), 2, &["overrides", "gptaq", "true_sequential"]);
    refused_recipe(&gptq("sweeps: 2, variant: official", ""), 2, &["modifiers[0].gptq", "published code"]);
    refused_recipe(&gptq("sweeps: 2, actorder: dynamic", ""), 2, &["modifiers[0].gptq", "consecutive"]);
    refused_recipe(
        &gptq("actorder: static, static_groups: false", ""),
        2,
        &["modifiers[0].gptq", "drop one"],
    );
    refused_recipe(&gptq("", "version: 1\n"), 2, &["YAML", "version"]);
    refused_recipe("version: 2\nmodifiers: [rtn: { scheme: W8A8 }]\n", 2, &["version", "expected 1"]);
    refused_recipe("modifiers: [rtn: { scheme: W8A8 }]\n", 2, &["version"]);
    refused_recipe("version: 1\nmodifiers: [rtn: {}]\n", 2, &["modifiers[0].rtn", "scheme"]);
    refused_recipe(&gptq("damping: 2.0", ""), 2, &["modifiers[0].gptq.damping", "2.0"]);
    refused_recipe("version: 1\nmodifiers: [rtn: { scheme: W9A8 }]\n", 2, &["modifiers[0].rtn.scheme"]);
}

/// Methods that look at a whole weight cannot round a table, which comes some rows at a time.
#[test]
fn heads_that_a_method_cannot_round() {
    for (modifier, head, method) in [
        ("rtn: { scheme: W4A16 }", "{ billm: {} }", "billm"),
        ("rtn: { scheme: W4A16 }", "{ slim-llm: {} }", "slim-llm"),
        ("slim-llm: { scheme: W4A16g32 }", "{}", "slim-llm"),
    ] {
        let recipe = format!("version: 1\nmodifiers: [{modifier}]\noverrides: {{ lm_head: {head} }}\n");
        let what = format!("{method} looks at a whole weight");
        refused_recipe(&recipe, 2, &["overrides.\"lm_head\"", &what, "write", "{ rtn: {", "{ gptq: {"]);
    }
}

/// What is advised for a table is accepted there.
#[test]
fn advice_for_tables_can_be_followed() {
    for table in ["lm_head: { qronos: {} }", "model.embed_tokens: { scheme: W8A16 }"] {
        let recipe = |table: &str| {
            format!("version: 1\nmodifiers: [gptq: {{ scheme: W4A16 }}]\noverrides: {{ {table} }}\n")
        };
        let said = refused_recipe(&recipe(table), 2, &["; write {"]).err;
        let (_, advice) = said.trim_end().rsplit_once("; write ").unwrap();
        let name = table.split_once(':').unwrap().0;
        for advised in advice.split(" or ") {
            let folder = tempdir().unwrap();
            let file = folder.path().join("recipe.yaml");
            std::fs::write(&file, recipe(&format!("{name}: {advised}"))).unwrap();
            let model = tiny_reasoner();
            ptq(&["plan", "--model", text(&model), "--recipe", text(&file)]).expect(0, &[]);
        }
    }
}

#[test]
fn methods_in_overrides() {
    let over = |keys: &str| gptq("", &format!("overrides: {{ \"*.q_proj\": {{ {keys} }} }}\n"));
    refused_recipe(
        &over("gpqt: {}"),
        2,
        &["*.q_proj", "\"gpqt\"", "did you mean \"gptq\"", "known keys: scheme"],
    );
    refused_recipe(&over("dampning: 0.1"), 2, &["*.q_proj", "did you mean \"damping\""]);
    for keys in ["rtn: {}, gptaq: {}", "scheme: W8A16, rtn: {}"] {
        refused_recipe(
            &over(keys),
            2,
            &["*.q_proj", "a method stands alone in an override", "{ rtn: { ... } }"],
        );
    }
    // Streams by the words of the recipe.
    let keys = "\"*.q_proj\": { qronos: { float_stream: block } }, \"*.1.*.o_proj\": { gptaq: {} }";
    let said = refused_recipe(
        &gptq("", &format!("overrides: {{ {keys} }}\n")),
        2,
        &[
            "(qronos) asks for float_stream: block",
            "(gptaq) for float_stream: model",
            "write float_stream: model",
        ],
    );
    assert!(!said.err.contains("Block") && !said.err.contains("Model"), "{}", said.err);
}

#[test]
fn globs_that_match_nothing() {
    let rest = "overrides: { \"*.dwn_proj\": { scheme: W8A16 } }\n";
    refused_recipe(&gptq("", rest), 2, &["*.dwn_proj", "matches no linear", "model.layers.0."]);
    // For `ignore` it is a warning: recipes are shared between models.
    let folder = tempdir().unwrap();
    let recipe = folder.path().join("recipe.yaml");
    std::fs::write(
        &recipe,
        "version: 1\nmodifiers: [rtn: { scheme: W8A8 }]\nignore: [lm_head, \"*.router\"]\n",
    )
    .unwrap();
    quantize(&tiny_reasoner(), text(&recipe), &folder.path().join("out"), &[])
        .expect(0, &["warning", "*.router", "matches nothing"]);
}

#[test]
fn schemes_that_the_target_cannot_hold() {
    let recipe = |scheme: &str, format: &str| {
        format!("version: 1\nmodifiers: [rtn: {{ scheme: {scheme} }}]\nexport: {{ format: {format} }}\n")
    };
    refused_recipe(
        &recipe("W4A16g100", "compressed-tensors"),
        3,
        &["compressed-tensors", "groups of 100", "model.layers.0.", "192 inputs", "dequantized"],
    );
    refused(
        &tiny_reasoner(),
        "w4a16g128",
        SMALL,
        3,
        &["groups of 128", "model.layers.0.", "192 inputs", "64"],
    );
    refused_recipe(
        &recipe("W4A16", "vllm-ascend"),
        3,
        &["vllm-ascend", "4-bit weights", "model.layers.0.", "W8A8", "dequantized"],
    );
    refused_recipe(&recipe("W8A8g32", "vllm-ascend"), 3, &["vllm-ascend", "groups of 32"]);
    refused_recipe(&recipe("W8A8KV8", "compressed-tensors"), 3, &["KV8", "vllm-ascend"]);
}
