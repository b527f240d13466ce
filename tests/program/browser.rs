//! The pages of reports in a headless browser, where there is one: they need nothing from elsewhere, their links lead somewhere, and they
//! are light or dark as the reader's screen is.

use crate::common::{SMALL, ptq, text, tiny_reasoner};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::tempdir;

/// A browser of this machine.
fn browser() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = std::env::split_paths(&folders).flat_map(|folder| names.map(|name| folder.join(name)));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        quant_testkit::skipped("there is no Chromium to open pages in");
    }
    found
}

/// Opens a page where no name leads anywhere.
fn open(browser: &Path, page: &Path, work: &Path, more: &[&str]) -> (String, String) {
    let output = Command::new(browser)
        .args(["--headless", "--disable-gpu", "--no-sandbox", "--no-first-run", "--hide-scrollbars"])
        .args(["--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"])
        .arg(format!("--user-data-dir={}", text(&work.join("profile"))))
        .args(more)
        .arg(format!("file://{}", text(page)))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (words(&output.stdout), words(&output.stderr))
}

/// Mean brightness of a picture, 0 to 255, and how many colours it has.
fn picture(browser: &Path, page: &Path, work: &Path, scheme: &str) -> (f64, usize) {
    let file = work.join(format!("{scheme}.png"));
    let scheme = format!("--blink-settings=preferredColorScheme={scheme}");
    open(
        browser,
        page,
        work,
        &[&scheme, "--window-size=1100,1600", &format!("--screenshot={}", text(&file))],
    );
    let mut reader =
        png::Decoder::new(std::io::BufReader::new(std::fs::File::open(file).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let channels = reader.next_frame(&mut pixels).unwrap().color_type.samples();
    let colours: BTreeSet<[u8; 3]> = pixels.chunks_exact(channels).map(|p| [p[0], p[1], p[2]]).collect();
    let sum: f64 =
        pixels.chunks_exact(channels).map(|p| p[..3].iter().map(|&c| f64::from(c)).sum::<f64>() / 3.0).sum();
    (sum / (pixels.len() / channels) as f64, colours.len())
}

/// What stands between `before` and a quotation mark, everywhere.
fn attributes<'t>(dom: &'t str, before: &str) -> Vec<&'t str> {
    dom.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[track_caller]
fn check(browser: &Path, page: &Path, words: &[&str]) {
    let work = tempdir().unwrap();
    let (dom, log) = open(browser, page, work.path(), &["--dump-dom", "--enable-logging=stderr"]);
    for word in ["<table", "<svg"].iter().chain(words) {
        assert!(dom.contains(word), "{}: no {word:?}", page.display());
    }
    assert!(!dom.contains("<script") && !log.contains("ERR_"), "{}: {log}", page.display());
    for elsewhere in ["src=\"", "href=\""] {
        for target in attributes(&dom, elsewhere) {
            match target.strip_prefix('#') {
                Some(place) => {
                    assert!(attributes(&dom, " id=\"").contains(&place), "{}: {target}", page.display());
                }
                None => assert!(target.starts_with("data:"), "{}: {target}", page.display()),
            }
        }
    }
    // Chromium's numbers for dark and light.
    let [dark, light] = ["0", "1"].map(|scheme| picture(browser, page, work.path(), scheme));
    assert!(dark.0 < 90.0 && light.0 > 200.0, "{}: brightness {dark:?} {light:?}", page.display());
    assert!(dark.1 > 30 && light.1 > 30, "{}: colours {dark:?} {light:?}", page.display());
}

#[test]
fn pages_open_in_a_browser() {
    let Some(browser) = browser() else { return };
    let work = tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let study = at("study");
    let grid = crate::study::short(work.path());
    ptq(&["study", "--output", text(&study), "--grid", &grid]).expect(0, &[]);
    check(
        &browser,
        &study.join("report.html"),
        &["gptq W3", "How answers break", "Where the loss comes from"],
    );
    let bench = at("bench.html");
    ptq(&["bench", "--named", "openpangu-1b", "--threads", "1", "--output", text(&bench)]).expect(0, &[]);
    check(&browser, &bench, &["BF16", "of peak"]);
    let (analysis, model) = (at("analysis.html"), tiny_reasoner());
    let analyze = ["analyze", "--model", text(&model), "--recipe", "w4a16g32", "--sample", "2x64"];
    ptq(&[&analyze[..], &SMALL[..2], &["--output", text(&analysis)]].concat()).expect(0, &[]);
    check(&browser, &analysis, &["down_proj"]);
}
