//! A format of another crate, which the functions that take [`Formats`] write, read and check as they do ours.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::folders::*;
use quant_checkpoint::formats::{
    BlockSideData, ConfigNotes, Decoder, Dequantized, Encoded, ExpectedTensor, Format, TensorDecl, detect,
    detect_with,
};
use quant_checkpoint::verify::Severity;
use quant_checkpoint::{
    Checkpoint, Dtype, FolderSource, Formats, Result, ShardNaming, Target, check_tensors_with, judge_plan,
    verify, verify_all_with, verify_with,
};
use quant_core::{ActRule, FloatType, KvGranularity};
use quant_graph::{BlockParams, BlockSource as _, ModelScheme, ModelSpec};
use serde_json::Value;

/// The values that [`Dequantized`] stores, and a mark.
#[derive(Debug)]
struct Marked;

static FORMAT: Marked = Marked;
const MARK: &str = "marked.json";

impl Format for Marked {
    fn id(&self) -> &'static str {
        "marked"
    }
    fn summary(&self) -> &'static str {
        "values with a mark"
    }
    fn tier(&self) -> u8 {
        2
    }
    fn schemes(&self) -> &'static str {
        Dequantized.schemes()
    }
    fn clients(&self) -> &'static [&'static str] {
        &["this test"]
    }
    fn scale_type(&self, spec: &ModelSpec) -> FloatType {
        Dequantized.scale_type(spec)
    }
    fn float_type(&self, spec: &ModelSpec) -> FloatType {
        Dequantized.float_type(spec)
    }
    fn activation_rule(
        &self,
        dynamic: bool,
        symmetric: Option<bool>,
    ) -> std::result::Result<ActRule, quant_checkpoint::formats::Unsupported> {
        Dequantized.activation_rule(dynamic, symmetric)
    }
    fn kv_granularity(&self) -> KvGranularity {
        Dequantized.kv_granularity()
    }
    fn supports(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
    ) -> std::result::Result<(), quant_checkpoint::formats::Unsupported> {
        Dequantized.supports(spec, scheme)
    }
    fn naming(&self) -> ShardNaming {
        Dequantized.naming()
    }
    fn declare(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
        dtype: &dyn Fn(&str) -> Option<Dtype>,
    ) -> Vec<TensorDecl> {
        Dequantized.declare(spec, scheme, dtype)
    }
    fn encode_block(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
        index: usize,
        block: BlockParams,
    ) -> Result<Vec<Encoded>> {
        Dequantized.encode_block(spec, scheme, index, block)
    }
    fn config(&self, spec: &ModelSpec, scheme: &ModelScheme, config: &Value, notes: &ConfigNotes) -> Value {
        Dequantized.config(spec, scheme, config, notes)
    }
    fn side_files(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
        declared: &[TensorDecl],
        blocks: &[BlockSideData],
    ) -> Vec<(String, Vec<u8>)> {
        let mut files = Dequantized.side_files(spec, scheme, declared, blocks);
        files.push((MARK.into(), b"{}".to_vec()));
        files
    }
    fn detect(&self, checkpoint: &Checkpoint) -> bool {
        checkpoint.path().join(MARK).is_file()
    }
    fn scheme(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<ModelScheme> {
        Dequantized.scheme(checkpoint, spec)
    }
    fn expected(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Vec<ExpectedTensor>> {
        Dequantized.expected(checkpoint, spec)
    }
    fn decoder(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Box<dyn Decoder>> {
        Dequantized.decoder(checkpoint, spec)
    }
}

#[test]
fn a_format_from_outside_is_read_where_it_was_added() {
    let formats = Formats::default().with(&FORMAT).unwrap();
    assert_eq!(formats.ids(), ["compressed-tensors", "dequantized", "vllm-ascend", "marked"]);
    let taken = formats.with(&FORMAT).unwrap_err().to_string();
    assert!(taken.contains("\"marked\" belongs to the format"), "{taken}");

    let spec = spec(FloatType::Bf16, false, false);
    let scheme = uniform(&spec, linear(Some(weight(4, true, None)), None));
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("out");
    let blocks = write(&dir, &spec, &FORMAT, &scheme, 7);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    // To who does not know it, it is the format it refines.
    assert_eq!(detect(&checkpoint).unwrap().id(), "dequantized");
    assert_eq!(detect_with(&checkpoint, &formats).unwrap().id(), "marked");
    assert_eq!(check_tensors_with(&checkpoint, &spec, &formats).unwrap().unwrap().id(), "marked");
    let mut source = FolderSource::open_with(checkpoint, spec.clone(), &formats).unwrap();
    assert_eq!(source.format().unwrap().id(), "marked");
    assert_eq!(source.block(1).unwrap().norms, blocks[1].norms);

    // No loader has rules for it: it is checked, and nobody is said to load it.
    assert!(judge_plan(&spec, &scheme, &FORMAT).is_empty());
    let report = verify_with(&dir, &spec, Target::Vllm, &formats).unwrap();
    assert_eq!((report.format, report.passed()), ("marked", false));
    let failed: Vec<_> = report.failed().filter(|c| c.severity == Severity::Rule).collect();
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert!(failed[0].detail.starts_with("the format marked is not read by vllm"), "{}", failed[0].detail);
    assert!(report.check("tensors").unwrap().passed && report.check("block-values").unwrap().passed);
    let all = verify_all_with(&dir, &spec, &[], None, &formats).unwrap();
    assert_eq!(all.len(), Target::ALL.len());
    assert!(verify(&dir, &spec, Target::Vllm).unwrap().passed());
}
