//! Task files.

use super::ask::{Expression, TextTemplate, shortened};
use super::fault::Fault;
use super::keys::{self, GROUP, KEYS, KINDS, SAMPLING, SOURCE};
use super::kinds::{ChoiceMetric, Choices, Generation, Opening, Right, TaskSampling, TextTask};
use crate::DataError;
use crate::files::read_text;
use serde_json::{Map, Value};
use std::path::Path;

/// Longest task file in bytes.
const LIMIT: u64 = 1 << 20;

/// Where items come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Names or patterns below a data folder, tried in order.
    pub files: Vec<String>,
    /// Repository of the Hugging Face hub.
    pub repository: Option<String>,
    /// Configuration of the data set.
    pub config: Option<String>,
    /// Split of the data set.
    pub split: Option<String>,
    /// Fields that an item must have.
    pub columns: Vec<String>,
}

/// How a task asks.
#[derive(Clone, Debug)]
pub enum TaskKind {
    /// Continuations are compared.
    Choice(Choices),
    /// A text is asked for and graded.
    Generate(Box<Generation>),
    /// A text is predicted.
    Text(TextTask),
}

/// A task, as its file says it.
#[derive(Clone, Debug)]
pub struct Task {
    name: String,
    summary: String,
    source: Source,
    filter: Map<String, Value>,
    wording: String,
    group: Option<(String, f64)>,
    add_special_tokens: bool,
    kind: TaskKind,
    written: String,
}

impl Task {
    /// Reads a task.
    ///
    /// ```
    /// let task = quant_data::Task::parse(
    ///     "version: 1\nname: capitals\nkind: choice\nsource: { files: [capitals.jsonl] }\n\
    ///      context: 'The capital of {{ country }} is'\nchoices: cities\ngold: answer\n",
    /// )?;
    /// assert_eq!(task.name(), "capitals");
    /// let wrong = quant_data::Task::parse("version: 1\nname: a\nkind: choice\nsorce: {}\n").unwrap_err();
    /// assert!(wrong.to_string().contains("did you mean \"source\"?"));
    /// # Ok::<(), quant_data::DataError>(())
    /// ```
    ///
    /// # Errors
    /// [`DataError::Task`] naming the key, what was expected and what was found; also for a template that does not parse.
    pub fn parse(text: &str) -> Result<Self, DataError> {
        let mut name = "a task file".to_owned();
        Self::read(text, &mut name).map_err(|error| match error {
            Fault::Written(reason) => DataError::Task { task: name, reason },
            Fault::Template(error) => DataError::Task { task: name, reason: error.to_string() },
        })
    }

    /// Reads a task from a file.
    ///
    /// # Errors
    /// As [`Task::parse`], also for a file that cannot be read.
    pub fn from_file(path: &Path) -> Result<Self, DataError> {
        let unread = |error: DataError| DataError::Task {
            task: path.display().to_string(),
            reason: format!("{error}; give the file of a task, or the name of one that ships (`ptq list`)"),
        };
        Self::parse(&read_text(path, LIMIT).map_err(unread)?).map_err(|error| match error {
            DataError::Task { reason, .. } => DataError::Task { task: path.display().to_string(), reason },
            other => other,
        })
    }

    fn read(text: &str, name: &mut String) -> Result<Self, Fault> {
        let yaml: serde_yaml_ng::Value =
            serde_yaml_ng::from_str(text).map_err(|e| Fault::Written(format!("not YAML: {e}")))?;
        let value =
            serde_json::to_value(yaml).map_err(|e| Fault::Written(format!("keys must be texts: {e}")))?;
        let Value::Object(fields) = value else {
            return Err(Fault::Written(
                "a mapping with the keys version, name, kind, source is expected".into(),
            ));
        };
        let top = Section { path: String::new(), fields };
        if let Some(Value::String(own)) = top.fields.get("name") {
            name.clone_from(own);
        }
        keys::check("", &top.fields, KEYS, None)?;
        if top.number("version", 0.0)? != 1.0 {
            return Err(top.fault("version", "1"));
        }
        let kind = top.need("kind")?;
        if !KINDS.contains(&kind.as_str()) {
            return Err(top.fault("kind", &one_of(&KINDS, &kind)));
        }
        keys::check("", &top.fields, KEYS, Some(&kind))?;
        let own = top.need("name")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if own.is_empty() || own.len() > 64 || !own.chars().all(plain) {
            return Err(top.fault("name", "1 to 64 letters, digits, - and _"));
        }
        let source = top.section("source", SOURCE)?.ok_or_else(|| top.fault("source", "a mapping"))?;
        let files = source.texts("files")?.unwrap_or_default();
        if files.is_empty() {
            return Err(source.fault("files", "a list of names or patterns"));
        }
        if let Some(bad) = files.iter().find(|f| f.starts_with('/') || f.split('/').any(|part| part == ".."))
        {
            return Err(Fault::new("source.files", format!("{bad:?} leads out of the data folder")));
        }
        let source = Source {
            files,
            repository: source.text("repository")?,
            config: source.text("config")?,
            split: source.text("split")?,
            columns: source.texts("columns")?.unwrap_or_default(),
        };
        let filter = match top.fields.get("where") {
            None => Map::new(),
            Some(Value::Object(filter)) => filter.clone(),
            Some(_) => return Err(top.fault("where", "a mapping of fields to values")),
        };
        let group = match top.section("group", GROUP)? {
            None => None,
            Some(group) => Some((group.need("name")?, group.number("weight", 1.0)?)),
        };
        let (add_by_default, kind) = match kind.as_str() {
            "choice" => (false, TaskKind::Choice(choice(&top)?)),
            "generate" => (false, TaskKind::Generate(Box::new(generation(&top)?))),
            _ => (true, TaskKind::Text(text_task(&top)?)),
        };
        Ok(Self {
            name: own,
            summary: top.text("summary")?.unwrap_or_default(),
            source,
            filter,
            wording: top.text("wording")?.unwrap_or_else(|| "ours".to_owned()),
            group,
            add_special_tokens: top.flag("add_special_tokens", add_by_default)?,
            kind,
            written: text.to_owned(),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
    /// One line about it.
    #[must_use]
    pub fn summary(&self) -> &str {
        &self.summary
    }
    /// Where its items come from.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }
    /// Whose words its prompt has.
    #[must_use]
    pub fn wording(&self) -> &str {
        &self.wording
    }
    /// The column of a report that it is a part of, and its weight there.
    #[must_use]
    pub fn group(&self) -> Option<(&str, f64)> {
        self.group.as_ref().map(|(name, weight)| (name.as_str(), *weight))
    }
    /// Whether the tokenizer puts its special tokens around texts.
    #[must_use]
    pub fn add_special_tokens(&self) -> bool {
        self.add_special_tokens
    }
    /// How it asks.
    #[must_use]
    pub fn kind(&self) -> &TaskKind {
        &self.kind
    }
    /// The text it was read from, by which results are told apart.
    #[must_use]
    pub fn written(&self) -> &str {
        &self.written
    }

    /// Whether `where` takes an item.
    pub(super) fn takes(&self, fields: &Map<String, Value>) -> bool {
        self.filter.iter().all(|(name, wanted)| fields.get(name) == Some(wanted))
    }

    pub(super) fn other_kind(&self, wanted: &str) -> DataError {
        DataError::Task { task: self.name.clone(), reason: format!("it is no task of the kind {wanted}") }
    }
}

fn choice(top: &Section) -> Result<Choices, Fault> {
    let choices = top.expression("choices")?;
    let gold = top.expression("gold")?;
    let metric = top.word("metric", ChoiceMetric::Acc, &ChoiceMetric::ALL)?;
    if choices.is_some() && gold.is_none() {
        return Err(Fault::new("gold", "it is missing: which of the choices is right".to_owned()));
    }
    let continuation = top.text("continuation")?.unwrap_or_else(|| " {{ choice }}".to_owned());
    Ok(Choices {
        context: TextTemplate::new(&top.need("context")?, "context")?,
        choices,
        continuation: TextTemplate::new(&continuation, "continuation")?,
        gold,
        metric,
    })
}

fn generation(top: &Section) -> Result<Generation, Fault> {
    let sampling = match top.section("sampling", SAMPLING)? {
        None => None,
        Some(written) => {
            let temperature = written.number("temperature", 1.0)?;
            let top_p = written.number("top_p", 1.0)?;
            if temperature.is_nan() || temperature < 0.0 {
                return Err(written.fault("temperature", "a number from 0 on"));
            }
            if !(top_p > 0.0 && top_p <= 1.0) {
                return Err(written.fault("top_p", "a number above 0, at most 1"));
            }
            let top_k = written.count("top_k")?;
            Some(TaskSampling { temperature, top_p, top_k })
        }
    };
    let sampling = sampling.filter(|sampling| sampling.temperature > 0.0);
    let seeds = match top.fields.get("seeds") {
        None if sampling.is_none() => vec![42],
        None => vec![42, 43, 44],
        Some(Value::Array(seeds)) if !seeds.is_empty() => seeds
            .iter()
            .map(|seed| seed.as_u64().ok_or_else(|| top.fault("seeds", "a list of numbers from 0 on")))
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(top.fault("seeds", "a list of numbers from 0 on")),
    };
    let marks = match top.texts("thought_marks")? {
        None => ["<think>".to_owned(), "</think>".to_owned()],
        Some(marks) => marks
            .try_into()
            .ok()
            .filter(|marks: &[String; 2]| marks.iter().all(|m| !m.is_empty()))
            .ok_or_else(|| top.fault("thought_marks", "a list of two texts"))?,
    };
    let system = match top.text("system")? {
        None => None,
        Some(system) => Some(TextTemplate::new(&system, "system")?),
    };
    Ok(Generation {
        prompt: TextTemplate::new(&top.need("prompt")?, "prompt")?,
        system,
        chat: top.flag("chat", true)?,
        options: top.expression("options")?,
        shuffle: top.flag("shuffle", true)?,
        gold: match top.texts("gold_fields")? {
            None => Right::Text(TextTemplate::new(&top.need("gold")?, "gold")?),
            Some(_) if top.fields.contains_key("gold") => {
                return Err(Fault::new(
                    "gold",
                    "it stands beside `gold_fields`; what is right is one or the other".to_owned(),
                ));
            }
            Some(names) if names.is_empty() => return Err(top.fault("gold_fields", "at least one field")),
            Some(names) => Right::Fields(names),
        },
        scorer: top.need("scorer")?,
        opening: top.word("thought", Opening::Auto, &Opening::ALL)?,
        marks,
        max_tokens: top.count("max_tokens")?.unwrap_or(32_768),
        max_new_tokens: top.count("max_new_tokens")?,
        sampling,
        seeds,
    })
}

fn text_task(top: &Section) -> Result<TextTask, Fault> {
    let messages = top.expression("messages")?;
    if messages.is_some() && top.fields.contains_key("text") {
        return Err(Fault::new(
            "text",
            "it stands beside `messages`; an item's text is one or the other".to_owned(),
        ));
    }
    let text = top.text("text")?.unwrap_or_else(|| "{{ text }}".to_owned());
    let window = top.count("window")?.unwrap_or(2048);
    if window < 2 {
        return Err(top.fault("window", "at least 2: every token but the first of a window is predicted"));
    }
    Ok(TextTask {
        text: TextTemplate::new(&text, "text")?,
        messages,
        join: top.text("join")?.unwrap_or_else(|| "\n\n".to_owned()),
        window,
        documents: top.count("documents")?,
        tokens: top.count("tokens")?,
    })
}

/// A mapping of a task file.
struct Section {
    path: String,
    fields: Map<String, Value>,
}

impl Section {
    fn place(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
    fn fault(&self, key: &str, expected: &str) -> Fault {
        let found = self
            .fields
            .get(key)
            .map_or_else(|| "it is missing".to_owned(), |v| format!("found {}", shortened(v)));
        Fault::new(&self.place(key), format!("expected {expected}; {found}"))
    }
    fn section(&self, key: &str, known: &[keys::Key]) -> Result<Option<Self>, Fault> {
        match self.fields.get(key) {
            None => Ok(None),
            Some(Value::Object(fields)) => {
                keys::check(&self.place(key), fields, known, None)?;
                Ok(Some(Self { path: self.place(key), fields: fields.clone() }))
            }
            Some(_) => Err(self.fault(key, "a mapping")),
        }
    }
    fn text(&self, key: &str) -> Result<Option<String>, Fault> {
        match self.fields.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.fault(key, "a text")),
        }
    }
    fn need(&self, key: &str) -> Result<String, Fault> {
        self.text(key)?.ok_or_else(|| self.fault(key, "a text"))
    }
    fn texts(&self, key: &str) -> Result<Option<Vec<String>>, Fault> {
        let wrong = || self.fault(key, "a list of texts");
        match self.fields.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) => {
                let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(wrong);
                list.iter().map(text).collect::<Result<_, _>>().map(Some)
            }
            Some(_) => Err(wrong()),
        }
    }
    fn flag(&self, key: &str, usual: bool) -> Result<bool, Fault> {
        match self.fields.get(key) {
            None => Ok(usual),
            Some(value) => value.as_bool().ok_or_else(|| self.fault(key, "true or false")),
        }
    }
    fn number(&self, key: &str, usual: f64) -> Result<f64, Fault> {
        match self.fields.get(key) {
            None => Ok(usual),
            Some(value) => value.as_f64().ok_or_else(|| self.fault(key, "a number")),
        }
    }
    fn count(&self, key: &str) -> Result<Option<usize>, Fault> {
        let Some(value) = self.fields.get(key) else { return Ok(None) };
        let count = value.as_u64().filter(|&n| n > 0).and_then(|n| usize::try_from(n).ok());
        count.map(Some).ok_or_else(|| self.fault(key, "a whole number from 1 on"))
    }
    fn expression(&self, key: &str) -> Result<Option<Expression>, Fault> {
        Ok(self.text(key)?.map(|source| Expression::new(&source, key)).transpose()?)
    }
    fn word<T: Copy>(&self, key: &str, usual: T, words: &[(&'static str, T)]) -> Result<T, Fault> {
        let Some(found) = self.text(key)? else { return Ok(usual) };
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let meant = words.iter().find(|(word, _)| *word == found);
        meant.map(|(_, value)| *value).ok_or_else(|| self.fault(key, &one_of(&known, &found)))
    }
}

fn one_of(words: &[&str], found: &str) -> String {
    format!("one of {}{}", words.join(", "), quant_core::meant(found, words))
}
