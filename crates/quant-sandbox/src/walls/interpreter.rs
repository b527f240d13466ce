//! Which files an interpreter is made of.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Asks an interpreter where it lies. Paths that are no text are left out.
const QUESTION: &str = "\
import json, os, sys, sysconfig
paths = [sysconfig.get_path('stdlib'), sysconfig.get_path('platstdlib'), sysconfig.get_config_var('LIBDIR')]
print(json.dumps([os.path.realpath(sys.executable)] + [p for p in paths + sys.path if p]))";

/// Where a system has its shared libraries.
const LIBRARIES: [&str; 4] = ["/usr/lib", "/usr/lib64", "/lib", "/lib64"];

/// An interpreter and the folders that it and its libraries lie in.
#[derive(Debug)]
pub(crate) struct Interpreter {
    pub(crate) executable: PathBuf,
    /// Real folders, none within another.
    pub(crate) folders: Vec<PathBuf>,
    /// Links among the folders of libraries: where, and what to.
    pub(crate) links: Vec<(PathBuf, PathBuf)>,
}

impl Interpreter {
    /// Runs `python` outside of any sandbox, once or, where it is only a script that starts one, twice.
    pub(crate) fn locate(python: &Path) -> Result<Self, String> {
        let (executable, _) = ask(python)?;
        let (executable, found) = ask(&executable)?;
        let mut links = Vec::new();
        let mut folders = BTreeSet::new();
        for library in LIBRARIES.map(Path::new) {
            match library.read_link() {
                Ok(target) => links.push((library.to_owned(), target)),
                Err(_) => folders.extend(library.is_dir().then(|| library.to_owned())),
            }
        }
        let found = found.iter().filter_map(|path| path.canonicalize().ok());
        folders.extend(found.filter(|path| path.is_dir() && path.parent().is_some()));
        // In order, a folder stands behind those that it lies in.
        let mut outer: Vec<PathBuf> = Vec::new();
        for folder in folders {
            if !outer.iter().any(|other| folder.starts_with(other)) {
                outer.push(folder);
            }
        }
        Ok(Self { executable, folders: outer, links })
    }
}

/// The executable and the folders that an interpreter names.
fn ask(python: &Path) -> Result<(PathBuf, Vec<PathBuf>), String> {
    let shown = python.display();
    let mut command = Command::new(python);
    command.args(["-I", "-c", QUESTION]).current_dir("/").stdin(Stdio::null());
    let output = command.output().map_err(|e| format!("cannot run {shown}: {e}"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{shown} is no Python: {}", error.lines().last().unwrap_or("it says nothing")));
    }
    let paths: Vec<PathBuf> = serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("{shown} does not say where it lies: {e}"))?;
    match paths.split_first() {
        Some((executable, folders)) if executable.is_file() => Ok((executable.clone(), folders.to_vec())),
        _ => Err(format!("{shown} does not say where it lies")),
    }
}

/// A program by its path, or by its name in the folders of `PATH`.
pub(crate) fn in_path(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
}
