//! Tensors: memory of a device with a shape, and what CANN knows of them.

use std::marker::PhantomData;
use std::sync::Arc;

use half::{bf16, f16};

use crate::cann::{acl, symbol};
use crate::device::{Context, Raw};
use crate::error::{AscendError, Result};
use crate::ffi::{
    ACL_BF16, ACL_FLOAT, ACL_FLOAT16, ACL_FORMAT_FRACTAL_NZ, ACL_FORMAT_ND, ACL_INT4, ACL_INT8, ACL_INT32,
    ACL_INT64, ACL_UINT64, aclDataType, aclTensor,
};
use crate::memory::{Allocation, DeviceBuffer, Element};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// Whole numbers of 8 bits.
    I8,
    /// Whole numbers of 32 bits.
    I32,
    /// Whole numbers of 64 bits.
    I64,
    /// Words of 64 bits.
    U64,
    /// Codes of 4 bits, two a byte, the first in the lower half.
    I4,
    /// Codes of 4 bits, eight a word of 32 bits, the first in the lowest bits. Shapes count words.
    I4x8,
}

impl DataType {
    pub(crate) fn raw(self) -> aclDataType {
        match self {
            Self::F32 => ACL_FLOAT,
            Self::F16 => ACL_FLOAT16,
            Self::Bf16 => ACL_BF16,
            Self::I8 => ACL_INT8,
            Self::I32 | Self::I4x8 => ACL_INT32,
            Self::I64 => ACL_INT64,
            Self::U64 => ACL_UINT64,
            Self::I4 => ACL_INT4,
        }
    }

    /// Bits of an element (of a word, for [`DataType::I4x8`]).
    #[must_use]
    pub fn bits(self) -> usize {
        match self {
            Self::I4 => 4,
            Self::I8 => 8,
            Self::F16 | Self::Bf16 => 16,
            Self::F32 | Self::I32 | Self::I4x8 => 32,
            Self::I64 | Self::U64 => 64,
        }
    }

    /// Whether it holds codes of four bits.
    #[must_use]
    pub fn is_four_bits(self) -> bool {
        matches!(self, Self::I4 | Self::I4x8)
    }

    /// Whether it is f16 or bf16.
    #[must_use]
    pub fn is_half(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16)
    }
}

/// Elements whose type CANN has.
pub trait Typed: Element {
    /// The type.
    const TYPE: DataType;
}

macro_rules! typed {
    ($($type:ty => $variant:ident),*) => {$(impl Typed for $type { const TYPE: DataType = DataType::$variant; })*};
}
typed!(i8 => I8, i32 => I32, i64 => I64, u64 => U64, f32 => F32, f16 => F16, bf16 => Bf16);

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Row after row.
    RowMajor,
    /// FRACTAL_NZ ([`crate::layout::to_nz`]).
    Nz,
}

/// Memory of a device with a type and a shape. A cheap value: clones are the same memory.
///
/// `Send` and `Sync`: it owns no handle of CANN; what CANN is told is made and destroyed with each call.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(crate) memory: Arc<Allocation>,
    kind: DataType,
    dims: Vec<usize>,
    layout: Layout,
}

impl Tensor {
    /// A buffer with a shape, row-major.
    ///
    /// # Errors
    /// [`AscendError::Shape`] for a shape with no or too many elements, or more than 8 axes.
    pub fn new<T: Typed>(buffer: &DeviceBuffer<T>, dims: &[usize]) -> Result<Self> {
        Self::of(&buffer.memory, T::TYPE, dims)
    }

    /// Codes of four bits, two a byte, with the shape of the codes.
    ///
    /// # Errors
    /// As [`Tensor::new`]; the last axis must be even.
    pub fn int4(buffer: &DeviceBuffer<u8>, dims: &[usize]) -> Result<Self> {
        Self::four_bits(&buffer.memory, dims)
    }

    /// The same in memory that other weights have codes of eight bits in.
    pub(crate) fn int4_bytes(buffer: &DeviceBuffer<i8>, dims: &[usize]) -> Result<Self> {
        Self::four_bits(&buffer.memory, dims)
    }

    fn four_bits(memory: &Arc<Allocation>, dims: &[usize]) -> Result<Self> {
        if dims.last().is_none_or(|last| !last.is_multiple_of(2)) {
            return Err(AscendError::shape(
                "last axis of codes of four bits",
                "an even length",
                format!("{dims:?}"),
            ));
        }
        Self::of(memory, DataType::I4, dims)
    }

    /// Codes of four bits, eight a word, with the shape of the words.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn int4_words(buffer: &DeviceBuffer<i32>, dims: &[usize]) -> Result<Self> {
        Self::of(&buffer.memory, DataType::I4x8, dims)
    }

    /// A matrix in the layout FRACTAL_NZ, by its logical shape.
    ///
    /// # Errors
    /// As [`Tensor::new`]; both axes must be longer than 1, and the buffer at least as long as [`crate::layout::nz_length`] says.
    pub fn nz<T: Typed>(buffer: &DeviceBuffer<T>, rows: usize, columns: usize) -> Result<Self> {
        if rows < 2 || columns < 2 {
            return Err(AscendError::shape(
                "shape of an NZ matrix",
                "both axes longer than 1",
                format!("[{rows}, {columns}]"),
            ));
        }
        let storage = nz_storage(rows, columns, T::TYPE);
        let wanted = storage.iter().try_fold(1_usize, |all, &d| all.checked_mul(d));
        if wanted.is_none_or(|wanted| wanted > buffer.len()) {
            return Err(AscendError::shape(
                "elements of an NZ matrix",
                format!(
                    "at least {} for {rows} x {columns}",
                    storage.iter().map(ToString::to_string).collect::<Vec<_>>().join("·")
                ),
                buffer.len().to_string(),
            ));
        }
        let memory = Arc::clone(&buffer.memory);
        Ok(Self { memory, kind: T::TYPE, dims: vec![rows, columns], layout: Layout::Nz })
    }

    fn of(memory: &Arc<Allocation>, kind: DataType, dims: &[usize]) -> Result<Self> {
        let elements = dims.iter().try_fold(1_usize, |all, &d| all.checked_mul(d));
        let bits = elements.and_then(|n| n.checked_mul(kind.bits())).filter(|&bits| bits > 0);
        let room = memory.bytes.saturating_mul(8);
        if dims.len() > 8 || bits.is_none_or(|bits| bits > room) {
            return Err(AscendError::shape(
                "shape of a tensor",
                format!("at most 8 axes, and 1 to {} elements", room / kind.bits()),
                format!("{dims:?}"),
            ));
        }
        Ok(Self { memory: Arc::clone(memory), kind, dims: dims.to_vec(), layout: Layout::RowMajor })
    }

    /// The type.
    #[must_use]
    pub fn data_type(&self) -> DataType {
        self.kind
    }

    /// The shape.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The shape in codes: words hold eight.
    #[must_use]
    pub fn code_dims(&self) -> Vec<usize> {
        let mut dims = self.dims.clone();
        if let (DataType::I4x8, Some(last)) = (self.kind, dims.last_mut()) {
            *last *= 8;
        }
        dims
    }

    /// How it lies in memory.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// How many elements it has.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }
}

/// The shape of the memory of an NZ matrix: `[⌈columns/c0⌉, ⌈rows/16⌉, 16, c0]` with `c0` elements in 32 bytes.
pub(crate) fn nz_storage(rows: usize, columns: usize, kind: DataType) -> [usize; 4] {
    let c0 = 256 / kind.bits();
    [columns.div_ceil(c0), rows.div_ceil(16), 16, c0]
}

/// What CANN knows of a tensor, destroyed with this value.
///
/// `Send`: it can be destroyed on any thread. Not `Sync`: whether operators may read it on two threads is not documented.
pub(crate) struct Described {
    context: Arc<Context>,
    raw: Raw,
    _memory: Arc<Allocation>,
    /// A list owns its tensors.
    owned: bool,
    _not_sync: PhantomData<std::cell::Cell<()>>,
}

impl Described {
    pub(crate) fn new(context: &Arc<Context>, tensor: &Tensor) -> Result<Self> {
        let number = |&d: &usize| i64::try_from(d).unwrap_or(i64::MAX);
        let view: Vec<i64> = tensor.dims.iter().map(number).collect();
        let (format, storage) = match (tensor.layout, tensor.dims.as_slice()) {
            (Layout::Nz, &[rows, columns]) => {
                (ACL_FORMAT_FRACTAL_NZ, nz_storage(rows, columns, tensor.kind).iter().map(number).collect())
            }
            _ => (ACL_FORMAT_ND, view.clone()),
        };
        let create = symbol!(context.cann, objects, aclCreateTensor)?;
        let (view_len, storage_len) = (view.len() as u64, storage.len() as u64);
        let (kind, memory) = (tensor.kind.raw(), &tensor.memory);
        // SAFETY: the lengths are those of the shapes, contiguous without strides; the memory holds the shape and is held here.
        let raw = unsafe {
            create(
                view.as_ptr(),
                view_len,
                kind,
                std::ptr::null(),
                0,
                format,
                storage.as_ptr(),
                storage_len,
                memory.at.0,
            )
        };
        if raw.is_null() {
            return Err(null(context, "aclCreateTensor"));
        }
        let (context, memory) = (Arc::clone(context), Arc::clone(memory));
        Ok(Self { context, raw: Raw(raw.cast()), _memory: memory, owned: true, _not_sync: PhantomData })
    }

    pub(crate) fn raw(&self) -> *mut aclTensor {
        self.raw.0.cast()
    }

    /// Leaves the handle to a list, which destroys it.
    pub(crate) fn give_to_list(&mut self) {
        self.owned = false;
    }
}

/// The error of a function that gave a null pointer instead of an object.
pub(crate) fn null(context: &Context, call: &'static str) -> AscendError {
    let failed = crate::ffi::ACLNN_ERR_INNER_NULLPTR.cast_signed();
    match context.cann.check(call, failed) {
        Err(error) => error,
        Ok(()) => context.cann.missing(call),
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: made by the sister of this function, and destroyed once, after the work that uses it.
            self.context.release(|| unsafe {
                acl!(self.context.cann, objects, aclDestroyTensor(self.raw.0.cast_const().cast()))
            });
        }
    }
}
