//! What a program tries, and what comes of it.

use super::sandbox;
use quant_sandbox::{Limits, Status};

#[test]
fn programs_run() {
    let Some(sandbox) = sandbox() else { return };
    let run = sandbox
        .run(
            "import sys\nprint(int(input()) ** 2)\nprint('no', file=sys.stderr)\nsys.exit(3)",
            b"12\nrest",
            &Limits::default(),
        )
        .unwrap();
    assert_eq!(run.status, Status::Exited(3), "{run:?}");
    assert_eq!((run.stdout.as_slice(), run.stderr.as_slice()), (&b"144\n"[..], &b"no\n"[..]));
}
