//! Some sequences on their way through a block, and back.

use super::linears::{Inputs, Parts};
use super::{BlockTrainer, Pass, WeightGradients};
use crate::ModelError;
use crate::block::flow::add;
use crate::ops::attention::{SoftmaxRows, causal_attention_into};
use crate::ops::attention_backward::{Attended, causal_attention_backward};
use crate::ops::mlp::{gated, gated_backward};
use crate::ops::norm::{norm_heads_backward, normed_backward};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use quant_graph::{Norm, Role, Site, Spot};
use quant_kernels::{Element, tasks, views};
use std::ops::Range;

/// The tape of one piece: whole sequences whose activations are there together.
#[derive(Debug)]
pub(super) struct Piece<T> {
    attention_inputs: Inputs<T>,
    /// Queries and keys before their norms, where the block has them.
    unnormed: [Option<Array2<T>>; 2],
    /// As attention met them.
    queries: Array2<T>,
    keys: Array2<T>,
    values: Array2<T>,
    rows: Vec<SoftmaxRows<T>>,
    attended: Array2<T>,
    output_inputs: Inputs<T>,
    /// The residual stream behind attention.
    middle: Array2<T>,
    mlp_inputs: Inputs<T>,
    gate: Array2<T>,
    up: Array2<T>,
    down_inputs: Inputs<T>,
}

#[cfg(test)]
impl<T> Piece<T> {
    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        let inputs = [&self.attention_inputs, &self.output_inputs, &self.mlp_inputs, &self.down_inputs];
        let arrays =
            [&self.queries, &self.keys, &self.values, &self.attended, &self.middle, &self.gate, &self.up];
        let rows = self.rows.iter().flat_map(|rows| [&rows.largest, &rows.total]);
        let arrays = arrays.into_iter().chain(self.unnormed.iter().flatten()).chain(rows);
        size_of::<T>()
            * (inputs.map(Inputs::len).iter().sum::<usize>() + arrays.map(Array2::len).sum::<usize>())
    }
}

impl<T: Element> BlockTrainer<'_, T> {
    /// Takes the residual stream `h` of whole sequences, which lie at rows `starts` of something longer, through the block
    /// in place.
    pub(super) fn piece(
        &self,
        mut h: ArrayViewMut2<'_, T>,
        starts: &[usize],
        pass: &mut Pass<'_, '_, T>,
    ) -> Result<Option<Piece<T>>, ModelError> {
        let (block, par) = (self.block, pass.par);

        let x = self.normed(Norm::Input, h.view(), pass)?;
        let (parts, attention_inputs) = self.project(Site::AttentionInput, x, pass)?;
        let [mut queries, mut keys, values] = self.taken([Role::Q, Role::K, Role::V], parts)?;
        let mut unnormed = [None, None];
        for ((x, norm), kept) in
            [(&mut queries, Norm::Query), (&mut keys, Norm::Key)].into_iter().zip(&mut unnormed)
        {
            if block.norm(norm).is_some() {
                *kept = pass.keep.then(|| x.clone());
                block.norm_heads(x.view_mut(), norm, par);
                self.precision.round(x.view_mut(), par);
            }
            for rows in sequences(starts) {
                let rope = (self.rope)(rows.len());
                block.check_positions(rope, rows.len())?;
                block.rotate(views::rows_mut(x, rows), rope, 0, par);
            }
            self.precision.round(x.view_mut(), par);
        }
        self.transform_pair(&mut queries, &mut keys, pass);
        let queries = self.insert(Spot::Query, queries, pass)?;
        let keys = self.insert(Spot::Key, keys, pass)?;
        let values = self.insert(Spot::Value, values, pass)?;

        let mut attended = Array2::zeros(queries.dim());
        let mut rows_of = Vec::new();
        for rows in sequences(starts) {
            let mut numbers = SoftmaxRows::new(block.shape.heads, rows.len());
            let [q, k, v] = [&queries, &keys, &values].map(|x| views::rows(x.view(), rows.clone()));
            let out = views::rows_mut(&mut attended, rows);
            causal_attention_into(q, k, v, &block.shape, 0, out, Some(&mut numbers), par);
            rows_of.push(numbers);
        }
        self.precision.round(attended.view_mut(), par);
        // The backward of attention needs what attention gave, that of o what the insert made of it.
        let kept = pass.keep.then(|| attended.clone());
        let (parts, output_inputs) = self.project(Site::AttentionOutput, attended, pass)?;
        let [y] = self.taken([Role::O], parts)?;
        add(h.view_mut(), y.view(), par);
        self.precision.round(h.view_mut(), par);
        let middle = pass.keep.then(|| h.to_owned());

        let x = self.normed(Norm::PostAttention, h.view(), pass)?;
        let (parts, mlp_inputs) = self.project(Site::MlpInput, x, pass)?;
        let [mut gate, up] = self.taken([Role::Gate, Role::Up], parts)?;
        let kept_gate = pass.keep.then(|| gate.clone());
        gated(gate.view_mut(), up.view(), par);
        self.precision.round(gate.view_mut(), par);
        let (parts, down_inputs) = self.project(Site::MlpActivation, gate, pass)?;
        let [y] = self.taken([Role::Down], parts)?;
        add(h.view_mut(), y.view(), par);
        self.precision.round(h, par);

        let (Some(attended), Some(middle), Some(gate)) = (kept, middle, kept_gate) else { return Ok(None) };
        let rows = rows_of;
        #[rustfmt::skip]
        let piece = Piece {
            attention_inputs, unnormed, queries, keys, values, rows, attended, output_inputs, middle, mlp_inputs, gate,
            up, down_inputs,
        };
        Ok(Some(piece))
    }

    /// From the gradient of the output of a piece, in place, to that of its input `h`.
    pub(super) fn piece_back(
        &self,
        piece: Piece<T>,
        h: ArrayView2<'_, T>,
        starts: &[usize],
        mut grad: ArrayViewMut2<'_, T>,
        sums: &mut WeightGradients<T>,
        pass: &mut Pass<'_, '_, T>,
    ) -> Result<(), ModelError> {
        let (block, par) = (self.block, pass.par);

        let down = Parts::from([(Role::Down, grad.to_owned())]);
        let dm = self.project_back(Site::MlpActivation, down, piece.down_inputs, sums, pass)?;
        let (mut gate, mut up) = (piece.gate, piece.up);
        gated_backward(gate.view_mut(), up.view_mut(), dm.view(), par);
        drop(dm);
        for x in [&mut gate, &mut up] {
            self.precision.round(x.view_mut(), par);
        }
        let parts = Parts::from([(Role::Gate, gate), (Role::Up, up)]);
        let dx = self.project_back(Site::MlpInput, parts, piece.mlp_inputs, sums, pass)?;
        self.normed_back(Norm::PostAttention, piece.middle.view(), dx, grad.view_mut(), pass)?;
        drop(piece.middle);

        let o = Parts::from([(Role::O, grad.to_owned())]);
        let da = self.project_back(Site::AttentionOutput, o, piece.output_inputs, sums, pass)?;
        let (q, k, v) = (&piece.queries, &piece.keys, &piece.values);
        let mut grads = [q, k, v].map(|x| Array2::zeros(x.dim()));
        for (rows, numbers) in sequences(starts).zip(&piece.rows) {
            let [q, k, v, out] = [q, k, v, &piece.attended].map(|x| views::rows(x.view(), rows.clone()));
            let attended = Attended { q, k, v, out, rows: numbers };
            let into = grads.each_mut().map(|x| views::rows_mut(x, rows.clone()));
            causal_attention_backward(
                attended,
                views::rows(da.view(), rows.clone()),
                &block.shape,
                into,
                par,
            );
        }
        drop((da, piece.queries, piece.keys, piece.values, piece.attended));
        for x in &mut grads {
            self.precision.round(x.view_mut(), par);
        }
        let [dq, dk, dv] = grads;
        let dv = self.insert_back(Spot::Value, dv, pass)?;
        let mut dk = self.insert_back(Spot::Key, dk, pass)?;
        let mut dq = self.insert_back(Spot::Query, dq, pass)?;
        self.transform_pair_back(&mut dq, &mut dk, pass);
        let [unnormed_q, unnormed_k] = piece.unnormed;
        let dq = self.turned_back(Norm::Query, dq, unnormed_q, starts, pass);
        let dk = self.turned_back(Norm::Key, dk, unnormed_k, starts, pass);
        let parts = Parts::from([(Role::Q, dq), (Role::K, dk), (Role::V, dv)]);
        let dx = self.project_back(Site::AttentionInput, parts, piece.attention_inputs, sums, pass)?;
        self.normed_back(Norm::Input, h, dx, grad, pass)
    }

    /// From the gradient behind rope to the one of the projection: queries or keys, `x` what their norm took in.
    fn turned_back(
        &self,
        norm: Norm,
        mut grad: Array2<T>,
        x: Option<Array2<T>>,
        starts: &[usize],
        pass: &Pass<'_, '_, T>,
    ) -> Array2<T> {
        for rows in sequences(starts) {
            let rope = (self.rope)(rows.len());
            self.block.rotate_back(views::rows_mut(&mut grad, rows), rope, pass.par);
        }
        self.precision.round(grad.view_mut(), pass.par);
        if let (Some(x), Some(weight)) = (x, self.block.norm(norm)) {
            tasks::for_rows(grad.view_mut(), pass.par, |first, rows| {
                let x = views::rows(x.view(), first..first + rows.nrows());
                norm_heads_backward(x, weight, self.block.eps, rows);
            });
            self.precision.round(grad.view_mut(), pass.par);
        }
        grad
    }

    fn normed(
        &self,
        norm: Norm,
        h: ArrayView2<'_, T>,
        pass: &Pass<'_, '_, T>,
    ) -> Result<Array2<T>, ModelError> {
        let mut x = self.block.normed(norm, h, pass.par)?;
        self.precision.round(x.view_mut(), pass.par);
        Ok(x)
    }

    /// Adds what comes back through the norm of `h`, behind which the gradient is `dx`, to that of the residual stream.
    fn normed_back(
        &self,
        norm: Norm,
        h: ArrayView2<'_, T>,
        mut dx: Array2<T>,
        mut grad: ArrayViewMut2<'_, T>,
        pass: &Pass<'_, '_, T>,
    ) -> Result<(), ModelError> {
        let Some(weight) = self.block.norm(norm) else {
            return Err(self.block.part(format!("{norm:?} norm"), "is missing"));
        };
        normed_backward(h, weight, self.block.eps, dx.view_mut(), pass.par);
        self.precision.round(dx.view_mut(), pass.par);
        add(grad.view_mut(), dx.view(), pass.par);
        self.precision.round(grad, pass.par);
        Ok(())
    }

    /// The parts of a site in a certain order.
    fn taken<const N: usize>(
        &self,
        roles: [Role; N],
        mut parts: Parts<T>,
    ) -> Result<[Array2<T>; N], ModelError> {
        let taken: Vec<Array2<T>> = roles.iter().filter_map(|role| parts.remove(role)).collect();
        taken.try_into().map_err(|_| self.block.part(format!("one of {roles:?}"), "is computed by no linear"))
    }
}

/// Rows of the sequences of a piece, from its own first row on.
fn sequences(starts: &[usize]) -> impl Iterator<Item = Range<usize>> + '_ {
    let first = starts.first().copied().unwrap_or(0);
    starts.windows(2).map(move |ends| ends[0] - first..ends[1] - first)
}
