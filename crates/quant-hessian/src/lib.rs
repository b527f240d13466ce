//! Hessian accumulation, damping, factorisation and the GPTQ solver.
#![forbid(unsafe_code)]
