//! Whether the walls hold.

use super::execute::last_line;
use super::sandbox::Sandbox;
use crate::error::SandboxError;
use crate::limits::{Limits, Status};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

/// Tries the walls from inside.
const PROBE: &str = include_str!("probe.py");

/// The walls that [`PROBE`] must have tried. Three more are tried where the interpreter has the means.
const WALLS: [&str; 8] = [
    "files of the host",
    "read-only files",
    "size of the scratch",
    "network",
    "open files of the host",
    "processes of the host",
    "number of processes",
    "memory",
];

/// Runs the probe. The error is a reason why nothing runs with this interpreter, or the wall that does not hold with any.
pub(crate) fn probe(sandbox: &Sandbox) -> Result<(), Result<String, SandboxError>> {
    let system = |what| move |source| Err(SandboxError::System { what, source });
    // Something to connect to, which is seen to answer from outside.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(system("listen on the loopback"))?;
    let address = listener.local_addr().map_err(system("listen on the loopback"))?;
    TcpStream::connect(address).map_err(system("connect to the loopback"))?;
    // Something to find.
    let secret = tempfile::NamedTempFile::new().map_err(system("write a temporary file"))?;
    let limits = Limits {
        wall: Duration::from_secs(30),
        cpu: Duration::from_secs(20),
        memory: 512 << 20,
        processes: 6,
        output: 64 << 10,
        scratch: 1 << 20,
    };
    let given = json!({
        "port": address.port(), "pid": std::process::id(), "scratch": limits.scratch, "processes": limits.processes,
        "memory": limits.memory, "hidden": ["/etc/passwd", "/proc", "/sys", secret.path()],
    });
    let run = match sandbox.run(PROBE, given.to_string().as_bytes(), &limits) {
        Ok(run) => run,
        Err(SandboxError::System { source, .. }) => return Err(Ok(source.to_string())),
        Err(other) => return Err(Err(other)),
    };
    if run.status != Status::Exited(0) {
        return Err(Ok(format!("{:?}: {}", run.status, last_line(&run.stderr))));
    }
    let held: Value = serde_json::from_slice(&run.stdout).map_err(|e| Ok(format!("no answer: {e}")))?;
    match fallen(&held) {
        walls if walls.is_empty() => Ok(()),
        walls => Err(Err(SandboxError::Unavailable {
            what: format!("the wall around: {}", walls.join(", ")),
            why: "a program inside could get past it".to_owned(),
            advice: "another kernel or container may have it; nothing is run without".to_owned(),
        })),
    }
}

/// The walls that were not tried, or did not hold.
fn fallen(held: &Value) -> Vec<String> {
    let Some(tried) = held.as_object() else { return WALLS.map(str::to_owned).to_vec() };
    let untried = WALLS.iter().filter(|wall| !tried.contains_key(**wall)).map(|wall| (*wall).to_owned());
    untried.chain(tried.iter().filter(|(_, held)| **held != true).map(|(wall, _)| wall.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wall_must_have_been_tried_and_hold() {
        let mut held = json!({"namespaces": true});
        for wall in WALLS {
            held[wall] = json!(true);
        }
        assert!(fallen(&held).is_empty());
        held["namespaces"] = json!(false);
        held["memory"] = json!("yes");
        held.as_object_mut().unwrap().remove("network");
        assert_eq!(fallen(&held), ["network", "namespaces", "memory"]);
        assert_eq!(fallen(&json!([])).len(), WALLS.len());
        for wall in WALLS {
            assert!(PROBE.contains(&format!("held[\"{wall}\"]")), "{wall}");
        }
    }
}
