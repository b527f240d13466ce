//! Servers as rows of a study.

use super::server::TestServer;
use super::{choices, echo, tiny_reasoner};
use quant_pipeline::{Registry, Silent};
use quant_study::{Grid, Status, StudyJob, StudyOutcome, run_study};
use std::path::Path;

/// Rows of a grid: one like the float model, one that wants a key and gets it, one that does not; and a grid of servers alone, whose
/// folder holds a tokenizer.
#[test]
fn servers_are_rows_of_a_study() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let sums = choices(folder.path());
    std::fs::write(at("sums.yaml"), sums.task.written()).unwrap();
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/few.yaml"), at("few.yaml")).unwrap();
    std::fs::write(at("key"), "sk-right\n").unwrap();
    let server = TestServer::start_with(echo);
    let run = |name: &str, text: String| {
        std::fs::write(at("grid.yaml"), text).unwrap();
        let grid = Grid::from_file(&at("grid.yaml")).unwrap();
        let data = vec![folder.path().to_owned(), tiny_reasoner()];
        let study = StudyJob { data, threads: 2, resume: true, ..StudyJob::new(grid, at(name)) };
        run_study(&study, &mut Silent, &Registry::default()).unwrap()
    };
    let rows = |float: &str| {
        format!(
            "version: 1\nname: rows\nmodels:\n  - path: {}\n    servers:\n{float}      - {{ name: same, url: '{}', bits: 8-8-16 }}\n\
             tasks: [sums.yaml, few.yaml]\nlimit: 7\n",
            tiny_reasoner().display(),
            server.url("ok")
        )
    };
    let refused = format!("      - {{ name: refused, url: '{}' }}\n", server.url("needs-key"));
    let keyed = format!("      - {{ name: keyed, url: '{}', key_file: key }}\n", server.url("needs-key"));
    let outcome = run("rows", rows(&format!("{refused}{keyed}")));
    assert_eq!(outcome.failed, 2, "both cells of the row without a key");
    let row = |outcome: &StudyOutcome, name: &str| {
        outcome.results.models[0].variants.iter().find(|row| row.recipe == name).unwrap().clone()
    };
    let (float, same) = (row(&outcome, "float"), row(&outcome, "same"));
    assert_eq!(
        (same.execution.as_str(), same.bits.as_str(), &same.status),
        ("server", "8-8-16", &Status::Ok)
    );
    assert_eq!((same.average, same.average.is_some()), (float.average, true));
    assert_eq!(same.loss.map(|loss| (loss.drop, loss.class)), Some((0.0, "lossless".to_owned())));
    // A text has its perplexity, and nothing that takes logits.
    assert!(
        same.missing.is_empty() && same.problems.concat().contains("not available"),
        "{:?}",
        same.problems
    );
    let (whole, found) = (&float.texts[0], &same.texts[0]);
    assert!((found.perplexity.unwrap() / whole.perplexity.unwrap() - 1.0).abs() < 1e-9);
    assert_eq!((found.kl, found.top1_agreement), (None, None));
    let report = std::fs::read_to_string(at("rows").join("report.md")).unwrap();
    assert!(report.contains("| not available | not available | not available |"), "{report}");
    assert_eq!(row(&outcome, "keyed").average, float.average);
    let refused_row = row(&outcome, "refused");
    assert_eq!((refused_row.status, refused_row.failed.len()), (Status::Ok, 2));
    assert!(
        refused_row.failed.iter().all(|failed| failed.reason.contains("401")),
        "{:?}",
        refused_row.failed
    );
    // Nothing that is finished is asked again; what failed is.
    let asked = server.seen("ok").len();
    assert_eq!(run("rows", rows(&format!("{refused}{keyed}"))).failed, 2);
    assert!(server.seen("ok").len() <= asked + 2, "the name of the model alone");
    // Cells of servers are named with what changed of them, before anything is asked.
    std::fs::write(at("grid.yaml"), rows(&format!("{refused}{keyed}")).replace("limit: 7", "limit: 6"))
        .unwrap();
    let changed = StudyJob {
        data: vec![folder.path().to_owned(), tiny_reasoner()],
        resume: true,
        ..StudyJob::new(Grid::from_file(&at("grid.yaml")).unwrap(), at("rows"))
    };
    let error = run_study(&changed, &mut Silent, &Registry::default()).unwrap_err().to_string();
    let named = ["same, sums (--limit was 7 and is 6)", "keyed, sums (--limit", "--restart-changed"];
    assert!(named.iter().all(|words| error.contains(words)), "{error}");
    // Without weights.
    let tokenizer = at("tokenizer");
    std::fs::create_dir(&tokenizer).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        if tiny_reasoner().join(name).exists() {
            std::fs::copy(tiny_reasoner().join(name), tokenizer.join(name)).unwrap();
        }
    }
    let float = format!("      - {{ name: float, url: '{}' }}\n", server.url("ok"));
    let alone = rows(&float).replace(text(&tiny_reasoner()), text(&tokenizer)).replace(", few.yaml", "");
    let outcome = run("alone", alone);
    let found = row(&outcome, "float");
    assert_eq!((outcome.failed, found.average, found.execution.as_str()), (0, same.average, "server"));
    assert_eq!(row(&outcome, "same").loss.map(|loss| loss.drop), Some(0.0));
}

/// A path in a text.
fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
