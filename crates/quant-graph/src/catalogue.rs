//! Lists of what recipes and folders call by name, which a program may extend.

use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;

/// What a [`Catalogue`] lists.
pub trait Entry: Sync + 'static {
    /// What it is, in one word: `method`.
    const KIND: &'static str;
    /// Those that come with the crate that defines the kind.
    fn ours() -> &'static [&'static Self];
    /// The name it is called by.
    fn id(&self) -> &'static str;
    /// The other names that are its alone, each behind what it is: `("architecture", "LlamaForCausalLM")`.
    fn claims(&self) -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }
}

/// The entries a program knows of one kind: by default those that come with the crates here, and behind them what it
/// adds, in the order in which it does. A clone shares the list.
pub struct Catalogue<T: ?Sized + 'static>(Arc<[&'static T]>);

/// A name that another entry has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// What is listed: `method`.
    pub kind: &'static str,
    /// What the name is: `id`, `architecture`.
    pub what: &'static str,
    /// The name.
    pub name: &'static str,
    /// Id of the entry that has it.
    pub owner: &'static str,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { kind, what, name, owner } = self;
        write!(f, "the {what} {name:?} belongs to the {kind} {owner:?}; give the new {kind} another")
    }
}

impl std::error::Error for Taken {}

impl<T: Entry + ?Sized> Catalogue<T> {
    /// An empty list, for a program that wants none but its own.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::from([]))
    }

    /// The list with one more at its end.
    ///
    /// # Errors
    /// [`Taken`] if an entry has its id or one of its other names.
    pub fn with(&self, entry: &'static T) -> Result<Self, Taken> {
        let names = |entry: &'static T| {
            let mut names = entry.claims();
            names.insert(0, ("id", entry.id()));
            names
        };
        let new = names(entry);
        for other in self.iter() {
            if let Some((what, name)) = names(other).into_iter().find(|name| new.contains(name)) {
                return Err(Taken { kind: T::KIND, what, name, owner: other.id() });
            }
        }
        Ok(Self(self.iter().chain([entry]).collect()))
    }

    /// The entry of that id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&'static T> {
        self.iter().find(|entry| entry.id() == id)
    }
    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = &'static T> {
        self.0.iter().copied()
    }
    /// The ids of all entries.
    #[must_use]
    pub fn ids(&self) -> Vec<&'static str> {
        self.iter().map(T::id).collect()
    }
}

impl<T: Entry + ?Sized> Default for Catalogue<T> {
    /// Those that come with the crate of the kind.
    fn default() -> Self {
        Self(T::ours().into())
    }
}

impl<T: ?Sized> Clone for Catalogue<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Entry + ?Sized> Debug for Catalogue<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Beast(&'static str, &'static str);

    impl Entry for Beast {
        const KIND: &'static str = "beast";
        fn ours() -> &'static [&'static Self] {
            &[&Self("cat", "miaow"), &Self("dog", "woof")]
        }
        fn id(&self) -> &'static str {
            self.0
        }
        fn claims(&self) -> Vec<(&'static str, &'static str)> {
            vec![("sound", self.1)]
        }
    }

    #[test]
    fn an_entry_joins_at_the_end_and_only_with_names_of_its_own() {
        let ours = Catalogue::<Beast>::default();
        let more = ours.with(&Beast("ape", "ook")).unwrap();
        assert_eq!((ours.ids(), more.ids()), (vec!["cat", "dog"], vec!["cat", "dog", "ape"]));
        assert!(more.get("ape").is_some() && ours.get("ape").is_none());
        for (beast, message) in [
            (&Beast("dog", "wow"), "the id \"dog\" belongs to the beast \"dog\"; give the new beast another"),
            (
                &Beast("hog", "ook"),
                "the sound \"ook\" belongs to the beast \"ape\"; give the new beast another",
            ),
        ] {
            assert_eq!(more.with(beast).unwrap_err().to_string(), message);
        }
        // A name is taken as what it is.
        let alone = Catalogue::none().with(&Beast("woof", "dog")).unwrap();
        assert_eq!(format!("{:?}", alone.with(&Beast("dog", "woof")).unwrap()), "[\"woof\", \"dog\"]");
    }
}
