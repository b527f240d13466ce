//! Tables of a report, whatever it is written in.

use super::number;
use crate::blame::Regained;
use crate::grid::{Grid, Published};
use crate::results::{ModelResults, TextFigures, VariantResults};
use crate::run::form_of;
use serde::Serialize;

/// A table with what it is about.
#[derive(Serialize)]
pub(super) struct Table {
    pub(super) title: &'static str,
    pub(super) note: &'static str,
    pub(super) head: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
}

/// How well each row predicts each text. Published perplexities, where there are any, are those of raw text: beside a tokenised one they
/// would mislead.
fn texts(model: &ModelResults, grid: &Grid) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let mut head = vec![
        "recipe",
        "text",
        "perplexity",
        "KL (nats/token)",
        "top-1 agreement (%)",
        "top-5 agreement (%)",
        "published",
    ];
    let mut rows = Vec::new();
    for v in &model.variants {
        // Servers give no logits.
        let compared = |value: Option<f64>, digits: usize| {
            if v.execution == "server" { "not available".to_owned() } else { number(value, digits) }
        };
        for t in &v.texts {
            let percent = |share: Option<f64>| compared(share.map(|share| 100.0 * share), 2);
            let form = t.unknown_words.map_or_else(String::new, |words| format!(" ({})", form_of(words)));
            rows.push(vec![
                v.title(),
                format!("{}{form}", t.task),
                number(t.perplexity, 4),
                compared(t.kl, 6),
                percent(t.top1_agreement),
                percent(t.top5_agreement),
                published(model, grid, v, t),
            ]);
        }
    }
    if rows.iter().all(|row| row.last().is_none_or(String::is_empty)) {
        head.pop();
        rows.iter_mut().for_each(|row| drop(row.pop()));
    }
    (head, rows)
}

/// What was published of a text on a row.
fn published(model: &ModelResults, grid: &Grid, row: &VariantResults, text: &TextFigures) -> String {
    let title = row.title();
    let figure = |published: &Published| {
        let figure = published.figure(&text.task)?;
        let label = &published.label;
        Some(if label.is_empty() { figure.to_string() } else { format!("{figure} ({label})") })
    };
    let figures: Vec<String> = grid.published_for(&model.model, &title).filter_map(figure).collect();
    match text.unknown_words {
        Some(words) if words > 0 && !figures.is_empty() => "of raw text: not comparable".to_owned(),
        _ => figures.join(", "),
    }
}

/// Those that have rows. Speeds differ from run to run and are not among them.
pub(super) fn tables(model: &ModelResults, grid: &Grid) -> Vec<Table> {
    let mut tables = Vec::new();
    let mut add = |title, note, head: &[&'static str], rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            tables.push(Table { title, note, head: head.to_vec(), rows });
        }
    };
    let (head, rows) = texts(model, grid);
    add("Texts", "", &head, rows);
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
