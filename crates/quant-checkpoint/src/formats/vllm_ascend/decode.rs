//! Tensors to a block.

use std::collections::BTreeMap;

use quant_graph::{BlockParams, ModelScheme, ModelSpec, OnlineScheme};

use super::description::{Description, FILE};
use super::types::c8;
use super::{bad, flatquant};
use crate::error::Result;
use crate::formats::Decoder;
use crate::formats::plain::read_norms;
use crate::source::Checkpoint;

impl Decoder for Description {
    fn block(&self, checkpoint: &Checkpoint, spec: &ModelSpec, index: usize) -> Result<BlockParams> {
        let linears = spec.block(index).linears;
        let linears = linears
            .iter()
            .map(|linear| Ok((linear.id, self.kind(&linear.module)?.codec().read(checkpoint, linear)?)));
        let linears = linears.collect::<Result<BTreeMap<_, _>>>()?;
        let kv = self.has_kv(spec, index).then(|| c8::read(checkpoint, spec, index)).transpose()?;
        Ok(BlockParams {
            linears,
            norms: read_norms(checkpoint, spec, index)?,
            online: flatquant::read(self, checkpoint, spec, index)?,
            kv,
        })
    }
}

pub(super) fn scheme(checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<ModelScheme> {
    let description = Description::read(checkpoint)?;
    let (mut blocks, mut online) = (Vec::with_capacity(spec.layers), Vec::with_capacity(spec.layers));
    for index in 0..spec.layers {
        let mut block = BTreeMap::new();
        for linear in spec.block(index).linears {
            let codec = description.kind(&linear.module)?.codec();
            block.insert(linear.id, codec.scheme(checkpoint, &linear)?);
        }
        blocks.push(block);
        online.push(flatquant::scheme(&description, checkpoint, spec, index)?);
    }
    if online.iter().all(OnlineScheme::is_empty) {
        online.clear();
    }
    let cached = (0..spec.layers).filter(|i| description.has_kv(spec, *i)).count();
    if cached != 0 && cached != spec.layers {
        return Err(bad(FILE, "C8 entries in every block or in none", format!("{cached} blocks")));
    }
    let kv = (cached != 0).then(c8::scheme).transpose()?;
    Ok(ModelScheme { blocks, online, kv, ..ModelScheme::default() })
}
