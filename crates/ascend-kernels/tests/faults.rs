//! Every call of an end-to-end run fails once: an error with CANN's message, nothing left, and the next run works.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use ascend_kernels::operators::{OneTokenAttention, PackInt4, Pages, QuantMatmul};
use ascend_kernels::{
    AscendError, Device, DeviceBuffer, HostBuffer, OpenOptions, PipelineWeight, Processor, ProcessorOptions,
    Result, Stream, Tensor, WeightPipeline,
};
use ascend_sim::{Kind, Simulator};
use half::bf16;
use ndarray::{Array1, Array2};
use quant_core::operators::{
    Bias, Cached, ChannelCodes, CodeCacheForm, DynamicNumerics, DynamicQuant, IntegerLinear, Processor as _,
    QuantMatmul as _,
};
use quant_core::{Bits, CoreError, Groups, Par, ProcessorProblem, QuantizedMatrix};

/// Linears through the traits: two processors' worth of quantisation and products.
fn linears(processor: &Processor) -> Result<Vec<f32>, CoreError> {
    let x = Array2::from_shape_fn((3, 64), |(i, j)| ((i * 7 + j * 3) % 13) as f32 * 0.25 - 1.5);
    let linear = IntegerLinear::new(
        Array2::from_shape_fn((34, 64), |(i, j)| ((i * 5 + j) % 17) as i8 - 8),
        Array1::from_elem(34, 0.5),
        Bias::Float(Array1::from_elem(34, 1.0)),
    )?;
    let numerics = DynamicNumerics::Ascend { bits: Bits::new(8)? };
    let codes = processor.quantize(&numerics, x.view(), Par::Seq)?;
    let prepared = processor.prepare(&linear, Par::Seq)?;
    let mut out = Array2::from_elem((3, 34), bf16::ZERO);
    prepared.forward(&codes, out.view_mut().into(), Par::Seq)?;
    let mut more = Array2::<f32>::zeros((3, 34));
    prepared.forward(&codes, more.view_mut().into(), Par::Seq)?;
    Ok(out.iter().map(|x| x.to_f32()).chain(more).collect())
}

/// Floats times coded weights of eight and of four bits, with zero levels and without.
fn weight_only(processor: &Processor) -> Result<Vec<f32>, CoreError> {
    let x = Array2::from_shape_fn((2, 64), |(i, j)| ((i * 7 + j * 3) % 13) as f32 * 0.25 - 1.5);
    let mut all = Vec::new();
    for (bits, zero, groups) in [(8, 128.0, Groups::Channel), (4, 7.0, Groups::Size(32))] {
        let dim = (6, groups.count(64));
        let levels = Array2::from_shape_fn((6, 64), |(i, j)| ((i * 5 + j) % 16) as u8);
        let (scales, zeros) = (Array2::from_elem(dim, 0.5), Array2::from_elem(dim, zero));
        let weight = QuantizedMatrix::new(Bits::new(bits)?, levels, scales, zeros, groups)?;
        let mut out = Array2::zeros((2, 6));
        processor.weight_only(&weight, Some(&Array1::ones(6)))?.forward(x.view(), out.view_mut())?;
        all.extend(out);
    }
    Ok(all)
}

/// A cache that is written, grows and attends.
fn cache(processor: &Processor) -> Result<Vec<f32>, CoreError> {
    let side = || ChannelCodes { scales: Array1::from_elem(32, 0.5), zeros: Array1::ones(32) };
    let form = CodeCacheForm { heads: 2, kv_heads: 1, head_dim: 32, page: 32, keys: side(), values: side() };
    let missing = || CoreError::Processor { message: "no cache".into(), kind: ProcessorProblem::Unavailable };
    let mut cache = processor.code_cache(&form)?.ok_or_else(missing)?;
    for page in 0..2 {
        cache.reserve(page as usize + 1)?;
        (0..3).try_for_each(|slot| cache.write(page, slot, &[1; 32], &[slot as i8; 32]))?;
    }
    let mut queries = Array2::ones((1, 64));
    cache.attend(queries.view_mut(), &[Cached { pages: &[1], length: 3 }])?;
    Ok(queries.into_iter().collect())
}

/// Attention over a paged cache of int8.
fn attention(device: &Device) -> Result<Vec<f32>> {
    let stream = Stream::new(device)?;
    let numbers =
        |count: usize| (0..count).map(|i| bf16::from_f32((i % 7) as f32 * 0.5 - 1.0)).collect::<Vec<_>>();
    let tensor =
        |values: &[bf16], dims: &[usize]| Tensor::new(&DeviceBuffer::from_slice(device, values)?, dims);
    let cache = |seed: usize| -> Result<Tensor> {
        let codes: Vec<i8> = (0..3 * 32 * 32).map(|i| ((i * 13 + seed) % 200) as i8).collect();
        Tensor::new(&DeviceBuffer::from_slice(device, &codes)?, &[3, 32, 32])
    };
    let (query, key, value) = (tensor(&numbers(64), &[1, 2, 1, 32])?, cache(1)?, cache(5)?);
    let scale = tensor(&[bf16::from_f32(0.01); 32], &[32])?;
    let results = DeviceBuffer::<bf16>::new(device, 64)?;
    let out = Tensor::new(&results, &[1, 2, 1, 32])?;
    let operator = OneTokenAttention {
        query: &query,
        key: &key,
        value: &value,
        key_scale: &scale,
        value_scale: &scale,
        key_offset: None,
        value_offset: None,
        pages: Some(Pages { table: &[2, 0], block: 32 }),
        lengths: &[40],
        kv_heads: 1,
        scale: 0.2,
        fast: false,
        out: &out,
    };
    operator.prepare(device)?.launch(&stream)?;
    Ok(results.read(&stream)?.iter().map(|x| x.to_f32()).collect())
}

/// Weights through two places, asynchronous copies and events, and packed codes.
fn pipelined(device: &Device) -> Result<Vec<f32>> {
    let weights = (0..3)
        .map(|layer| PipelineWeight::nz(device, &[layer + 1; 32 * 32], 32, 32))
        .collect::<Result<_>>()?;
    let mut pipeline = WeightPipeline::new(device, weights)?;
    let x = Tensor::new(&DeviceBuffer::from_slice(device, &[1_i8; 32])?, &[1, 32])?;
    let scale = Tensor::new(&DeviceBuffer::from_slice(device, &[1.0_f32])?, &[1])?;
    let outs = (0..3).map(|_| DeviceBuffer::<i32>::new(device, 32)).collect::<Result<Vec<_>>>()?;
    pipeline.pass(|layer, weight, stream| {
        let out = Tensor::new(&outs[layer], &[1, 32])?;
        let (token_scale, offset, bias) = (None, None, None);
        QuantMatmul { x: &x, weight, transposed: false, scale: &scale, token_scale, offset, bias, out: &out }
            .prepare(device)?
            .launch(stream)
    })?;
    let mut all = Vec::new();
    for out in &outs {
        let back = pipeline.stream().download(out, HostBuffer::new(device, 32)?)?.wait()?;
        all.extend(back.iter().map(|&x| x as f32));
    }
    let packed = DeviceBuffer::<u8>::new(device, 8)?;
    let out = Tensor::int4(&packed, &[2, 8])?;
    PackInt4 { codes: &[1; 16], shape: (2, 8), out: &out }.prepare(device)?.launch(pipeline.stream())?;
    all.extend(packed.read(pipeline.stream())?.iter().map(|&x| f32::from(x)));
    let shared = Arc::new(HostBuffer::from_slice(device, &[7_i32; 32])?);
    pipeline.stream().upload(&shared, &outs[0])?;
    let mark = pipeline.stream().record()?;
    mark.synchronize()?;
    all.push(outs[0].read(pipeline.stream())?[3] as f32);
    Ok(all)
}

/// A whole run: opened, used, and closed with everything that its closing has to tell.
fn run(simulator: &Simulator) -> Result<Vec<f32>, CoreError> {
    let library = OpenOptions::new().folder(simulator.folder());
    let processor = Processor::open(&ProcessorOptions { library, ..ProcessorOptions::default() })?;
    let used: Result<Vec<f32>, CoreError> = (|| {
        let mut all = linears(&processor)?;
        all.extend(weight_only(&processor)?);
        all.extend(cache(&processor)?);
        all.extend(attention(processor.device())?);
        all.extend(pipelined(processor.device())?);
        processor.device().memory()?;
        Ok(all)
    })();
    let closed = processor.close();
    let all = used?;
    closed?;
    Ok(all)
}

#[test]
fn every_call_fails_once() {
    let simulator = Simulator::new().unwrap();
    simulator.fail_call(0);
    let want = run(&simulator).unwrap();
    let calls = simulator.count(Kind::Calls);
    assert_eq!(simulator.leaks(), []);
    let mut names = BTreeMap::<String, u64>::new();
    for number in 1..=calls {
        simulator.fail_call(number);
        let ended = run(&simulator);
        let name = simulator.call_name(number);
        simulator.fail_call(0);
        assert_eq!(simulator.leaks(), [], "call {number}, {name}");
        let error = ended.expect_err(&name).to_string();
        // Both phases of an operator begin with its name.
        assert!(error.contains(&name), "{name}: {error}");
        assert!(error.contains("EE9999: simulated failure of"), "{name}: {error}");
        *names.entry(name).or_default() += 1;
        assert_eq!(run(&simulator).unwrap(), want, "the run after a failure of call {number}");
    }
    eprintln!("{calls} calls of {} functions failed once each", names.len());
    for name in [
        "aclInit",
        "aclFinalize",
        "aclrtFree",
        "aclrtFreeHost",
        "aclrtStreamWaitEvent",
        "aclDestroyTensorList",
        "aclrtCtxSetSysParamOpt",
        "aclnnWeightQuantBatchMatmulV2",
    ] {
        assert!(names.contains_key(name), "{name} is not in the run");
    }
}

/// Codes that matter to a program.
#[test]
fn codes_and_messages() {
    let simulator = Simulator::new().unwrap();
    for (call, code, memory, absent) in [
        ("aclrtMalloc", 207_018, true, false),
        ("aclrtMallocHost", 207_001, true, false),
        ("aclInit", 500_000, false, false),
        ("aclrtSetDevice", 207_004, false, true),
        ("aclrtSynchronizeStream", 507_015, false, false),
        ("aclnnQuantMatmulWeightNz", 561_107, false, false),
    ] {
        simulator.fail_next(call, code);
        let library = OpenOptions::new().folder(simulator.folder());
        let options = ProcessorOptions { library, ..ProcessorOptions::default() };
        let error = match Processor::open(&options) {
            Err(error) => error,
            Ok(processor) => pipelined(processor.device()).unwrap_err(),
        };
        assert!(matches!(&error, AscendError::Cann { code: found, .. } if *found == code), "{call}: {error}");
        assert_eq!((error.is_out_of_memory(), error.is_unavailable()), (memory, absent), "{call}: {error}");
        assert!(error.to_string().contains("EE9999"), "{error}");
        assert_eq!(simulator.leaks(), [], "{call}");
    }
}
