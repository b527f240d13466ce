//! QuaRot from recipe to folder: what 4 bits cost with rotations and without, and what a folder computes when it is read back.

use crate::common::{
    SMALL, computes_what_was_measured, copy_of_model, few_windows, perplexity, ptq, quantize,
    quantize_in_memory, refused, text, tie, tiny_reasoner, write_rows,
};
use tempfile::tempdir;

#[test]
fn rotations_keep_what_four_bits_would_lose() {
    let rows = few_windows(8, 128);
    let of = |modifiers: &str| {
        let recipe = format!("version: 1\nmodifiers: [{modifiers}]\n");
        perplexity(quantize_in_memory(&tiny_reasoner(), &recipe, Some(&rows), 2).0, &rows.sequences)
    };
    let float = of("rtn: { scheme: W16A16 }");
    let kept = of("quarot: {}, rtn: { scheme: W16A16 }");
    assert!((kept / float - 1.0).abs() < 1e-4, "{kept} rotated, {float} as it is");
    let plain = of("rtn: { scheme: W4A4KV4 }");
    let turned = of("quarot: {}, rtn: { scheme: W4A4KV4 }");
    let solved = of("quarot: {}, gptq: { scheme: W4A4KV4, convention: q-sym, mse_clip: true }");
    println!("float {float:.3}, plain {plain:.3}, rotated {turned:.3}, with gptq {solved:.3}");
    // Without them the model is lost: 97 instead of 1.4 on its tasks.
    assert!(plain > 10.0 * turned, "{plain} without, {turned} with");
    assert!(turned < 1.2 * float && solved < turned, "{float} {turned} {solved}");
}

#[test]
fn a_folder_computes_what_was_measured() {
    let work = tempdir().unwrap();
    let (model, output) = (copy_of_model(work.path()), work.path().join("out"));
    tie(&model);
    let report = quantize(&model, "w4a4kv4-quarot-research", &output, &[SMALL, &["--json"]].concat());
    let report = report.expect(0, &[]).json();
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("quarot unties them") && warnings.contains("not applied there"), "{warnings}");
    assert!(report["serve"].as_array().unwrap().is_empty(), "{}", report["serve"]);
    let config = std::fs::read_to_string(output.join("config.json")).unwrap();
    assert!(config.contains("\"tie_word_embeddings\": false"), "{config}");
    let card = std::fs::read_to_string(output.join("README.md")).unwrap();
    assert!(card.contains("quarot (Hadamard rotations r1, r2, r3, r4) + gptq"), "{card}");

    let rows = few_windows(4, 64);
    let data = write_rows(&work.path().join("rows.safetensors"), &rows);
    let recipe =
        std::fs::read_to_string(crate::common::root().join("recipes/w4a4kv4-quarot-research.yaml")).unwrap();
    computes_what_was_measured(&model, &recipe, &output, (&rows, &data));
}

/// Rotations that are fused cost a deployment nothing: 4 bits of weights and activations for vLLM-Ascend.
#[test]
fn fused_rotations_are_for_any_loader() {
    let work = tempdir().unwrap();
    let (model, recipe) = (tiny_reasoner(), work.path().join("recipe.yaml"));
    let modifiers =
        "[quarot: { rotations: [r1, r2], cross_head: off }, gptq: { scheme: W4A4, mse_clip: true }]";
    let rest = "overrides: { \"*.down_proj\": { scheme: W8A8 } }\nexport: { format: vllm-ascend }";
    let text_of = format!("version: 1\nmodifiers: {modifiers}\n{rest}\n");
    std::fs::write(&recipe, &text_of).unwrap();
    let output = work.path().join("out");
    quantize(&model, text(&recipe), &output, SMALL).expect(0, &[]);
    let described = std::fs::read_to_string(output.join("quant_model_description.json")).unwrap();
    assert!(
        described.contains("\"model.layers.0.self_attn.q_proj.weight\": \"W4A4_DYNAMIC\""),
        "{described}"
    );
    assert!(described.contains("\"model.layers.0.mlp.down_proj.weight\": \"W8A8_DYNAMIC\""), "{described}");
    ptq(&["verify", text(&output), "--target", "vllm-ascend"]).expect(0, &[]);
    let old = ptq(&["verify", text(&output), "--target", "vllm-ascend@0.13", "--json"]).expect(1, &[]);
    assert!(old.json().to_string().contains("W4A4_DYNAMIC"));

    let rows = few_windows(4, 64);
    let data = write_rows(&work.path().join("rows.safetensors"), &rows);
    let read = ptq(&["eval", "--model", text(&output), "--tokens", &data, "--json"]).expect(0, &[]).json();
    let expected = perplexity(quantize_in_memory(&model, &text_of, Some(&rows), 2).0, &rows.sequences);
    let found = read["perplexity"].as_f64().unwrap();
    // The tables of the folder are in bfloat16.
    assert!((found / expected - 1.0).abs() < 0.02, "{found} from the folder, {expected} in memory");
    assert!(expected < 4.0, "{expected}");
}

#[test]
fn what_cannot_run_is_refused_in_the_plan() {
    let work = tempdir().unwrap();
    let model = tiny_reasoner();
    for (name, modifiers, code, words) in [
        (
            "ascend",
            "[quarot: {}, rtn: { scheme: W8A8 }]\nexport: { format: vllm-ascend }",
            3,
            &["transform of mlp_activation", "rotations: [r1, r2]"][..],
        ),
        ("second", "[rtn: { scheme: W8A8 }, quarot: {}]", 2, &["quarot", "stands first"]),
        (
            "block",
            "[quarot: { block: 48 }, rtn: { scheme: W8A8 }]",
            2,
            &["block", "one of 16, 32, 64, 128, or none"],
        ),
        (
            "twice-at-down",
            "[quarot: { rotations: [r3, r4] }, duquant: { block: 64 }, rtn: { scheme: W4A4KV4 }]",
            2,
            &["duquant.block", "MlpActivation", "no r4", "cross_head: \"off\""],
        ),
        (
            "two-learn",
            "[duquant: { block: 64 }, flatquant: { scheme: W4A4KV4 }]",
            2,
            &["flatquant learns in the blocks", "drop the other modifiers"],
        ),
        (
            "learned-behind-online",
            "[quarot: {}, flatquant: { scheme: W4A4KV4 }]",
            2,
            &["flatquant", "rotations: [r1, r2] and cross_head: \"off\""],
        ),
    ] {
        let recipe = work.path().join(format!("{name}.yaml"));
        std::fs::write(&recipe, format!("version: 1\nmodifiers: {modifiers}\n")).unwrap();
        refused(&model, text(&recipe), SMALL, code, words);
    }
}

/// The report and the card of a folder by a recipe that is calibrated on a few rows, which computes what was measured.
fn fitted(recipe: &str) -> (serde_json::Value, String) {
    let work = tempdir().unwrap();
    let (model, output) = (tiny_reasoner(), work.path().join("out"));
    let file = work.path().join("recipe.yaml");
    std::fs::write(&file, recipe).unwrap();
    let rows = few_windows(4, 64);
    let data = write_rows(&work.path().join("rows.safetensors"), &rows);
    let report = quantize(&model, text(&file), &output, &["--calibration", &data, "--json"]);
    let report = report.expect(0, &[]).json();
    let card = std::fs::read_to_string(output.join("README.md")).unwrap();
    computes_what_was_measured(&model, recipe, &output, (&rows, &data));
    (report, card)
}

/// Block rotations and permutations are in the folder, which computes what was measured; the card says what they are.
#[test]
fn a_folder_of_permuted_rotations_computes_what_was_measured() {
    let (report, card) =
        fitted("version: 1\nmodifiers: [duquant: { block: 64, steps: 40 }, rtn: { scheme: W4A4KV4 }]\n");
    let lessons = report["run"]["lessons"].as_array().unwrap();
    assert!(lessons.iter().all(|lesson| lesson["after"].as_f64() < lesson["before"].as_f64()), "{lessons:?}");
    assert!(
        card.contains("duquant (blocks of 64, 40 steps, alpha 0.5, norm, v-o, up-down, seed 0)"),
        "{card}"
    );
}

/// What is fitted to inputs stands behind rotations of the whole model, which turn the keys that it has nothing for.
#[test]
fn a_folder_of_fitted_rotations_behind_those_of_keys_computes_what_was_measured() {
    let (report, _) = fitted(
        "version: 1
modifiers:
  - quarot: { rotations: [r1, r2, r3], cross_head: \"off\" }
  - duquant: { block: 64, steps: 40 }
  - rtn: { scheme: W4A4KV4 }
",
    );
    assert!(!report.to_string().contains("keys are quantised as they are"), "{report}");
}
