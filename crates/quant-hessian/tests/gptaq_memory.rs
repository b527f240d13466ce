//! The announced peak of a correction against the process's own. Alone in its binary: the peak belongs to the process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use quant_hessian::{Correction, CrossGram, FactorSettings, Hessian, Variant, prepare};
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
    let mut noise = Numbers::new(1);
    let (x, float) = (noise.matrix(16, n, 1.0), noise.matrix(16, n, 1.0));
    let factor = |act_order| {
        let mut hessian = Hessian::new(n);
        hessian.add(x.view(), 1, Compute::F32, Par::Seq).unwrap();
        let settings = FactorSettings { act_order, f64_retry: false, ..FactorSettings::default() };
        prepare(hessian, &settings, Par::Seq).unwrap()
    };
    let factors = [factor(false), factor(true)];
    // So much that the factorisations were no higher.
    let ballast = vec![1_u8; 128 << 20];
    let mut before = 0;
    for (factor, act_order, variant) in [
        (&factors[0], false, Variant::Exact),
        (&factors[0], false, Variant::Official),
        (&factors[1], true, Variant::Exact),
    ] {
        let resident = status("VmRSS");
        let mut cross = CrossGram::new(n, act_order);
        cross.add(float.view(), x.view(), 1, Compute::F32, Par::Seq).unwrap();
        let correction = Correction::new(cross, factor, 0.25, variant, Par::Seq).unwrap();
        let held = status("VmRSS") - resident;
        let (measured, announced) = (status("VmHWM") - resident, Correction::peak_bytes(n, act_order));
        println!(
            "act-order {act_order}: announced {} MiB, measured {} MiB; held {} MiB, measured {} MiB",
            announced >> 20,
            measured >> 20,
            correction.bytes() >> 20,
            held >> 20
        );
        assert!(announced >= before, "the second peak hides the first");
        before = announced;
        // Beside it: packed operands, which the allocator keeps, and vectors of n.
        assert!(measured < announced + (40 << 20), "{measured} of {announced}");
        assert!(measured * 10 > announced * 9, "{measured} of {announced}");
        assert!(held < correction.bytes() + (40 << 20) && held * 10 > correction.bytes() * 9);
        assert_eq!(correction.bytes(), Correction::bytes_for(n));
    }
    assert!(ballast.iter().all(|&byte| byte == 1));
}
