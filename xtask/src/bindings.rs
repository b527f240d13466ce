//! `cargo xtask bindings`: the binding of CANN, made of our own header.
//!
//! `cargo xtask bindings` writes it, `cargo xtask check-bindings` compares it with what is checked in. Both need a libclang, which
//! the script `.ci/libclang` fetches; without one they say that they were skipped.

use crate::Findings;
use bindgen::{Builder, EnumVariation};
use std::path::Path;

/// What is read and what is written.
const HEADER: &str = "crates/ascend-kernels/cann.h";
const BINDING: &str = "crates/ascend-kernels/src/ffi/generated.rs";

/// Groups of symbols: the struct that holds them, its description, the module it lies in, and which functions it has. The libraries
/// that a group is loaded from are `ascend_kernels`' business.
const GROUPS: [(&str, &str, &str, &str); 4] = [
    (
        "Runtime",
        "runtime",
        "Devices, contexts, streams, events and memory.",
        "acl(Init|Finalize|GetRecentErrMsg|rt.*|sys.*)",
    ),
    ("Objects", "objects", "Tensors, arrays and executors.", "acl(Create|Destroy|SetAcl).*"),
    ("Operators", "operators", "Products, quantisation and layouts.", "aclnn[A-EG-Z].*|aclnnFlat.*"),
    ("Attention", "attention", "Attention.", "aclnnFused.*"),
];

const HEAD: &str = "// Made by `cargo xtask bindings` from cann.h; do not edit.\n\n";

/// The text of the binding, or none without a libclang.
fn generate(root: &Path) -> Result<Option<String>, String> {
    if clang_sys::load().is_err() {
        return Ok(None);
    }
    let header = root.join(HEADER).display().to_string();
    let target = bindgen::RustTarget::stable(85, 0).map_err(|e| e.to_string())?;
    // Nothing of the machine may be seen: no folder of headers, no toolkit.
    let builder = || {
        Builder::default()
            .header(header.clone())
            .clang_args(["-nostdinc", "-std=c11", "--target=x86_64-unknown-linux-gnu"])
            .default_enum_style(EnumVariation::Consts)
            .prepend_enum_name(false)
            .rust_target(target)
            .wrap_unsafe_ops(true)
            .layout_tests(false)
            .generate_comments(false)
            .disable_header_comment()
            .formatter(bindgen::Formatter::Prettyplease)
            .rust_edition(bindgen::RustEdition::Edition2024)
    };
    let bindings = |builder: Builder| {
        builder.generate().map(|text| text.to_string()).map_err(|e| format!("{HEADER}: {e}"))
    };
    let types = builder().ignore_functions().allowlist_type("acl.*").allowlist_var("ACL.*");
    let mut text = format!("{HEAD}/// Types and numbers.\npub mod types {{\n{}}}\n", bindings(types)?);
    for (name, module, what, functions) in GROUPS {
        let group = builder()
            .allowlist_function(functions)
            .allowlist_recursively(false)
            .dynamic_library_name(name)
            .dynamic_link_require_all(false)
            .raw_line("use super::types::*;");
        let group = bindings(group)?;
        text += &format!("\n/// {what}\npub mod {module} {{\n{group}{}}}\n", table(name, &group));
    }
    Ok(Some(text))
}

/// A function that says which symbols of a group a library has.
fn table(name: &str, group: &str) -> String {
    let names = group.lines().filter_map(|line| line.strip_prefix("    pub ")?.split_once(": Result<"));
    let rows: String =
        names.map(|(name, _)| format!("            (\"{name}\", self.{name}.is_ok()),\n")).collect();
    format!(
        "impl {name} {{\n    pub fn symbols(&self) -> Vec<(&'static str, bool)> {{\n        vec![\n{rows}        ]\n    }}\n}}\n"
    )
}

fn found(what: &str) -> Findings {
    Findings { summary: what.to_owned(), ..Findings::default() }
}

fn skipped(name: &str) -> Findings {
    println!(
        "skipped: {name}: no libclang was found (.ci/libclang fetches one); {BINDING} was not compared with {HEADER}"
    );
    found("skipped")
}

/// Writes the binding.
pub(crate) fn write(root: &Path) -> Result<Findings, String> {
    let Some(text) = generate(root)? else { return Ok(skipped("bindings")) };
    std::fs::write(root.join(BINDING), &text).map_err(|e| format!("{BINDING}: {e}"))?;
    Ok(found(&format!("{BINDING}: {} lines", text.lines().count())))
}

/// Compares the binding that is checked in with what the header gives now.
pub(crate) fn check(root: &Path) -> Result<Findings, String> {
    let Some(text) = generate(root)? else { return Ok(skipped("check-bindings")) };
    let old = std::fs::read_to_string(root.join(BINDING)).map_err(|e| format!("{BINDING}: {e}"))?;
    let mut findings = found(&format!("{} groups", GROUPS.len()));
    if old != text {
        let line = old.lines().zip(text.lines()).take_while(|(old, new)| old == new).count() + 1;
        findings.faults.push(format!(
            "{BINDING}:{line} is not what {HEADER} gives; run `cargo xtask bindings` and check the result in"
        ));
    }
    Ok(findings)
}
