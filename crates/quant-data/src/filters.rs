//! Filters and tests of Jinja2, where those of the engine are missing, differ or have no bounds.

use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State};

use crate::bounded::MAX_TEXT;
use crate::python_json::{Style, dumps};
use crate::python_value::{list, write_str};

/// Most columns or items that a width may ask for.
const MAX_WIDTH: usize = 1000;

/// Puts them into an environment.
pub(crate) fn add_filters(environment: &mut Environment<'_>) {
    environment.add_filter("tojson", tojson);
    environment.add_filter("indent", indent);
    environment.add_filter("format", format);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("round", round);
    environment.add_filter("batch", batch);
    environment.add_filter("slice", slice);
    environment.add_filter("wordcount", |text: &str| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
    });
    environment.add_filter("center", |state: &State<'_, '_>, text: Value, width: Option<usize>| {
        text.call_method(state, "center", &[Value::from(width.unwrap_or(80))])
    });
    environment.add_filter("string", |value: &Value| -> Result<String, Error> {
        let mut text = String::new();
        write_str(&mut text, value)?;
        Ok(text)
    });
    // Of task files: annotations of data sets made from captions and articles.
    environment.add_filter("without_brackets", without_brackets);
    // Python's attributes, of which data has none: its keys are items.
    environment.add_filter("attr", |_value: &Value, _name: &str| Value::UNDEFINED);
    // Whatever has a length and can be indexed.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
    });
}

/// A text without what stands between brackets on one line, brackets included.
fn without_brackets(text: &str) -> String {
    let (mut kept, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(start) = rest.find('[') {
        let (before, inside) = rest.split_at(start);
        kept.push_str(before);
        match inside.find([']', '\n']) {
            Some(end) if inside[end..].starts_with(']') => rest = &inside[end + 1..],
            _ => {
                kept.push('[');
                rest = &inside[1..];
            }
        }
    }
    kept + rest
}

pub(crate) fn too_long() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a text of more than {MAX_TEXT} bytes"))
}

/// The filter of `transformers`: its first argument is `ensure_ascii`, and nothing is escaped for HTML.
fn tojson(value: Value, arguments: Rest<Value>) -> Result<String, Error> {
    type Arguments = (Option<bool>, Option<Value>, Option<Value>, Option<bool>, Kwargs);
    let (ensure_ascii, indent, separators, sort_keys, options): Arguments = from_args(&arguments)?;
    let bad = |e: String| Error::new(ErrorKind::InvalidOperation, e);
    let indent = indent.or(options.get("indent")?).filter(|value| !value.is_none());
    let indent = match indent {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(count) => {
            // Below zero is zero. The width is checked before the text is made.
            let count = usize::try_from(i128::try_from(count)?.max(0)).unwrap_or(usize::MAX);
            if count > MAX_WIDTH {
                return Err(bad(format!("an indent of {count}, at most {MAX_WIDTH} is supported")));
            }
            Some(" ".repeat(count))
        }
    };
    let separators = separators.or(options.get("separators")?).filter(|value| !value.is_none());
    let separators = separators.map(|pair| {
        let parts: Vec<Value> = pair.try_iter()?.collect();
        match parts.as_slice() {
            [item, key] => Ok((item.to_string(), key.to_string())),
            _ => Err(bad("separators are a pair of strings".into())),
        }
    });
    let style = Style {
        ensure_ascii: ensure_ascii.or(options.get("ensure_ascii")?).unwrap_or(false),
        indent,
        separators: separators.transpose()?,
        sort_keys: sort_keys.or(options.get("sort_keys")?).unwrap_or(false),
    };
    options.assert_all_used()?;
    dumps(&value, &style, MAX_TEXT).map_err(bad)
}

/// Jinja2's `int`: what is no number is the default.
fn int(value: &Value, default: Option<Value>) -> Value {
    let text = value.as_str().map(|text| text.trim().replace('_', ""));
    let number = match &text {
        Some(text) => text.parse::<i64>().ok().or_else(|| text.parse::<f64>().ok().map(|x| x as i64)),
        None if value.is_integer() => return value.clone(),
        None => f64::try_from(value.clone()).ok().map(|x| x as i64),
    };
    number.map_or_else(|| default.unwrap_or_else(|| 0.into()), Value::from)
}

/// Jinja2's `float`: what is no number is the default.
fn float(value: &Value, default: Option<Value>) -> Value {
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    };
    number.map_or_else(|| default.unwrap_or_else(|| 0.0.into()), Value::from)
}

/// The engine's `indent` with a bounded width.
fn indent(
    value: &str,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let width = width.or(options.get("width")?).unwrap_or(4);
    let first = first.or(options.get("first")?).unwrap_or(false);
    let blank = blank.or(options.get("blank")?).unwrap_or(false);
    options.assert_all_used()?;
    check_width(width)?;
    let margin = " ".repeat(width);
    let mut out = String::with_capacity(value.len());
    let text = value.strip_suffix('\n').unwrap_or(value);
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            out.push('\n');
        }
        if (number > 0 || first) && (blank || !line.is_empty()) {
            out.push_str(&margin);
        }
        out.push_str(line);
        if out.len() > MAX_TEXT {
            return Err(too_long());
        }
    }
    Ok(out)
}

/// The engine's `format` with bounded widths.
fn format(state: &State<'_, '_>, text: &Value, values: Rest<Value>) -> Result<Value, Error> {
    check_format(text)?;
    minijinja::filters::format(state, text, values)
}

pub(crate) fn check_width(width: usize) -> Result<(), Error> {
    if width <= MAX_WIDTH {
        return Ok(());
    }
    let message = format!("a width of {width}, at most {MAX_WIDTH} is supported");
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Refuses widths and precisions that are large, or that arguments give (`*`; the engine has no braces inside braces).
/// Every run of digits counts: what else stands in a format has no long ones.
pub(crate) fn check_format(format: &Value) -> Result<(), Error> {
    let text = format.as_str().unwrap_or_default();
    let digits = text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
    for run in digits {
        check_width(run.parse().unwrap_or(usize::MAX))?;
    }
    if text.contains('*') {
        let message = "widths in a format must be written out";
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(())
}

/// Python's `round`: the nearest decimal, ties of the exact value to even.
fn round(value: &Value, precision: Option<i32>, method: Option<&str>) -> Result<Value, Error> {
    let x = f64::try_from(value.clone())?;
    if value.is_integer() && matches!(method, None | Some("common")) {
        // An integer stays one; a float holds all that round to tens, hundreds and so on exactly.
        return Ok(match precision {
            Some(below @ ..0) => {
                Value::from(((x / 10_f64.powi(-below)).round_ties_even() * 10_f64.powi(-below)) as i64)
            }
            _ => value.clone(),
        });
    }
    let digits = usize::try_from(precision.unwrap_or(0)).unwrap_or(0);
    check_width(digits)?;
    if precision.unwrap_or(0) < 0 || matches!(method, Some("ceil" | "floor")) {
        let scale = 10_f64.powi(precision.unwrap_or(0));
        let scaled = x * scale;
        let whole = match method {
            Some("ceil") => scaled.ceil(),
            Some("floor") => scaled.floor(),
            _ => scaled.round_ties_even(),
        };
        return Ok(Value::from(whole / scale));
    }
    Ok(Value::from(format!("{x:.digits$}").parse().unwrap_or(x)))
}

/// Lists of `count` items, the last one filled up if there is something to fill with.
fn batch(value: &Value, count: usize, fill: Option<Value>) -> Result<Value, Error> {
    check_width(count)?;
    let items: Vec<Value> = value.try_iter()?.collect();
    let rows = items.chunks(count.max(1)).map(|chunk| {
        let mut row = chunk.to_vec();
        if let Some(fill) = &fill {
            row.resize(count.max(row.len()), fill.clone());
        }
        list(row)
    });
    Ok(list(rows.collect()))
}

/// `count` lists, the first ones longer by one where they cannot be equal.
fn slice(value: &Value, count: usize, fill: Option<Value>) -> Result<Value, Error> {
    check_width(count)?;
    let items: Vec<Value> = value.try_iter()?.collect();
    if count == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "slices: at least one is needed"));
    }
    let (short, longer) = (items.len() / count, items.len() % count);
    let mut rest = items.as_slice();
    let mut rows = Vec::with_capacity(count);
    for index in 0..count {
        let (row, after) = rest.split_at(short + usize::from(index < longer));
        rest = after;
        let mut row = row.to_vec();
        if let (Some(fill), true) = (&fill, index >= longer && longer > 0) {
            row.push(fill.clone());
        }
        rows.push(list(row));
    }
    Ok(list(rows))
}
