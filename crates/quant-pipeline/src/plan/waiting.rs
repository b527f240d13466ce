//! In what form the inputs of o and down wait for those who read them.

use super::{MEASURED, Plan};
use quant_graph::Site;
use quant_kernels::Compute;
use quant_methods::Statistic;

/// A stream of fewer chunks saves less than the copies of a chunk take.
const LEAST_CHUNKS: usize = 8;

impl Plan {
    /// Whether the inputs of o and down of all tokens wait as bfloat16, of which every so manyth row is kept in f32 too (the number
    /// that is returned): half the bytes, and no bit of a result changes. That is so if
    ///
    /// - products round their operands to bf16, and so do statistics, so that stages and second moments see the same numbers,
    /// - inputs are not quantised while calibration runs: that would be of numbers that were rounded before,
    /// - nothing else is gathered of the stored inputs than second moments and the sample of [`MEASURED`], whose rows are those
    ///   kept in f32 (with `true_sequential: false` nothing at all is: the pass that gathers has its own), and
    /// - tokens are many enough, `rows` in chunks of at most `chunk`.
    pub(crate) fn rounds_waiting(&self, rows: usize, chunk: usize) -> Option<usize> {
        let long = chunk > 0 && rows >= LEAST_CHUNKS * chunk;
        let products = self.recipe.compute() == Compute::Bf16 && !self.recipe.activations().in_calibration;
        if !(long && products && self.streams.deployed) {
            return None;
        }
        let rounded = self.recipe.statistics() == Compute::Bf16;
        let known = |statistic: &Statistic| {
            matches!(statistic, Statistic::Gram) && rounded || *statistic == Statistic::Sample(MEASURED)
        };
        let only_known = |index: usize| {
            let spec = self.spec.block(index);
            let mut waiting =
                spec.stages.iter().filter(|s| matches!(s.site, Site::AttentionOutput | Site::MlpActivation));
            waiting.all(|stage| self.needs_at(index, stage).deployed.iter().all(known))
        };
        let gathered = !self.true_sequential() || (0..self.spec.layers).all(only_known);
        gathered.then(|| MEASURED.step(rows))
    }
}

#[cfg(test)]
mod tests {
    use crate::{Plan, Recipe, open_folder};

    fn exact(recipe: &str, rows: usize) -> Option<usize> {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-reasoner");
        let folder = open_folder(model.as_ref()).unwrap();
        let recipe = Recipe::parse(&format!("{{ version: 1, {recipe} }}")).unwrap();
        Plan::new(&recipe, &folder.spec).unwrap().rounds_waiting(rows, 1024)
    }

    #[test]
    fn rounded_where_nobody_sees_it() {
        let bf16 = |modifier: &str| exact(&format!("compute: bf16, modifiers: [{modifier}]"), 8192);
        assert_eq!(bf16("gptq: { scheme: W8A8 }"), Some(64));
        assert_eq!(bf16("gptq: { scheme: W4A16g32 }"), Some(64));
        assert_eq!(bf16("gptq: { scheme: W8A8, true_sequential: false }"), Some(64));
        // Everything is gathered ahead.
        assert_eq!(bf16("slim-llm: { scheme: W2A16g16 }"), Some(64));
        // In f32, of few tokens, without a deployed stream.
        assert_eq!(exact("modifiers: [gptq: { scheme: W8A8 }]", 8192), None);
        assert_eq!(exact("compute: bf16, modifiers: [gptq: { scheme: W8A8 }]", 8191), None);
        assert_eq!(bf16("rtn: { scheme: W8A8 }"), None);
        // Who looks at the numbers themselves: ranges, differences of both streams, quantisers.
        let fixed = "compute: bf16, modifiers: [gptq: { scheme: W8A8 }], activations: { dynamic: false }";
        assert_eq!(exact(&format!("{fixed}, export: {{ format: vllm-ascend }}"), 8192), None);
        let summed = |sums: &str, sequential: bool| {
            let gptq = format!("gptq: {{ scheme: W8A8, true_sequential: {sequential} }}");
            exact(&format!("compute: bf16, statistics: {sums}, modifiers: [{gptq}]"), 8192)
        };
        assert_eq!(summed("f32", true), None);
        assert_eq!(summed("bf16x2", true), None);
        assert_eq!(summed("f32", false), Some(64));
        assert_eq!(bf16("gptaq: { scheme: W4A16g32 }"), None);
        assert_eq!(bf16("qronos: { scheme: W4A16g32 }"), None);
        let quantised =
            "compute: bf16, modifiers: [gptq: { scheme: W8A8 }], activations: { in_calibration: true }";
        assert_eq!(exact(quantised, 8192), None);
    }
}
