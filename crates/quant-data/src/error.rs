//! The one error type of this crate.

use std::path::PathBuf;

/// Why token data could not be produced. Every variant names the file and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file could not be opened or read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// File that was asked for.
        path: PathBuf,
        /// Reason given by the operating system.
        source: std::io::Error,
    },
    /// A folder, a pipe or a device stands where a file should.
    #[error("{path} is not a regular file")]
    NotARegularFile {
        /// What was asked for.
        path: PathBuf,
    },
    /// The file is larger than this crate is willing to hold in memory.
    #[error("{path} is larger than the limit of {limit} bytes; split it or take a part of it")]
    TooLarge {
        /// File that was asked for.
        path: PathBuf,
        /// Limit in bytes.
        limit: u64,
    },
    /// A text file is not UTF-8.
    #[error("{path} is not UTF-8 text: invalid byte at offset {offset}; convert the file to UTF-8")]
    NotUtf8 {
        /// File that was asked for.
        path: PathBuf,
        /// Offset of the first byte that is not part of a valid character.
        offset: usize,
    },
    /// The bytes of a file are those of something else.
    #[error("{path} is {what}; {advice}")]
    NotText {
        /// File that was asked for.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do.
        advice: String,
    },
    /// A data argument names something this crate does not read.
    #[error("data argument '{argument}': {reason}")]
    Spec {
        /// The argument as given.
        argument: String,
        /// What is wrong and what to write instead.
        reason: String,
    },
    /// An option has a value that selects nothing.
    #[error("{option} is {value}, expected at least {minimum}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// Its value.
        value: usize,
        /// The smallest legal value.
        minimum: usize,
    },
    /// Options that select more tokens than are held in memory.
    #[error(
        "--num-samples {samples} of {length} tokens are more than {limit} tokens; give a smaller --num-samples or \
         --max-seq-len"
    )]
    TooManyTokens {
        /// Windows asked for.
        samples: usize,
        /// Tokens per window.
        length: usize,
        /// Most tokens together.
        limit: usize,
    },
    /// The folder has no `tokenizer.json`.
    #[error("{folder} has no tokenizer.json{found}; {advice}")]
    NoTokenizer {
        /// The checkpoint folder.
        folder: PathBuf,
        /// What was found in its place.
        found: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// `tokenizer.json` or one of its companions cannot be used.
    #[error("{path}: {reason}")]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A text could not be encoded, or ids could not be decoded.
    #[error("the tokenizer failed on {what}: {reason}")]
    Tokenize {
        /// The input.
        what: String,
        /// Message of the tokenizer.
        reason: String,
    },
    /// Messages were given but the checkpoint has no chat template.
    #[error(
        "{folder} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); \
         give 'text' documents or token ids instead of 'messages'"
    )]
    NoChatTemplate {
        /// The checkpoint folder.
        folder: PathBuf,
    },
    /// The chat template does not parse, or refused the messages.
    #[error("chat template of {origin}: {reason}")]
    Template {
        /// File or name of the template.
        origin: String,
        /// Message of the template engine, with the line.
        reason: String,
    },
    /// A template or an expression of a task does not parse, or does not fit an item.
    #[error("{key}: {reason}")]
    TaskTemplate {
        /// The key of the task file.
        key: String,
        /// What is wrong, with the line of the template.
        reason: String,
    },
    /// A list of messages does not have the shape of a conversation.
    #[error("message {index}: {reason}")]
    Message {
        /// Position in the list.
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// A line of a JSONL file cannot be used.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A record of a JSON list cannot be used.
    #[error("{path}, record {record}: {reason}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Number of the record, from 1.
        record: usize,
        /// What is wrong.
        reason: String,
    },
    /// The token tensor cannot be used.
    #[error("{path}, tensor '{tensor}': {reason}")]
    TokenTensor {
        /// The safetensors file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What was expected and what arrived.
        reason: String,
    },
    /// A token id is not in the model's vocabulary.
    #[error(
        "{source_name}: token id {id} at sequence {row}, position {column} is outside the model's vocabulary of \
         {vocab_size}; the data belongs to another tokenizer"
    )]
    OutOfVocabulary {
        /// Where the tokens come from.
        source_name: String,
        /// Row (sequence or document) of the id.
        row: usize,
        /// Position in the row.
        column: usize,
        /// The id as stored.
        id: i64,
        /// Number of ids the model knows.
        vocab_size: usize,
    },
    /// There is no token to calibrate or to evaluate with.
    #[error("{source_name} holds {found}; {advice}")]
    Empty {
        /// Where the tokens should have come from.
        source_name: String,
        /// What was found.
        found: String,
        /// What is needed.
        advice: &'static str,
    },
    /// A task file cannot be used, or there is no task of a name.
    #[error("task {task}: {reason}")]
    Task {
        /// Its name or file.
        task: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// An item does not have what its task asks for.
    #[error("task {task}, {place}: {reason}")]
    Item {
        /// Name of the task.
        task: String,
        /// File, and line or record.
        place: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// No file with the items of a task was found.
    #[error("task {task} needs {wanted}: none of {looked}; download it, or say with --data-dir where it is")]
    NoItems {
        /// Name of the task.
        task: String,
        /// Data set, configuration, split and columns.
        wanted: String,
        /// Names and folders that were tried.
        looked: String,
    },
    /// The files of a task did not come from the hub.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] crate::hub_error::HubError),
}
