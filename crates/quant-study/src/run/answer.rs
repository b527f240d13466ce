//! Items that a model answers with a text.

use super::{Context, TaskJob};
use crate::StudyError;
use crate::record::{Done, Journal, Record, Signs};
use quant_data::{EncodedPrompt, Generation, Question, end_tokens};
use quant_eval::collapse::{Finish, Generated, LoopRule, ThoughtMarks, collapse};
use quant_eval::{Answer, Scorer};
use quant_model::{Completion, Finish as ModelFinish, Request, Sampling};
use quant_pipeline::{CompletionRun, CompletionSettings, Events, PipelineError, complete, open_folder_with};

/// What decoding took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Speed {
    pub(super) tokens: usize,
    pub(super) seconds: f64,
    pub(super) first_token: Option<f64>,
}

/// A question of one seed, as the model takes it.
struct Asked {
    question: Question,
    prompt: EncodedPrompt,
    /// Tokens that there is room for.
    room: usize,
}

/// What the answers of a task are judged by.
struct Judge<'a> {
    context: &'a Context<'a>,
    ask: &'a Generation,
    scorer: &'static Scorer,
    close: Vec<u32>,
    stop: Vec<u32>,
    with_texts: bool,
}

/// Answers the items that are not there yet, under every seed.
pub(super) fn run(
    context: &Context<'_>,
    job: &TaskJob,
    ask: &Generation,
    seeds: &[u64],
    done: &mut Done,
    journal: &mut Option<Journal>,
    events: &mut dyn Events,
) -> Result<Speed, StudyError> {
    let stop = end_tokens(&job.model, context.tokenizer)?;
    let scorer = quant_eval::scorer_of(&ask.scorer, context.registry.scorers())?;
    let close = context.tokenizer.encode(&ask.marks[1], false)?;
    let judge = Judge { context, ask, scorer, close, stop: stop.clone(), with_texts: job.with_texts };
    let (mut runs, mut asked) = (Vec::new(), Vec::new());
    for &seed in seeds {
        let (mut requests, mut questions) = (Vec::new(), Vec::new());
        for question in job.task.questions(context.files, seed, job.limit)? {
            // What is right must be readable before anything is asked.
            (scorer.grade)(&Answer::new(&question.gold, "").with_options(question.options))?;
            if done.contains_key(&(seed, question.number)) {
                continue;
            }
            let prompt = job.task.encode_question(&question, context.tokenizer, context.template)?;
            let longest = ask.max_tokens.min(context.spec.max_position_embeddings);
            let most = job.max_new_tokens.or(ask.max_new_tokens).unwrap_or(usize::MAX);
            let room = longest.saturating_sub(prompt.tokens.len()).min(most);
            if room == 0 {
                let record = judge.unfitting(&question, seed);
                if let Some(journal) = journal {
                    journal.add([&record])?;
                }
                done.insert(record.key(), record);
                continue;
            }
            requests.push(Request {
                index: question.number,
                prompt: prompt.tokens.clone(),
                max_new_tokens: room,
            });
            questions.push(Asked { question, prompt, room });
        }
        runs.push(CompletionRun { requests, sampling: sampling(ask, job.top_k, seed) });
        asked.push(questions);
    }
    let all: usize = asked.iter().map(Vec::len).sum();
    if all == 0 {
        return Ok(Speed::default());
    }
    let settings = CompletionSettings {
        stop,
        batch: job.batch,
        execution: Some(job.execution),
        compute: job.compute,
        threads: job.threads,
        memory: job.memory,
    };
    let folder = open_folder_with(&job.model, context.registry)?;
    let (mut tokens, mut failed) = (vec![Vec::new(); all], None);
    let firsts: Vec<usize> =
        asked.iter().scan(0, |sum, a| Some(std::mem::replace(sum, *sum + a.len()))).collect();
    let mut see = |run: usize, new: quant_model::Generated<'_>| -> Result<(), PipelineError> {
        let own: &mut Vec<u32> = &mut tokens[firsts[run] + new.request];
        own.extend(new.token);
        let Some(finish) = new.finish else { return Ok(()) };
        let completion = Completion { tokens: std::mem::take(own), finish };
        match judge.record(&asked[run][new.request], seeds[run], &completion) {
            Ok(record) => {
                if let Some(journal) = journal.as_mut()
                    && let Err(error) = journal.add([&record])
                {
                    failed = Some(error);
                    return Err(PipelineError::Interrupted);
                }
                done.insert(record.key(), record);
                Ok(())
            }
            Err(error) => {
                failed = Some(error);
                Err(PipelineError::Interrupted)
            }
        }
    };
    let result = complete(folder, &runs, &settings, events, &mut see);
    if let Some(error) = failed {
        return Err(error);
    }
    let completions = result?;
    let new = completions.runs.iter().flatten().map(|completion| completion.tokens.len()).sum();
    Ok(Speed {
        tokens: new,
        seconds: completions.seconds.iter().sum(),
        first_token: completions.first_token.into_iter().flatten().next(),
    })
}

/// The draws of a seed.
pub(super) fn sampling(ask: &Generation, top_k: Option<usize>, seed: u64) -> Sampling {
    ask.sampling.map_or(Sampling { seed, ..Sampling::GREEDY }, |sampling| Sampling {
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: top_k.or(sampling.top_k).unwrap_or(0),
        seed,
    })
}

impl Judge<'_> {
    fn unfitting(&self, question: &Question, seed: u64) -> Record {
        Record::Answer {
            number: question.number,
            id: question.id.clone(),
            seed,
            right: false,
            extracted: None,
            finish: "does_not_fit".to_owned(),
            tokens: Vec::new(),
            signs: Signs::default(),
            text: None,
        }
    }

    fn record(&self, asked: &Asked, seed: u64, completion: &Completion) -> Result<Record, StudyError> {
        let stopped = completion.finish == ModelFinish::Stop;
        let tokens = match completion.tokens.split_last() {
            Some((last, before)) if stopped && self.stop.contains(last) => before,
            _ => &completion.tokens,
        };
        let tokenizer = self.context.tokenizer;
        let text = tokenizer.decode(tokens, true)?;
        let question = &asked.question;
        let answer = Answer::new(&question.gold, &text).with_options(question.options);
        let grade = (self.scorer.grade)(&answer)?;
        let generated = Generated {
            text: &tokenizer.decode(tokens, false)?,
            tokens,
            finish: if stopped { Finish::End } else { Finish::Limit },
            marks: Some(ThoughtMarks {
                open: &self.ask.marks[0],
                close: &self.ask.marks[1],
                close_tokens: &self.close,
                opened_by_prompt: asked.prompt.opens_thought,
            }),
            correct: grade.correct,
            gold_seen: grade.gold_seen_in_text,
        };
        let signs = collapse(&generated, LoopRule::default());
        debug_assert!(tokens.len() <= asked.room);
        Ok(Record::Answer {
            number: question.number,
            id: question.id.clone(),
            seed,
            right: grade.correct,
            extracted: grade.extracted,
            finish: completion.finish.name().to_owned(),
            tokens: completion.tokens.clone(),
            signs: Signs {
                no_end: signs.no_end,
                loops: signs.repeats.is_some(),
                unclosed_thought: signs.unclosed_thought,
                empty: signs.empty_answer,
                seen_not_given: signs.seen_not_given,
                thought: signs.thought_tokens,
            },
            text: self.with_texts.then_some(text),
        })
    }
}
