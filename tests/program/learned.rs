//! FlatQuant from recipe to folder: what a folder computes when it is read back, and what the person is told.

use crate::common::{
    SMALL, computes_what_was_measured, copy_of_model, few_windows, ptq, quantize, quantize_in_memory,
    refused, text, tiny_reasoner, write_rows,
};
use ptq::graph::BlockSource;
use ptq::pipeline::open_folder;
use tempfile::tempdir;

#[test]
fn a_folder_computes_what_was_measured() {
    let work = tempdir().unwrap();
    let (model, output) = (copy_of_model(work.path()), work.path().join("out"));
    let text_of = "version: 1\nmodifiers: [flatquant: { scheme: W4A4KV4, epochs: 2, batch_size: 2, share_inputs: false }]\n";
    let recipe = work.path().join("recipe.yaml");
    std::fs::write(&recipe, text_of).unwrap();
    let rows = few_windows(5, 64);
    let data = write_rows(&work.path().join("rows.safetensors"), &rows);
    let report = quantize(&model, text(&recipe), &output, &["--calibration", &data, "--json"]);
    let report = report.expect(0, &[]).json();
    let lessons = report["run"]["lessons"].as_array().unwrap();
    assert_eq!(lessons.len(), 6);
    for (block, lesson) in lessons.iter().enumerate() {
        assert_eq!(
            (lesson["block"].as_u64(), lesson["losses"].as_array().unwrap().len()),
            (Some(block as u64), 4)
        );
        assert!(lesson["after"].as_f64() <= lesson["before"].as_f64(), "{lesson}");
    }
    let warnings = report["warnings"].to_string();
    assert!(
        warnings.contains("1 calibration sequences at the end") && warnings.contains("not applied there"),
        "{warnings}"
    );
    let card = std::fs::read_to_string(output.join("README.md")).unwrap();
    assert!(card.contains("flatquant (stable, 2 epochs at 0.005, seed 0)"), "{card}");
    let told = std::fs::read_to_string(output.join("quantization_report.json")).unwrap();
    assert!(told.contains("\"lessons\""), "{told}");

    computes_what_was_measured(&model, text_of, &output, (&rows, &data));
}

/// Pairs for the kernel of vLLM-Ascend: its loader takes the folder, which computes what was measured, cache and all.
#[test]
fn a_folder_of_pairs_computes_what_was_measured() {
    let work = tempdir().unwrap();
    let (model, output) = (tiny_reasoner(), work.path().join("out"));
    let keys = "scheme: W4A4KV8, unpaired: w8a8, epochs: 1, batch_size: 2";
    let text_of =
        format!("version: 1\nmodifiers: [flatquant: {{ {keys} }}]\nexport: {{ format: vllm-ascend }}\n");
    let recipe = work.path().join("recipe.yaml");
    std::fs::write(&recipe, &text_of).unwrap();
    let rows = few_windows(4, 64);
    let data = write_rows(&work.path().join("rows.safetensors"), &rows);
    let report = quantize(&model, text(&recipe), &output, &["--calibration", &data, "--json"]);
    let report = report.expect(0, &[]).json();
    let serve = report["serve"].as_array().unwrap();
    assert_eq!((serve.len(), &serve[0]["client"]), (1, &"vLLM-Ascend".into()), "{serve:?}");
    assert_eq!(serve[0]["tensor_parallel"], serde_json::json!([1]));
    let described = std::fs::read_to_string(output.join("quant_model_description.json")).unwrap();
    for module in ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"] {
        let entry = format!("\"model.layers.5.{module}.left_trans\": \"W4A4_FLATQUANT_DYNAMIC\"");
        assert!(described.contains(&entry), "{described}");
    }
    ptq(&["verify", text(&output), "--target", "vllm-ascend"]).expect(0, &[]);
    let two =
        ptq(&["verify", text(&output), "--target", "vllm-ascend", "--tp", "2", "--json"]).expect(1, &[]);
    assert!(two.json().to_string().contains("transform is of all"), "{}", two.out);

    computes_what_was_measured(&model, &text_of, &output, (&rows, &data));
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let work = tempdir().unwrap();
    let model = copy_of_model(work.path());
    for (name, recipe, more, code, words) in [
        ("few", "[flatquant: { scheme: W4A4, batch_size: 1000 }]", SMALL, 4, &["make no batch of 1000"][..]),
        (
            "none",
            "[flatquant: { scheme: W4A4 }]",
            &[][..],
            2,
            &["--calibration", "trains on the inputs of the blocks"],
        ),
        (
            "format",
            "[flatquant: { scheme: W8A8 }]\nexport: { format: vllm-ascend }",
            SMALL,
            3,
            &["transform", "dequantized"],
        ),
        (
            "pairs",
            "[flatquant: { scheme: W4A4, transforms: free, lac: false }]\nexport: { format: vllm-ascend }",
            SMALL,
            3,
            &["attention_output", "transforms: auto"],
        ),
    ] {
        let file = work.path().join(format!("{name}.yaml"));
        std::fs::write(&file, format!("version: 1\nmodifiers: {recipe}\n")).unwrap();
        refused(&model, text(&file), more, code, words);
    }
}

/// A block whose training cannot be repaired has eight bits in the folder, if the recipe allows it: description, report, bits per weight and what
/// is computed agree, and the plan has said the worst case. Here every block falls back.
#[test]
fn a_folder_of_blocks_that_fell_back() {
    let work = tempdir().unwrap();
    let (model, output) = (tiny_reasoner(), work.path().join("out"));
    let text_of = "version: 1\nmodifiers: [flatquant: { scheme: W4A4KV4, epochs: 2, batch_size: 2, learning_rate: 1.0, fallback: [bits8] }]\n";
    let recipe = work.path().join("recipe.yaml");
    std::fs::write(&recipe, text_of).unwrap();
    let rows = few_windows(4, 64);
    let data = write_rows(&work.path().join("rows.safetensors"), &rows);
    let job = ["--model", text(&model), "--recipe", text(&recipe), "--calibration", &data];
    let plan = ptq(&[&["plan"], &job[..], &["--json"]].concat()).expect(0, &[]).json();
    let worst = plan["forecast"]["worst"]["bits_per_weight"].as_f64().unwrap();
    assert!(worst > plan["forecast"]["bits_per_weight"].as_f64().unwrap() + 3.9, "{plan}");
    let told = ptq(&[&["plan"], &job[..]].concat()).expect(0, &[]);
    assert!(told.out.contains("if every block falls back to 8 bits"), "{}", told.out);

    let report = quantize(&model, text(&recipe), &output, &["--calibration", &data, "--json"]);
    let report = report.expect(0, &[]).json();
    for lesson in report["run"]["lessons"].as_array().unwrap() {
        let tried = lesson["fallbacks"].as_array().unwrap();
        assert_eq!((tried.len(), &tried[0]["to"], &tried[0]["taken"]), (1, &"bits8".into(), &true.into()));
        assert_eq!(tried[0]["error"], lesson["after"]);
    }
    assert!(
        (report["bits_per_weight"].as_f64().unwrap() - worst).abs() < 1e-9,
        "{}",
        report["bits_per_weight"]
    );
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("falls back to 8 bits"), "{warnings}");
    computes_what_was_measured(&model, text_of, &output, (&rows, &data));
}

/// For vLLM-Ascend a block that fell back is `W8A8_DYNAMIC`, beside others that are four bits behind pairs: it has none of their tensors, the
/// loader's rules pass, the card says what happened, and the folder computes what was measured. At a learning rate of 1 every block falls back,
/// and no block has a pair.
#[test]
fn blocks_that_fell_back_for_a_kernel() {
    let work = tempdir().unwrap();
    let rows = few_windows(4, 64);
    let data = write_rows(&work.path().join("rows.safetensors"), &rows);
    let model = tiny_reasoner();
    let mut kinds = std::collections::BTreeSet::new();
    for rate in ["1.0", "0.3"] {
        let (output, recipe) = (work.path().join(rate), work.path().join(format!("{rate}.yaml")));
        let keys = format!(
            "scheme: W4A4KV8, unpaired: w8a8, epochs: 2, batch_size: 2, learning_rate: {rate}, fallback: [bits8]"
        );
        let text_of =
            format!("version: 1\nmodifiers: [flatquant: {{ {keys} }}]\nexport: {{ format: vllm-ascend }}\n");
        std::fs::write(&recipe, &text_of).unwrap();
        let job = ["--model", text(&model), "--recipe", text(&recipe), "--calibration", &data];
        let plan = ptq(&[&["plan"], &job[..]].concat()).expect(0, &[]);
        assert!(plan.out.contains("if every block falls back to 8 bits"), "{}", plan.out);
        assert!(plan.err.contains("have no transforms"), "{}", plan.err);
        let report = quantize(&model, text(&recipe), &output, &["--calibration", &data, "--json"]);
        let report = report.expect(0, &[]).json();
        let described = std::fs::read_to_string(output.join("quant_model_description.json")).unwrap();
        let card = std::fs::read_to_string(output.join("README.md")).unwrap();
        for lesson in report["run"]["lessons"].as_array().unwrap() {
            let fell = lesson["fallbacks"].as_array().is_some_and(|tried| tried[0]["taken"] == true);
            let (block, kind) =
                (&lesson["block"], if fell { "W8A8_DYNAMIC" } else { "W4A4_FLATQUANT_DYNAMIC" });
            let module = format!("model.layers.{block}.self_attn.q_proj");
            assert!(described.contains(&format!("\"{module}.weight\": \"{kind}\"")), "{module}: {described}");
            assert_eq!(described.contains(&format!("{module}.left_trans")), !fell, "{module}");
            if fell {
                assert!(card.contains("falls back to 8 bits"), "{card}");
            }
            kinds.insert((rate, kind));
        }
        let index =
            std::fs::read_to_string(output.join("quant_model_weights.safetensors.index.json")).unwrap();
        assert!(
            index.contains("\"model.norm.weight\": \"quant_model_weights-00002-of-00002.safetensors\""),
            "{index}"
        );
        ptq(&["verify", text(&output), "--target", "vllm-ascend"]).expect(0, &[]);
        let (mut measured, _) = quantize_in_memory(&model, &text_of, Some(&rows), 2);
        let mut read = open_folder(&output).unwrap().into_source().unwrap();
        for index in 0..measured.spec().layers {
            assert!(read.block(index).unwrap() == measured.block(index).unwrap(), "block {index} at {rate}");
        }
        assert_eq!(read.final_norm().unwrap(), measured.final_norm().unwrap());
        // Where a block has a transform, its codes are simulated as in memory; W8A8 alone is executed.
        if rate == "0.3" {
            computes_what_was_measured(&model, &text_of, &output, (&rows, &data));
        }
    }
    let (four, eight) = ("W4A4_FLATQUANT_DYNAMIC", "W8A8_DYNAMIC");
    assert_eq!(kinds, [("1.0", eight), ("0.3", four), ("0.3", eight)].into());
}

/// Pairs of a part: the folder is for six devices, says so, and computes what was measured. Of o that is 4 x 8; down would have 8 x 12, and has no
/// pair.
#[test]
fn a_folder_for_six_devices() {
    let work = tempdir().unwrap();
    let (model, output) = (tiny_reasoner(), work.path().join("out"));
    let keys = "scheme: W4A4, tp: 6, unpaired: w4a4, epochs: 1, batch_size: 2";
    let text_of =
        format!("version: 1\nmodifiers: [flatquant: {{ {keys} }}]\nexport: {{ format: vllm-ascend }}\n");
    let recipe = work.path().join("recipe.yaml");
    std::fs::write(&recipe, &text_of).unwrap();
    let rows = few_windows(4, 64);
    let data = write_rows(&work.path().join("rows.safetensors"), &rows);
    let report = quantize(&model, text(&recipe), &output, &["--calibration", &data, "--json"]);
    let report = report.expect(0, &[]).json();
    assert_eq!(report["serve"][0]["tensor_parallel"], serde_json::json!([6]), "{report}");
    let card = std::fs::read_to_string(output.join("README.md")).unwrap();
    assert!(card.contains("loads with TP 6") && card.contains("--tensor-parallel-size 6`"), "{card}");
    ptq(&["verify", text(&output), "--target", "vllm-ascend", "--tp", "6"]).expect(0, &[]);
    let one =
        ptq(&["verify", text(&output), "--target", "vllm-ascend", "--tp", "1", "--json"]).expect(1, &[]);
    assert!(one.json().to_string().contains("loads on 6 devices alone"), "{}", one.out);

    computes_what_was_measured(&model, &text_of, &output, (&rows, &data));
}
