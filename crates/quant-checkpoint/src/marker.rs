//! The mark of an unfinished output, which the writer sets and readers refuse.

/// Name of the file that marks a folder as unfinished. It is the first file written and the last one removed.
pub const MARKER: &str = "INCOMPLETE";

/// Name of the folder in it from which its run can go on.
pub(crate) const JOURNAL: &str = "JOURNAL";

/// How every marker begins.
pub(crate) const MARKER_TEXT: &str = "This folder is an unfinished output of a quantisation run. Do not load it. The command that began it goes on with \
     --resume where the folder holds a JOURNAL, and replaces it otherwise. It may be deleted when no run is active.\n";
