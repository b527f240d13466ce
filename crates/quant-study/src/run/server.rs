//! A task on a model behind a server.

use super::choice::{self, fitting};
use super::home::{Home, Identity, hash_of};
use super::judge::{Asked, Given, Judge};
use super::kept::{Kept, Speed};
use super::material::Material;
use super::work::Work;
use super::{TaskJob, TaskOutcome, TaskResult};
use crate::StudyError;
use crate::record::Record;
use quant_client::{
    ChatRequest, ClientError, Finish, Generated, Message, Piece, Prompt, Sampling, Server, ServerOptions,
    ThoughtMarks, for_each_concurrently,
};
use quant_data::{ChoiceItem, Conversation, Generation, Said, TaskKind, Tokenizer};
use quant_pipeline::{Event, Events, PipelineError, Registry};
use serde_json::Value;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How often it is asked whether the person wants to stop.
const LOOK: Duration = Duration::from_millis(100);

/// Files of a tokenizer, on which the tokens of prompts depend.
const TOKENIZER: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"];

/// Runs a task on a model behind an OpenAI-compatible server. `job.model` is the folder with its tokenizer and chat template; `job.batch`
/// requests are under way at a time; execution, arithmetic and memory are the server's.
///
/// Choices and the windows of a text are scored by their tokens; of a text there is the perplexity alone, since servers give no logits to
/// compare with those of a float model. For answers a plain prompt is sent in tokens, and a chat in turns, to which the server applies its own
/// template; the folder's one tells whether the prompt opens the thought, and how much room it leaves. The tokens of a record are those
/// that the tokenizer makes of the text, without one that ends it. Where the mark that closes a thought is a special token, and the server
/// does not cut thoughts off itself, thoughts cannot be told from answers, and there are no signs of them. Draws are the server's: they have the seed of the run.
///
/// ```no_run
/// use quant_pipeline::{Registry, Silent};
/// use quant_study::quant_client::ServerOptions;
/// use quant_study::{TaskJob, run_task_on_server};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let task = quant_data::built_in_task("arc-easy")?;
/// let job = TaskJob { limit: Some(100), ..TaskJob::new("folder-of-the-tokenizer", task) };
/// let server = ServerOptions::new("http://localhost:8000");
/// println!("{:?}", run_task_on_server(&job, server, &mut Silent, &Registry::default())?.result.figure);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`StudyError::Refused`] for windows of a text that are longer than what the server takes; [`StudyError::Server`] where the server cannot be had or answers something else;
/// otherwise as [`run_task`](super::run_task). What was answered before is kept in the output.
pub fn run_task_on_server(
    job: &TaskJob,
    server: ServerOptions,
    events: &mut dyn Events,
    registry: &Registry,
) -> Result<TaskOutcome, StudyError> {
    let began = Instant::now();
    events.event(Event::Phase("reading the tokenizer and the task"));
    let mut material = Material::read(job, usize::MAX, registry)?;
    let server = Server::open(server)?;
    if let Some(most) = server.max_length() {
        material.longest = usize::try_from(most).unwrap_or(usize::MAX);
    }
    let home = Home::of(job, &material, || identity(job, &server))?;
    if let Some(outcome) = home.as_ref().and_then(Home::finished) {
        return Ok(outcome);
    }
    let mut work = Work::begin(job, &material, home, began)?;
    let result = match job.task.kind() {
        TaskKind::Generate(ask) => {
            work.speed = answers(&server, &material, job, ask, &mut work, events)?;
            TaskResult::of_answers(&job.task, &material.seeds, &work.kept.done)?
        }
        TaskKind::Choice(ask) => {
            let items = job.task.choices(&material.files, &material.tokenizer, job.limit)?;
            choices(&server, &material, job, &items, &mut work.kept, events)?;
            TaskResult::of_choices(&job.task, ask.metric, &work.kept.done)?
        }
        TaskKind::Text(_) => {
            let all = material.texts(job).windows()?;
            let all = &all[..job.limit.unwrap_or(usize::MAX).min(all.len())];
            windows(&server, &material, job, all, &mut work.kept, events)?;
            let unknown = job.task.unknown_words(&material.files)?;
            TaskResult::of_windows(&job.task, &work.kept.done, unknown)
        }
    };
    work.finish(job, result)
}

/// What tells the model apart: where it is, what it is called, and what its prompts are made of.
fn identity(job: &TaskJob, server: &Server) -> Result<Identity, StudyError> {
    let mut fields = vec![
        ("--server".to_owned(), server.url().to_owned()),
        ("the model".to_owned(), server.model().to_owned()),
    ];
    match &job.identity {
        Some(own) => fields.extend(own.iter().cloned()),
        None => {
            for name in TOKENIZER {
                let path = job.model.join(name);
                if Path::exists(&path) {
                    fields.push((format!("the tokenizer's {name}"), hash_of(&path)?));
                }
            }
        }
    }
    Ok(fields)
}

/// Scores the choices of the items that are not there yet.
fn choices(
    server: &Server,
    material: &Material,
    job: &TaskJob,
    items: &[ChoiceItem],
    kept: &mut Kept,
    events: &mut dyn Events,
) -> Result<(), StudyError> {
    let missing = choice::missing(items, kept);
    // The server makes one token more than it is sent, and one of those is not counted by `fitting`.
    let longest = material.longest.saturating_sub(2);
    each(server, &missing, job.batch, kept, events, |item| {
        let mut scores = Vec::with_capacity(item.choices.len());
        for choice in &item.choices {
            let (ids, scored) = fitting(choice, longest);
            let (context, continuation) = ids.split_at(scored.start);
            let scored = server.score(context, continuation)?;
            scores.push((Some(scored.log_likelihood), scored.greedy));
        }
        Ok(choice::judged(item, &scores))
    })
}

/// Scores the windows of a text that are not there yet: every token of each but its first.
fn windows(
    server: &Server,
    material: &Material,
    job: &TaskJob,
    windows: &[Vec<u32>],
    kept: &mut Kept,
    events: &mut dyn Events,
) -> Result<(), StudyError> {
    let longest = windows.iter().map(Vec::len).max().unwrap_or(0);
    // The server makes one token more.
    if longest >= material.longest {
        return Err(StudyError::Refused(format!(
            "the task {} has windows of {longest} tokens, and the server takes {}, one of them for the token that it adds: give a task \
             with a smaller `window`",
            job.task.name(),
            material.longest
        )));
    }
    let missing: Vec<(u64, &Vec<u32>)> =
        (0..).zip(windows).filter(|(number, _)| !kept.done.contains_key(&(0, *number))).collect();
    each(server, &missing, job.batch, kept, events, |(number, window)| {
        let (context, predicted) = window.split_at(1);
        let scored = server.score(context, predicted)?;
        Ok(Record::Window { number: *number, tokens: predicted.len(), log_likelihood: scored.log_likelihood })
    })
}

/// Asks for the texts that are not there yet, under every seed.
fn answers(
    server: &Server,
    material: &Material,
    job: &TaskJob,
    ask: &Generation,
    work: &mut Work,
    events: &mut dyn Events,
) -> Result<Speed, StudyError> {
    let judge = Judge::new(material, job, ask, work.programs.as_ref())?;
    let asked: Vec<Asked> = judge.missing(job, &mut work.kept)?.into_iter().flatten().collect();
    let marks = Marks::new(&material.tokenizer, ask)?;
    let began = Instant::now();
    let first = OnceLock::new();
    let before: usize = work.kept.done.values().map(tokens_of).sum();
    each(server, &asked, job.batch, &mut work.kept, events, |asked| {
        let mut on_piece = |_: Piece<'_>| {
            first.get_or_init(|| began.elapsed().as_secs_f64());
        };
        let generated = answer(server, ask, asked, job.top_k, &mut on_piece)?;
        judged(&judge, &material.tokenizer, &marks, asked, &generated)
    })?;
    let all: usize = work.kept.done.values().map(tokens_of).sum();
    Ok(Speed {
        tokens: all - before,
        seconds: began.elapsed().as_secs_f64(),
        first_token: first.into_inner(),
    })
}

fn tokens_of(record: &Record) -> usize {
    match record {
        Record::Answer { tokens, .. } => tokens.len(),
        Record::Choice { .. } | Record::Window { .. } => 0,
    }
}

/// Asks one question.
fn answer(
    server: &Server,
    ask: &Generation,
    asked: &Asked,
    top_k: Option<usize>,
    on_piece: &mut dyn FnMut(Piece<'_>),
) -> Result<Generated, ClientError> {
    let drawn = super::answer::sampling(ask, top_k, asked.seed);
    let sampling = Sampling {
        temperature: drawn.temperature,
        top_p: drawn.top_p,
        top_k: u32::try_from(drawn.top_k).ok().filter(|&k| k > 0),
        seed: drawn.seed,
        max_tokens: u32::try_from(asked.room).unwrap_or(u32::MAX),
        stop: Vec::new(),
    };
    match &asked.question.said {
        Said::Plain(_) => server.complete(&Prompt::Tokens(asked.prompt.tokens.clone()), &sampling, on_piece),
        Said::Chat(conversation) => {
            // A prompt that opens the thought has its mark already.
            let open = if asked.prompt.opens_thought { String::new() } else { ask.marks[0].clone() };
            let marks = ThoughtMarks { open, close: ask.marks[1].clone() };
            server.chat(&ChatRequest { messages: messages(conversation), sampling, marks }, on_piece)
        }
    }
}

/// The turns as the server takes them.
fn messages(conversation: &Conversation) -> Vec<Message> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let turn = |turn: &serde_json::Map<String, Value>| Message {
        role: text(turn.get("role")),
        content: text(turn.get("content")),
    };
    conversation.messages.iter().map(turn).collect()
}

/// Judges what came.
fn judged(
    judge: &Judge<'_>,
    tokenizer: &Tokenizer,
    marks: &Marks<'_>,
    asked: &Asked,
    generated: &Generated,
) -> Result<Record, StudyError> {
    let whole = &generated.text;
    let tokens = tokenizer.encode(whole, false)?;
    let text = marks.special.iter().fold(whole.clone(), |text, mark| text.replace(mark.as_str(), ""));
    let given = Given {
        text: &text,
        whole,
        tokens: &tokens,
        marked: marks.shown || whole.contains(marks.close),
        ended: generated.finish == Finish::Stop,
        finish: match &generated.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Other(name) => name,
        },
        recorded: tokens.clone(),
    };
    judge.record(asked, given)
}

/// The marks of a thought in texts of a server. Special tokens are left out of these, so that a mark which is one stands in a text only
/// where the server has cut the thought off and the client has put it back.
struct Marks<'a> {
    close: &'a str,
    /// Whether the closing mark is in every text that the model put it in.
    shown: bool,
    /// The marks that are special tokens. They are no part of what is graded, as in process.
    special: Vec<&'a String>,
}

impl<'a> Marks<'a> {
    fn new(tokenizer: &Tokenizer, ask: &'a Generation) -> Result<Self, StudyError> {
        let mut special = Vec::new();
        for mark in &ask.marks {
            let tokens = tokenizer.encode(mark, false)?;
            if tokenizer.decode(&tokens, true)?.is_empty() {
                special.push(mark);
            }
        }
        let close = &ask.marks[1];
        Ok(Self { close, shown: !special.contains(&close), special })
    }
}

/// Makes the records of items, `at_a_time` of them together, and keeps them as they come.
fn each<T: Sync>(
    server: &Server,
    items: &[T],
    at_a_time: usize,
    kept: &mut Kept,
    events: &mut dyn Events,
    record: impl Fn(&T) -> Result<Record, StudyError> + Sync,
) -> Result<(), StudyError> {
    let (sender, receiver) = channel();
    let (mut result, mut failed, mut done) = (Ok(()), None, 0);
    std::thread::scope(|scope| {
        let (result, record) = (&mut result, &record);
        scope.spawn(move || {
            *result = for_each_concurrently(items, at_a_time, |_, item| {
                // The receiver lives as long as the sender.
                sender.send(record(item)?).ok();
                Ok(())
            })
            .map(|_| ());
        });
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(record) => {
                    // Also what comes after a stop was paid for.
                    if let Err(error) = kept.add(vec![record]) {
                        server.stop();
                        failed.get_or_insert(error);
                    }
                    done += 1;
                    events.event(Event::Evaluated { what: "item", done, of: items.len(), inside: 0.0 });
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if failed.is_none() && events.cancelled() {
                server.stop();
                failed = Some(PipelineError::Interrupted.into());
            }
        }
    });
    failed.map_or(result, Err)
}
