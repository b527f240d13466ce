//! Tensors under other names than the model's own.
//!
//! Wrappers put a prefix before every name of what they save (`_orig_mod.` of a compiled model, `module.` of a parallel one,
//! `base_model.model.` of an adapter's), others leave `model.` out or put `language_model.` in. And a tied model may have kept
//! its one table under the name of the head. Where such a change of names explains every tensor, the checkpoint is the
//! model's; from then on its tensors have the canonical names, under which they are also written.

use std::collections::{BTreeMap, BTreeSet};

use quant_graph::ModelSpec;

use crate::source::Checkpoint;

/// What the names of the decoder's tensors begin with.
const BODY: &str = "model.";

impl Checkpoint {
    /// Gives the tensors the names that the model `spec` has for them and says, for people, what was changed. Nothing is
    /// changed unless every tensor of the model then is there and no other.
    pub fn take_names_of(&mut self, spec: &ModelSpec) -> Vec<String> {
        let mut notices = Vec::new();
        let stored: BTreeSet<&str> = self.tensors.keys().map(String::as_str).collect();
        if let Some(renaming) = Renaming::find(&stored, spec) {
            notices.push(renaming.notice());
            self.tensors = std::mem::take(&mut self.tensors)
                .into_iter()
                .map(|(name, mut info)| {
                    let name = renaming.canonical(&name).unwrap_or(name);
                    info.name.clone_from(&name);
                    (name, info)
                })
                .collect();
        }
        if spec.tied
            && self.get(ModelSpec::EMBEDDING).is_none()
            && let Some(mut table) = self.tensors.remove(ModelSpec::HEAD)
        {
            notices.push(format!(
                "the head is tied to the embedding and only {} is stored; it is read, and written, as {}",
                ModelSpec::HEAD,
                ModelSpec::EMBEDDING
            ));
            ModelSpec::EMBEDDING.clone_into(&mut table.name);
            self.tensors.insert(ModelSpec::EMBEDDING.to_owned(), table);
        }
        notices
    }
}

/// One prefix in place of another, before all names of the decoder, and one before the head's.
#[derive(Debug, PartialEq, Eq)]
struct Renaming {
    /// In place of `model.`.
    body: String,
    /// Before `lm_head.weight`.
    head: String,
}

impl Renaming {
    /// The one that gives the model's names to these, if there is one and they are not the model's already.
    fn find(stored: &BTreeSet<&str>, spec: &ModelSpec) -> Option<Self> {
        let anchor = format!("{}.weight", spec.block(0).linears.first()?.module);
        let body = prefix_before(stored, anchor.strip_prefix(BODY)?)?;
        if body == BODY {
            return None;
        }
        // Without a head there is nothing before it.
        let head = prefix_before(stored, ModelSpec::HEAD).unwrap_or_default();
        let renaming = Self { body: body.to_owned(), head: head.to_owned() };
        renaming.explains(stored, spec).then_some(renaming)
    }

    /// Whether every tensor of the model is among these, and nothing that is not.
    fn explains(&self, stored: &BTreeSet<&str>, spec: &ModelSpec) -> bool {
        let mut wanted: BTreeMap<String, bool> =
            spec.tensors().into_iter().map(|tensor| (tensor.name, false)).collect();
        for name in stored.iter().filter(|name| !spec.is_ignorable(name)) {
            let Some(canonical) = self.canonical(name) else { return false };
            match wanted.get_mut(&canonical) {
                Some(seen) => *seen = true,
                None if spec.tied && canonical == ModelSpec::HEAD => {
                    // Alone it is the embedding; beside it a second copy.
                    wanted.insert(ModelSpec::EMBEDDING.to_owned(), true);
                }
                None => return false,
            }
        }
        wanted.values().all(|seen| *seen)
    }

    /// The model's name of a stored tensor; none for a name that does not begin so.
    fn canonical(&self, stored: &str) -> Option<String> {
        if stored.strip_prefix(&self.head) == Some(ModelSpec::HEAD) {
            return Some(ModelSpec::HEAD.to_owned());
        }
        Some(format!("{BODY}{}", stored.strip_prefix(&self.body)?))
    }

    fn notice(&self) -> String {
        let wrapper = self.body.strip_suffix(BODY).filter(|wrapper| *wrapper == self.head);
        match wrapper {
            Some(wrapper) => format!(
                "the names of all tensors begin with {wrapper:?}; they are read, and written, without it"
            ),
            None => format!(
                "the decoder's tensors are stored as {:?} and the like; they are read, and written, as {:?}",
                format!("{}norm.weight", self.body),
                ModelSpec::FINAL_NORM
            ),
        }
    }
}

/// What stands before `ending` in the one name that ends with it after a dot, or is it.
fn prefix_before<'a>(names: &BTreeSet<&'a str>, ending: &str) -> Option<&'a str> {
    let mut prefixes = names
        .iter()
        .filter_map(|name| name.strip_suffix(ending))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
    let prefix = prefixes.next()?;
    prefixes.next().is_none().then_some(prefix)
}
