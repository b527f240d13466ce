//! `W8A8_DYNAMIC`: eight bits, inputs per token.

use super::channel::PerChannel;

pub(super) const CODEC: PerChannel = PerChannel { bits: 8, tokens: true };
