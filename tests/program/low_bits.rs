//! BiLLM and SliM-LLM from recipe to folder: true bits, what a compact folder would weigh, what formats refuse.

use crate::common::{SMALL, ptq, quantize, text, tiny_reasoner};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::tempdir;

fn recipe(folder: &Path, name: &str, modifier: &str, format: &str) -> PathBuf {
    let file = folder.join(format!("{name}.yaml"));
    let text = format!("version: 1\nmodifiers: [{modifier}]\nexport: {{ format: {format} }}\n");
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn reports_count_everything_that_is_stored() {
    let work = tempdir().unwrap();
    let model = tiny_reasoner();
    for (name, modifier, bits, exactly) in [
        // Two bits, eight numbers of 32 bits in a row of each block of 64, a bit a column of a row.
        ("billm", "billm: { block_size: 64 }", 2.0 + 8.0 * 32.0 / 64.0, true),
        // The mean width, a scale and a zero of each group of 32 columns.
        ("slim-3", "slim-llm: { scheme: W3A16g32 }", 3.0 + (32.0 + 3.0) / 32.0, true),
        ("slim-2", "slim-llm: { scheme: W2A16g32 }", 2.0 + (32.0 + 2.0) / 32.0, false),
    ] {
        let recipe = recipe(work.path(), name, modifier, "dequantized");
        let job = ["--model", text(&model), "--recipe", text(&recipe)];
        let plan = ptq(&[&["plan"], &job[..], SMALL, &["--json"]].concat()).expect(0, &[]).json();
        let output = work.path().join(name);
        let report = quantize(&model, text(&recipe), &output, &[SMALL, &["--json"]].concat());
        let report = report.expect(0, &[]).json();
        let (planned, stored) = (&plan["forecast"]["bits_per_weight"], &report["bits_per_weight"]);
        let (planned, stored) = (planned.as_f64().unwrap(), stored.as_f64().unwrap());
        // Masks and widths of groups are a hundredth of a bit.
        assert!((-0.001..0.6).contains(&(stored - bits)), "{name}: {stored} instead of {bits}");
        assert!(
            if exactly { (planned - stored).abs() < 1e-9 } else { planned >= stored },
            "{planned} {stored}"
        );
        let written: Value =
            serde_json::from_slice(&std::fs::read(output.join("quantization_report.json")).unwrap()).unwrap();
        let compact = written["compact_bytes"].as_u64().unwrap();
        assert_eq!(report["compact_bytes"].as_u64(), Some(compact));
        let linears = report["run"]["linears"].as_array().unwrap();
        let of_linears: u64 = linears.iter().map(|l| l["stored_bytes"].as_u64().unwrap()).sum();
        assert!(compact > of_linears && compact < report["bytes"].as_u64().unwrap(), "{name}: {compact}");
        let card = std::fs::read_to_string(output.join("README.md")).unwrap();
        assert!(card.contains("Stored bit by bit"), "{card}");
        for linear in written["linears"].as_array().unwrap() {
            match name {
                "billm" => {
                    let salient = linear["salient_columns"].as_array().unwrap();
                    assert!(salient.iter().all(|c| (1..=49).contains(&c.as_u64().unwrap())), "{linear}");
                }
                _ => {
                    let widths = linear["group_bits"].as_array().unwrap();
                    let sum: u64 = widths.iter().map(|bits| bits.as_u64().unwrap()).sum();
                    let nominal = if name == "slim-3" { 3 } else { 2 };
                    assert_eq!(sum, nominal * widths.len() as u64, "{linear}");
                    assert!(widths.iter().any(|bits| bits.as_u64() != Some(nominal)), "{linear}");
                }
            }
        }
        ptq(&["verify", text(&output)]).expect(0, &[]);
    }
}

#[test]
fn what_cannot_be_is_said_in_the_plan() {
    let work = tempdir().unwrap();
    let model = tiny_reasoner();
    let plan = |modifier: &str, format: &str| {
        let recipe = recipe(work.path(), "one", modifier, format);
        ptq(&["plan", "--model", text(&model), "--recipe", text(&recipe)])
    };
    for format in ["vllm-ascend", "compressed-tensors"] {
        plan("billm: {}", format).expect(3, &["binary residual codes", "q_proj", "dequantized"]);
        plan("slim-llm: { scheme: W4A16g32 }", format).expect(3, &["different bit widths", "dequantized"]);
    }
    plan("slim-llm: { scheme: W8A16g32 }", "dequantized").expect(2, &["W2 to W7"]);
    plan("slim-llm: { scheme: W1A16g32 }", "dequantized").expect(2, &["W2 to W7"]);
    plan("billm: { scheme: W1A16 }", "dequantized").expect(2, &["unknown key", "salient_metric"]);
    // 192 inputs are three groups of 64, and 576 are nine.
    plan("slim-llm: { scheme: W4A16g64 }", "dequantized")
        .expect(0, &["fewer than four groups", "q_proj and 35 more"]);
    let uniform = plan("slim-llm: { scheme: W4A16g192 }", "compressed-tensors");
    uniform.expect(0, &["fewer than four groups"]);
}
