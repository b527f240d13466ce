//! Perplexities of the official implementations on tiny-reasoner, row by row (`parity/README.md`), where the reference data
//! is present. Every RTN, SmoothQuant and GPTQ (`ist`, `qhs`) row must be within its tolerance, or better.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{quantize_in_memory, score, shared, tiny_reasoner, tokens};
use serde_json::Value;

/// The recipe of a row, or none for methods that are not built here.
fn recipe(method: &str, c: &Value) -> Option<String> {
    let flag = |key: &str| c[key].as_bool().unwrap_or(false);
    let bits = |key: &str| c[key].as_u64().unwrap_or(16);
    let group = c["group_size"].as_i64().filter(|&g| g > 0).map_or_else(String::new, |g| format!("g{g}"));
    let kv = if bits("kv_bits") < 16 { format!("KV{}", bits("kv_bits")) } else { String::new() };
    let scheme = format!("W{}A{}{kv}{group}", bits("w_bits"), bits("a_bits"));
    let mut modifiers = String::new();
    let rtn = |symmetric: bool, clip: bool| {
        format!(
            "  - rtn: {{ scheme: {scheme}, symmetric: {symmetric}, mse_clip: {clip}, variant: official }}\n"
        )
    };
    let gptq = |symmetric: bool, clip: bool, order: &str, sequential: bool, convention: &str| {
        format!(
            "  - gptq: {{ scheme: {scheme}, symmetric: {symmetric}, convention: {convention}, mse_clip: {clip}, \
             actorder: {order}, true_sequential: {sequential}, damping: 0.01, variant: official }}\n"
        )
    };
    match method {
        "rtn" => modifiers += &rtn(flag("sym"), flag("mse_clip")),
        "rtn_wxaxkvx" | "rtn_w8aX" => modifiers += &rtn(flag("w_sym"), flag("w_mse_clip")),
        "gptq" => {
            let order = flag("act_order");
            modifiers += &match c["variant"].as_str()? {
                "ist" => {
                    let order = if order { "dynamic" } else { "none" };
                    let convention = if flag("sym") { "q-sym-gptq" } else { "q-asym" };
                    gptq(flag("sym"), flag("mse_clip"), order, false, convention)
                }
                "qhs" => {
                    let order = if order { "static" } else { "none" };
                    let convention = if flag("sym") { "q-sym" } else { "q-asym" };
                    gptq(flag("sym"), flag("mse_clip"), order, true, convention)
                }
                _ => return None,
            };
        }
        "smoothquant" => {
            modifiers += &format!("  - smoothquant: {{ alpha: {}, variant: official }}\n", c["alpha"]);
            modifiers += &match c["w_method"].as_str()? {
                "rtn" => rtn(flag("w_sym"), flag("w_mse_clip")),
                _ => gptq(flag("w_sym"), flag("w_mse_clip"), "none", true, "q-sym"),
            };
        }
        _ => return None,
    }
    Some(format!(
        "version: 1\nmodifiers:\n{modifiers}activations: {{ symmetric: {} }}\n\
         kv_cache: {{ symmetric: {}, granularity: token_head }}\nexport: {{ format: dequantized }}\n",
        !flag("a_asym"),
        !flag("kv_asym")
    ))
}

/// The recommended relative tolerance of a row.
fn tolerance(method: &str, c: &Value) -> f64 {
    let activations = c["a_bits"].as_u64().unwrap_or(16);
    match (method, activations, c["w_bits"].as_u64().unwrap_or(16)) {
        ("rtn", _, _) => 1e-4,
        ("gptq", _, 2) => 0.1,
        ("gptq", _, 3) => 1.5e-2,
        ("gptq", _, _) => 1e-2,
        (_, 4, _) => 2e-2,
        _ => 2e-3,
    }
}

#[test]
fn official_perplexities() {
    let (Some(results), Some(token_file)) =
        (shared("parity/tiny_reasoner_results.json"), shared("parity/tiny_reasoner_tokens.safetensors"))
    else {
        return;
    };
    let results: Value = serde_json::from_slice(&std::fs::read(results).unwrap()).unwrap();
    let calibration = tokens(&token_file, "calib");
    let sets = ["tasks", "wikitext2"].map(|set| (set, tokens(&token_file, &format!("eval_{set}"))));
    let threads = 2;
    let mut failures = Vec::new();
    let mut ran = 0;
    for row in results["results"].as_array().unwrap() {
        let (method, config) = (row["method"].as_str().unwrap(), &row["config"]);
        let recipe = if method == "fp" { None } else { recipe(method, config) };
        if method != "fp" && recipe.is_none() {
            continue;
        }
        let mut line = format!("{method} {config}:");
        let perplexity = |tokens: &ptq::data::TokenSet| match &recipe {
            None => {
                let source = ptq::pipeline::open_folder(&tiny_reasoner()).unwrap().into_source().unwrap();
                score(source, &tokens.sequences, threads).perplexity
            }
            Some(recipe) => {
                let (model, _) = quantize_in_memory(&tiny_reasoner(), recipe, Some(&calibration), threads);
                score(model, &tokens.sequences, threads).perplexity
            }
        };
        for (set, tokens) in &sets {
            let expected = row["ppl"][set].as_f64().unwrap();
            let found = perplexity(tokens).unwrap_or(f64::INFINITY);
            let relative = found / expected - 1.0;
            line += &format!(" {set} {found:.4} vs {expected:.4} ({relative:+.1e})");
            if relative > tolerance(method, config) {
                failures.push(format!("{line}: above the tolerance"));
            }
        }
        println!("{line}");
        ran += 1;
    }
    println!("{ran} rows");
    assert!(ran >= 50, "only {ran} rows were compared");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
