//! The backward of the whole block, in every family: against finite differences in f64, and what may not change a bit.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

mod refusals;

use crate::common::{config_with, spec};
use ndarray::{Array1, Array2, Axis, array};
use quant_core::{AxisTransform, OnlineKind, OnlineTransform, PairTransform};
use quant_graph::{
    BlockGradients, BlockParams, BlockTraining, BoxError, EffectiveWeight, EffectiveWeights, Insert,
    LinearId, LinearWeight, ModelSpec, NoInsert, Online, Site, Spot,
};
use quant_kernels::{Compute, Element, Par};
use quant_model::{Block, BlockTrainer, BlockWindow, Precision, RopeTable, model_spec, training_memory};
use quant_testkit::{Numbers, random_block};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every way in which families differ: biases and groups, norms of heads, fused linears with rope on part of the head, a
/// window, biases everywhere.
fn specs() -> Vec<ModelSpec> {
    let phi3 = json!({ "partial_rotary_factor": 0.5, "num_key_value_heads": 4 });
    let mistral = json!({ "sliding_window": 9 });
    vec![
        spec("Qwen2ForCausalLM"),
        spec("Qwen3ForCausalLM"),
        model_spec(&config_with("Phi3ForCausalLM", phi3)).unwrap(),
        model_spec(&config_with("MistralForCausalLM", mistral)).unwrap(),
        spec("PanguEmbeddedForCausalLM"),
        spec("LlamaForCausalLM"),
    ]
}

/// A block without linears, and their weights.
struct Case<T: Element> {
    block: Block<T>,
    weights: BTreeMap<LinearId, (Array2<T>, Option<Array1<T>>)>,
    tables: BTreeMap<usize, RopeTable<T>>,
    starts: Vec<usize>,
    x: Array2<T>,
    /// The loss is the sum of the output times this.
    cost: Array2<T>,
}

/// Pieces that a block can multiply by, none of them its own transpose: channels dealt out, and pairs of them sheared.
fn online(spec: &ModelSpec) -> Online {
    let shear = |width: usize, matrix: Array2<f32>| {
        OnlineTransform::kronecker(vec![AxisTransform::Identity(width / 2), AxisTransform::Dense(matrix)])
            .unwrap()
    };
    let site = |site: Site| {
        let width = spec.site_width(site);
        let order = (0..width as u32).map(|at| (at + 1) % width as u32).collect();
        let dealt = OnlineTransform::new(OnlineKind::Permutation(order)).unwrap();
        let chain = OnlineTransform::chain(vec![shear(width, array![[1.0, 0.5], [0.0, 0.75]]), dealt]);
        (site, Arc::new(chain.unwrap()))
    };
    let (key, query) = (array![[1.0, 0.5], [0.0, 1.0]], array![[1.0, 0.0], [-0.5, 1.0]]);
    let [key, query] = [key, query].map(|matrix| shear(spec.head_dim, matrix));
    let sites = [Site::AttentionInput, Site::AttentionOutput, Site::MlpActivation].map(site).into();
    Online { sites, pair: Some(Arc::new(PairTransform::new(key, query).unwrap())) }
}

impl<T: Element> Case<T> {
    fn new(spec: &ModelSpec, lengths: &[usize], seed: u64) -> Self {
        Self::with_online(spec, lengths, seed, Online::default())
    }

    fn with_online(spec: &ModelSpec, lengths: &[usize], seed: u64, online: Online) -> Self {
        let numbers = &mut Numbers::new(seed);
        let params = BlockParams { online, ..random_block(spec, numbers) };
        let weights = params.linears.iter().map(|(id, linear)| {
            let LinearWeight::Float(weight) = &linear.weight else { panic!("float") };
            (*id, (weight.mapv(T::from_f32), linear.bias.as_ref().map(|b| b.mapv(T::from_f32))))
        });
        let weights = weights.collect();
        let mut starts = vec![0];
        starts.extend(lengths.iter().scan(0, |end, n| {
            *end += n;
            Some(*end)
        }));
        let tokens = starts[lengths.len()];
        let mut random = || numbers.matrix(tokens, spec.hidden, 1.0).mapv(T::from_f32);
        let table = |n| RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, n);
        Self {
            x: random(),
            cost: random(),
            block: Block::new(spec, 0, without_linears(params), Compute::F32, Par::Seq).unwrap(),
            weights,
            tables: lengths.iter().map(|n| (*n, table(*n))).collect(),
            starts,
        }
    }

    fn effective(&self) -> EffectiveWeights<'_, T> {
        self.weights
            .iter()
            .map(|(id, (weight, bias))| {
                (*id, EffectiveWeight { weight: weight.view(), bias: bias.as_ref().map(|b| b.view()) })
            })
            .collect()
    }

    /// Runs something with a trainer that has no weights of its own.
    fn with_trainer<R>(&self, run: impl FnOnce(BlockTrainer<'_, T>) -> R) -> R {
        let rope = |n| &self.tables[&n];
        run(BlockTrainer::new(&self.block, &rope, EffectiveWeights::new()).unwrap())
    }

    fn loss(&self, x: &Array2<T>, with: &EffectiveWeights<'_, T>, insert: &Channels<T>) -> T {
        let mut insert = insert.clone();
        let y = self.with_trainer(|trainer| {
            trainer.forward(x.view(), &self.starts, with, &mut insert, Par::Seq).unwrap()
        });
        (&y * &self.cost).sum()
    }

    fn gradients(&self, insert: &mut dyn Insert<T>, memory: Option<usize>, par: Par) -> BlockGradients<T> {
        self.with_trainer(|trainer| {
            let trainer = match memory {
                Some(bytes) => trainer.with_memory(bytes),
                None => trainer,
            };
            let with = self.effective();
            let (_, tape) = trainer.record(self.x.view(), &self.starts, &with, insert, par).unwrap();
            tape.backward(self.cost.clone(), insert, par).unwrap()
        })
    }
}

fn without_linears(params: BlockParams) -> BlockParams {
    BlockParams { linears: BTreeMap::new(), ..params }
}

/// Learnable factors and summands of channels at some spots: `y = f x + x² s`, so that the gradient is not that of a constant
/// factor alone.
#[derive(Clone)]
struct Channels<T> {
    factors: BTreeMap<Spot, Array1<T>>,
    gradients: BTreeMap<Spot, Array1<T>>,
    tape: BTreeMap<Spot, Vec<Array2<T>>>,
    calls: Vec<(Spot, char)>,
}

impl<T: Element> Channels<T> {
    fn new(spec: &ModelSpec, seed: u64) -> Self {
        let numbers = &mut Numbers::new(seed);
        let mut spots: Vec<(Spot, usize)> =
            Site::ALL.into_iter().map(|site| (Spot::Site(site), spec.site_width(site))).collect();
        spots.extend(spec.block(0).linears.iter().map(|l| (Spot::Linear(l.id), l.inputs)));
        spots.extend([(Spot::Query, spec.query_width()), (Spot::Key, spec.kv_width())]);
        spots.push((Spot::Value, spec.kv_width()));
        let factors =
            spots.into_iter().map(|(spot, n)| (spot, numbers.vector(n, 1.0, 0.3).mapv(T::from_f32)));
        Self {
            factors: factors.collect(),
            gradients: BTreeMap::new(),
            tape: BTreeMap::new(),
            calls: Vec::new(),
        }
    }
}

fn bend<T: Element>() -> T {
    T::from_f64(0.1)
}

impl<T: Element> Insert<T> for Channels<T> {
    fn covers(&self, spot: Spot) -> bool {
        self.factors.contains_key(&spot)
    }
    fn forward(&mut self, spot: Spot, x: Array2<T>, keep: bool, _: Par) -> Result<Array2<T>, BoxError> {
        self.calls.push((spot, if keep { 'k' } else { 'f' }));
        let y = &x * &self.factors[&spot] + x.mapv(|x| x * x * bend());
        if keep {
            self.tape.entry(spot).or_default().push(x);
        }
        Ok(y)
    }
    fn backward(&mut self, spot: Spot, grad: Array2<T>, _: Par) -> Result<Array2<T>, BoxError> {
        self.calls.push((spot, 'b'));
        let x = self.tape.get_mut(&spot).and_then(Vec::pop).ok_or("nothing was kept")?;
        let own = (&x * &grad).sum_axis(Axis(0));
        match self.gradients.get_mut(&spot) {
            Some(sum) => *sum += &own,
            None => drop(self.gradients.insert(spot, own)),
        }
        Ok(grad * (x.mapv(|x| (x + x) * bend()) + &self.factors[&spot]))
    }
}

/// Central differences of two steps, combined so that their fourth-order error goes.
fn slope(loss: impl Fn(f64) -> f64) -> f64 {
    let central = |h: f64| (loss(h) - loss(-h)) / (2.0 * h);
    (4.0 * central(2.5e-4) - central(5e-4)) / 3.0
}

fn close(got: f64, want: f64, what: &str) {
    assert!((got - want).abs() <= 1e-6 * want.abs().max(1e-2), "{what}: {got} is not {want}");
}

#[test]
fn every_gradient_of_every_family() {
    let plain = specs().into_iter().map(|spec| (spec, Online::default()));
    let transformed = specs().into_iter().take(3).map(|spec| (spec.clone(), online(&spec)));
    for (i, (spec, online)) in plain.chain(transformed).enumerate() {
        let (spec, numbers) = (&spec, &mut Numbers::new(100 + i as u64));
        let case = Case::<f64>::with_online(spec, &[17, 1, 6], i as u64, online);
        let insert = Channels::new(spec, 7);
        let mut seen = insert.clone();
        let got = case.gradients(&mut seen, None, Par::Seq);
        assert!(seen.tape.values().all(Vec::is_empty));
        let name = &spec.family;

        let direction = numbers.matrix(case.x.nrows(), spec.hidden, 1.0).mapv(f64::from);
        let with = case.effective();
        let want = slope(|step| case.loss(&(&case.x + &direction * step), &with, &insert));
        close((&got.input * &direction).sum(), want, &format!("{name}, input"));

        assert!(got.weights.keys().eq(case.weights.keys()));
        for (id, (weight, bias)) in &case.weights {
            let moved = |weight: Array2<f64>, bias: Option<Array1<f64>>| {
                let mut with = case.effective();
                let bias = bias.as_ref().map(|b| b.view());
                with.insert(*id, EffectiveWeight { weight: weight.view(), bias });
                case.loss(&case.x, &with, &insert)
            };
            let direction = numbers.matrix(weight.nrows(), weight.ncols(), 1.0).mapv(f64::from);
            let want = slope(|step| moved(weight + &direction * step, bias.clone()));
            close((&got.weights[id].weight * &direction).sum(), want, &format!("{name}, weight of {id}"));
            assert_eq!(got.weights[id].bias.is_some(), bias.is_some());
            if let (Some(bias), Some(got)) = (bias, &got.weights[id].bias) {
                let direction = numbers.vector(bias.len(), 0.0, 1.0).mapv(f64::from);
                let want = slope(|step| moved(weight.clone(), Some(bias + &direction * step)));
                close((got * &direction).sum(), want, &format!("{name}, bias of {id}"));
            }
        }

        for (spot, factors) in &insert.factors {
            let direction = numbers.vector(factors.len(), 0.0, 1.0).mapv(f64::from);
            let want = slope(|step| {
                let mut moved = insert.clone();
                moved.factors.insert(*spot, factors + &direction * step);
                case.loss(&case.x, &with, &moved)
            });
            close((&seen.gradients[spot] * &direction).sum(), want, &format!("{name}, {spot:?}"));
        }
    }
}

/// What stands in the block is asked in the order of the data flow, and back in the opposite one.
#[test]
fn spots_in_order() {
    let spec = spec("Qwen2ForCausalLM");
    let case = Case::<f32>::new(&spec, &[5], 1);
    let mut insert = Channels::new(&spec, 2);
    case.gradients(&mut insert, None, Par::Seq);
    let linears = |site: Site| spec.block(0).at(site).iter().map(|id| Spot::Linear(*id)).collect::<Vec<_>>();
    let mut order = Vec::new();
    for site in Site::ALL {
        order.push(Spot::Site(site));
        order.extend(linears(site));
        if site == Site::AttentionInput {
            order.extend([Spot::Query, Spot::Key, Spot::Value]);
        }
    }
    let forward = order.iter().map(|spot| (*spot, 'k'));
    let expected: Vec<_> = forward.chain(order.iter().rev().map(|spot| (*spot, 'b'))).collect();
    assert_eq!(insert.calls, expected);
}

fn check_forward<T: Element>() {
    let plain = specs().into_iter().map(|spec| (spec, Online::default()));
    let transformed = specs().into_iter().take(3).map(|spec| (spec.clone(), online(&spec)));
    for (spec, online) in plain.chain(transformed) {
        // More than a tile of queries, of keys, and than the rows that Block::forward takes through the MLP together.
        let case = Case::<T>::with_online(&spec, &[600, 3], 3, online.clone());
        let params = BlockParams { online, ..random_block(&spec, &mut Numbers::new(3)) };
        let block = Block::<T>::new(&spec, 0, params, Compute::F32, Par::Seq).unwrap();
        let with = case.effective();
        let (forward, recorded) = case.with_trainer(|trainer| {
            let x = case.x.view();
            let forward = trainer.forward(x, &case.starts, &with, &mut NoInsert, Par::Seq).unwrap();
            (forward, trainer.record(x, &case.starts, &with, &mut NoInsert, Par::new(3)).unwrap().0)
        });
        assert_eq!(forward, recorded);
        for ends in case.starts.windows(2) {
            let rows: Vec<usize> = (ends[0]..ends[1]).collect();
            let alone = case.x.select(Axis(0), &rows);
            let alone = block.forward(alone, &case.tables[&rows.len()], Par::Seq).unwrap();
            assert_eq!(forward.select(Axis(0), &rows), alone, "{}", spec.family);
        }
    }
}

#[test]
fn a_forward_has_the_bits_of_the_block() {
    check_forward::<f32>();
    check_forward::<f64>();
}

#[test]
fn threads_and_memory_change_no_bit() {
    for spec in specs() {
        // Pieces of 1500, of 900, 700 and 40, and of 1000 tokens.
        let lengths = [1500, 900, 700, 40, 1000];
        let case = Case::<f32>::new(&spec, &lengths, 4);
        let mut seen = Channels::new(&spec, 5);
        let all = case.gradients(&mut seen, None, Par::Seq);
        assert!(all.input.iter().all(|x| x.is_finite()));
        // All but one byte: the first piece stays, the others are made again.
        let tape = |bound| training_memory::<f32>(&spec, &lengths, bound).tape;
        let bound = tape(None) - 1;
        assert!(tape(Some(bound)) <= bound && tape(Some(0)) < tape(Some(bound)));
        for (memory, par, passes) in
            [(None, Par::new(3), 0), (Some(0), Par::Seq, 3), (Some(bound), Par::new(2), 2)]
        {
            let mut again = Channels::new(&spec, 5);
            let got = case.gradients(&mut again, memory, par);
            assert_eq!(got, all, "{}, {memory:?}, {par}", spec.family);
            assert_eq!(again.gradients, seen.gradients);
            assert!(again.tape.values().all(Vec::is_empty));
            let twice = again.calls.iter().filter(|call| **call == (Spot::Query, 'f')).count();
            assert_eq!(twice, passes, "made again where there is no room");
        }
    }
}

#[test]
fn f32_stays_close_to_f64() {
    for spec in specs() {
        let (narrow, wide) = (Case::<f32>::new(&spec, &[60, 30], 6), Case::<f64>::new(&spec, &[60, 30], 6));
        let short = narrow.gradients(&mut Channels::new(&spec, 7), None, Par::Seq);
        let exact = wide.gradients(&mut Channels::new(&spec, 7), None, Par::Seq);
        let same = |a: &Array2<f32>, b: &Array2<f64>| {
            let error = (a.mapv(f64::from) - b).mapv(|x| x * x).sum() / b.mapv(|x| x * x).sum();
            assert!(error.sqrt() < 3e-6, "{}: {}", spec.family, error.sqrt());
        };
        same(&short.input, &exact.input);
        for (id, exact) in &exact.weights {
            same(&short.weights[id].weight, &exact.weight);
        }
    }
}

/// Frozen linears multiply as they are, and nobody forms their gradients.
#[test]
fn frozen_linears() {
    let spec = spec("Qwen3ForCausalLM");
    let case = Case::<f64>::new(&spec, &[20], 8);
    let all = case.gradients(&mut NoInsert, None, Par::Seq);
    let (rope, mut with) = (|n| &case.tables[&n], case.effective());
    let trainer = BlockTrainer::new(&case.block, &rope, case.effective()).unwrap();
    with.retain(|id, _| *id == LinearId::K || *id == LinearId::UP);
    let (_, tape) = trainer.record(case.x.view(), &case.starts, &with, &mut NoInsert, Par::Seq).unwrap();
    let some = tape.backward(case.cost.clone(), &mut NoInsert, Par::Seq).unwrap();
    assert_eq!(some.input, all.input);
    assert_eq!(some.weights.len(), 2);
    assert!(some.weights.iter().all(|(id, gradient)| *gradient == all.weights[id]));
}

#[test]
fn a_loss_behind_several_blocks() {
    let spec = spec("Qwen2ForCausalLM");
    let (first, second) = (Case::<f64>::new(&spec, &[9], 9), Case::<f64>::new(&spec, &[9], 10));
    let through = |x: &Array2<f64>| {
        let run = |case: &Case<f64>, x: &Array2<f64>| {
            case.with_trainer(|t| {
                t.forward(x.view(), &case.starts, &case.effective(), &mut NoInsert, Par::Seq).unwrap()
            })
        };
        (&run(&second, &run(&first, x)) * &second.cost).sum()
    };
    let rope = |n| &first.tables[&n];
    let [one, two] =
        [&first, &second].map(|case| BlockTrainer::new(&case.block, &rope, case.effective()).unwrap());
    let none = EffectiveWeights::new();
    let (h, tape) = one.record(first.x.view(), &first.starts, &none, &mut NoInsert, Par::Seq).unwrap();
    let (_, next) = two.record(h.view(), &first.starts, &none, &mut NoInsert, Par::Seq).unwrap();
    let grad = next.backward(second.cost.clone(), &mut NoInsert, Par::Seq).unwrap().input;
    let grad = tape.backward(grad, &mut NoInsert, Par::Seq).unwrap().input;
    let direction = Numbers::new(11).matrix(9, spec.hidden, 1.0).mapv(f64::from);
    close((&grad * &direction).sum(), slope(|step| through(&(&first.x + &direction * step))), "two blocks");

    // The same as one window, with the weights of the first trained.
    let window = BlockWindow::new(one, vec![two]);
    let with = first.effective();
    let forward = window.forward(first.x.view(), &first.starts, &with, &mut NoInsert, Par::Seq).unwrap();
    let (y, tape) = window.record(first.x.view(), &first.starts, &with, &mut NoInsert, Par::Seq).unwrap();
    assert_eq!((&forward * &second.cost).sum(), through(&first.x));
    assert_eq!(y, forward);
    let gradients = tape.backward(second.cost.clone(), &mut NoInsert, Par::Seq).unwrap();
    assert_eq!(gradients.input, grad);
    assert_eq!(gradients.weights.len(), with.len());
}

#[test]
fn rounded_passes() {
    let spec = spec("Qwen2ForCausalLM");
    let case = Case::<f32>::new(&spec, &[40], 12);
    let rope = |n| &case.tables[&n];
    let with = case.effective();
    let run = |precision: Precision, scale: f32| {
        let trainer = BlockTrainer::new(&case.block, &rope, EffectiveWeights::new()).unwrap();
        let trainer = trainer.with_precision(precision);
        let x = case.x.mapv(|x| x * scale);
        let (y, tape) = trainer.record(x.view(), &case.starts, &with, &mut NoInsert, Par::Seq).unwrap();
        let gradients = tape.backward(case.cost.clone(), &mut NoInsert, Par::Seq).unwrap();
        (y, gradients)
    };
    let (exact, full) = run(Precision::Full, 1.0);
    type Round = fn(f32) -> f32;
    let bf16: Round = |x| half::bf16::from_f32(x).to_f32();
    let fp16: Round = |x| half::f16::from_f32(x).to_f32();
    for (precision, round, most) in [(Precision::Bf16, bf16, 0.03), (Precision::Fp16, fp16, 0.004)] {
        let (y, gradients) = run(precision, 1.0);
        let mut pairs = vec![(&y, &exact), (&gradients.input, &full.input)];
        pairs.extend(full.weights.iter().map(|(id, full)| (&gradients.weights[id].weight, &full.weight)));
        for (rounded, exact) in pairs {
            assert!(rounded.iter().all(|x| round(*x) == *x));
            let size = exact.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let worst = (rounded - exact).iter().fold(0.0_f32, |m, x| m.max(x.abs())) / size;
            assert!(worst > 0.0 && worst < most, "{precision:?}: {worst}");
        }
    }
    // A residual stream that half precision cannot hold.
    assert!(run(Precision::Bf16, 1e5).0.iter().all(|x| x.is_finite()));
    assert!(run(Precision::Fp16, 1e5).0.iter().any(|x| !x.is_finite()));
}

#[test]
fn an_empty_batch() {
    let case = Case::<f32>::new(&spec("Qwen3ForCausalLM"), &[], 13);
    let gradients = case.gradients(&mut NoInsert, Some(0), Par::Seq);
    assert_eq!(gradients.input.dim(), (0, 32));
    assert_eq!(gradients.weights[&LinearId::DOWN].weight, Array2::<f32>::zeros((32, 48)));
    let case = Case::<f32>::new(&spec("Qwen3ForCausalLM"), &[0, 4, 0], 13);
    assert_eq!(case.gradients(&mut NoInsert, Some(0), Par::Seq).input.dim(), (4, 32));
}
