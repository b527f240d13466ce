//! The ptq command and its library face.
#![forbid(unsafe_code)]
