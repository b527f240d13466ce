//! Codes of activations.

use ndarray::{Array1, Array2, ArrayView2};
use quant_core::operators::{
    DynamicNumerics, DynamicQuant as DynamicQuantiser, QuantizedActivations, StaticNumerics,
    StaticQuant as StaticQuantiser,
};
use quant_core::{Bits, CoreError, Par, ProcessorProblem, QParams};

use super::{Processor, Shared};
use crate::cann::locked;
use crate::error::Result;
use crate::layout::unpack_int4;
use crate::memory::DeviceBuffer;
use crate::operators::{DynamicQuant, Round, StaticQuant};
use crate::tensor::Tensor;

impl Shared {
    /// Codes of finite rows of the model's type, with the scale of each.
    fn quantize_rows(&self, rows: &Array2<f32>, four: bool) -> Result<(Vec<i8>, Vec<f32>)> {
        let (m, k) = rows.dim();
        let x = self.numbers(rows.iter().copied(), &[m, k])?;
        let scales = DeviceBuffer::<f32>::new(&self.device, m)?;
        let scale = Tensor::new(&scales, &[m])?;
        let launch = |codes: &Tensor| -> Result<_> {
            let stream = locked(&self.stream);
            let operator = DynamicQuant { x: &x, smooth: None, codes, scale: &scale, offset: None };
            operator.prepare(&self.device)?.launch(&stream)?;
            Ok(stream)
        };
        if four {
            let bytes = DeviceBuffer::<u8>::new(&self.device, m * k / 2)?;
            let stream = launch(&Tensor::int4(&bytes, &[m, k])?)?;
            Ok((unpack_int4(&bytes.read(&stream)?), scales.read(&stream)?))
        } else {
            let codes = DeviceBuffer::<i8>::new(&self.device, m * k)?;
            let stream = launch(&Tensor::new(&codes, &[m, k])?)?;
            Ok((codes.read(&stream)?, scales.read(&stream)?))
        }
    }
}

impl DynamicQuantiser for Processor {
    fn quantize(
        &self,
        numerics: &DynamicNumerics,
        x: ArrayView2<'_, f32>,
        _par: Par,
    ) -> Result<QuantizedActivations, CoreError> {
        let bits = numerics.bits().get();
        let ascend = matches!(numerics, DynamicNumerics::Ascend { .. });
        if !ascend || !matches!(bits, 4 | 8) {
            return Err(CoreError::Processor {
                message: format!(
                    "CANN quantises activations by Ascend's arithmetic to 8 or 4 bits alone, not by {numerics:?}"
                ),
                kind: ProcessorProblem::Unavailable,
            });
        }
        let (m, k) = x.dim();
        let x = x.mapv(|x| self.shared.model.float().round(x));
        let top = if bits == 4 { 7.0_f32 } else { 127.0 };
        // Not documented on the device: no finite number, or none whose reciprocal is finite.
        let on_host = |row: &[f32]| {
            let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            row.iter().any(|x| !x.is_finite()) || (largest > 0.0 && (top / largest).is_infinite())
        };
        let rows: Vec<Vec<f32>> = x.rows().into_iter().map(|row| row.to_vec()).collect();
        let host: Vec<bool> = rows.iter().map(|row| on_host(row)).collect();
        // Codes of four bits come in pairs; a zero more changes no scale.
        let width = if bits == 4 { k.next_multiple_of(2) } else { k };
        let mut codes = Array2::zeros((m, k));
        let mut scales = vec![0.0; m];
        if m > 0 && k > 0 && host.contains(&false) {
            let device =
                Array2::from_shape_fn((m, width), |(i, j)| if host[i] || j >= k { 0.0 } else { x[(i, j)] });
            let (found, found_scales) = self.shared.quantize_rows(&device, bits == 4)?;
            codes = Array2::from_shape_fn((m, k), |(i, j)| found[i * width + j]);
            scales = found_scales;
        }
        for (i, row) in rows.iter().enumerate() {
            if host[i] || k == 0 {
                let mut into = vec![0; k];
                scales[i] = numerics.token(row, &mut into).scale;
                codes.row_mut(i).assign(&Array1::from(into));
            }
        }
        Ok(QuantizedActivations { codes, scales: scales.into(), zeros: None })
    }
}

impl StaticQuantiser for Processor {
    fn quantize_static(
        &self,
        numerics: StaticNumerics,
        bits: Bits,
        params: QParams,
        x: ArrayView2<'_, f32>,
        _par: Par,
    ) -> Result<QuantizedActivations, CoreError> {
        let float = self.shared.model.float();
        if numerics != (StaticNumerics::Ascend { model: float }) || bits.get() != 8 {
            return Err(CoreError::Processor {
                message: format!(
                    "CANN quantises activations under a fixed scale by Ascend's arithmetic in {} to 8 bits alone, not by \
                     {numerics:?} to {} bits",
                    float.name(),
                    bits.get()
                ),
                kind: ProcessorProblem::Unavailable,
            });
        }
        let x = x.mapv(|x| float.round(x));
        let factor = float.round(1.0 / params.scale);
        // No code stands for what is not finite, and what the device makes of it is not documented.
        if x.is_empty() || !factor.is_finite() || x.iter().any(|x| !x.is_finite()) {
            return Ok(numerics.quantize(bits, params, x.view()));
        }
        let zero = params.zero - bits.mid_level();
        let found = self.shared.quantize_fixed(&x, factor, zero)?;
        let columns = x.ncols();
        Ok(QuantizedActivations {
            codes: Array2::from_shape_fn(x.dim(), |(i, j)| found[i * columns + j]),
            scales: Array1::from_elem(1, params.scale),
            zeros: (zero != 0.0).then(|| Array1::from_elem(1, zero as i32)),
        })
    }
}

impl Shared {
    /// Codes of finite rows of the model's type under a reciprocal scale and a zero code of all.
    fn quantize_fixed(&self, rows: &Array2<f32>, factor: f32, zero: f32) -> Result<Vec<i8>> {
        let (m, k) = rows.dim();
        let x = self.numbers(rows.iter().copied(), &[m, k])?;
        let scale = self.numbers([factor], &[1])?;
        let offset = if zero == 0.0 { None } else { Some(self.numbers([zero], &[1])?) };
        let codes = DeviceBuffer::<i8>::new(&self.device, m * k)?;
        let out = Tensor::new(&codes, &[m, k])?;
        let operator =
            StaticQuant { x: &x, scale: &scale, offset: offset.as_ref(), round: Round::Nearest, codes: &out };
        let stream = locked(&self.stream);
        operator.prepare(&self.device)?.launch(&stream)?;
        codes.read(&stream)
    }
}
