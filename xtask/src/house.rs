//! `cargo xtask check-deps`: rules of the house that the compiler does not know.

use crate::Findings;
use crate::arrows::{self, Crate};
use crate::circles::{self, Circles};
use crate::files::{output_of, repository_files};
use crate::package::{check_published, published};
use serde_json::Value;
use std::path::Path;

/// A source file longer than this fails.
const MOST_LINES: usize = 800;
/// A source file longer than this is mentioned.
const MANY_LINES: usize = 500;

/// How a file begins that a chore made: nobody reads it, so it may be long.
const GENERATED: &str = "// Made by `cargo xtask";

/// Keys every manifest takes from the workspace.
const INHERITED: [&str; 4] = [
    "version.workspace = true",
    "edition.workspace = true",
    "rust-version.workspace = true",
    "license.workspace = true",
];

/// With it clippy refuses the functions of the C library, whose bits differ between systems (`clippy.toml` lists them).
const PORTABLE: &str = "#![cfg_attr(not(test), warn(clippy::disallowed_methods))]";
/// Published crates whose numbers reach reports and screens, never the bytes of an output.
const REPORTS_ONLY: [&str; 2] = ["quant-eval", "ptq"];

pub(crate) fn check_deps(root: &Path) -> Result<Findings, String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let text = output_of(root, &cargo, &["metadata", "--format-version", "1", "--no-deps"])?;
    let metadata: Value = serde_json::from_str(&text).map_err(|e| format!("cargo metadata: {e}"))?;
    let (edges, mut faults) = arrows::check(&metadata)?;
    let packages = metadata["packages"].as_array().ok_or("the metadata has no list of packages")?;
    let mut notices = Vec::new();
    let mut modules = 0;
    for package in packages {
        faults.extend(check_package(root, package)?);
        let name = package["name"].as_str().unwrap_or_default();
        for circles in check_circles(root, package)? {
            modules += circles.modules;
            let apart = circles.set_apart.into_iter();
            notices.extend(apart.map(|line| format!("{name}: registry lines, no import circle: {line}")));
            faults.extend(circles.faults);
        }
    }
    faults.extend(published(&metadata).0.into_iter().flat_map(check_published));
    let read = |name: &str| read(&root.join(name));
    faults.extend(check_toolchain(&read("Cargo.toml")?, &read("rust-toolchain.toml")?));
    let sources: Vec<String> = repository_files(root)?.into_iter().filter(|p| p.ends_with(".rs")).collect();
    for path in &sources {
        let text = read(path)?;
        if text.starts_with(GENERATED) {
            continue;
        }
        match text.lines().count() {
            lines if lines > MOST_LINES => {
                faults.push(format!("{path}: {lines} lines, at most {MOST_LINES}; split it"));
            }
            lines if lines > MANY_LINES => {
                notices.push(format!("{path}: {lines} lines; files above {MANY_LINES} want a split"));
            }
            _ => {}
        }
    }
    let summary = format!(
        "{} crates, {edges} arrows, {modules} modules, {} source files",
        packages.len(),
        sources.len()
    );
    Ok(Findings { summary, notices, faults })
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Manifest and crate roots of one package.
fn check_package(root: &Path, package: &Value) -> Result<Vec<String>, String> {
    let name = package["name"].as_str().unwrap_or_default();
    let manifest = package["manifest_path"].as_str().ok_or_else(|| format!("{name} has no manifest path"))?;
    let mut faults = check_manifest(name, &read(Path::new(manifest))?);
    let Some(known) = arrows::find(name) else { return Ok(faults) };
    for target in package["targets"].as_array().into_iter().flatten() {
        let Some(source) = target["src_path"].as_str().map(Path::new) else { continue };
        let shown = source.strip_prefix(root).unwrap_or(source).display().to_string();
        if is_crate_root(target) {
            let text = read(source)?;
            faults.extend(check_unsafe(known, &shown, &text));
            faults.extend(check_portable(known, &shown, &text));
        }
    }
    Ok(faults)
}

/// Import circles in each library and program of one package.
fn check_circles(root: &Path, package: &Value) -> Result<Vec<Circles>, String> {
    let name = package["name"].as_str().unwrap_or_default();
    let targets = package["targets"].as_array().into_iter().flatten().filter(|t| is_crate_root(t));
    let check_one = |source: &str| {
        let source = Path::new(source);
        let shown = source.strip_prefix(root).unwrap_or(source);
        let mut found = circles::check(shown, &|path| std::fs::read_to_string(root.join(path)).ok())?;
        found.faults.iter_mut().for_each(|fault| *fault = format!("{name}: {fault}"));
        Ok(found)
    };
    targets.filter_map(|target| target["src_path"].as_str()).map(check_one).collect()
}

/// Libraries and programs; tests, benches and examples reach nobody.
fn is_crate_root(target: &Value) -> bool {
    let kinds = target["kind"].as_array().into_iter().flatten().filter_map(Value::as_str);
    kinds.into_iter().any(|kind| !matches!(kind, "test" | "bench" | "example" | "custom-build"))
}

fn check_unsafe(known: &Crate, path: &str, source: &str) -> Option<String> {
    let forbids = source.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]");
    (!forbids && !known.may_be_unsafe).then(|| {
        let allowed: Vec<&str> = arrows::CRATES.iter().filter(|c| c.may_be_unsafe).map(|c| c.name).collect();
        format!("{path} lacks #![forbid(unsafe_code)]; only {} may do without", allowed.join(", "))
    })
}

fn check_portable(known: &Crate, path: &str, source: &str) -> Option<String> {
    let free = !known.published || REPORTS_ONLY.contains(&known.name);
    (!free && !source.lines().any(|line| line.trim() == PORTABLE))
        .then(|| format!("{path} lacks {PORTABLE}; only {} may do without", REPORTS_ONLY.join(", ")))
}

fn check_manifest(name: &str, manifest: &str) -> Vec<String> {
    let lines = || manifest.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let mut faults: Vec<String> = INHERITED
        .iter()
        .filter(|wanted| !lines().any(|line| line == **wanted))
        .map(|wanted| format!("{name}: its manifest lacks {wanted}"))
        .collect();
    let lints = lines().zip(lines().skip(1)).any(|pair| pair == ("[lints]", "workspace = true"));
    if !lints {
        faults.push(format!("{name}: its manifest lacks [lints] workspace = true"));
    }
    faults
}

/// The version that is promised is the version that is tested.
fn check_toolchain(workspace: &str, toolchain: &str) -> Option<String> {
    let value = |text: &str, key: &str| {
        let line = text
            .lines()
            .find_map(|l| l.trim().strip_prefix(key)?.trim_start().strip_prefix('=').map(str::trim));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    let (promised, tested) = (value(workspace, "rust-version"), value(toolchain, "channel"));
    let same = !promised.is_empty() && (tested == promised || tested.starts_with(&format!("{promised}.")));
    (!same).then(|| {
        format!("rust-version is {promised:?} but rust-toolchain.toml tests {tested:?}; they must agree")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[package]\nname = \"x\"\nversion.workspace = true\nedition.workspace = true\n\
                        rust-version.workspace = true\nlicense.workspace = true\n\n[lints]\nworkspace = true\n";

    #[test]
    fn manifests_inherit() {
        assert!(check_manifest("x", GOOD).is_empty());
        let edition = GOOD.replace("edition.workspace = true", "edition = \"2021\"");
        assert_eq!(check_manifest("x", &edition), ["x: its manifest lacks edition.workspace = true"]);
        let lints = GOOD.replace("[lints]\nworkspace = true", "[lints.clippy]\nall = \"allow\"");
        assert_eq!(check_manifest("x", &lints).len(), 1);
        // A comment is no setting.
        assert_eq!(check_manifest("x", &GOOD.replace("license.", "# license.")).len(), 1);
    }

    #[test]
    fn unsafe_code_is_forbidden_by_default() {
        let (core, kernels) = (arrows::find("quant-core").unwrap(), arrows::find("quant-kernels").unwrap());
        assert!(check_unsafe(core, "lib.rs", "//! Docs.\n#![forbid(unsafe_code)]\n").is_none());
        assert!(
            check_unsafe(core, "lib.rs", "// #![forbid(unsafe_code)]\n")
                .unwrap()
                .contains("quant-checkpoint")
        );
        assert!(check_unsafe(kernels, "lib.rs", "").is_none());
        let target = |kind: &str| serde_json::json!({"kind": [kind]});
        assert!(
            is_crate_root(&target("lib"))
                && is_crate_root(&target("bin"))
                && is_crate_root(&target("cdylib"))
        );
        assert!(!is_crate_root(&target("test")) && !is_crate_root(&target("example")));
    }

    #[test]
    fn functions_of_the_c_library_are_refused_where_bytes_are_made() {
        let named = |name| arrows::find(name).unwrap();
        let found = check_portable(named("quant-model"), "lib.rs", "#![forbid(unsafe_code)]\n").unwrap();
        assert!(found.contains("disallowed_methods") && found.contains("quant-eval"), "{found}");
        assert_eq!(check_portable(named("quant-model"), "lib.rs", PORTABLE), None);
        for free in ["quant-eval", "ptq", "quant-testkit", "xtask"] {
            assert_eq!(check_portable(named(free), "lib.rs", ""), None, "{free}");
        }
    }

    #[test]
    fn the_promised_toolchain_is_the_tested_one() {
        let check =
            |tested: &str| check_toolchain("rust-version = \"1.95\"", &format!("channel = \"{tested}\""));
        assert!(check("1.95.0").is_none() && check("1.95").is_none());
        assert!(check("1.9").is_some() && check("1.950.0").is_some() && check("stable").is_some());
        assert!(check_toolchain("", "").is_some());
    }

    #[test]
    fn this_repository_keeps_its_arrows() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        if !root.join(".git").exists() {
            eprintln!("skipped: .git not present");
            return;
        }
        let findings = check_deps(root).unwrap();
        assert!(findings.faults.is_empty(), "{:#?}", findings.faults);
    }
}
