//! A key that no message shows.

use crate::error::ClientError;
use std::fmt;
use std::io::Read;
use std::path::Path;

/// No key is longer; what is longer is some other file.
const MOST_BYTES: usize = 4096;
/// What stands in messages in place of the key.
const HIDDEN: &str = "[key]";
/// Characters of an answer that an error shows.
const SHOWN: usize = 200;

/// What a server asks for in `Authorization: Bearer KEY`. `Debug` shows nothing of it, and there is no `Display`.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// The key in a file: one line.
    ///
    /// # Errors
    ///
    /// [`ClientError::KeyFile`] if it cannot be read; [`ClientError::Key`] if it holds anything but one line of visible ASCII
    /// characters, or more than 4096 of them.
    pub fn from_file(path: &Path) -> Result<Self, ClientError> {
        let failed = |source| ClientError::KeyFile { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        // With room for the end of the line.
        file.take(MOST_BYTES as u64 + 3).read_to_end(&mut bytes).map_err(failed)?;
        Self::new(&bytes, || path.display().to_string())
    }

    /// The key in an environment variable that the caller was told the name of.
    ///
    /// # Errors
    ///
    /// [`ClientError::Key`] if the variable is not set, or as for [`ApiKey::from_file`].
    pub fn from_variable(name: &str) -> Result<Self, ClientError> {
        let from = || format!("the variable {name:?}");
        // `var_os` panics on no name; an empty one and one with `=` or NUL are those of no variable.
        let named = !name.is_empty() && !name.contains(['=', '\0']);
        match named.then(|| std::env::var_os(name)).flatten() {
            Some(value) => Self::new(value.as_encoded_bytes(), from),
            None => Err(ClientError::Key { from: from(), reason: "is not there: the variable is not set" }),
        }
    }

    fn new(bytes: &[u8], from: impl Fn() -> String) -> Result<Self, ClientError> {
        let refused = |reason| ClientError::Key { from: from(), reason };
        let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return Err(refused("is empty"));
        }
        if line.len() > MOST_BYTES {
            return Err(refused("has more than 4096 characters"));
        }
        if !line.iter().all(u8::is_ascii_graphic) {
            return Err(refused("has spaces, line breaks or characters that are not ASCII"));
        }
        String::from_utf8(line.to_vec()).map(Self).map_err(|_| refused("is not ASCII"))
    }

    /// For the header only.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// The begin of an answer as an error shows it: without the key, on one line, 200 characters.
///
/// `whole` says that `text` is all that was sent. Otherwise as many bytes as the key has are left out at its end, where a
/// part of the key may stand.
pub(crate) fn excerpt(text: &[u8], whole: bool, key: Option<&ApiKey>) -> String {
    let text = match key {
        Some(key) if !whole => &text[..text.len().saturating_sub(2 * key.0.len())],
        _ => text,
    };
    let mut text = String::from_utf8_lossy(text).into_owned();
    if let Some(ApiKey(key)) = key {
        // As it is, and as JSON writes it: with `"` and `\` escaped, by some also `/`.
        let json = key.replace('\\', "\\\\").replace('"', "\\\"");
        for form in [json.replace('/', "\\/"), json, key.clone()] {
            text = text.replace(&form, HIDDEN);
        }
    }
    let text = text.trim();
    let mut shown: String = text.chars().take(SHOWN).flat_map(one_line).collect();
    if text.is_empty() {
        shown.push_str("(an empty answer)");
    } else if text.chars().nth(SHOWN).is_some() || !whole {
        shown.push('…');
    }
    shown
}

/// Control characters must not reach a terminal.
fn one_line(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control().then(|| c.escape_default());
    let plain = (!c.is_control()).then_some(c);
    escaped.into_iter().flatten().chain(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_excerpt_holds_the_key(
            secret in "[!-~]{6,40}", before in ".{0,250}", after in ".{0,250}",
        ) {
            let secret = key(&secret).unwrap();
            let text = format!("{before}{}{after}", secret.reveal());
            let shown = excerpt(text.as_bytes(), true, Some(&secret));
            prop_assert!(!shown.contains(secret.reveal()) && shown.chars().count() <= 10 * SHOWN, "{}", shown);
        }

        #[test]
        fn no_part_of_a_key_is_shown_where_the_text_is_cut(
            secret in "[a-z0-9]{6,40}", before in "[ -/]{0,250}", cut in 0_usize..600,
        ) {
            let text = format!("{before}{secret}");
            let secret = key(&secret).unwrap();
            let shown = excerpt(&text.as_bytes()[..cut.min(text.len() - 1)], false, Some(&secret));
            prop_assert!(shown.starts_with("(an empty answer)") || !shown.contains(char::is_alphanumeric), "{}", shown);
        }
    }

    fn key(text: &str) -> Result<ApiKey, ClientError> {
        ApiKey::new(text.as_bytes(), || "the test".to_owned())
    }

    #[test]
    fn keys_are_one_visible_line() {
        assert_eq!(key("sk-abc\r\n").unwrap().reveal(), "sk-abc");
        for (text, reason) in [
            ("", "is empty"),
            ("\n", "is empty"),
            ("a b", "has spaces"),
            ("a\nb", "line breaks"),
            ("é", "not ASCII"),
        ] {
            let error = key(text).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("the test"), "{error}");
        }
        assert!(key(&"k".repeat(4097)).unwrap_err().to_string().contains("4096"));
        assert_eq!(format!("{:?}", key("sk-abc").unwrap()), "ApiKey(..)");
    }

    #[test]
    fn excerpts_hold_no_key() {
        let secret = key("sk/a\"b\\c").unwrap();
        for echo in ["sk/a\"b\\c", "sk/a\\\"b\\\\c", "sk\\/a\\\"b\\\\c"] {
            let shown = excerpt(format!("wrong key {echo}!").as_bytes(), true, Some(&secret));
            assert_eq!(shown, "wrong key [key]!");
        }
        // Cut within the key.
        let shown = excerpt(b"0123456789 123456789 wrong key sk/a\"b", false, Some(&secret));
        assert!(!shown.contains("sk/"), "{shown}");
    }

    #[test]
    fn excerpts_are_short_and_on_one_line() {
        assert_eq!(excerpt(b"a\x1b[2J\nb", true, None), "a\\u{1b}[2J\\nb");
        assert_eq!(excerpt("é".repeat(300).as_bytes(), true, None), format!("{}…", "é".repeat(200)));
        assert_eq!(excerpt(b" ", true, None), "(an empty answer)");
    }
}
