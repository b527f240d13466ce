//! Safe calls of Huawei CANN's integer operators on Ascend NPUs, opened at run time. Nothing is linked: the crate builds everywhere,
//! and where there is no CANN, [`Cann::open`] says so.
//!
//! | what | where |
//! |---|---|
//! | libraries, found and opened; what is missing is a capability | [`Cann`], [`OpenOptions`], [`doctor()`] |
//! | devices, streams, events, memory | [`Device`], [`Stream`], [`Event`], [`DeviceBuffer`], [`HostBuffer`], [`Tensor`] |
//! | operators, in their two phases | [`operators`], [`Call`], [`Workspace`] |
//! | `quant-core`'s traits on an NPU | [`Processor`] |
//! | weights that are copied while others are multiplied | [`WeightPipeline`] |
//! | layouts | [`layout`] |
//!
//! The header `cann.h` was written from CANN's documents; what is not used is not declared. `docs/ascend.md` of the repository says how
//! to run on an NPU and what was never run on one: so far, all of it. It is tested against a simulator of the same C interface.
//!
//! ```no_run
//! use ascend_kernels::{Processor, ProcessorOptions};
//! use quant_core::operators::{Bias, DynamicNumerics, DynamicQuant, IntegerLinear, QuantMatmul};
//! use quant_core::ndarray::{Array2, array};
//! use quant_core::{Bits, Par};
//!
//! let npu = Processor::open(&ProcessorOptions::default())?;
//! let x = npu.quantize(&DynamicNumerics::Ascend { bits: Bits::new(8)? }, array![[0.5_f32, -1.0]].view(), Par::Seq)?;
//! let linear = IntegerLinear::new(array![[1, 2], [3, -4]], array![0.5, 1.0], Bias::None)?;
//! let mut y = Array2::<f32>::zeros((1, 2));
//! npu.prepare(&linear, Par::Seq)?.forward(&x, y.view_mut().into(), Par::Seq)?;
//! # Ok::<(), quant_core::CoreError>(())
//! ```
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod call;
mod cann;
mod device;
mod doctor;
mod error;
mod ffi;
pub mod layout;
mod library;
mod memory;
pub mod operators;
mod pipeline;
mod places;
mod processor;
mod stream;
mod tensor;
mod transfer;
mod workspace;

pub use call::Call;
pub use cann::Cann;
pub use device::Device;
pub use doctor::{Doctor, Enabled, FoundDevice, Group, Looked, doctor};
pub use error::{AscendError, Result};
pub use library::OpenOptions;
pub use memory::{DeviceBuffer, Element, HostBuffer};
pub use pipeline::{PipelineWeight, WeightPipeline};
pub use processor::{Model, Processor, ProcessorOptions, WeightOnly};
pub use stream::{Download, Event, Stream};
pub use tensor::{DataType, Layout, Tensor, Typed};
pub use workspace::Workspace;
