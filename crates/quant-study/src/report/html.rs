//! One page with everything: tables, pictures, nothing fetched.

use super::chart::{Axis, Series, chart};
use super::tables::{Table, tables};
use super::{number, problems, reason};
use crate::StudyError;
use crate::grid::Grid;
use crate::ranges::{Extent, Ranges};
use crate::results::{ModelResults, StudyResults, VariantResults};
use minijinja::{AutoEscape, Environment, context};
use serde::Serialize;

const TEMPLATE: &str = include_str!("report.html");

#[derive(Serialize)]
struct Cell {
    text: String,
    title: String,
    /// How much is lost, from -1 to 1 by colour; none where nothing is compared.
    shade: Option<f64>,
}

#[derive(Serialize)]
struct Row {
    recipe: String,
    method: String,
    bits: String,
    weight_bits: String,
    cells: Vec<Cell>,
    average: String,
    drop: String,
    verdict: String,
    /// More of it, shown where the pointer rests.
    why: String,
    published: bool,
}

#[derive(Serialize)]
struct Model {
    name: String,
    rows: Vec<Row>,
    problems: Vec<String>,
    charts: Vec<String>,
    tables: Vec<Table>,
}

pub(crate) fn html(results: &StudyResults, grid: &Grid) -> Result<String, StudyError> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let models: Vec<Model> = results.models.iter().map(|model| page(results, grid, model)).collect();
    let columns: Vec<&str> = results.columns.iter().map(|column| column.name.as_str()).collect();
    let wordings: Vec<String> =
        results.wordings.iter().map(|(task, words)| format!("{task}: {words}")).collect();
    let variables = context! {
        study => results.study, note => grid.note, columns, models, statistics => results.statistics,
        version => results.version, wordings => wordings.join(", "),
    };
    let rendered = environment.render_str(TEMPLATE, variables);
    rendered.map_err(|error| StudyError::Usage(format!("the report cannot be written: {error}")))
}

fn page(results: &StudyResults, grid: &Grid, model: &ModelResults) -> Model {
    let float = model.variants.iter().find(|variant| variant.recipe == "float");
    let mut rows = Vec::new();
    for variant in &model.variants {
        rows.push(row(results, variant, float));
        for published in grid.published_for(&model.model, &variant.title()) {
            let figure = |name: &str| published.figure(name);
            let cell = |text: String| Cell { text, title: String::new(), shade: None };
            rows.push(Row {
                recipe: published.title(),
                method: String::new(),
                bits: String::new(),
                weight_bits: String::new(),
                cells: results.columns.iter().map(|c| cell(number(figure(&c.name), 2))).collect(),
                average: number(figure("Avg."), 2),
                drop: number(figure("Drop"), 2),
                verdict: String::new(),
                why: String::new(),
                published: true,
            });
        }
    }
    let mut tables = tables(model, grid);
    tables.extend(Some(speed(model)).filter(|table| !table.rows.is_empty()));
    Model { name: model.model.clone(), rows, problems: problems(model), charts: charts(model), tables }
}

fn row(results: &StudyResults, variant: &VariantResults, float: Option<&VariantResults>) -> Row {
    let cells = results.columns.iter().enumerate().map(|(index, _)| {
        let figure = &variant.columns[index];
        let whole = float.and_then(|float| float.columns.get(index)).and_then(|figure| figure.value);
        // A loss of 20 points has the full colour.
        let shade = figure
            .value
            .zip(whole)
            .filter(|_| variant.recipe != "float")
            .map(|(own, float)| (((float - own) / 20.0).clamp(-1.0, 1.0) * 75.0).round() / 100.0);
        let deviation = figure.deviation.map_or_else(String::new, |d| format!(" ± {d:.2}"));
        let title =
            figure.interval.map_or_else(String::new, |[low, high]| format!("95 %: {low:.1} to {high:.1}"));
        Cell { text: format!("{}{deviation}", number(figure.value, 2)), title, shade }
    });
    let loss = variant.loss.as_ref();
    Row {
        recipe: variant.title(),
        method: variant.method.clone(),
        bits: variant.bits.clone(),
        weight_bits: number(variant.weight_bits, 2),
        cells: cells.collect(),
        average: number(variant.average, 2),
        drop: loss.map_or_else(String::new, |l| {
            format!("{:+.2} [{:+.2}, {:+.2}]", l.drop, l.interval[0], l.interval[1])
        }),
        verdict: reason(variant)
            .or_else(|| {
                let certain = |loss: &crate::results::Loss| loss.verdict == loss.class;
                loss.map(|loss| {
                    if certain(loss) {
                        loss.class.clone()
                    } else {
                        format!("not distinguishable ({})", loss.class)
                    }
                })
            })
            .unwrap_or_else(|| variant.incomplete().to_owned()),
        why: loss.map_or_else(String::new, |loss| loss.verdict.clone()),
        published: false,
    }
}

/// Rows by method, for the colours.
fn by_method(
    model: &ModelResults,
    value: impl Fn(&VariantResults) -> Option<(f64, f64)>,
    what: &str,
) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for variant in &model.variants {
        let Some(point) = value(variant) else { continue };
        let label = format!("{}: {what} {:.4} at {:.2} bits", variant.title(), point.1, point.0);
        match all.iter_mut().find(|series| series.name == variant.method) {
            Some(series) => {
                series.points.push(point);
                series.labels.push(label);
            }
            None => all.push(Series {
                name: variant.method.clone(),
                points: vec![point],
                labels: vec![label],
                joined: false,
            }),
        }
    }
    all
}

fn charts(model: &ModelResults) -> Vec<String> {
    let bits = || Axis { title: "stored bits per weight".to_owned(), logarithmic: false };
    let accuracy = by_method(model, |v| Some((v.weight_bits?, v.average?)), "average");
    let mut charts = vec![chart(
        &accuracy,
        &bits(),
        &Axis { title: "average accuracy (%)".to_owned(), logarithmic: false },
    )];
    let kl = by_method(model, |v| Some((v.weight_bits?, v.texts.first()?.kl?)), "KL");
    charts.push(chart(
        &kl,
        &bits(),
        &Axis { title: "KL from float (nats per token)".to_owned(), logarithmic: true },
    ));
    let layers: Vec<Series> = model
        .variants
        .iter()
        .filter(|variant| variant.execution == "sim" && !variant.layers.is_empty())
        .map(|variant| {
            let error = |l: &crate::results::LayerError| l.output_error.unwrap_or(l.weight_error);
            Series {
                name: variant.title(),
                points: variant
                    .layers
                    .iter()
                    .enumerate()
                    .map(|(at, layer)| (at as f64, error(layer)))
                    .collect(),
                labels: variant.layers.iter().map(|l| format!("{}: {:.5}", l.module, error(l))).collect(),
                joined: true,
            }
        })
        .collect();
    charts.push(chart(
        &layers,
        &Axis { title: "linear, in the order of execution".to_owned(), logarithmic: false },
        &Axis { title: "relative error of the output".to_owned(), logarithmic: true },
    ));
    charts.push(chart(
        &ranges(model),
        &Axis { title: "place, in the order of execution".to_owned(), logarithmic: false },
        &Axis { title: "largest activation, float and behind transforms".to_owned(), logarithmic: true },
    ));
    let drops: Vec<Series> =
        by_method(model, |v| Some((v.prediction.as_ref()?.drop?, v.loss.as_ref()?.drop)), "drop");
    charts.push(chart(
        &drops,
        &Axis { title: "drop predicted without decoding (points)".to_owned(), logarithmic: false },
        &Axis { title: "drop (points)".to_owned(), logarithmic: false },
    ));
    charts.retain(|chart| !chart.is_empty());
    charts
}

/// The largest activations of the float model, once, and of every row with transforms.
fn ranges(model: &ModelResults) -> Vec<Series> {
    let seen = || model.variants.iter().filter(|variant| !variant.ranges.is_empty());
    // Only a row whose cache is quantised has keys and values; places keep their order without them.
    let of = |name: String, variant: &VariantResults, side: fn(&Ranges) -> Extent| {
        let places = variant.ranges.iter().filter(|seen| !["keys", "values"].contains(&seen.place.as_str()));
        let found = places.enumerate().filter_map(|(at, seen)| {
            let extent = side(seen);
            let label = format!(
                "{name}, block {}, input of {}: largest {}, 99.9 % up to {}, half up to {}, flatness {}",
                seen.block,
                seen.place,
                number(extent.largest, 2),
                number(extent.p999, 2),
                number(extent.median, 3),
                number(extent.flatness, 2)
            );
            Some(((at as f64, extent.largest?), label))
        });
        let (points, labels) = found.unzip();
        Series { name, points, labels, joined: true }
    };
    let float = seen().next().map(|variant| of("float".to_owned(), variant, |seen| seen.float));
    float.into_iter().chain(seen().map(|v| of(v.title(), v, |seen| seen.behind))).collect()
}

/// How fast each row decoded in this run.
fn speed(model: &ModelResults) -> Table {
    let row = |v: &VariantResults| {
        let tokens: usize = v.runs.iter().map(|run| run.new_tokens).sum();
        let seconds: f64 = v.runs.iter().map(|run| run.decode_seconds).sum();
        let first = v.runs.iter().filter_map(|run| run.first_token).reduce(f64::min);
        let rate = (seconds > 0.0).then(|| tokens as f64 / seconds);
        vec![v.title(), tokens.to_string(), number(rate, 0), number(first.map(|s| 1000.0 * s), 1)]
    };
    Table {
        title: "Speed here",
        note: "",
        head: vec!["recipe", "new tokens", "tokens/s", "time to first token (ms)"],
        rows: model.variants.iter().filter(|v| v.answers > 0).map(row).collect(),
    }
}
