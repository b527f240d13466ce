//! Statistics that runs share: they spare the float stream, and change no bit.

use crate::run::{model, plan, quantise, stopped_and_resumed_with, tokens};
use quant_kernels::Par;
use quant_pipeline::run::{MemorySink, RunOptions, SharedStatistics, run};
use quant_pipeline::{Plan, Shared, Silent};
use std::convert::Infallible;
use std::time::Duration;

fn options(shared: &Shared, plan: &Plan) -> RunOptions {
    let model = || Ok::<_, Infallible>("the model of these tests".to_owned());
    let statistics = SharedStatistics::new(shared, plan, model).unwrap();
    RunOptions { statistics, ..RunOptions::new(Par::Seq) }
}

/// Pairs of recipes, whether the second has a use for what the first left.
const PAIRS: [([&str; 2], &str, bool); 8] = [
    (["awq: { scheme: W4A16g16 }", "awq: { scheme: W3A16g16 }"], "", true),
    (["awq: {}, rtn: { scheme: W4A16g16 }", "awq: {}, gptq: { scheme: W4A16g16 }"], "", true),
    (["smoothquant: {}, rtn: { scheme: W8A8KV8 }", "smoothquant: {}, rtn: { scheme: W4A4 }"], "", true),
    (
        ["smoothquant: {}, rtn: { scheme: W8A8 }", "smoothquant: {}, gptq: { scheme: W4A8 }"],
        "activations: { dynamic: false }",
        true,
    ),
    // Other statistics, a stream that rounding or a rotation has moved, one that is carried anyway.
    (["smoothquant: {}, rtn: { scheme: W8A8 }", "awq: { scheme: W4A16g16 }"], "", false),
    (["gptq: { scheme: W4A16g16 }", "gptq: { scheme: W3A16g16 }"], "", false),
    (["gptaq: { scheme: W4A16g16 }", "gptaq: { scheme: W3A16g16 }"], "", false),
    (
        ["quarot: {}, smoothquant: {}, rtn: { scheme: W8A8 }", "smoothquant: {}, rtn: { scheme: W8A8 }"],
        "",
        false,
    ),
];

#[test]
fn what_is_shared_changes_no_bit() {
    for (pair, rest, useful) in PAIRS {
        let shared = Shared::new(1 << 30);
        for (place, modifiers) in pair.into_iter().enumerate() {
            let plan = plan(modifiers, rest);
            let mut blocks = MemorySink::default();
            let options = options(&shared, &plan);
            let report =
                run(&plan, &mut model(), Some(&tokens()), &mut blocks, &mut Silent, &options).unwrap();
            let (alone, expected) = quantise(modifiers, rest);
            assert_eq!(blocks.blocks(), alone, "{modifiers}");
            let measured = |report: &quant_pipeline::RunReport| {
                report.linears.iter().map(|l| (l.weight_error, l.output_error)).collect::<Vec<_>>()
            };
            assert_eq!(measured(&report), measured(&expected), "{modifiers}");
            let lent = place == 1 && useful;
            assert_eq!(shared.found(), usize::from(lent), "{modifiers}");
            // The stream that statistics were of is not carried at all.
            assert_eq!(report.seconds.contains_key("float statistics"), {
                plan.streams.float && !lent && expected.seconds.contains_key("float statistics")
            });
            let lengths: Vec<usize> = tokens().sequences.iter().map(Vec::len).collect();
            assert!(shared.bytes() > 0 || SharedStatistics::bytes(&plan, &lengths) == 0, "{modifiers}");
        }
    }
}

#[test]
fn what_is_too_large_is_not_shared_and_other_data_is_other_statistics() {
    let plan = plan("awq: { scheme: W4A16g16 }", "");
    let lengths: Vec<usize> = tokens().sequences.iter().map(Vec::len).collect();
    let small = Shared::new(SharedStatistics::bytes(&plan, &lengths) / 2);
    let large = Shared::new(1 << 30);
    let mut fewer = tokens();
    fewer.sequences.pop();
    for tokens in [tokens(), fewer, tokens()] {
        for shared in [&small, &large] {
            let mut blocks = MemorySink::default();
            let options = options(shared, &plan);
            run(&plan, &mut model(), Some(&tokens), &mut blocks, &mut Silent, &options).unwrap();
        }
    }
    assert_eq!((small.bytes(), small.found(), large.found()), (0, 0, 1));
}

/// A run that had the statistics of another wrote no rows of the float stream: who goes on without them makes it again.
#[test]
fn a_run_with_lent_statistics_is_gone_on_with_anywhere() {
    let slow = Duration::from_millis(5100);
    for (modifiers, rest, stop, slow) in [
        ("awq: { scheme: W4A16g16 }", "", 10, Duration::ZERO),
        ("smoothquant: {}, gptq: { scheme: W4A8KV8g16 }", "", 10, Duration::ZERO),
        ("smoothquant: {}, rtn: { scheme: W8A8 }", "", 10, slow),
    ] {
        let plan = plan(modifiers, rest);
        let shared = Shared::new(1 << 30);
        let (with, without) = (options(&shared, &plan), RunOptions::new(Par::Seq));
        let mut blocks = MemorySink::default();
        run(&plan, &mut model(), Some(&tokens()), &mut blocks, &mut Silent, &with).unwrap();
        for options in [[&with, &without], [&with, &with], [&without, &with]] {
            let (first, second, _) = stopped_and_resumed_with(&plan, stop, slow, options);
            assert!(first.records > 0 && first.blocks.len() == 1, "{modifiers}");
            assert_eq!(second.blocks, blocks.blocks(), "{modifiers}");
        }
        assert!(shared.found() > 0, "{modifiers}");
    }
}
