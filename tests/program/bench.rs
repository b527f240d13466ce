//! `ptq bench`: what it prints and writes; how fast anything is, is no matter of a test.

use crate::common::{ptq, text, tiny_reasoner};
use tempfile::tempdir;

#[test]
fn kernels_have_rates_beside_peaks() {
    let report =
        ptq(&["bench", "--shape", "16x256x64", "--threads", "2", "--json"]).expect(0, &["peaks"]).json();
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or_else(|| panic!("{value} of {report}"));
    assert!(number(&report["peaks"]["float"]) > 0.1 && number(&report["peaks"]["reading"]) > 0.1);
    let kernels = report["kernels"].as_array().unwrap();
    for name in ["int8 product", "f32 product", "W4A16, one token", "static quantisation"] {
        let kernel = kernels.iter().find(|k| k["kernel"] == name).unwrap_or_else(|| panic!("{name}"));
        assert!(number(&kernel["rate"]) > 0.0 && number(&kernel["seconds"]) > 0.0);
        assert_eq!((kernel["threads"].as_u64(), kernel["size"][1].as_u64()), (Some(2), Some(256)));
        assert!(kernel["level"].is_string());
    }
    assert!(report.get("prediction").is_none() && report.get("end_to_end").is_none());
}

#[test]
fn a_model_is_measured_as_a_whole_and_a_page_written() {
    let work = tempdir().unwrap();
    let page = work.path().join("bench.html");
    let model = tiny_reasoner();
    let arguments = ["bench", "--model", text(&model), "--output", text(&page)];
    let printed = ptq(&arguments).expect(0, &[]).out;
    for words in
        ["int8 product", "decode", "tokens/s", "W8A8 dynamic, fused", "published:", "not a measurement"]
    {
        assert!(printed.contains(words), "no {words:?} in {printed}");
    }
    let html = std::fs::read_to_string(&page).unwrap();
    for words in ["<svg", "prefers-color-scheme:dark", "W8A8 static", "MlpActivation"] {
        assert!(html.contains(words), "no {words:?}");
    }
    assert!(!html.contains("http://www.w3.org/1999/xhtml") && !html.contains("src="));
    ptq(&arguments).expect(2, &["--force"]);
}

#[test]
fn profiles_are_printed_and_read() {
    let work = tempdir().unwrap();
    let printed = ptq(&["bench", "--print-profile"]).expect(0, &[]).out;
    assert!(printed.contains("int8_tops: 752"));
    let file = work.path().join("profile.yaml");
    std::fs::write(&file, printed.replace("752", "512")).unwrap();
    assert!(ptq(&["bench", "--print-profile", "--profile", text(&file)]).expect(0, &[]).out.contains("512"));
    let json = ptq(&["bench", "--print-profile", "--json", "--profile", text(&file)]).expect(0, &[]).out;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["int8_tops"], 512.0);
    // It has no say on single products.
    ptq(&["bench", "--shape", "8x8x8", "--profile", text(&file)]).expect(2, &["--named"]);
    std::fs::write(&file, printed.replace("fp16_tflops: 376", "fp16_tflops: none")).unwrap();
    ptq(&["bench", "--shape", "8x8x8", "--profile", text(&file)]).expect(2, &["--print-profile"]);
    ptq(&["bench", "--shape", "8x8"]).expect(2, &["MxKxN"]);
    ptq(&["bench", "--named", "gpt"]).expect(2, &["qwq-32b"]);
    ptq(&["bench"]).expect(2, &["--named"]);
    ptq(&["bench", "--shape", "8x8x8", "--execute", "int8"]).expect(2, &["--model"]);
    ptq(&["bench", "--model", text(&tiny_reasoner()), "--execute", "int8"]).expect(3, &["--execute sim"]);
}
