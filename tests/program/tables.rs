//! Folders with a quantised embedding or head.

use crate::common::{
    Ran, SMALL, copy_of_model, few_windows, ptq, quantize, text, tie, tiny_reasoner, write_rows,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::path::Path;
use tempfile::tempdir;

fn run(model: &Path, keys: &str, output: &Path) -> Ran {
    let recipe = output.with_extension("yaml");
    std::fs::write(&recipe, format!("version: 1\n{keys}\n")).unwrap();
    quantize(model, text(&recipe), output, &[SMALL, &["--json"]].concat())
}

/// Type and bytes of a tensor of a folder of one shard.
fn tensor(folder: &Path, name: &str) -> Option<(Dtype, Vec<u8>)> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors.tensor(name).ok().map(|t| (t.dtype(), t.data().to_vec()))
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

#[test]
fn a_tied_head_is_untied_by_name_only_and_said_to_be() {
    let work = tempdir().unwrap();
    let model = copy_of_model(work.path());
    tie(&model);
    let (dtype, table) = tensor(&model, EMBEDDING).unwrap();
    assert_eq!(dtype, Dtype::BF16);
    let output = |name: &str| work.path().join(name);
    let keys =
        |overrides: &str| format!("modifiers: [rtn: {{ scheme: W4A16g32 }}]\noverrides: {{ {overrides} }}");

    // No glob means it, however wide.
    let report = run(&model, &keys("\"*\": { scheme: W8A16 }"), &output("glob")).expect(0, &[]).json();
    assert!(report["run"]["linears"].as_array().unwrap().iter().all(|l| l["block"].is_u64()), "{report}");
    assert_eq!(tensor(&output("glob"), EMBEDDING).unwrap(), (Dtype::BF16, table.clone()));
    assert_eq!(tensor(&output("glob"), HEAD), None);
    assert_eq!(json(&output("glob").join("config.json"))["tie_word_embeddings"], true);

    for (named, other, module) in [(HEAD, EMBEDDING, "lm_head"), (EMBEDDING, HEAD, "model.embed_tokens")] {
        let folder = output(module);
        let ran = run(&model, &keys(&format!("{module}: {{ scheme: W8A16 }}")), &folder);
        let report = ran.expect(0, &["unties them", module]).json();
        let linears = report["run"]["linears"].as_array().unwrap();
        let of_table: Vec<_> = linears.iter().filter(|l| l["block"].is_null()).collect();
        assert_eq!(of_table.len(), 1, "{report}");
        assert_eq!((&of_table[0]["module"], &of_table[0]["scheme"]), (&module.into(), &"W8A16".into()));
        // 8 bits and a scale in f32 for 192 of them; the figure of the linears is theirs alone.
        assert!((of_table[0]["bits_per_weight"].as_f64().unwrap() - (8.0 + 32.0 / 192.0)).abs() < 1e-9);
        assert_eq!(report["bits_per_weight"], 5.0);
        // What is not named keeps its bytes, the head those of the embedding it was.
        assert_eq!(tensor(&folder, other).unwrap(), (Dtype::BF16, table.clone()));
        let (dtype, rounded) = tensor(&folder, named).unwrap();
        assert_eq!((dtype, rounded.len()), (Dtype::F32, 2 * table.len()));
        let levels: std::collections::BTreeSet<&[u8]> = rounded[..4 * 192].chunks(4).collect();
        assert!(levels.len() < 192);
        assert_eq!(json(&folder.join("config.json"))["tie_word_embeddings"], false);
        let cost = tensor(&folder, HEAD).unwrap().1.len();
        let written = json(&folder.join("quantization_report.json"));
        let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
        for place in [written["warnings"].to_string(), card.clone()] {
            assert!(place.contains("unties them") && place.contains(&format!("({cost} bytes)")), "{place}");
        }
        assert!(card.contains(&format!("`{module}`: W8A16, rtn, 8.167 bits per weight.")), "{card}");
        let hashes = json(&folder.join("manifest.json"));
        assert!(hashes["input"][EMBEDDING].is_string() && hashes["input"].get(HEAD).is_none(), "{hashes}");
        assert_eq!(
            hashes["input"][EMBEDDING],
            json(&output("glob").join("manifest.json"))["input"][EMBEDDING]
        );
        ptq(&["verify", text(&folder)]).expect(0, &[]);
        let shown = ptq(&["inspect", text(&folder)]).expect(0, &[]).out;
        assert!(shown.contains(&format!("{module} W8A16")) && !shown.contains("tied"), "{shown}");
    }
}

#[test]
fn a_format_that_cannot_hold_them_refuses_in_the_plan() {
    let work = tempdir().unwrap();
    for format in ["vllm-ascend", "compressed-tensors"] {
        for module in ["lm_head", "model.embed_tokens"] {
            let keys = format!(
                "modifiers: [rtn: {{ scheme: W8A8 }}]\noverrides: {{ {module}: {{ scheme: W8A16 }} }}\nexport: {{ format: {format} }}"
            );
            let output = work.path().join("out");
            run(&tiny_reasoner(), &keys, &output)
                .expect(3, &[format, &format!("a quantised {module}"), "export to dequantized"]);
            assert!(!output.exists());
        }
    }
}

/// What is evaluated are the rounded values: eight bits change next to nothing, two a great deal.
#[test]
fn an_evaluation_sees_the_rounded_head() {
    let work = tempdir().unwrap();
    let windows = few_windows(6, 64);
    let tokens = write_rows(&work.path().join("tokens.safetensors"), &windows);
    let perplexity = |folder: &Path| {
        let eval = ["eval", "--model", text(folder), "--tokens", &tokens, "--json"];
        ptq(&eval).expect(0, &[]).json()["perplexity"].as_f64().unwrap()
    };
    let float = perplexity(&tiny_reasoner());
    let of = |name: &str, overrides: &str| {
        let folder = work.path().join(name);
        let keys = format!("modifiers: [rtn: {{ scheme: W16A16 }}]\noverrides: {{ {overrides} }}");
        run(&tiny_reasoner(), &keys, &folder).expect(0, &[]);
        perplexity(&folder) / float
    };
    let both = "lm_head: { scheme: W8A16 }, model.embed_tokens: { scheme: W8A16 }";
    let eight = of("8", "lm_head: { scheme: W8A16 }");
    let (both, two) = (of("both", both), of("2", "lm_head: { scheme: W2A16 }"));
    let second_order = of("2-gptq", "lm_head: { gptq: { scheme: W2A16 } }");
    println!(
        "perplexity over float: {eight} with 8 bits, {both} of both, {two} with 2, {second_order} by gptq"
    );
    assert!(eight != 1.0 && (eight - 1.0).abs() < 0.01, "{eight}");
    assert!(both != eight && (both - 1.0).abs() < 0.02, "{both}");
    assert!(two > 1.05, "{two}");
    assert!(second_order < two, "{second_order} and {two}");
}

#[test]
fn a_plan_lists_them_and_what_stays() {
    let work = tempdir().unwrap();
    let recipe = work.path().join("recipe.yaml");
    let write = |overrides: &str| {
        let keys =
            format!("version: 1\nmodifiers: [rtn: {{ scheme: W4A16 }}]\noverrides: {{ {overrides} }}\n");
        std::fs::write(&recipe, keys).unwrap();
    };
    let model = tiny_reasoner();
    let plan = ["plan", "--model", text(&model), "--recipe", text(&recipe)];
    write("lm_head: { gptq: { scheme: W8A16 } }");
    let said = ptq(&plan).expect(0, &[]).out;
    assert!(said.contains("lm_head") && said.contains("gptq, 8.167 bits per weight"), "{said}");
    assert!(
        said.contains("stays float: embedding, norms\n") && said.contains("calibration: needed"),
        "{said}"
    );
    let shown = ptq(&[&plan[..], &["--json"]].concat()).expect(0, &[]).json();
    assert_eq!(shown["tables"]["lm_head"]["method"], "gptq");
    assert_eq!(shown["tables"]["lm_head"]["weight"]["bits"], 8);
    let phases = shown["memory"]["phases"].to_string();
    assert!(phases.contains("statistics of the head") && phases.contains("round a table"), "{phases}");
    write("\"*\": { scheme: W8A16 }");
    let shown = ptq(&[&plan[..], &["--json"]].concat()).expect(0, &[]).json();
    assert_eq!(shown["tables"], serde_json::json!({}));
    assert!(!shown["memory"]["phases"].to_string().contains("table"));
}
