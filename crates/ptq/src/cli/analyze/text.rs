//! An analysis for a terminal.

use super::super::progress::seconds;
use super::super::table::{Table, paragraph};
use super::human;
use quant_pipeline::{Analysis, BlockAnalysis, BlocksFrom, LinearAnalysis, Observed, Spread};

/// Rows of a table that is not the ranking; JSON and HTML have all.
const WORST: usize = 10;

pub(super) fn text(analysis: &Analysis) -> String {
    let mut parts = vec![facts(analysis), ranking(analysis).to_string()];
    let (activations, more) = activations(analysis);
    parts.push(format!("activations that are hardest to quantise{more}\n{activations}"));
    if let Some((keys, more)) = keys(analysis) {
        let beyond = match analysis.max_position_embeddings {
            max if max < 32_768 => format!("; the model was made for {max} positions"),
            _ => String::new(),
        };
        parts.push(format!(
            "relative error of keys in the cache, by position of the first token{beyond}{more}\n{keys}"
        ));
    }
    if let Some(lessons) = lessons(analysis) {
        parts.push(lessons);
    }
    let notes: Vec<String> = analysis.notes.iter().map(|note| paragraph(note, 0)).collect();
    parts.push(notes.join("\n"));
    let peak = analysis.peak_memory.map_or_else(String::new, |peak| {
        format!(", peak memory {} (predicted {})", human(peak), human(analysis.cost.memory))
    });
    parts.push(format!("{}{peak}", seconds(analysis.seconds)));
    parts.join("\n\n")
}

fn facts(analysis: &Analysis) -> String {
    let by = match analysis.quantised {
        BlocksFrom::Recipe => "by the recipe, each block alone",
        BlocksFrom::RecipeUntrained => "by the recipe, each block alone and untrained",
        BlocksFrom::Folder => "as the finished output has them",
    };
    format!(
        "model       {}\nrecipe      {}\nsample      {}\nquantised   {by}\nfloat       perplexity {} on {} predicted tokens",
        analysis.model.display(),
        analysis.recipe.join(", "),
        analysis.sample,
        number(analysis.float_perplexity),
        analysis.tokens
    )
}

/// All blocks, those first whose quantisation moves the logits most.
fn ranking(analysis: &Analysis) -> Table {
    let mut table = Table::new(&[
        "block",
        "KL (nats/token)",
        "top-1 (%)",
        "relative MSE",
        "worst linear's",
        "worst linear",
    ]);
    for &index in &analysis.ranking {
        let Some(block) = analysis.blocks.get(index) else { continue };
        let worst = worst_linear(block);
        table.row(vec![
            block.block.to_string(),
            number(block.kl),
            block.top1_agreement.map_or_else(|| "-".into(), |share| format!("{:.2}", 100.0 * share)),
            number(block.relative_mse),
            number(worst.and_then(|linear| linear.relative_mse)),
            worst.map_or_else(|| "-".into(), |linear| linear.module.clone()),
        ]);
    }
    table
}

/// The linear of a block whose output moves most.
pub(super) fn worst_linear(block: &BlockAnalysis) -> Option<&LinearAnalysis> {
    let known = block.linears.iter().filter(|linear| linear.relative_mse.is_some());
    known.max_by(|a, b| a.relative_mse.unwrap_or(0.0).total_cmp(&b.relative_mse.unwrap_or(0.0)))
}

/// The places with the largest kurtosis, and a word on the others.
fn activations(analysis: &Analysis) -> (Table, String) {
    let places = analysis.blocks.iter().flat_map(|block| block.activations.iter().map(move |o| (block, o)));
    let mut places: Vec<(&BlockAnalysis, &Observed)> = places.collect();
    let hard = |observed: &Observed| observed.steps.first().and_then(|s| s.spread.kurtosis).unwrap_or(0.0);
    places.sort_by(|a, b| hard(b.1).total_cmp(&hard(a.1)));
    let more = more(places.len());
    places.truncate(WORST);
    let mut table = Table::new(&["block", "input of", "behind", "max", "99.9 %", "kurtosis", "flatness"]);
    for (block, observed) in places {
        for (row, step) in observed.steps.iter().enumerate() {
            let first = |text: String| if row == 0 { text } else { String::new() };
            let Spread { max, p999, kurtosis, flatness, .. } = step.spread;
            table.row(vec![
                first(block.block.to_string()),
                first(observed.place.name().into()),
                step.after.clone(),
                number(Some(max)),
                number(Some(p999)),
                number(kurtosis),
                number(flatness),
            ]);
        }
    }
    (table, more)
}

/// Where the cache is quantised: the blocks whose keys lose most at the last position.
fn keys(analysis: &Analysis) -> Option<(Table, String)> {
    let mut blocks: Vec<&BlockAnalysis> = analysis.blocks.iter().filter(|b| !b.keys.is_empty()).collect();
    let positions: Vec<String> = blocks.first()?.keys.iter().map(|key| key.position.to_string()).collect();
    let lost =
        |block: &BlockAnalysis| block.keys.last().and_then(|k| k.relative_error).unwrap_or(f64::INFINITY);
    blocks.sort_by(|a, b| lost(b).total_cmp(&lost(a)));
    let more = more(blocks.len());
    blocks.truncate(WORST);
    let header: Vec<&str> = std::iter::once("block").chain(positions.iter().map(|p| &**p)).collect();
    let mut table = Table::new(&header);
    for block in blocks {
        let errors = block.keys.iter().map(|key| number(key.relative_error));
        table.row(std::iter::once(block.block.to_string()).chain(errors).collect());
    }
    Some((table, more))
}

/// What the run of a finished output wrote of its trainings.
fn lessons(analysis: &Analysis) -> Option<String> {
    let steps = analysis.lessons.iter().map(|lesson| lesson.losses.len()).max()?;
    let mut told =
        vec![format!("{} blocks were trained in, up to {steps} steps each", analysis.lessons.len())];
    for lesson in &analysis.lessons {
        let words =
            lesson.repairs.iter().map(|r| format!("repaired: {r}")).chain(lesson.alarms.iter().cloned());
        told.extend(words.map(|words| paragraph(&format!("block {}: {words}", lesson.block), 0)));
    }
    Some(told.join("\n"))
}

fn more(all: usize) -> String {
    if all > WORST { format!(", {WORST} of {all} (--json and --output have all)") } else { String::new() }
}

/// Four digits, whatever the size.
pub(super) fn number(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(0.0) => "0".into(),
        Some(value) if (1e-3..1e5).contains(&value.abs()) => {
            let digits = (3 - value.abs().log10().floor() as i32).max(0) as usize;
            format!("{value:.digits$}")
        }
        Some(value) => format!("{value:.3e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits() {
        for (value, expected) in [
            (0.0, "0"),
            (1.0, "1.000"),
            (0.0123456, "0.01235"),
            (123.456, "123.5"),
            (12_345.6, "12346"),
            (1.5e-7, "1.500e-7"),
            (2e9, "2.000e9"),
        ] {
            assert_eq!(number(Some(value)), expected);
        }
        assert_eq!(number(None), "-");
    }
}
