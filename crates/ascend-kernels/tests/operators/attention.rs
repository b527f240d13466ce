//! Attention over a cache of codes.

use crate::npu::{Npu, halves};
use ascend_kernels::operators::{OneTokenAttention, Pages};
use ascend_sim::Switch;
use half::f16;
use quant_testkit::Numbers;

#[test]
pub(crate) fn attention_over_a_cache_of_codes() {
    let (batch, heads, kv, d, room) = (2, 4, 2, 32, 64);
    let lengths = [17, 64];
    let mut numbers = Numbers::new(8);
    let query: Vec<f32> =
        numbers.matrix(batch * heads, d, 1.0).iter().map(|&x| f16::from_f32(x).to_f32()).collect();
    let mut cache =
        || numbers.matrix(batch * kv * room, d, 127.0).iter().map(|&x| x as i8).collect::<Vec<_>>();
    let (key, value) = (cache(), cache());
    let scale: Vec<f32> = (0..kv * d).map(|i| f16::from_f32(0.01 + i as f32 * 1e-4).to_f32()).collect();
    let at = |b: usize, h: usize, token: usize, i: usize| ((b * kv + h) * room + token) * d + i;
    for (paged, rounded) in [(false, 0), (true, 0), (false, 1)] {
        let npu = Npu::new();
        npu.simulator.set(Switch::RoundAttention, rounded);
        let queries = npu.put(&halves(&query, f16::from_f32), &[batch, heads, 1, d]);
        let scales = npu.put(&halves(&scale, f16::from_f32), &[kv, d]);
        let (got, out) = npu.room::<f16>(&[batch, heads, 1, d]);
        // Pages of 32 tokens, the second half of each sequence before the first.
        let page = |codes: &[i8]| -> Vec<i8> {
            let mut pages = vec![0; codes.len()];
            for (b, h, token, i) in (0..batch * kv * room * d)
                .map(|n| (n / (kv * room * d), n / (room * d) % kv, n / d % room, n % d))
            {
                let block = b * 2 + 1 - token / 32;
                pages[((block * kv + h) * 32 + token % 32) * d + i] = codes[at(b, h, token, i)];
            }
            pages
        };
        let (keys, values) = if paged {
            (npu.put(&page(&key), &[4, kv, 32, d]), npu.put(&page(&value), &[4, kv, 32, d]))
        } else {
            (npu.put(&key, &[batch, kv, room, d]), npu.put(&value, &[batch, kv, room, d]))
        };
        let operator = OneTokenAttention {
            query: &queries,
            key: &keys,
            value: &values,
            key_scale: &scales,
            value_scale: &scales,
            key_offset: None,
            value_offset: None,
            pages: paged.then_some(Pages { table: &[1, 0, 3, 2], block: 32 }),
            lengths: &lengths,
            kv_heads: kv,
            scale: 1.0 / f64::from(d as u32).sqrt(),
            fast: false,
            out: &out,
        };
        npu.run(operator.prepare(&npu.device));
        let got = npu.get(&got);
        for (b, h) in (0..batch * heads).map(|n| (n / heads, n % heads)) {
            let head = h / (heads / kv);
            let number = |codes: &[i8], token: usize, i: usize| {
                f64::from(codes[at(b, head, token, i)]) * f64::from(scale[head * d + i])
            };
            let score = |t: usize| {
                (0..d).map(|i| f64::from(query[(b * heads + h) * d + i]) * number(&key, t, i)).sum::<f64>()
                    * operator.scale
            };
            let weights: Vec<f64> = (0..lengths[b]).map(|t| score(t).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..d {
                let want =
                    weights.iter().enumerate().map(|(t, w)| w * number(&value, t, i)).sum::<f64>() / total;
                // Values are below 1.7; each is rounded to f16, as are probabilities, in the worst of the simulated ways.
                let bound = 1.7 * 2.0_f64.powi(if rounded == 0 { -11 } else { -8 });
                let got = f64::from(got[(b * heads + h) * d + i].to_f32());
                assert!((got - want).abs() <= bound, "{paged} {rounded}: {got} {want}");
            }
        }
        // Lengths and pages are checked here, not on the device.
        for lengths in [&[65][..], &[0], &[1, 2, 3]] {
            assert!(OneTokenAttention { lengths, ..operator }.prepare(&npu.device).is_err(), "{lengths:?}");
        }
        let pages = Some(Pages { table: &[1, 0, 4, 2], block: 32 });
        assert!(OneTokenAttention { pages, ..operator }.prepare(&npu.device).is_err());
    }
}
