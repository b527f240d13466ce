//! The methods this crate has, as data.

use crate::Method;
use quant_graph::{Catalogue, Entry};

/// The methods that recipes may name: ours, and those a program adds.
pub type Methods = Catalogue<Method>;

impl Entry for Method {
    const KIND: &'static str = "method";
    fn ours() -> &'static [&'static Self] {
        METHODS
    }
    fn id(&self) -> &'static str {
        self.id
    }
}

/// All methods of this crate, alphabetical.
pub static METHODS: &[&Method] = &[
    &crate::awq::METHOD,
    &crate::billm::METHOD,
    &crate::duquant::METHOD,
    &crate::flatquant::METHOD,
    &crate::gptaq::METHOD,
    &crate::gptq::METHOD,
    &crate::qronos::METHOD,
    &crate::quarot::METHOD,
    &crate::rtn::METHOD,
    &crate::slim_llm::METHOD,
    &crate::smoothquant::METHOD,
];

/// The method of this crate of that name.
#[must_use]
pub fn method(id: &str) -> Option<&'static Method> {
    METHODS.iter().copied().find(|m| m.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MethodKind, Settings};

    #[test]
    fn the_registry_is_sorted_unique_and_documented() {
        let ids: Vec<_> = METHODS.iter().map(|m| m.id).collect();
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(ids, sorted);
        for m in METHODS {
            assert!(!m.summary.is_empty() && !m.source.is_empty() && (1..=3).contains(&m.tier), "{}", m.id);
            assert!(!m.fields.is_empty() && m.fields.iter().all(|f| !f.help.is_empty()), "{}", m.id);
            assert!(
                m.id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{}",
                m.id
            );
        }
    }

    /// What any method owes its callers, whichever it is: defaults that build, settings that keep their method, a plan for
    /// every width of weight it is asked about.
    #[test]
    fn every_method_is_built_from_its_own_keys() {
        for m in METHODS {
            let mut section = serde_json::Map::new();
            if m.fields.iter().any(|f| f.name == "scheme") {
                section.insert("scheme".into(), "W4A16g32".into());
            }
            let settings = Settings::new(m.id, section.into(), m.fields).unwrap();
            let resolved = settings.resolved();
            assert_eq!(resolved.as_object().unwrap().len(), m.fields.len(), "{}", m.id);
            // What is echoed into reports is a section again.
            Settings::new(m.id, resolved, m.fields).unwrap();
            let modifier = (m.build)(&settings).unwrap();
            assert_eq!(modifier.rounding.is_some(), m.kind.rounds(), "{}", m.id);
            let learns = modifier.learner.is_some();
            let transforms = modifier.transform.is_some() || modifier.model.is_some() || learns;
            assert_eq!(transforms, m.kind != MethodKind::Rounding, "{}", m.id);
            if let Some(model) = modifier.model {
                assert_eq!(model.method().id, m.id);
            }
            if let Some(transform) = modifier.transform {
                assert_eq!(transform.method().id, m.id);
            }
            let Some(rounding) = modifier.rounding else { continue };
            assert_eq!(rounding.method().id, m.id);
            let group = rounding.weights().scheme.group;
            for inputs in [1, 32, 100, 300] {
                let weight = quant_graph::WeightSpec::table("m", (1, inputs));
                let planned = rounding.plan(weight, quant_core::FloatType::F32).unwrap().unwrap();
                // What a learner leaves is rounded by another method.
                assert_eq!(planned.solver.method().id == m.id, !learns, "{}", m.id);
                assert_eq!(planned.weight.group, group.filter(|&g| g < inputs), "{}", m.id);
                assert_eq!(planned.solver.notice().is_some(), m.id == "slim-llm" && inputs < 97);
            }
        }
    }
}
