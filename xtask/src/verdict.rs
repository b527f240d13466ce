//! `cargo xtask verdict`: how good the prediction without decoding is, beside the decoded answers of fresh items.

use crate::Findings;
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// Items, and the seed of the generator of `assets/tiny-reasoner/tasks.py` that makes them; it is used nowhere else.
const ITEMS: usize = 1000;
const SEED: u64 = 6006;

/// Rows on which the constants are chosen: round to nearest.
const CHOSEN_ON: [&str; 11] =
    ["W8", "W6g32", "W5g32", "W4g16", "W4g32", "W4g64", "W3g16", "W3g32", "W3g64", "W2g16", "W2g32"];

/// The others: name, and modifiers.
const OTHERS: [(&str, &str); 22] = [
    ("gptq W4g32", "gptq: { scheme: W4A16g32 }"),
    ("gptq W4g64", "gptq: { scheme: W4A16g64 }"),
    ("gptq W3g32", "gptq: { scheme: W3A16g32 }"),
    ("gptq W3g64", "gptq: { scheme: W3A16g64 }"),
    ("gptq W2g32", "gptq: { scheme: W2A16g32 }"),
    ("awq W4g32", "awq: { scheme: W4A16g32 }"),
    ("awq W3g32", "awq: { scheme: W3A16g32 }"),
    ("awq W3g64", "awq: { scheme: W3A16g64 }"),
    ("gptaq W4g32", "gptaq: { scheme: W4A16g32 }"),
    ("gptaq W3g32", "gptaq: { scheme: W3A16g32 }"),
    ("gptaq W2g32", "gptaq: { scheme: W2A16g32 }"),
    ("qronos W3g32", "qronos: { scheme: W3A16g32 }"),
    ("qronos W2g32", "qronos: { scheme: W2A16g32 }"),
    ("slim-llm W3g32", "slim-llm: { scheme: W3A16g32 }"),
    ("slim-llm W2g32", "slim-llm: { scheme: W2A16g32 }"),
    ("billm W1", "billm: {}"),
    ("smoothquant W8A8KV8", "smoothquant: { alpha: 0.5 }, rtn: { scheme: W8A8KV8 }"),
    ("smoothquant W4A8", "smoothquant: { alpha: 0.5 }, rtn: { scheme: W4A8 }"),
    ("smoothquant W4A4", "smoothquant: { alpha: 0.5 }, rtn: { scheme: W4A4 }"),
    ("flatquant W8A8KV8", "flatquant: { scheme: W8A8KV8, epochs: 2 }"),
    ("flatquant W4A4KV4", "flatquant: { scheme: W4A4KV4, epochs: 2, fallback: [rotation] }"),
    ("flatquant W4A8", "flatquant: { scheme: W4A8, epochs: 2, fallback: [rotation] }"),
];

/// An answer of the float model as a row reads it.
struct Reading {
    followed: bool,
    kl: Option<f64>,
    right: bool,
}

struct Row {
    name: String,
    readings: Vec<Reading>,
    /// Drop in points as the program predicts it.
    predicted: f64,
    /// Percent right.
    decoded: f64,
    float: f64,
    /// Ends of the 95 % interval of the drop.
    interval: [f64; 2],
    kl: f64,
    seconds: [f64; 2],
}

/// The curve of `quant-study`'s verdict.
#[derive(Clone, Copy)]
struct Constants {
    half: f64,
    steepness: f64,
    luck: f64,
}

impl Row {
    /// Percent of the float model's answers that were read and are right.
    fn float_read(&self) -> f64 {
        100.0 * self.readings.iter().filter(|reading| reading.right).count() as f64
            / self.readings.len().max(1) as f64
    }

    /// Predicted percent right: the float model's, and the drop that was read in the sample.
    fn expected(&self, constants: Constants) -> f64 {
        self.float + self.curve(constants) - self.float_read()
    }

    /// The curve over the answers that were read, in percent.
    fn curve(&self, constants: Constants) -> f64 {
        let right = |reading: &Reading| {
            if reading.followed {
                return f64::from(u8::from(reading.right));
            }
            let kl = reading.kl.unwrap_or(f64::INFINITY).max(1e-300);
            let stays = 1.0 / (1.0 + (kl / constants.half).powf(constants.steepness));
            stays * if reading.right { 1.0 } else { constants.luck }
        };
        100.0 * self.readings.iter().map(right).sum::<f64>() / self.readings.len().max(1) as f64
    }
}

pub(crate) fn verdict(root: &Path) -> Result<Findings, String> {
    let home = root.join("target/verdict");
    let study = home.join("study");
    std::fs::create_dir_all(&home).map_err(|e| e.to_string())?;
    prepare(root, &home)?;
    let mut run = Command::new("cargo");
    run.args(["run", "--release", "--locked", "-p", "ptq", "--bin", "ptq", "--", "study", "--grid"])
        .arg(home.join("grid.yaml"))
        .arg("--output")
        .arg(&study)
        .arg("--resume")
        .current_dir(root);
    let ran = run.status().map_err(|e| format!("cargo cannot be run: {e}"))?;
    if !ran.success() {
        return Err(format!("the study failed; what is finished of it is in {}", study.display()));
    }
    let rows = read(&study)?;
    let (chosen, others): (Vec<Row>, Vec<Row>) =
        rows.into_iter().partition(|row| row.name.starts_with("rtn "));
    let best = choose(&chosen);
    let mut findings =
        Findings { summary: format!("{} rows, {ITEMS} items each", others.len()), ..Findings::default() };
    findings.notices.push(format!(
        "chosen on {} rows of round to nearest: half {:.4}, steepness {:.2}, luck {:.2}; those of the program are in its verdict.rs",
        chosen.len(), best.half, best.steepness, best.luck
    ));
    judge(&others, &mut findings);
    Ok(findings)
}

fn prepare(root: &Path, home: &Path) -> Result<(), String> {
    let program = format!(
        "import json, random, sys\nsys.path.insert(0, 'assets/tiny-reasoner')\nimport tasks\nrng = random.Random({SEED})\n\
         for _ in range({ITEMS}):\n    print(json.dumps(tasks.item(rng)))\n"
    );
    let made = Command::new("python3").args(["-c", &program]).current_dir(root).output();
    let made = made.map_err(|e| format!("python3 cannot be run: {e}"))?;
    if !made.status.success() {
        return Err(format!("the items cannot be made: {}", String::from_utf8_lossy(&made.stderr)));
    }
    let task = "version: 1\nname: fresh\nsummary: fresh items\nkind: generate\nsource: { files: [fresh.jsonl], columns: [question, answer] }\n\
                prompt: \"{{ question }}\"\ngold: \"{{ answer }}\"\nscorer: exact\nmax_new_tokens: 320\n";
    let mut grid = "version: 1\nname: verdict\nmodels:\n  - { path: 'embedded:tiny-reasoner', calibration: tasks/calibration.jsonl, \
                    num_samples: 48, max_seq_len: 256 }\nrecipes:\n"
        .to_owned();
    let mut row = |name: &str, modifiers: &str| {
        let modifiers: Vec<String> = modifiers
            .split("}, ")
            .map(|m| if m.ends_with('}') { m.to_owned() } else { format!("{m}}}") })
            .collect();
        let _ = writeln!(
            grid,
            "  - {{ name: {name}, recipe: {{ version: 1, modifiers: [{}] }} }}",
            modifiers.iter().map(|m| format!("{{ {m} }}")).collect::<Vec<_>>().join(", ")
        );
    };
    for scheme in CHOSEN_ON {
        let (bits, group) =
            scheme.split_once('g').map_or((scheme, String::new()), |(b, g)| (b, format!("g{g}")));
        row(&format!("rtn {scheme}"), &format!("rtn: {{ scheme: {bits}A16{group} }}"));
    }
    for (name, modifiers) in OTHERS {
        row(name, modifiers);
    }
    grid += "tasks: [fresh.yaml]\ndata: ['.']\n";
    for (name, text) in [
        ("fresh.jsonl", String::from_utf8_lossy(&made.stdout).into_owned()),
        ("fresh.yaml", task.to_owned()),
        ("grid.yaml", grid),
    ] {
        let path = home.join(name);
        // A file that is as it was keeps its time, and with it what is finished.
        if std::fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    Ok(())
}

fn json(path: &Path) -> Result<Value, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

fn read(study: &Path) -> Result<Vec<Row>, String> {
    let results = json(&study.join("results.json"))?;
    let number = |value: &Value, what: &str| value.as_f64().ok_or(format!("the results lack {what}"));
    let variants = results["models"][0]["variants"].as_array().ok_or("the results have no rows")?;
    let mut rows = Vec::new();
    for variant in variants.iter().filter(|v| v["recipe"] != "float") {
        let name = variant["recipe"].as_str().unwrap_or_default().to_owned();
        let folder = study.join("cells/tiny-reasoner").join(name.replace(' ', "_")).join("sim");
        let kept = json(&folder.join("prediction.json"))?;
        let readings = kept["readings"].as_array().ok_or(format!("{name}: no readings"))?;
        let reading = |r: &Value| Reading {
            followed: r["followed"] == true,
            kl: r["kl"].as_f64(),
            right: r["right"] == true,
        };
        let (decoded, loss) = (number(&variant["average"], "an average")?, &variant["loss"]);
        let drop = number(&loss["drop"], "a drop")?;
        rows.push(Row {
            readings: readings.iter().map(reading).collect(),
            predicted: kept["verdict"]["drop"].as_f64().unwrap_or(f64::NEG_INFINITY),
            decoded,
            float: decoded - drop,
            interval: [
                number(&loss["interval"][0], "an interval")?,
                number(&loss["interval"][1], "an interval")?,
            ],
            kl: kept["verdict"]["kl"].as_f64().unwrap_or(f64::INFINITY),
            seconds: [
                number(&json(&folder.join("prediction_run.json"))?["seconds"], "seconds of reading")?,
                number(&json(&folder.join("fresh/run.json"))?["decode_seconds"], "seconds of decoding")?,
            ],
            name,
        });
    }
    Ok(rows)
}

/// The constants with the least squared error on these rows, of a grid of them.
fn choose(rows: &[Row]) -> Constants {
    let error = |constants: Constants| {
        rows.iter().map(|row| (row.expected(constants) - row.decoded).powi(2)).sum::<f64>()
    };
    let mut best = (Constants { half: 1.0, steepness: 1.0, luck: 0.0 }, f64::INFINITY);
    for half in (0..60).map(|i| 10_f64.powf(-3.5 + f64::from(i) * 0.05)) {
        for steepness in (1..16).map(|i| f64::from(i) * 0.2) {
            for luck in (0..20).map(|i| f64::from(i) * 0.05) {
                let constants = Constants { half, steepness, luck };
                let error = error(constants);
                if error < best.1 {
                    best = (constants, error);
                }
            }
        }
    }
    best.0
}

/// 0 lossless, 1 fair, 2 risky.
fn class(drop: f64) -> u8 {
    match -drop {
        loss if loss <= 1.0 + 1e-9 => 0,
        loss if loss < 3.0 - 1e-9 => 1,
        _ => 2,
    }
}

fn judge(rows: &[Row], findings: &mut Findings) {
    let mut table = "| row | decoded drop | 95 % | predicted drop | KL | reading / decoding (s) |\n|---|---|---|---|---|---|".to_owned();
    let (mut errors, mut certain, mut equal, mut slow) = (Vec::new(), 0, 0, 0.0_f64);
    for row in rows {
        let (drop, predicted) = (row.decoded - row.float, row.predicted);
        errors.push((drop - predicted).abs());
        let [low, high] = row.interval.map(class);
        if low == high {
            certain += 1;
            equal += u32::from(class(predicted) == low);
        }
        if low == 2 && high == 2 && class(predicted) == 0 {
            findings.faults.push(format!("{}: risky, called lossless", row.name));
        }
        slow = slow.max(row.seconds[0] / row.seconds[1].max(1e-9));
        let _ = write!(
            table,
            "\n| {} | {drop:+.1} | {:+.1} to {:+.1} | {predicted:+.1} | {:.5} | {:.1} / {:.1} |",
            row.name, row.interval[0], row.interval[1], row.kl, row.seconds[0], row.seconds[1]
        );
    }
    let decoded: Vec<f64> = rows.iter().map(|row| row.decoded).collect();
    let predicted: Vec<f64> = rows.iter().map(|row| row.float + row.predicted).collect();
    let by_kl: Vec<f64> = rows.iter().map(|row| -row.kl).collect();
    let (ours, theirs) = (spearman(&predicted, &decoded), spearman(&by_kl, &decoded));
    let mean = errors.iter().sum::<f64>() / errors.len().max(1) as f64;
    findings.notices.push(table);
    findings.notices.push(format!(
        "Spearman {ours:.4} (mean KL alone {theirs:.4}), mean absolute error {mean:.2} points, class equal in {equal} of {certain} rows \
         whose interval lies in one class, reading takes at most {:.1} % of decoding",
        100.0 * slow
    ));
    let wanted = [
        (ours >= 0.95, "Spearman is below 0.95"),
        (ours >= theirs, "mean KL alone ranks better"),
        (mean <= 4.0, "the mean absolute error is above 4 points"),
        (f64::from(equal) >= 0.9 * f64::from(certain), "fewer than 90 % of the classes are equal"),
        (slow <= 0.25, "reading takes more than a quarter of decoding"),
    ];
    findings.faults.extend(wanted.iter().filter(|(holds, _)| !holds).map(|(_, what)| (*what).to_owned()));
}

/// Ranks, equal values sharing theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let below = |v: f64| values.iter().filter(|w| **w < v).count() as f64;
    let same = |v: f64| values.iter().filter(|w| **w == v).count() as f64;
    values.iter().map(|&v| below(v) + (same(v) - 1.0) / 2.0).collect()
}

fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len().max(1) as f64;
    let (ma, mb) = (mean(&a), mean(&b));
    let both: f64 = a.iter().zip(&b).map(|(x, y)| (x - ma) * (y - mb)).sum();
    let spread = |x: &[f64], m: f64| x.iter().map(|v| (v - m).powi(2)).sum::<f64>().sqrt();
    both / (spread(&a, ma) * spread(&b, mb))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_with_ties() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0]), [1.5, 0.0, 1.5]);
        assert!((spearman(&[1.0, 2.0, 3.0], &[10.0, 40.0, 20.0]) - 0.5).abs() < 1e-12);
    }
}
