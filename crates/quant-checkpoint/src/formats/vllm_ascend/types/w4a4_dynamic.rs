//! `W4A4_DYNAMIC`: four bits, one to a byte, inputs per token.

use super::channel::PerChannel;

pub(super) const CODEC: PerChannel = PerChannel { bits: 4, tokens: true };
