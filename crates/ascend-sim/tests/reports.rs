//! What CANN's documents leave undefined is reported; what they define has CANN's codes. Through the C interface alone.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::ffi::c_void;

use ascend_sim::{Kind, Simulator};
use libloading::Library;

const REPORTED: i32 = -90_001;

type First = extern "C" fn(*mut c_void, *mut c_void, *mut c_void, i8, *mut u64, *mut *mut c_void) -> i32;
type Second = extern "C" fn(*mut c_void, u64, *mut c_void, *mut c_void) -> i32;

/// The simulator with raw calls.
struct Raw {
    simulator: Simulator,
    library: Library,
}

impl Raw {
    fn new() -> Self {
        let simulator = Simulator::new().unwrap();
        // SAFETY: the simulator's own file, which is loaded already.
        let library = unsafe { Library::new(simulator.folder().join("libascendcl.so")) }.unwrap();
        Self { simulator, library }
    }
    fn keeping() -> Self {
        let raw = Self::new();
        raw.simulator.keep_reports();
        raw
    }
    fn get<F: Copy>(&self, name: &str) -> F {
        // SAFETY: every caller names the function's own type.
        *unsafe { self.library.get::<F>(name.as_bytes()) }.unwrap()
    }
    fn one(&self, name: &str, handle: *mut c_void) -> i32 {
        let function: extern "C" fn(*mut c_void) -> i32 = self.get(name);
        function(handle)
    }
    fn two(&self, name: &str, a: *mut c_void, b: *mut c_void) -> i32 {
        let function: extern "C" fn(*mut c_void, *mut c_void) -> i32 = self.get(name);
        function(a, b)
    }
    fn make(&self, name: &str) -> *mut c_void {
        let mut handle = std::ptr::null_mut();
        let function: extern "C" fn(*mut *mut c_void) -> i32 = self.get(name);
        assert_eq!(function(&mut handle), 0, "{name}");
        handle
    }
    fn malloc(&self, bytes: usize) -> (i32, *mut c_void) {
        let mut at = std::ptr::null_mut();
        let function: extern "C" fn(*mut *mut c_void, usize, u32) -> i32 = self.get("aclrtMalloc");
        (function(&mut at, bytes, 0), at)
    }
    fn start(&self) -> *mut c_void {
        assert_eq!(self.one("aclInit", std::ptr::null_mut()), 0);
        let mut context = std::ptr::null_mut();
        let create: extern "C" fn(*mut *mut c_void, i32) -> i32 = self.get("aclrtCreateContext");
        assert_eq!(create(&mut context, 0), 0);
        context
    }
    fn reported(&self, code: i32, text: &str) {
        let reports = self.simulator.reports();
        assert_eq!(code, REPORTED, "{text}: {reports:?}");
        assert!(reports.last().unwrap().contains(text), "{text}: {reports:?}");
    }
    fn tensor(&self, data: *mut c_void, dims: &[i64]) -> *mut c_void {
        type Create = extern "C" fn(
            *const i64,
            u64,
            i32,
            *const i64,
            i64,
            i32,
            *const i64,
            u64,
            *mut c_void,
        ) -> *mut c_void;
        let create: Create = self.get("aclCreateTensor");
        let count = dims.len() as u64;
        create(dims.as_ptr(), count, 0, std::ptr::null(), 0, 2, dims.as_ptr(), count, data)
    }
}

#[test]
fn documented_codes() {
    let raw = Raw::keeping();
    assert_eq!(raw.malloc(64).0, 107_002, "no context");
    let create: extern "C" fn(*mut *mut c_void, i32) -> i32 = raw.get("aclrtCreateContext");
    assert_eq!(create(std::ptr::null_mut(), 0), 100_001, "not initialised");
    assert_eq!(raw.one("aclrtGetDeviceCount", std::ptr::null_mut()), 100_000);
    let context = raw.start();
    assert_eq!(raw.one("aclInit", std::ptr::null_mut()), 100_002);
    let mut other = std::ptr::null_mut();
    assert_eq!(create(&mut other, 7), 107_001);
    assert_eq!(raw.malloc(0).0, 100_000);
    raw.simulator.set_memory(100);
    assert_eq!(raw.malloc(101).0, 207_018);
    assert_eq!(raw.one("aclrtSynchronizeStream", 8 as *mut c_void), 107_017);
    // A stream of another context.
    let stream = raw.make("aclrtCreateStream");
    assert_eq!(create(&mut other, 1), 0);
    assert_eq!(raw.one("aclrtSynchronizeStream", stream), 107_003);
    assert_eq!(raw.one("aclrtSetCurrentContext", context), 0);
    assert_eq!(raw.one("aclrtSynchronizeStream", stream), 0);
    assert_eq!(raw.simulator.reports(), Vec::<String>::new());
}

#[test]
fn undefined_uses_are_reported() {
    let raw = Raw::keeping();
    let context = raw.start();
    let (_, memory) = raw.malloc(64);
    assert_eq!(raw.one("aclrtFree", memory), 0);
    raw.reported(raw.one("aclrtFree", memory), "freed twice");
    let (stream, event) = (raw.make("aclrtCreateStream"), raw.make("aclrtCreateEvent"));
    raw.reported(raw.two("aclrtStreamWaitEvent", stream, event), "never recorded");
    raw.reported(raw.one("aclrtSynchronizeEvent", event), "never recorded");
    raw.reported(raw.one("aclrtDestroyContext", context), "stream of it is alive");
    assert_eq!(raw.one("aclrtDestroyStream", stream), 0);
    raw.reported(raw.one("aclrtSynchronizeStream", stream), "after it was destroyed");
    assert_eq!(raw.one("aclrtDestroyEvent", event), 0);
    raw.reported(raw.one("aclrtDestroyEvent", event), "after it was destroyed");
    // A tensor of freed memory is seen when it is used.
    let (_, live) = raw.malloc(64);
    let (a, b) = (raw.tensor(memory, &[2, 2]), raw.tensor(live, &[2, 2]));
    let mm: First = raw.get("aclnnMmGetWorkspaceSize");
    let (mut bytes, mut executor) = (0, std::ptr::null_mut());
    raw.reported(mm(b, a, b, 0, &mut bytes, &mut executor), "after it was freed");
    assert_eq!(mm(std::ptr::null_mut(), b, b, 0, &mut bytes, &mut executor), 161_001);
    assert_eq!(mm(b, b, b, 9, &mut bytes, &mut executor), 161_002);
}

#[test]
fn executors_and_workspaces() {
    let raw = Raw::keeping();
    raw.start();
    let stream = raw.make("aclrtCreateStream");
    let ((_, a), (_, b), (_, work)) = (raw.malloc(64), raw.malloc(64), raw.malloc(4096));
    let (x, y) = (raw.tensor(a, &[2, 2]), raw.tensor(b, &[2, 2]));
    let (first, second): (First, Second) = (raw.get("aclnnMmGetWorkspaceSize"), raw.get("aclnnMm"));
    let prepare = || {
        let (mut bytes, mut executor) = (0, std::ptr::null_mut());
        assert_eq!(first(x, x, y, 0, &mut bytes, &mut executor), 0);
        (bytes, executor)
    };
    let (bytes, executor) = prepare();
    assert!(bytes > 0);
    raw.reported(second(work, bytes - 1, executor, stream), "the workspace has");
    let (bytes, executor) = prepare();
    assert_eq!(second(work, bytes, executor, stream), 0);
    raw.reported(second(work, bytes, executor, stream), "after it was destroyed");
    // Memory that queued work uses.
    raw.reported(raw.one("aclrtFree", b), "while queued work uses it");
    let other = raw.make("aclrtCreateStream");
    let (bytes, executor) = prepare();
    raw.reported(second(work, bytes, executor, other), "no event orders");
    // Two launches of one that was made repeatable, which its owner destroys.
    let (bytes, executor) = prepare();
    assert_eq!(raw.one("aclSetAclOpExecutorRepeatable", executor), 0);
    assert_eq!((second(work, bytes, executor, stream), second(work, bytes, executor, stream)), (0, 0));
    assert_eq!(raw.one("aclDestroyAclOpExecutor", executor), 0);
    assert_eq!(raw.one("aclrtSynchronizeStream", stream), 0);
    assert_eq!(raw.simulator.count(Kind::Executor), 0);
    // Another operator's second phase.
    let (bytes, executor) = prepare();
    let wrong: Second = raw.get("aclnnFlatQuant");
    raw.reported(wrong(work, bytes, executor, stream), "is given an executor of aclnnMm");
}

#[test]
fn copies_are_checked() {
    let raw = Raw::keeping();
    raw.start();
    let (_, memory) = raw.malloc(64);
    let (mut host, stream) = ([0_u8; 128], raw.make("aclrtCreateStream"));
    let at = host.as_mut_ptr().cast::<c_void>();
    type Copied = extern "C" fn(*mut c_void, usize, *const c_void, usize, u32) -> i32;
    type Queued = extern "C" fn(*mut c_void, usize, *const c_void, usize, u32, *mut c_void) -> i32;
    let (copy, queued): (Copied, Queued) = (raw.get("aclrtMemcpy"), raw.get("aclrtMemcpyAsync"));
    assert_eq!(copy(memory, 32, at, 33, 1), 100_000, "more than there is room for");
    raw.reported(copy(memory, 128, at, 128, 1), "no allocation holds");
    raw.reported(queued(memory, 64, at, 64, 1, stream), "not from aclrtMallocHost");
    assert_eq!(copy(memory, 64, at, 64, 9), 100_000, "no direction");
}

/// Without being told to keep reports, the simulator ends the process with its own text.
#[test]
fn a_report_ends_the_process() {
    const CHILD: &str = "ASCEND_SIM_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let raw = Raw::new();
        raw.start();
        raw.one("aclrtFree", 64 as *mut c_void);
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_report_ends_the_process", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(!child.status.success());
    let text = String::from_utf8_lossy(&child.stderr);
    assert!(text.contains("ascend-sim: aclrtFree: what is freed was never allocated"), "{text}");
}
