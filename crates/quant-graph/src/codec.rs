//! The numbers of a block as bytes and back, for journals: each stored form of a weight has its line here.

use crate::{LinearId, LinearParams, LinearWeight, Norm, Role, Site, Spot};
use ndarray::Array2;
use quant_core::codec::{Bytes, Codec, bad_tag};
use quant_core::{BinaryMatrix, CoreError, QuantizedMatrix, codec_of_fields};

/// [`Codec`] of an enum without data, by these tags.
macro_rules! codec_of_names {
    ($type:ty, $what:literal, { $($variant:ident = $tag:literal),+ $(,)? }) => {
        impl Codec for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                let tag: u8 = match self { $(Self::$variant => $tag),+ };
                tag.encode(out);
            }
            fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
                match u8::decode(from)? {
                    $($tag => Ok(Self::$variant),)+
                    tag => bad_tag($what, tag),
                }
            }
        }
    };
}

codec_of_names!(Role, "a role", {
    Q = 0, K = 1, V = 2, Qkv = 3, O = 4, Gate = 5, Up = 6, GateUp = 7, Down = 8,
});
codec_of_names!(Site, "a site", { AttentionInput = 0, AttentionOutput = 1, MlpInput = 2, MlpActivation = 3 });
codec_of_names!(Norm, "a norm", { Input = 0, PostAttention = 1, Query = 2, Key = 3 });
codec_of_fields!(LinearId { role, expert });
codec_of_fields!(LinearParams { weight, bias, input });

impl Codec for Spot {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Site(site) => {
                out.push(0);
                site.encode(out);
            }
            Self::Linear(id) => {
                out.push(1);
                id.encode(out);
            }
            Self::Query => out.push(2),
            Self::Key => out.push(3),
            Self::Value => out.push(4),
        }
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        match u8::decode(from)? {
            0 => Ok(Self::Site(Codec::decode(from)?)),
            1 => Ok(Self::Linear(Codec::decode(from)?)),
            2 => Ok(Self::Query),
            3 => Ok(Self::Key),
            4 => Ok(Self::Value),
            tag => bad_tag("a spot of a block", tag),
        }
    }
}

impl Codec for LinearWeight {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Float(values) => {
                out.push(0);
                values.encode(out);
            }
            Self::Quantized(matrix) => {
                out.push(1);
                matrix.encode(out);
            }
            Self::Binary(matrix) => {
                out.push(2);
                matrix.encode(out);
            }
        }
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        match u8::decode(from)? {
            0 => Ok(Self::Float(Array2::decode(from)?)),
            1 => Ok(Self::Quantized(QuantizedMatrix::decode(from)?)),
            2 => Ok(Self::Binary(BinaryMatrix::decode(from)?)),
            tag => bad_tag("a weight", tag),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array1;
    use quant_core::codec::{decoded, encoded};
    use quant_core::{ActQuant, Bits, QParams};

    #[test]
    fn linears_come_back() {
        let bits = Bits::new(3).unwrap();
        let quantized = QuantizedMatrix::unfilled(bits, (2, 4), Some(2));
        for weight in
            [LinearWeight::Float(Array2::from_elem((2, 3), 0.1)), LinearWeight::Quantized(quantized)]
        {
            let input = Some(ActQuant::Static { bits, params: QParams { scale: 0.5, zero: 1.0 } });
            let linear = LinearParams { weight, bias: Some(Array1::ones(2)), input };
            for id in [LinearId::Q, LinearId { role: Role::Up, expert: Some(7) }] {
                let bytes = encoded(&(id, linear.clone()));
                assert_eq!(decoded::<(LinearId, LinearParams)>(&bytes).unwrap(), (id, linear.clone()));
            }
        }
        assert!(decoded::<LinearWeight>(&[9]).is_err());
        assert!(Site::ALL.iter().all(|site| decoded::<Site>(&encoded(site)).as_ref() == Ok(site)));
    }
}
