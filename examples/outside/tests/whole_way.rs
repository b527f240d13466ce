//! From a checkpoint of a family from outside to verified and measured folders, by a method from outside.

use ptq::checkpoint::verify::{Target, verify_all_with};
use ptq::data::CalibrationSpec;
use ptq::kernels::Compute;
use ptq::model::model_spec_with;
use ptq::pipeline::{
    EvalData, EvalJob, QuantizeJob, Recipe, Registry, Silent, evaluate_with, folder_spec_with, open_folder,
    open_folder_with, quantize, schema_with,
};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// A stream of numbers that is the same everywhere: Steele, Lea and Flood's SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// Between −1 and 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

fn config() -> Value {
    json!({
        "architectures": ["HeronForCausalLM"], "model_type": "heron", "hidden_size": 128,
        "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 96, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": false, "torch_dtype": "float32",
    })
}

/// Writes a model of random weights, and `tokens.safetensors` with `ids` `[8, 32]`.
fn write_model(folder: &Path, registry: &Registry) {
    std::fs::create_dir(folder).unwrap();
    std::fs::write(folder.join("config.json"), config().to_string()).unwrap();
    let spec = model_spec_with(&config(), registry.families()).unwrap();
    let mut random = Random(1);
    let save = |file: &str, tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>| {
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &folder.join(file)).unwrap();
    };
    let tensors = spec.tensors().into_iter().map(|tensor| {
        let norm = tensor.shape.len() == 1;
        let width = *tensor.shape.last().unwrap() as f32;
        let value = |_| if norm { 1.0 + 0.1 * random.unit() } else { 1.7 * random.unit() / width.sqrt() };
        let count: usize = tensor.shape.iter().product();
        let bytes = (0..count).map(value).flat_map(f32::to_le_bytes).collect();
        (tensor.name, Dtype::F32, tensor.shape, bytes)
    });
    save("model.safetensors", tensors.collect());
    let ids = (0..8 * 32).flat_map(|_| ((random.next() % 96) as i32).to_le_bytes()).collect();
    save("tokens.safetensors", vec![("ids".into(), Dtype::I32, vec![8, 32], ids)]);
}

fn tokens(model: &Path) -> CalibrationSpec {
    CalibrationSpec::parse(&format!("{}:ids", model.join("tokens.safetensors").display())).unwrap()
}

/// Perplexity of a folder, and the KL divergence from the float model.
fn measure(folder: &Path, model: &Path, registry: &Registry) -> (f64, f64) {
    let job = EvalJob {
        model: folder.into(),
        reference: Some(model.into()),
        data: EvalData::Tokens(tokens(model)),
        seq_len: None,
        limit_tokens: None,
        per_sequence: false,
        save_logits: None,
        threads: 2,
        memory: None,
        spill: None,
        execution: ptq::model::Execution::Simulated,
        processor: None,
        flips: false,
        compute: Compute::F32,
    };
    let report = evaluate_with(&job, &mut Silent, registry).unwrap().report;
    (report.perplexity.unwrap(), report.comparison.unwrap().kl.unwrap())
}

#[test]
fn a_method_and_a_family_from_outside_go_the_whole_way() {
    let registry = outside::registry().unwrap();
    let work = tempfile::tempdir().unwrap();
    let model = work.path().join("heron");
    write_model(&model, &registry);

    // Who was not told of them knows neither.
    let refused = open_folder(&model).unwrap_err().to_string();
    assert!(refused.contains("HeronForCausalLM"), "{refused}");
    let misspelt = "version: 1\nmodifiers: [difuse: { scheme: W4A16g32 }]";
    let refused = Recipe::parse(misspelt).unwrap_err().to_string();
    assert!(refused.contains("unknown key \"difuse\"") && !refused.contains("did you mean"), "{refused}");
    let refused = Recipe::parse_with(misspelt, &registry).unwrap_err().to_string();
    assert!(refused.contains("did you mean \"diffuse\"?"), "{refused}");
    assert!(schema_with(&registry).to_string().contains("share of a weight's error"));

    let spec = open_folder_with(&model, &registry).unwrap().spec;
    assert_eq!(spec.block(1).linears[0].module, "model.layers.1.attn.wq");
    let recipes = [
        ("dequantized", "[diffuse: { scheme: W4A16g32 }]", "overrides: { \"*.w2\": { strength: 0.25 } }"),
        (
            "compressed-tensors",
            "[diffuse: { scheme: W4A16g32 }]",
            "overrides: { \"*.w2\": { strength: 0.25 } }",
        ),
        // Behind one of ours, which asks for calibration.
        ("compressed-tensors", "[smoothquant: { alpha: 0.5 }, diffuse: { scheme: W8A8 }]", ""),
    ];
    let mut measured = Vec::new();
    for (at, (format, modifiers, more)) in recipes.into_iter().enumerate() {
        let text = format!("version: 1\nmodifiers: {modifiers}\n{more}\nexport: {{ format: {format} }}\n");
        let recipe = Recipe::parse_with(&text, &registry).unwrap();
        let output = work.path().join(format!("out-{at}"));
        let calibration = modifiers.contains("smoothquant").then(|| tokens(&model));
        let job = QuantizeJob { threads: 2, calibration, ..QuantizeJob::new(&model, recipe, &output) };
        let outcome = quantize(&job, &mut Silent).unwrap();
        assert!(outcome.run.linears.iter().all(|l| l.method.as_deref() == Some("diffuse")));

        // By the rules of every program that reads the format.
        let spec = folder_spec_with(&output, &registry).unwrap();
        let reports = verify_all_with(&output, &spec, &[], None, registry.formats()).unwrap();
        for report in reports.iter().filter(|r| [Target::Vllm, Target::Transformers].contains(&r.target)) {
            assert!(report.passed(), "{}: {:#?}", report.rules, report.failed().collect::<Vec<_>>());
        }
        measured.push(measure(&output, &model, &registry));
    }
    let float = measure(&model, &model, &registry);
    assert_eq!(float.1, 0.0);
    for (perplexity, divergence) in &measured {
        assert!((perplexity / float.0 - 1.0).abs() < 0.2, "{perplexity} beside {}", float.0);
        assert!(*divergence > 0.0 && *divergence < 0.1, "{divergence}");
    }
    // One format holds scales in f32, the other in the type of its loaders; eight bits are nearer to the float model than four.
    assert!((measured[0].0 / measured[1].0 - 1.0).abs() < 5e-3, "{measured:?}");
    assert!(measured[2].1 < measured[1].1, "{measured:?}");
}

#[test]
fn the_program_knows_them() {
    let registry = outside::registry().unwrap();
    let work = tempfile::tempdir().unwrap();
    let (model, output) = (work.path().join("heron"), work.path().join("out"));
    write_model(&model, &registry);
    let run = |arguments: &[&str]| {
        let ran = Command::new(env!("CARGO_BIN_EXE_outside")).args(arguments).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success(), "{arguments:?}: {out}{err}");
        out.into_owned()
    };
    let list = run(&["list"]);
    for word in ["diffuse: rounding, tier 3", "heron: unchecked, HeronForCausalLM", "w4a16g32-diffuse"] {
        assert!(list.contains(word), "{word}: {list}");
    }
    let (model, folder) = (model.to_str().unwrap(), output.to_str().unwrap());
    let plan = run(&["plan", "--model", model, "--recipe", "w4a16g32-diffuse"]);
    assert!(plan.contains("diffuse"), "{plan}");
    run(&["quantize", "--model", model, "--recipe", "w4a16g32-diffuse", "--output", folder]);
    assert!(run(&["verify", folder, "--target", "vllm"]).contains("passes for vllm"));
    assert!(run(&["inspect", folder]).contains("14 linears W4A16g32"));
    let ids = format!("{model}/tokens.safetensors:ids");
    assert!(run(&["eval", "--model", folder, "--tokens", &ids]).contains("perplexity"));
}
