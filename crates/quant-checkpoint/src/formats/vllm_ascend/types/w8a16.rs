//! `W8A16`: weights of eight bits before a float input.

use super::channel::PerChannel;

pub(super) const CODEC: PerChannel = PerChannel { bits: 8, tokens: false };
