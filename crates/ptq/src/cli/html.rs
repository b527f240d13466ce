//! Pages of results: text, tables and drawings in one HTML file, light or dark as the reader prefers, without anything from elsewhere.

use super::plots::{GRID, INK, SERIES};
use plotters::style::RGBColor;

/// Colours of the drawings on dark paper, in the order of the constants of [`plots`].
const DARK: [(RGBColor, &str); 8] = [
    (INK, "#c9d1d9"),
    (GRID, "#30363d"),
    (SERIES[0], "#58a6ff"),
    (SERIES[1], "#f0883e"),
    (SERIES[2], "#3fb950"),
    (SERIES[3], "#bc8cff"),
    (SERIES[4], "#f778ba"),
    (SERIES[5], "#d4c500"),
];

const STYLE: &str = ":root{color-scheme:light dark;--paper:#fff;--ink:#1f2328;--soft:#59636e;--line:#d8dee4}
@media(prefers-color-scheme:dark){:root{--paper:#0d1117;--ink:#e6edf3;--soft:#9198a1;--line:#30363d}}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:960px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:24px;margin:0 0 12px}h2{font-size:19px;margin:40px 0 4px}h3{font-size:15px;margin:20px 0 0}
p{margin:4px 0 8px;color:var(--soft);max-width:80ch}
figure{margin:8px 0;min-width:0}figcaption{color:var(--soft);font-size:13px}
svg{display:block;width:100%;height:auto}
.cells rect{shape-rendering:crispEdges}
.row{display:grid;grid-template-columns:repeat(3,1fr);gap:8px}
@media(max-width:720px){.row{grid-template-columns:1fr}}
.keys span{margin-right:16px;white-space:nowrap;font-size:13px}
.keys i{display:inline-block;width:14px;height:3px;margin-right:6px;vertical-align:middle}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:2px 12px 2px 0;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600}td.w,th.w{text-align:left}
.facts td{white-space:normal;overflow-wrap:anywhere}.facts td:first-child{color:var(--soft);white-space:nowrap}
details{margin:12px 0}summary{cursor:pointer}li{color:var(--soft)}
";

/// A whole page.
pub(super) fn document(title: &str, body: &str) -> String {
    let title = escaped(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>{title}</title>\n\
         <style>\n{STYLE}{}</style></head>\n<body><main>\n<h1>{title}</h1>\n{body}</main></body></html>\n",
        colours(),
    )
}

/// What the drawings' colours are in the dark, and those of lines in legends.
fn colours() -> String {
    let dark: String = DARK
        .iter()
        .map(|(light, dark)| {
            let light = hex(*light);
            format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}\n")
        })
        .collect();
    let line = |(i, light, dark): (usize, String, &str)| {
        (format!(".s{i}{{background:{light}}}"), format!(".s{i}{{background:{dark}}}"))
    };
    let legends = SERIES.iter().zip(&DARK[2..]).enumerate();
    let (light, in_dark): (Vec<_>, Vec<_>) =
        legends.map(|(i, (colour, (_, dark)))| line((i, hex(*colour), dark))).unzip();
    format!("{}\n@media(prefers-color-scheme:dark){{\n{dark}{}\n}}\n", light.concat(), in_dark.concat())
}

/// As the drawings write it.
pub(super) fn hex(colour: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2)
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
