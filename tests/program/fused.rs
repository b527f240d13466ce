//! A model whose linears are stored fused goes through every method and the formats that can hold it.

use crate::common::{ptq, quantize, root, text};
use std::path::PathBuf;
use tempfile::tempdir;

/// A random Phi-3 of two blocks: q, k, v and gate, up in one matrix each, rope on part of the head.
fn phi3() -> PathBuf {
    root().join("crates/quant-model/tests/data/phi3")
}

/// Token ids of its vocabulary of 80, `[rows, tokens]`.
fn ids(rows: usize, tokens: usize) -> Vec<u8> {
    let header = format!(
        r#"{{"ids":{{"dtype":"I32","shape":[{rows},{tokens}],"data_offsets":[0,{}]}}}}"#,
        4 * rows * tokens
    );
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend((0..rows * tokens).flat_map(|i| ((i * 37 % 79) as i32).to_le_bytes()));
    file
}

#[test]
fn every_method_works_on_fused_linears() {
    let work = tempdir().unwrap();
    let file = work.path().join("ids.safetensors");
    std::fs::write(&file, ids(8, 40)).unwrap();
    let tokens = format!("{}:ids", text(&file));
    for (name, modifiers, format, kl) in [
        ("smooth", "smoothquant: {}, gptq: { scheme: W8A8 }", "compressed-tensors", 0.05),
        ("gptaq", "smoothquant: {}, gptaq: { scheme: W8A16g24 }", "compressed-tensors", 0.05),
        ("awq", "awq: { scheme: W8A16g24, gqa: true }", "compressed-tensors", 0.05),
        ("kv", "rtn: { scheme: W8A8KV8 }", "dequantized", 0.05),
        (
            "pairs",
            "smoothquant: { pairs: [norm, v-o, up-down] }, gptq: { scheme: W8A8KV8, input_shards: 2 }",
            "dequantized",
            0.05,
        ),
    ] {
        let recipe = work.path().join(format!("{name}.yaml"));
        std::fs::write(
            &recipe,
            format!(
                "version: 1\nmodifiers: [{modifiers}]\nexport: {{ format: {format} }}\n{}\n",
                if name == "pairs" {
                    "kv_cache: { before_rope: true }\nactivations: { in_calibration: true }"
                } else {
                    ""
                }
            ),
        )
        .unwrap();
        let output = work.path().join(name);
        let report =
            quantize(&phi3(), text(&recipe), &output, &["--calibration", &tokens, "--json"]).expect(0, &[]);
        let modules = report.json()["run"]["linears"].to_string();
        assert!(
            modules.contains("model.layers.1.self_attn.qkv_proj") && !modules.contains("q_proj\""),
            "{name}"
        );
        ptq(&["verify", text(&output), "--target", "transformers"]).expect(0, &[]);
        let model = phi3();
        let arguments =
            ["eval", "--model", text(&output), "--reference", text(&model), "--tokens", &tokens, "--json"];
        let found = ptq(&arguments).expect(0, &[]).json()["kl"].as_f64().unwrap();
        assert!(found < kl, "{name}: {found}");
    }
}

/// Its loader looks up q, k, v, gate and up.
#[test]
fn vllm_ascend_refuses_fused_linears_in_the_plan() {
    let model = phi3();
    ptq(&["plan", "--model", text(&model), "--recipe", "w8a8-ascend"])
        .expect(3, &["fused", "model.layers.0.self_attn.qkv_proj", "compressed-tensors"]);
}
