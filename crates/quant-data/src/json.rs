//! JSON from files of people: lines, and objects whose keys stand there once.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

/// Parses a line of a file. An object that has a key twice is refused: one of both would count for nothing.
///
/// # Errors
/// What is wrong, and at which column.
pub(crate) fn parse_line(line: &str) -> Result<Value, String> {
    let wrong = |error: &serde_json::Error| {
        // It counts lines from the first of what it was given, which is this one.
        format!("not JSON: {}", error.to_string().replace(" at line 1 column ", " at column "))
    };
    let value = serde_json::from_str(line).map_err(|e| wrong(&e))?;
    if matches!(value, Value::Object(_)) {
        refuse_double_keys(line.as_bytes()).map_err(|e| wrong(&e))?;
    }
    Ok(value)
}

/// Refuses an object that has a key twice, for which parsers keep the last.
pub(crate) fn refuse_double_keys(object: &[u8]) -> Result<(), serde_json::Error> {
    struct SingleKeys;
    impl<'de> Visitor<'de> for SingleKeys {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut seen = HashSet::new();
            while let Some(key) = map.next_key::<String>()? {
                map.next_value::<IgnoredAny>()?;
                if seen.contains(&key) {
                    return Err(A::Error::custom(format!("'{key}' stands there twice")));
                }
                seen.insert(key);
            }
            Ok(())
        }
    }
    serde_json::Deserializer::from_slice(object).deserialize_map(SingleKeys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_said_with_their_column() {
        assert_eq!(parse_line("{\"a\": 1}").unwrap()["a"], 1);
        assert_eq!(parse_line("[1]").unwrap()[0], 1);
        let trailing = parse_line("{\"a\": 1,}").unwrap_err();
        assert!(trailing.contains("at column 9") && !trailing.contains("line"), "{trailing}");
        let twice = parse_line("{\"a\": 1, \"b\": {}, \"a\": 1}").unwrap_err();
        assert!(twice.contains("'a' stands there twice"), "{twice}");
    }
}
