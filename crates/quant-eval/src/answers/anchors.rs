//! Where a text says that an answer follows.

/// The word "answer" in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Anchor {
    /// Behind the word, and behind a colon after it.
    pub(super) after: usize,
    /// Whether there is one.
    pub(super) colon: bool,
    /// Whether it is a "final answer".
    pub(super) is_final: bool,
}

/// Every "answer", in any case.
pub(super) fn anchors(text: &str) -> Vec<Anchor> {
    const WORD: &[u8] = b"answer";
    const FINAL: &[u8] = b"final ";
    let bytes = text.as_bytes();
    let at =
        |at: usize, word: &[u8]| bytes.get(at..at + word.len()).is_some_and(|b| b.eq_ignore_ascii_case(word));
    let starts = (0..bytes.len()).filter(|&start| at(start, WORD));
    let anchor = |start: usize| {
        let end = start + WORD.len();
        let colon = bytes.get(end) == Some(&b':');
        let is_final = start.checked_sub(FINAL.len()).is_some_and(|before| at(before, FINAL));
        Anchor { after: end + usize::from(colon), colon, is_final }
    };
    starts.map(anchor).collect()
}

/// The end of at most `count` characters from `from` on.
pub(super) fn reach(text: &str, from: usize, count: usize) -> usize {
    let rest = text.get(from..).unwrap_or_default();
    rest.char_indices().nth(count).map_or(text.len(), |(at, _)| from + at)
}

/// Behind every `is` with an optional colon and spaces, within 100 characters of a final answer; whether nothing but spaces stands
/// between them.
pub(super) fn after_is(text: &str, anchor: Anchor) -> Vec<(usize, bool)> {
    let from = anchor.after - usize::from(anchor.colon);
    let window = &text[from..reach(text, from, 110)];
    let mut found = Vec::new();
    for (at, _) in window.match_indices("is") {
        let before = &window[..at];
        if !before.ends_with(char::is_whitespace) {
            continue;
        }
        let rest = &window[at + 2..];
        let rest = rest.strip_prefix(':').unwrap_or(rest);
        found.push((from + window.len() - rest.len(), before.trim().is_empty()));
    }
    found
}

/// Whether `I hope` follows, as in a prompt for few-shot mathematics (Minerva, arXiv 2206.14858).
pub(super) fn hope_follows(text: &str, end: usize) -> bool {
    let rest = &text[end..];
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    let spaced = rest.strip_prefix(char::is_whitespace).unwrap_or(rest);
    spaced.starts_with("I hope")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_found_in_any_case() {
        let found = anchors("The Final ANSWER: 3, answers");
        let flags: Vec<_> = found.iter().map(|a| (a.after, a.colon, a.is_final)).collect();
        assert_eq!(flags, [(17, true, true), (27, false, false)]);
        assert!(anchors("answe").is_empty());
    }

    #[test]
    fn what_follows_is() {
        let text = "final answer to this is: 5. I hope";
        let found = after_is(text, anchors(text)[0]);
        // "this" ends in "is", but is another word.
        assert_eq!(found, [(24, false)]);
        assert!(hope_follows(text, 26) && !hope_follows(text, 25));
        let far = format!("final answer {} is 5", "x".repeat(200));
        assert!(after_is(&far, anchors(&far)[0]).is_empty());
        assert_eq!(reach("éé", 0, 1), 2);
    }
}
