//! Reports: CSV, Markdown, and one HTML file that needs nothing else.

mod chart;
mod html;
mod markdown;
mod picture;
mod tables;

pub(crate) use html::html;
pub(crate) use markdown::markdown;
pub(crate) use picture::picture;

use crate::results::{ModelResults, Status, StudyResults, VariantResults};
use crate::run::form_of;

/// A number, or a dash.
fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// Why a row has no figures, in a line.
fn reason(row: &VariantResults) -> Option<String> {
    let state = match &row.status {
        Status::Ok => return None,
        Status::Illegal(_) => "not possible",
        Status::NotFinite(_) => "not finite in calibration",
        Status::Failed(_) => "failed",
    };
    Some(format!("{state}: {}", row.status.reason().unwrap_or_default()))
}

/// Why numbers of a model's rows are missing or not what they should be.
fn problems(model: &ModelResults) -> Vec<String> {
    let of = |row: &VariantResults| {
        let unfinished = Some(&row.missing).filter(|missing| !missing.is_empty());
        let unfinished = unfinished.map(|missing| format!("not finished: {}", missing.join(", ")));
        let title = row.title();
        row.problems
            .iter()
            .cloned()
            .chain(unfinished)
            .map(move |problem| format!("{title}: {problem}"))
            .collect::<Vec<_>>()
    };
    model.variants.iter().flat_map(of).collect()
}

/// One line for every row and figure: model, recipe, method, bits, weight_bits, execution, task or column, metric, value. Numbers that do
/// not exist are empty.
pub(crate) fn csv(results: &StudyResults) -> String {
    let mut text = "model,recipe,method,bits,weight_bits,execution,column,metric,value,note\n".to_owned();
    for model in &results.models {
        for row in &model.variants {
            let mut line = |column: &str, metric: &str, value: Option<f64>, note: &str| {
                let fields = [
                    model.model.as_str(),
                    &row.recipe,
                    &row.method,
                    &row.bits,
                    &row.weight_bits.map_or_else(String::new, |bits| bits.to_string()),
                    &row.execution,
                    column,
                    metric,
                    &value.map_or_else(String::new, |value| value.to_string()),
                    note,
                ]
                .map(quoted);
                text.push_str(&fields.join(","));
                text.push('\n');
            };
            if let Some(reason) = reason(row) {
                line("", "status", None, &reason);
                continue;
            }
            for (column, figure) in results.columns.iter().zip(&row.columns) {
                line(&column.name, "accuracy", figure.value, "");
                if figure.deviation.is_some() {
                    line(&column.name, "deviation", figure.deviation, "");
                }
            }
            for figures in &row.texts {
                line(&figures.task, "perplexity", figures.perplexity, "");
                line(&figures.task, "kl", figures.kl, "");
                line(&figures.task, "top1_agreement", figures.top1_agreement, "");
                line(&figures.task, "top5_agreement", figures.top5_agreement, "");
                if let Some(words) = figures.unknown_words {
                    line(&figures.task, "unknown_words", Some(words as f64), &form_of(words));
                }
            }
            line("", "average", row.average, "");
            if let Some(loss) = &row.loss {
                line("", "drop", Some(loss.drop), &loss.verdict);
                line("", "p", Some(loss.p), "");
            }
            line("", "collapsed", Some(row.signs.collapsed as f64), &format!("of {} answers", row.answers));
            line("", "predicted_drop", row.prediction.as_ref().and_then(|p| p.drop), "");
            for problem in &row.problems {
                line("", "problem", None, problem);
            }
        }
    }
    text
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}
