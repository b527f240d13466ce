//! What is asked for a text, and what is said of the answer, whatever gave it.

use super::TaskJob;
use super::kept::Kept;
use super::material::Material;
use crate::StudyError;
use crate::programs::Programs;
use crate::record::{Record, Signs};
use quant_data::{DataError, EncodedPrompt, Generation, Question};
use quant_eval::collapse::{Finish, Generated, LoopRule, ThoughtMarks, collapse};
use quant_eval::{Answer, EvalError, ProgramGrader, Scorer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A question of one seed, as the model takes it.
pub(super) struct Asked {
    pub(super) seed: u64,
    /// Without what is right.
    pub(super) question: Question,
    /// What is right. The tests of a program may be long, and are the same ones for every seed.
    gold: Arc<str>,
    pub(super) prompt: EncodedPrompt,
    /// Tokens that there is room for, at least 1.
    pub(super) room: usize,
}

/// An answer as it came.
pub(super) struct Given<'a> {
    /// The text without special tokens, which is graded.
    pub(super) text: &'a str,
    /// The text with them, without the one that ended it.
    pub(super) whole: &'a str,
    /// The tokens of that.
    pub(super) tokens: &'a [u32],
    /// Whether a thought can be told from the rest.
    pub(super) marked: bool,
    /// Whether the model ended it.
    pub(super) ended: bool,
    /// Why it ended, for the record.
    pub(super) finish: &'a str,
    /// The tokens for the record.
    pub(super) recorded: Vec<u32>,
}

/// What the answers of a task are judged by.
pub(super) struct Judge<'a> {
    material: &'a Material,
    ask: &'a Generation,
    scorer: &'static Scorer,
    programs: Option<&'a dyn ProgramGrader>,
    close: Vec<u32>,
    with_texts: bool,
}

impl<'a> Judge<'a> {
    pub(super) fn new(
        material: &'a Material,
        job: &TaskJob,
        ask: &'a Generation,
        programs: Option<&'a Programs>,
    ) -> Result<Self, StudyError> {
        let scorer = material
            .scorer
            .ok_or_else(|| StudyError::Usage(format!("the task {} asks for no text", job.task.name())))?;
        let close = material.tokenizer.encode(&ask.marks[1], false)?;
        let programs = programs.map(|programs| programs as &dyn ProgramGrader);
        Ok(Self { material, ask, scorer, programs, close, with_texts: job.with_texts })
    }

    /// The questions that have no record yet, under every seed. Those that leave no room for an answer are judged at once.
    pub(super) fn missing(&self, job: &TaskJob, kept: &mut Kept) -> Result<Vec<Vec<Asked>>, StudyError> {
        let mut golds: BTreeMap<u64, Arc<str>> = BTreeMap::new();
        let mut all = Vec::new();
        for &seed in &self.material.seeds {
            let mut asked = Vec::new();
            for mut question in job.task.questions(&self.material.files, seed, job.limit)? {
                let gold = std::mem::take(&mut question.gold);
                let gold = match golds.get(&question.number) {
                    // It was read already.
                    Some(same) if **same == *gold => Arc::clone(same),
                    _ => {
                        self.check(&gold, question.options).map_err(|e| unreadable(job, &question, e))?;
                        let gold: Arc<str> = gold.into();
                        golds.insert(question.number, Arc::clone(&gold));
                        gold
                    }
                };
                if kept.done.contains_key(&(seed, question.number)) {
                    continue;
                }
                let material = self.material;
                let prompt =
                    job.task.encode_question(&question, &material.tokenizer, material.template.as_ref())?;
                let room = job.room(self.ask, prompt.tokens.len(), material.longest);
                if room == 0 {
                    kept.add(vec![unfitting(&question, seed)])?;
                    continue;
                }
                asked.push(Asked { seed, question, gold, prompt, room });
            }
            all.push(asked);
        }
        Ok(all)
    }

    /// What is right must be readable before anything is asked.
    fn check(&self, gold: &str, options: usize) -> Result<(), EvalError> {
        match self.programs {
            Some(programs) => programs.check(gold),
            None => (self.scorer.grade)(&Answer::new(gold, "").with_options(options)).map(|_| ()),
        }
    }

    pub(super) fn record(&self, asked: &Asked, given: Given<'_>) -> Result<Record, StudyError> {
        let question = &asked.question;
        let answer =
            Answer::new(&asked.gold, given.text).with_options(question.options).with_programs(self.programs);
        let grade = (self.scorer.grade)(&answer)?;
        let generated = Generated {
            text: given.whole,
            tokens: given.tokens,
            finish: if given.ended { Finish::End } else { Finish::Limit },
            marks: given.marked.then_some(ThoughtMarks {
                open: &self.ask.marks[0],
                close: &self.ask.marks[1],
                close_tokens: &self.close,
                opened_by_prompt: asked.prompt.opens_thought,
            }),
            correct: grade.correct,
            gold_seen: grade.gold_seen_in_text,
        };
        let signs = collapse(&generated, LoopRule::default());
        Ok(Record::Answer {
            number: question.number,
            id: question.id.clone(),
            seed: asked.seed,
            place: question.place,
            right: grade.correct,
            extracted: grade.extracted,
            finish: given.finish.to_owned(),
            tokens: given.recorded,
            signs: Signs {
                no_end: signs.no_end,
                loops: signs.repeats.is_some(),
                unclosed_thought: signs.unclosed_thought,
                empty: signs.empty_answer,
                seen_not_given: signs.seen_not_given,
                thought: signs.thought_tokens.filter(|_| given.marked),
            },
            text: self.with_texts.then(|| given.text.to_owned()),
        })
    }
}

/// What is right of an item cannot be read: the item is named.
fn unreadable(job: &TaskJob, question: &Question, error: EvalError) -> StudyError {
    let task = job.task.name().to_owned();
    let (place, number) = (&question.id, question.number);
    let place = format!("item {place:?} (number {number}, from 0)");
    DataError::Item { task, place, reason: error.to_string() }.into()
}

fn unfitting(question: &Question, seed: u64) -> Record {
    Record::Answer {
        number: question.number,
        id: question.id.clone(),
        seed,
        place: question.place,
        right: false,
        extracted: None,
        finish: "does_not_fit".to_owned(),
        tokens: Vec::new(),
        signs: Signs::default(),
        text: None,
    }
}
