//! A simulated NPU with a stream, and what tests put on it.

use ascend_kernels::{Call, Cann, Device, DeviceBuffer, Element, OpenOptions, Result, Stream, Tensor, Typed};
use ascend_sim::{Simulator, Switch};
use std::cell::Cell;

thread_local! {
    /// What is made wrong in the simulators of a test.
    pub(crate) static WRONG: Cell<i64> = const { Cell::new(0) };
}

pub(crate) struct Npu {
    pub(crate) stream: Stream,
    pub(crate) device: Device,
    // After what uses it.
    pub(crate) simulator: Simulator,
}

impl Npu {
    pub(crate) fn new() -> Self {
        let simulator = Simulator::new().unwrap();
        simulator.set(Switch::Wrong, WRONG.get());
        let cann = Cann::open(&OpenOptions::new().folder(simulator.folder())).unwrap();
        let device = Device::open(&cann, 0).unwrap();
        Self { stream: Stream::new(&device).unwrap(), device, simulator }
    }
    pub(crate) fn put<T: Typed>(&self, values: &[T], dims: &[usize]) -> Tensor {
        Tensor::new(&DeviceBuffer::from_slice(&self.device, values).unwrap(), dims).unwrap()
    }
    pub(crate) fn room<T: Typed>(&self, dims: &[usize]) -> (DeviceBuffer<T>, Tensor) {
        let buffer = DeviceBuffer::new(&self.device, dims.iter().product()).unwrap();
        let tensor = Tensor::new(&buffer, dims).unwrap();
        (buffer, tensor)
    }
    pub(crate) fn run(&self, call: Result<Call>) {
        call.unwrap().launch(&self.stream).unwrap();
    }
    pub(crate) fn get<T: Element>(&self, buffer: &DeviceBuffer<T>) -> Vec<T> {
        buffer.read(&self.stream).unwrap()
    }
}

pub(crate) fn halves<T>(values: &[f32], round: impl Fn(f32) -> T) -> Vec<T> {
    values.iter().map(|&x| round(x)).collect()
}
