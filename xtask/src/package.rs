//! `cargo xtask package`: what would be published, built from nothing else.

use crate::Findings;
use crate::files::output_of;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// What the package of every published crate holds beside its sources.
const FILES: [&str; 2] = ["LICENSE", "README.md"];
/// What its manifest says, by the names of `cargo metadata`.
const KEYS: [&str; 6] = ["description", "license", "readme", "rust_version", "keywords", "categories"];

/// The packages of the workspace that may be published, and those that may not.
pub(crate) fn published(metadata: &Value) -> (Vec<&Value>, Vec<&Value>) {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    packages.partition(|package| package["publish"].as_array().is_none_or(|places| !places.is_empty()))
}

/// Faults of a published package: files it lacks, keys it leaves open, dev-dependencies that would be published though
/// nothing resolves them.
pub(crate) fn check_published(package: &Value) -> Vec<String> {
    let name = package["name"].as_str().unwrap_or_default();
    let folder =
        package["manifest_path"].as_str().and_then(|p| Path::new(p).parent()).unwrap_or(Path::new("."));
    let missing = FILES.iter().filter(|file| !folder.join(file).is_file());
    let mut faults: Vec<String> =
        missing.map(|file| format!("{name}: it is published without {file}")).collect();
    let open = |key: &&&str| match &package[**key] {
        Value::Null => true,
        Value::Array(values) => values.is_empty(),
        _ => false,
    };
    faults.extend(KEYS.iter().filter(open).map(|key| format!("{name}: its manifest lacks {key}")));
    let ours = package["dependencies"].as_array().into_iter().flatten().filter(|d| !d["path"].is_null());
    for dependency in ours.filter(|d| d["kind"] == "dev" && d["req"] != "*") {
        faults.push(format!(
            "{name}: its dev-dependency {} has a version, so it would be published, in a circle at worst; give the path alone",
            dependency["name"].as_str().unwrap_or_default()
        ));
    }
    faults
}

/// Packs every crate that may be published and builds each from its package, without a network.
pub(crate) fn package(root: &Path) -> Result<Findings, String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let text = output_of(root, &cargo, &["metadata", "--format-version", "1", "--no-deps", "--offline"])?;
    let metadata: Value = serde_json::from_str(&text).map_err(|e| format!("cargo metadata: {e}"))?;
    let (ours, unpublished) = published(&metadata);
    let faults: Vec<String> = ours.iter().flat_map(|package| check_published(package)).collect();
    let mut command = Command::new(&cargo);
    command.current_dir(root).args(["package", "--workspace", "--locked", "--offline", "--allow-dirty"]);
    for package in unpublished {
        command.args(["--exclude", package["name"].as_str().unwrap_or_default()]);
    }
    let status = command.status().map_err(|e| format!("cannot run cargo package: {e}"))?;
    if !status.success() {
        return Err("cargo package failed; its reason stands above".to_owned());
    }
    Ok(Findings { summary: format!("{} crates packed and built", ours.len()), notices: Vec::new(), faults })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn published_crates_are_whole() {
        let package = |changes: Value| {
            let mut package = json!({
                "name": "x", "manifest_path": concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/ptq/Cargo.toml"),
                "publish": null, "description": "d", "license": "l", "readme": "README.md", "rust_version": "1.95",
                "keywords": ["k"], "categories": ["c"], "dependencies": [],
            });
            let changes = changes.as_object().cloned().unwrap_or_default();
            package.as_object_mut().unwrap().extend(changes);
            package
        };
        assert!(check_published(&package(json!({}))).is_empty());
        assert_eq!(check_published(&package(json!({"readme": null}))), ["x: its manifest lacks readme"]);
        let bare = json!({"manifest_path": concat!(env!("CARGO_MANIFEST_DIR"), "/src/Cargo.toml")});
        assert_eq!(check_published(&package(bare)).len(), 2);
        let on = |req: &str, kind: Value| json!({"dependencies": [{"name": "quant-model", "path": "p", "kind": kind, "req": req}]});
        assert!(check_published(&package(on("*", json!("dev")))).is_empty());
        assert!(check_published(&package(on("^0.1.0", json!(null)))).is_empty());
        assert!(check_published(&package(on("^0.1.0", json!("dev"))))[0].contains("give the path alone"));
        let all = json!({"packages": [package(json!({})), package(json!({"publish": []}))]});
        let (ours, others) = published(&all);
        assert_eq!((ours.len(), others.len()), (1, 1));
    }
}
