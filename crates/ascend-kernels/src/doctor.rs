//! What is there: libraries, functions, devices, and what they enable.

use std::fmt;

use serde::Serialize;

use crate::cann::Cann;
use crate::device::Device;
use crate::error::AscendError;
use crate::library::{OpenOptions, Outcome, load};

/// A library that was looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Looked {
    /// Its name.
    pub library: String,
    /// Where.
    pub place: String,
    /// Whether it was opened.
    pub opened: bool,
    /// Why it could not be opened, if it is there.
    pub broken: Option<String>,
}

/// A group of functions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// `runtime`, `objects`, `operators` or `attention`.
    pub name: String,
    /// The library that has it.
    pub library: String,
    /// Where that was found.
    pub place: String,
    /// Functions that are there.
    pub present: usize,
    /// Functions that are not.
    pub missing: Vec<String>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FoundDevice {
    /// Its number.
    pub id: i32,
    /// The chip.
    pub soc: Option<String>,
    /// Free bytes of memory.
    pub free_bytes: Option<usize>,
    /// Bytes of memory.
    pub total_bytes: Option<usize>,
    /// Whether numbers that do not fit become the largest that do, instead of infinities: results that overflow are then not those of the
    /// stated arithmetic.
    pub saturates: Option<bool>,
    /// What went wrong when it was opened.
    pub error: Option<String>,
}

/// What an operator needs, and whether it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Enabled {
    /// What.
    pub what: String,
    /// The function that it would use, none if there is no such.
    pub through: Option<String>,
}

/// The report of [`doctor()`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Doctor {
    /// Every attempt to open a library, in order.
    pub looked: Vec<Looked>,
    /// Groups of functions that were found.
    pub groups: Vec<Group>,
    /// Version of the runtime's interface.
    pub runtime_version: Option<String>,
    /// Versions of packages, as far as the runtime tells.
    pub packages: Vec<(String, String)>,
    /// Devices.
    pub devices: Vec<FoundDevice>,
    /// What can be run.
    pub enables: Vec<Enabled>,
    /// What was found and does not work.
    pub problems: Vec<String>,
}

/// What can be run, and by which functions: the first that is there, with all that follow it.
static ABILITIES: &[(&str, &[&[&str]])] = &[
    ("products of int8 codes, scales of tokens", &[&["aclnnQuantMatmulV5"], &["aclnnQuantMatmulV4"]]),
    (
        "products of int8 codes, static",
        &[&["aclnnQuantMatmulV5"], &["aclnnQuantMatmulV4"], &["aclnnQuantMatmulV3"]],
    ),
    ("products with FRACTAL_NZ weights", &[&["aclnnQuantMatmulWeightNz"]]),
    (
        "quantisation of tokens to int8",
        &[
            &["aclnnDynamicQuant"],
            &["aclnnDynamicQuantV2"],
            &["aclnnDynamicQuantV3"],
            &["aclnnDynamicQuantV4"],
        ],
    ),
    (
        "quantisation of tokens to int4, asymmetric",
        &[&["aclnnDynamicQuantV2"], &["aclnnDynamicQuantV3"], &["aclnnDynamicQuantV4"]],
    ),
    ("static quantisation", &[&["aclnnAscendQuantV3"]]),
    ("numbers of codes", &[&["aclnnAscendAntiQuant"]]),
    ("weight-only products", &[&["aclnnWeightQuantBatchMatmulV2"]]),
    ("scales as words", &[&["aclnnTransQuantParamV3"], &["aclnnTransQuantParamV2"]]),
    ("packing of int4", &[&["aclnnConvertWeightToINT4Pack"]]),
    ("products of floats", &[&["aclnnMm"]]),
    ("FlatQuant", &[&["aclnnFlatQuant"]]),
    (
        "attention over an int8 cache",
        &[&["aclnnFusedInferAttentionScoreV3", "aclCreateTensorList", "aclCreateIntArray"]],
    ),
    ("copies beside products", &[&["aclrtMemcpyAsync", "aclrtMallocHost", "aclrtStreamWaitEvent"]]),
];

/// What `--backend cann` runs every folder with: one of each.
pub(crate) static NEEDED: &[&[&str]] = &[
    &["aclnnQuantMatmulV5", "aclnnQuantMatmulV4"],
    &["aclnnDynamicQuant", "aclnnDynamicQuantV2", "aclnnDynamicQuantV3", "aclnnDynamicQuantV4"],
    &["aclCreateTensor"],
    &["aclrtMalloc"],
];

/// Looks for CANN and says what was found, from where, and what that enables. Never an error: that nothing is installed is a finding.
///
/// ```
/// let report = ascend_kernels::doctor(&ascend_kernels::OpenOptions::new());
/// println!("{report}");
/// assert!(report.is_installed() || report.devices.is_empty());
/// ```
#[must_use]
pub fn doctor(options: &OpenOptions) -> Doctor {
    let mut report = Doctor::default();
    let (groups, attempts) = load(options);
    for attempt in attempts {
        let broken = match &attempt.outcome {
            Outcome::Broken(reason) => {
                report.problems.push(format!("{} at {}: {reason}", attempt.library, attempt.place));
                Some(reason.clone())
            }
            _ => None,
        };
        report.looked.push(Looked {
            library: attempt.library.to_owned(),
            place: attempt.place,
            opened: attempt.outcome == Outcome::Opened,
            broken,
        });
    }
    if groups.is_none() {
        return report;
    }
    match Cann::open(options) {
        Ok(cann) => inspect(&mut report, &cann),
        Err(error) => report.problems.push(error.to_string()),
    }
    report
}

fn inspect(report: &mut Doctor, cann: &Cann) {
    let symbols = cann.symbols();
    for (name, library, place) in cann.origins() {
        let of = || symbols.iter().filter(|(group, ..)| *group == name);
        report.groups.push(Group {
            name: name.to_owned(),
            library: library.to_owned(),
            place,
            present: of().filter(|(.., there)| *there).count(),
            missing: of().filter(|(.., there)| !there).map(|(_, name, _)| (*name).to_owned()).collect(),
        });
    }
    for (what, ways) in ABILITIES {
        let way = ways.iter().find(|names| names.iter().all(|name| cann.has(name)));
        let through = way.and_then(|names| names.first()).map(|name| (*name).to_owned());
        report.enables.push(Enabled { what: (*what).to_owned(), through });
    }
    let needed: Option<Vec<&str>> =
        NEEDED.iter().map(|any| any.iter().copied().find(|name| cann.has(name))).collect();
    for (what, more) in
        [("--backend cann", None), ("--backend cann, static scales", Some("aclnnAscendQuantV3"))]
    {
        let through = needed.as_ref().and_then(|names| names.first());
        let through =
            through.filter(|_| more.is_none_or(|name| cann.has(name))).map(|name| (*name).to_owned());
        report.enables.push(Enabled { what: what.to_owned(), through });
    }
    match cann.runtime_version() {
        Ok((major, minor, patch)) => report.runtime_version = Some(format!("{major}.{minor}.{patch}")),
        Err(AscendError::Missing { .. }) => {}
        Err(error) => report.problems.push(error.to_string()),
    }
    for package in ["runtime", "opp", "toolkit"] {
        // A package that is not there is none, whatever the code.
        if let Ok(version) = cann.package_version(package)
            && !version.is_empty()
        {
            report.packages.push((package.to_owned(), version));
        }
    }
    let count = match cann.device_count() {
        Ok(count) => i32::try_from(count).unwrap_or(i32::MAX),
        Err(error) if error.is_unavailable() => 0,
        Err(error) => {
            report.problems.push(error.to_string());
            0
        }
    };
    for id in 0..count {
        let mut found =
            FoundDevice { id, soc: None, free_bytes: None, total_bytes: None, saturates: None, error: None };
        let opened = Device::open(cann, id).and_then(|device| {
            found.soc = cann.soc_name();
            match device.memory() {
                Ok((free, total)) => (found.free_bytes, found.total_bytes) = (Some(free), Some(total)),
                // A runtime that does not tell.
                Err(AscendError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
            found.saturates = device.saturates()?;
            device.close()
        });
        if let Err(error) = opened {
            report.problems.push(format!("device {id}: {error}"));
            found.error = Some(error.to_string());
        }
        report.devices.push(found);
    }
}

impl Doctor {
    /// Whether a CANN runtime was opened.
    #[must_use]
    pub fn is_installed(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Whether something that was found does not work.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        !self.problems.is_empty()
    }
}

impl fmt::Display for Doctor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_installed() {
            let version = self.runtime_version.as_deref().unwrap_or("unknown version");
            writeln!(f, "CANN runtime: {version}")?;
        } else {
            writeln!(f, "CANN: not found")?;
            for looked in &self.looked {
                writeln!(f, "  looked for {} at {}", looked.library, looked.place)?;
            }
        }
        for (package, version) in &self.packages {
            writeln!(f, "  package {package} {version}")?;
        }
        for group in &self.groups {
            writeln!(
                f,
                "  {}: {} functions from {} ({})",
                group.name, group.present, group.library, group.place
            )?;
            if !group.missing.is_empty() {
                writeln!(f, "    missing: {}", group.missing.join(", "))?;
            }
        }
        for device in &self.devices {
            let soc = device.soc.as_deref().unwrap_or("unknown chip");
            write!(f, "  device {}: {soc}", device.id)?;
            if let (Some(free), Some(total)) = (device.free_bytes, device.total_bytes) {
                write!(f, ", {} of {} MiB free", free >> 20, total >> 20)?;
            }
            if let Some(saturates) = device.saturates {
                write!(f, ", overflow to {}", if saturates { "the largest number" } else { "infinity" })?;
            }
            writeln!(f)?;
        }
        if self.is_installed() && self.devices.is_empty() {
            writeln!(f, "  no device")?;
        }
        for enabled in &self.enables {
            writeln!(f, "  {}: {}", enabled.what, enabled.through.as_deref().unwrap_or("not possible"))?;
        }
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        Ok(())
    }
}
