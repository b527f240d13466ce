//! Where CANN's libraries are looked for, and what is in them.

use std::ffi::OsString;
use std::path::PathBuf;

use libloading::Library;

use crate::ffi::{Attention, Objects, Operators, Runtime};

/// How CANN is opened.
///
/// Without a folder, libraries are looked for where CANN's own tools look: by the dynamic linker, then below `ASCEND_HOME_PATH` and
/// `ASCEND_TOOLKIT_HOME` (CANN's `set_env.sh` sets them), then where its installers put it. With a folder they are taken from there and
/// nowhere else. No variable of this project is read, no model folder and not the working directory.
///
/// ```
/// use ascend_kernels::{Cann, OpenOptions};
///
/// let nowhere = OpenOptions::new().folder(std::env::temp_dir().join("no-cann-here"));
/// assert!(Cann::open(&nowhere).unwrap_err().is_unavailable());
/// ```
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    folder: Option<PathBuf>,
    without: Vec<String>,
}

impl OpenOptions {
    /// The search order of the system.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Libraries from this folder alone (`--cann-library DIR`).
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// A function that is not to be used although it is there: of an operator that misbehaves, or in a test of what a missing
    /// function means.
    #[must_use]
    pub fn without(mut self, symbol: impl Into<String>) -> Self {
        self.without.push(symbol.into());
        self
    }

    pub(crate) fn allows(&self, symbol: &str) -> bool {
        !self.without.iter().any(|other| other == symbol)
    }
}

/// A place that is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Whatever the dynamic linker finds.
    Linker,
    Folder(PathBuf),
}

/// How an attempt to open a library ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Opened,
    Absent,
    Broken(String),
}

/// One attempt to open a library.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) library: &'static str,
    pub(crate) place: String,
    pub(crate) outcome: Outcome,
}

/// The library that everything begins with.
pub(crate) const RUNTIME: &str = "libascendcl.so";
/// Operators come from the libraries of their packages; the old library of all of them may not be loaded beside those.
const SPLIT: [&str; 2] = ["libopapi_nn.so", "libopapi_transformer.so"];
const AGGREGATE: &str = "libopapi.so";
/// Where CANN's installers put it.
const INSTALLED: [&str; 2] =
    ["/usr/local/Ascend/cann/lib64", "/usr/local/Ascend/ascend-toolkit/latest/lib64"];

fn places(folder: Option<&PathBuf>, variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<Place> {
    if let Some(folder) = folder {
        // A relative folder would be whatever the working directory is when a library is opened.
        return vec![Place::Folder(std::path::absolute(folder).unwrap_or_else(|_| folder.clone()))];
    }
    let homes =
        ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"].into_iter().filter_map(variable).map(PathBuf::from);
    // A relative path, or an empty one, would be looked for below the working directory.
    let homes = homes.filter(|home| home.is_absolute()).map(|home| Place::Folder(home.join("lib64")));
    let installed = INSTALLED.into_iter().map(|folder| Place::Folder(folder.into()));
    std::iter::once(Place::Linker).chain(homes).chain(installed).collect()
}

/// Opens a library lazily and for itself, as CANN's own loader does.
fn open(path: &std::path::Path) -> Result<Library, libloading::Error> {
    #[cfg(unix)]
    {
        use libloading::os::unix::{Library as Unix, RTLD_LAZY, RTLD_LOCAL};
        // SAFETY: CANN's libraries are made to be opened so; what their constructors do is CANN's business.
        unsafe { Unix::open(Some(path), RTLD_LAZY | RTLD_LOCAL) }.map(Library::from)
    }
    #[cfg(not(unix))]
    {
        // SAFETY: as above.
        unsafe { Library::new(path) }
    }
}

/// What a linker says: behind the name of the call that failed stands what it found.
fn words(error: &libloading::Error) -> String {
    let chain = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Whether a linker says that it found no such library, in the words of glibc, musl or macOS. It names what it misses: this library, or one that
/// this library needs.
fn says_absent(error: &str, name: &str) -> bool {
    error.contains(&format!("{name}: cannot open"))
        || error.contains(&format!("shared library {name}: No such file"))
        || (error.contains(&format!("dlopen({name}")) && error.contains("no such file"))
}

/// Groups of symbols, each from the library that has them.
pub(crate) struct Groups {
    pub(crate) runtime: Runtime,
    pub(crate) objects: Option<Objects>,
    pub(crate) operators: Option<Operators>,
    pub(crate) attention: Option<Attention>,
    /// Group, library and place.
    pub(crate) origins: Vec<(&'static str, &'static str, String)>,
}

/// Looks for libraries and notes every attempt.
struct Search {
    places: Vec<Place>,
    attempts: Vec<Attempt>,
}

impl Search {
    fn find(&mut self, name: &'static str) -> Option<(Library, String)> {
        for place in &self.places {
            let (path, shown) = match place {
                Place::Linker => (PathBuf::from(name), "the dynamic linker".to_owned()),
                Place::Folder(folder) => (folder.join(name), folder.display().to_string()),
            };
            let opened = open(&path);
            let outcome = match &opened {
                Ok(_) => Outcome::Opened,
                Err(error) => {
                    let words = words(error);
                    let absent = match place {
                        Place::Linker => says_absent(&words, name),
                        Place::Folder(_) => !path.exists(),
                    };
                    if absent { Outcome::Absent } else { Outcome::Broken(words) }
                }
            };
            self.attempts.push(Attempt { library: name, place: shown.clone(), outcome });
            if let Ok(library) = opened {
                return Some((library, shown));
            }
        }
        None
    }

    /// The first of several libraries that has a function of a group.
    fn group<G>(
        &mut self,
        names: &[&'static str],
        load: impl Fn(Library) -> Option<G>,
    ) -> Option<(G, &'static str, String)> {
        names.iter().find_map(|name| {
            let (library, place) = self.find(name)?;
            load(library).map(|group| (group, *name, place))
        })
    }
}

/// Opens what is there; every attempt is told.
pub(crate) fn load(options: &OpenOptions) -> (Option<Groups>, Vec<Attempt>) {
    let places = places(options.folder.as_ref(), &|name| std::env::var_os(name));
    let mut search = Search { places, attempts: Vec::new() };
    let groups = load_groups(&mut search);
    (groups, search.attempts)
}

fn load_groups(search: &mut Search) -> Option<Groups> {
    macro_rules! loader {
        ($group:ty) => {
            |library| {
                // SAFETY: the functions have the types of CANN's documents, which the header states anew.
                let group = unsafe { <$group>::from_library(library) }.ok()?;
                group.symbols().iter().any(|(_, present)| *present).then_some(group)
            }
        };
    }
    let (runtime, library, place) = search.group(&[RUNTIME, "libacl_rt.so"], loader!(Runtime))?;
    let mut origins = vec![("runtime", library, place)];
    let split = SPLIT.map(|name| search.find(name).is_some());
    let of = |package: usize| if split.contains(&true) { SPLIT[package] } else { AGGREGATE };
    // The libraries of operators are linked with that of objects, so that it is found through them as well.
    let objects = search.group(&["libnnopbase.so", of(0), of(1)], loader!(Objects));
    let operators = search.group(&[of(0)], loader!(Operators));
    let attention = search.group(&[of(1)], loader!(Attention));
    macro_rules! keep {
        ($name:literal, $found:expr) => {
            $found.map(|(group, library, place)| {
                origins.push(($name, library, place));
                group
            })
        };
    }
    let (objects, operators, attention) =
        (keep!("objects", objects), keep!("operators", operators), keep!("attention", attention));
    Some(Groups { runtime, objects, operators, attention, origins })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_their_order() {
        let variable = |name: &str| (name == "ASCEND_HOME_PATH").then(|| OsString::from("/opt/cann"));
        let found = places(None, &variable);
        let folder = |path: &str| Place::Folder(path.into());
        assert_eq!(
            found,
            [Place::Linker, folder("/opt/cann/lib64"), folder(INSTALLED[0]), folder(INSTALLED[1])]
        );
    }

    #[test]
    fn nothing_is_taken_from_the_working_directory() {
        for value in ["", ".", "models/x"] {
            let found = places(None, &|_| Some(value.into()));
            assert_eq!(found.len(), 1 + INSTALLED.len(), "{value:?}: {found:?}");
        }
        let named = places(Some(&"libraries".into()), &|_| Some("/opt/cann".into()));
        let [Place::Folder(folder)] = named.as_slice() else { panic!("{named:?}") };
        assert!(folder.is_absolute() && folder.ends_with("libraries"));
    }

    #[test]
    fn absent_and_broken_libraries_are_told_apart() {
        let folder = scratch();
        std::fs::write(folder.join(RUNTIME), "no library").unwrap();
        let (groups, attempts) = load(&OpenOptions::new().folder(&folder));
        assert!(groups.is_none());
        // With what the linker has against it.
        assert!(
            matches!(&attempts[0].outcome, Outcome::Broken(words) if words.contains(RUNTIME)),
            "{attempts:?}"
        );
        assert_eq!(attempts[1].outcome, Outcome::Absent, "{attempts:?}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// The linker of this machine, asked for what is not there and for a library that needs what is not there.
    #[test]
    fn this_linker_says_it_in_its_words() {
        let mut search = Search { places: vec![Place::Linker], attempts: Vec::new() };
        assert!(search.find("libnobody-has-this.so").is_none());
        assert_eq!(search.attempts[0].outcome, Outcome::Absent, "{:?}", search.attempts);
    }

    #[test]
    fn linkers_say_it_in_their_words() {
        let absent = |error: &str| says_absent(error, "libascendcl.so");
        assert!(absent("libascendcl.so: cannot open shared object file: No such file or directory"));
        assert!(absent("Error loading shared library libascendcl.so: No such file or directory"));
        assert!(absent("dlopen(libascendcl.so, 0x0001): tried: 'libascendcl.so' (no such file)"));
        assert!(!absent("libother.so: cannot open shared object file: No such file or directory"));
        assert!(!absent(
            "Error loading shared library libother.so: No such file or directory (needed by libascendcl.so)"
        ));
        assert!(!absent("libascendcl.so: invalid ELF header"));
    }

    fn scratch() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("ascend-kernels-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }
}
