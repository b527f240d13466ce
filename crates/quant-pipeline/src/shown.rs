//! Paths in JSON, as they are shown: one that is no UTF-8 must not take away the result that it stands beside.

use serde::Serializer;
use std::path::{Path, PathBuf};

pub(crate) fn path<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

pub(crate) fn maybe<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => to.collect_str(&path.display()),
        None => to.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::PathBuf;

    #[test]
    fn a_path_that_is_no_utf8_is_shown() {
        #[derive(serde::Serialize)]
        struct Outcome {
            #[serde(serialize_with = "super::path")]
            model: PathBuf,
            #[serde(serialize_with = "super::maybe")]
            reference: Option<PathBuf>,
        }
        let model = PathBuf::from(OsStr::from_bytes(b"m/\xff"));
        let json = |reference| serde_json::to_string(&Outcome { model: model.clone(), reference }).unwrap();
        assert_eq!(json(Some(model.clone())), "{\"model\":\"m/\u{fffd}\",\"reference\":\"m/\u{fffd}\"}");
        assert_eq!(json(None), "{\"model\":\"m/\u{fffd}\",\"reference\":null}");
    }
}
