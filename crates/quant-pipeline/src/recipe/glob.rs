//! Module globs: `*` stands for any run of characters, dots included.

/// A pattern over module names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// A pattern; every text is one.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self(pattern.to_owned())
    }
    /// The pattern as written.
    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.0
    }
    /// Whether the whole of `name` matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut pieces = self.0.split('*');
        let Some(first) = pieces.next() else { return name.is_empty() };
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let Some(last) = pieces.next_back() else { return rest.is_empty() };
        for piece in pieces {
            match rest.find(piece) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            }
        }
        rest.len() >= last.len() && rest.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use super::Glob;

    #[test]
    fn stars_cross_dots() {
        for (pattern, name, expected) in [
            ("*.down_proj", "model.layers.3.mlp.down_proj", true),
            ("*.down_proj", "model.layers.3.mlp.up_proj", false),
            ("model.layers.*.mlp.*", "model.layers.12.mlp.up_proj", true),
            ("model.layers.1.*", "model.layers.12.mlp.up_proj", false),
            ("lm_head", "lm_head", true),
            ("lm_head", "lm_head.weight", false),
            ("*", "", true),
            ("*", "anything", true),
            ("a*a", "a", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxcyyb", false),
            ("", "x", false),
            ("", "", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(name), expected, "{pattern} on {name}");
        }
    }
}
