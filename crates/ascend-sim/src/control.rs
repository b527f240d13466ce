//! What a test switches and asks: exported functions of the library, and their safe side.

use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};

use libloading::Library;

/// Behaviours that CANN's documents leave open or describe twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Switch {
    /// QuantMatmul: 0 `(sum · scale) · pertoken`, 1 `sum · (pertoken · scale)`.
    Association = 0,
    /// Packed scales: 1 the last 13 bits of the mantissa are cut, 0 all are used.
    Fp19 = 1,
    /// DynamicQuant: 0 the scale is `amax · (1/127)`, 1 it is `1 / (127/amax)`.
    ScaleFormula = 2,
    /// WeightQuantBatchMatmul: 1 few rows go the way that quantises activations, to two digits of eight bits beside weights of eight
    /// bits, to three of four beside groups of weights of four (the latter only where sums may be in any order).
    Msd = 3,
    /// FlatQuant: 1 the product with the second factor is rounded to the type of the input before the first is applied.
    RoundBetween = 4,
    /// Attention: 1 dequantised keys and values and probabilities are rounded to the type of the query.
    RoundAttention = 5,
    /// Deliberate faults of arithmetic, so that a comparison must fail: the sum of some [`Mistake`]s, −1 for all.
    Wrong = 6,
    /// Devices that are there.
    Devices = 7,
    /// Numbers that do not fit: 0 become infinities and NaN, 1 the largest finite number, and what is none becomes 0.
    Saturation = 8,
}

/// Where arithmetic can be made wrong: a bit of [`Switch::Wrong`] each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum Mistake {
    /// Results of products of codes.
    QuantMatmul = 1,
    /// Codes of tokens.
    TokenCodes = 1 << 1,
    /// Scales of tokens.
    TokenScales = 1 << 2,
    /// Codes under fixed scales.
    StaticQuant = 1 << 3,
    /// Numbers of codes.
    AntiQuant = 1 << 4,
    /// Weight-only products.
    WeightOnly = 1 << 5,
    /// Products of floats.
    Matmul = 1 << 6,
    /// Scales as words, made on the device.
    PackScales = 1 << 7,
    /// Packing of int4.
    PackInt4 = 1 << 8,
    /// Codes behind FlatQuant's transform.
    Kronecker = 1 << 9,
    /// Attention.
    Attention = 1 << 10,
    /// Scales as words, made by the function for the host.
    PackScalesOnHost = 1 << 11,
}

impl Mistake {
    /// All that there are.
    pub const ALL: [Self; 12] = [
        Self::QuantMatmul,
        Self::TokenCodes,
        Self::TokenScales,
        Self::StaticQuant,
        Self::AntiQuant,
        Self::WeightOnly,
        Self::Matmul,
        Self::PackScales,
        Self::PackInt4,
        Self::Kronecker,
        Self::Attention,
        Self::PackScalesOnHost,
    ];
}

/// How many switches there are.
pub(crate) const SWITCHES: usize = 9;
/// What they begin with.
pub(crate) const DEFAULTS: [i64; SWITCHES] = [0, 1, 0, 0, 0, 0, 0, 2, 0];

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Kind {
    /// Contexts.
    Context = 0,
    /// Streams.
    Stream = 1,
    /// Events.
    Event = 2,
    /// Tensors.
    Tensor = 3,
    /// Arrays of whole numbers.
    IntArray = 4,
    /// Lists of tensors.
    TensorList = 5,
    /// Executors.
    Executor = 6,
    /// Devices that were set and not reset.
    Device = 7,
    /// Bytes of device memory.
    DeviceBytes = 8,
    /// Bytes of page-locked host memory.
    HostBytes = 9,
    /// 1 while initialised.
    Initialised = 10,
    /// The most bytes of device memory at a time.
    PeakDeviceBytes = 11,
    /// Tasks thrown away with their stream.
    DroppedTasks = 12,
    /// Calls that can fail.
    Calls = 13,
    /// Tasks in the trace.
    Traced = 14,
    /// Reports that were kept.
    Reports = 15,
}

/// A task of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The function that queued it.
    pub name: String,
    /// Its stream.
    pub stream: usize,
    /// Addresses of what it reads.
    pub reads: Vec<usize>,
    /// Addresses of what it writes.
    pub writes: Vec<usize>,
    /// Steps directly before it, by their place in the trace: on its stream, and through events.
    pub after: Vec<usize>,
}

impl Step {
    /// Everything in a trace that comes before one of its steps, on its stream and through events, by place.
    ///
    /// # Panics
    /// If the trace has no such step.
    #[must_use]
    pub fn all_before(trace: &[Self], step: usize) -> Vec<usize> {
        let (mut found, mut open) = (Vec::new(), trace[step].after.clone());
        while let Some(next) = open.pop() {
            if !found.contains(&next) {
                found.push(next);
                open.extend(&trace[next].after);
            }
        }
        found
    }
}

/// A loaded copy of the simulator: a folder in which its library lies under CANN's names.
///
/// When it is dropped, the folder and all memory of the simulator are gone: whatever uses it must be dropped before.
#[derive(Debug)]
pub struct Simulator {
    folder: tempfile::TempDir,
    library: Library,
}

/// The names under which CANN's libraries are looked for.
const NAMES: [&str; 4] = ["libascendcl.so", "libnnopbase.so", "libopapi_nn.so", "libopapi_transformer.so"];

/// The file of the library: beside the running test, or one folder above.
fn library_file() -> std::io::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let name = format!("{}ascend_sim{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    // A test lies in deps/, an example in examples/, a program above both; a test of documentation runs elsewhere.
    let folders = exe.ancestors().skip(1).take(3).flat_map(|folder| [folder.join("deps"), folder.to_owned()]);
    let tried: Vec<PathBuf> = folders.map(|folder| folder.join(&name)).collect();
    tried.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        std::io::Error::new(
            std::io::ErrorKind::NotFound,
            format!("{name} was not found at {tried:?}; a dev-dependency on ascend-sim builds it"),
        )
    })
}

impl Simulator {
    /// A copy of the simulator under all names of CANN.
    ///
    /// # Errors
    /// If the library was not built or cannot be copied or loaded.
    pub fn new() -> std::io::Result<Self> {
        Self::with_names(&NAMES)
    }

    /// A copy under these names alone.
    ///
    /// # Errors
    /// As [`Simulator::new`].
    pub fn with_names(names: &[&str]) -> std::io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("simulator.so");
        std::fs::copy(library_file()?, &file)?;
        // One file with several names is one library to the linker, as CANN's libraries share their state.
        for name in names {
            std::fs::hard_link(&file, folder.path().join(name))?;
        }
        // SAFETY: the library is ours; nothing runs when it is loaded.
        let library = unsafe { Library::new(&file) }.map_err(std::io::Error::other)?;
        Ok(Self { folder, library })
    }

    /// The folder to open CANN from.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    #[expect(clippy::panic, reason = "a helper of tests; the functions are those of this crate")]
    fn function<F: Copy>(&self, name: &str) -> F {
        // SAFETY: every caller names an exported function of this crate with its own type.
        match unsafe { self.library.get::<F>(name.as_bytes()) } {
            Ok(function) => *function,
            Err(error) => panic!("{name}: {error}"),
        }
    }

    /// Sets a switch.
    pub fn set(&self, switch: Switch, value: i64) {
        let set: extern "C" fn(i32, i64) = self.function("ascendSimSet");
        set(switch as i32, value);
    }

    /// Sets the bytes of device memory.
    pub fn set_memory(&self, bytes: usize) {
        let set: extern "C" fn(usize) = self.function("ascendSimSetMemory");
        set(bytes);
    }

    /// How many there are of something.
    #[must_use]
    pub fn count(&self, kind: Kind) -> u64 {
        let count: extern "C" fn(i32) -> u64 = self.function("ascendSimCount");
        count(kind as i32)
    }

    /// Everything that is alive and should not be when a test ends.
    #[must_use]
    pub fn leaks(&self) -> Vec<(Kind, u64)> {
        use Kind::*;
        let kinds = [
            Context,
            Stream,
            Event,
            Tensor,
            IntArray,
            TensorList,
            Executor,
            Device,
            DeviceBytes,
            HostBytes,
            Initialised,
        ];
        kinds.into_iter().map(|kind| (kind, self.count(kind))).filter(|(_, count)| *count > 0).collect()
    }

    /// Lets the call with this number fail, counted from 1 from now on; 0 for none. The counted calls begin anew.
    pub fn fail_call(&self, number: u64) {
        let fail: extern "C" fn(u64) = self.function("ascendSimFailCall");
        fail(number);
    }

    /// Lets the next call of a function fail with a code; 0 for the function's usual one.
    pub fn fail_next(&self, name: &str, code: i32) {
        let fail: extern "C" fn(*const c_char, i32) = self.function("ascendSimFailNext");
        if let Ok(name) = CString::new(name) {
            fail(name.as_ptr(), code);
        }
    }

    /// Reports are kept instead of ending the process.
    pub fn keep_reports(&self) {
        let keep: extern "C" fn() = self.function("ascendSimKeepReports");
        keep();
    }

    fn text(&self, name: &str, at: u64) -> String {
        let text: extern "C" fn(u64, *mut c_char, usize) = self.function(name);
        let mut buffer = vec![0_u8; 1 << 16];
        text(at, buffer.as_mut_ptr().cast(), buffer.len());
        CStr::from_bytes_until_nul(&buffer).map(|t| t.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The name of a counted call, from 1.
    #[must_use]
    pub fn call_name(&self, number: u64) -> String {
        self.text("ascendSimCallName", number)
    }

    /// Reports that were kept.
    #[must_use]
    pub fn reports(&self) -> Vec<String> {
        (0..self.count(Kind::Reports)).map(|at| self.text("ascendSimReport", at)).collect()
    }

    /// What was queued since the trace was cleared.
    #[must_use]
    pub fn trace(&self) -> Vec<Step> {
        (0..self.count(Kind::Traced)).filter_map(|at| parse(&self.text("ascendSimTrace", at))).collect()
    }

    /// Forgets the trace.
    pub fn clear_trace(&self) {
        let clear: extern "C" fn() = self.function("ascendSimClearTrace");
        clear();
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let forget: extern "C" fn() = self.function("ascendSimForget");
        forget();
    }
}

fn parse(line: &str) -> Option<Step> {
    let mut parts = line.split('|');
    let name = parts.next()?.to_owned();
    let stream = parts.next()?.parse().ok()?;
    let mut list = || -> Option<Vec<usize>> {
        Some(parts.next()?.split(' ').filter_map(|number| number.parse().ok()).collect())
    };
    Some(Step { name, stream, reads: list()?, writes: list()?, after: list()? })
}
