//! Which crate may use which: the table, and the check of `cargo metadata` against it.

use serde_json::Value;

/// A crate of the workspace, existing or planned.
#[derive(Debug)]
pub(crate) struct Crate {
    pub(crate) name: &'static str,
    /// Crates of ours it may use in normal and build dependencies.
    pub(crate) may_use: &'static [&'static str],
    /// Whether it may contain `unsafe`.
    pub(crate) may_be_unsafe: bool,
    /// Whether it is published.
    pub(crate) published: bool,
}

const fn safe(name: &'static str, may_use: &'static [&'static str]) -> Crate {
    Crate { name, may_use, may_be_unsafe: false, published: true }
}
const fn with_unsafe(name: &'static str, may_use: &'static [&'static str]) -> Crate {
    Crate { name, may_use, may_be_unsafe: true, published: true }
}

/// Bottom to top: a crate may only use crates that stand above its own line.
///
/// `quant-testkit` appears in no list because it may only be a dev-dependency; dev-dependencies on our crates are free, as
/// they reach no user and Cargo allows their cycles.
#[rustfmt::skip]
pub(crate) static CRATES: &[Crate] = &[
    safe("quant-core", &[]),
    with_unsafe("quant-kernels", &["quant-core"]),
    safe("quant-graph", &["quant-core"]),
    safe("quant-hessian", &["quant-core", "quant-kernels"]),
    safe("quant-rotate", &["quant-core", "quant-kernels", "quant-graph"]),
    safe("quant-model", &["quant-core", "quant-kernels", "quant-graph", "quant-rotate"]),
    safe("quant-methods", &["quant-core", "quant-kernels", "quant-graph", "quant-hessian", "quant-rotate"]),
    with_unsafe("quant-checkpoint", &["quant-core", "quant-graph"]),
    safe("quant-data", &["quant-core"]),
    safe("quant-eval", &["quant-core", "quant-kernels", "quant-graph", "quant-data"]),
    safe("quant-client", &[]),
    safe("quant-sandbox", &[]),
    safe("quant-pipeline", &[
        "quant-core", "quant-kernels", "quant-graph", "quant-hessian", "quant-rotate", "quant-model",
        "quant-methods", "quant-checkpoint", "quant-data", "quant-eval",
    ]),
    safe("quant-study", &[
        "quant-core", "quant-kernels", "quant-graph", "quant-model", "quant-checkpoint", "quant-data", "quant-eval",
        "quant-client", "quant-sandbox", "quant-pipeline",
    ]),
    with_unsafe("ascend-kernels", &["quant-core"]),
    Crate { name: "ascend-sim", may_use: &["quant-core"], may_be_unsafe: true, published: false },
    safe("ptq", &[
        "quant-core", "quant-kernels", "quant-graph", "quant-hessian", "quant-rotate", "quant-model",
        "quant-methods", "quant-checkpoint", "quant-data", "quant-eval", "quant-client", "quant-sandbox",
        "quant-pipeline", "quant-study", "ascend-kernels", "ascend-sim",
    ]),
    Crate { name: TESTKIT, may_be_unsafe: false, published: false, may_use: &[
        "quant-core", "quant-kernels", "quant-graph", "quant-hessian", "quant-rotate", "quant-model",
        "quant-methods", "quant-checkpoint", "quant-data", "quant-eval", "quant-client", "quant-sandbox",
        "quant-pipeline", "quant-study", "ascend-kernels", "ascend-sim", "ptq",
    ] },
    Crate { name: "xtask", may_use: &[], may_be_unsafe: false, published: false },
];

/// Test support.
const TESTKIT: &str = "quant-testkit";

/// The table's line for a crate.
pub(crate) fn find(name: &str) -> Option<&'static Crate> {
    CRATES.iter().find(|c| c.name == name)
}

/// Checks every package of `cargo metadata --no-deps`; returns the number of edges seen and all faults.
pub(crate) fn check(metadata: &Value) -> Result<(usize, Vec<String>), String> {
    let packages = metadata["packages"].as_array().ok_or("the metadata has no list of packages")?;
    let (mut edges, mut faults) = (0, Vec::new());
    for package in packages {
        let name = package["name"].as_str().ok_or("a package has no name")?;
        let Some(known) = find(name) else {
            faults.push(format!("{name} is not in the table of crates (xtask/src/arrows.rs)"));
            continue;
        };
        // `publish` is null for a crate that goes anywhere, an empty list for one that goes nowhere.
        let unpublished = package["publish"].as_array().is_some_and(Vec::is_empty);
        if unpublished == known.published {
            let wanted = if known.published { "must not set" } else { "must set" };
            faults.push(format!("{name} {wanted} publish = false"));
        }
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().ok_or("a dependency has no name")?;
            // Ours are the crates of the table, and whatever else is taken from a folder instead of a registry.
            if find(to).is_none() && dependency["path"].is_null() {
                continue;
            }
            edges += 1;
            faults.extend(check_edge(known, to, dependency["kind"].as_str()));
        }
    }
    Ok((edges, faults))
}

/// `kind` is none for a normal dependency, else `dev` or `build`.
fn check_edge(from: &Crate, to: &str, kind: Option<&str>) -> Option<String> {
    let name = from.name;
    if find(to).is_none() {
        return Some(format!("{name} -> {to}: {to} is not in the table of crates (xtask/src/arrows.rs)"));
    }
    if kind == Some("dev") || from.may_use.contains(&to) {
        return None;
    }
    if to == TESTKIT {
        return Some(format!("{name} -> {to}: test support may only be a dev-dependency"));
    }
    let allowed = if from.may_use.is_empty() { "none of ours".to_owned() } else { from.may_use.join(", ") };
    Some(format!("{name} -> {to} is not an allowed arrow; {name} may use {allowed}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependencies: Value) -> Value {
        let publish = if find(name).is_some_and(|c| !c.published) { json!([]) } else { Value::Null };
        json!({"name": name, "publish": publish, "dependencies": dependencies})
    }
    fn edge(to: &str, kind: Option<&str>) -> Value {
        json!({"name": to, "kind": kind, "path": format!("crates/{to}")})
    }
    fn faults(packages: &[Value]) -> Vec<String> {
        check(&json!({"packages": packages})).unwrap().1
    }

    #[test]
    fn the_table_points_down_only() {
        for (line, one) in CRATES.iter().enumerate() {
            for used in one.may_use {
                let below = CRATES[..line].iter().any(|c| c.name == *used);
                assert!(below, "{} may use {used}, which does not stand before it", one.name);
            }
            assert!(!one.may_use.contains(&TESTKIT), "{}", one.name);
        }
    }

    #[test]
    fn allowed_arrows_pass() {
        let packages = [
            package("quant-core", json!([{"name": "serde", "kind": null, "path": null}])),
            package("quant-kernels", json!([edge("quant-core", None), edge("quant-testkit", Some("dev"))])),
            package("quant-pipeline", json!([edge("quant-eval", None), edge("quant-core", Some("build"))])),
        ];
        let (edges, faults) = check(&json!({"packages": packages})).unwrap();
        assert_eq!((edges, faults), (4, vec![]));
    }

    #[test]
    fn an_illegal_arrow_is_named_with_the_allowed_ones() {
        for kind in [None, Some("build")] {
            let found = faults(&[package("quant-methods", json!([edge("quant-model", kind)]))]);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with("quant-methods -> quant-model"), "{found:?}");
            assert!(
                found[0].contains("may use quant-core, quant-kernels, quant-graph, quant-hessian"),
                "{found:?}"
            );
        }
        // Upwards, even for a test: free. From the bottom: nothing at all.
        assert!(faults(&[package("quant-core", json!([edge("ptq", Some("dev"))]))]).is_empty());
        let found = faults(&[package("quant-core", json!([edge("quant-kernels", None)]))]);
        assert!(found[0].contains("none of ours"), "{found:?}");
    }

    #[test]
    fn test_support_is_for_tests() {
        let found = faults(&[package("ptq", json!([edge("quant-testkit", None)]))]);
        assert!(found[0].contains("only be a dev-dependency"), "{found:?}");
    }

    #[test]
    fn unknown_crates_are_faults_on_either_end() {
        let found = faults(&[package("quant-extra", json!([]))]);
        assert!(found[0].starts_with("quant-extra is not in the table"), "{found:?}");
        for kind in [None, Some("dev")] {
            let found = faults(&[package("ptq", json!([edge("quant-extra", kind)]))]);
            assert!(found[0].starts_with("ptq -> quant-extra"), "{found:?}");
        }
    }

    #[test]
    fn publication_follows_the_table() {
        for (name, publish) in [("quant-core", json!([])), ("xtask", Value::Null)] {
            let found = faults(&[json!({"name": name, "publish": publish, "dependencies": []})]);
            assert_eq!(found.len(), 1, "{found:?}");
        }
        assert!(check(&json!({})).is_err());
    }
}
