//! An analysis as one HTML file: text, tables and drawings, light or dark as the reader prefers, without anything from elsewhere.

use super::Failure;
use super::text::{number, worst_linear};
use crate::cli::html::{document, escaped, hex};
use crate::cli::plots::{self, Axes, BROKEN, RAMP, SERIES};
use quant_pipeline::{Analysis, BlockAnalysis, Observed, Place, Spread, Trace};
use std::collections::BTreeSet;

/// Columns of cells that a trace is drawn in.
const CELLS: usize = 120;

/// The whole file.
pub(super) fn page(analysis: &Analysis) -> Result<String, Failure> {
    let name = analysis.model.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy());
    let title = format!("{name}: {}", analysis.recipe.join(", "));
    let body = [
        facts(analysis),
        sensitivity(analysis)?,
        activations(analysis)?,
        keys(analysis)?,
        lessons(&analysis.lessons)?,
        details(analysis),
        list("Notes", &analysis.notes),
        list("Warnings", &analysis.warnings),
    ];
    Ok(document(&title, &body.concat()))
}

fn facts(analysis: &Analysis) -> String {
    let rows = [
        ("model", analysis.model.display().to_string()),
        ("recipe", analysis.recipe.join(", ")),
        ("sample", analysis.sample.clone()),
        (
            "float model",
            format!("perplexity {} on {} tokens", number(analysis.float_perplexity), analysis.tokens),
        ),
        ("made by", analysis.version.clone()),
    ];
    let row = |(what, value): &(&str, String)| {
        format!("<tr><td class=\"w\">{what}</td><td class=\"w\">{}</td></tr>\n", escaped(value))
    };
    format!("<table class=\"facts\">{}</table>\n", rows.iter().map(row).collect::<String>())
}

fn sensitivity(analysis: &Analysis) -> Result<String, Failure> {
    let blocks = &analysis.blocks;
    let effects: Vec<Option<f64>> = blocks.iter().map(|block| block.kl).collect();
    let axes = |y| Axes { x: "block", y, size: (920, 260) };
    let effect = plots::bars(&axes("KL, nats per token"), &effects)?;
    let of = |value: &dyn Fn(&BlockAnalysis) -> Option<f64>| {
        blocks.iter().filter_map(|b| Some((b.block as f64, value(b)?))).collect::<Vec<_>>()
    };
    let moved = [
        (0, of(&|block| block.relative_mse)),
        (1, of(&|block| worst_linear(block).and_then(|linear| linear.relative_mse))),
    ];
    let errors = plots::lines(&axes("relative MSE"), &moved)?;
    let names = ["output of the block", "its worst linear"];
    let rows = analysis.ranking.iter().filter_map(|&index| blocks.get(index)).map(|block| {
        let worst = worst_linear(block);
        vec![
            block.block.to_string(),
            number(block.kl),
            block.top1_agreement.map_or_else(|| "-".into(), |share| format!("{:.2} %", 100.0 * share)),
            number(block.relative_mse),
            number(worst.and_then(|linear| linear.relative_mse)),
            worst.map_or_else(|| "-".into(), |linear| linear.module.clone()),
        ]
    });
    let header = ["block", "KL, nats", "top-1 agreement", "relative MSE", "of its worst linear", ""];
    Ok(format!(
        "<h2>Sensitive blocks</h2>\n<p>KL divergence of the final distribution from that of the float model, where this block alone is \
         quantised; a red bar stands for logits that are not finite.</p>\n{}{}{}{}",
        figure("", &effect, ""),
        legend(if moved[1].1.is_empty() { &names[..1] } else { &names }),
        figure("", &errors, "Relative mean squared error on the float model's activations."),
        table(&header, rows, &[5]),
    ))
}

/// Of every place of the blocks, with the transforms in the order in which they come.
fn activations(analysis: &Analysis) -> Result<String, Failure> {
    let seen = |block: &BlockAnalysis| block.activations.iter().map(|o| o.place).collect::<Vec<_>>();
    let places: BTreeSet<Place> = analysis.blocks.iter().flat_map(seen).collect();
    let mut names: Vec<&str> = Vec::new();
    for step in analysis.blocks.iter().flat_map(|b| &b.activations).flat_map(|o| &o.steps) {
        if !names.contains(&&*step.after) {
            names.push(&step.after);
        }
    }
    let mut page = format!(
        "<h2>Activations</h2>\n<p>At every place where they are quantised, before and behind each transform. Kurtosis is 3 for a normal \
         distribution; flatness is 0 where all channels have the same norm, and below 1.41 where one has everything.</p>\n{}",
        legend(&names)
    );
    for place in places {
        let of = |value: &dyn Fn(&Spread) -> Option<f64>| {
            let line = |(series, name): (usize, &&str)| {
                let point = |block: &BlockAnalysis| {
                    let observed = block.activations.iter().find(|o| o.place == place)?;
                    let step = observed.steps.iter().find(|step| step.after == **name)?;
                    Some((block.block as f64, value(&step.spread)?))
                };
                (series, analysis.blocks.iter().filter_map(point).collect::<Vec<_>>())
            };
            let lines: Vec<plots::Line> = names.iter().enumerate().map(line).collect();
            plots::lines(&Axes { x: "block", y: "", size: (320, 210) }, &lines)
        };
        let drawn = [
            figure("", &of(&|spread| Some(spread.max))?, "largest magnitude"),
            figure("", &of(&|spread| spread.kurtosis)?, "kurtosis"),
            figure("", &of(&|spread| spread.flatness)?, "flatness"),
        ];
        let what = match place {
            Place::Keys | Place::Values => place.name().to_owned(),
            _ => format!("input of {}", place.name()),
        };
        page += &format!("<h3>{what}</h3>\n<div class=\"row\">{}</div>\n", drawn.concat());
    }
    Ok(page)
}

fn keys(analysis: &Analysis) -> Result<String, Failure> {
    let Some(first) = analysis.blocks.iter().find(|block| !block.keys.is_empty()) else {
        return Ok(String::new());
    };
    let positions: Vec<usize> = first.keys.iter().map(|key| key.position).collect();
    let line = |(series, _): (usize, &usize)| {
        let point =
            |block: &BlockAnalysis| Some((block.block as f64, block.keys.get(series)?.relative_error?));
        (series, analysis.blocks.iter().filter_map(point).collect())
    };
    let lines: Vec<plots::Line> = positions.iter().enumerate().map(line).collect();
    let axes = Axes { x: "block", y: "relative error", size: (920, 260) };
    let names: Vec<String> = positions.iter().map(|position| format!("position {position}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Ok(format!(
        "<h2>Keys far from the sample</h2>\n<p>Error of keys in the quantised cache where the sequences of the sample begin at a later \
         position. The model was made for {} positions.</p>\n{}{}",
        analysis.max_position_embeddings,
        legend(&names),
        figure("", &plots::lines(&axes, &lines)?, "")
    ))
}

/// The losses of every step, and what came of them.
fn lessons(lessons: &[Trace]) -> Result<String, Failure> {
    let Some(steps) = lessons.iter().map(|lesson| lesson.losses.len()).max().filter(|&steps| steps > 0)
    else {
        return Ok(String::new());
    };
    // The mean of the logarithms of the steps of a cell, relative to the first one of the block; none where one is not finite.
    let log = |loss: &Option<f64>| loss.filter(|loss| *loss > 0.0).map(f64::log10);
    let cells = |lesson: &Trace| {
        let each = lesson.losses.len().div_ceil(CELLS).max(1);
        let first = lesson.losses.iter().find_map(log).unwrap_or(0.0);
        let mean = |part: &[Option<f64>]| {
            Some(part.iter().map(log).sum::<Option<f64>>()? / part.len() as f64 - first)
        };
        lesson.losses.chunks(each).map(mean).collect::<Vec<_>>()
    };
    let mut rows: Vec<Vec<Option<f64>>> = Vec::new();
    for lesson in lessons {
        rows.resize(rows.len().max(lesson.block + 1), Vec::new());
        rows[lesson.block] = cells(lesson);
    }
    let (least, most) = ends(rows.iter().flatten().flatten().copied().collect());
    let scaled = |v: &Option<f64>| v.map(|v| (v - least) / (most - least).max(1e-9));
    let shades: Vec<Vec<Option<f64>>> = rows.iter().map(|row| row.iter().map(scaled).collect()).collect();
    let size = (920, (90 + 16 * rows.len() as u32).clamp(160, 720));
    let drawn = plots::cells(&Axes { x: "step", y: "block", size }, steps, &shades)?;
    let ramp: Vec<String> = RAMP.iter().map(|colour| hex(*colour)).collect();
    let bar = format!(
        "<p class=\"keys\"><span>loss over that of the first step: {} or less <i style=\"width:160px;height:10px;margin:0 6px;background:linear-gradient(to right,{})\"></i> \
         {} or more</span><span><i style=\"background:{};height:10px\"></i>not finite</span></p>\n",
        number(Some(10_f64.powf(least)).filter(|v| v.is_finite())),
        ramp.join(","),
        number(Some(10_f64.powf(most)).filter(|v| v.is_finite())),
        hex(BROKEN)
    );
    let curves: Vec<plots::Line> = lessons
        .iter()
        .enumerate()
        .map(|(at, lesson)| {
            let epochs = lesson.epochs.iter().enumerate();
            let point = |(epoch, error): (usize, &Option<f64>)| Some((epoch as f64 + 1.0, (*error)?));
            let start = lesson.before.map(|before| (0.0, before));
            (at, start.into_iter().chain(epochs.filter_map(point)).collect())
        })
        .collect();
    let epochs = if lessons.iter().any(|lesson| !lesson.epochs.is_empty()) {
        let drawn = plots::lines(&Axes { x: "epoch", y: "relative error", size: (920, 260) }, &curves)?;
        figure(
            "",
            &drawn,
            "Error of the blocks as they would be deployed, after every epoch; a line is a block.",
        )
    } else {
        String::new()
    };
    let told = |lesson: &Trace| {
        let words = [&lesson.repairs, &lesson.alarms];
        let [repairs, alarms] = words.map(|w| if w.is_empty() { "-".to_owned() } else { w.join("; ") });
        vec![
            lesson.block.to_string(),
            number(lesson.before),
            number(lesson.after),
            lesson.kept.to_string(),
            repairs,
            alarms,
        ]
    };
    let header = ["block", "relative error before", "after", "epoch kept", "repaired", "still wrong"];
    Ok(format!(
        "<h2>Training</h2>\n<p>What the run of the finished output wrote down: the loss of every step in every block.</p>\n{bar}{}{epochs}{}",
        figure("cells", &drawn, ""),
        table(&header, lessons.iter().map(told), &[4, 5]),
    ))
}

/// What 2 % of values are below, and above: one that stands out must not take all shades.
fn ends(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get((share * values.len() as f64) as usize).copied();
    let (least, most) = (at(0.02), at(0.98).or(values.last().copied()));
    least.zip(most).unwrap_or((0.0, 0.0))
}

/// Every number that is only drawn above.
fn details(analysis: &Analysis) -> String {
    let places = analysis.blocks.iter().flat_map(|block| block.activations.iter().map(move |o| (block, o)));
    let steps = places.flat_map(|(block, observed): (_, &Observed)| {
        observed.steps.iter().map(move |step| (block, observed.place, step))
    });
    let activations = steps.map(|(block, place, step)| {
        let Spread { max, median, p99, p999, kurtosis, flatness, .. } = step.spread;
        let numbers = [Some(max), Some(median), Some(p99), Some(p999), kurtosis, flatness];
        let words = [block.block.to_string(), place.name().to_owned(), step.after.clone()];
        words.into_iter().chain(numbers.map(number)).collect()
    });
    let of_activations = table(
        &["block", "input of", "behind", "max", "median", "99 %", "99.9 %", "kurtosis", "flatness"],
        activations,
        &[1, 2],
    );
    let linears = analysis.blocks.iter().flat_map(|block| &block.linears).map(|linear| {
        let numbers = [Some(linear.weight_error), linear.relative_mse].map(number);
        [linear.module.clone(), linear.scheme.clone()].into_iter().chain(numbers).collect()
    });
    let of_linears =
        table(&["linear", "scheme", "weight error", "relative MSE of the output"], linears, &[0, 1]);
    let keys = analysis.blocks.iter().filter(|block| !block.keys.is_empty()).map(|block| {
        let errors = block.keys.iter().map(|key| number(key.relative_error));
        std::iter::once(block.block.to_string()).chain(errors).collect()
    });
    let positions: Vec<String> =
        quant_pipeline::KEY_POSITIONS.iter().map(|position| format!("at {position}")).collect();
    let header: Vec<&str> = std::iter::once("block").chain(positions.iter().map(String::as_str)).collect();
    let of_keys = table(&header, keys, &[]);
    let part = |title: &str, table: &str| format!("<details><summary>{title}</summary>\n{table}</details>\n");
    format!(
        "<h2>All numbers</h2>\n{}{}{}",
        part("Linears", &of_linears),
        part("Activations", &of_activations),
        part("Relative errors of keys", &of_keys)
    )
}

fn figure(class: &str, svg: &str, caption: &str) -> String {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let caption =
        if caption.is_empty() { String::new() } else { format!("<figcaption>{caption}</figcaption>") };
    format!("<figure{class}>{caption}{svg}</figure>\n")
}

fn legend(names: &[&str]) -> String {
    let line = |(i, name): (usize, &&str)| {
        format!("<span><i class=\"s{}\"></i>{}</span>", i % SERIES.len(), escaped(name))
    };
    format!("<p class=\"keys\">{}</p>\n", names.iter().enumerate().map(line).collect::<String>())
}

/// Rows below a header; columns `words` are aligned to the left.
fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>, words: &[usize]) -> String {
    let cell = |tag: &str, (column, text): (usize, &str)| {
        let class = if words.contains(&column) { " class=\"w\"" } else { "" };
        format!("<{tag}{class}>{}</{tag}>", escaped(text))
    };
    let head: String = header.iter().copied().enumerate().map(|c| cell("th", c)).collect();
    let row = |cells: Vec<String>| {
        let cells: String = cells.iter().map(String::as_str).enumerate().map(|c| cell("td", c)).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let rows: String = rows.map(row).collect();
    format!("<div class=\"wide\"><table><tr>{head}</tr>\n{rows}</table></div>\n")
}

fn list(title: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let lines: String = lines.iter().map(|line| format!("<li>{}</li>\n", escaped(line))).collect();
    format!("<h2>{title}</h2>\n<ul>{lines}</ul>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_that_stands_out_takes_no_shades() {
        let mut values: Vec<f64> = (0..200).map(f64::from).collect();
        values[7] = 1e9;
        assert_eq!(ends(values), (4.0, 197.0));
        assert_eq!((ends(vec![3.0]), ends(Vec::new())), ((3.0, 3.0), (0.0, 0.0)));
    }

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escaped("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
        let made = table(&["a", "b"], [vec!["<i>".to_owned(), "1".to_owned()]].into_iter(), &[0]);
        assert!(made.contains("<td class=\"w\">&lt;i&gt;</td><td>1</td>"), "{made}");
    }
}
