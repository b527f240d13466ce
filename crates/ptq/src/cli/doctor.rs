//! `ptq doctor`

use super::{Failure, human, print_json, print_line};
use ascend_kernels::{Doctor, OpenOptions, doctor};
use quant_checkpoint::{Disk, Storage};
use quant_kernels::{IntegerLevel, Level};
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder to look for CANN's libraries in, and nowhere else (default: where the system finds libraries)
    #[arg(long, value_name = "DIR")]
    cann_library: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What this machine has for the commands.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    processor: Processor,
    memory: Memory,
    /// Free bytes by folder.
    disk: Vec<(PathBuf, Option<u64>)>,
    ascend: Doctor,
}

#[derive(Debug, Serialize)]
struct Processor {
    name: Option<String>,
    threads: usize,
    /// Instructions of float products.
    float_level: String,
    /// Instructions of integer products.
    integer_level: String,
}

/// In bytes, where the system tells.
#[derive(Debug, Serialize)]
struct Memory {
    total: Option<u64>,
    available: Option<u64>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let options = args.cann_library.iter().fold(OpenOptions::new(), |options, dir| options.folder(dir));
    let folders = [PathBuf::from("."), std::env::temp_dir()];
    let report = Report {
        version: concat!("ptq ", env!("CARGO_PKG_VERSION")),
        processor: Processor {
            name: field("/proc/cpuinfo", "model name"),
            threads: super::default_threads(),
            float_level: Level::detect().to_string(),
            integer_level: IntegerLevel::detect().to_string(),
        },
        memory: Memory { total: kilobytes("MemTotal"), available: kilobytes("MemAvailable") },
        disk: folders.into_iter().map(|folder| (folder.clone(), Disk.free_bytes(&folder))).collect(),
        ascend: doctor(&options),
    };
    if args.json {
        print_json(&report)?;
    } else {
        print(&report)?;
    }
    if report.ascend.is_broken() { Err(Failure::check()) } else { Ok(()) }
}

fn print(report: &Report) -> Result<(), Failure> {
    let Processor { name, threads, float_level, integer_level } = &report.processor;
    let name = name.as_deref().unwrap_or("a processor without a name");
    print_line(format!("{}\nprocessor  {name}, {threads} thread(s)", report.version))?;
    print_line(format!("           float products by {float_level}, integer products by {integer_level}"))?;
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), human);
    print_line(format!(
        "memory     {}, {} available",
        bytes(report.memory.total),
        bytes(report.memory.available)
    ))?;
    for (folder, free) in &report.disk {
        print_line(format!("disk       {} free in {}", bytes(*free), folder.display()))?;
    }
    print_line(format!("\n{}", report.ascend.to_string().trim_end()))
}

/// The first value of a key in a file of `key: value` lines, as Linux has them.
fn field(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(Path::new(file)).ok()?;
    let value = |line: &str| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == key).then(|| value.trim().to_owned())
    };
    text.lines().find_map(value)
}

fn kilobytes(key: &str) -> Option<u64> {
    field("/proc/meminfo", key)?.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}
