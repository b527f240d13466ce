//! The embedded model's own tokenizer, chat template and tasks.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like the tests do")]

use std::path::{Path, PathBuf};

use quant_data::{
    CalibrationSpec, ChatTemplate, Conversation, EvalLoadOptions, LoadOptions, RenderOptions, Sampling,
    Tokenizer, load, load_eval_tokens,
};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner")
}

fn options() -> LoadOptions {
    LoadOptions {
        num_samples: None,
        max_seq_len: None,
        seed: 0,
        vocab_size: 1024,
        max_position_embeddings: 2048,
    }
}

fn first_conversation() -> Conversation {
    let tasks = std::fs::read_to_string(model().join("tasks/calibration.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(tasks.lines().next().unwrap()).unwrap();
    Conversation::from_json(&line["messages"]).unwrap()
}

#[test]
fn text_survives_a_round_trip() {
    let tokenizer = Tokenizer::from_dir(&model()).unwrap();
    assert_eq!(tokenizer.special_tokens().eos.as_deref(), Some("<|end|>"));
    assert!(tokenizer.eos_id().is_some() && tokenizer.bos_id().is_none());
    let text = "What is 35 + 21? \\boxed{56}. Größe 数\n";
    let ids = tokenizer.encode(text, true).unwrap();
    assert_eq!(ids, tokenizer.encode(text, false).unwrap(), "this model has no BOS");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    let marked = tokenizer.encode("a<|end|>", true).unwrap();
    assert_eq!(marked.last().copied(), tokenizer.eos_id());
}

#[test]
fn the_template_keeps_the_thoughts() {
    let tokenizer = Tokenizer::from_dir(&model()).unwrap();
    let template = ChatTemplate::from_dir(&model(), tokenizer.special_tokens()).unwrap().unwrap();
    let mut conversation = first_conversation();
    let rendered = template.render_conversation(&conversation).unwrap();
    assert!(!rendered.thoughts_restored);
    assert_eq!(
        rendered.text,
        "<|User|>What is 35 + 21?<|Assistant|><think>\n5+1+0=6 write 6 carry 0\n3+2+0=5 write 5 carry 0\n</think>\n\
         The answer is \\boxed{56}.<|end|>"
    );
    conversation.messages.pop();
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let prompt = template.render(&conversation, &options).unwrap();
    assert_eq!(prompt, "<|User|>What is 35 + 21?<|Assistant|><think>\n");
    assert!(rendered.text.starts_with(&prompt));
}

#[test]
fn tasks_give_windows_of_one_stream() {
    let spec = CalibrationSpec::File { path: model().join("tasks/calibration.jsonl") };
    let short = LoadOptions { num_samples: Some(16), max_seq_len: Some(256), ..options() };
    let set = load(&spec, &short, &model()).unwrap();
    assert_eq!((set.sequences.len(), set.tokens()), (16, 16 * 256));
    let Sampling::RandomWindows { seed: 0, length: 256, stream } = set.sampling else {
        panic!("{:?}", set.sampling);
    };
    assert!(stream > 20_000, "{stream}");
    assert!(set.warnings.is_empty(), "{:?}", set.warnings);
    assert_eq!(set, load(&spec, &short, &model()).unwrap());
    assert_ne!(set.sequences, load(&spec, &LoadOptions { seed: 1, ..short }, &model()).unwrap().sequences);
    let text = Tokenizer::from_dir(&model()).unwrap().decode(&set.sequences[0], false).unwrap();
    assert!(text.contains("<think>") && text.contains("<|end|>"), "{text}");
}

#[test]
fn published_token_files_are_read() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/parity/tiny_reasoner_tokens.safetensors");
    if !path.exists() {
        quant_testkit::skipped(format_args!("{} not present", path.display()));
        return;
    }
    let spec = |tensor: &str| CalibrationSpec::parse(&format!("{}:{tensor}", path.display())).unwrap();
    let set = load(&spec("calib"), &options(), &model()).unwrap();
    assert_eq!((set.sequences.len(), set.tokens()), (32, 32 * 256));
    let eval = EvalLoadOptions { seq_len: None, vocab_size: 1024, max_position_embeddings: 2048 };
    let set = load_eval_tokens(&spec("eval_wikitext2"), &eval).unwrap();
    assert_eq!((set.sequences.len(), set.tokens()), (64, 64 * 256));
    // The file was made with the Python tokenizer library: ours gives back its ids.
    let tokenizer = Tokenizer::from_dir(&model()).unwrap();
    for (index, row) in set.sequences.iter().enumerate() {
        let text = tokenizer.decode(row, false).unwrap();
        assert_eq!(&tokenizer.encode(&text, true).unwrap(), row, "row {index}");
    }
}
