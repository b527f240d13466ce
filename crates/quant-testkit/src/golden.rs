//! Golden files.

use half::{bf16, f16};
use ndarray::{Array1, Array2};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The folder of shared reference data beside the workspace, if this checkout has it. A test that needs it calls
/// [`skipped`] and returns where it is absent.
#[must_use]
pub fn shared_dir() -> Option<PathBuf> {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared"));
    dir.is_dir().then(|| dir.to_path_buf())
}

/// Says that the current test passes without having checked what it is for, and why.
///
/// It goes to the stderr of the process: what `println!` and `eprintln!` write, the test harness shows for failures only.
pub fn skipped(why: impl Display) {
    let thread = std::thread::current();
    let line = format!("skipped: {}: {why}\n", thread.name().unwrap_or("test"));
    // One write, so that lines of parallel tests do not mix; there is nowhere to report that it failed.
    drop(std::io::stderr().write_all(line.as_bytes()));
}

/// All tensors of a file by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// A tensor of a golden file, widened to one of three types.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its shape, rows first.
    pub shape: Vec<usize>,
    /// Its values in row-major order.
    pub data: TensorData,
}

/// Values of a tensor: half types are widened to `F32`, integers and booleans to `I64`.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// F32, F16, BF16.
    F32(Vec<f32>),
    /// F64.
    F64(Vec<f64>),
    /// Integers and booleans.
    I64(Vec<i64>),
}

impl Tensor {
    /// The values as `f32` (an `F64` tensor is rounded).
    ///
    /// # Panics
    /// If it holds integers.
    #[must_use]
    pub fn f32(&self) -> Vec<f32> {
        match &self.data {
            TensorData::F32(v) => v.clone(),
            TensorData::F64(v) => v.iter().map(|&x| x as f32).collect(),
            TensorData::I64(_) => panic!("integers where floats were expected, shape {:?}", self.shape),
        }
    }
    /// The values as `f64`.
    ///
    /// # Panics
    /// If it holds integers.
    #[must_use]
    pub fn f64(&self) -> Vec<f64> {
        match &self.data {
            TensorData::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            TensorData::F64(v) => v.clone(),
            TensorData::I64(_) => panic!("integers where floats were expected, shape {:?}", self.shape),
        }
    }
    /// The values as integers.
    ///
    /// # Panics
    /// If it holds floats.
    #[must_use]
    pub fn i64(&self) -> Vec<i64> {
        match &self.data {
            TensorData::I64(v) => v.clone(),
            _ => panic!("floats where integers were expected, shape {:?}", self.shape),
        }
    }
    /// As a vector, whatever its shape.
    ///
    /// # Panics
    /// If it holds integers.
    #[must_use]
    pub fn vector(&self) -> Array1<f32> {
        Array1::from(self.f32())
    }
    /// As a matrix: the last dimension is the columns, the others are flattened into rows.
    ///
    /// # Panics
    /// If it holds integers or has no dimension.
    #[must_use]
    pub fn matrix(&self) -> Array2<f32> {
        let columns = *self.shape.last().expect("a tensor with a dimension");
        let values = self.f32();
        Array2::from_shape_vec((values.len() / columns.max(1), columns), values)
            .expect("shape fits its values")
    }
    /// Rows of token ids: the last dimension is the sequence.
    ///
    /// # Panics
    /// If it holds floats or a negative id.
    #[must_use]
    pub fn token_rows(&self) -> Vec<Vec<u32>> {
        let length = self.shape.last().copied().unwrap_or(1).max(1);
        let ids: Vec<u32> = self.i64().iter().map(|&id| u32::try_from(id).expect("a token id")).collect();
        ids.chunks(length).map(<[u32]>::to_vec).collect()
    }
}

/// All tensors of a safetensors file.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn load_safetensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    parse_safetensors(&bytes)
}

/// All tensors of the bytes of a safetensors file.
///
/// # Panics
/// If they are not one, or hold a type that goldens do not use.
#[must_use]
pub fn parse_safetensors(bytes: &[u8]) -> Tensors {
    let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
    file.tensors().into_iter().map(|(name, view)| (name, widen(&view))).collect()
}

fn widen(view: &TensorView<'_>) -> Tensor {
    fn le<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks::<N>().0.iter().map(|&chunk| f(chunk)).collect()
    }
    let bytes = view.data();
    let data = match view.dtype() {
        Dtype::F32 => TensorData::F32(le(bytes, f32::from_le_bytes)),
        Dtype::F16 => TensorData::F32(le(bytes, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => TensorData::F32(le(bytes, |b| bf16::from_le_bytes(b).to_f32())),
        Dtype::F64 => TensorData::F64(le(bytes, f64::from_le_bytes)),
        Dtype::I64 => TensorData::I64(le(bytes, i64::from_le_bytes)),
        Dtype::I32 => TensorData::I64(le(bytes, |b| i64::from(i32::from_le_bytes(b)))),
        Dtype::I16 => TensorData::I64(le(bytes, |b| i64::from(i16::from_le_bytes(b)))),
        Dtype::I8 => TensorData::I64(le(bytes, |b| i64::from(i8::from_le_bytes(b)))),
        Dtype::U8 | Dtype::BOOL => TensorData::I64(bytes.iter().map(|&b| i64::from(b)).collect()),
        other => panic!("goldens do not use {other:?}"),
    };
    Tensor { shape: view.shape().to_vec(), data }
}
