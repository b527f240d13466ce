use std::time::Instant;
use faer::linalg::matmul::{matmul, triangular};
use faer::{Accum, MatMut, MatRef};
use ndarray::Array2;
use quant_kernels::*;
fn fill(r: usize, c: usize, s: u32) -> Array2<f32> {
    let mut x = s;
    Array2::from_shape_simple_fn((r, c), || { x = x.wrapping_mul(1664525).wrapping_add(1013904223); (x >> 8) as f32 / 8388608.0 - 1.0 })
}
fn best(flops: f64, mut f: impl FnMut()) -> f64 {
    f();
    let mut b = f64::MAX;
    for _ in 0..4 { let t = Instant::now(); f(); b = b.min(t.elapsed().as_secs_f64()); }
    flops / b / 1e9
}
fn main() {
    for (m, k, n) in [(2048, 1536, 8960), (2048, 4096, 4096), (512, 1536, 1536), (1, 1536, 8960), (16, 1536, 8960)] {
        let (a, b) = (fill(m, k, 1), fill(n, k, 2));
        let fl = 2.0 * (m * n * k) as f64;
        for t in [1, 2] {
            let par = Par::new(t);
            let mut c = Array2::<f32>::zeros((m, n));
            let fp = if t == 1 { faer::Par::Seq } else { faer::Par::rayon(t) };
            let f = best(fl, || matmul(MatMut::from_row_major_slice_mut(c.as_slice_mut().unwrap(), m, n), Accum::Replace, MatRef::from_row_major_slice(a.as_slice().unwrap(), m, k), MatRef::from_row_major_slice(b.as_slice().unwrap(), n, k).transpose(), 1.0f32, fp));
            let o = best(fl, || linear_into(a.view(), b.view(), None, c.view_mut(), Compute::F32, par));
            let w = PreparedWeight::new(b.view(), Compute::F32);
            let p = best(fl, || w.forward_into(a.view(), None, c.view_mut(), par));
            let h = best(fl, || linear_into(a.view(), b.view(), None, c.view_mut(), Compute::Bf16, par));
            let w = PreparedWeight::new(b.view(), Compute::Bf16);
            let hp = best(fl, || w.forward_into(a.view(), None, c.view_mut(), par));
            println!("{m}x{k}x{n} t{t}: faer {f:.0} ours {o:.0} prep {p:.0} bf16 {h:.0} prep {hp:.0}");
        }
    }
    for (k, n) in [(8192, 1536), (2048, 8960)] {
        let x = fill(k, n, 1);
        let xt = x.t().as_standard_layout().into_owned();
        let fl = 2.0 * (k * n * n) as f64;
        for t in [1, 2] {
            let par = Par::new(t);
            let mut c = Array2::<f32>::zeros((n, n));
            let fp = if t == 1 { faer::Par::Seq } else { faer::Par::rayon(t) };
            let f = best(fl, || {
                let xx = MatRef::from_row_major_slice(xt.as_slice().unwrap(), n, k);
                triangular::matmul(MatMut::from_row_major_slice_mut(c.as_slice_mut().unwrap(), n, n), triangular::BlockStructure::TriangularLower, Accum::Add, xx, triangular::BlockStructure::Rectangular, xx.transpose(), triangular::BlockStructure::Rectangular, 1.0f32, fp)
            });
            let o = best(fl, || gram_lower(c.view_mut(), 1.0, x.view(), Compute::F32, par));
            let h = best(fl, || gram_lower(c.view_mut(), 1.0, x.view(), Compute::Bf16, par));
            println!("gram {k}x{n} t{t}: faer {f:.0} ours {o:.0} bf16 {h:.0}");
        }
    }
}
