//! What a training pass refuses, and the words for it.

use super::Case;
use crate::common::spec;
use ndarray::Array2;
use quant_core::{ActRule, Bits, EntryQuant, KvQuant};
use quant_graph::{BlockTraining, BoxError, EffectiveWeight, EffectiveWeights, Insert, LinearId, Site, Spot};
use quant_kernels::Par;
use quant_model::{BlockTrainer, ModelError};
use std::error::Error;

/// Fails where it stands.
struct Broken(Spot, &'static str);

impl Insert<f32> for Broken {
    fn covers(&self, spot: Spot) -> bool {
        spot == self.0
    }
    fn forward(&mut self, _: Spot, x: Array2<f32>, _: bool, _: Par) -> Result<Array2<f32>, BoxError> {
        match self.1 {
            "forward" => Err("no inverse".into()),
            "shape" => Ok(x.reversed_axes()),
            _ => Ok(x),
        }
    }
    fn backward(&mut self, _: Spot, _: Array2<f32>, _: Par) -> Result<Array2<f32>, BoxError> {
        Err("no tape".into())
    }
}

/// An error with its causes.
fn told(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told += &format!(": {error}");
        cause = error.source();
    }
    told
}

#[test]
fn what_does_not_fit_is_named() {
    let spec = spec("Qwen2ForCausalLM");
    let mut case = Case::<f32>::new(&spec, &[4, 5], 14);
    let forward = |x: &Array2<f32>, starts: &[usize], with: &EffectiveWeights<'_, f32>, broken: Broken| {
        case.with_trainer(|t| {
            let mut broken = broken;
            told(&t.forward(x.view(), starts, with, &mut broken, Par::Seq).unwrap_err())
        })
    };
    let (with, none) = (case.effective(), Broken(Spot::Query, ""));
    let message = forward(&case.x, &case.starts, &with, Broken(Spot::Key, "forward"));
    assert_eq!(
        message,
        "a training pass of block 0 could not be run: block 0: what is inserted at Key failed: no inverse"
    );
    let message = forward(&case.x, &case.starts, &with, Broken(Spot::Site(Site::MlpInput), "shape"));
    assert!(
        message.contains("inserted at Site(MlpInput): expected shape [9, 32], found [32, 9]"),
        "{message}"
    );
    let message = forward(&Array2::zeros((9, 31)), &case.starts, &with, none);
    assert!(message.contains("residual stream: expected shape [9, 32], found [9, 31]"), "{message}");
    for starts in [&[][..], &[0, 4], &[1, 9], &[0, 5, 4, 9]] {
        let message = forward(&case.x, starts, &with, Broken(Spot::Query, ""));
        assert!(message.contains("starts of sequences"), "{message}");
    }
    let mut fewer = case.effective();
    fewer.remove(&LinearId::O);
    let message = forward(&case.x, &case.starts, &fewer, Broken(Spot::Query, ""));
    assert!(message.contains("model.layers.0.self_attn.o_proj has no weight"), "{message}");
    let wrong = case.weights[&LinearId::K].0.view();
    fewer.insert(LinearId::O, EffectiveWeight { weight: wrong, bias: None });
    let message = forward(&case.x, &case.starts, &fewer, Broken(Spot::Query, ""));
    assert!(message.contains("o_proj: expected shape [32, 32], found [16, 32]"), "{message}");

    let message = case.with_trainer(|t| {
        let mut broken = Broken(Spot::Value, "backward");
        let record = |broken: &mut Broken| t.record(case.x.view(), &case.starts, &with, broken, Par::Seq);
        let (_, tape) = record(&mut broken).unwrap();
        let short = told(&tape.backward(Array2::zeros((8, 32)), &mut broken, Par::Seq).unwrap_err());
        assert!(short.contains("gradient of the output: expected shape [9, 32], found [8, 32]"), "{short}");
        let (_, tape) = record(&mut broken).unwrap();
        told(&tape.backward(Array2::zeros((9, 32)), &mut broken, Par::Seq).unwrap_err())
    });
    assert!(message.contains("inserted at Value failed: no tape"), "{message}");

    let bits = Bits::new(4).unwrap();
    let kv = EntryQuant::TokenHead { bits, rule: ActRule::Asymmetric, clip_ratio: 1.0.into() };
    drop(with);
    case.block.set_kv(Some(KvQuant::both(kv))).unwrap();
    let rope = |n| &case.tables[&n];
    let refused = BlockTrainer::new(&case.block, &rope, EffectiveWeights::new()).unwrap_err();
    assert!(matches!(refused, ModelError::Part { .. }));
    assert!(
        refused.to_string().contains("put") || refused.to_string().contains("insert at keys"),
        "{refused}"
    );
}
