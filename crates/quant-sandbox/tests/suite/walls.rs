//! What programs try, and what comes of it.

use super::{bare, processes_with, sandbox};
use quant_sandbox::{Limits, Run, Sandbox, SandboxOptions, Status};
use std::io::Write;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

fn limits(change: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    change(&mut limits);
    limits
}

fn text(run: &Run) -> String {
    String::from_utf8(run.stdout.clone()).unwrap()
}

/// A program that does something with the path or number it reads, and says `done` or why not.
fn attempt(action: &str) -> String {
    format!(
        "import ctypes, os, signal, socket, sys\ngiven = sys.stdin.readline().strip()\ntry:\n    {action}\n    print('done')\n\
         except OSError as error:\n    print('refused', error.errno)\n"
    )
}

/// Runs an attempt in the sandbox, where it must fail, and as it is, where it must succeed.
fn refused_here_and_done_elsewhere(sandbox: &Sandbox, action: &str, given: &str) {
    let program = attempt(action);
    let run = sandbox.run(&program, given.as_bytes(), &Limits::default()).unwrap();
    assert!(text(&run).starts_with("refused"), "{action}: {run:?}");
    assert_eq!(bare(sandbox, &program, given), "done\n", "{action}: the control");
}

#[test]
fn programs_run() {
    let Some(sandbox) = sandbox() else { return };
    let program = "import sys\nprint(int(input()) ** 2)\nprint('no', file=sys.stderr)\nsys.exit(3)";
    let run = sandbox.run(program, b"12\nrest", &Limits::default()).unwrap();
    assert_eq!(run.status, Status::Exited(3), "{run:?}");
    assert_eq!((run.stdout.as_slice(), run.stderr.as_slice()), (&b"144\n"[..], &b"no\n"[..]));
    // All of the input, byte by byte, and only that.
    let program = "import os\nprint(len(open(0, 'rb').read()), os.listdir('/tmp'))";
    let run = sandbox.run(program, &vec![b'x'; 300_000], &Limits::default()).unwrap();
    assert_eq!(text(&run), "300000 ['program.py']\n");
    // Input that nobody reads.
    let run = sandbox.run("print(1)", &vec![b'x'; 1 << 20], &Limits::default()).unwrap();
    assert_eq!((run.status, text(&run).as_str()), (Status::Exited(0), "1\n"));
    // Nothing of ours is left open.
    let program = "import os\ndef is_open(fd):\n    try:\n        return bool(os.fstat(fd))\n    except OSError:\n        return False\n\
                   print([fd for fd in range(256) if is_open(fd)])";
    assert_eq!(text(&sandbox.run(program, b"", &Limits::default()).unwrap()), "[0, 1, 2]\n");
    let run = sandbox.run("import os\nos.abort()", b"", &Limits::default()).unwrap();
    assert_eq!(run.status, Status::Signalled(6));
}

#[test]
fn sets_iterate_alike() {
    let Some(sandbox) = sandbox() else { return };
    let program = "print({str(n) for n in range(50)})";
    let run = || sandbox.run(program, b"", &Limits::default()).unwrap();
    assert_eq!(run(), run());
}

#[test]
fn files_of_the_host_cannot_be_read() {
    let Some(sandbox) = sandbox() else { return };
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("secret");
    std::fs::write(&file, "x").unwrap();
    for path in ["/etc/passwd", "/proc/self/status", file.to_str().unwrap()] {
        refused_here_and_done_elsewhere(sandbox, "open(given).read()", path);
    }
    // Nor is there a variable that says where it is.
    let run =
        sandbox.run("import os\nprint(sorted(os.environ), os.environ['HOME'])", b"", &Limits::default());
    assert_eq!(text(&run.unwrap()), "['HOME', 'LANG', 'PATH', 'PWD', 'PYTHONHASHSEED', 'PYTHONUTF8'] /tmp\n");
}

#[test]
fn nothing_outside_can_be_written() {
    let Some(sandbox) = sandbox() else { return };
    let folder = tempfile::tempdir().unwrap();
    let unique = format!("quant-sandbox-{}", std::process::id());
    for path in [folder.path().join("x"), "/dev/shm".into(), "/var/tmp".into()] {
        let path = if path.is_dir() { path.join(&unique) } else { path };
        refused_here_and_done_elsewhere(sandbox, "open(given, 'w').write('x')", path.to_str().unwrap());
        std::fs::remove_file(path).unwrap();
    }
    for path in ["/x", "/dev/x", "/usr/lib/x", "/lib/x"] {
        let run = sandbox
            .run(&attempt("open(given, 'w').write('x')"), path.as_bytes(), &Limits::default())
            .unwrap();
        assert!(text(&run).starts_with("refused"), "{path}: {run:?}");
    }
    // The scratch can, and is gone afterwards.
    let program = attempt("open('/tmp/x', 'x').write('x')");
    for _ in 0..2 {
        assert_eq!(text(&sandbox.run(&program, b"", &Limits::default()).unwrap()), "done\n");
    }
}

#[test]
fn the_scratch_has_its_size() {
    let Some(sandbox) = sandbox() else { return };
    let program = attempt("[open('/tmp/%d' % n, 'wb').write(bytes(100_000)) for n in range(20)]");
    let small = limits(|l| l.scratch = 1 << 20);
    assert_eq!(text(&sandbox.run(&program, b"", &small).unwrap()), "refused 28\n");
    let large = limits(|l| l.scratch = 4 << 20);
    assert_eq!(text(&sandbox.run(&program, b"", &large).unwrap()), "done\n");
}

#[test]
fn the_loopback_of_the_host_is_not_there() {
    let Some(sandbox) = sandbox() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let action = "socket.create_connection(('127.0.0.1', int(given)), timeout=5).close()";
    refused_here_and_done_elsewhere(sandbox, action, &port);
    // Exactly the control arrived.
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_ok());
    assert!(listener.accept().is_err());
}

#[test]
fn other_processes_cannot_be_reached() {
    let Some(sandbox) = sandbox() else { return };
    let mut target = Command::new("sleep").arg("60").spawn().unwrap();
    refused_here_and_done_elsewhere(sandbox, "os.kill(int(given), signal.SIGKILL)", &target.id().to_string());
    assert!(!target.wait().unwrap().success());
    // Its parent is the first process of its namespace, which does not hear it.
    let program = attempt("os.kill(os.getppid(), signal.SIGKILL)");
    let run = sandbox.run(&program, b"", &Limits::default()).unwrap();
    assert_eq!((run.status, text(&run).as_str()), (Status::Exited(0), "done\n"));
    // Not even a child of its own can be traced (PTRACE_SEIZE).
    let action = "child = os.fork() or signal.pause()\n    libc = ctypes.CDLL(None, use_errno=True)\n    \
                  failed = libc.ptrace(0x4206, child, None, None) == -1\n    os.kill(child, signal.SIGKILL)\n    \
                  if failed: raise OSError(ctypes.get_errno(), 'ptrace')";
    refused_here_and_done_elsewhere(sandbox, action, "");
}

#[test]
fn memory_beside_the_limit_is_refused() {
    let Some(sandbox) = sandbox() else { return };
    refused_here_and_done_elsewhere(sandbox, "os.memfd_create('x')", "");
    let action = "libc = ctypes.CDLL(None, use_errno=True)\n    \
                  segment = libc.shmget(0, 4096, 0o600)\n    \
                  if segment == -1: raise OSError(ctypes.get_errno(), 'shmget')\n    libc.shmctl(segment, 0, None)";
    refused_here_and_done_elsewhere(sandbox, action, "");
}

#[test]
fn a_memory_bomb_runs_out_of_memory() {
    let Some(sandbox) = sandbox() else { return };
    let bomb = "kept = []\nwhile True:\n    kept.append(bytearray(b'x') * (1 << 20))";
    let run = sandbox.run(bomb, b"", &limits(|l| l.memory = 256 << 20)).unwrap();
    assert_eq!(run.status, Status::OutOfMemory, "{run:?}");
    // No bomb, but more than that, where it may.
    let program = "kept = [bytearray(b'x') * (1 << 20) for _ in range(300)]\nprint(len(kept))";
    assert_eq!(
        sandbox.run(program, b"", &limits(|l| l.memory = 256 << 20)).unwrap().status,
        Status::OutOfMemory
    );
    let run = sandbox.run(program, b"", &limits(|l| l.memory = 1 << 30)).unwrap();
    assert_eq!((run.status, text(&run).as_str()), (Status::Exited(0), "300\n"));
}

#[test]
fn memory_is_bounded_over_all_processes() {
    let Some(sandbox) = sandbox() else { return };
    // Each within its own limit.
    let program = "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        \
                   kept = bytearray(b'x') * (100 << 20)\n        time.sleep(2)\n        os._exit(0)\n\
                   [os.wait() for _ in range(5)]\nprint('done')";
    let run = sandbox.run(program, b"", &limits(|l| l.memory = 256 << 20)).unwrap();
    assert_eq!((run.status, text(&run).as_str()), (Status::OutOfMemory, ""), "{run:?}");
    let run = sandbox.run(program, b"", &limits(|l| l.memory = 1 << 30)).unwrap();
    assert_eq!((run.status, text(&run).as_str()), (Status::Exited(0), "done\n"), "{run:?}");
}

#[test]
fn a_fork_bomb_is_stopped() {
    let Some(sandbox) = sandbox() else { return };
    let mark = format!("fork-bomb-{}", std::process::id());
    let bomb = format!(
        "import os, sys\nif len(sys.argv) == 1:\n    os.execv(sys.executable, [sys.executable, __file__, '{mark}'])\n\
         while True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    );
    let began = Instant::now();
    let run =
        sandbox.run(&bomb, b"", &limits(|l| (l.wall, l.processes) = (Duration::from_secs(2), 8))).unwrap();
    assert_eq!(run.status, Status::TimedOut, "{run:?}");
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(processes_with(&mark, 0).is_empty());
}

#[test]
fn processes_and_threads_are_counted() {
    let Some(sandbox) = sandbox() else { return };
    let program = "import os, sys, time\nmade = 0\ntry:\n    for _ in range(10):\n        if os.fork() == 0:\n            \
                   time.sleep(1)\n            os._exit(0)\n        made += 1\nexcept OSError:\n    pass\nprint(made)";
    for (processes, made) in [(1, "0\n"), (5, "4\n"), (16, "10\n")] {
        let run = sandbox.run(program, b"", &limits(|l| l.processes = processes)).unwrap();
        assert_eq!(text(&run), made, "{processes}: {run:?}");
    }
    let program = "import threading, time\nmade = 0\ntry:\n    for _ in range(10):\n        \
                   threading.Thread(target=time.sleep, args=(1,)).start()\n        made += 1\nexcept RuntimeError:\n    pass\n\
                   print(made)";
    for (processes, made) in [(5, "4\n"), (16, "10\n")] {
        let run = sandbox.run(program, b"", &limits(|l| l.processes = processes)).unwrap();
        assert_eq!(text(&run), made, "{processes}: {run:?}");
    }
}

#[test]
fn output_without_end_is_stopped() {
    let Some(sandbox) = sandbox() else { return };
    let small = limits(|l| l.output = 100_000);
    let run = sandbox.run("while True:\n    print('x' * 99)", b"", &small).unwrap();
    assert_eq!((run.status, run.stdout.len()), (Status::OutputCapped, 100_000));
    // Up to the last byte; one more is too much.
    for (count, status) in [(100_000, Status::Exited(0)), (100_001, Status::OutputCapped)] {
        let run = sandbox.run(&format!("print('x' * {count}, end='')"), b"", &small).unwrap();
        assert_eq!((run.status, run.stdout.len()), (status, 100_000), "{count}");
    }
    // What it complains is cut, and no reason to stop it.
    let program = "import sys\nsys.stderr.write('x' * 300_000)\nprint(1)";
    let run = sandbox.run(program, b"", &small).unwrap();
    assert_eq!((run.status, run.stderr.len(), text(&run).as_str()), (Status::Exited(0), 100_001, "1\n"));
}

#[test]
fn time_is_bounded_on_the_wall_and_on_the_processor() {
    let Some(sandbox) = sandbox() else { return };
    let timed = |program: &str, limits: &Limits| {
        let began = Instant::now();
        (sandbox.run(program, b"", limits).unwrap().status, began.elapsed())
    };
    let short = limits(|l| l.wall = Duration::from_secs(1));
    // Also where nobody listens any more.
    for program in
        ["import time\ntime.sleep(60)", "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(60)"]
    {
        let (status, took) = timed(program, &short);
        assert_eq!(status, Status::TimedOut, "{program}");
        assert!((1.0..8.0).contains(&took.as_secs_f64()), "{program}: {took:?}");
    }
    let busy = limits(|l| (l.wall, l.cpu) = (Duration::from_secs(60), Duration::from_secs(1)));
    let (status, took) = timed("while True: pass", &busy);
    assert_eq!(status, Status::TimedOut);
    assert!(took < Duration::from_secs(30), "{took:?}");
    // The same for a while is fine.
    assert_eq!(timed("import time\ntime.sleep(0.3)", &busy).0, Status::Exited(0));
    assert_eq!(timed("for n in range(1000000): pass", &busy).0, Status::Exited(0));
}

#[test]
fn a_daemon_does_not_survive() {
    let Some(sandbox) = sandbox() else { return };
    let program = |mark: &str| {
        format!(
            "import os, sys, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        \
             [os.close(fd) for fd in (0, 1, 2)]\n        \
             os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])\n    os._exit(0)\n\
             time.sleep(0.5)\nprint('left')"
        )
    };
    let mark = format!("daemon-{}", std::process::id());
    let run = sandbox.run(&program(&mark), b"", &Limits::default()).unwrap();
    assert_eq!((run.status, text(&run).as_str()), (Status::Exited(0), "left\n"), "{run:?}");
    assert!(processes_with(&mark, 0).is_empty());
    // As it is, it stays.
    let mark = format!("control-{}", std::process::id());
    assert_eq!(bare(sandbox, &program(&mark), ""), "left\n");
    let [daemon] = processes_with(&mark, 1).try_into().unwrap();
    assert!(Command::new("kill").arg(daemon).status().unwrap().success());
}

#[test]
fn many_run_at_a_time() {
    let Some(sandbox) = sandbox() else { return };
    // Each has room for its own processes: none counts those of another.
    let program = "import os, time\nchildren = [os.fork() or (time.sleep(0.3), os._exit(0)) for _ in range(3)]\n\
                   [os.waitpid(child, 0) for child in children]\nprint(input())";
    std::thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                let few = limits(|l| (l.processes, l.wall) = (4, Duration::from_secs(30)));
                let run = sandbox.run(program, number.to_string().as_bytes(), &few).unwrap();
                assert_eq!(text(&run), format!("{number}\n"), "{run:?}");
            });
        }
    });
}

#[test]
fn what_is_missing_is_named() {
    let find = |change: fn(&mut SandboxOptions)| {
        let mut options = SandboxOptions::default();
        change(&mut options);
        let error = Sandbox::find(&options).unwrap_err();
        assert!(error.is_unavailable(), "{error}");
        error.to_string()
    };
    let error = find(|o| o.bwrap = "no-such-bwrap".into());
    assert!(error.starts_with("no sandbox: bubblewrap: no-such-bwrap is not there; install"), "{error}");
    if sandbox().is_none() {
        return;
    }
    let error = find(|o| o.python = Some("/no/python".into()));
    assert!(
        error.contains("/no/python is not there") && error.contains("apt-get install python3"),
        "{error}"
    );
    let error = find(|o| o.python = Some("/bin/false".into()));
    assert!(error.contains("/bin/false is no Python"), "{error}");
    // A bubblewrap that builds no walls is not believed.
    let error = find(|o| o.bwrap = "/bin/true".into());
    assert!(error.contains("it says nothing"), "{error}");
}

#[test]
fn a_sandbox_without_walls_is_not_believed() {
    let Some(sandbox) = sandbox() else { return };
    // It runs what stands behind `--`, and no more.
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("bwrap");
    let mut file = std::fs::File::create(&open).unwrap();
    file.write_all(b"#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\nexec \"$@\"\n").unwrap();
    drop(file);
    for (path, mode) in [(folder.path(), 0o755), (&open, 0o755)] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    let mut options = SandboxOptions::default();
    (options.bwrap, options.python) = (open, Some(sandbox.python().to_owned()));
    let error = Sandbox::find(&options).unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    let text = error.to_string();
    for wall in ["files of the host", "network", "processes of the host"] {
        assert!(text.contains(wall), "{text}");
    }
    // What the bootstrap wrote, and what the probe tidied away again.
    std::fs::remove_file("/tmp/program.py").ok();
}
