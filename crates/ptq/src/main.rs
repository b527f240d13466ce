//! The `ptq` command.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    ptq::cli::main()
}
