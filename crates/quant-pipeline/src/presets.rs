//! Recipes that ship with the tool: the files of `recipes/` at the top of the repository.

use quant_graph::Entry;

/// A recipe with a name.
#[derive(Debug)]
pub struct Preset {
    /// Name on the command line.
    pub name: &'static str,
    /// The YAML, beginning with a comment that says what it is for.
    pub text: &'static str,
}

impl Preset {
    /// The opening comment as one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let lines = self.text.lines().take_while(|l| l.starts_with('#'));
        lines.map(|l| l.trim_start_matches(['#', ' '])).collect::<Vec<_>>().join(" ")
    }
}

impl Entry for Preset {
    const KIND: &'static str = "preset";
    fn ours() -> &'static [&'static Self] {
        PRESETS
    }
    fn id(&self) -> &'static str {
        self.name
    }
}

/// All presets of this crate, alphabetical.
pub static PRESETS: &[&Preset] = &[
    &Preset { name: "w2a16g32-research", text: include_str!("../recipes/w2a16g32-research.yaml") },
    &Preset { name: "w3a16g128-research", text: include_str!("../recipes/w3a16g128-research.yaml") },
    &Preset { name: "w3a16g32-research", text: include_str!("../recipes/w3a16g32-research.yaml") },
    &Preset { name: "w4a16g128", text: include_str!("../recipes/w4a16g128.yaml") },
    &Preset { name: "w4a16g128-asym", text: include_str!("../recipes/w4a16g128-asym.yaml") },
    &Preset { name: "w4a16g128-awq", text: include_str!("../recipes/w4a16g128-awq.yaml") },
    &Preset { name: "w4a16g128-gptaq", text: include_str!("../recipes/w4a16g128-gptaq.yaml") },
    &Preset { name: "w4a16g32", text: include_str!("../recipes/w4a16g32.yaml") },
    &Preset { name: "w4a4-flatquant-ascend", text: include_str!("../recipes/w4a4-flatquant-ascend.yaml") },
    &Preset {
        name: "w4a4kv4-flatquant-official-research",
        text: include_str!("../recipes/w4a4kv4-flatquant-official-research.yaml"),
    },
    &Preset {
        name: "w4a4kv4-flatquant-qrm-research",
        text: include_str!("../recipes/w4a4kv4-flatquant-qrm-research.yaml"),
    },
    &Preset {
        name: "w4a4kv4-flatquant-research",
        text: include_str!("../recipes/w4a4kv4-flatquant-research.yaml"),
    },
    &Preset {
        name: "w4a4kv4-quarot-research",
        text: include_str!("../recipes/w4a4kv4-quarot-research.yaml"),
    },
    &Preset { name: "w4a4kv4-research", text: include_str!("../recipes/w4a4kv4-research.yaml") },
    &Preset { name: "w8a16-ascend", text: include_str!("../recipes/w8a16-ascend.yaml") },
    &Preset { name: "w8a8", text: include_str!("../recipes/w8a8.yaml") },
    &Preset { name: "w8a8-ascend", text: include_str!("../recipes/w8a8-ascend.yaml") },
    &Preset { name: "w8a8-static-ascend", text: include_str!("../recipes/w8a8-static-ascend.yaml") },
    &Preset { name: "w8a8kv8-ascend", text: include_str!("../recipes/w8a8kv8-ascend.yaml") },
];

/// The preset of this crate of that name.
#[must_use]
pub fn preset(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().copied().find(|p| p.name == name)
}
