//! The methods this crate has, as data.

use crate::{gptq, rtn, smoothquant};

/// What a method does to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Rewrites a float block without changing its function.
    Transform,
    /// Turns weights into integer levels.
    Rounding,
}

/// Statistics a method wants gathered before it runs on a linear or a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Needs {
    /// `Σ XᵀX` of a linear's input, in the quantised stream.
    pub hessian: bool,
    /// Largest `|x|` of every channel at the sites of the scale edges, in the float stream.
    pub channel_max: bool,
}

/// One registry line.
#[derive(Debug)]
pub struct Method {
    /// Name in recipes.
    pub id: &'static str,
    /// One line for help and tables.
    pub summary: &'static str,
    /// Where it was published.
    pub source: &'static str,
    /// Transform or rounding.
    pub kind: Kind,
    /// Statistics it wants.
    pub needs: Needs,
    /// 1: golden-tested against the official code and exported; 2: golden-tested; 3: experimental.
    pub tier: u8,
}

/// All methods, alphabetical.
pub static METHODS: &[&Method] = &[&gptq::METHOD, &rtn::METHOD, &smoothquant::METHOD];

/// The method of that name.
#[must_use]
pub fn method(id: &str) -> Option<&'static Method> {
    METHODS.iter().copied().find(|m| m.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_sorted_unique_and_documented() {
        let ids: Vec<_> = METHODS.iter().map(|m| m.id).collect();
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(ids, sorted);
        for m in METHODS {
            assert!(!m.summary.is_empty() && !m.source.is_empty() && (1..=3).contains(&m.tier), "{}", m.id);
            assert!(
                m.id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{}",
                m.id
            );
        }
    }
}
