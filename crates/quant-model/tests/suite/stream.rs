//! The streamed model.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

use crate::common::{config_with, head, random_model, spec};
use ndarray::{Array1, Array2, s};
use quant_graph::{BlockParams, BlockSource, LinearId, LinearWeight, ModelSpec, Rows, SourceError};
use quant_kernels::{Compute, Par, linear, rms_norm};
use quant_model::{
    Block, InMemoryModel, ModelError, NonFinite, RopeTable, RopeTables, StreamedModel, model_spec,
};
use serde_json::json;
use std::ops::ControlFlow;

const QWEN2: &str = "Qwen2ForCausalLM";

fn sequences() -> Vec<Vec<u32>> {
    vec![(0..40).map(|i| i * 7 % 50).collect(), vec![], vec![49], (0..17).collect()]
}

fn quiet(_: usize, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn equals_the_blocks_one_after_the_other() {
    for tied in [false, true] {
        let spec = model_spec(&config_with(QWEN2, json!({ "tie_word_embeddings": tied }))).unwrap();
        let mut source = random_model(&spec, 1);
        let mut steps = Vec::new();
        let mut model = StreamedModel::new(source.clone(), Compute::F32, Par::Seq);
        let mut count = |done, all| {
            steps.push((done, all));
            ControlFlow::Continue(())
        };
        model.encode(&sequences(), &mut count).unwrap();
        // Four sequences through two blocks; asked more often than there are steps.
        steps.dedup();
        assert_eq!(steps, (0..=8).map(|done| (done, 8)).collect::<Vec<_>>());
        assert_eq!((model.vocab_size(), model.first_non_finite()), (50, None));
        let head = head(&mut source);
        for (i, ids) in sequences().iter().enumerate() {
            let rope = RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, ids.len());
            let mut h = source.embed(ids).unwrap();
            for b in 0..spec.layers {
                let block =
                    Block::<f32>::new(&spec, b, source.block(b).unwrap(), Compute::F32, Par::Seq).unwrap();
                h = block.forward(h, &rope, Par::Seq).unwrap();
            }
            let x = rms_norm(h.view(), source.final_norm().unwrap().view(), spec.norm_eps as f32);
            assert_eq!(*model.hidden(i).unwrap(), x);
            let expected = linear(x.view(), head.view(), None, Compute::F32, Par::Seq);
            assert_eq!(model.logits(i, 0..ids.len()).unwrap(), expected);
        }
    }
}

#[test]
fn threads_panels_and_ranges_change_nothing() {
    // More rows than two panels of the head.
    let spec = model_spec(&config_with(QWEN2, json!({ "vocab_size": 20_000 }))).unwrap();
    let source = random_model(&spec, 2);
    let run = |par: Par, sequences: &[Vec<u32>]| {
        let mut model = StreamedModel::new(source.clone(), Compute::F32, par);
        model.encode(sequences, &mut quiet).unwrap();
        let all = model.logits(0, 0..40).unwrap();
        let part = model.logits(0, 5..9).unwrap();
        for (row, expected) in part.rows().into_iter().zip(all.rows().into_iter().skip(5)) {
            assert_eq!(row, expected);
        }
        // Positions across sequences, tokens across panels.
        if sequences.len() > 1 {
            let mut panel = Array2::from_elem((10, 3000), f32::NAN);
            model.logits_into(35..45, 1000..4000, panel.view_mut()).unwrap();
            assert_eq!(panel.slice(s![..5, ..]), all.slice(s![35.., 1000..4000]));
            assert_eq!(panel.row(5), model.logits(2, 0..1).unwrap().slice(s![0, 1000..4000]));
            assert_eq!(panel.slice(s![6.., ..]), model.logits(3, 0..4).unwrap().slice(s![.., 1000..4000]));
            let mut out = Array2::zeros((10, 10));
            for (positions, tokens) in [(50..60, 0..10), (0..10, 19_995..20_005), (0..9, 0..10)] {
                let error = model.logits_into(positions, tokens, out.view_mut()).unwrap_err();
                assert!(matches!(error, ModelError::Shape { .. }), "{error}");
            }
        }
        all
    };
    let base = run(Par::Seq, &sequences());
    assert_eq!(base.dim(), (40, 20_000));
    for par in [Par::Seq, Par::new(2), Par::new(3)] {
        assert_eq!(run(par, &sequences()), base);
        assert_eq!(run(par, &sequences()[..1]), base, "threads inside the only sequence");
    }
}

#[test]
fn tokens_outside_the_vocabulary() {
    let mut model = StreamedModel::new(random_model(&spec(QWEN2), 3), Compute::F32, Par::Seq);
    let error = model.encode(&[vec![1], vec![2, 50]], &mut quiet).unwrap_err();
    assert_eq!(error.to_string(), "sequence 1, position 1: token 50 is outside the vocabulary of 50");
}

#[test]
fn positions_that_were_not_encoded() {
    let mut model = StreamedModel::new(random_model(&spec(QWEN2), 4), Compute::F32, Par::Seq);
    model.encode(&[vec![1, 2, 3]], &mut quiet).unwrap();
    assert!(model.logits(0, 1..3).is_ok());
    for (sequence, start, end) in [(0, 1, 4), (1, 0, 0), (0, 2, 1)] {
        assert!(matches!(model.logits(sequence, start..end), Err(ModelError::Range { .. })));
    }
}

#[test]
fn a_collapsed_model_reports_where() {
    let spec = spec(QWEN2);
    let mut source = random_model(&spec, 5);
    let down = source.blocks_mut()[1].linears.get_mut(&LinearId::DOWN).unwrap();
    down.weight = LinearWeight::Float(Array2::from_elem((32, 48), f32::MAX));
    let mut model = StreamedModel::new(source.clone(), Compute::F32, Par::new(2));
    model.encode(&sequences(), &mut quiet).unwrap();
    assert_eq!(model.first_non_finite(), Some(NonFinite { block: 1, sequence: 0 }));
    assert!(model.logits(0, 0..40).unwrap().iter().any(|x| !x.is_finite()));

    // A collapse in one sequence leaves the others alone.
    let source = random_model(&spec, 5);
    let mut clean = StreamedModel::new(source.clone(), Compute::F32, Par::Seq);
    clean.encode(&sequences(), &mut quiet).unwrap();
    assert_eq!(clean.first_non_finite(), None);
    let mut broken = PoisonedToken(source);
    let embedded = broken.embed(&[49]).unwrap();
    assert!(embedded[(0, 0)].is_nan());
    let mut poisoned = StreamedModel::new(broken, Compute::F32, Par::Seq);
    let ids = [vec![1, 2], vec![3, 49], vec![49]];
    poisoned.encode(&ids, &mut quiet).unwrap();
    assert_eq!(poisoned.first_non_finite(), Some(NonFinite { block: 0, sequence: 1 }));
    assert!(poisoned.logits(0, 0..2).unwrap().iter().all(|x| x.is_finite()));
}

/// A source whose token 49 embeds to NaN.
struct PoisonedToken(InMemoryModel);

impl BlockSource for PoisonedToken {
    fn spec(&self) -> &ModelSpec {
        self.0.spec()
    }
    fn block(&mut self, index: usize) -> Result<BlockParams, SourceError> {
        self.0.block(index)
    }
    fn embed(&mut self, ids: &[u32]) -> Result<Array2<f32>, SourceError> {
        let mut rows = self.0.embed(ids)?;
        for (mut row, _) in rows.rows_mut().into_iter().zip(ids).filter(|&(_, &id)| id == 49) {
            row.fill(f32::NAN);
        }
        Ok(rows)
    }
    fn final_norm(&mut self) -> Result<Array1<f32>, SourceError> {
        self.0.final_norm()
    }
    fn head(&mut self, rows: Rows) -> Result<Array2<f32>, SourceError> {
        self.0.head(rows)
    }
}

/// A source that fails at one block and lies about the norm.
struct Failing(InMemoryModel, usize);

impl BlockSource for Failing {
    fn spec(&self) -> &ModelSpec {
        self.0.spec()
    }
    fn block(&mut self, index: usize) -> Result<BlockParams, SourceError> {
        if index == self.1 {
            Err(SourceError::new(self.spec().block_prefix(index), "a test", "disk on fire"))
        } else {
            self.0.block(index)
        }
    }
    fn embed(&mut self, ids: &[u32]) -> Result<Array2<f32>, SourceError> {
        self.0.embed(ids)
    }
    fn final_norm(&mut self) -> Result<Array1<f32>, SourceError> {
        Ok(Array1::ones(3))
    }
    fn head(&mut self, rows: Rows) -> Result<Array2<f32>, SourceError> {
        self.0.head(rows)
    }
}

#[test]
fn errors_of_the_source_are_named() {
    let source = random_model(&spec(QWEN2), 6);
    let mut model = StreamedModel::new(Failing(source.clone(), 1), Compute::F32, Par::Seq);
    let error = model.encode(&[vec![1]], &mut quiet).unwrap_err();
    assert_eq!(error.to_string(), "model.layers.1 could not be read from a test");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "disk on fire");
    let mut model = StreamedModel::new(Failing(source, 9), Compute::F32, Par::Seq);
    let error = model.encode(&[vec![1]], &mut quiet).unwrap_err().to_string();
    assert_eq!(error, "model.norm.weight: expected shape [32], found [3]");
}

#[test]
fn models_in_memory_check_their_parts_and_copy_sources() {
    let spec = spec(QWEN2);
    let mut source = random_model(&spec, 7);
    assert_eq!(InMemoryModel::load(&mut source.clone()).unwrap(), source);
    assert!(source.block(2).is_err() && source.embed(&[50]).is_err() && source.head(40..51).is_err());
    let (table, norm) = (Array2::zeros((50, 32)), Array1::ones(32));
    let none = InMemoryModel::new(spec.clone(), vec![], table.clone(), norm.clone(), None);
    assert!(none.unwrap_err().to_string().contains("number of blocks"));
    let blocks = || (0..2).map(|i| random_model(&spec, 7).block(i).unwrap()).collect::<Vec<_>>();
    let headless = InMemoryModel::new(spec.clone(), blocks(), table.clone(), norm.clone(), None);
    assert!(headless.unwrap_err().to_string().contains("lm_head.weight"));
    let narrow = InMemoryModel::new(spec.clone(), blocks(), table.clone(), Array1::ones(31), Some(table));
    assert!(narrow.unwrap_err().to_string().contains("model.norm.weight"));
}

#[test]
fn dynamic_rope_gives_long_sequences_their_own_frequencies() {
    let changes =
        json!({ "max_position_embeddings": 16, "rope_scaling": { "type": "dynamic", "factor": 2.0 } });
    let dynamic = model_spec(&config_with(QWEN2, changes)).unwrap();
    let mut plain = dynamic.clone();
    plain.rope.scaling = quant_graph::RopeScaling::Default;
    let ids: Vec<Vec<u32>> = vec![(0..16).collect(), (0..40).collect()];
    let run = |spec: &ModelSpec, ids: &[Vec<u32>]| {
        let mut model = StreamedModel::new(random_model(spec, 8), Compute::F32, Par::Seq);
        model.encode(ids, &mut quiet).unwrap();
        (0..ids.len()).map(|i| model.hidden(i).unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (a, b) = (run(&dynamic, &ids), run(&plain, &ids));
    assert_eq!(a[0], b[0]);
    assert_ne!(a[1], b[1]);
    assert_eq!(a[1], run(&dynamic, &ids[1..])[0]);
}

#[test]
fn longrope_gives_long_sequences_the_long_factors() {
    let changes = json!({ "max_position_embeddings": 64, "rope_scaling": { "type": "longrope",
        "short_factor": [1, 1, 1, 1], "long_factor": [1, 2, 3, 4], "original_max_position_embeddings": 16 } });
    let spec = model_spec(&config_with(QWEN2, changes)).unwrap();
    let with = |factors: [f64; 4]| {
        let mut spec = spec.clone();
        if let quant_graph::RopeScaling::LongRope { short_factor, long_factor, .. } = &mut spec.rope.scaling {
            (*short_factor, *long_factor) = (factors.to_vec(), factors.to_vec());
        }
        spec
    };
    let ids: Vec<Vec<u32>> = vec![(0..16).collect(), (0..40).collect(), (0..5).collect(), (0..17).collect()];
    let run = |spec: &ModelSpec| {
        let mut model = StreamedModel::new(random_model(spec, 8), Compute::F32, Par::Seq);
        model.encode(&ids, &mut quiet).unwrap();
        (0..ids.len()).map(|i| model.hidden(i).unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (mixed, short, long) = (run(&spec), run(&with([1.0; 4])), run(&with([1.0, 2.0, 3.0, 4.0])));
    assert_eq!([&mixed[0], &mixed[2]], [&short[0], &short[2]]);
    assert_eq!([&mixed[1], &mixed[3]], [&long[1], &long[3]]);
    assert!(short.iter().zip(&long).all(|(short, long)| short != long));
    // Two tables: one for the lengths up to 16, one for all longer ones; 4 cosines and 4 sines a position.
    assert_eq!(RopeTables::bytes(&spec, ids.iter().map(Vec::len)), (16 + 40) * 8 * 4);
}

/// A run ends where whoever watches wants no more: between sequences, and inside one.
#[test]
fn whoever_watches_can_stop_it() {
    let spec = model_spec(&config_with(QWEN2, json!({}))).unwrap();
    for threads in [1, 3] {
        let mut model = StreamedModel::new(random_model(&spec, 1), Compute::F32, Par::new(threads));
        let asked_in_all = {
            let mut asked = 0;
            model
                .encode(&sequences(), &mut |_, _| {
                    asked += 1;
                    ControlFlow::Continue(())
                })
                .unwrap();
            asked
        };
        assert!(asked_in_all > 2 * 8, "asked inside of blocks too: {asked_in_all}");
        for stop in [1, 2, 3, asked_in_all / 2, asked_in_all - 1] {
            let mut asked = 0;
            let error = model.encode(&sequences(), &mut |_, _| {
                asked += 1;
                if asked < stop { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            assert!(matches!(error, Err(ModelError::Stopped)), "{error:?}");
            assert_eq!(asked, stop, "nobody is asked again");
        }
    }
}
