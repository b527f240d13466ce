//! The map as one picture, for a page that cannot be styled.

use super::chart::escaped;
use super::{number, reason};
use crate::results::{ModelResults, StudyResults, VariantResults};
use std::fmt::Write;

const ROW: usize = 22;
const NAME: usize = 190;
const BITS: usize = 62;
const CELL: usize = 84;
const HEAD: usize = 34;

/// Rows by columns of the first model, each cell in the colour of what it lost; empty without a model.
pub(crate) fn picture(results: &StudyResults) -> String {
    let Some(model) = results.models.first() else { return String::new() };
    let columns: Vec<&str> =
        results.columns.iter().map(|column| column.name.as_str()).chain(["Avg."]).collect();
    let width = NAME + BITS + CELL * columns.len() + 96;
    let height = HEAD + ROW * model.variants.len() + 14;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"#1c2024\"><rect width=\"{width}\" height=\"{height}\" \
         fill=\"#ffffff\"/>"
    );
    let text = |svg: &mut String, x: usize, y: usize, anchor: &str, words: &str| {
        let _ = write!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>", escaped(words));
    };
    text(&mut svg, 8, 22, "start", &model.model);
    text(&mut svg, NAME + BITS / 2, 22, "middle", "bits");
    for (at, title) in columns.iter().enumerate() {
        let short = title.strip_prefix("tiny-").unwrap_or(title);
        text(&mut svg, NAME + BITS + CELL * at + CELL / 2, 22, "middle", short);
    }
    for (at, variant) in model.variants.iter().enumerate() {
        let top = HEAD + ROW * at;
        let name = variant.title();
        text(&mut svg, 8, top + 15, "start", &name);
        text(&mut svg, NAME + BITS / 2, top + 15, "middle", &number(variant.weight_bits, 2));
        for (column, (value, loss)) in values(model, variant).into_iter().enumerate() {
            let left = NAME + BITS + CELL * column;
            let _ = write!(
                svg,
                "<rect x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\" fill=\"{}\"/>",
                CELL - 2,
                ROW - 2,
                colour(loss)
            );
            text(&mut svg, left + CELL / 2, top + 15, "middle", &number(value, 1));
        }
        let end = NAME + BITS + CELL * columns.len() + 8;
        let class = match (reason(variant), &variant.loss) {
            (Some(_), _) => "no figures".to_owned(),
            (None, Some(loss)) if loss.verdict == loss.class => loss.class.clone(),
            (None, Some(loss)) => format!("{}?", loss.class),
            (None, None) => String::new(),
        };
        text(&mut svg, end, top + 15, "start", &class);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Every column and the average: the figure, and what it lost.
fn values(model: &ModelResults, variant: &VariantResults) -> Vec<(Option<f64>, Option<f64>)> {
    let of = |variant: &VariantResults| {
        let columns = variant.columns.iter().map(|column| column.value);
        columns.chain([variant.average]).collect::<Vec<_>>()
    };
    let float = model.variants.iter().find(|v| v.recipe == "float").map(of).unwrap_or_default();
    let own = of(variant);
    own.iter()
        .enumerate()
        .map(|(at, &own)| (own, float.get(at).copied().flatten().zip(own).map(|(a, b)| a - b)))
        .collect()
}

/// From white to red over a loss of 25 points, to green for a gain; grey where there is nothing.
fn colour(loss: Option<f64>) -> String {
    let Some(loss) = loss else { return "#eceef1".to_owned() };
    let share = (loss.abs() / 25.0).clamp(0.0, 1.0);
    let far = if loss > 0.0 { [226.0, 88.0, 88.0] } else { [88.0, 178.0, 120.0] };
    let mix = |to: f64| (246.0 + (to - 246.0) * share).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(far[0]), mix(far[1]), mix(far[2]))
}
