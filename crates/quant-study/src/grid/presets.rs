//! Grids that ship with the library: the files of `studies/` at the top of the repository.

use super::Grid;
use crate::StudyError;

/// A grid with a name.
#[derive(Debug)]
pub struct StudyPreset {
    /// Its name on the command line.
    pub name: &'static str,
    /// The YAML, beginning with a comment that says what it is.
    pub text: &'static str,
}

impl StudyPreset {
    /// The opening comment as one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let lines = self.text.lines().take_while(|line| line.starts_with('#'));
        lines.map(|line| line.trim_start_matches(['#', ' '])).collect::<Vec<_>>().join(" ")
    }
}

/// All grids of this crate, alphabetical.
pub static STUDIES: &[&StudyPreset] = &[
    &StudyPreset { name: "case-study", text: include_str!("../../studies/case-study.yaml") },
    &StudyPreset { name: "case-study-int8", text: include_str!("../../studies/case-study-int8.yaml") },
    &StudyPreset { name: "case-study-qa", text: include_str!("../../studies/case-study-qa.yaml") },
    &StudyPreset { name: "openpangu", text: include_str!("../../studies/openpangu.yaml") },
    &StudyPreset { name: "tiny", text: include_str!("../../studies/tiny.yaml") },
    &StudyPreset { name: "tiny-short", text: include_str!("../../studies/tiny-short.yaml") },
];

/// The grid of a preset.
///
/// # Errors
/// [`StudyError::NoPreset`] naming the nearest one.
pub fn study_preset(name: &str) -> Result<Grid, StudyError> {
    let found = STUDIES.iter().find(|preset| preset.name == name).ok_or_else(|| {
        let known: Vec<&str> = STUDIES.iter().map(|preset| preset.name).collect();
        let nearest = quant_core::nearest(name, &known).map(str::to_owned);
        StudyError::NoPreset { name: name.to_owned(), nearest, known: known.join(", ") }
    })?;
    Grid::parse(found.text, &format!("the study {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_study_that_ships_is_read() {
        for preset in STUDIES {
            let grid = study_preset(preset.name).unwrap_or_else(|e| panic!("{}: {e}", preset.name));
            assert!(!preset.summary().is_empty() && !grid.models.is_empty() && !grid.tasks.is_empty());
        }
        let wrong = study_preset("tinny").unwrap_err().to_string();
        assert!(wrong.contains("did you mean \"tiny\"?"), "{wrong}");
    }
}
