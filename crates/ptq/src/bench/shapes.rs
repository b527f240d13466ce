//! Which products are measured.

use quant_graph::ModelSpec;
use std::str::FromStr;

/// Products of a linear: `tokens` rows times a weight `[outputs, inputs]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// What it is, for people.
    pub name: String,
    /// Rows of the activations.
    pub tokens: usize,
    /// Summed index.
    pub inputs: usize,
    /// Columns of the result.
    pub outputs: usize,
    /// How many of them a pass of the model makes.
    pub count: usize,
}

impl FromStr for Product {
    type Err = String;
    /// `MxKxN`: tokens, inputs, outputs.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<usize> = text.split('x').filter_map(|part| part.parse().ok()).collect();
        match parts[..] {
            [tokens, inputs, outputs]
                if text.split('x').count() == 3
                    && [tokens, inputs, outputs].iter().all(|n| (1..=1 << 16).contains(n)) =>
            {
                Ok(Self { name: text.to_owned(), tokens, inputs, outputs, count: 1 })
            }
            _ => Err("expected MxKxN, such as 2048x1536x8960: tokens, inputs, outputs, each from 1 to 65536"
                .into()),
        }
    }
}

/// What is measured together.
#[derive(Clone, Debug)]
pub struct Shapes {
    /// The products.
    pub products: Vec<Product>,
    /// Query heads, key heads and features of a head, where attention is measured.
    pub heads: Option<(usize, usize, usize)>,
    /// Whether the products are those of a whole model.
    pub is_model: bool,
    /// Rows of the head, not quantised; 0 where there is none.
    pub vocab: usize,
}

/// A published model: name, hidden, intermediate, query heads, key heads, blocks, vocabulary.
type Named = (&'static str, usize, usize, usize, usize, usize, usize);

/// Models whose shapes are known by name; heads have 128 features.
pub static NAMED: &[Named] = &[
    ("r1-distill-qwen-1.5b", 1536, 8960, 12, 2, 28, 151_936),
    ("r1-distill-qwen-7b", 3584, 18_944, 28, 4, 28, 152_064),
    ("r1-distill-qwen-14b", 5120, 13_824, 40, 8, 48, 152_064),
    ("qwq-32b", 5120, 27_648, 40, 8, 64, 152_064),
    ("llama-3-8b", 4096, 14_336, 32, 8, 32, 128_256),
    ("openpangu-1b", 1536, 6144, 12, 6, 26, 153_376),
    ("openpangu-7b", 4096, 12_800, 32, 8, 34, 153_376),
];

const TOKENS: usize = 2048;
const HEAD_DIM: usize = 128;

impl Shapes {
    /// Bare products.
    #[must_use]
    pub fn of(products: Vec<Product>) -> Self {
        Self { products, heads: None, is_model: false, vocab: 0 }
    }

    /// The linears of a published model at 2048 tokens.
    ///
    /// # Errors
    /// The names there are.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = NAMED.iter().find(|model| model.0 == name);
        let Some(&(_, hidden, intermediate, heads, kv_heads, layers, vocab)) = found else {
            let names: Vec<&str> = NAMED.iter().map(|model| model.0).collect();
            return Err(format!("expected one of {}", names.join(", ")));
        };
        let (query, kv) = (heads * HEAD_DIM, kv_heads * HEAD_DIM);
        let product = |name: &str, inputs, outputs| Product {
            name: name.to_owned(),
            tokens: TOKENS,
            inputs,
            outputs,
            count: layers,
        };
        Ok(Self {
            products: vec![
                product("qkv", hidden, query + 2 * kv),
                product("o", query, hidden),
                product("gate_up", hidden, 2 * intermediate),
                product("down", intermediate, hidden),
            ],
            heads: Some((heads, kv_heads, HEAD_DIM)),
            is_model: true,
            vocab,
        })
    }

    /// The linears of a model at 2048 tokens, those that have one input together.
    #[must_use]
    pub fn of_model(spec: &ModelSpec) -> Self {
        let block = spec.block(0);
        let product = |stage: &quant_graph::StageSpec| {
            let linears = block.linears.iter().filter(|l| l.id.site() == stage.site);
            Product {
                name: format!("{:?}", stage.site),
                tokens: TOKENS.min(spec.max_position_embeddings),
                inputs: stage.width,
                outputs: linears.map(|l| l.outputs).sum(),
                count: spec.layers,
            }
        };
        Self {
            products: block.stages.iter().map(product).collect(),
            heads: Some((spec.heads, spec.kv_heads, spec.head_dim)),
            is_model: true,
            vocab: spec.vocab,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_read() {
        let product: Product = "2048x1536x8960".parse().unwrap();
        assert_eq!((product.tokens, product.inputs, product.outputs), (2048, 1536, 8960));
        for bad in ["", "1x2", "1x2x3x4", "0x1x1", "axbxc", "1x1x99999999"] {
            assert!(bad.parse::<Product>().unwrap_err().contains("MxKxN"), "{bad}");
        }
    }

    /// Weights of the blocks, as the models' cards have them.
    #[test]
    fn named_models_have_their_sizes() {
        for (name, billions) in
            [("r1-distill-qwen-1.5b", 1.31), ("r1-distill-qwen-7b", 6.53), ("llama-3-8b", 6.98)]
        {
            let shapes = Shapes::named(name).unwrap();
            let weights: usize = shapes.products.iter().map(|p| p.count * p.inputs * p.outputs).sum();
            assert!((weights as f64 / 1e9 - billions).abs() < 0.02, "{name}: {weights}");
        }
        assert!(Shapes::named("gpt").unwrap_err().contains("qwq-32b"));
    }
}
