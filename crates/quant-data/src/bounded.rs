//! Text that a program writes, up to a limit.

use std::io;

/// Longest text of one rendering in bytes, and longest value that is printed or written as JSON on the way.
pub(crate) const MAX_TEXT: usize = 64 << 20;

/// Collects bytes and fails once there would be more than its limit.
pub(crate) struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl Bounded {
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    /// What was written, as text.
    pub(crate) fn into_text(self) -> Result<String, String> {
        String::from_utf8(self.bytes).map_err(|e| e.to_string())
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            return Err(io::Error::other(format!("the text would have more than {} bytes", self.limit)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
