//! Quantised embeddings and heads: which formats hold them, and what their description says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use crate::folders::*;
use quant_checkpoint::formats::{CompressedTensors, Dequantized, Format, VllmAscend};
use quant_checkpoint::{Checkpoint, Dtype, FolderSource, TensorHash};
use quant_core::{ActRule, FloatType};
use quant_graph::{ActOrder, BlockSource as _, ModelScheme, Outer, WeightScheme};

fn with_tables(scheme: ModelScheme, tables: &[(Outer, WeightScheme)]) -> ModelScheme {
    ModelScheme { tables: tables.iter().copied().collect(), ..scheme }
}

#[test]
fn the_description_reads_back_and_takes_a_tied_head_apart() {
    let parent = tempfile::tempdir().unwrap();
    let act_order = ActOrder::Dynamic;
    let head = (Outer::Head, WeightScheme { act_order, ..weight(3, false, Some(8)) });
    let embedding = (Outer::Embedding, weight(8, true, None));
    for (at, (tied, tables)) in
        [(true, vec![head]), (true, vec![embedding]), (false, vec![embedding, head])].into_iter().enumerate()
    {
        let model = spec(FloatType::Bf16, tied, false);
        let scheme = with_tables(uniform(&model, linear(Some(weight(4, true, None)), None)), &tables);
        let stored = scheme.stored(&model);
        assert!(!stored.tied);
        Dequantized.supports(&stored, &scheme).unwrap();
        let dir = parent.path().join(at.to_string());
        write(&dir, &stored, &Dequantized, &scheme, 3);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        assert_eq!(checkpoint.config()["tie_word_embeddings"], false);
        assert_eq!(Dequantized.scheme(&checkpoint, &stored).unwrap(), scheme);
        for table in Outer::TABLES {
            let rounded = scheme.tables.contains_key(&table);
            let dtype = checkpoint.tensor(table.tensor()).unwrap().dtype;
            assert_eq!(dtype == Dtype::F32, rounded, "{table:?} is {dtype}");
        }
        // The folder says what the model is; one that still ties it contradicts itself.
        let mut folder = Folder::load(&dir);
        let tied = quant_graph::ModelSpec { tied: true, ..stored.clone() };
        let text = Dequantized.scheme(&checkpoint, &tied).unwrap_err().to_string();
        assert!(text.contains("a head of its own") && text.contains("ties it"), "{text}");
        let description = folder.json.get_mut("ptq_scheme.json").unwrap();
        description["tables"]["model.norm"] = description["tables"][tables[0].0.module()].clone();
        let other = parent.path().join(format!("{at}-other"));
        folder.save(&other);
        let text = Dequantized.scheme(&Checkpoint::open(&other).unwrap(), &stored).unwrap_err().to_string();
        assert!(text.contains("model.embed_tokens or lm_head") && text.contains("model.norm"), "{text}");
    }
}

/// Without them the file is what it was before there were any, and such files are read.
#[test]
fn nothing_is_said_where_both_are_floats() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("out");
    let model = spec(FloatType::Bf16, true, false);
    let scheme = uniform(&model, linear(Some(weight(4, true, None)), None));
    assert!(scheme.stored(&model) == model);
    write(&dir, &model, &Dequantized, &scheme, 5);
    let folder = Folder::load(&dir);
    assert!(folder.json["ptq_scheme.json"].get("tables").is_none());
    assert!(folder.json["config.json"].get("tie_word_embeddings").is_none());
    let read = Dequantized.scheme(&Checkpoint::open(&dir).unwrap(), &model).unwrap();
    assert_eq!(read.tables, BTreeMap::new());
}

#[test]
fn formats_of_deployments_refuse_them() {
    let model = spec(FloatType::Bf16, false, false);
    let dynamic = |rule| linear(Some(weight(8, true, None)), Some(input(rule, true)));
    for table in Outer::TABLES {
        for (format, rule) in
            [(&VllmAscend as &dyn Format, ActRule::Symmetric), (&CompressedTensors, ActRule::SymmetricFull)]
        {
            let scheme = uniform(&model, dynamic(rule));
            format.supports(&model, &scheme).unwrap();
            let scheme = with_tables(scheme, &[(table, weight(8, true, None))]);
            let text = format.supports(&model, &scheme).unwrap_err().to_string();
            for word in [format.id(), "a quantised", table.module(), "drop its override", "dequantized"] {
                assert!(text.contains(word), "no {word} in {text}");
            }
        }
    }
}

/// The rows of a table come in order and once, and its bytes are hashed on the way; a tied head is the embedding.
#[test]
fn a_table_is_visited_and_hashed_in_one_pass() {
    let parent = tempfile::tempdir().unwrap();
    for tied in [false, true] {
        let dir = parent.path().join(tied.to_string());
        let model = spec(FloatType::Bf16, tied, false);
        let scheme = uniform(&model, linear(Some(weight(4, true, None)), None));
        write(&dir, &model, &Dequantized, &scheme, 5);
        let mut source = FolderSource::open(Checkpoint::open(&dir).unwrap(), model.clone()).unwrap();
        for table in Outer::TABLES {
            let mut next = 0;
            let expected = source.head(0..model.vocab).unwrap();
            let expected = if table == Outer::Head {
                expected
            } else {
                source.embed(&(0..model.vocab as u32).collect::<Vec<_>>()).unwrap()
            };
            source
                .table_by_rows(table, &mut |first, rows| {
                    assert_eq!(first, next);
                    assert_eq!(rows, expected.slice(ndarray::s![first..first + rows.nrows(), ..]));
                    next += rows.nrows();
                    Ok(())
                })
                .unwrap();
            assert_eq!(next, model.vocab);
            let name = model.stored_in(table).tensor();
            let hash = TensorHash::of(&source.checkpoint().read(name).unwrap());
            assert_eq!(source.input_hashes().get(name), Some(&hash));
        }
        assert_eq!(source.input_hashes().len(), if tied { 1 } else { 2 });
    }
}
