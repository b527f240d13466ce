//! A linear layer in `ndarray`, quantised and run with integer arithmetic.
//!
//! `cargo run --release --example integer_linear`

use ptq::core::matrix::round_matrix;
use ptq::core::operators::{Bias, DynamicNumerics, DynamicQuant, IntegerLinear, QuantMatmul};
use ptq::core::{Bits, Grid, Groups};
use ptq::kernels::{Compute, Cpu, Par, linear};
use ptq::ndarray::{Array1, Array2};
use std::error::Error;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let (tokens, inputs, outputs) = (256, 1536, 2048);
    let wave = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 2003) as f32 / 1001.5 - 1.0;
    let weight = Array2::from_shape_fn((outputs, inputs), |(i, j)| 0.05 * wave(i, j));
    let bias = Array1::from_shape_fn(outputs, |i| wave(i, 0));
    let x = Array2::from_shape_fn((tokens, inputs), |(i, j)| 3.0 * wave(j, i + 1));
    let par = Par::new(std::thread::available_parallelism().map_or(1, usize::from));

    // Weights: 8 bits around zero, a scale for every output.
    let rounded = round_matrix(&Grid::int8_sym(), None, Groups::Channel, weight.view())?;
    let quantized = IntegerLinear::from_matrix(&rounded, Bias::Float(bias.clone()))?;
    let cpu = Cpu::default();
    let prepared = cpu.prepare(&quantized, par)?;

    // Activations: every token by itself, as Ascend does it.
    let numerics = DynamicNumerics::Ascend { bits: Bits::new(8)? };
    let mut y = Array2::<f32>::zeros((tokens, outputs));
    let mut run = || -> Result<(), Box<dyn Error>> {
        let codes = cpu.quantize(&numerics, x.view(), par)?;
        Ok(prepared.forward(&codes, y.view_mut().into(), par)?)
    };
    run()?;
    let start = Instant::now();
    run()?;
    let integer = start.elapsed();

    let start = Instant::now();
    let want = linear(x.view(), weight.view(), Some(bias.view()), Compute::F32, par);
    let float = start.elapsed();
    let error = (&y - &want).mapv(|e| e * e).sum() / want.mapv(|v| v * v).sum();
    println!("relative error {:.2e}, {integer:.1?} against {float:.1?} in f32", error.sqrt());
    if error.sqrt() > 0.02 {
        return Err(format!("8 bits lose less than a hundredth: {}", error.sqrt()).into());
    }
    Ok(())
}
