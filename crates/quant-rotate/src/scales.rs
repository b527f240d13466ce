//! Scales of channels.

use ndarray::{Array1, ArrayView1};
use quant_core::elementary::pow_f32;

use crate::RotateError;

/// The smallest scale.
const FLOOR: f32 = 1e-5;

/// The factors by which FlatQuant multiplies activations at the beginning of training, `max(w^(1 - alpha) / x^alpha, 1e-5)` with the
/// largest magnitudes `w` of the columns of the weights and `x` of the channels of the activations: the inverse of SmoothQuant's.
///
/// ```
/// use quant_rotate::initial_scales;
/// use quant_rotate::ndarray::array;
///
/// let scales = initial_scales(array![4.0, 1.0].view(), array![16.0, 1.0].view(), 0.5)?;
/// assert_eq!(scales, array![0.5, 1.0]);
/// # Ok::<(), quant_rotate::RotateError>(())
/// ```
///
/// # Errors
/// [`RotateError::Shape`] for two lengths, [`RotateError::Setting`] for an `alpha` outside `0..=1`, [`RotateError::NotFinite`] where a scale
/// is no number, as for a channel that is always zero; bound its magnitude from below, as training does with 1e-5.
pub fn initial_scales(
    weight: ArrayView1<'_, f32>,
    activation: ArrayView1<'_, f32>,
    alpha: f32,
) -> Result<Array1<f32>, RotateError> {
    if weight.len() != activation.len() {
        return Err(RotateError::Shape {
            what: "magnitudes of activations",
            expected: weight.len().to_string(),
            found: activation.len().to_string(),
        });
    }
    if !(0.0..=1.0).contains(&alpha) {
        return Err(RotateError::Setting {
            name: "diag_alpha",
            value: alpha.to_string(),
            expected: "a number from 0 to 1",
        });
    }
    let scale = |(&w, &x): (&f32, &f32)| {
        let scale = pow_f32(w, 1.0 - alpha) / pow_f32(x, alpha);
        // A NaN stays one and is refused below.
        if scale < FLOOR { FLOOR } else { scale }
    };
    let scales: Array1<f32> = weight.iter().zip(activation).map(scale).collect();
    crate::dense::finite("initial scales", scales.iter())?;
    Ok(scales)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use quant_testkit::Golden;

    #[test]
    fn what_is_no_scale_is_refused() {
        let scales = |w: Array1<f32>, x: Array1<f32>, alpha| initial_scales(w.view(), x.view(), alpha);
        assert_eq!(scales(array![0.0], array![1.0], 0.3).unwrap(), array![FLOOR]);
        let error = scales(array![1.0, 1.0], array![1.0, 0.0], 0.3).unwrap_err().to_string();
        assert_eq!(error, "initial scales: entry 1 is inf, expected a finite number");
        assert!(scales(array![1.0], array![1.0, 1.0], 0.3).is_err());
        assert!(scales(array![1.0], array![1.0], 1.5).is_err());
    }

    #[test]
    fn the_golden_file() {
        let Some(golden) = Golden::shared("flatquant.safetensors") else { return };
        for (name, alpha) in [("init_scale.a0.3", 0.3), ("init_scale.a0.5", 0.5)] {
            let part = |part: &str| golden.vector(&format!("{name}.{part}"));
            let found = initial_scales(part("w_smax").view(), part("x_smax").view(), alpha).unwrap();
            for (found, want) in found.iter().zip(&part("scale")) {
                assert!((found - want).abs() <= 1e-6 * want, "{name}: {found} for {want}");
            }
        }
    }
}
