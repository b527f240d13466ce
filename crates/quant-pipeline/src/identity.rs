//! What a job is, as far as an output depends on it: what must be the same for a run to go on where an earlier one broke off.

use crate::PipelineError;
use crate::job::QuantizeJob;
use crate::manifest::{CalibrationFacts, Origin};
use crate::prepare::PreparedJob;
use crate::version::tool;
use quant_checkpoint::{Identity, TensorHash};
use quant_kernels::Level;
use std::time::{SystemTime, UNIX_EPOCH};

/// The layout of a journal's frames. It changes with them; between two releases the hash of the executable tells them apart.
const JOURNAL: u32 = 2;

/// The fields of a job. Threads, memory and place are none of them.
pub(crate) fn identity(job: &QuantizeJob, prepared: &PreparedJob) -> Result<Identity, PipelineError> {
    let mut fields = Identity::new();
    let mut field = |name: &str, value: String| fields.push((name.to_owned(), value));
    field("the journal's version", JOURNAL.to_string());
    field("the program", tool());
    field("the executable", executable());
    field("the instruction set", Level::detect().name().to_owned());
    field("the recipe", hash(job.recipe.source().as_bytes()));
    let tokens = prepared.tokens.as_ref().map(CalibrationFacts::of);
    let data = tokens.map_or_else(
        || "none".to_owned(),
        |facts| {
            let name = job.calibration.as_ref().and_then(|c| c.path().file_name());
            let name = name.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            format!("{} tokens of {name}, {}", facts.tokens, facts.sha256.short())
        },
    );
    field("the calibration data", data);
    // They stand in reports and cards, also where they choose nothing.
    let or_all = |n: Option<usize>| n.map_or_else(|| "not given".to_owned(), |n| n.to_string());
    field("--num-samples", or_all(job.num_samples));
    field("--max-seq-len", or_all(job.max_seq_len));
    field("--seed", job.seed.to_string());
    // Cards and manifests are written in its name.
    let origin = Origin::of(&job.model, prepared.folder.checkpoint.config());
    field("the model's name", origin.base_model.unwrap_or_else(|| "none".to_owned()));
    for (name, value) in prepared.folder.checkpoint.fingerprint()? {
        field(&name, value);
    }
    Ok(fields)
}

fn hash(bytes: &[u8]) -> String {
    TensorHash::of(bytes).short()
}

/// The hash of the program's file: another build may compute other bits.
fn executable() -> String {
    named(std::env::current_exe().and_then(std::fs::File::open).and_then(TensorHash::of_reader))
}

/// A hash, or what is equal to nothing: of a program that cannot be read nobody knows whether it is the same.
fn named(hash: std::io::Result<TensorHash>) -> String {
    hash.map_or_else(
        |error| {
            format!(
                "unknown at {:?} ({error})",
                SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
            )
        },
        |hash| hash.short(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    #[test]
    fn what_is_unknown_equals_nothing() {
        let unknown = || named(Err(ErrorKind::PermissionDenied.into()));
        let first = unknown();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_ne!(first, unknown());
        assert_eq!(named(Ok(TensorHash::of(b"a"))), named(Ok(TensorHash::of(b"a"))));
    }
}
