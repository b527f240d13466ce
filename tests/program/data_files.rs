//! Data files from the command line: what their bytes are, and what the person hears.

use crate::common::{ptq, quantize, text, tiny_reasoner};
use tempfile::tempdir;

#[test]
fn too_few_calibration_tokens_are_told_on_the_terminal_in_the_report_and_on_the_card() {
    let work = tempdir().unwrap();
    let (data, output) = (work.path().join("rows"), work.path().join("out"));
    std::fs::write(&data, "{\"instruction\": \"add\", \"input\": \"1 2\", \"output\": \"3\"}\n").unwrap();
    let words = ["calibration has ", "fewer than the "];
    quantize(&tiny_reasoner(), "w4a16g32", &output, &["--calibration", text(&data)])
        .expect(0, &[words[0], words[1], "'instruction', 'input', 'output' of 1 record"]);
    for file in ["quantization_report.json", "README.md"] {
        let content = std::fs::read_to_string(output.join(file)).unwrap();
        assert!(words.iter().all(|word| content.contains(word)), "{file}: {content}");
    }
}

#[test]
fn evaluation_names_json_lines_in_its_protocol() {
    let work = tempdir().unwrap();
    let data = work.path().join("rows.txt");
    std::fs::write(&data, "{\"text\": \"one two three four\"}\n{\"text\": \"five six\"}\n").unwrap();
    let run =
        ptq(&["eval", "--model", text(&tiny_reasoner()), "--text", text(&data), "--seq-len", "8", "--json"]);
    let report = run.expect(0, &["joined by a blank line"]).json();
    assert!(report.to_string().contains("rows.txt (the field 'text' of 2 JSON records"), "{report}");
}
