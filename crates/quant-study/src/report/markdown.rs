//! A report to be read in a terminal or a repository, with the table of the case study.

use super::tables::{Table, tables};
use super::{number, problems, reason};
use crate::grid::Grid;
use crate::results::{ModelResults, StudyResults};
use std::fmt::Write;

pub(crate) fn markdown(results: &StudyResults, grid: &Grid) -> String {
    let mut text = format!("# {}\n\n", results.study);
    if !grid.note.is_empty() {
        text += &format!("{}\n\n", grid.note.trim());
    }
    for model in &results.models {
        text += &format!("## {}\n\n", model.model);
        accuracies(&mut text, results, grid, model);
        tables(model, grid).iter().for_each(|found| table(&mut text, found));
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

fn accuracies(text: &mut String, results: &StudyResults, grid: &Grid, model: &ModelResults) {
    let mut titles =
        vec!["recipe".to_owned(), "method".to_owned(), "W-A-KV".to_owned(), "bits/weight".to_owned()];
    titles.extend(results.columns.iter().map(|column| column.name.clone()));
    titles.extend(["Avg.", "Drop", "class"].map(str::to_owned));
    head(text, &titles);
    for variant in &model.variants {
        let mut cells = vec![
            variant.title(),
            variant.method.clone(),
            variant.bits.clone(),
            number(variant.weight_bits, 2),
        ];
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
            None => cells.extend(["".to_owned(), variant.incomplete().to_owned()]),
        }
        row(text, &cells);
        for published in grid.published_for(&model.model, &variant.title()) {
            let figure = |name: &str| published.figure(name);
            let mut cells =
                vec![format!("  {}", published.title()), String::new(), String::new(), String::new()];
            cells.extend(results.columns.iter().map(|column| number(figure(&column.name), 2)));
            cells.push(number(figure("Avg."), 2));
            cells.push(figure("Drop").map_or_else(String::new, |drop| format!("{drop:+.2}")));
            // Those of texts stand in the table of texts.
            let others = published.figures.iter().filter(|(name, _)| {
                !["Avg.", "Drop"].contains(&name.as_str())
                    && !results.columns.iter().any(|c| c.name == *name)
                    && !variant.texts.iter().any(|text| text.task == *name)
            });
            cells.push(others.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", "));
            row(text, &cells);
        }
    }
    text.push('\n');
    problems(model).iter().for_each(|problem| text.push_str(&format!("- {problem}\n")));
    text.push('\n');
}

/// A table below its title and note.
fn table(text: &mut String, table: &Table) {
    let _ = writeln!(text, "### {}\n", table.title);
    if !table.note.is_empty() {
        let _ = writeln!(text, "{}\n", table.note);
    }
    head(text, &table.head.iter().map(|title| (*title).to_owned()).collect::<Vec<_>>());
    table.rows.iter().for_each(|cells| row(text, cells));
    text.push('\n');
}
