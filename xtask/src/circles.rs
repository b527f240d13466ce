//! Import circles between modules of one crate.
//!
//! The rule. The modules that one file declares are siblings; each stands for its own file and all below it. A sibling
//! uses another if any of its code, tests apart, names a path that leads into the other, directly or through an import:
//! `use crate::Thing` uses the module that `Thing` is re-exported from. A method call names
//! no path and is not seen. No set of siblings may use each other in a circle.
//!
//! Two things are no edge, and nothing else:
//!
//! - between a module and the file that declares it, in either direction: a parent names its children to declare, re-export
//!   and call them, and its children may use what the parent's file itself defines. What the parent merely imports from a
//!   sibling is an edge to that sibling;
//! - a registry line: a path inside a `static` slice at the top of a module (`pub static METHODS: &[Method] = &[…]`).
//!   An import for the sake of one is an edge: a registry spells its paths.
//!
//! An import of all names of another module (`use super::*`) would hide what is used, so it is a fault outside tests.

use crate::scan::{Mention, Scan, scan};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Imports of imports are followed so far.
const MOST_HOPS: usize = 16;

/// One module in a file of its own.
struct Module {
    name: String,
    file: PathBuf,
    /// None for the root.
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    scan: Scan,
}

/// The modules of one crate; the root is the first.
struct Modules(Vec<Module>);

/// What was found in one crate.
#[derive(Debug, Default)]
pub(crate) struct Circles {
    /// Modules in files of their own, the root with them.
    pub(crate) modules: usize,
    /// Registries whose lines would close a circle, with what they name.
    pub(crate) set_apart: Vec<String>,
    /// One for each set of siblings that use each other, and one for each import that hides what is used.
    pub(crate) faults: Vec<String>,
}

/// Who uses whom among the children of one module, with the first place that says so.
type Edges = BTreeMap<(usize, usize), String>;

/// Looks at the crate whose root file is `root`. `read` gives a file's text, or none if there is no such file.
pub(crate) fn check(root: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Result<Circles, String> {
    let modules = Modules::load(root, read)?;
    let mut found =
        Circles { modules: modules.0.len(), set_apart: Vec::new(), faults: modules.blind_imports() };
    let without = modules.edges(false);
    for edges in without.values() {
        found.faults.extend(circles(edges).iter().map(|circle| modules.describe(circle, edges)));
    }
    for (parent, edges) in modules.edges(true) {
        let (names, known) = (|module: usize| modules.0[module].name.as_str(), without.get(&parent));
        for circle in circles(&edges) {
            for from in &circle {
                let inside = edges.keys().filter(|edge| edge.0 == *from && circle.contains(&edge.1));
                let lines = inside.filter(|edge| known.is_none_or(|known| !known.contains_key(edge)));
                let named: Vec<&str> = lines.map(|(_, to)| names(*to)).collect();
                if !named.is_empty() {
                    found.set_apart.push(format!("{} lists {}", names(*from), named.join(", ")));
                }
            }
        }
    }
    Ok(found)
}

impl Modules {
    fn load(root: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Result<Self, String> {
        let text = read(root).ok_or_else(|| format!("cannot read {}", root.display()))?;
        let file = root.to_owned();
        let scan = scan(&text).unwrap_or_default();
        let mut modules =
            vec![Module { name: String::new(), file, parent: None, children: BTreeMap::new(), scan }];
        let mut next = 0;
        while next < modules.len() {
            let folder = folder_of(&modules[next].file, next == 0);
            for name in modules[next].scan.modules.clone() {
                let places = [folder.join(format!("{name}.rs")), folder.join(&name).join("mod.rs")];
                let (file, text) = places
                    .iter()
                    .find_map(|place| Some((place.clone(), read(place)?)))
                    .ok_or_else(|| format!("{}: no file for mod {name}", modules[next].file.display()))?;
                let Some(scan) = crate::scan::scan(&text) else { continue };
                let above = &modules[next].name;
                let full = if above.is_empty() { name.clone() } else { format!("{above}::{name}") };
                let index = modules.len();
                modules[next].children.insert(name, index);
                modules.push(Module {
                    name: full,
                    file,
                    parent: Some(next),
                    children: BTreeMap::new(),
                    scan,
                });
            }
            next += 1;
        }
        Ok(Self(modules))
    }

    /// Imports of all names of another module of the crate.
    fn blind_imports(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (from, module) in self.0.iter().enumerate() {
            for (_, mention) in module.scan.imports.iter().filter(|(name, _)| name == "*") {
                let to = self.follow(from, mention, 0, &mut BTreeSet::new());
                if to.is_some_and(|to| to != from) {
                    let (file, line, path) =
                        (module.file.display(), mention.line, mention.segments.join("::"));
                    found.push(format!("{file}:{line}: {path}::* hides what it imports; name the items"));
                }
            }
        }
        found
    }

    /// The edges among the children of each module, those of registry lines among them or not.
    fn edges(&self, registries: bool) -> BTreeMap<usize, Edges> {
        let mut found: BTreeMap<usize, Edges> = BTreeMap::new();
        for (from, module) in self.0.iter().enumerate() {
            let imports = module.scan.imports.iter().map(|(_, mention)| mention);
            let lines = module.scan.registry.iter().filter(|_| registries);
            for mention in imports.chain(&module.scan.paths).chain(lines) {
                for to in self.reached(from, mention) {
                    let Some((parent, edge)) = self.siblings(from, to) else { continue };
                    let place = || format!("{}:{}", module.file.display(), mention.line);
                    found.entry(parent).or_default().entry(edge).or_insert_with(place);
                }
            }
        }
        found
    }

    /// The modules that a path leads through: where each name it goes by stands, and where the last is defined.
    fn reached(&self, from: usize, mention: &Mention) -> BTreeSet<usize> {
        let mut touched = BTreeSet::new();
        self.follow(from, mention, 0, &mut touched);
        touched
    }

    /// Follows a path; the module that it names, if it names one and not an item.
    fn follow(
        &self,
        from: usize,
        mention: &Mention,
        hops: usize,
        touched: &mut BTreeSet<usize>,
    ) -> Option<usize> {
        let (mut at, mut inside) = (from, mention.inside);
        for (place, segment) in mention.segments.iter().enumerate() {
            match segment.as_str() {
                "crate" => (at, inside) = (0, 0),
                "self" => {}
                "super" if inside > 0 => inside -= 1,
                "super" => at = self.0[at].parent?,
                name => {
                    let module = &self.0[at];
                    if let Some(child) = module.children.get(name) {
                        (at, inside) = (*child, 0);
                        continue;
                    }
                    let import = module.scan.imports.iter().find(|(known, _)| known == name);
                    match import.filter(|_| hops < MOST_HOPS) {
                        Some((_, import)) if import != mention => {
                            if place > 0 {
                                touched.insert(at);
                            }
                            (at, inside) = (self.follow(at, import, hops + 1, touched)?, 0);
                        }
                        // A name from outside or from a function.
                        _ if place == 0 => return None,
                        _ => {
                            touched.insert(at);
                            return None;
                        }
                    }
                }
            }
        }
        touched.insert(at);
        Some(at)
    }

    /// The siblings that two modules belong to, with their parent; none if one lies in the other.
    fn siblings(&self, from: usize, to: usize) -> Option<(usize, (usize, usize))> {
        let (from, to) = (self.line(from), self.line(to));
        let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
        Some((from[common - 1], (*from.get(common)?, *to.get(common)?)))
    }

    /// A module with those above it, from the root.
    fn line(&self, module: usize) -> Vec<usize> {
        let mut line: Vec<usize> = std::iter::successors(Some(module), |m| self.0[*m].parent).collect();
        line.reverse();
        line
    }

    fn describe(&self, circle: &BTreeSet<usize>, edges: &Edges) -> String {
        let name = |module: usize| self.0[module].name.as_str();
        let names: Vec<&str> = circle.iter().map(|m| name(*m)).collect();
        let inner = edges.iter().filter(|((from, to), _)| circle.contains(from) && circle.contains(to));
        let lines: Vec<String> = inner
            .map(|((from, to), place)| format!("\n    {} uses {}: {place}", name(*from), name(*to)))
            .collect();
        format!(
            "modules {} use each other; move what they share below them{}",
            names.join(", "),
            lines.concat()
        )
    }
}

/// Where the files of the modules lie that `file` declares.
fn folder_of(file: &Path, root: bool) -> PathBuf {
    let folder = file.parent().unwrap_or(Path::new(""));
    match file.file_stem() {
        Some(stem) if !root && stem != "mod" => folder.join(stem),
        _ => folder.to_owned(),
    }
}

/// The sets of more than one module in which each reaches each.
fn circles(edges: &Edges) -> Vec<BTreeSet<usize>> {
    let reach = |start: usize| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![start]);
        while let Some(at) = next.pop() {
            let found = edges.keys().filter(|(from, _)| *from == at).map(|(_, to)| *to);
            next.extend(found.filter(|to| seen.insert(*to)));
        }
        seen
    };
    let reached: BTreeMap<usize, BTreeSet<usize>> =
        edges.keys().map(|(from, _)| (*from, reach(*from))).collect();
    let mut found: Vec<BTreeSet<usize>> = Vec::new();
    for (module, below) in &reached {
        if below.contains(module) && !found.iter().any(|circle| circle.contains(module)) {
            let back = |other: &&usize| reached.get(other).is_some_and(|r| r.contains(module));
            found.push(below.iter().filter(back).copied().collect());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a made-up crate.
    fn found(files: &[(&str, &str)]) -> Circles {
        let read = |path: &Path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
        };
        check(Path::new("lib.rs"), &read).unwrap()
    }

    #[test]
    fn a_crate_without_a_circle_passes() {
        let circles = found(&[
            ("lib.rs", "mod a; mod b; mod c; pub use a::A; pub use b::{B, helper};"),
            (
                "a.rs",
                "use crate::B; use ndarray::Array2; pub struct A(B); #[cfg(test)] mod tests { use crate::c::C; }",
            ),
            ("b.rs", "use crate::c; pub struct B; pub fn helper() { c::run() }"),
            ("c/mod.rs", "mod d; mod e; pub fn run() { d::run(); e::E; }"),
            ("c/d.rs", "use super::e::E; use super::run as up; pub fn run() {}"),
            ("c/e.rs", "pub struct E;"),
        ]);
        assert_eq!((circles.modules, circles.faults), (6, vec![]));
    }

    #[test]
    fn a_circle_is_named_with_the_places_that_make_it() {
        let circles = found(&[
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "//! A.\nuse crate::b::B;"),
            ("b.rs", "use super::c::C;"),
            ("c.rs", "pub struct C;\nfn f() {\n    crate::a::f()\n}"),
        ]);
        let wanted = "modules a, b, c use each other; move what they share below them\n    a uses b: a.rs:2\n    \
                      b uses c: b.rs:1\n    c uses a: c.rs:3";
        assert_eq!(circles.faults, [wanted]);
    }

    #[test]
    fn names_at_the_root_belong_to_the_module_they_come_from() {
        let files = |root| [("lib.rs", root), ("a.rs", "use crate::Thing;"), ("b.rs", "use crate::a;")];
        assert_eq!(found(&files("mod a; mod b; pub use b::Thing;")).faults.len(), 1);
        assert_eq!(found(&files("mod a; mod b; use self::b::{Other as Thing};")).faults.len(), 1);
        assert_eq!(found(&files("mod a; mod b; pub struct Thing;")).faults, [""; 0]);
        assert_eq!(found(&files("mod a; mod b; pub use other::Thing;")).faults, [""; 0]);
    }

    #[test]
    fn a_folder_stands_for_all_in_it() {
        let circles = found(&[
            ("lib.rs", "mod a; mod b;"),
            ("a/mod.rs", "mod deep; pub use deep::D;"),
            ("a/deep.rs", "use crate::b::B; pub struct D;"),
            ("b.rs", "use crate::a::D;"),
        ]);
        assert_eq!(circles.faults.len(), 1, "{circles:?}");
        assert!(circles.faults[0].contains("a uses b: a/deep.rs:1"), "{circles:?}");
    }

    #[test]
    fn a_parent_and_its_children_are_no_circle_but_its_imports_are_seen_through() {
        let files = |one, parent| {
            [("lib.rs", "mod p;"), ("p.rs", parent), ("p/one.rs", one), ("p/two.rs", "use super::one::f;")]
        };
        let parent = "mod one; mod two; use one::f; pub use two::T; pub struct Own;";
        assert_eq!(found(&files("use super::Own; use super::f;", parent)).faults, [""; 0]);
        let through = found(&files("use super::T;", parent)).faults;
        assert!(through.len() == 1 && through[0].contains("p::one, p::two"), "{through:?}");
        // A module taken by name is a way too.
        let through = found(&files("use crate::p as up; fn f() { up::T }", parent)).faults;
        assert_eq!(through.len(), 1, "{through:?}");
    }

    #[test]
    fn registry_lines_are_set_apart_and_imports_for_them_are_not() {
        let files = |registry| {
            [
                ("lib.rs", "mod registry; mod one;"),
                ("registry.rs", registry),
                ("one.rs", "use crate::registry::M;"),
            ]
        };
        let spelt = found(&files("pub struct M; pub static ALL: &[&M] = &[&crate::one::ONE];"));
        assert_eq!((spelt.set_apart, spelt.faults), (vec!["registry lists one".to_owned()], vec![]));
        let imported = found(&files("use crate::one; pub struct M; pub static ALL: &[&M] = &[&one::ONE];"));
        assert_eq!(imported.faults.len(), 1, "{imported:?}");
    }

    #[test]
    fn imports_of_all_names_are_refused_outside_tests() {
        let circles = found(&[
            ("lib.rs", "mod a; mod b { use super::*; } use rayon::prelude::*; use a::E::*;"),
            ("a.rs", "pub enum E { One }\nuse super::*;\n#[cfg(test)] mod tests { use super::*; }"),
        ]);
        assert_eq!(circles.faults, ["a.rs:2: super::* hides what it imports; name the items"]);
    }

    #[test]
    fn a_module_without_a_file_is_an_error() {
        let read = |path: &Path| (path == Path::new("lib.rs")).then(|| "mod gone;".to_owned());
        assert_eq!(check(Path::new("lib.rs"), &read).unwrap_err(), "lib.rs: no file for mod gone");
    }
}
