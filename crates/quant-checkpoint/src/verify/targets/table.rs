//! The rule sets: what was executed or read of each program, version by version.

use super::{Cache8, Int8, Kernel, Packed, RuleSet, Target, Version};

/// All whole widths that are packed.
const ALL_BITS: &[u32] = &[2, 3, 4, 5, 6, 7, 8];

/// `tiles` are the multiples it refuses to go without.
const fn marlin(inputs: usize, outputs: usize) -> Kernel {
    Kernel {
        name: "Marlin",
        symmetric: &[4, 8],
        asymmetric: &[4],
        groups: Some(&[32, 64, 128]),
        inputs,
        outputs,
        float16: false,
        fast: true,
    }
}

const EXLLAMA: Kernel = Kernel {
    name: "Exllama",
    symmetric: &[4, 8],
    asymmetric: &[],
    groups: None,
    inputs: 1,
    outputs: 1,
    float16: true,
    fast: false,
};

const fn humming(asymmetric: &'static [u32]) -> Kernel {
    Kernel {
        name: "Humming",
        symmetric: ALL_BITS,
        asymmetric,
        groups: None,
        inputs: 1,
        outputs: 1,
        float16: false,
        fast: false,
    }
}

pub(super) const VLLM: RuleSet = RuleSet {
    target: Target::Vllm,
    from: Version(0, 33),
    to: Version(0, 33),
    formats: &["compressed-tensors", "dequantized"],
    packed: Packed::Kernels(&[marlin(1, 1), EXLLAMA, humming(ALL_BITS)]),
    int8: None,
    unwise: None,
    group_index: Some(&[]),
    float8_cache: true,
    fuses: true,
    head_is_linear: false,
    types: &[],
    cache8: Cache8::Refused,
    parallel: true,
};

const ASCEND: RuleSet = RuleSet {
    target: Target::VllmAscend,
    from: Version(0, 26),
    to: Version(0, 26),
    formats: &["vllm-ascend", "compressed-tensors"],
    packed: Packed::Refused,
    int8: Some(&[Int8::Dynamic, Int8::Static]),
    unwise: Some((
        Int8::Static,
        "it loads, but the loader leaves input_offset as uninitialised memory: export to vllm-ascend instead",
    )),
    group_index: Some(&[]),
    float8_cache: false,
    fuses: true,
    head_is_linear: false,
    types: &[
        "FLOAT",
        "W8A8",
        "W8A8_DYNAMIC",
        "W8A8_MIX",
        "W8A16",
        "W4A4_DYNAMIC",
        "W4A4_FLATQUANT_DYNAMIC",
        "W8A8_MXFP8",
        "W4A4_MXFP4",
        "W4A8_MXFP",
        "W4A16_MXFP4",
        "W8A8S",
        "W8A8SC",
        "W16A16S",
        "W16A16SC",
        "FAKQuant",
    ],
    cache8: Cache8::Loaded { head_dim: 32 },
    parallel: true,
};

/// The types of vLLM-Ascend before MX types came.
const ASCEND_0_14: &[&str] = &[
    "FLOAT",
    "W8A8",
    "W8A8_DYNAMIC",
    "W8A8_MIX",
    "W8A16",
    "W4A4_DYNAMIC",
    "W4A4_FLATQUANT_DYNAMIC",
    "W8A8_MXFP8",
    "W8A8S",
    "W8A8SC",
];

/// All sets: by target, oldest first.
pub static RULE_SETS: &[RuleSet] = &[
    RuleSet {
        from: Version(0, 11),
        to: Version(0, 11),
        formats: &["vllm-ascend"],
        int8: Some(&[]),
        unwise: None,
        types: &["FLOAT", "W8A8", "W8A8_DYNAMIC", "W4A8_DYNAMIC", "W4A4_FLATQUANT_DYNAMIC"],
        cache8: Cache8::Refused,
        ..ASCEND
    },
    RuleSet {
        from: Version(0, 12),
        to: Version(0, 12),
        types: &["FLOAT", "W8A8", "W8A8_DYNAMIC", "W8A8_MIX", "W4A8_DYNAMIC", "W4A4_FLATQUANT_DYNAMIC"],
        cache8: Cache8::Refused,
        ..ASCEND
    },
    RuleSet {
        from: Version(0, 13),
        to: Version(0, 13),
        types: &[
            "FLOAT",
            "W8A8",
            "W8A8_DYNAMIC",
            "W8A8_MIX",
            "W8A16",
            "W4A8_DYNAMIC",
            "W4A4_FLATQUANT_DYNAMIC",
            "W8A8_MXFP8",
        ],
        cache8: Cache8::Refused,
        ..ASCEND
    },
    RuleSet {
        from: Version(0, 14),
        to: Version(0, 17),
        types: ASCEND_0_14,
        cache8: Cache8::Refused,
        ..ASCEND
    },
    RuleSet {
        from: Version(0, 18),
        to: Version(0, 25),
        types: ASCEND_0_14,
        cache8: Cache8::Loaded { head_dim: 1 },
        ..ASCEND
    },
    ASCEND,
    // Misaligned tiles were refused before they were padded.
    RuleSet {
        from: Version(0, 11),
        to: Version(0, 19),
        packed: Packed::Kernels(&[marlin(128, 64), EXLLAMA]),
        group_index: Some(&[64, 128]),
        ..VLLM
    },
    RuleSet {
        from: Version(0, 20),
        to: Version(0, 23),
        packed: Packed::Kernels(&[marlin(1, 1), EXLLAMA]),
        group_index: Some(&[64, 128]),
        ..VLLM
    },
    RuleSet {
        from: Version(0, 26),
        to: Version(0, 28),
        packed: Packed::Kernels(&[marlin(1, 1), EXLLAMA, humming(&[4, 8])]),
        group_index: None,
        ..VLLM
    },
    RuleSet {
        from: Version(0, 30),
        to: Version(0, 30),
        packed: Packed::Kernels(&[marlin(1, 1), EXLLAMA, humming(&[4, 8])]),
        ..VLLM
    },
    VLLM,
    RuleSet {
        target: Target::SglangNpu,
        from: Version(0, 5),
        to: Version(0, 5),
        int8: Some(&[Int8::Dynamic]),
        unwise: None,
        types: &["FLOAT", "W8A8", "W8A8_DYNAMIC", "W4A4_DYNAMIC"],
        cache8: Cache8::Skipped,
        ..ASCEND
    },
    RuleSet {
        target: Target::Transformers,
        from: Version(5, 17),
        to: Version(5, 17),
        packed: Packed::Unpacked,
        fuses: false,
        head_is_linear: true,
        parallel: false,
        ..VLLM
    },
];
