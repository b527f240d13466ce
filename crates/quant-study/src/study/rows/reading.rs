//! What is found of a row beside its answers: predictions without decoding, activations, where a loss comes from.

use super::Rows;
use crate::StudyError;
use crate::blame::{BLAMED, BlameOptions, blame};
use crate::files::{slug, write_whole};
use crate::grid::GridRecipe;
use crate::ranges::ranges;
use crate::record::Record;
use crate::run::home::{finished_in, pretty};
use crate::run::tokens::Texts;
use crate::study::compare::is_greedy;
use crate::study::depends::{Dependent, of_answers, of_blame, stands};
use crate::study::place::{BLAME, PREDICTION, variant_folder};
use crate::study::plan::{PlannedVariant, calibration, recipe};
use crate::verdict::{FloatAnswer, Prediction, predict};
use quant_checkpoint::{BlockSource, FolderSource};
use quant_data::{ChatTemplate, Question, Tokenizer, end_tokens};
use quant_kernels::Par;
use quant_model::{Arithmetic, Execution};
use quant_pipeline::{AnalyzeJob, Event, Events, Scored, folder_arithmetic, open_folder_with, with_threads};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

impl Rows<'_> {
    /// A folder's model as a stream of blocks, and the arithmetic it runs in.
    fn opened(&self, folder: &Path, execution: Execution) -> Result<(FolderSource, Arithmetic), StudyError> {
        let open = open_folder_with(folder, self.registry)?;
        let arithmetic = folder_arithmetic(&open, self.job.grid.compute, Some(execution), None)?;
        Ok((open.into_source()?, arithmetic))
    }

    /// The greedy answers of the float model.
    fn float_answers(&self) -> Result<Vec<FloatAnswer>, StudyError> {
        let home = variant_folder(&self.job.output, &self.model.name, None).join("sim");
        let tokenizer = Tokenizer::from_dir(self.folder)?;
        let template = ChatTemplate::from_dir(self.folder, tokenizer.special_tokens())?;
        let mut answers = Vec::new();
        for task in self.tasks {
            let Some(outcome) = finished_in(&home.join(slug(task.name())))?.filter(|_| is_greedy(task))
            else {
                continue;
            };
            let files = task.source().find(task.name(), &self.job.data_folders(self.folder))?;
            let seed = outcome.result.seeds.first().copied().unwrap_or(0);
            let questions = task.questions(&files, seed, self.job.grid.limit)?;
            let questions: BTreeMap<u64, &Question> = questions.iter().map(|q| (q.number, q)).collect();
            for record in &outcome.records {
                let Record::Answer { number, seed: own, right, tokens, .. } = record else { continue };
                let asked = questions.get(number).filter(|_| *own == seed && !tokens.is_empty());
                let Some(question) = asked else { continue };
                let prompt = task.encode_question(question, &tokenizer, template.as_ref())?.tokens;
                let length = prompt.len();
                answers.push(FloatAnswer {
                    tokens: [prompt, tokens.clone()].concat(),
                    prompt: length,
                    right: *right,
                });
            }
        }
        Ok(answers)
    }

    pub(super) fn predict(
        &mut self,
        planned: &PlannedVariant,
        folder: &Path,
        execution: Execution,
        cells: &Path,
        events: &mut dyn Events,
    ) -> Result<(), StudyError> {
        let path = cells.join(PREDICTION);
        let of = of_answers(&self.job.output, &planned.model, self.tasks)?;
        let Some(of) = of.filter(|of| !matches!(stands(&path, Some(of)), Ok(true))) else { return Ok(()) };
        if self.answers.is_none() {
            self.answers = Some(self.float_answers()?);
        }
        if self.answers.as_ref().is_none_or(Vec::is_empty) {
            // Nothing to read, which is found once: the row need not be made again to find it.
            return write_whole(&path, &pretty(&Dependent { of, found: None::<Prediction> }));
        }
        events.event(Event::Part(format!("reading answers of the float model: {}", self.title(planned))));
        let ends = end_tokens(self.folder, &Tokenizer::from_dir(self.folder)?)?;
        let (source, arithmetic) = self.opened(folder, execution)?;
        self.reference()?;
        let (Some(reference), Some(answers)) = (&mut self.reference, &self.answers) else { return Ok(()) };
        let (threads, hidden) = (self.job.threads, source.spec().hidden);
        let began = Instant::now();
        let verdict = with_threads(threads, |par| {
            predict(&mut Scored::new(source, arithmetic, par), reference, answers, &ends, hidden, events)
        })??;
        let took = serde_json::json!({ "seconds": began.elapsed().as_secs_f64() });
        write_whole(&cells.join("prediction_run.json"), &pretty(&took))?;
        write_whole(&path, &pretty(&Dependent { of, found: Some(verdict) }))
    }

    /// Looks at the activations before and behind the transforms of a row.
    pub(super) fn ranges(
        &self,
        planned: &PlannedVariant,
        given: &GridRecipe,
        folder: &Path,
        path: &Path,
        events: &mut dyn Events,
    ) -> Result<(), StudyError> {
        let Some(spec) = calibration(self.model, self.folder)?.filter(|_| !path.exists()) else {
            return Ok(());
        };
        events.event(Event::Part(format!("looking at activations: {}", self.title(planned))));
        let job = AnalyzeJob {
            report: Some(folder.to_owned()),
            threads: self.job.threads,
            ..AnalyzeJob::new(self.folder, recipe(given, self.registry)?, spec)
        };
        write_whole(path, &pretty(&ranges(&job, events)?))
    }

    pub(super) fn blame(
        &mut self,
        planned: &PlannedVariant,
        folder: &Path,
        execution: Execution,
        cells: &Path,
        events: &mut dyn Events,
    ) -> Result<(), StudyError> {
        let path = cells.join(BLAME);
        let wanted = self.job.grid.blame.as_deref();
        let of =
            of_blame(cells, self.tasks, wanted)?.filter(|of| !matches!(stands(&path, Some(of)), Ok(true)));
        let task = self.tasks.iter().find(|task| Some(task.name()) == wanted);
        let Some((of, task)) = of.zip(task) else { return Ok(()) };
        events.event(Event::Part(format!("putting blocks back: {}", self.title(planned))));
        let files = task.source().find(task.name(), &self.job.data_folders(self.folder))?;
        let tokenizer = Tokenizer::from_dir(self.folder)?;
        let (shared, model) = (&self.shared.clone(), self.folder);
        let texts = Texts { shared, task, files: &files, tokenizer: &tokenizer, model };
        let windows = texts.windows()?;
        let windows = &windows[..BLAMED.min(windows.len())];
        let (quantised, arithmetic) = self.opened(folder, execution)?;
        let float = open_folder_with(self.folder, self.registry)?.into_source()?;
        let memory = self.job.memory_of_work();
        let found = with_threads(self.job.threads, |par: Par| {
            blame(quantised, float, BlameOptions { sequences: windows, arithmetic, memory, par }, events)
        })??;
        write_whole(&path, &pretty(&Dependent { of, found }))
    }
}
