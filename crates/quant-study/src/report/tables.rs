//! Tables of a report, whatever it is written in.

use super::number;
use crate::blame::Regained;
use crate::results::ModelResults;
use serde::Serialize;

/// A table with what it is about.
#[derive(Serialize)]
pub(super) struct Table {
    pub(super) title: &'static str,
    pub(super) note: &'static str,
    pub(super) head: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
}

/// Those that have rows. Speeds differ from run to run and are not among them.
pub(super) fn tables(model: &ModelResults) -> Vec<Table> {
    let mut tables = Vec::new();
    let mut add = |title, note, head: &[&'static str], rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            tables.push(Table { title, note, head: head.to_vec(), rows });
        }
    };
    let texts = model.variants.iter().flat_map(|v| {
        v.texts.iter().map(move |t| {
            let percent = t.top1_agreement.map(|share| 100.0 * share);
            vec![v.title(), t.task.clone(), number(t.perplexity, 4), number(t.kl, 6), number(percent, 2)]
        })
    });
    add(
        "Texts",
        "",
        &["recipe", "text", "perplexity", "KL (nats/token)", "top-1 agreement (%)"],
        texts.collect(),
    );
    let answered = || model.variants.iter().filter(|variant| variant.answers > 0);
    let float = model.variants.iter().find(|row| row.recipe == "float").and_then(|row| row.thought_tokens);
    let float = float.filter(|&tokens| tokens > 0.0);
    let signs = answered().map(|v| {
        let s = &v.signs;
        let counts =
            [v.answers, s.collapsed, s.no_end, s.loops, s.unclosed_thought, s.empty, s.seen_not_given];
        let mut row = vec![v.title()];
        row.extend(counts.map(|count| count.to_string()));
        let longer = v.thought_tokens.zip(float).map(|(own, float)| own / float);
        row.extend([number(v.thought_tokens, 1), number(longer, 2), number(v.same_prefix, 3)]);
        row
    });
    add(
        "How answers break",
        "Answers that show each sign; a broken answer has no end, a loop, an open thought, or nothing behind the thought.",
        &[
            "recipe",
            "answers",
            "collapsed",
            "no end",
            "loop",
            "open thought",
            "empty",
            "right in thought only",
            "tokens of thought",
            "times float",
            "share of tokens as float",
        ],
        signs.collect(),
    );
    let signed = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:+.1}"));
    let predicted = model.variants.iter().filter_map(|v| {
        let p = v.prediction.as_ref()?;
        Some(vec![
            v.title(),
            signed(p.drop),
            signed(v.loss.as_ref().map(|loss| loss.drop)),
            number(Some(p.followed), 1),
            number(p.kl, 5),
            number(p.kl_uncertain, 5),
            number(p.kl_at_departure, 3),
            number(p.kl_growth, 2),
            number(p.end.map(|end| end[0]), 3),
            number(p.end.map(|end| end[1]), 3),
            number(p.early_end.map(|end| end[0]), 5),
            number(p.repeats.map(|again| again[0]), 4),
            number(p.repeats.map(|again| again[1]), 4),
        ])
    });
    add(
        "Without decoding",
        "Read from the float model's own greedy answers. P(repeat): of going on with what stood before where the float model leaves it.",
        &[
            "recipe",
            "predicted drop",
            "drop",
            "followed (%)",
            "KL",
            "KL where uncertain",
            "KL at departure",
            "KL late/early",
            "P(end) at the end",
            "of float",
            "P(end) before",
            "P(repeat)",
            "of float",
        ],
        predicted.collect(),
    );
    let parts = |parts: &[Regained]| {
        parts
            .iter()
            .take(3)
            .map(|p| format!("{} ({})", p.part, number(p.regained, 5)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let causes = model.variants.iter().filter_map(|v| {
        let b = v.blame.as_ref()?;
        Some(vec![
            v.title(),
            number(b.kl, 5),
            parts(&b.blocks),
            parts(&b.linears),
            b.note.clone().unwrap_or_default(),
        ])
    });
    add(
        "Where the loss comes from",
        "KL (nats per token) that is regained when one block, or one linear of the first block, is put back as float.",
        &["recipe", "KL", "blocks that regain most", "linears of the first", "note"],
        causes.collect(),
    );
    tables
}
