//! Memory of the device: what a run asks of it is judged before anything is there, and weights that it has no room for go through two places.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ascend_kernels::{OpenOptions, Processor, ProcessorOptions};
use ascend_sim::{Kind, Simulator, Step};
use half::bf16;
use ndarray::{Array1, Array2};
use quant_core::operators::{
    Bias, CacheDemand, ChannelCodes, CodeCacheForm, Demand, DynamicNumerics, DynamicQuant, IntegerLinear,
    PreparedMatmul, Processor as _, QuantMatmul, Reference, WeightOnlyProduct,
};
use quant_core::{Bits, CoreError, FloatType, Groups, Par, ProcessorProblem, QuantizedMatrix};
use quant_testkit::Numbers;

fn open(simulator: &Simulator, without: &str) -> Processor {
    let library = OpenOptions::new().folder(simulator.folder()).without(without);
    Processor::open(&ProcessorOptions { library, ..ProcessorOptions::default() }).unwrap()
}

/// Output and input features of the layers of a model; the last has codes of four bits and floats as input.
const LAYERS: [(usize, usize); 6] = [(64, 96), (96, 64), (33, 96), (96, 33), (64, 96), (64, 96)];

fn linear(layer: usize) -> IntegerLinear {
    let (n, k) = LAYERS[layer];
    let mut numbers = Numbers::new(layer as u64);
    let codes = numbers.matrix(n, k, 127.0).mapv(|x| x as i8);
    IntegerLinear::new(codes, numbers.vector(n, 0.01, 0.005), Bias::None).unwrap()
}

fn packed() -> QuantizedMatrix {
    let (n, k) = LAYERS[5];
    let levels = Array2::from_shape_fn((n, k), |(i, j)| ((i * 5 + j * 3) % 16) as u8);
    let (scales, zeros) = (Array2::from_elem((n, 1), 0.03), Array2::from_elem((n, 1), 8.0));
    QuantizedMatrix::new(Bits::new(4).unwrap(), levels, scales, zeros, Groups::Channel).unwrap()
}

enum Layer {
    Codes(Box<dyn PreparedMatmul>),
    Floats(Box<dyn WeightOnlyProduct>),
}

fn layers(processor: &Processor) -> Vec<Layer> {
    let codes = (0..5).map(|layer| Layer::Codes(processor.prepare(&linear(layer), Par::Seq).unwrap()));
    let floats = || {
        let product = quant_core::operators::Processor::weight_only(processor, &packed(), None);
        Layer::Floats(product.unwrap().unwrap())
    };
    codes.chain(std::iter::once_with(floats)).collect()
}

/// Results of one pass through all layers in an order.
fn pass(processor: &Processor, layers: &[Layer], order: &[usize]) -> Vec<Vec<f32>> {
    let run = |&layer: &usize| {
        let (n, k) = LAYERS[layer];
        let x = Numbers::new(31).matrix(3, k, 1.0).mapv(|x| FloatType::Bf16.round(x));
        match &layers[layer] {
            Layer::Codes(prepared) => {
                let numerics = DynamicNumerics::Ascend { bits: Bits::new(8).unwrap() };
                let codes = processor.quantize(&numerics, x.view(), Par::Seq).unwrap();
                let mut out = Array2::from_elem((3, n), bf16::ZERO);
                prepared.forward(&codes, out.view_mut().into(), Par::Seq).unwrap();
                let mut want = Array2::from_elem((3, n), bf16::ZERO);
                let reference = Reference.prepare(&linear(layer), Par::Seq).unwrap();
                reference.forward(&codes, want.view_mut().into(), Par::Seq).unwrap();
                assert_eq!(out, want, "layer {layer}");
                out.iter().map(|x| x.to_f32()).collect()
            }
            Layer::Floats(prepared) => {
                let mut out = Array2::zeros((3, n));
                prepared.forward(x.view(), out.view_mut()).unwrap();
                out.iter().copied().collect()
            }
        }
    };
    order.iter().map(run).collect()
}

/// What the layers ask for, their codes in whole tiles.
fn demand() -> Demand {
    let codes = |&(n, k): &(usize, usize)| (n.next_multiple_of(32) * k.next_multiple_of(32)) as u64;
    let all = LAYERS.iter().map(codes);
    Demand {
        weights: all.clone().sum(),
        largest: all.max().unwrap(),
        parameters: LAYERS.iter().map(|(n, _)| 8 * *n as u64).sum(),
        step: 3 * 400,
        caches: None,
    }
}

fn copies_and_products(trace: &[Step]) -> (Vec<usize>, Vec<usize>) {
    let of = |names: &[&str]| -> Vec<usize> {
        let named = |at: &usize| names.iter().any(|name| trace[*at].name.contains(name));
        (0..trace.len()).filter(named).collect()
    };
    (of(&["aclrtMemcpyAsync"]), of(&["QuantMatmul", "QuantBatchMatmul"]))
}

/// A model larger than the device: results are those of one that fits, no product waits for the copy of a later weight, and the copy of
/// the next one does not wait for the product that runs.
#[test]
fn weights_without_room_go_through_two_places() {
    let simulator = Simulator::new().unwrap();
    let order: Vec<usize> = (0..LAYERS.len()).collect();
    let want = {
        let processor = open(&simulator, "");
        processor.expect(&demand()).unwrap();
        let layers = layers(&processor);
        // The last weight alone is in page-locked memory, until it is used.
        let (n, k) = LAYERS[5];
        assert_eq!(simulator.count(Kind::HostBytes), (n * k / 2) as u64);
        let want = pass(&processor, &layers, &order);
        assert_eq!(simulator.count(Kind::HostBytes), 0);
        assert_eq!(pass(&processor, &layers, &order), want);
        let (trace, last) = (simulator.trace(), LAYERS.len());
        let (copies, products) = copies_and_products(&trace);
        assert_eq!((copies.len(), products.len()), (last, 2 * last), "all weights stay");
        for (i, &product) in products[..last].iter().enumerate() {
            let behind = Step::all_before(&trace, product);
            assert!(behind.contains(&copies[i]), "product {i} does not wait for its weight");
            assert!(!copies[i + 1..].iter().any(|copy| behind.contains(copy)), "product {i} waits for more");
        }
        want
    };
    let least = demand().parameters + demand().step + 2 * demand().largest;
    simulator.set_memory(usize::try_from(least + least / 16).unwrap());
    let processor = open(&simulator, "");
    processor.expect(&demand()).unwrap();
    let layers = layers(&processor);
    assert!(simulator.count(Kind::HostBytes) > 0);
    simulator.clear_trace();
    for _ in 0..3 {
        assert_eq!(pass(&processor, &layers, &order), want);
    }
    let trace = simulator.trace();
    let (copies, products) = copies_and_products(&trace);
    // One more is under way when the last product ends.
    assert_eq!((copies.len(), products.len()), (3 * LAYERS.len() + 1, 3 * LAYERS.len()));
    for i in 0..products.len() {
        let behind = Step::all_before(&trace, products[i]);
        assert!(behind.contains(&copies[i]), "product {i} does not wait for its weight");
        for (later, copy) in copies.iter().enumerate().skip(i + 1) {
            assert!(!behind.contains(copy), "product {i} waits for weight {later}");
        }
        let next = Step::all_before(&trace, copies[i + 1]);
        assert!(!next.contains(&products[i]), "the copy of weight {} waits for product {i}", i + 1);
        assert!(i == 0 || next.contains(&products[i - 1]), "weight {} overwrites one in use", i + 1);
    }
    // In any order, and with one layer alone.
    let odd = [3, 3, 0, 5, 1, 4, 2, 0];
    let got = pass(&processor, &layers, &odd);
    assert_eq!(got, odd.map(|layer| want[layer].clone()));
    let there = simulator.count(Kind::DeviceBytes);
    drop(layers);
    // The places go with the weights.
    assert!(simulator.count(Kind::DeviceBytes) + 2 * demand().largest <= there);
    assert_eq!(simulator.count(Kind::HostBytes), 0);
    processor.close().unwrap();
    assert_eq!(simulator.leaks(), []);
}

/// Weights that stay beside two places for those that do not.
#[test]
fn some_weights_stay() {
    let simulator = Simulator::new().unwrap();
    let demand = demand();
    let half = demand.parameters + demand.step + 2 * demand.largest + demand.weights / 3;
    simulator.set_memory(usize::try_from(half + half / 16).unwrap());
    let processor = open(&simulator, "");
    processor.expect(&demand).unwrap();
    let layers = layers(&processor);
    let order: Vec<usize> = (0..LAYERS.len()).collect();
    simulator.clear_trace();
    for _ in 0..2 {
        pass(&processor, &layers, &order);
    }
    let copies = simulator.trace().iter().filter(|step| step.name == "aclrtMemcpyAsync").count();
    assert!((3..2 * LAYERS.len()).contains(&copies), "{copies}");
}

fn is_memory(error: &CoreError) -> bool {
    matches!(error, CoreError::Processor { kind: ProcessorProblem::Memory, .. })
}

/// What does not fit is refused before anything is there, with what takes the memory; without the functions for copies beside products all
/// weights must fit.
#[test]
fn demands_are_judged() {
    let simulator = Simulator::new().unwrap();
    simulator.set_memory(1 << 20);
    let processor = open(&simulator, "");
    let caches = CacheDemand { blocks: 2, heads: 4, kv_heads: 2, head_dim: 32, page: 64, pages: 10 };
    // Keys and values of ten pages of 64 positions, of two blocks and of one that grows, and parameters of channels.
    let cached = 3 * 2 * 10 * 64 * 64 + 2 * 2 * 2 * 2 * 64;
    let free = (1 << 20) - (1 << 20) / 32;
    let fitting = Demand { weights: 4096, largest: 4096, caches: Some(caches), ..Demand::default() };
    let rest = free - cached - 4096;
    processor.expect(&Demand { step: rest, ..fitting }).unwrap();
    let error = processor.expect(&Demand { step: rest + 1, ..fitting }).unwrap_err();
    assert!(is_memory(&error), "{error}");
    let words = error.to_string();
    for part in ["device 0", "1.0 MB free", "weights take 4.1 kB", "caches of 640 positions 246.8 kB"] {
        assert!(words.contains(part), "no {part:?} in {words}");
    }
    // A form without attention there takes nothing there.
    let elsewhere = CacheDemand { head_dim: 24, ..caches };
    processor.expect(&Demand { step: free - 4096, caches: Some(elsewhere), ..fitting }).unwrap();
    // More weights than the device holds go through two places, if there are the functions for it.
    let large = Demand { weights: 1 << 30, largest: 4096, ..Demand::default() };
    processor.expect(&large).unwrap();
    for function in ["aclrtMemcpyAsync", "aclrtMallocHost", "aclrtStreamWaitEvent"] {
        let error = open(&simulator, function).expect(&large).unwrap_err();
        assert!(is_memory(&error), "{function}: {error}");
    }
    let error = processor.expect(&Demand { largest: 1 << 20, ..large }).unwrap_err();
    assert!(error.to_string().contains("two places for weights"), "{error}");
    // Where the runtime does not tell its memory, nothing is judged.
    open(&simulator, "aclrtGetMemInfo").expect(&Demand { step: 1 << 40, ..large }).unwrap();
    processor.close().unwrap();
    assert_eq!(simulator.leaks(), []);
}

/// A cache grows by doubling, and to no more pages than a run was said to have.
#[test]
fn caches_grow_as_far_as_expected() {
    let simulator = Simulator::new().unwrap();
    let side = || ChannelCodes { scales: Array1::ones(32), zeros: Array1::zeros(32) };
    let form = CodeCacheForm { heads: 1, kv_heads: 1, head_dim: 32, page: 64, keys: side(), values: side() };
    let caches = CacheDemand { blocks: 1, heads: 1, kv_heads: 1, head_dim: 32, page: 64, pages: 5 };
    for (expected, room) in [(Some(caches), 5), (None, 8)] {
        let processor = open(&simulator, "");
        processor.expect(&Demand { caches: expected, ..Demand::default() }).unwrap();
        let mut cache = processor.code_cache(&form).unwrap().unwrap();
        for pages in 1..=5 {
            cache.reserve(pages).unwrap();
        }
        // Scales of keys and of values beside it.
        assert_eq!(simulator.count(Kind::DeviceBytes), 2 * room * 64 * 32 + 2 * 2 * 32, "{expected:?}");
        drop(cache);
        processor.close().unwrap();
    }
    assert_eq!(simulator.leaks(), []);
}
