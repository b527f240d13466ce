//! Files of tasks from the Hugging Face hub, where a program asks for them.
//!
//! Nothing here is called by anything else of this library. The hub is asked for the files of a data set, those of the task's configuration
//! and split are chosen ([`Source::patterns`](crate::Source::patterns)), and they are written below a folder where they are found from then on.
//!
//! | what | bound |
//! |---|---|
//! | who is asked | [`Hub::endpoint`], and where it points to: itself, hosts below it, and those of [`Hub::storage`]; never from `https` to `http`, at most five times |
//! | who sees the token | the endpoint alone |
//! | what is looked at here | nothing but [`Hub::folder`] and the folders given: no environment variable, no proxy, no home folder |
//! | how much | [`Hub::limit`] bytes for a task, 1 GiB for a file, which is what is read; 256 files |
//! | how long | [`Hub::timeout`] for a connection and between two bytes, [`Hub::attempts`] |
//! | what is left by a fault | nothing: files are written aside and renamed when all are there, their size and, where the hub names it, their SHA-256 are right |

mod choose;
mod part;
mod token;
mod transfer;

pub use token::HubToken;

use crate::files::MAX_FILE_BYTES;
use crate::hub_error::HubError;
use crate::{DataError, Task};
use part::Part;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;
use transfer::{Connection, Wanted};

/// Files of one task at most.
const MOST_FILES: usize = 256;
/// What the hub makes of data sets in other forms.
const CONVERTED: &str = "refs/convert/parquet";

/// Where files of tasks come from, and where they go.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Its address.
    pub endpoint: String,
    /// Hosts, and what is below them, that it may point to for the bytes of files.
    pub storage: Vec<String>,
    /// What it is shown.
    pub token: Option<HubToken>,
    /// Folder for the files, each in a folder of its repository's name.
    pub folder: PathBuf,
    /// Bytes for one task at most.
    pub limit: u64,
    /// Attempts at one file, at least 1; what has come of it is not fetched again.
    pub attempts: u32,
    /// Wait before the second attempt; every further one is twice as long.
    pub backoff: Duration,
    /// Longest wait for a connection, and between two bytes.
    pub timeout: Duration,
}

/// How far a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubProgress<'a> {
    /// Its path in the repository.
    pub file: &'a str,
    /// Bytes that have come.
    pub done: u64,
    /// Bytes that it has.
    pub of: u64,
    /// Its number, from 1.
    pub number: usize,
    /// Files that are fetched.
    pub files: usize,
}

impl Hub {
    /// The address of the Hugging Face hub.
    pub const ENDPOINT: &str = "https://huggingface.co";

    /// The Hugging Face hub without a token, four GiB a task, four attempts, a minute between two bytes.
    ///
    /// ```
    /// let hub = quant_data::Hub::new("data");
    /// assert_eq!((hub.endpoint.as_str(), hub.token.is_none()), ("https://huggingface.co", true));
    /// ```
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: Self::ENDPOINT.to_owned(),
            storage: vec!["hf.co".to_owned(), "huggingface.co".to_owned()],
            token: None,
            folder: folder.into(),
            limit: 4 << 30,
            attempts: 4,
            backoff: Duration::from_millis(500),
            timeout: Duration::from_secs(60),
        }
    }

    /// The files of a task: those that lie in one of the folders or in [`Hub::folder`], else those of its repository, which are fetched.
    /// `tell` says whether to go on.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    ///
    /// // What is there is not asked for.
    /// let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner");
    /// let task = quant_data::built_in_task("tiny-addition")?;
    /// let hub = quant_data::Hub::new("data");
    /// let files = hub.fetch(&task, &[folder], &mut |_| ControlFlow::Continue(()))?;
    /// assert!(files[0].ends_with("tasks/test.jsonl"));
    /// # Ok::<(), quant_data::DataError>(())
    /// ```
    ///
    /// # Errors
    /// [`DataError::NoItems`] for a task without a repository whose files are not there; [`DataError::Task`] for a repository that is not
    /// OWNER/NAME; [`DataError::Hub`].
    pub fn fetch(
        &self,
        task: &Task,
        folders: &[PathBuf],
        tell: &mut dyn FnMut(&HubProgress<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<PathBuf>, DataError> {
        let source = task.source();
        let mut everywhere = folders.to_vec();
        everywhere.push(self.folder.clone());
        match source.find(task.name(), &everywhere) {
            Err(DataError::NoItems { .. }) if source.repository.is_some() => {}
            found => return found,
        }
        let Some(repository) = choose::repository(source) else {
            let found = source.repository.as_deref().unwrap_or_default();
            return Err(DataError::Task {
                task: task.name().to_owned(),
                reason: format!("source.repository: expected OWNER/NAME; found {found:?}"),
            });
        };
        let connection = Connection::new(self, repository, task.name(), source.wanted())?;
        let (commit, files) = connection.list("main", tell)?;
        let mut chosen = (commit, choose::choose(source, &files));
        if chosen.1.is_empty() {
            match connection.list(CONVERTED, tell) {
                Ok((commit, converted)) => chosen = (commit, choose::choose(source, &converted)),
                Err(HubError::Refused { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (commit, names) = chosen;
        if names.is_empty() {
            return Err(HubError::NothingFits {
                task: task.name().to_owned(),
                wanted: source.wanted(),
                looked: source.patterns().join(", "),
                there: choose::shown(&files),
            }
            .into());
        }
        self.take(&connection, source.folder().unwrap_or_default(), &commit, &names, tell)?;
        source.find(task.name(), std::slice::from_ref(&self.folder))
    }

    /// Writes the files of a commit, all or none.
    fn take(
        &self,
        connection: &Connection<'_>,
        folder: &str,
        commit: &str,
        names: &[String],
        tell: &mut transfer::Tell<'_>,
    ) -> Result<(), HubError> {
        if names.len() > MOST_FILES {
            return Err(HubError::TooMany { files: names.len(), limit: MOST_FILES });
        }
        let mut left = self.limit;
        let mut parts = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let (part, mut file) = Part::create(&self.folder.join(folder).join(name))?;
            let wanted = Wanted {
                url: connection.url(commit, name),
                name,
                number: (index + 1, names.len()),
                limit: left.min(MAX_FILE_BYTES),
            };
            left -= connection.receive(&wanted, &mut file, part.path(), tell)?;
            part.sync(&file)?;
            parts.push(part);
        }
        parts.into_iter().try_for_each(Part::keep)
    }
}
