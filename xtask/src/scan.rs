//! What a Rust file says about modules: which it has, what it imports, which paths it names. A reader of tokens, not of
//! the grammar: enough for code that compiles and is formatted, without a dependency.

/// A path as written, with its place.
#[derive(Debug, PartialEq)]
pub(crate) struct Mention {
    /// Its segments, `crate`, `self` and `super` among them.
    pub(crate) segments: Vec<String>,
    /// In how many modules written out in the file it stands; so many `super` stay in the file.
    pub(crate) inside: usize,
    pub(crate) line: usize,
}

/// What one file says, without what is compiled for tests only.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Modules in files of their own.
    pub(crate) modules: Vec<String>,
    /// Imports, with the name each gets here; `*` for all names.
    pub(crate) imports: Vec<(String, Mention)>,
    /// Paths in code.
    pub(crate) paths: Vec<Mention>,
    /// Paths in `static` slices at the top of a module: the lines of registries, which are not among `paths`.
    pub(crate) registry: Vec<Mention>,
}

struct Token {
    text: String,
    line: usize,
}

impl Token {
    fn is_name(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// Names, `::` and single signs. Comments and lifetimes are left out; a text or character is one `"`.
fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    let (mut found, mut i, mut line) = (Vec::new(), 0, 1);
    while i < chars.len() {
        let (start, begun) = (i, line);
        let mut text = None;
        match (at(i), at(i + 1)) {
            ('/', '/') => i += chars[i..].iter().take_while(|c| **c != '\n').count(),
            ('/', '*') => {
                let mut open = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (open, i) = (open + 1, i + 2),
                        ('*', '/') => (open, i) = (open - 1, i + 2),
                        _ => i += 1,
                    }
                    if open == 0 || i >= chars.len() {
                        break;
                    }
                }
            }
            ('"', _) => {
                i = end_of_text(&chars, i);
                text = Some("\"".to_owned());
            }
            ('\'', next) => {
                if next == '\\' {
                    i += 3;
                    i += chars[i.min(chars.len())..].iter().take_while(|c| **c != '\'').count() + 1;
                    text = Some("\"".to_owned());
                } else if at(i + 2) == '\'' {
                    i += 3;
                    text = Some("\"".to_owned());
                } else {
                    i += 1 + chars[i + 1..].iter().take_while(|c| part_of_name(**c)).count();
                }
            }
            (':', ':') => {
                i += 2;
                text = Some("::".to_owned());
            }
            (c, _) if part_of_name(c) => {
                i += chars[i..].iter().take_while(|c| part_of_name(**c)).count();
                let name: String = chars[start..i].iter().collect();
                let raw = matches!(name.as_str(), "r" | "br" | "cr");
                let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
                if raw && at(i + hashes) == '"' {
                    i = end_of_raw_text(&chars, i + hashes + 1, hashes);
                    text = Some("\"".to_owned());
                } else {
                    text = Some(name);
                }
            }
            (c, _) => {
                i += 1;
                text = (!c.is_whitespace()).then(|| c.to_string());
            }
        }
        i = i.min(chars.len());
        line += chars[start..i].iter().filter(|c| **c == '\n').count();
        found.extend(text.map(|text| Token { text, line: begun }));
    }
    found
}

fn end_of_text(chars: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

fn end_of_raw_text(chars: &[char], start: usize, hashes: usize) -> usize {
    let ends =
        |i: usize| chars[i] == '"' && chars[i + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
    (start..chars.len()).find(|i| ends(*i)).map_or(chars.len(), |i| i + 1 + hashes)
}

/// Reads one file; none if all of it is for tests.
pub(crate) fn scan(source: &str) -> Option<Scan> {
    let tokens = tokens(source);
    let reader = Reader { tokens: &tokens };
    let mut found = Scan::default();
    // Open braces, true for those of a module; the token after the registry that is being read.
    let mut open: Vec<bool> = Vec::new();
    let (mut i, mut registry) = (0, 0);
    while i < tokens.len() {
        let inside = open.iter().filter(|module| **module).count();
        match reader.text(i) {
            "#" => {
                let inner = reader.text(i + 1) == "!";
                let end = reader.closing(i + 1 + usize::from(inner));
                let test = reader.is_test(i + 1 + usize::from(inner));
                if test && inner && open.is_empty() {
                    return None;
                }
                i = if test { reader.end_of_item(end) } else { end };
                continue;
            }
            "pub" if reader.text(i + 1) == "(" => {
                i = reader.closing(i + 1);
                continue;
            }
            "use" => {
                let line = tokens[i].line;
                let end = reader.tree(i + 1, &mut Vec::new(), &mut |name, segments| {
                    found.imports.push((name, Mention { segments, inside, line }));
                });
                i = end;
                continue;
            }
            "mod" if reader.text(i + 2) == ";" => found.modules.push(reader.text(i + 1).to_owned()),
            "mod" if reader.text(i + 2) == "{" => {
                open.push(true);
                i += 3;
                continue;
            }
            "static" if reader.is_slice(i) && open.iter().all(|module| *module) => {
                registry = reader.end_of_item(i);
            }
            "{" => open.push(false),
            "}" => drop(open.pop()),
            _ => {}
        }
        let continued = i > 0 && matches!(reader.text(i - 1), "::" | ".");
        if tokens[i].is_name() && !continued {
            let (mut segments, line) = (vec![tokens[i].text.clone()], tokens[i].line);
            while reader.text(i + 1) == "::" && tokens.get(i + 2).is_some_and(Token::is_name) {
                segments.push(tokens[i + 2].text.clone());
                i += 2;
            }
            if segments.len() > 1 {
                let list = if i < registry { &mut found.registry } else { &mut found.paths };
                list.push(Mention { segments, inside, line });
            }
        }
        i += 1;
    }
    Some(found)
}

struct Reader<'a> {
    tokens: &'a [Token],
}

impl Reader<'_> {
    fn text(&self, i: usize) -> &str {
        self.tokens.get(i).map_or("", |t| &t.text)
    }

    /// Past the bracket that closes the one at `i`.
    fn closing(&self, mut i: usize) -> usize {
        let mut depth = 0;
        while i < self.tokens.len() {
            match self.text(i) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
            i += 1;
            if depth <= 0 {
                break;
            }
        }
        i
    }

    /// Whether the attribute whose bracket is at `i` is `cfg(test)` or `cfg(all(test, …))`.
    fn is_test(&self, i: usize) -> bool {
        let starts = |wanted: &[&str]| wanted.iter().enumerate().all(|(k, w)| self.text(i + k) == *w);
        starts(&["[", "cfg", "(", "test", ")"]) || starts(&["[", "cfg", "(", "all", "(", "test"])
    }

    /// Past the item at `i`: its `;`, or its body for those that need none.
    fn end_of_item(&self, mut i: usize) -> usize {
        while self.text(i) == "#" {
            i = self.closing(i + 1);
        }
        if self.text(i) == "pub" {
            i = if self.text(i + 1) == "(" { self.closing(i + 1) } else { i + 1 };
        }
        let function = matches!(self.text(i + 1), "fn" | "unsafe" | "async");
        let semicolon = matches!(self.text(i), "use" | "const" | "static" | "type" | "let") && !function;
        while i < self.tokens.len() {
            match self.text(i) {
                ";" => return i + 1,
                "}" => return i,
                "{" if !semicolon => return self.closing(i),
                "(" | "[" | "{" => i = self.closing(i),
                _ => i += 1,
            }
        }
        i
    }

    /// Whether the `static` at `i` is a slice.
    fn is_slice(&self, i: usize) -> bool {
        (self.text(i + 2), self.text(i + 3), self.text(i + 4)) == (":", "&", "[")
    }

    /// Reads the tree of a `use` at `i`, and returns the place past it (and past its `;`, at the outermost).
    fn tree(&self, mut i: usize, path: &mut Vec<String>, leaf: &mut dyn FnMut(String, Vec<String>)) -> usize {
        let above = path.len();
        while i < self.tokens.len() {
            match self.text(i) {
                "::" => i += 1,
                "{" => {
                    i += 1;
                    while i < self.tokens.len() && self.text(i) != "}" {
                        i = self.tree(i, path, leaf);
                        i += usize::from(self.text(i) == ",");
                    }
                    i += 1;
                    break;
                }
                "*" => {
                    leaf("*".to_owned(), path.clone());
                    i += 1;
                    break;
                }
                _ => {
                    // `a::{self}` is `a`; a leading `self` is this module.
                    if self.text(i) != "self" || path.is_empty() {
                        path.push(self.text(i).to_owned());
                    }
                    i += 1;
                    if self.text(i) == "::" {
                        continue;
                    }
                    let renamed = self.text(i) == "as";
                    let name = if renamed {
                        self.text(i + 1).to_owned()
                    } else {
                        path.last().cloned().unwrap_or_default()
                    };
                    leaf(name, path.clone());
                    i += if renamed { 2 } else { 0 };
                    break;
                }
            }
        }
        path.truncate(above);
        i + usize::from(self.text(i) == ";" && above == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(source: &str) -> Vec<String> {
        scan(source).unwrap().paths.iter().map(|m| m.segments.join("::")).collect()
    }
    fn imports(source: &str) -> Vec<String> {
        let scan = scan(source).unwrap();
        scan.imports.iter().map(|(name, m)| format!("{} as {name}", m.segments.join("::"))).collect()
    }

    #[test]
    fn trees_of_imports_are_opened() {
        let found =
            imports("pub(crate) use crate::{a::{self, B as C}, d::*, super_f};\nuse super::g;\nuse self::h;");
        let wanted = [
            "crate::a as a",
            "crate::a::B as C",
            "crate::d as *",
            "crate::super_f as super_f",
            "super::g as g",
            "self::h as h",
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn paths_are_read_from_code_only() {
        let source = "/// [`crate::docs::D`]\n/* crate::c::C /* nested */ crate::n::N */\n\
                      fn f<'a>(x: &'a crate::a::A) -> u8 { let _ = \"crate::t::T\\\"\"; r#\"crate::r\"::R\"#; '\\''; '\"';\n\
                      Vec::<super::b::B>::new(); x.crate_::y; <X as self::t::Tr>::m() }\n\
                      pub(in crate::v) struct S;";
        assert_eq!(paths(source), ["crate::a::A", "super::b::B", "self::t::Tr"]);
        let lines: Vec<usize> = scan(source).unwrap().paths.iter().map(|m| m.line).collect();
        assert_eq!(lines, [3, 4, 4]);
    }

    #[test]
    fn what_is_for_tests_is_left_out() {
        let source = "#[cfg(test)]\nmod tests;\n#[cfg(test)]\n#[allow(x)]\npub(crate) use crate::a::{B, C};\n\
                      #[cfg(test)]\nmod t { fn f() { crate::d::e(); } }\n#[cfg(all(test, unix))]\nconst fn g() { crate::h::i() }\n\
                      #[cfg(unix)]\nmod kept;\nfn k() { crate::l::m() }";
        let found = scan(source).unwrap();
        assert_eq!((found.modules, found.imports.len()), (vec!["kept".to_owned()], 0));
        assert_eq!(paths(source), ["crate::l::m"]);
        assert!(scan("//! Tests.\n#![cfg(test)]\nuse crate::a;").is_none());
    }

    #[test]
    fn registries_are_slices_in_statics_and_nothing_else() {
        let source = "pub static ALL: &[&dyn T] = &[&crate::a::A, &crate::b::B];\nstatic ONE: T = crate::c::C;\n\
                      const LIST: &[T] = &[crate::d::D];\nfn f() { static LOCAL: &[T] = &[crate::e::E]; }";
        assert_eq!(paths(source), ["crate::c::C", "crate::d::D", "crate::e::E"]);
        let lines: Vec<_> = scan(source).unwrap().registry.iter().map(|m| m.segments.join("::")).collect();
        assert_eq!(lines, ["crate::a::A", "crate::b::B"]);
    }

    #[test]
    fn modules_written_out_know_their_depth() {
        let found =
            scan("mod outer { pub mod inner { use super::super::x::Y; } fn f() { super::z::w() } }").unwrap();
        assert_eq!((found.imports[0].1.inside, found.paths[0].inside), (2, 1));
    }
}
