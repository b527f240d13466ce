//! Repository chores: `cargo xtask COMMAND`.
#![forbid(unsafe_code)]

mod arrows;
mod bindings;
mod circles;
mod files;
mod house;
mod long;
mod map;
mod package;
mod scan;
mod stability;
mod survive;
mod text;
mod verdict;

use std::path::Path;
use std::process::ExitCode;

/// A chore: looks at the repository and says what it found.
type Chore = fn(&Path) -> Result<Findings, String>;

/// What a chore found.
#[derive(Debug, Default)]
struct Findings {
    /// What was looked at, for the last line.
    summary: String,
    /// Worth knowing, no reason to fail.
    notices: Vec<String>,
    /// Reasons to fail.
    faults: Vec<String>,
}

/// All commands with what they do.
static COMMANDS: &[(&str, &str, Chore)] = &[
    (
        "check-deps",
        "crate arrows, import circles, unsafe code, inherited settings, file sizes",
        house::check_deps,
    ),
    ("survive", "kills 300 runs at random moments, resumes them and compares the outputs", survive::survive),
    (
        "long",
        "every row of the official figures, every prediction of memory: tests in their long form",
        long::long,
    ),
    (
        "stability",
        "FlatQuant at 4 bits from ten seeds and under stress, against its bounds",
        stability::stability,
    ),
    (
        "verdict",
        "compares predictions without decoding with decoded answers of 1000 fresh items; needs python3",
        verdict::verdict,
    ),
    ("map", "runs the study of the embedded model, and renews its picture in README", map::map),
    ("package", "packs every published crate and builds it from its package, offline", package::package),
    (
        "bindings",
        "makes the binding of CANN from crates/ascend-kernels/cann.h; needs libclang",
        bindings::write,
    ),
    (
        "check-bindings",
        "compares the binding of CANN with its header; skipped without libclang",
        bindings::check,
    ),
    ("check-text", "home paths and unfinished-work markers in tracked files", text::check_text),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name] = arguments.as_slice() else {
        println!("cargo xtask COMMAND\n");
        for (name, what, _) in COMMANDS {
            println!("  {name:14} {what}");
        }
        return if arguments.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) };
    };
    let Some((name, _, chore)) = COMMANDS.iter().find(|(known, ..)| known == name) else {
        let known: Vec<&str> = COMMANDS.iter().map(|c| c.0).collect();
        eprintln!("error: unknown command {name:?}; commands: {}", known.join(", "));
        return ExitCode::from(2);
    };
    // The manifest of this crate lies one folder below the root, wherever the command is called from.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    match chore(root) {
        Ok(findings) => {
            findings.notices.iter().for_each(|notice| println!("notice: {notice}"));
            findings.faults.iter().for_each(|fault| eprintln!("error: {fault}"));
            println!("{name}: {}, {} faults", findings.summary, findings.faults.len());
            if findings.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {name}: {error}");
            ExitCode::FAILURE
        }
    }
}
