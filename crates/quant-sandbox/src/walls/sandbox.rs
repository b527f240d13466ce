//! The sandbox: bubblewrap's namespaces around an interpreter.

use super::execute::{End, execute, last_line, signal_of};
use super::filter::filter;
use super::interpreter::Interpreter;
use super::possible::check;
use crate::error::SandboxError;
use crate::limits::{Limits, Run, Status};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Runs first inside: takes the limits on and becomes the program.
const BOOTSTRAP: &str = include_str!("bootstrap.py");
/// What [`BOOTSTRAP`] writes to stdout before it becomes the program.
const READY: u8 = 6;
/// How many users root shares its programs out to. On kernels before 5.14 processes are counted by user across sandboxes.
const USERS: u32 = 100;
/// `SIGXCPU`, by which the kernel ends what has used its time on the processor.
const SIGXCPU: u8 = 24;

/// A place where programs nobody trusts can run.
///
/// Each program has user, process, mount, network, IPC, host name and control group namespaces of its own, no right of root, a
/// filter of system calls, the interpreter's files to read and one `/tmp` of limited size to write. It may be shared by threads.
///
/// ```no_run
/// use quant_sandbox::{Limits, Sandbox, SandboxOptions, Status};
///
/// let sandbox = Sandbox::find(&SandboxOptions::default())?;
/// let run = sandbox.run("print(int(input()) ** 2)", b"12\n", &Limits::default())?;
/// assert_eq!((run.status, run.stdout), (Status::Exited(0), b"144\n".to_vec()));
/// # Ok::<(), quant_sandbox::SandboxError>(())
/// ```
#[derive(Debug)]
pub struct Sandbox {
    interpreter: Interpreter,
    bwrap: PathBuf,
    /// `setpriv` and the first user, where this process is root's.
    drop_to: Option<(PathBuf, u32)>,
    turns: AtomicU32,
    /// The filter of system calls, in a file without a name: nothing of it is left, however this process ends.
    filter: File,
}

impl Sandbox {
    /// One of these parts, of which nothing is known yet.
    pub(crate) fn of(
        interpreter: Interpreter,
        bwrap: PathBuf,
        drop_to: Option<(PathBuf, u32)>,
    ) -> Result<Self, SandboxError> {
        let filter = write_filter()
            .map_err(|source| SandboxError::System { what: "write the filter of calls", source })?;
        Ok(Self { interpreter, bwrap, drop_to, turns: AtomicU32::new(0), filter })
    }

    /// The interpreter that programs run in.
    pub fn python(&self) -> &Path {
        &self.interpreter.executable
    }

    /// Runs a Python program with `stdin` as its input. All its processes are gone when this returns.
    ///
    /// # Errors
    ///
    /// Limits that nothing runs in; a system that refuses to start a process. What the program does is no error.
    pub fn run(&self, program: &str, stdin: &[u8], limits: &Limits) -> Result<Run, SandboxError> {
        check(limits)?;
        if program.len() as u64 > limits.scratch / 2 {
            let (value, expected) = (program.len().to_string(), "a program of at most half the scratch");
            return Err(SandboxError::Limit { name: "program", value, expected });
        }
        let mut command = Command::new("/bin/sh");
        let descriptor = format!("/proc/{}/fd/{}", std::process::id(), self.filter.as_raw_fd());
        // The shell opens the filter, which bubblewrap takes as a descriptor; with `exec` all is one process.
        command.args(["-c", "exec 3<\"$1\"; shift; exec \"$@\"", "sh"]).arg(descriptor);
        command.args(self.arguments(program.len(), limits)).env_clear().current_dir("/");
        // With the byte of the bootstrap.
        let most = limits.output.saturating_add(1);
        let done = execute(command, &[program.as_bytes(), stdin], limits.wall, most, limits.memory)?;
        let mut stdout = done.stdout;
        let began = stdout.first() == Some(&READY);
        stdout.drain(..usize::from(began));
        let status = match done.end {
            End::Late => Status::TimedOut,
            End::Capped => Status::OutputCapped,
            End::Full => Status::OutOfMemory,
            End::Status(_) if !began => {
                let source = std::io::Error::other(last_line(&done.stderr));
                return Err(SandboxError::System { what: "set the sandbox up", source });
            }
            End::Status(status) => match (signal_of(status), status.code()) {
                (Some(SIGXCPU), _) => Status::TimedOut,
                (Some(signal), _) => Status::Signalled(signal),
                (None, Some(code)) if code != 0 && last_line(&done.stderr).starts_with("MemoryError") => {
                    Status::OutOfMemory
                }
                (None, code) => {
                    Status::Exited(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
                }
            },
        };
        Ok(Run { stdout, stderr: done.stderr, status })
    }

    /// The command behind the shell.
    fn arguments(&self, length: usize, limits: &Limits) -> Vec<OsString> {
        let mut all: Vec<OsString> = Vec::new();
        let mut add = |words: &[&OsStr]| all.extend(words.iter().map(|&word| word.to_owned()));
        if let Some((setpriv, first)) = &self.drop_to {
            let user = (first + self.turns.fetch_add(1, Ordering::Relaxed) % USERS).to_string();
            let user = word(&user);
            add(&[setpriv.as_os_str(), word("--reuid"), user, word("--regid"), user, word("--clear-groups")]);
        }
        add(&[self.bwrap.as_os_str()]);
        for flag in [
            "--unshare-user",
            // A program that could make namespaces could mount files of unlimited size.
            "--disable-userns",
            "--unshare-ipc",
            "--unshare-pid",
            "--unshare-net",
            "--unshare-uts",
            "--unshare-cgroup-try",
            "--die-with-parent",
            "--new-session",
        ] {
            add(&[word(flag)]);
        }
        add(&[word("--cap-drop"), word("ALL"), word("--seccomp"), word("3")]);
        for folder in &self.interpreter.folders {
            add(&[word("--ro-bind"), folder.as_os_str(), folder.as_os_str()]);
        }
        for (link, target) in &self.interpreter.links {
            add(&[word("--symlink"), target.as_os_str(), link.as_os_str()]);
        }
        let executable = self.interpreter.executable.as_os_str();
        let cache = word("/etc/ld.so.cache");
        add(&[word("--ro-bind-try"), cache, cache, word("--ro-bind"), executable, executable]);
        let scratch = limits.scratch.to_string();
        add(&[word("--size"), word(&scratch), word("--tmpfs"), word("/tmp"), word("--chdir"), word("/tmp")]);
        // What bubblewrap makes for these two is memory without a limit.
        add(&[
            word("--dev"),
            word("/dev"),
            word("--remount-ro"),
            word("/dev"),
            word("--remount-ro"),
            word("/"),
        ]);
        add(&[word("--clearenv")]);
        for (name, value) in [
            ("HOME", "/tmp"),
            ("LANG", "C.UTF-8"),
            ("PATH", "/usr/bin"),
            // Sets iterate in the same order each time.
            ("PYTHONHASHSEED", "0"),
            ("PYTHONUTF8", "1"),
        ] {
            add(&[word("--setenv"), word(name), word(value)]);
        }
        add(&[word("--"), executable, word("-I"), word("-S"), word("-c"), word(BOOTSTRAP)]);
        // The first process of the namespace is bubblewrap's own and counts.
        let cpu = limits.cpu.as_secs() + u64::from(limits.cpu.subsec_nanos() > 0);
        let processes = u64::from(limits.processes) + 1;
        for number in [limits.memory, cpu, limits.scratch, processes, length as u64] {
            add(&[word(&number.to_string())]);
        }
        all
    }
}

fn word(text: &str) -> &OsStr {
    OsStr::new(text)
}

fn write_filter() -> std::io::Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(&filter())?;
    Ok(file)
}
