//! What the keys of a recipe do to the output.

use crate::common::{Ran, SMALL, copy_of_model, files, pipe, ptq, quantize, text, tie, tiny_reasoner};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use tempfile::tempdir;

/// Quantises with the recipe of these keys.
fn run(model: &Path, keys: &str, output: &Path, more: &[&str]) -> Ran {
    let recipe = output.with_extension("yaml");
    std::fs::write(&recipe, format!("version: 1\n{keys}\n")).unwrap();
    quantize(model, text(&recipe), output, &[more, &["--json"]].concat())
}

#[test]
fn the_last_matching_override_wins() {
    let work = tempdir().unwrap();
    let schemes = |name: &str, overrides: &str| {
        let keys = format!("modifiers: [rtn: {{ scheme: W4A16 }}]\noverrides: {{ {overrides} }}");
        let report = run(&tiny_reasoner(), &keys, &work.path().join(name), &[]).expect(0, &[]).json();
        let linears = report["run"]["linears"].as_array().unwrap().clone();
        let scheme_of = move |module: &str| {
            let linear = linears.iter().find(|l| l["module"] == module).unwrap();
            linear["scheme"].as_str().unwrap().to_owned()
        };
        ["model.layers.2.mlp.down_proj", "model.layers.2.mlp.up_proj", "model.layers.2.self_attn.o_proj"]
            .map(scheme_of)
    };
    let (wide, narrow) = ("\"*.mlp.*\": { scheme: W3A16g32 }", "\"*.down_proj\": { scheme: W8A16 }");
    assert_eq!(schemes("a", &format!("{wide}, {narrow}")), ["W8A16", "W3A16g32", "W4A16"]);
    assert_eq!(schemes("b", &format!("{narrow}, {wide}")), ["W3A16g32", "W3A16g32", "W4A16"]);
    // Whole entries: what the last one does not say is the modifier's, not an earlier entry's.
    let last = "\"model.layers.2.*\": { mse_clip: true }";
    assert_eq!(schemes("c", &format!("{narrow}, {last}")), ["W4A16", "W4A16", "W4A16"]);
}

#[test]
fn a_recipe_may_come_through_a_pipe() {
    let work = tempdir().unwrap();
    let recipe = work.path().join("recipe");
    let writer = pipe(&recipe, "version: 1\nmodifiers: [rtn: { scheme: W4A16g32 }]\n");
    let plan = ptq(&["plan", "--model", text(&tiny_reasoner()), "--recipe", text(&recipe)]);
    writer.join().unwrap();
    assert!(plan.expect(0, &[]).out.contains("groups of 32"));
}

#[test]
fn every_convention_by_its_name() {
    // Groups of four, because `q-asym` and `q-awq` differ only where all weights of a group have one sign.
    let work = tempdir().unwrap();
    for method in ["rtn", "gptq"] {
        let mut weights = BTreeSet::new();
        for (convention, symmetric) in
            [("q-sym", true), ("q-asym", false), ("q-sym-gptq", true), ("q-awq", false)]
        {
            let keys = format!("modifiers: [{method}: {{ scheme: W3A16g4, convention: {convention} }}]");
            let output = work.path().join(format!("{method}-{convention}"));
            run(&tiny_reasoner(), &keys, &output, SMALL).expect(0, &[]);
            let report = std::fs::read(output.join("quantization_report.json")).unwrap();
            let report: Value = serde_json::from_slice(&report).unwrap();
            assert_eq!(report["settings"]["convention"], convention);
            weights.insert(std::fs::read(output.join("model.safetensors")).unwrap());
            // The name implies the symmetry, so the opposite contradicts it.
            let keys = keys.replace("convention", &format!("symmetric: {}, convention", !symmetric));
            run(&tiny_reasoner(), &keys, &output, &[&["--force"], SMALL].concat())
                .expect(2, &[convention, "symmetric"]);
        }
        assert_eq!(weights.len(), 4, "{method}: every convention has its own levels");
    }
}

#[test]
fn the_head_is_left_alone_unless_it_is_named() {
    let work = tempdir().unwrap();
    let tied = copy_of_model(work.path());
    tie(&tied);
    for (name, model, targets) in [("tied", tied, 0), ("own", tiny_reasoner(), 1)] {
        for (format, target) in [("compressed-tensors", "vllm"), ("vllm-ascend", "vllm-ascend")] {
            for ignore in ["", "ignore: []", "ignore: [lm_head]"] {
                let keys =
                    format!("modifiers: [rtn: {{ scheme: W8A8 }}]\nexport: {{ format: {format} }}\n{ignore}");
                let output = work.path().join(format!("{name}-{format}-{}", ignore.len()));
                let ran = run(&model, &keys, &output, &[]).expect(0, &[]);
                assert!(!ran.err.contains("matches nothing"), "{}", ran.err);
                let linears = ran.json()["run"]["linears"].as_array().unwrap().clone();
                assert_eq!(linears.len(), 42);
                assert!(linears.iter().all(|l| l["module"] != "lm_head"));
                let listed = ptq(&["inspect", text(&output), "--json"]).expect(0, &[]).json();
                let heads: Vec<_> = listed["tensors"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(|t| t["name"].as_str().unwrap().starts_with("lm_head"))
                    .collect();
                assert_eq!(heads.len(), targets, "{heads:?}");
                assert!(heads.iter().all(|t| t["dtype"] == "BF16"), "{heads:?}");
                ptq(&["verify", text(&output), "--target", target]).expect(0, &[]);
            }
        }
    }
    assert!(files(&tiny_reasoner()).contains_key(Path::new("model.safetensors")));
}

/// Everything that rounds is named, wherever it stands in the recipe.
#[test]
fn plans_and_cards_name_every_method() {
    let work = tempdir().unwrap();
    let keys = "modifiers: [smoothquant: {}, gptq: { scheme: W8A16 }]\noverrides: { \"*.up_proj\": { rtn: {} }, \
                \"*.1.*.v_proj\": { gptaq: {} }, \"*.0.*.o_proj\": { qronos: {} } }";
    let output = work.path().join("out");
    run(&tiny_reasoner(), keys, &output, SMALL).expect(0, &[]);
    let card = std::fs::read_to_string(output.join("README.md")).unwrap();
    assert!(card.contains(" + gptq, qronos, rtn, gptaq |"), "{card}");
    let (model, recipe) = (tiny_reasoner(), output.with_extension("yaml"));
    let plan = ["plan", "--model", text(&model), "--recipe", text(&recipe)];
    let said = ptq(&plan).expect(0, &[]).out;
    assert!(said.contains(", then gptq, qronos, rtn, gptaq\n"), "{said}");
    let json = ptq(&[&plan[..], &["--json"]].concat()).expect(0, &[]).json();
    let methods: Vec<&str> =
        json["methods"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    assert_eq!(methods[1..], ["gptq", "qronos", "rtn", "gptaq"], "{methods:?}");
}

/// Keys that say how to quantise what the scheme leaves alone.
#[test]
fn keys_without_use_are_a_warning() {
    let work = tempdir().unwrap();
    let warned = |name: &str, keys: &str| {
        let output = work.path().join(name);
        let ran = run(&tiny_reasoner(), keys, &output, SMALL).expect(0, &[]);
        let plan =
            ["plan", "--model", text(&tiny_reasoner()), "--recipe", text(&output.with_extension("yaml"))]
                .map(str::to_owned);
        let planned = ptq(&plan.each_ref().map(String::as_str)).expect(0, &[]).err;
        let lines =
            |text: &str| text.lines().filter(|l| l.contains("nothing, because")).map(str::to_owned).collect();
        let (ran, planned): (Vec<String>, Vec<String>) = (lines(&ran.err), lines(&planned));
        assert_eq!(ran, planned);
        ran
    };
    let cache = "modifiers: [gptq: { scheme: W4A16g32 }]\nkv_cache: { before_rope: true }";
    assert_eq!(
        warned("cache", cache),
        ["warning: kv_cache: before_rope changes nothing, because the scheme W4A16g32 has no KV part"]
    );
    let both = "modifiers: [rtn: { scheme: W8A16KV8 }]\nkv_cache: { granularity: token_head }\n\
                activations: { observer: mse, dynamic: false, in_calibration: true }";
    let said = warned("both", both);
    assert!(said.len() == 1 && said[0].contains("activations: observer, dynamic change nothing"), "{said:?}");
    let used = "modifiers: [rtn: { scheme: W8A8KV8 }]\nkv_cache: { granularity: token_head }\n\
                activations: { dynamic: false }";
    assert_eq!(warned("used", used), [""; 0]);
}

/// What a method says of a linear is in the report of the folder, also of one that stood before.
#[test]
fn figures_are_in_the_report() {
    let work = tempdir().unwrap();
    for (method, figures) in [("qronos", &["at_range_ends", "shift"][..]), ("gptaq", &["growth"])] {
        let output = work.path().join(method);
        let keys = format!("modifiers: [{method}: {{ scheme: W3A16g32 }}]");
        let ran = run(&tiny_reasoner(), &keys, &output, SMALL).expect(0, &[]).json();
        let report = std::fs::read(output.join("quantization_report.json")).unwrap();
        let report: Value = serde_json::from_slice(&report).unwrap();
        let stood =
            run(&tiny_reasoner(), &keys, &output, &[SMALL, &["--resume"]].concat()).expect(0, &[]).json();
        assert_eq!(stood["stood"], true);
        let of = |linears: &Value| -> Vec<Value> {
            linears.as_array().unwrap().iter().map(|linear| linear["figures"].clone()).collect()
        };
        let written = of(&report["linears"]);
        assert_eq!(written.len(), 42);
        assert_eq!(written, of(&ran["run"]["linears"]));
        assert_eq!(written, of(&stood["run"]["linears"]));
        for linear in written {
            assert!(
                figures.iter().all(|figure| linear[figure].as_f64().is_some_and(|v| v >= 0.0)),
                "{linear}"
            );
        }
    }
}
