//! The report of what is there.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ascend_kernels::{OpenOptions, Processor, ProcessorOptions, doctor};
use ascend_sim::{Simulator, Switch};

#[test]
fn the_simulator_is_found_whole() {
    let simulator = Simulator::new().unwrap();
    let report = doctor(&OpenOptions::new().folder(simulator.folder()));
    assert!(report.is_installed() && !report.is_broken(), "{report}");
    assert_eq!(report.groups.len(), 4);
    assert!(report.groups.iter().all(|group| group.missing.is_empty() && group.present > 0), "{report}");
    assert!(report.enables.iter().all(|enabled| enabled.through.is_some()), "{report}");
    assert_eq!(report.devices.len(), 2);
    assert_eq!(report.devices[1].soc.as_deref(), Some("Ascend910B_simulated"));
    assert_eq!(report.devices[0].total_bytes, Some(1 << 30));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["runtime_version"], "1.16.0");
    assert!(report.to_string().contains("--backend cann: aclnnQuantMatmulV5"), "{report}");
    assert!(report.to_string().contains("1024 of 1024 MiB free, overflow to infinity"), "{report}");
    simulator.set(Switch::Saturation, 1);
    // A runtime that does not tell is no broken one.
    let silent = OpenOptions::new().folder(simulator.folder()).without("aclrtGetMemInfo");
    let report = doctor(&silent.without("aclrtGetDeviceSatMode").without("aclrtGetSocName"));
    assert!(!report.is_broken(), "{report}");
    let device = &report.devices[0];
    assert_eq!((device.saturates, device.total_bytes, device.soc.as_ref()), (None, None, None));
    let report = doctor(&OpenOptions::new().folder(simulator.folder()));
    assert!(report.to_string().contains("overflow to the largest number"), "{report}");
    // It looks and leaves nothing behind.
    assert_eq!(simulator.leaks(), []);
}

/// What `--backend cann` needs is told as the processor takes it.
#[test]
fn what_a_backend_needs_is_what_a_processor_takes() {
    let simulator = Simulator::new().unwrap();
    for (without, dynamic, fixed) in [
        (&["aclnnQuantMatmulV5", "aclnnDynamicQuant"][..], true, true),
        (&["aclnnDynamicQuant", "aclnnDynamicQuantV2"], true, true),
        (&["aclnnAscendQuantV3"], true, false),
        (&["aclnnQuantMatmulV5", "aclnnQuantMatmulV4"], false, false),
    ] {
        let library = without
            .iter()
            .fold(OpenOptions::new().folder(simulator.folder()), |options, name| options.without(*name));
        let report = doctor(&library);
        let able = |what: &str| {
            report.enables.iter().find(|enabled| enabled.what == what).unwrap().through.is_some()
        };
        assert_eq!(
            (able("--backend cann"), able("--backend cann, static scales")),
            (dynamic, fixed),
            "{without:?}"
        );
        let opened = Processor::open(&ProcessorOptions { library, ..ProcessorOptions::default() });
        assert_eq!(opened.is_ok(), dynamic, "{without:?}");
        assert!(opened.err().is_none_or(|error| error.is_unavailable()), "{without:?}");
    }
}

#[test]
fn nothing_installed_is_no_problem() {
    let nowhere = Simulator::with_names(&[]).unwrap();
    let report = doctor(&OpenOptions::new().folder(nowhere.folder()));
    assert!(!report.is_installed() && !report.is_broken(), "{report}");
    assert!(report.to_string().starts_with("CANN: not found\n  looked for libascendcl.so at "), "{report}");
}

#[test]
fn what_is_missing_and_what_is_broken() {
    let simulator = Simulator::with_names(&["libascendcl.so", "libnnopbase.so", "libopapi.so"]).unwrap();
    simulator.set(Switch::Devices, 0);
    let options = OpenOptions::new().folder(simulator.folder()).without("aclnnMm");
    let report = doctor(&options);
    assert!(report.is_installed() && !report.is_broken(), "{report}");
    // The old library of all operators serves where those of packages are not there.
    assert!(
        report.groups.iter().any(|group| group.name == "attention" && group.library == "libopapi.so"),
        "{report}"
    );
    assert!(report.groups.iter().any(|group| group.missing == ["aclnnMm"]), "{report}");
    assert!(report.enables.iter().any(|e| e.what == "products of floats" && e.through.is_none()), "{report}");
    assert!(report.to_string().contains("no device"), "{report}");
    std::fs::write(simulator.folder().join("libopapi_nn.so"), "no library").unwrap();
    let report = doctor(&options);
    assert!(report.is_broken() && report.problems[0].contains("libopapi_nn.so"), "{report}");
    simulator.set(Switch::Devices, 1);
    simulator.fail_next("aclrtCreateContext", 507_000);
    let report = doctor(&OpenOptions::new().folder(simulator.folder()));
    assert!(report.devices[0].error.as_deref().unwrap().contains("507000"), "{report}");
}
