//! What a study is made of: models, recipes, executions, tasks.

mod embedded;
mod presets;
mod read;
mod server;

pub(crate) use embedded::{NAME, unpack};
pub use presets::{STUDIES, StudyPreset, study_preset};
pub use server::GridServer;

use crate::StudyError;
use quant_kernels::Compute;
use quant_model::Execution;
use read::Reader;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A model of a study.
#[derive(Clone, Debug, PartialEq)]
pub struct GridModel {
    /// Its name in reports.
    pub name: String,
    /// Its folder, or `embedded:tiny-reasoner`.
    pub path: PathBuf,
    /// Calibration data, as for `ptq quantize`; relative to the folder of the model where it is found there, else to that of the grid.
    pub calibration: Option<String>,
    /// Rows or windows of it.
    pub num_samples: Option<usize>,
    /// Tokens of each.
    pub max_seq_len: Option<usize>,
    /// Seed of the windows.
    pub seed: u64,
    /// Most tokens that a draw of this model chooses from, where a task draws.
    pub top_k: Option<usize>,
    /// What `config.json` says, by which a plan is made where the folder is not there.
    pub config: Option<Value>,
    /// Servers that have a form of this model: rows beside those of the recipes. The tokenizer is that of the folder. One of the name
    /// `float` has the float model, which is then not run here.
    pub servers: Vec<GridServer>,
}

impl GridModel {
    /// The server that has the float model.
    pub(crate) fn float_server(&self) -> Option<&GridServer> {
        self.servers.iter().find(|server| server.name == "float")
    }
}

/// A recipe of a study.
#[derive(Clone, Debug, PartialEq)]
pub struct GridRecipe {
    /// Its name in reports and folders.
    pub name: String,
    /// A preset, a file, or the recipe itself.
    pub text: RecipeText,
}

/// Where a recipe stands.
#[derive(Clone, Debug, PartialEq)]
pub enum RecipeText {
    /// Name of a preset or of a file.
    Named(String),
    /// Written out in the grid.
    Written(String),
}

/// Figures that were published for a row, printed beside ours.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Name of the model.
    pub model: String,
    /// Title of the row in the report: the name of a recipe, with ` (int8)` where that is executed.
    pub row: String,
    /// Under which circumstances, where several figures were published for a row; otherwise empty.
    pub label: String,
    /// Figures by column; `Avg.` and `Drop` as published.
    pub figures: Vec<(String, f64)>,
}

/// A study.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Its name.
    pub name: String,
    /// What a reader of the report should know of it.
    pub note: String,
    /// Models; the float model of each is a row of its own.
    pub models: Vec<GridModel>,
    /// Recipes.
    pub recipes: Vec<GridRecipe>,
    /// How quantised models are run.
    pub execution: Vec<Execution>,
    /// Names or files of tasks.
    pub tasks: Vec<String>,
    /// Seeds instead of those of the tasks.
    pub seeds: Option<Vec<u64>>,
    /// Items of a task at most.
    pub limit: Option<usize>,
    /// New tokens of an answer at most.
    pub max_new_tokens: Option<usize>,
    /// Folders with data.
    pub data: Vec<PathBuf>,
    /// Arithmetic of the float products in scoring.
    pub compute: Compute,
    /// Published figures.
    pub published: Vec<Published>,
    /// Task whose text is what a block is put back on, to find what caused a loss.
    pub blame: Option<String>,
    text: String,
}

impl Published {
    /// The published figure of a column.
    pub(crate) fn figure(&self, column: &str) -> Option<f64> {
        self.figures.iter().find(|(name, _)| name == column).map(|(_, figure)| *figure)
    }

    /// What its row in a report is called.
    pub(crate) fn title(&self) -> String {
        if self.label.is_empty() { "published".to_owned() } else { format!("published, {}", self.label) }
    }
}

impl Grid {
    /// What was published for a row of a model.
    pub(crate) fn published_for(&self, model: &str, row: &str) -> impl Iterator<Item = &Published> {
        self.published.iter().filter(move |published| published.model == model && published.row == row)
    }

    /// Reads a grid; `origin` names it in errors.
    ///
    /// ```
    /// let grid = quant_study::Grid::parse(
    ///     "version: 1\nname: mine\nmodels: [Qwen2.5-0.5B]\nrecipes: [w4a16g128]\ntasks: [gsm8k]\n",
    ///     "a grid",
    /// )?;
    /// assert_eq!(grid.models[0].name, "Qwen2.5-0.5B");
    /// # Ok::<(), quant_study::StudyError>(())
    /// ```
    ///
    /// # Errors
    /// [`StudyError::Grid`] naming the key, what was expected and what was found.
    pub fn parse(text: &str, origin: &str) -> Result<Self, StudyError> {
        Reader { origin }.grid(text)
    }

    /// Reads a grid from a file. Relative paths in it are relative to its folder.
    ///
    /// # Errors
    /// As [`Grid::parse`]; a file that cannot be read.
    pub fn from_file(path: &Path) -> Result<Self, StudyError> {
        let text = std::fs::read_to_string(path).map_err(StudyError::io(path))?;
        let mut grid = Self::parse(&text, &path.display().to_string())?;
        let base = path.parent().unwrap_or(Path::new(""));
        let beside = |given: &mut PathBuf| {
            if given.is_relative() && !given.starts_with(NAME) {
                *given = base.join(&*given);
            }
        };
        for model in &mut grid.models {
            beside(&mut model.path);
            if let Some(written) = &mut model.calibration {
                let there = |folder: &Path| {
                    let file = written.rsplit_once(':').map_or(written.as_str(), |(file, _)| file);
                    folder.join(&*written).exists() || folder.join(file).exists()
                };
                if there(base) && !there(&model.path) {
                    *written = base.join(&*written).display().to_string();
                }
            }
            model.servers.iter_mut().filter_map(|server| server.key_file.as_mut()).for_each(beside);
        }
        grid.data.iter_mut().for_each(beside);
        for recipe in &mut grid.recipes {
            if let RecipeText::Named(name) = &mut recipe.text
                && base.join(&*name).is_file()
            {
                *name = base.join(&*name).display().to_string();
            }
        }
        for task in &mut grid.tasks {
            if base.join(&*task).is_file() {
                *task = base.join(&*task).display().to_string();
            }
        }
        Ok(grid)
    }

    /// Whether nothing of a model runs here: a server has the float model, and there are no recipes.
    pub(crate) fn is_served(&self, model: &GridModel) -> bool {
        self.recipes.is_empty() && model.float_server().is_some()
    }

    /// The text it was read from.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}
