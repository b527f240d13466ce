//! When W8A8 pays on an Ascend NPU: an arithmetic-intensity model (Williams et al., "Roofline", 2009), from the rates of a hardware
//! profile. A prediction, not a measurement: it knows bytes, operations and the start of kernels, and nothing else of a device.

use super::Shapes;
use serde::{Deserialize, Serialize};

/// Rates of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What it is.
    pub name: String,
    /// Products of 16-bit floats, in 10^12 operations a second.
    pub fp16_tflops: f64,
    /// Products of bytes, in 10^12 operations a second.
    pub int8_tops: f64,
    /// Memory, in 10^9 bytes a second.
    pub bandwidth_gb: f64,
    /// The share of these rates that kernels reach, above 0 and at most 1.
    pub efficiency: f64,
    /// Microseconds that starting a kernel takes.
    pub launch_us: f64,
}

/// The text of the default profile.
pub const DEFAULT: &str = include_str!("ascend.yaml");

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let profile: Self = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
        let rates = [
            ("fp16_tflops", profile.fp16_tflops),
            ("int8_tops", profile.int8_tops),
            ("bandwidth_gb", profile.bandwidth_gb),
        ];
        if let Some((name, value)) = rates.iter().find(|(_, value)| !(*value > 0.0 && value.is_finite())) {
            return Err(format!("{name}: expected a number above 0, found {value}"));
        }
        if !(profile.efficiency > 0.0 && profile.efficiency <= 1.0) {
            return Err(format!(
                "efficiency: expected a number above 0 and at most 1, found {}",
                profile.efficiency
            ));
        }
        if !(profile.launch_us >= 0.0 && profile.launch_us.is_finite()) {
            return Err(format!("launch_us: expected a number of at least 0, found {}", profile.launch_us));
        }
        Ok(profile)
    }
}

/// What a linear is on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// 16-bit floats.
    Float,
    /// 8-bit weights and inputs, a kernel that quantises before each product.
    DiscreteDynamic,
    /// The same with the quantisation fused into the kernel before it.
    FusedDynamic,
    /// Fixed scales, fused.
    Static,
    /// 8-bit weights with 16-bit inputs.
    W8A16,
    /// 4-bit weights in groups of 128 with 16-bit inputs.
    W4A16,
}

/// All kinds but the one that the others are compared with.
pub const KINDS: [Kind; 5] =
    [Kind::DiscreteDynamic, Kind::FusedDynamic, Kind::Static, Kind::W8A16, Kind::W4A16];

impl Kind {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float => "BF16",
            Self::DiscreteDynamic => "W8A8 dynamic, discrete",
            Self::FusedDynamic => "W8A8 dynamic, fused",
            Self::Static => "W8A8 static",
            Self::W8A16 => "W8A16",
            Self::W4A16 => "W4A16 g128",
        }
    }

    /// Seconds of a linear of `k` inputs and `n` outputs on `m` tokens.
    fn seconds(self, profile: &Profile, (m, k, n): (f64, f64, f64)) -> f64 {
        let bandwidth = profile.bandwidth_gb * 1e9 * profile.efficiency;
        let launch = profile.launch_us * 1e-6;
        let (rate, weight, input) = match self {
            Self::Float => (profile.fp16_tflops, 2.0, 2.0),
            Self::DiscreteDynamic | Self::FusedDynamic | Self::Static => (profile.int8_tops, 1.0, 1.0),
            Self::W8A16 => (profile.fp16_tflops, 1.0, 2.0),
            // Scale and zero level of each group.
            Self::W4A16 => (profile.fp16_tflops, 0.5 + 4.0 / 128.0, 2.0),
        };
        let compute = 2.0 * m * k * n / (rate * 1e12 * profile.efficiency);
        let memory = (weight * k * n + input * m * k + 2.0 * m * n) / bandwidth;
        let quantise = match self {
            // 16-bit inputs are read, codes written; the product reads codes.
            Self::DiscreteDynamic => 3.0 * m * k / bandwidth + launch,
            _ => 0.0,
        };
        compute.max(memory) + launch + quantise
    }
}

/// Predicted times at one number of tokens.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Tokens of a pass: of a prompt, or a batch at decode.
    pub tokens: usize,
    /// Milliseconds of all linears and the head in 16-bit floats.
    pub float_ms: f64,
    /// By [`KINDS`], how many times as fast.
    pub speedups: Vec<f64>,
}

/// What was predicted.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// What this is.
    pub label: &'static str,
    /// From which rates.
    pub profile: Profile,
    /// What the columns of speed-ups are.
    pub kinds: Vec<&'static str>,
    /// By number of tokens.
    pub points: Vec<Point>,
    /// The fewest tokens from which on each kind is faster than 16-bit floats, and all larger ones too; none where it never is.
    pub pays_from: Vec<Option<usize>>,
    /// Published figures to hold it against; it was not fitted to them.
    pub published: &'static [&'static str],
}

/// Figures of others.
pub static PUBLISHED: &[&str] = &[
    "W8A16 on 910B: +16 % tokens/s",
    "W4A16: at most 1.48x",
    "openPangu W8A8 at prefill: 1.5x",
    "case study, W8A8KV8 with discrete dynamic quantisation: 1.4 to 1.9x slower than BF16",
];

/// Predicts the linears of a model, its head in 16-bit floats at one row for each request.
#[must_use]
pub fn predict(shapes: &Shapes, profile: &Profile) -> Prediction {
    let hidden = shapes.products.first().map_or(0, |p| p.inputs);
    let total = |kind: Kind, m: usize| -> f64 {
        let linears = shapes
            .products
            .iter()
            .map(|p| p.count as f64 * kind.seconds(profile, (m as f64, p.inputs as f64, p.outputs as f64)));
        // One row of logits: a prompt needs no more, and a batch hides behind its weights.
        linears.sum::<f64>() + Kind::Float.seconds(profile, (1.0, hidden as f64, shapes.vocab as f64))
    };
    let points: Vec<Point> = (0..=13)
        .map(|power| {
            let tokens = 1 << power;
            let float = total(Kind::Float, tokens);
            let speedups = KINDS.iter().map(|&kind| float / total(kind, tokens)).collect();
            Point { tokens, float_ms: 1e3 * float, speedups }
        })
        .collect();
    let pays_from = (0..KINDS.len())
        .map(|kind| {
            let from =
                points.iter().rposition(|point| point.speedups[kind] <= 1.0).map_or(0, |last| last + 1);
            points.get(from).map(|point| point.tokens)
        })
        .collect();
    Prediction {
        label: "prediction by arithmetic intensity, not a measurement",
        profile: profile.clone(),
        kinds: KINDS.iter().map(|kind| kind.name()).collect(),
        points,
        pays_from,
        published: PUBLISHED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default() -> Profile {
        Profile::parse(DEFAULT).unwrap()
    }

    #[test]
    fn limits_are_those_of_the_roofline() {
        let shapes = Shapes { vocab: 0, ..Shapes::named("qwq-32b").unwrap() };
        let ideal = Profile { launch_us: 0.0, ..default() };
        let prediction = predict(&shapes, &ideal);
        let at = |point: &Point, kind: Kind| point.speedups[KINDS.iter().position(|&k| k == kind).unwrap()];
        let (one, many) = (&prediction.points[0], &prediction.points[13]);
        // One token reads weights: half or a quarter of the bytes. Many tokens multiply: twice the rate, or the same.
        assert!((at(one, Kind::Static) - 2.0).abs() < 0.01 && (at(one, Kind::W4A16) - 3.76).abs() < 0.02);
        assert!((at(many, Kind::Static) - 2.0).abs() < 0.01 && (at(many, Kind::W8A16) - 1.0).abs() < 0.01);
        assert!(at(many, Kind::DiscreteDynamic) < at(many, Kind::FusedDynamic));
        assert!(prediction.pays_from.iter().take(3).all(|&from| from == Some(1)));
    }

    /// The start of a kernel that has little to do eats what codes gain.
    #[test]
    fn discrete_quantisation_of_small_models_does_not_pay_at_few_tokens() {
        let slow = Profile { launch_us: 40.0, ..default() };
        let prediction = predict(&Shapes::named("r1-distill-qwen-1.5b").unwrap(), &slow);
        assert!(prediction.points[0].speedups[0] < 1.0, "{prediction:?}");
        assert!(prediction.pays_from[0].is_some_and(|from| from > 1) && prediction.pays_from[1] == Some(1));
    }

    #[test]
    fn profiles_are_checked() {
        let changed = |from: &str, to: &str| Profile::parse(&DEFAULT.replace(from, to)).unwrap_err();
        assert!(changed("376", "0").contains("fp16_tflops"));
        assert!(changed("efficiency: 1.0", "efficiency: 1.5").contains("efficiency"));
        assert!(changed("launch_us: 5.0", "launch_us: -1").contains("launch_us"));
        assert!(changed("name:", "nam:").contains("nam"));
    }
}
