//! The tests of a problem, from the fields of the data set.

use super::pickle;
use crate::error::SandboxError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::ZlibDecoder;
use serde::Deserialize;
use std::io::Read;

/// Input and expected output.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Case {
    /// Stdin; or the arguments, each in JSON on a line.
    pub input: String,
    /// What must be printed; or what must be returned, in JSON.
    pub output: String,
}

/// All tests of a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tests {
    /// The function to be called; none where the program reads stdin.
    pub function: Option<String>,
    /// At least one.
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Metadata {
    func_name: Option<String>,
}

impl Tests {
    /// The tests of a record: its `public_test_cases` and `private_test_cases`, in this order, and its `metadata`.
    ///
    /// Private tests may be packed: JSON, as a text that was pickled, compressed by zlib and written in base64. They are unpacked to at
    /// most `most_unpacked` bytes, and the pickle is read as data: one that holds anything but a text is refused.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Tests`] where a field is something else, or no tests are there.
    pub fn parse(
        public: &str,
        private: &str,
        metadata: &str,
        most_unpacked: u64,
    ) -> Result<Self, SandboxError> {
        let mut tests = cases("public_test_cases", public)?;
        let what = "private_test_cases";
        if private.trim_start().starts_with('[') {
            tests.extend(cases(what, private)?);
        } else if !private.trim().is_empty() {
            let unpacked = unpack(private.trim(), most_unpacked)
                .map_err(|(expected, found)| SandboxError::Tests { what, expected, found })?;
            tests.extend(cases(what, &unpacked)?);
        }
        if tests.is_empty() {
            let (expected, found) = ("at least one test".to_owned(), "none".to_owned());
            return Err(SandboxError::Tests { what: "test cases", expected, found });
        }
        let function = match metadata.trim() {
            "" => None,
            text => json::<Metadata>("metadata", text, "an object that may have func_name")?.func_name,
        };
        Ok(Self { function: function.filter(|name| !name.is_empty()), cases: tests })
    }
}

fn cases(what: &'static str, text: &str) -> Result<Vec<Case>, SandboxError> {
    json(what, text, "a list of tests in JSON, [{\"input\": …, \"output\": …}]")
}

fn json<'a, T: Deserialize<'a>>(
    what: &'static str,
    text: &'a str,
    expected: &str,
) -> Result<T, SandboxError> {
    serde_json::from_str(text).map_err(|error| SandboxError::Tests {
        what,
        expected: expected.to_owned(),
        found: error.to_string(),
    })
}

/// The JSON in packed tests.
fn unpack(packed: &str, most: u64) -> Result<String, (String, String)> {
    let compressed = STANDARD
        .decode(packed)
        .map_err(|error| ("a list in JSON, or base64".to_owned(), error.to_string()))?;
    let mut pickled = Vec::new();
    ZlibDecoder::new(compressed.as_slice())
        .take(most.saturating_add(1))
        .read_to_end(&mut pickled)
        .map_err(|error| ("data compressed by zlib".to_owned(), error.to_string()))?;
    if pickled.len() as u64 > most {
        return Err((format!("at most {most} bytes when unpacked"), "more".to_owned()));
    }
    pickle::text(&pickled).map_err(|(expected, found)| (format!("a pickled text ({expected})"), found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::ZlibEncoder;
    use std::io::Write;

    /// `base64(zlib(pickle))` around a text.
    fn packed(pickle: &[u8]) -> String {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(pickle).unwrap();
        STANDARD.encode(encoder.finish().unwrap())
    }

    fn pickled(text: &str) -> Vec<u8> {
        let mut pickle = b"\x80\x04X".to_vec();
        pickle.extend((text.len() as u32).to_le_bytes());
        pickle.extend(text.as_bytes());
        pickle.extend(b"\x94.");
        pickle
    }

    const ONE: &str = r#"[{"input": "1", "output": "2", "testtype": "stdin"}]"#;

    #[test]
    fn public_and_private_tests_are_joined() {
        let two = r#"[{"input": "3", "output": "é"}]"#;
        for private in [two.to_owned(), packed(&pickled(two)), format!("{}\n", packed(&pickled(two)))] {
            let tests = Tests::parse(ONE, &private, r#"{"func_name": "f"}"#, 1000).unwrap();
            assert_eq!(tests.function.as_deref(), Some("f"));
            let cases: Vec<_> = tests.cases.iter().map(|c| (c.input.as_str(), c.output.as_str())).collect();
            assert_eq!(cases, [("1", "2"), ("3", "é")]);
        }
        for metadata in ["", "{}", "{\"func_name\": null}", "{\"func_name\": \"\"}"] {
            assert_eq!(Tests::parse(ONE, "", metadata, 1000).unwrap().function, None);
        }
    }

    #[test]
    fn a_genuine_pickle_of_python_is_read() {
        // base64.b64encode(zlib.compress(pickle.dumps(json.dumps([{"input": "1", "output": "2"}])))) of CPython 3.11.
        let packed = "eJxrYJmqzAABPfLR1UqZeQWlJUpWCkqGSjoKSvmlJVCukVJt7BQ9APfMC64=";
        let found = Tests::parse(ONE, packed, "{}", 1000).unwrap();
        assert_eq!(found.cases[1], Case { input: "1".to_owned(), output: "2".to_owned() });
    }

    #[test]
    fn other_data_is_refused_with_the_reason() {
        let global = b"cposix\nsystem\n(S'id'\ntR.";
        let bomb = vec![b' '; 1_000_000];
        for (private, expected, found) in [
            (packed(global), "a pickled text (only a text)", "the operation GLOBAL"),
            (packed(&bomb), "at most 1000 bytes when unpacked", "more"),
            (packed(&pickled("{}")), "a list of tests in JSON", "invalid type: map"),
            ("*".to_owned(), "a list in JSON, or base64", "Invalid symbol 42"),
            (STANDARD.encode("no zlib"), "data compressed by zlib", "corrupt deflate stream"),
            ("[1]".to_owned(), "a list of tests in JSON", "invalid type: integer `1`"),
        ] {
            let error = Tests::parse(ONE, &private, "{}", 1000).unwrap_err().to_string();
            assert!(error.starts_with("private_test_cases: expected "), "{error}");
            assert!(error.contains(expected) && error.contains(found), "{error}");
        }
        let error = Tests::parse("[]", "", "{}", 1000).unwrap_err().to_string();
        assert!(error.contains("expected at least one test, found none"), "{error}");
        let error = Tests::parse(ONE, "", "[1, 2]", 1000).unwrap_err().to_string();
        assert!(error.starts_with("metadata: expected an object"), "{error}");
    }
}
