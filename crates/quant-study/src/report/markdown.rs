//! A report to be read in a terminal or a repository, with the table of the case study.

use super::{number, reason};
use crate::blame::Regained;
use crate::grid::Grid;
use crate::results::{ModelResults, StudyResults, VariantResults};
use std::fmt::Write;

pub(crate) fn markdown(results: &StudyResults, grid: &Grid) -> String {
    let mut text = format!("# {}\n\n", results.study);
    if !grid.note.is_empty() {
        text += &format!("{}\n\n", grid.note.trim());
    }
    for model in &results.models {
        text += &format!("## {}\n\n", model.model);
        accuracies(&mut text, results, grid, model);
        texts(&mut text, model);
        collapse(&mut text, model);
        predictions(&mut text, model);
        causes(&mut text, model);
    }
    let words: Vec<String> =
        results.wordings.iter().map(|(task, wording)| format!("{task}: {wording}")).collect();
    text += &format!(
        "Wording of prompts: {}.\n\n{}.\n\nMade by {}.\n",
        words.join(", "),
        results.statistics,
        results.version
    );
    text
}

/// A text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn row(text: &mut String, cells: &[String]) {
    text.push_str("| ");
    text.push_str(&cells.iter().map(|c| cell(c)).collect::<Vec<_>>().join(" | "));
    text.push_str(" |\n");
}

fn head(text: &mut String, titles: &[String]) {
    row(text, titles);
    text.push_str(&format!("|{}\n", "---|".repeat(titles.len())));
}

fn name(variant: &VariantResults) -> String {
    if variant.execution == "sim" {
        variant.recipe.clone()
    } else {
        format!("{} ({})", variant.recipe, variant.execution)
    }
}

fn accuracies(text: &mut String, results: &StudyResults, grid: &Grid, model: &ModelResults) {
    let mut titles =
        vec!["recipe".to_owned(), "method".to_owned(), "W-A-KV".to_owned(), "bits/weight".to_owned()];
    titles.extend(results.columns.iter().map(|column| column.name.clone()));
    titles.extend(["Avg.", "Drop", "class"].map(str::to_owned));
    head(text, &titles);
    for variant in &model.variants {
        let mut cells =
            vec![name(variant), variant.method.clone(), variant.bits.clone(), number(variant.weight_bits, 2)];
        if let Some(reason) = reason(variant) {
            cells.extend(results.columns.iter().map(|_| "-".to_owned()));
            cells.extend(["-".to_owned(), "-".to_owned(), reason]);
            row(text, &cells);
            continue;
        }
        for figure in &variant.columns {
            let deviation = figure.deviation.map_or_else(String::new, |d| format!(" ± {d:.2}"));
            cells.push(format!("{}{deviation}", number(figure.value, 2)));
        }
        cells.push(number(variant.average, 2));
        match &variant.loss {
            Some(loss) => {
                cells.push(format!("{:+.2} [{:+.2}, {:+.2}]", loss.drop, loss.interval[0], loss.interval[1]));
                cells.push(loss.verdict.clone());
            }
            None => cells.extend([
                "".to_owned(),
                if variant.missing.is_empty() { String::new() } else { "unfinished".to_owned() },
            ]),
        }
        row(text, &cells);
        let published = grid.published.iter().filter(|p| p.model == model.model && p.row == variant.recipe);
        for published in published {
            let figure =
                |name: &str| published.figures.iter().find(|(column, _)| column == name).map(|(_, v)| *v);
            let mut cells = vec!["  published".to_owned(), String::new(), String::new(), String::new()];
            cells.extend(results.columns.iter().map(|column| number(figure(&column.name), 2)));
            cells.push(number(figure("Avg."), 2));
            cells.push(figure("Drop").map_or_else(String::new, |drop| format!("{drop:+.2}")));
            let others = published.figures.iter().filter(|(name, _)| {
                !["Avg.", "Drop"].contains(&name.as_str()) && !results.columns.iter().any(|c| c.name == *name)
            });
            cells.push(others.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", "));
            row(text, &cells);
        }
    }
    text.push('\n');
    for variant in &model.variants {
        for problem in &variant.problems {
            let _ = writeln!(text, "- {}: {problem}", name(variant));
        }
        if !variant.missing.is_empty() {
            let _ = writeln!(text, "- {}: not finished: {}", name(variant), variant.missing.join(", "));
        }
    }
    text.push('\n');
}

fn texts(text: &mut String, model: &ModelResults) {
    if model.variants.iter().all(|variant| variant.texts.is_empty()) {
        return;
    }
    head(
        text,
        &["recipe", "text", "perplexity", "KL (nats/token)", "top-1 agreement (%)"].map(str::to_owned),
    );
    for variant in &model.variants {
        for figures in &variant.texts {
            let percent = figures.top1_agreement.map(|share| 100.0 * share);
            row(
                text,
                &[
                    name(variant),
                    figures.task.clone(),
                    number(figures.perplexity, 4),
                    number(figures.kl, 6),
                    number(percent, 2),
                ],
            );
        }
    }
    text.push('\n');
}

fn collapse(text: &mut String, model: &ModelResults) {
    if model.variants.iter().all(|variant| variant.answers == 0) {
        return;
    }
    let titles = [
        "recipe",
        "answers",
        "collapsed",
        "no end",
        "loop",
        "open thought",
        "empty",
        "right in thought only",
        "tokens of thought",
        "as float, share of tokens",
    ];
    head(text, &titles.map(str::to_owned));
    for variant in model.variants.iter().filter(|variant| variant.answers > 0) {
        let s = &variant.signs;
        let mut cells = vec![name(variant), variant.answers.to_string()];
        cells.extend(
            [s.collapsed, s.no_end, s.loops, s.unclosed_thought, s.empty, s.seen_not_given]
                .map(|n| n.to_string()),
        );
        cells.push(number(variant.thought_tokens, 1));
        cells.push(number(variant.same_prefix, 3));
        row(text, &cells);
    }
    text.push('\n');
}

fn predictions(text: &mut String, model: &ModelResults) {
    if model.variants.iter().all(|variant| variant.prediction.is_none()) {
        return;
    }
    text.push_str("Without decoding, from the float model's own greedy answers:\n\n");
    let titles = [
        "recipe",
        "predicted drop",
        "drop",
        "answers followed (%)",
        "KL",
        "KL where uncertain",
        "KL late/early",
        "P(end) at the end",
        "of float",
        "P(end) before",
    ];
    head(text, &titles.map(str::to_owned));
    for variant in &model.variants {
        let Some(p) = &variant.prediction else { continue };
        let signed = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:+.1}"));
        row(
            text,
            &[
                name(variant),
                signed(p.drop),
                signed(variant.loss.as_ref().map(|loss| loss.drop)),
                format!("{:.1}", p.followed),
                number(p.kl, 5),
                number(p.kl_uncertain, 5),
                number(p.kl_growth, 2),
                number(p.end.map(|e| e[0]), 3),
                number(p.end.map(|e| e[1]), 3),
                number(p.early_end.map(|e| e[0]), 5),
            ],
        );
    }
    text.push('\n');
}

fn causes(text: &mut String, model: &ModelResults) {
    let with = || model.variants.iter().filter_map(|variant| Some((variant, variant.blame.as_ref()?)));
    if with().next().is_none() {
        return;
    }
    text.push_str("Where the loss comes from: KL that is regained when one part is put back as float.\n\n");
    head(text, &["recipe", "KL", "blocks that regain most", "linears of the first", ""].map(str::to_owned));
    let parts = |parts: &[Regained]| {
        let part = |p: &Regained| format!("{} {}", p.part, number(p.regained, 5));
        parts.iter().take(3).map(part).collect::<Vec<_>>().join(", ")
    };
    for (variant, blame) in with() {
        let note = blame.note.clone().unwrap_or_default();
        row(text, &[name(variant), number(blame.kl, 5), parts(&blame.blocks), parts(&blame.linears), note]);
    }
    text.push('\n');
}
