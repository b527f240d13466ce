//! Which program, in which version, loads what: one table of rule sets.
//!
//! A set holds for a range of versions that were executed or read. [`Rules`] is a set as somebody asked for it:
//! `vllm` is the newest one, `vllm@0.27` the one whose range holds 0.27, and a version between or beyond the ranges
//! takes the nearest older set and says so.

mod table;

use std::fmt;
use std::str::FromStr;

pub use self::table::RULE_SETS;
use self::table::VLLM;

use serde::{Serialize, Serializer};

/// A program that loads folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// vLLM with the Ascend plugin.
    VllmAscend,
    /// vLLM on CUDA.
    Vllm,
    /// SGLang on Ascend.
    SglangNpu,
    /// transformers, with the compressed-tensors library where the folder needs it.
    Transformers,
}

impl Target {
    /// All targets.
    pub const ALL: [Self; 4] = [Self::VllmAscend, Self::Vllm, Self::SglangNpu, Self::Transformers];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::VllmAscend => "vllm-ascend",
            Self::Vllm => "vllm",
            Self::SglangNpu => "sglang-npu",
            Self::Transformers => "transformers",
        }
    }
    /// Its rule sets, oldest first.
    pub fn rule_sets(self) -> impl DoubleEndedIterator<Item = &'static RuleSet> {
        RULE_SETS.iter().filter(move |set| set.target == self)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Target {
    type Err = UnknownTarget;
    fn from_str(name: &str) -> Result<Self, UnknownTarget> {
        Self::ALL.into_iter().find(|t| t.name() == name).ok_or_else(|| UnknownTarget(name.to_owned()))
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A target name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown target {0:?}: expected vllm-ascend, vllm, sglang-npu or transformers, or one with a version (vllm@0.23)"
)]
pub struct UnknownTarget(pub String);

/// Why a target with a version could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No such program.
    #[error(transparent)]
    Unknown(#[from] UnknownTarget),
    /// What follows the `@` is no version.
    #[error("{version:?} is no version of {target}: expected two numbers such as {target}@{example}")]
    Version {
        /// The program.
        target: Target,
        /// What was found.
        version: String,
        /// The newest version with a set of rules.
        example: Version,
    },
}

/// Major and minor number of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Version {
    /// `0.23`, `v0.23.0`, `0.18.0rc1`: two numbers, then at most a third and the name of a pre-release.
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let whole = |part: &str| -> Option<u32> {
            (!part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?
        };
        let (major, rest) = text.split_once('.')?;
        let (minor, patch) = rest.split_once('.').map_or((rest, None), |(minor, patch)| (minor, Some(patch)));
        // A pre-release may follow either number: 0.23rc1, 0.18.0rc1, 0.25.1.post1.
        let cut = |part: &str| part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let suffix = |rest: &str| {
            rest.is_empty()
                || (rest.starts_with(|c: char| c.is_ascii_alphabetic() || ".+-".contains(c))
                    && rest.len() > 1
                    && rest.chars().all(|c| c.is_ascii_alphanumeric() || ".+-".contains(c)))
        };
        let fits = match patch {
            Some(patch) => cut(patch) > 0 && suffix(&patch[cut(patch)..]) && cut(minor) == minor.len(),
            None => suffix(&minor[cut(minor)..]),
        };
        fits.then_some(())?;
        Some(Self(whole(major)?, whole(&minor[..cut(minor)])?))
    }
}

/// A kernel for packed integer weights before float inputs.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Its name.
    pub name: &'static str,
    /// Bit widths of symmetric weights.
    pub symmetric: &'static [u32],
    /// Bit widths of weights with zero points.
    pub asymmetric: &'static [u32],
    /// Group sizes besides whole channels; none is any.
    pub groups: Option<&'static [usize]>,
    /// What must divide the inputs of a linear on one device.
    pub inputs: usize,
    /// What must divide the outputs of a fused linear on one device.
    pub outputs: usize,
    /// Takes float16 models only.
    pub float16: bool,
    /// Worth having: a folder that only others take is advised against.
    pub fast: bool,
}

/// How the input of an 8-bit linear is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int8 {
    /// Per token, symmetric.
    Dynamic,
    /// Per token, asymmetric.
    DynamicAsymmetric,
    /// One scale, symmetric.
    Static,
    /// One scale and zero point.
    StaticAsymmetric,
}

/// What becomes of packed weights without integer inputs.
#[derive(Clone, Copy, Debug)]
pub enum Packed {
    /// They are not loaded.
    Refused,
    /// A kernel is chosen.
    Kernels(&'static [Kernel]),
    /// They are unpacked by the library, whatever they are.
    Unpacked,
}

/// How 8-bit caches of msmodelslim's layout are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache8 {
    /// There is no such cache.
    Refused,
    /// The scales are skipped with a warning: the cache is float.
    Skipped,
    /// Loaded where `kv_cache_type` says so; the head size must be a multiple.
    Loaded {
        /// Of this number.
        head_dim: usize,
    },
}

/// The rules of one program for a range of its versions.
#[derive(Clone, Copy, Debug)]
pub struct RuleSet {
    /// The program.
    pub target: Target,
    /// First version they hold for.
    pub from: Version,
    /// Last version they hold for.
    pub to: Version,
    /// Ids of the formats it reads; float folders go with `dequantized`.
    pub formats: &'static [&'static str],
    /// compressed-tensors: packed weights.
    pub packed: Packed,
    /// compressed-tensors: 8-bit linears by their input; none is all there are.
    pub int8: Option<&'static [Int8]>,
    /// compressed-tensors: an input it loads and should not be given, with the reason.
    pub unwise: Option<(Int8, &'static str)>,
    /// compressed-tensors: group sizes of weights with `weight_g_idx`; none is any, an empty list is no such weights.
    pub group_index: Option<&'static [usize]>,
    /// compressed-tensors: whether a float-8 cache is loaded.
    pub float8_cache: bool,
    /// Whether linears with a common input are one layer to it.
    pub fuses: bool,
    /// compressed-tensors: whether a group's class name reaches the head.
    pub head_is_linear: bool,
    /// msmodelslim's layout: types of linears.
    pub types: &'static [&'static str],
    /// msmodelslim's layout: 8-bit caches.
    pub cache8: Cache8,
    /// Whether it runs on several devices by tensor parallelism.
    pub parallel: bool,
}

/// A set of rules as it was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    set: &'static RuleSet,
    asked: Option<Version>,
}

impl Rules {
    /// The newest rules of a target.
    #[must_use]
    pub fn newest(target: Target) -> Self {
        // The table has a set for every target, which a test holds.
        Self { set: target.rule_sets().next_back().unwrap_or(&VLLM), asked: None }
    }
    /// The rules for a version: the set whose range holds it, else the nearest older one, else the oldest.
    #[must_use]
    pub fn of(target: Target, version: Version) -> Self {
        let older = target.rule_sets().rev().find(|set| set.from <= version);
        let set = older.or_else(|| target.rule_sets().next()).unwrap_or(&VLLM);
        Self { set, asked: Some(version) }
    }
    /// The newest rules of every target that reads a format (`dequantized` stands for float folders too).
    pub fn reading(format: &str) -> impl Iterator<Item = Self> {
        Target::ALL.into_iter().map(Self::newest).filter(move |rules| rules.set.formats.contains(&format))
    }
    /// The set.
    #[must_use]
    pub fn set(&self) -> &'static RuleSet {
        self.set
    }
    /// The program.
    #[must_use]
    pub fn target(&self) -> Target {
        self.set.target
    }
    /// What to tell whoever asked for a version that no set was made for.
    #[must_use]
    pub fn notice(&self) -> Option<String> {
        let asked = self.asked?;
        let which = match asked {
            v if v < self.set.from => "oldest",
            v if v > self.set.to => "nearest older",
            _ => return None,
        };
        Some(format!(
            "there are no rules for {} {asked}; the {which} ones are used, those of {}",
            self.set.target,
            self.set.versions()
        ))
    }
}

impl RuleSet {
    /// The versions they hold for: `0.33`, `0.26-0.28`.
    #[must_use]
    pub fn versions(&self) -> String {
        if self.from == self.to { self.to.to_string() } else { format!("{}-{}", self.from, self.to) }
    }
}

/// Name and versions of the set: `vllm 0.26-0.28`.
impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.set.target, self.set.versions())
    }
}

impl From<Target> for Rules {
    fn from(target: Target) -> Self {
        Self::newest(target)
    }
}

impl FromStr for Rules {
    type Err = TargetError;
    /// `vllm`, `vllm@0.23`, `vllm@v0.23.0`.
    fn from_str(text: &str) -> Result<Self, TargetError> {
        let Some((name, version)) = text.split_once('@') else { return Ok(Self::newest(text.parse()?)) };
        let target: Target = name.parse()?;
        match Version::parse(version) {
            Some(version) => Ok(Self::of(target, version)),
            None => Err(TargetError::Version {
                target,
                version: version.to_owned(),
                example: Self::newest(target).set.to,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_sets_in_order() {
        for target in Target::ALL {
            let sets: Vec<_> = target.rule_sets().collect();
            assert!(!sets.is_empty() && sets.iter().all(|s| s.from <= s.to), "{target}");
            assert!(sets.windows(2).all(|w| w[0].to < w[1].from), "{target}");
            assert_eq!(Rules::newest(target).target(), target);
        }
    }

    #[test]
    fn versions_find_their_sets() {
        for (asked, set, notice) in [
            ("vllm", "vllm 0.33", None),
            ("vllm@0.33.0", "vllm 0.33", None),
            ("vllm@0.40", "vllm 0.33", Some("nearest older")),
            ("vllm@0.31", "vllm 0.30", Some("nearest older")),
            ("vllm@v0.27", "vllm 0.26-0.28", None),
            ("vllm@0.25", "vllm 0.20-0.23", Some("nearest older")),
            ("vllm@0.11.2", "vllm 0.11-0.19", None),
            ("vllm@0.6", "vllm 0.11-0.19", Some("oldest")),
            ("vllm-ascend@0.18.0rc1", "vllm-ascend 0.18-0.25", None),
            ("vllm-ascend@0.13", "vllm-ascend 0.13", None),
            ("sglang-npu@0.5.23", "sglang-npu 0.5", None),
            ("transformers@4.57", "transformers 5.17", Some("oldest")),
        ] {
            let rules: Rules = asked.parse().unwrap();
            assert_eq!(rules.to_string(), set, "{asked}");
            let said = rules.notice();
            assert_eq!(said.is_some(), notice.is_some(), "{asked}: {said:?}");
            assert!(said.unwrap_or_default().contains(notice.unwrap_or_default()), "{asked}");
        }
        for text in [
            "vllm@",
            "vllm@new",
            "vllm@0",
            "vllm@0.",
            "vllm@.3",
            "vllm@0.3.x",
            "vllm@-1.0",
            "vllm@0.33 ",
            "tgi",
            "tgi@1.0",
            "@0.3",
            "vllm@0.9999999999",
        ] {
            assert!(text.parse::<Rules>().is_err(), "{text}");
        }
        assert!("vllm@new".parse::<Rules>().unwrap_err().to_string().contains("vllm@0.33"));
    }
}
