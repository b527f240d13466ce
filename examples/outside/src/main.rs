//! The `ptq` program, with the method and the family of this crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    match outside::registry() {
        Ok(registry) => ptq::cli::main_with(&registry),
        Err(taken) => {
            eprintln!("error: {taken}");
            ExitCode::FAILURE
        }
    }
}
