//! What the hub asks for before it gives files of some data sets.

use crate::hub_error::HubError;
use std::fmt;
use std::io::Read;
use std::path::Path;

/// No token is longer; what is longer is some other file.
const MOST_BYTES: usize = 4096;

/// A token of the hub, from a file that was named. `Debug` shows nothing of it, and there is no `Display`.
#[derive(Clone)]
pub struct HubToken(String);

impl HubToken {
    /// The token in a file: one line.
    ///
    /// # Errors
    /// [`HubError::Token`] for a file that cannot be read, or holds anything but one line of visible ASCII characters, at most 4096 of them.
    pub fn from_file(path: &Path) -> Result<Self, HubError> {
        let refused = |reason: String| HubError::Token { path: path.to_owned(), reason };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(|e| refused(e.to_string()))?;
        // With room for the end of the line.
        file.take(MOST_BYTES as u64 + 3).read_to_end(&mut bytes).map_err(|e| refused(e.to_string()))?;
        let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let one_line = !line.is_empty() && line.len() <= MOST_BYTES && line.iter().all(u8::is_ascii_graphic);
        match String::from_utf8(line.to_vec()) {
            Ok(token) if one_line => Ok(Self(token)),
            _ => Err(refused("expected one line of visible ASCII characters".to_owned())),
        }
    }

    /// For the header only.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HubToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubToken(..)")
    }
}
