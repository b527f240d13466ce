//! What to analyse.

use crate::Recipe;
use quant_data::CalibrationSpec;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// How much of the calibration set an analysis looks at: the first sequences, each cut to a length.
///
/// ```
/// use quant_pipeline::Sample;
///
/// let sample: Sample = "8x256".parse()?;
/// assert_eq!((sample.sequences, sample.tokens), (8, 256));
/// assert_eq!(sample, Sample::default());
/// assert!("8 by 256".parse::<Sample>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Sequences.
    pub sequences: usize,
    /// Tokens of each at most.
    pub tokens: usize,
}

impl Default for Sample {
    fn default() -> Self {
        Self { sequences: 8, tokens: 256 }
    }
}

impl FromStr for Sample {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('x').and_then(|(sequences, tokens)| {
            let (sequences, tokens) = (sequences.parse().ok()?, tokens.parse().ok()?);
            (sequences >= 1 && tokens >= 2).then_some(Self { sequences, tokens })
        });
        parts.ok_or_else(|| {
            format!(
                "expected sequences x tokens, such as {}, at least 1 and 2; found {text:?}",
                Self::default()
            )
        })
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.sequences, self.tokens)
    }
}

/// What to analyse, and with what.
#[derive(Clone, Debug)]
pub struct AnalyzeJob {
    /// Float checkpoint.
    pub model: PathBuf,
    /// What would be done to it.
    pub recipe: Recipe,
    /// Where the sample is from.
    pub calibration: CalibrationSpec,
    /// How much of it is looked at.
    pub sample: Sample,
    /// A finished output of that recipe from that model, whose blocks are analysed in place of those that the recipe makes here.
    pub report: Option<PathBuf>,
    /// Threads, at least 1.
    pub threads: usize,
    /// Memory budget in bytes: activations go to disk to keep it.
    pub memory: Option<u64>,
    /// Folder for activations on disk; that of the system for temporary files unless set.
    pub spill: Option<PathBuf>,
}

impl AnalyzeJob {
    /// A job with everything else as `ptq analyze` has it: the default sample, no finished output, as many threads as the machine
    /// has, no memory budget.
    ///
    /// ```
    /// use quant_pipeline::{AnalyzeJob, Recipe, Silent, prepare_analysis};
    /// use quant_data::CalibrationSpec;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-reasoner");
    /// let calibration = CalibrationSpec::parse(&format!("{model}/tasks/calibration.jsonl"))?;
    /// let recipe = Recipe::parse("version: 1\nmodifiers: [rtn: { scheme: W4A8 }]\n")?;
    /// let job = AnalyzeJob { sample: "1x16".parse()?, ..AnalyzeJob::new(model, recipe, calibration) };
    /// let prepared = prepare_analysis(&job)?;
    /// assert_eq!(prepared.cost.block_reads, 6);
    /// let analysis = prepared.run(&mut Silent)?;
    /// assert_eq!((analysis.blocks.len(), analysis.ranking.len()), (6, 6));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(model: impl Into<PathBuf>, recipe: Recipe, calibration: CalibrationSpec) -> Self {
        Self {
            model: model.into(),
            recipe,
            calibration,
            sample: Sample::default(),
            report: None,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory: None,
            spill: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_as_they_are_written() {
        for (sequences, tokens) in [(1, 2), (8, 256), (128, 2048)] {
            let sample = Sample { sequences, tokens };
            assert_eq!(sample.to_string().parse(), Ok(sample));
        }
        for bad in ["", "8", "8x", "x256", "0x256", "8x1", "-8x256", "8X256", "8x256x2", "8 x 256"] {
            let told = bad.parse::<Sample>().unwrap_err();
            assert!(told.contains("8x256") && told.contains(&format!("{bad:?}")), "{told}");
        }
    }
}
