//! The table of measurements in a model card, and how a finished folder gets it.

use crate::PipelineError;
use crate::evaluate::{EvalJob, EvalOutcome};
use quant_checkpoint::{MARKER, parse_strict_json};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What frames the table, so that it can be found again.
const BEGIN: &str = "<!-- measurements: begin -->";
const END: &str = "<!-- measurements: end -->";
const HEAD: &str = "| data | reference | perplexity | of the reference | KL divergence | top-1 agreement | tokens |\n\
                    |---|---|---|---|---|---|---|\n";
/// Cards beyond this size are not of this program.
const CARD_BYTES: u64 = 16 << 20;

/// The section with these rows.
pub(super) fn section(rows: &[String]) -> String {
    let table = if rows.is_empty() {
        "Not measured: `ptq eval --model . --text FILE --card` writes the results here.\n".to_owned()
    } else {
        rows.iter().fold(HEAD.to_owned(), |table, row| table + row + "\n")
    };
    format!("## Quality\n\n{BEGIN}\n\n{table}\n{END}\n")
}

/// The model card of a finished folder of this program.
#[derive(Debug)]
pub struct Card {
    path: PathBuf,
    text: String,
}

impl Card {
    /// The card of a folder, before anything is measured.
    ///
    /// # Errors
    /// [`PipelineError::Usage`] for a folder that this program did not write, or did not finish;
    /// [`PipelineError::Io`] for a card that cannot be read.
    pub fn open(folder: &Path) -> Result<Self, PipelineError> {
        let refuse = |why: &str| {
            Err(PipelineError::Usage(format!(
                "--card rewrites the README.md of a finished folder of this program, and {} {why}; leave --card away, or \
                 give the output of `ptq quantize`",
                folder.display()
            )))
        };
        if folder.join(MARKER).symlink_metadata().is_ok() {
            return refuse("is unfinished");
        }
        let manifest = std::fs::read(folder.join("manifest.json")).ok();
        let manifest = manifest.and_then(|bytes| parse_strict_json("manifest.json", &bytes).ok());
        let tool = manifest.as_ref().and_then(|m| m.get("tool")?.as_str());
        if !tool.is_some_and(|tool| tool.starts_with("ptq ")) {
            return refuse("has no manifest.json of it");
        }
        let path = folder.join("README.md");
        match path.symlink_metadata() {
            Ok(meta) if meta.is_file() && meta.len() <= CARD_BYTES => {}
            _ => return refuse("has no README.md that is a file"),
        }
        let text = std::fs::read_to_string(&path)
            .map_err(|source| PipelineError::Io { path: path.clone(), source })?;
        Ok(Self { path, text })
    }

    /// Writes a measurement into the card. A row of the same data, reference and arithmetic is replaced, other rows stay. The
    /// card is replaced at once or not at all.
    ///
    /// # Errors
    /// [`PipelineError::Io`].
    pub fn record(self, job: &EvalJob, outcome: &EvalOutcome) -> Result<(), PipelineError> {
        let (key, row) = row(job, outcome);
        let text = with_row(&self.text, &key, row);
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::Builder::new().prefix(".README.md.").tempfile_in(folder)?;
            file.write_all(text.as_bytes())?;
            file.as_file().set_permissions(self.path.metadata()?.permissions())?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            std::fs::File::open(folder)?.sync_all()
        };
        write().map_err(|source| PipelineError::Io { path: self.path.clone(), source })
    }
}

/// One row, and the cells by which it is found again.
fn row(job: &EvalJob, outcome: &EvalOutcome) -> (String, String) {
    let report = &outcome.report;
    let number = |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
    let cell = |text: &str| text.replace('|', r"\|").replace(['\n', '\r'], " ");
    let folder = |path: &PathBuf| {
        let path = path.canonicalize().unwrap_or_else(|_| path.clone());
        path.file_name().map_or_else(|| "?".to_owned(), |n| n.to_string_lossy().into_owned())
    };
    // A card holds no path of the machine it was made on.
    let description = match (job.data.path().to_str(), job.data.path().file_name()) {
        (Some(path), Some(name)) => report.protocol.description.replace(path, &name.to_string_lossy()),
        _ => report.protocol.description.clone(),
    };
    let reference = job.reference.as_ref().map_or_else(|| "-".to_owned(), folder);
    let key = format!("| {} ({}) | {} |", cell(&description), job.compute, cell(&reference));
    let comparison = report.comparison.as_ref();
    let row = format!(
        "{key} {} | {} | {} | {} | {} |",
        number(report.perplexity, 4),
        number(comparison.and_then(|c| c.reference_perplexity), 4),
        number(comparison.and_then(|c| c.kl), 5),
        number(comparison.and_then(|c| c.top1_agreement).map(|a| 100.0 * a), 2)
            + if comparison.is_some() { " %" } else { "" },
        report.tokens
    );
    (key, row)
}

/// A card with one more row, or with another in its place. A card without the section gets it at its end.
fn with_row(text: &str, key: &str, row: String) -> String {
    let frame = text.find(BEGIN).and_then(|begin| {
        let end = begin + text[begin..].find(END)?;
        let heading = text[..begin].trim_end();
        // The section's own heading goes with it.
        let start = heading.strip_suffix("## Quality").map_or(begin, str::len);
        let after = end + END.len();
        Some((start, begin..end, after + usize::from(text[after..].starts_with('\n'))))
    });
    let (before, old, after) = match frame {
        Some((start, table, after)) => (&text[..start], &text[table], &text[after..]),
        None => (text, "", ""),
    };
    let mut rows: Vec<String> =
        old.lines().filter(|l| l.starts_with("| ")).skip(1).map(str::to_owned).collect();
    match rows.iter_mut().find(|r| r.starts_with(key)) {
        Some(old) => *old = row,
        None => rows.push(row),
    }
    let gap = if old.is_empty() && !before.ends_with("\n\n") { "\n" } else { "" };
    format!("{before}{gap}{}{after}", section(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_replaced_or_added_and_the_rest_stays() {
        let card = format!("---\na: b\n---\n\nText.\n\n{}\n## More\n\n| x | y |\n", section(&[]));
        let one = with_row(&card, "| a (f32) | - |", "| a (f32) | - | 1 |".into());
        let two = with_row(&one, "| b (f32) | - |", "| b (f32) | - | 2 |".into());
        let again = with_row(&two, "| a (f32) | - |", "| a (f32) | - | 3 |".into());
        assert!(again.contains("| a (f32) | - | 3 |\n| b (f32) | - | 2 |\n"), "{again}");
        assert!(!again.contains("| 1 |") && !again.contains("Not measured"), "{again}");
        assert!(again.starts_with("---\na: b\n---\n\nText.\n\n## Quality\n\n<!--"), "{again}");
        assert!(again.ends_with("-->\n\n## More\n\n| x | y |\n"), "{again}");
        assert_eq!(with_row(&again, "| a (f32) | - |", "| a (f32) | - | 3 |".into()), again);
        // A card that lost the section.
        let bare = with_row("# Title\n", "| a |", "| a | 1 |".into());
        assert_eq!(bare, format!("# Title\n\n{}", section(&["| a | 1 |".to_owned()])));
    }
}
