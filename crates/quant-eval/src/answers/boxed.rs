//! `\boxed{…}` with matched braces.

use std::ops::Range;

/// Every `\boxed{…}` and `\fbox{…}` of a text whose braces match, in the order of their ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Boxed {
    /// From the backslash to behind the closing brace.
    pub(super) whole: Range<usize>,
    /// Between the braces.
    pub(super) inside: Range<usize>,
}

/// One pass: braces on a stack, each with the box that it opened, if any.
pub(super) fn boxes(text: &str) -> Vec<Boxed> {
    let bytes = text.as_bytes();
    let mut open: Vec<(usize, Option<usize>)> = Vec::new();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => {
                let command =
                    ["\\boxed", "\\fbox"].into_iter().find(|c| bytes[at..].starts_with(c.as_bytes()));
                let Some(command) = command else {
                    // Also an escaped brace, which is none.
                    at += 2;
                    continue;
                };
                let start = at;
                at += command.len();
                let spaces = bytes[at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
                if bytes.get(at + spaces) == Some(&b'{') {
                    at += spaces + 1;
                    open.push((at, Some(start)));
                }
                continue;
            }
            b'{' => open.push((at + 1, None)),
            b'}' => {
                if let Some((inside, Some(start))) = open.pop() {
                    found.push(Boxed { whole: start..at + 1, inside: inside..at });
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(text: &str) -> Vec<&str> {
        boxes(text).into_iter().map(|found| &text[found.inside]).collect()
    }

    #[test]
    fn braces_match() {
        assert_eq!(inside(r"a \boxed{\frac{1}{2}} b \boxed {x} c"), [r"\frac{1}{2}", "x"]);
        assert_eq!(inside(r"\boxed{\{1, 2\}}"), [r"\{1, 2\}"]);
        assert_eq!(inside(r"\fbox{\boxed{3}}"), ["3", r"\boxed{3}"]);
        // One that never ends, and braces that close nothing.
        assert_eq!(inside(r"} \boxed{4} \boxed{5"), ["4"]);
        assert_eq!(inside(r"\boxed 5"), Vec::<&str>::new());
        assert_eq!(inside(r"\"), Vec::<&str>::new());
        assert_eq!(inside("\\é\\boxed{é}"), ["é"]);
    }
}
