//! Tasks of an evaluation as data: where items come from, how a model is asked, and what is right.
//!
//! A task is one YAML file ([`Task::parse`]; [`task_schema`] lists its keys). Templates are Jinja, with Python's methods of texts and
//! lists, under the bounds of chat templates; a key that is an *expression* is what would stand between `{{` and `}}`, with a value of
//! any kind. Both see the fields of an item by their names, and all of them as `_item`.
//!
//! | kind | asks | items |
//! |---|---|---|
//! | `choice` | which of several continuations of a context is most likely, or whether the model itself goes on so | [`Task::choices`] |
//! | `generate` | for a text, and grades the answer in it | [`Task::questions`] |
//! | `text` | how well a text is predicted | [`Task::windows`] |
//!
//! The tasks of [`TASKS`] ship with the library: metadata and wordings of ours, no texts of any data set.

mod ask;
mod choice;
mod fault;
mod file;
mod generate;
mod keys;
mod kinds;
mod places;
mod records;
#[cfg(test)]
mod tests;
mod text;

pub use ask::{Expression, TextTemplate};
pub use choice::{ChoiceItem, Continuation, split_continuation};
pub use file::{Source, Task, TaskKind};
pub use generate::{EncodedPrompt, Question, Said};
pub use keys::task_schema;
pub use kinds::{ChoiceMetric, Choices, Generation, Opening, TaskSampling, TextTask};
#[cfg(feature = "hub")]
pub(crate) use places::{is_plain, path_fits};

use crate::DataError;

/// A task that ships with the library.
#[derive(Debug)]
pub struct BuiltIn {
    /// Its name on the command line.
    pub name: &'static str,
    /// The YAML.
    pub text: &'static str,
}

macro_rules! tasks {
    ($($name:literal),* $(,)?) => {
        /// All tasks of this crate, alphabetical.
        pub static TASKS: &[&BuiltIn] =
            &[$(&BuiltIn { name: $name, text: include_str!(concat!("../../tasks/", $name, ".yaml")) }),*];
    };
}

tasks![
    "aime-2025",
    "aime-90",
    "arc-challenge",
    "arc-easy",
    "c4",
    "gpqa-diamond",
    "gsm8k",
    "hellaswag",
    "lambada",
    "livecodebench",
    "math-500",
    "piqa",
    "tiny-addition",
    "tiny-compare",
    "tiny-running",
    "tiny-sorting",
    "tiny-subtraction",
    "tiny-text",
    "tiny-word",
    "wikitext2",
    "winogrande",
];

/// A task that ships with the library, by its name.
///
/// ```
/// let task = quant_data::built_in_task("gsm8k")?;
/// assert_eq!(task.source().repository.as_deref(), Some("openai/gsm8k"));
/// assert!(quant_data::built_in_task("gsm8").unwrap_err().to_string().contains("did you mean \"gsm8k\"?"));
/// # Ok::<(), quant_data::DataError>(())
/// ```
///
/// # Errors
/// [`DataError::Task`] for another name, with the nearest one.
pub fn built_in_task(name: &str) -> Result<Task, DataError> {
    if let Some(found) = TASKS.iter().find(|task| task.name == name) {
        return Task::parse(found.text);
    }
    let known: Vec<&str> = TASKS.iter().map(|task| task.name).collect();
    let meant = quant_core::meant(name, &known);
    Err(DataError::Task {
        task: name.to_owned(),
        reason: format!("there is no task of this name{meant}; there are {}", known.join(", ")),
    })
}
