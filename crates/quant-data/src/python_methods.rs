//! Methods of Python's strings, lists and dictionaries, where those of the engine's Python module are missing or differ.

use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

use crate::filters::{check_format, check_width};
use crate::python_value::{list, tuple};

/// A method call of a template.
pub(crate) fn method(
    state: &State<'_, '_>,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = of_string(text, name, arguments)
    {
        return result;
    }
    match (value.kind(), name) {
        (ValueKind::String, "format") => check_format(value)?,
        (ValueKind::Seq, "index") => {
            let (what,): (&Value,) = from_args(arguments)?;
            let place = value.try_iter()?.position(|item| item == *what);
            return place.map(Value::from).ok_or_else(|| failed("value is not in list"));
        }
        (ValueKind::Map, "items") => {
            let () = from_args(arguments)?;
            let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
            return Ok(list(
                pairs.into_iter().flatten().map(|(key, value)| tuple(vec![key, value])).collect(),
            ));
        }
        (ValueKind::Map | ValueKind::Seq, "copy") => return Ok(value.clone()),
        _ => {}
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

fn failed(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// The result, or none if the engine's own method is right.
fn of_string(text: &str, name: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    Some(match name {
        "split" | "rsplit" => split(text, name == "rsplit", arguments),
        "partition" | "rpartition" => partition(text, name == "rpartition", arguments),
        "removeprefix" => one(arguments).map(|what| text.strip_prefix(what).unwrap_or(text).into()),
        "removesuffix" => one(arguments).map(|what| text.strip_suffix(what).unwrap_or(text).into()),
        "find" | "rfind" | "index" | "rindex" => find(text, name, arguments),
        "count" => one(arguments).map(|what| text.matches(what).count().into()),
        "splitlines" => split_lines(text, arguments),
        "zfill" => pad(text, name, arguments),
        "center" | "ljust" | "rjust" => pad(text, name, arguments),
        "swapcase" => none(arguments).map(|()| swap_case(text).into()),
        // Full case folding, apart from rare letters, is lower case with the sharp s written out.
        "casefold" => none(arguments).map(|()| text.to_lowercase().replace('ß', "ss").into()),
        "title" => none(arguments).map(|()| title(text).into()),
        "capitalize" => none(arguments).map(|()| capitalize(text).into()),
        "isalpha" => every(text, arguments, char::is_alphabetic),
        "isalnum" => every(text, arguments, char::is_alphanumeric),
        "isspace" => every(text, arguments, char::is_whitespace),
        "isdigit" | "isnumeric" | "isdecimal" => every(text, arguments, char::is_numeric),
        "isupper" => cased(text, arguments, char::is_uppercase, char::is_lowercase),
        "islower" => cased(text, arguments, char::is_lowercase, char::is_uppercase),
        _ => return None,
    })
}

fn none(arguments: &[Value]) -> Result<(), Error> {
    from_args(arguments)
}

fn one(arguments: &[Value]) -> Result<&str, Error> {
    let (what,): (&str,) = from_args(arguments)?;
    Ok(what)
}

fn strings(parts: &[&str]) -> Value {
    list(parts.iter().map(|part| Value::from(*part)).collect())
}

/// Texts without a character have no property.
fn every(text: &str, arguments: &[Value], is: fn(char) -> bool) -> Result<Value, Error> {
    none(arguments).map(|()| (!text.is_empty() && text.chars().all(is)).into())
}

/// At least one letter of the case and none of the other.
fn cased(
    text: &str,
    arguments: &[Value],
    is: fn(char) -> bool,
    other: fn(char) -> bool,
) -> Result<Value, Error> {
    none(arguments).map(|()| (text.chars().any(is) && !text.chars().any(other)).into())
}

fn split(text: &str, from_right: bool, arguments: &[Value]) -> Result<Value, Error> {
    let (separator, most, options): (Option<&Value>, Option<i64>, Kwargs) = from_args(arguments)?;
    let named: Option<Value> = options.get("sep")?;
    let most = match most {
        Some(most) => most,
        None => options.get::<Option<i64>>("maxsplit")?.unwrap_or(-1),
    };
    options.assert_all_used()?;
    let separator = separator.or(named.as_ref()).filter(|value| !value.is_none());
    let pieces = usize::try_from(most).map_or(usize::MAX, |most| most.saturating_add(1));
    let Some(separator) = separator else { return Ok(strings(&split_blanks(text, from_right, pieces))) };
    let separator = separator.as_str().ok_or_else(|| failed("the separator of a split is a string"))?;
    if separator.is_empty() {
        return Err(failed("empty separator"));
    }
    Ok(if from_right {
        let mut parts: Vec<&str> = text.rsplitn(pieces, separator).collect();
        parts.reverse();
        strings(&parts)
    } else {
        strings(&text.splitn(pieces, separator).collect::<Vec<_>>())
    })
}

/// Words between runs of blanks; what is left after `pieces - 1` of them is one piece, with the blanks at its far end.
fn split_blanks(text: &str, from_right: bool, pieces: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let near = |text: &'_ str| -> usize {
        if from_right { text.trim_end().len() } else { text.len() - text.trim_start().len() }
    };
    let mut rest = text;
    loop {
        let cut = near(rest);
        rest = if from_right { &rest[..cut] } else { &rest[cut..] };
        if rest.is_empty() {
            break;
        }
        let at = if from_right { rest.rfind(char::is_whitespace) } else { rest.find(char::is_whitespace) };
        let Some(at) = at.filter(|_| parts.len() + 1 < pieces) else {
            parts.push(rest);
            break;
        };
        if from_right {
            let word = at + rest[at..].chars().next().map_or(1, char::len_utf8);
            parts.push(&rest[word..]);
            rest = &rest[..at];
        } else {
            parts.push(&rest[..at]);
            rest = &rest[at..];
        }
    }
    if from_right {
        parts.reverse();
    }
    parts
}

fn partition(text: &str, from_right: bool, arguments: &[Value]) -> Result<Value, Error> {
    let separator = one(arguments)?;
    if separator.is_empty() {
        return Err(failed("empty separator"));
    }
    let found = if from_right { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    Ok(tuple(parts.iter().map(|part| Value::from(*part)).collect()))
}

/// Places are counted in characters.
fn find(text: &str, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (what, from): (&str, Option<usize>) = from_args(arguments)?;
    let skipped = from.unwrap_or(0);
    let start = text.char_indices().nth(skipped).map_or(text.len(), |(at, _)| at);
    let place = if name.starts_with('r') { text[start..].rfind(what) } else { text[start..].find(what) };
    match place {
        Some(at) => Ok(Value::from(text[..start + at].chars().count())),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => Err(failed("substring not found")),
    }
}

fn split_lines(text: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (keep, options): (Option<bool>, Kwargs) = from_args(arguments)?;
    let keep = keep.or(options.get("keepends")?).unwrap_or(false);
    options.assert_all_used()?;
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end =
            rest.find(['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}']);
        let Some(end) = end else {
            lines.push(rest);
            break;
        };
        let mark = if rest[end..].starts_with("\r\n") {
            2
        } else {
            rest[end..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(&rest[..if keep { end + mark } else { end }]);
        rest = &rest[end + mark..];
    }
    Ok(strings(&lines))
}

fn pad(text: &str, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<char>) = from_args(arguments)?;
    check_width(width)?;
    let length = text.chars().count();
    let missing = width.saturating_sub(length);
    if name == "zfill" {
        let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
        return Ok(format!("{sign}{}{digits}", "0".repeat(missing)).into());
    }
    // Where both sides cannot be equal, Python's choice depends on the width.
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        _ => missing / 2 + (missing & width & 1),
    };
    let blanks = |count: usize| fill.unwrap_or(' ').to_string().repeat(count);
    Ok(format!("{}{text}{}", blanks(left), blanks(missing - left)).into())
}

fn swap_case(text: &str) -> String {
    let swap = |c: char| -> String {
        if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
    };
    text.chars().map(swap).collect()
}

/// Letters behind letters in lower case, all others in upper case.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars.flat_map(char::to_lowercase)).collect()
}
