//! `ptq inspect`

use super::{Failure, Table, human, print_json, print_line, say};
use quant_pipeline::{Registry, open_folder_with};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Checkpoint or quantised folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let folder = open_folder_with(&args.folder, registry)?;
    let spec = &folder.spec;
    let checkpoint = &folder.checkpoint;
    let scheme = folder.format.map(|f| f.scheme(checkpoint, spec)).transpose()?;
    let mut dtypes: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let entry = dtypes.entry(tensor.dtype.to_string()).or_default();
        entry.0 += 1;
        entry.1 += tensor.bytes();
    }
    if args.json {
        let tensors: Vec<_> = checkpoint
            .tensors()
            .map(|t| serde_json::json!({"name": t.name, "dtype": t.dtype.to_string(), "shape": t.shape}))
            .collect();
        return print_json(&serde_json::json!({
            "model": spec, "format": folder.format.map_or("float", |f| f.id()), "scheme": scheme,
            "bytes": checkpoint.total_bytes(), "files": checkpoint.weight_files(), "tensors": tensors,
        }));
    }
    print_line(format!(
        "{}: {} ({}), {} blocks, hidden {}, intermediate {}, {} query and {} key/value heads of {}, vocabulary {}{}",
        args.folder.display(),
        spec.architecture,
        folder.format.map_or("float", |f| f.id()),
        spec.layers,
        spec.hidden,
        spec.intermediate,
        spec.heads,
        spec.kv_heads,
        spec.head_dim,
        spec.vocab,
        if spec.tied { ", tied head" } else { "" }
    ))?;
    let mut table = Table::new(&["dtype", "tensors", "bytes"]);
    for (dtype, (count, bytes)) in &dtypes {
        table.row(vec![dtype.clone(), count.to_string(), human(*bytes)]);
    }
    print_line(table)?;
    if let Some(scheme) = scheme {
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for (_, _, linear) in scheme.linears() {
            let text = quant_core::Scheme {
                weights: linear.weight.map(|w| w.bits),
                group: linear.weight.and_then(|w| w.group),
                activations: linear.input.map(|i| i.bits),
                kv_cache: scheme.kv.map(|k| k.bits),
            };
            *kinds.entry(text.to_string()).or_default() += 1;
        }
        for (text, count) in kinds {
            print_line(format!("{count} linears {text}"))?;
        }
        for (table, weight) in &scheme.tables {
            let (weights, group) = (Some(weight.bits), weight.group);
            let text = quant_core::Scheme { weights, group, activations: None, kv_cache: None };
            print_line(format!("{} {text}", table.module()))?;
        }
    }
    if args.tensors {
        let mut table = Table::new(&["tensor", "dtype", "shape", "file"]);
        for t in checkpoint.tensors() {
            table.row(vec![
                t.name.clone(),
                t.dtype.to_string(),
                format!("{:?}", t.shape),
                t.file.to_string(),
            ]);
        }
        print_line(table)?;
    }
    for warning in &folder.warnings {
        say(format_args!("warning: {warning}"));
    }
    Ok(())
}
