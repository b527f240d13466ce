//! Where mathematics stands in a text.

use super::anchors::reach;
use std::ops::Range;

/// Something that may be an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Where it stands, with its delimiters, or the space in front of a number.
    pub(super) whole: Range<usize>,
    /// What of it is read.
    pub(super) inside: Range<usize>,
    /// Whether a percent sign follows that is not in `inside`.
    pub(super) percent: bool,
}

/// Mathematics between `$$`, `\[`, `$`, `\(` and single brackets among spaces, and fractions of numbers outside of it, in order. Takes
/// time in proportion to the text.
pub(super) fn environments(text: &str) -> Vec<Place> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    // Where a search for each kind of end was last in vain: nothing that starts before needs another.
    let mut vain = [0_usize; 5];
    let mut at = 0;
    while at < bytes.len() {
        let (kind, open, close, one_line): (usize, &str, &str, bool) = match bytes[at] {
            b'\\' if bytes[at..].starts_with(b"\\[") => (0, "\\[", "\\]", false),
            b'\\' if bytes[at..].starts_with(b"\\(") => (1, "\\(", "\\)", true),
            b'\\' => {
                if let Some(end) = fraction(text, at) {
                    let start = if at > 0 && bytes[at - 1] == b'-' { at - 1 } else { at };
                    found.push(Place { whole: start..end, inside: start..end, percent: false });
                    at = end;
                } else {
                    at += 2;
                }
                continue;
            }
            b'$' if bytes[at..].starts_with(b"$$") => (2, "$$", "$$", false),
            b'$' if at == 0 || !bytes[at - 1].is_ascii_digit() => (3, "$", "$", true),
            b'[' if at > 0 && bytes[at - 1].is_ascii_whitespace() => (4, "[", "]", true),
            _ => {
                at += 1;
                continue;
            }
        };
        let inside = at + open.len();
        let end = if at < vain[kind] { None } else { close_of(text, inside, close, one_line) };
        match end {
            Some(Ok(end)) if end > inside && (kind != 4 || follows_space(bytes, end + 1)) => {
                let behind = end + close.len();
                found.push(Place {
                    whole: at..behind,
                    inside: inside..end,
                    percent: percent_follows(text, behind),
                });
                at = behind;
            }
            Some(Err(stopped)) => {
                vain[kind] = stopped;
                at = inside;
            }
            _ => at = inside,
        }
    }
    found
}

/// The end of what begins at `from`, or where the search for it stopped.
fn close_of(text: &str, from: usize, close: &str, one_line: bool) -> Option<Result<usize, usize>> {
    let bytes = text.as_bytes();
    let mut at = from;
    while at < bytes.len() {
        if bytes[at..].starts_with(close.as_bytes()) {
            return Some(Ok(at));
        }
        match bytes[at] {
            b'\n' if one_line => return Some(Err(at)),
            b'[' if close == "]" => return Some(Err(at)),
            // An escaped character is none of the delimiters that begin with another.
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    Some(Err(bytes.len()))
}

fn follows_space(bytes: &[u8], at: usize) -> bool {
    bytes.get(at).is_none_or(u8::is_ascii_whitespace)
}

/// Whether a percent, in a sign or in words, follows mathematics or a number.
fn percent_follows(text: &str, at: usize) -> bool {
    let rest = text[at..].trim_start();
    rest.starts_with('%')
        || rest.starts_with("\\%")
        || ["percent", "Percent", "pct", "Pct"].iter().any(|word| rest.starts_with(word))
}

/// The end of `\frac{n}{m}` of plain numbers.
fn fraction(text: &str, at: usize) -> Option<usize> {
    let rest = &text[at..];
    let rest = ["\\frac", "\\dfrac", "\\tfrac"].iter().find_map(|name| rest.strip_prefix(name))?;
    let number = |rest: &'_ str| -> Option<usize> {
        let inside = rest.strip_prefix('{')?;
        let end = inside.bytes().take(40).position(|b| b == b'}')?;
        let digits = inside[..end].strip_prefix('-').unwrap_or(&inside[..end]);
        let plain = digits.starts_with(|c: char| c.is_ascii_digit())
            && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b',');
        plain.then_some(end + 2)
    };
    let above = number(rest)?;
    let below = number(&rest[above..])?;
    Some(text.len() - rest.len() + above + below)
}

/// Numbers behind a space, an equals sign or at the start, with thousands, decimals, a currency in front and a percent behind; and
/// arithmetic of numbers, which ends in front of a space or punctuation.
pub(super) fn numbers(text: &str) -> Vec<Place> {
    let mut found = Vec::new();
    let bytes = text.as_bytes();
    // The end of the last arithmetic: what stands in it begins none of its own.
    let mut spent = 0;
    let mut at = 0;
    while at <= bytes.len() {
        let prefixed = at == 0 || bytes[at - 1] == b'=' || ends_in_space(text, at);
        let start = at;
        at += 1;
        if !prefixed || start == bytes.len() || !text.is_char_boundary(start) {
            continue;
        }
        let behind_bold = if bytes[start..].starts_with(b"**") { start + 2 } else { start };
        let whole_start = start.saturating_sub(1);
        let whole_start = if text.is_char_boundary(whole_start) { whole_start } else { start };
        if start >= spent
            && let Some((end, run_end)) = arithmetic(text, behind_bold)
        {
            spent = run_end;
            if let Some(end) = end {
                found.push(Place { whole: whole_start..end, inside: behind_bold..end, percent: false });
            }
        }
        let money = &text[behind_bold..];
        let escaped = usize::from(money.starts_with("\\$"));
        let sign = money[escaped..].chars().next().filter(|c| is_currency(*c));
        let currency = escaped + sign.map_or(0, char::len_utf8);
        if let Some(end) = number(bytes, behind_bold + currency) {
            let percent = percent_follows(text, end);
            found.push(Place { whole: whole_start..end, inside: behind_bold + currency..end, percent });
            at = at.max(end);
        }
    }
    found
}

fn ends_in_space(text: &str, at: usize) -> bool {
    text.is_char_boundary(at) && text[..at].ends_with(char::is_whitespace)
}

fn is_currency(c: char) -> bool {
    matches!(c, '$' | '\u{a3}' | '\u{a5}' | '\u{a4}' | '\u{e3f}' | '\u{20a0}'..='\u{20bf}')
}

/// The end of a number.
fn number(bytes: &[u8], from: usize) -> Option<usize> {
    let digits = |at: usize| bytes[at.min(bytes.len())..].iter().take_while(|b| b.is_ascii_digit()).count();
    let start = from + usize::from(bytes.get(from) == Some(&b'-'));
    let whole = digits(start);
    let mut end = start + whole;
    if (1..=3).contains(&whole) && bytes[start] != b'0' {
        // A separator is a comma, or a space; each group has three digits and no fourth.
        while matches!(bytes.get(end), Some(b',' | b' ')) && digits(end + 1) == 3 {
            end += 4;
        }
    }
    let point = matches!(bytes.get(end), Some(b'.'))
        || whole > 0 && end == start + whole && bytes.get(end) == Some(&b',');
    let places = if point { digits(end + 1) } else { 0 };
    if places > 0 {
        end += 1 + places;
    }
    (whole > 0 || places > 0).then_some(end)
}

/// The end of arithmetic that has an operator in it, and of all characters that could belong to it; none where it does not begin.
fn arithmetic(text: &str, from: usize) -> Option<(Option<usize>, usize)> {
    let rest = &text[from..];
    let begins = rest.trim_start_matches('-').trim_start_matches('(').trim_start_matches('-');
    let marks = rest.len() - begins.len();
    if marks > 3 || !begins.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let operator = |c: char| "+-*/^()\u{d7}\u{f7}".contains(c);
    let run = rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c.is_whitespace() || operator(c)));
    let run = &rest[..run.unwrap_or(rest.len())];
    // Two asterisks end what is bold.
    let run = &run[..run.find("**").unwrap_or(run.len())];
    let followed = rest[run.len()..].chars().next();
    let kept = run.trim_end_matches(|c: char| c.is_whitespace() || c == '.' || operator(c) && c != ')');
    // A word that begins where it ends belongs to it, unless there is a space between.
    let clear = kept.len() < run.len() || followed.is_none_or(|c| ",:$*".contains(c));
    let inside = &kept[marks.min(kept.len())..];
    let has_operator = inside.contains(operator);
    Some(((clear && has_operator).then_some(from + kept.len()), from + run.len()))
}

/// The first of `places` that begins in the `count` characters from `from` on, on the same line if so wanted.
pub(super) fn first_within<'a>(
    text: &str,
    places: &'a [Place],
    from: usize,
    count: usize,
    same_line: bool,
) -> Option<&'a Place> {
    let limit = reach(text, from, count);
    let first = places.partition_point(|place| place.whole.start < from);
    let found = places.get(first).filter(|place| place.whole.start <= limit)?;
    (!same_line || !text[from..found.whole.start].contains('\n')).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside<'a>(text: &'a str, places: &[Place]) -> Vec<&'a str> {
        places.iter().map(|place| &text[place.inside.clone()]).collect()
    }

    #[test]
    fn mathematics_in_its_delimiters() {
        let text = "a $x+1$ b \\(y\\) c \\[z\n2\\] d $$w$$ e [ v ] f \\frac{1}{2} g -\\frac{3}{4}";
        assert_eq!(
            inside(text, &environments(text)),
            ["x+1", "y", "z\n2", "w", " v ", "\\frac{1}{2}", "-\\frac{3}{4}"]
        );
        let text = "costs 5$ or \\$6, then \\\\( and $ alone\n $3";
        assert_eq!(inside(text, &environments(text)), Vec::<&str>::new());
        let text = "$50$\\% and $3$ percent";
        assert!(environments(text).iter().all(|place| place.percent));
    }

    #[test]
    fn numbers_in_text() {
        let text = "1,234.5 apples =7 x8 $12 **9** -3 1/2 3,5 .25 50% 3+4x 2 * (3 + 4). end 12";
        assert_eq!(
            inside(text, &numbers(text)),
            [
                "1,234.5",
                "7",
                "12",
                "9",
                "-3 1/2 3",
                "-3",
                "1",
                "3,5",
                ".25",
                "50",
                "3",
                "2 * (3 + 4)",
                "2",
                "4",
                "12"
            ]
        );
        assert!(numbers("50 %").iter().all(|place| place.percent));
        assert_eq!(inside("\u{a0}5", &numbers("\u{a0}5")), ["5"]);
    }

    #[test]
    fn long_texts_take_no_time() {
        for part in [
            "{", "\\frac{", "((((", "7", "7 ", "$", "\\(", "\\[", " [", "=-(", "1/", "$$x", "**", "\\",
            "$1\n",
        ] {
            let text = part.repeat((1 << 20) / part.len());
            let before = std::time::Instant::now();
            let found = environments(&text).len() + numbers(&text).len();
            assert!(before.elapsed().as_secs_f64() < 0.5, "{part} {found} {:?}", before.elapsed());
        }
    }
}
