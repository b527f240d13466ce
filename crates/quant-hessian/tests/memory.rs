//! The announced peak of a factorisation against the process's own. Alone in its binary: the peak belongs to the process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use quant_hessian::{Factor, FactorSettings, Hessian, prepare};
use quant_kernels::{Compute, Par};
use quant_testkit::Numbers;

/// `VmHWM` or `VmRSS` in bytes.
fn status(key: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn the_announced_peak_is_the_measured_one() {
    let n = 4096;
    let x = Numbers::new(1).matrix(16, n, 1.0);
    let once = FactorSettings { f64_retry: false, ..FactorSettings::default() };
    // A tolerance that f32 misses and f64 meets.
    let retry = FactorSettings { residual_tolerance: 1e-11, ..FactorSettings::default() };
    let mut before = 0;
    for (settings, attempts) in [(once, 1), (retry, 2)] {
        // What the allocator kept of the factorisation before would count as there already.
        quant_kernels::return_freed_memory();
        let mut hessian = Hessian::new(n);
        let resident = status("VmRSS");
        hessian.add(x.view(), 1, Compute::F32, Par::Seq).unwrap();
        let factor = prepare(hessian, &settings, Par::Seq).unwrap();
        assert_eq!(factor.report().attempts.len(), attempts);
        drop(factor);
        let (measured, announced) = (status("VmHWM") - resident, Factor::peak_bytes(n, &settings));
        println!("announced {} MiB, measured {} MiB", announced >> 20, measured >> 20);
        assert!(announced > before + (20 << 20), "the second peak hides the first");
        before = announced;
        // Beside it: packed operands, which the allocator keeps from one precision to the next, and vectors of n.
        assert!(measured < announced + (40 << 20), "{measured} of {announced}");
        assert!(measured * 10 > announced * 9, "{measured} of {announced}");
    }
}
