//! Post-training quantisation methods: rtn, smoothquant, gptq.
#![forbid(unsafe_code)]
