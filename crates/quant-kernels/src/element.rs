//! The element types of the kernels.

use crate::arch::{Butterflies, Products};
use crate::factor::Factorise;
use crate::scalar::Scalar;

/// A float type the kernels compute in: `f32` for work, `f64` for references and gradient checks. Sealed: what it stands on
/// is private.
pub trait Element: Scalar + Products + Factorise + Butterflies {}

impl Element for f32 {}
impl Element for f64 {}
