//! Handles: who may hold them, on which thread, and that none is left.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ascend_kernels::operators::{CubeMath, DynamicQuant, Matmul, QuantMatmul};
use ascend_kernels::{
    AscendError, Call, Cann, DataType, Device, DeviceBuffer, Download, Event, HostBuffer, OpenOptions,
    PipelineWeight, Processor, Stream, Tensor, WeightOnly, WeightPipeline, Workspace,
};
use ascend_sim::{Kind, Simulator, Step, Switch};
use half::bf16;

fn open(simulator: &Simulator) -> (Cann, Device) {
    let cann = Cann::open(&OpenOptions::new().folder(simulator.folder())).unwrap();
    let device = Device::open(&cann, 0).unwrap();
    (cann, device)
}

/// What is stated of each type, held by the compiler.
#[test]
fn send_and_sync() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    send::<Cann>();
    sync::<Cann>();
    send::<Device>();
    sync::<Device>();
    send::<Stream>();
    sync::<Stream>();
    send::<Event>();
    sync::<Event>();
    send::<DeviceBuffer<i8>>();
    sync::<DeviceBuffer<i8>>();
    send::<HostBuffer<i8>>();
    sync::<HostBuffer<i8>>();
    send::<Tensor>();
    sync::<Tensor>();
    send::<Processor>();
    sync::<Processor>();
    send::<PipelineWeight>();
    sync::<PipelineWeight>();
    send::<WeightPipeline>();
    sync::<WeightPipeline>();
    send::<Workspace>();
    sync::<Workspace>();
    send::<WeightOnly>();
    sync::<WeightOnly>();
    send::<Download<'_, i8>>();
    sync::<Download<'_, i8>>();
    send::<Call>();
    // A call is not `Sync`: if it were, both implementations would apply and this would not compile.
    trait Either<A> {
        fn is() {}
    }
    struct NotSync;
    impl<T> Either<()> for T {}
    impl<T: Sync> Either<NotSync> for T {}
    <Call as Either<_>>::is();
}

#[test]
fn handles_move_between_threads() {
    let simulator = Simulator::new().unwrap();
    let (cann, device) = open(&simulator);
    let numbers = DeviceBuffer::from_slice(&device, &[1.0_f32, 2.0, 3.0, 4.0]).unwrap();
    let out = DeviceBuffer::<f32>::new(&device, 4).unwrap();
    // Made here, prepared on a second thread, launched on a third, which has never seen the device, and read on a fourth.
    let stream = Arc::new(Stream::new(&device).unwrap());
    let (a, out) = (Tensor::new(&numbers, &[2, 2]).unwrap(), (Tensor::new(&out, &[2, 2]).unwrap(), out));
    let prepared = {
        let (device, a, out) = (device.clone(), a.clone(), out.0.clone());
        let b = a.clone();
        std::thread::spawn(move || {
            Matmul { a: &a, b: &b, out: &out, math: CubeMath::Keep }.prepare(&device).unwrap()
        })
        .join()
        .unwrap()
    };
    let on = Arc::clone(&stream);
    let event = std::thread::spawn(move || {
        prepared.launch(&on).unwrap();
        on.record().unwrap()
    })
    .join()
    .unwrap();
    let got = std::thread::spawn(move || {
        event.synchronize().unwrap();
        let read = out.1.read(&stream).unwrap();
        drop(event);
        read
    })
    .join()
    .unwrap();
    assert_eq!(got, [7.0, 10.0, 15.0, 22.0]);
    drop((a, numbers, out.0));
    device.close().unwrap();
    cann.close().unwrap();
    assert_eq!(simulator.leaks(), []);
}

#[test]
fn streams_run_when_they_are_waited_for() {
    let simulator = Simulator::new().unwrap();
    let (_cann, device) = open(&simulator);
    let stream = Stream::new(&device).unwrap();
    let from = Arc::new(HostBuffer::from_slice(&device, &[1_i32, 2, 3]).unwrap());
    let on_device = DeviceBuffer::<i32>::new(&device, 3).unwrap();
    let start = stream.record().unwrap();
    stream.upload(&from, &on_device).unwrap();
    let back = stream.download(&on_device, HostBuffer::new(&device, 3).unwrap()).unwrap();
    assert_eq!(*back.wait().unwrap(), [1, 2, 3]);
    let end = stream.record().unwrap();
    assert!(end.elapsed_since(&start).unwrap() > 0.0);
    // A download that nobody waits for, and an upload that is under way, keep their memory until the stream is gone.
    stream.upload(&from, &on_device).unwrap();
    let _ = stream.download(&on_device, HostBuffer::new(&device, 3).unwrap()).unwrap();
    drop((from, on_device, start, end));
    assert!(simulator.count(Kind::HostBytes) > 0);
    drop(stream);
    assert_eq!(simulator.count(Kind::HostBytes) + simulator.count(Kind::DeviceBytes), 0);
    assert_eq!(simulator.count(Kind::DroppedTasks), 0);
}

/// Two contexts on one device, opened twice through two values: the device is reset once, CANN ended once.
#[test]
fn everything_is_given_back_once() {
    let simulator = Simulator::new().unwrap();
    let (first, device) = open(&simulator);
    let (second, other) = open(&simulator);
    assert_eq!((simulator.count(Kind::Device), simulator.count(Kind::Context)), (1, 2));
    let buffer = DeviceBuffer::from_slice(&device, &[1_i8; 32]).unwrap();
    let stream = Stream::new(&other).unwrap();
    let error = buffer.read(&stream).unwrap_err();
    assert!(matches!(error, AscendError::OtherDevice { .. }), "{error}");
    let error = device.clone().close().unwrap_err();
    assert!(matches!(error, AscendError::InUse { .. }), "{error}");
    drop((buffer, stream));
    other.close().unwrap();
    second.close().unwrap();
    assert_eq!(simulator.count(Kind::Initialised), 1);
    device.close().unwrap();
    first.close().unwrap();
    assert_eq!(simulator.leaks(), []);
}

#[test]
fn devices_that_are_not_there() {
    let simulator = Simulator::new().unwrap();
    simulator.set(Switch::Devices, 0);
    let cann = Cann::open(&OpenOptions::new().folder(simulator.folder())).unwrap();
    let error = Device::open(&cann, 0).unwrap_err();
    assert!(error.is_unavailable() && error.to_string().contains("0 are there"), "{error}");
    simulator.set(Switch::Devices, 1);
    for id in [-1, 1, i32::MAX] {
        assert!(Device::open(&cann, id).unwrap_err().is_unavailable(), "{id}");
    }
}

/// A function that is missing is a capability: what needs it says so, everything else runs.
#[test]
fn missing_functions() {
    let simulator = Simulator::new().unwrap();
    let options = OpenOptions::new().folder(simulator.folder()).without("aclnnMm");
    let cann = Cann::open(&options).unwrap();
    assert!(!cann.has("aclnnMm") && cann.has("aclnnDynamicQuant") && !cann.has("aclnnNoSuchThing"));
    let device = Device::open(&cann, 0).unwrap();
    let buffer = DeviceBuffer::from_slice(&device, &[1.0_f32; 4]).unwrap();
    let (a, out) = (Tensor::new(&buffer, &[2, 2]).unwrap(), DeviceBuffer::<f32>::new(&device, 4).unwrap());
    let out = Tensor::new(&out, &[2, 2]).unwrap();
    let error = Matmul { a: &a, b: &a, out: &out, math: CubeMath::Keep }.prepare(&device).unwrap_err();
    assert!(error.is_unavailable() && error.to_string().contains("aclnnMm"), "{error}");
    // Without the library of operators nothing else is lost.
    let bare = Simulator::with_names(&["libascendcl.so"]).unwrap();
    let cann = Cann::open(&OpenOptions::new().folder(bare.folder())).unwrap();
    assert!(cann.has("aclrtMalloc") && !cann.has("aclnnMm"));
    Device::open(&cann, 0).unwrap().close().unwrap();
}

/// Memory of an output may be no other argument's.
#[test]
fn outputs_are_apart() {
    let simulator = Simulator::new().unwrap();
    let (_cann, device) = open(&simulator);
    let buffer = DeviceBuffer::from_slice(&device, &[1.0_f32; 4]).unwrap();
    let a = Tensor::new(&buffer, &[2, 2]).unwrap();
    let error = Matmul { a: &a, b: &a, out: &a, math: CubeMath::Keep }.prepare(&device).unwrap_err();
    assert!(error.to_string().contains("memory of an output"), "{error}");
}

/// A prepared call that is dropped gives its executor back, and so do calls whose launch fails.
#[test]
fn dropped_calls() {
    let simulator = Simulator::new().unwrap();
    let (cann, device) = open(&simulator);
    let x = DeviceBuffer::from_slice(&device, &[bf16::ONE; 8]).unwrap();
    let (codes, scale) =
        (DeviceBuffer::<i8>::new(&device, 8).unwrap(), DeviceBuffer::<f32>::new(&device, 2).unwrap());
    let (x, codes, scale) = (
        Tensor::new(&x, &[2, 4]).unwrap(),
        Tensor::new(&codes, &[2, 4]).unwrap(),
        Tensor::new(&scale, &[2]).unwrap(),
    );
    assert_eq!(x.data_type(), DataType::Bf16);
    let operator = DynamicQuant { x: &x, smooth: None, codes: &codes, scale: &scale, offset: None };
    drop(operator.prepare(&device).unwrap());
    assert_eq!(simulator.count(Kind::Executor) + simulator.count(Kind::Tensor), 0);
    let other = Device::open(&cann, 1).unwrap();
    let elsewhere = Stream::new(&other).unwrap();
    let error = operator.prepare(&device).unwrap().launch(&elsewhere).unwrap_err();
    assert!(matches!(error, AscendError::OtherDevice { .. }), "{error}");
    assert_eq!(simulator.count(Kind::Executor), 0);
}

/// Weights through two places: a product waits for its own weight and never for that of the next layer.
#[test]
fn a_product_never_waits_for_the_next_weight() {
    const LAYERS: usize = 7;
    let (m, k, n) = (3, 64, 32);
    let simulator = Simulator::new().unwrap();
    let (cann, device) = open(&simulator);
    let codes = |layer: usize| (0..k * n).map(|i| ((i * 31 + layer * 17) % 255) as i8).collect::<Vec<i8>>();
    let weights = (0..LAYERS)
        .map(|layer| match layer % 2 {
            0 => PipelineWeight::nz(&device, &codes(layer), k, n).unwrap(),
            _ => PipelineWeight::row_major(&device, &codes(layer), k, n).unwrap(),
        })
        .collect();
    let mut pipeline = WeightPipeline::new(&device, weights).unwrap();
    assert_eq!(pipeline.device_bytes(), 2 * k * n);
    let activations: Vec<i8> = (0..m * k).map(|i| (i % 19) as i8 - 9).collect();
    let x = Tensor::new(&DeviceBuffer::from_slice(&device, &activations).unwrap(), &[m, k]).unwrap();
    let scale = Tensor::new(&DeviceBuffer::from_slice(&device, &[1.0_f32]).unwrap(), &[1]).unwrap();
    let outs: Vec<_> = (0..LAYERS).map(|_| DeviceBuffer::<i32>::new(&device, m * n).unwrap()).collect();
    simulator.clear_trace();
    for pass in 0..2 {
        pipeline
            .pass(|layer, weight, stream| {
                let out = Tensor::new(&outs[layer], &[m, n])?;
                let operator = QuantMatmul {
                    x: &x,
                    weight,
                    transposed: false,
                    scale: &scale,
                    token_scale: None,
                    offset: None,
                    bias: None,
                    out: &out,
                };
                operator.prepare(&device)?.launch(stream)
            })
            .unwrap();
        // The host waited for nothing: what was written before is still there.
        let trace = simulator.trace();
        let of = |name: &str| {
            trace
                .iter()
                .enumerate()
                .filter(|(_, s)| s.name.contains(name))
                .map(|(i, _)| i)
                .collect::<Vec<_>>()
        };
        let (copies, products) = (of("aclrtMemcpyAsync"), of("aclnnQuantMatmul"));
        assert_eq!((copies.len(), products.len()), (LAYERS * (pass + 1), LAYERS * (pass + 1)));
        for i in 0..products.len() {
            let behind = Step::all_before(&trace, products[i]);
            assert!(behind.contains(&copies[i]), "product {i} does not wait for its weight");
            for (later, copy) in copies.iter().enumerate().skip(i + 1) {
                assert!(!behind.contains(copy), "product {i} waits for weight {later}");
            }
            if i + 2 < copies.len() {
                let behind = Step::all_before(&trace, copies[i + 2]);
                assert!(behind.contains(&products[i]), "weight {} overwrites one in use", i + 2);
                assert!(
                    i + 1 >= products.len() || !behind.contains(&products[i + 1]),
                    "copies run in step with products"
                );
            }
        }
    }
    for (layer, out) in outs.iter().enumerate() {
        let (codes, got) = (codes(layer), out.read(pipeline.stream()).unwrap());
        for i in 0..m {
            for j in 0..n {
                let products =
                    (0..k).map(|l| i32::from(activations[i * k + l]) * i32::from(codes[l * n + j]));
                assert_eq!(got[i * n + j], products.sum::<i32>(), "layer {layer}");
            }
        }
    }
    drop((pipeline, outs, x, scale));
    device.close().unwrap();
    cann.close().unwrap();
    assert_eq!(simulator.leaks(), []);
}

/// Ends the waiting also where the test fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// One thread waits for a stream while another queues copies on it and lets go of their ends: nothing is freed that is in use, which the
/// simulator would end the test for.
#[test]
fn what_is_queued_while_another_waits_is_held() {
    let simulator = Simulator::new().unwrap();
    let (cann, device) = open(&simulator);
    {
        let stream = Stream::new(&device).unwrap();
        let there = DeviceBuffer::from_slice(&device, &[3_i32; 64]).unwrap();
        let queuing = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let (queuing, stream) = (&queuing, &stream);
            scope.spawn(move || {
                while queuing.load(Ordering::Relaxed) {
                    stream.synchronize().unwrap();
                }
            });
            let _done = OnDrop(queuing);
            for _ in 0..300 {
                let here = Arc::new(HostBuffer::from_slice(&device, &[5_i32; 64]).unwrap());
                stream.upload(&here, &there).unwrap();
                drop(here);
                drop(stream.download(&there, HostBuffer::new(&device, 64).unwrap()).unwrap());
            }
        });
        assert_eq!(there.read(&stream).unwrap(), [5; 64]);
    }
    device.close().unwrap();
    cann.close().unwrap();
    assert_eq!(simulator.leaks(), []);
}

/// Hundreds of passes hold no more events than some thousand.
#[test]
fn a_pipeline_gives_its_events_back() {
    let simulator = Simulator::new().unwrap();
    let (cann, device) = open(&simulator);
    {
        let weights = (0..8).map(|_| PipelineWeight::nz(&device, &[1; 32 * 32], 32, 32).unwrap()).collect();
        let mut pipeline = WeightPipeline::new(&device, weights).unwrap();
        let mut most = 0;
        for _ in 0..200 {
            pipeline.pass(|_, _, _| Ok(())).unwrap();
            pipeline.stream().synchronize().unwrap();
            most = most.max(simulator.count(Kind::Event));
        }
        assert!(most < 1200, "{most} events");
    }
    device.close().unwrap();
    cann.close().unwrap();
    assert_eq!(simulator.leaks(), []);
}
