//! What a method is: its registry line, the modifier it makes, and the interfaces that modifiers implement.
//!
//! They are one thing in one folder: a line makes modifiers, and a modifier knows the line it was made by.

use crate::{Field, Settings, SettingsError};
use std::sync::Arc;

mod learner;
pub mod rounding;
mod solver;
mod transform;
mod whole;

pub use learner::{
    BlockPlan, Diary, Fallback, FallbackReport, Learned, LearnedScheme, Learner, Lesson, LessonReport,
    NoDiary, float_weights,
};
pub use rounding::{PlannedRounding, Rounding, WeightSettings};
pub use solver::{Figures, Operations, Prepared, Rounded, RowRounding, Solver, Workspace};
pub use transform::{BlockContext, Scaled, Transform, scale_weights};
pub use whole::{ModelTransform, WholePlan};

/// What a method does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodKind {
    /// Rewrites a float block without changing its function.
    Transform,
    /// Turns weights into integer levels.
    Rounding,
    /// Rewrites the block, and with a scheme of its own turns the weights into levels as well.
    Both,
}

impl MethodKind {
    /// In one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Transform => "transform",
            Self::Rounding => "rounding",
            Self::Both => "transform and rounding",
        }
    }
    /// Whether it can be the rounding of a recipe.
    #[must_use]
    pub fn rounds(self) -> bool {
        self != Self::Transform
    }
}

/// What a section of a recipe makes: what happens to a block before rounding, how weights are rounded, or both.
#[derive(Clone, Debug, Default)]
pub struct Modifier {
    /// Rewrites the whole model before anything else looks at it.
    pub model: Option<Arc<dyn ModelTransform>>,
    /// Comes before any rounding.
    pub transform: Option<Arc<dyn Transform>>,
    /// Trains in every block before it is rounded.
    pub learner: Option<Arc<dyn Learner>>,
    /// Rounds every linear without an override.
    pub rounding: Option<Arc<dyn Rounding>>,
}

impl Modifier {
    /// One that only transforms.
    #[must_use]
    pub fn transform(transform: impl Transform + 'static) -> Self {
        Self { transform: Some(Arc::new(transform)), ..Self::default() }
    }
    /// One that only rounds.
    #[must_use]
    pub fn rounding(rounding: impl Rounding + 'static) -> Self {
        Self { rounding: Some(Arc::new(rounding)), ..Self::default() }
    }
    /// One that rewrites the whole model.
    #[must_use]
    pub fn model(model: impl ModelTransform + 'static) -> Self {
        Self { model: Some(Arc::new(model)), ..Self::default() }
    }
}

/// One registry line.
#[derive(Debug)]
pub struct Method {
    /// Name in recipes.
    pub id: &'static str,
    /// One line for help and tables.
    pub summary: &'static str,
    /// Where it was published.
    pub source: &'static str,
    /// Transform, rounding, or both.
    pub kind: MethodKind,
    /// Makes it from its section.
    pub build: fn(&Settings) -> Result<Modifier, SettingsError>,
    /// The keys of its section.
    pub fields: &'static [Field],
    /// 1: golden-tested against the official code and exported; 2: golden-tested; 3: experimental.
    pub tier: u8,
}
