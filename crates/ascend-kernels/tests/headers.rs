//! Our header against genuine ones, where they are: numbers and argument lists.
//!
//! Runtime headers come from `.ci/cann-headers`, those of operators only with an installed toolkit.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Text without comments as words and signs.
fn tokens(text: &str) -> Vec<String> {
    let (mut out, mut rest) = (Vec::<String>::new(), text);
    while let Some(c) = rest.chars().next() {
        if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, rest)| rest);
        } else if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
        } else if c.is_alphanumeric() || c == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            out.push(rest[..end].to_owned());
            rest = &rest[end..];
        } else {
            if !c.is_whitespace() {
                out.push(c.to_string());
            }
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

#[derive(Default)]
struct Header {
    numbers: BTreeMap<String, i64>,
    /// Types of result and arguments.
    functions: BTreeMap<String, Vec<String>>,
}

fn is_word(token: &str) -> bool {
    token.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_')
}

/// The type of an argument: what is left without its name.
fn kind(argument: &[String]) -> String {
    let words = argument.iter().filter(|t| is_word(t) && *t != "const" && *t != "struct").count();
    let named = words > 1 && argument.last().is_some_and(|t| is_word(t));
    let kept = &argument[..argument.len() - usize::from(named)];
    kept.iter()
        .filter(|t| *t != "struct")
        .map(|t| if t == "_Bool" { "bool" } else { t })
        .collect::<Vec<_>>()
        .join(" ")
}

impl Header {
    fn read(&mut self, text: &str) {
        let t = tokens(text);
        let number = |at: usize| -> Option<i64> {
            let negative = t.get(at)? == "-";
            let value = t
                .get(at + usize::from(negative))?
                .trim_end_matches(['U', 'L', 'u', 'l'])
                .parse::<i64>()
                .ok()?;
            Some(if negative { -value } else { value })
        };
        let mut at = 0;
        while at < t.len() {
            if t[at] == "enum" {
                let open = at + 1 + usize::from(t.get(at + 1).is_some_and(|x| is_word(x)));
                if t.get(open).is_some_and(|x| x == "{") {
                    let (mut next, mut place) = (0, open + 1);
                    while place < t.len() && t[place] != "}" {
                        let name = t[place].clone();
                        if t.get(place + 1).is_some_and(|x| x == "=") {
                            next = number(place + 2)
                                .or_else(|| self.numbers.get(&t[place + 2]).copied())
                                .unwrap_or(i64::MIN);
                        }
                        self.numbers.entry(name).or_insert(next);
                        next = next.wrapping_add(1);
                        while place < t.len() && t[place] != "," && t[place] != "}" {
                            place += 1;
                        }
                        place += usize::from(t.get(place).is_some_and(|x| x == ","));
                    }
                    at = place;
                }
            } else if t[at] == "define" || t[at] == "=" {
                let (name, value) =
                    if t[at] == "=" { (at.wrapping_sub(1), at + 1) } else { (at + 1, at + 2) };
                if let (Some(name), Some(value)) = (t.get(name).filter(|x| is_word(x)), number(value)) {
                    self.numbers.entry(name.clone()).or_insert(value);
                }
            } else if t[at].starts_with("acl")
                && t.get(at + 1).is_some_and(|x| x == "(")
                && at > 0
                && t[at - 1] != ":"
            {
                self.function(&t, at);
            }
            at += 1;
        }
    }

    fn function(&mut self, t: &[String], at: usize) {
        let Some(length) = t[at..].iter().position(|x| x == ")") else { return };
        let close = at + length;
        let inside = &t[at + 2..close];
        // Templates, calls and definitions are not declarations.
        if t.get(close + 1).is_none_or(|x| x != ";")
            || inside.iter().any(|x| matches!(x.as_str(), "<" | "(" | "&"))
        {
            return;
        }
        let mut start = at;
        while start > 0
            && (is_word(&t[start - 1]) || t[start - 1] == "*")
            && !t[start - 1].ends_with("VISIBILITY")
            && t[start - 1] != "C"
        {
            start -= 1;
        }
        let result: Vec<String> = t[start..at].iter().filter(|x| !x.starts_with("ACL")).cloned().collect();
        let arguments = inside.split(|x| x == ",").map(kind).filter(|k| !k.is_empty() && k != "void");
        let all = std::iter::once(result.join(" ")).chain(arguments).collect();
        self.functions.entry(t[at].clone()).or_insert(all);
    }
}

fn headers(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "h")).collect();
    files.sort();
    files
}

fn genuine(folders: &[PathBuf]) -> Header {
    let mut header = Header::default();
    for path in folders.iter().flat_map(|folder| headers(folder)) {
        header.read(&String::from_utf8_lossy(&std::fs::read(path).unwrap()));
    }
    header
}

fn ours() -> Header {
    let mut header = Header::default();
    header.read(include_str!("../cann.h"));
    header
}

#[test]
fn the_reader_reads() {
    let mut header = Header::default();
    header.read(
        "typedef enum { A_B = -1, C_D, /* E = 7, */ F = 5, G } kind; static const int H = 100000; #define I 207018 // x
         ACL_FUNC_VISIBILITY const char *aclText(void); extern \"C\" aclError aclTwo(const void *a, bool b, aclrtStream *);
         ::aclTwo(c);",
    );
    let numbers = [("A_B", -1), ("C_D", 0), ("F", 5), ("G", 6), ("H", 100_000), ("I", 207_018)];
    assert!(numbers.iter().all(|(name, value)| header.numbers[*name] == *value), "{:?}", header.numbers);
    assert_eq!(header.functions["aclText"], ["const char *"]);
    assert_eq!(header.functions["aclTwo"], ["aclError", "const void *", "bool", "aclrtStream *"]);
    assert!(ours().functions.len() > 50 && ours().numbers["ACL_ERROR_RT_DEVICE_OOM"] == 207_018);
}

/// Numbers that both have are equal, and functions that both have take the same.
fn compare(genuine: &Header, which: &str, wanted: impl Fn(&str) -> bool) -> (usize, usize) {
    let ours = ours();
    let (mut numbers, mut functions) = (0, 0);
    for (name, value) in &ours.numbers {
        if let Some(other) = genuine.numbers.get(name) {
            assert_eq!(value, other, "{name} in {which}");
            numbers += 1;
        }
    }
    for (name, types) in ours.functions.iter().filter(|(name, _)| wanted(name)) {
        match genuine.functions.get(name) {
            Some(other) => {
                assert_eq!(types, other, "{name} in {which}");
                functions += 1;
            }
            None => quant_testkit::skipped(format!("{name} was not compared: {which} lacks it")),
        }
    }
    (numbers, functions)
}

#[test]
fn numbers_and_argument_lists_of_the_runtime() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/cann-headers/acl");
    if !folder.is_dir() {
        quant_testkit::skipped("runtime headers were not compared: .ci/cann-headers fetches them");
        return;
    }
    let runtime = |name: &str| {
        ["aclrt", "aclInit", "aclFinalize", "aclGetRecent", "aclsys"].iter().any(|p| name.starts_with(p))
    };
    let (numbers, functions) = compare(&genuine(&[folder]), "the runtime headers", runtime);
    assert!(numbers >= 40 && functions >= 25, "{numbers} numbers, {functions} functions");
}

/// What makes and destroys tensors, lists and executors.
fn objects(name: &str) -> bool {
    ["aclCreate", "aclDestroy", "aclSetAclOp"].iter().any(|p| name.starts_with(p))
}

/// The functions of objects as the documents list them (their words, not a header), read as a genuine header is.
#[test]
fn argument_lists_of_objects() {
    let mut documents = Header::default();
    documents.read(
        "ACL_FUNC_VISIBILITY aclTensor *aclCreateTensor(const int64_t *viewDims, uint64_t viewDimsNum, aclDataType dataType,
             const int64_t *stride, int64_t offset, aclFormat format, const int64_t *storageDims, uint64_t storageDimsNum,
             void *tensorData);
         ACL_FUNC_VISIBILITY aclIntArray *aclCreateIntArray(const int64_t *value, uint64_t size);
         aclTensorList *aclCreateTensorList(const aclTensor *const *value, uint64_t size);
         aclnnStatus aclDestroyTensor(const aclTensor *tensor); aclnnStatus aclDestroyIntArray(const aclIntArray *array);
         aclnnStatus aclDestroyTensorList(const aclTensorList *array);
         aclnnStatus aclSetAclOpExecutorRepeatable(aclOpExecutor *executor);
         aclnnStatus aclDestroyAclOpExecutor(aclOpExecutor *executor);",
    );
    let declared = ours().functions.into_keys().filter(|name| objects(name)).count();
    assert_eq!(compare(&documents, "the documents", objects).1, declared);
    assert_eq!(documents.functions["aclCreateTensorList"][1], "const aclTensor * const *");
}

#[test]
fn argument_lists_of_operators() {
    let homes = ["/usr/local/Ascend/cann/include", "/usr/local/Ascend/ascend-toolkit/latest/include"];
    let folders: Vec<PathBuf> =
        homes.iter().flat_map(|home| ["aclnn", "aclnnop"].map(|part| Path::new(home).join(part))).collect();
    if !folders.iter().any(|folder| folder.is_dir()) {
        quant_testkit::skipped("operator headers (aclnn*) were not compared: no CANN toolkit is installed");
        return;
    }
    let genuine = genuine(&folders);
    let operators = |name: &str| name.starts_with("aclnn") && name.ends_with("GetWorkspaceSize");
    let (_, functions) = compare(&genuine, "the operator headers", operators);
    let (_, of_objects) = compare(&genuine, "the operator headers", objects);
    assert!(functions > 0 && of_objects > 0);
}
