//! Matrices and permutations of the transforms that a block applies while the model runs, as tensors of a folder, and the refusal of
//! formats whose loaders apply none.

use std::sync::Arc;

use ndarray::Array2;
use quant_core::{CoreError, OnlineShape, PairTransform};
use quant_graph::{ModelScheme, ModelSpec, Online, OnlineScheme, Site};
use safetensors::Dtype;

use super::bytes::{Loss, float_bytes, word_bytes};
use super::{Encoded, TensorDecl, Unsupported};
use crate::error::{CheckpointError, Result, not_encodable};
use crate::source::Checkpoint;

/// The name of a site in tensor names.
pub(super) fn site_name(site: Site) -> &'static str {
    match site {
        Site::AttentionInput => "attention_input",
        Site::AttentionOutput => "attention_output",
        Site::MlpInput => "mlp_input",
        Site::MlpActivation => "mlp_activation",
    }
}

/// The transforms of a block by name, with the rows they apply to.
fn places(spec: &ModelSpec, scheme: &OnlineScheme) -> Vec<(&'static str, OnlineShape, usize)> {
    let sites = scheme.sites.iter().map(|(&site, &shape)| (site_name(site), shape, spec.site_width(site)));
    let pair = scheme.pair.map(|[key, query]| [("key", key, spec.head_dim), ("query", query, spec.head_dim)]);
    sites.chain(pair.into_iter().flatten()).collect()
}

/// Matrices, each with its side.
fn names(spec: &ModelSpec, index: usize, place: &str, shape: OnlineShape) -> Vec<(String, usize)> {
    let name = |(at, size)| (format!("{}.transform.{place}.{at}", spec.block_prefix(index)), size);
    shape.matrices().into_iter().enumerate().map(name).collect()
}

/// Permutations, each with its entries.
fn orders(spec: &ModelSpec, index: usize, place: &str, shape: OnlineShape) -> Vec<(String, usize)> {
    let name = |(at, size)| (format!("{}.transform.{place}.order.{at}", spec.block_prefix(index)), size);
    shape.orders().into_iter().enumerate().map(name).collect()
}

fn bad(
    id: &'static str,
    spec: &ModelSpec,
    index: usize,
    place: &str,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> CheckpointError {
    let subject = format!("{}.transform.{place}", spec.block_prefix(index));
    CheckpointError::bad_format(id, subject, expected, found)
}

/// Checks that transforms are of the rows they apply to, which bounds everything that their shapes count.
///
/// # Errors
/// [`CheckpointError::BadFormat`] naming the first that is not.
pub(super) fn check_widths(
    id: &'static str,
    spec: &ModelSpec,
    scheme: &OnlineScheme,
    index: usize,
) -> Result<()> {
    let wrong = places(spec, scheme).into_iter().find(|(_, shape, width)| shape.width() != *width);
    wrong.map_or(Ok(()), |(place, shape, width)| {
        Err(bad(id, spec, index, place, format!("rows of {width}"), format!("rows of {}", shape.width())))
    })
}

/// What a scheme has for a block.
pub(super) fn of_block(scheme: &ModelScheme, index: usize) -> OnlineScheme {
    scheme.online.get(index).cloned().unwrap_or_default()
}

/// The tensors of a block's transforms: matrices in f32, permutations in i32.
pub(super) fn decls(spec: &ModelSpec, scheme: &OnlineScheme, index: usize) -> Vec<TensorDecl> {
    let of = |(place, shape, _): (&'static str, OnlineShape, usize)| {
        let matrix = |(name, size)| TensorDecl::new(name, Dtype::F32, [size, size]);
        let order = |(name, size)| TensorDecl::new(name, Dtype::I32, [size]);
        let matrices = names(spec, index, place, shape).into_iter().map(matrix);
        matrices.chain(orders(spec, index, place, shape).into_iter().map(order)).collect::<Vec<_>>()
    };
    places(spec, scheme).into_iter().flat_map(of).collect()
}

/// What one tensor of a transform holds.
enum Numbers<'a> {
    Matrix(&'a Array2<f32>),
    Order(&'a [u32]),
}

/// Their bytes, exactly the declared ones in their order; the block has been [checked](check).
///
/// # Errors
/// [`CheckpointError::NotEncodable`] for a number that is not finite.
pub(super) fn encode(
    id: &'static str,
    spec: &ModelSpec,
    scheme: &OnlineScheme,
    index: usize,
    online: &Online,
) -> Result<Vec<Encoded>> {
    let sites = online.sites.values().map(|transform| &**transform);
    let pair = online.pair.iter().flat_map(|pair| [pair.key(), pair.query()]);
    let numbers = sites.chain(pair).flat_map(|transform| {
        let matrices = transform.matrices().into_iter().map(Numbers::Matrix);
        matrices.chain(transform.orders().into_iter().map(Numbers::Order)).collect::<Vec<_>>()
    });
    let encoded = |(decl, numbers): (TensorDecl, Numbers<'_>)| {
        let bytes = match numbers {
            Numbers::Matrix(matrix) => {
                float_bytes(id, &decl.name, matrix.iter().copied(), quant_core::FloatType::F32, Loss::None)?
            }
            // Entries of a row are far fewer than an i32 counts.
            Numbers::Order(order) => word_bytes(order.iter().map(|&from| from as i32)),
        };
        Ok(Encoded { name: decl.name, dtype: decl.dtype, shape: decl.shape, bytes })
    };
    decls(spec, scheme, index).into_iter().zip(numbers).map(encoded).collect()
}

/// Whether a block has the transforms of its scheme.
pub(super) fn check(
    id: &'static str,
    spec: &ModelSpec,
    scheme: &OnlineScheme,
    index: usize,
    online: &Online,
) -> Result<()> {
    if online.scheme().as_ref() == Some(scheme) {
        return Ok(());
    }
    let subject = format!("{}, transforms", spec.block_prefix(index));
    Err(not_encodable(id, subject, format!("{scheme:?}"), format!("{:?}", online.scheme())))
}

/// Reads the transforms of a block.
///
/// # Errors
/// [`CheckpointError::BadFormat`] where they do not fit the model or are none, and what reading tensors can give.
pub(super) fn read(
    id: &'static str,
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    scheme: &OnlineScheme,
    index: usize,
) -> Result<Online> {
    check_widths(id, spec, scheme, index)?;
    let mut transforms = Vec::new();
    for (place, shape, _) in places(spec, scheme) {
        let wrong =
            |error: CoreError| bad(id, spec, index, place, "an invertible transform", error.to_string());
        let matrix = |(name, size): (String, usize)| {
            checkpoint.tensor_shaped(&name, &[size, size])?;
            checkpoint.read_matrix_f32(&name)
        };
        let matrices = names(spec, index, place, shape).into_iter().map(matrix).collect::<Result<_>>()?;
        let order = |(name, size): (String, usize)| {
            checkpoint.tensor_shaped(&name, &[size])?;
            // A negative index becomes one that is too large, which is refused with the others.
            Ok(checkpoint
                .read_i32(&name)?
                .iter()
                .map(|&from| u32::try_from(from).unwrap_or(u32::MAX))
                .collect())
        };
        let orders = orders(spec, index, place, shape).into_iter().map(order).collect::<Result<_>>()?;
        transforms.push(shape.build_permuted(matrices, orders).map_err(wrong)?);
    }
    let mut transforms = transforms.into_iter();
    let sites = scheme.sites.keys().copied().zip(transforms.by_ref().map(Arc::new)).collect();
    let pair = match (transforms.next(), transforms.next()) {
        (Some(key), Some(query)) => {
            let wrong = |error: CoreError| {
                bad(id, spec, index, "key", "transforms that keep scores", error.to_string())
            };
            Some(PairTransform::new(key, query).map_err(wrong)?.into())
        }
        _ => None,
    };
    Ok(Online { sites, pair })
}

/// The refusal of a format whose loader applies no transforms.
///
/// # Errors
/// [`Unsupported`] naming the first.
pub(super) fn refuse(id: &'static str, spec: &ModelSpec, scheme: &ModelScheme) -> Result<(), Unsupported> {
    let Some((index, online)) = scheme.online.iter().enumerate().find(|(_, online)| !online.is_empty())
    else {
        return Ok(());
    };
    let place = places(spec, online).first().map_or("", |(place, ..)| place);
    Err(Unsupported {
        format: id,
        what: format!("the transform of {place} in {} (its loader applies none)", spec.block_prefix(index)),
        alternatives: "leave out what runs online (for quarot: rotations: [r1, r2]; smoothquant in place of duquant), or export to \
                       dequantized"
            .to_owned(),
    })
}
