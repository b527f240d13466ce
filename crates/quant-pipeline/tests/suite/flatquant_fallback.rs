//! What a block gets whose training cannot be repaired.

use super::flatquant::{ROWS, SHORT, blocks, plan, quantised, recipe};
use crate::common::{distance, logits, model, spec};
use quant_checkpoint::{Target, judge_plan};
use quant_graph::{BlockParams, Clipping, LinearWeight};
use quant_kernels::Par;
use quant_model::InMemoryModel;
use quant_pipeline::{Plan, RunReport};

/// Steps that ruin every attempt.
const RUINOUS: &str = "scheme: W4A4KV4, learning_rate: 1.0, epochs: 2, batch_size: 2";

/// The same for pairs; 80 features have none that the kernel takes.
const RUINOUS_PAIRS: &str = "scheme: W4A4, unpaired: w8a8, learning_rate: 1.0, epochs: 2, batch_size: 2";

/// A block that falls back to eight bits is stored and reported with eight, keeps its transforms, and is nearer to the float one than with
/// four; the plan has said what that costs at most. Where nothing goes wrong the same recipe gives four bits.
#[test]
fn eight_bits_where_training_cannot_be_repaired() {
    let float = model(&spec("Qwen2ForCausalLM", false));
    let expected = logits(float.clone(), ROWS);
    let run_of = |keys: &str| {
        let plan = plan(keys, "", &float);
        let (found, report) = quantised(&plan, &float, Par::Seq);
        (plan, found, report)
    };
    let bits_of = |model: &InMemoryModel| {
        let weights = |block: BlockParams| {
            let bits = block.linears.into_values().map(|linear| match linear.weight {
                LinearWeight::Quantized(weight) => weight.bits().get(),
                _ => panic!("levels"),
            });
            bits.collect::<std::collections::BTreeSet<_>>()
        };
        blocks(model).into_iter().map(weights).collect::<Vec<_>>()
    };
    let (planned, four, kept) = run_of(&format!("{RUINOUS}, fallback: [none]"));
    let of_cache = |plan: &Plan| plan.warnings.iter().any(|told| told.contains("the cache keeps its bits"));
    assert!(planned.worst_bits_per_weight().is_none() && !of_cache(&planned));
    assert!(kept.lessons.iter().all(|l| l.lesson.fallbacks.is_empty() && l.lesson.repairs.len() == 4));
    let (planned, eight, report) = run_of(&format!("{RUINOUS}, fallback: [bits8]"));
    let worst = planned.worst_bits_per_weight().unwrap();
    assert!(worst > planned.bits_per_weight() + 3.9, "{worst}");
    assert!(of_cache(&planned), "{:?}", planned.warnings);
    assert_eq!((bits_of(&four), bits_of(&eight)), (vec![[4].into(); 2], vec![[8].into(); 2]));
    for (index, block) in blocks(&eight).into_iter().enumerate() {
        assert_eq!(block.online.scheme().as_ref(), Some(&planned.scheme.online[index]));
        assert!(report.fell_back(index));
    }
    let known = planned.scheme_with(|index| report.fell_back(index));
    assert_eq!(known, planned.scheme_with(|_| true));
    let total = |report: &RunReport| {
        let bits = report.linears.iter().map(|linear| linear.bits_per_weight);
        bits.sum::<f64>() / report.linears.len() as f64
    };
    assert!(total(&report) > total(&kept) + 3.9 && report.linears.iter().all(|l| l.scheme == "W8A8"));
    let [four, eight] = [four, eight].map(|model| distance(&logits(model, ROWS), &expected));
    assert!(eight < 0.8 * four, "{eight} {four}");

    let (_, calm, report) = run_of(&format!("scheme: W4A4KV4, {SHORT}, fallback: [rotation, bits8]"));
    assert_eq!(bits_of(&calm), vec![[4].into(); 2]);
    assert!(report.lessons.iter().all(|l| l.lesson.fallbacks.is_empty()) && !report.fell_back(0));
}

/// Who says nothing gets eight bits where there are fewer and FlatQuant rounds, without being told what nobody asked for.
#[test]
fn eight_bits_are_allowed_where_there_is_something_to_make_of_them() {
    let float = model(&spec("Qwen2ForCausalLM", false));
    let of = |keys: &str| plan(keys, "", &float);
    let by_default = of("scheme: W4A4KV4");
    assert_eq!(
        by_default.worst_bits_per_weight(),
        of("scheme: W4A4KV4, fallback: [bits8]").worst_bits_per_weight()
    );
    assert!(by_default.fallbacks.iter().all(Option::is_some));
    assert!(!by_default.warnings.iter().any(|told| told.contains("the cache keeps its bits")));
    for keys in [
        "scheme: W8A8KV8",
        "epochs: 2 }, rtn: { scheme: W4A4",
        "scheme: W4A4, fallback: [rotation]",
        "scheme: W4A4, variant: exact",
    ] {
        assert!(of(keys).fallbacks.iter().all(Option::is_none), "{keys}");
    }
}

/// For a kernel that has transforms before four bits alone, a block that falls back is eight bits and nothing else: `W8A8_DYNAMIC`. What has
/// eight bits anyway stays.
#[test]
fn eight_bits_for_a_kernel_have_no_transforms() {
    let float = spec("Qwen2ForCausalLM", false);
    let of = |fallback: &str, format: &str| {
        let keys = format!("{RUINOUS_PAIRS}, fallback: {fallback}");
        Plan::new(&recipe(&keys, &format!("export: {{ format: {format} }}")), &float).unwrap()
    };
    assert!(of("[rotation]", "vllm-ascend").fallbacks.iter().all(Option::is_none));
    let planned = of("[bits8]", "vllm-ascend");
    assert!(
        planned.warnings.iter().any(|told| told.contains("have no transforms")),
        "{:?}",
        planned.warnings
    );
    let worst = planned.scheme_with(|_| true);
    assert!(worst.online.is_empty() && planned.scheme.online.iter().all(|online| online.sites.len() == 3));
    for (_, id, linear) in worst.linears() {
        let (weight, input) = (linear.weight.unwrap(), linear.input.unwrap());
        assert_eq!((weight.bits.get(), input.bits.get(), input.clip_ratio), (8, 8, Clipping::NONE), "{id}");
    }
    let half = planned.scheme_with(|index| index == 1);
    assert!(half.online[1].is_empty() && half.online[0] == planned.scheme.online[0]);
    let verdicts = judge_plan(&planned.spec, &half, planned.recipe.format());
    assert!(verdicts.iter().any(|v| v.target == Target::VllmAscend && v.passes()), "{verdicts:?}");

    let model = model(&float);
    let expected = logits(model.clone(), ROWS);
    let (found, report) = quantised(&planned, &model, Par::Seq);
    for (index, block) in blocks(&found).into_iter().enumerate() {
        assert!(report.fell_back(index) && block.online.is_empty());
        for (id, linear) in &block.linears {
            let input = planned.fallbacks[index].as_ref().unwrap().linears[id].scheme.input.unwrap();
            assert_eq!(linear.input, input.dynamic(), "{id}");
        }
    }
    // Nothing but rounding to eight bits.
    let distance = distance(&logits(found, ROWS), &expected);
    assert!(distance < 0.06, "{distance}");
    // Elsewhere transforms stay before eight bits.
    let kept = of("[bits8]", "dequantized");
    assert_eq!(kept.scheme_with(|_| true).online, kept.scheme.online);
    // Where a block has other bits than the section says, it was asked for, and stays.
    let rest = "overrides: { \"model.layers.1.*\": { rtn: { scheme: W4A8 } } }";
    let plan = Plan::new(&recipe("scheme: W4A4, fallback: [bits8]", rest), &float).unwrap();
    assert!(plan.fallbacks[0].is_some() && plan.fallbacks[1].is_none());
}
