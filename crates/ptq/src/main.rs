//! The `ptq` command.
#![forbid(unsafe_code)]

/// Large activation buffers come and go with every block; this allocator gives their pages back without clearing them anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    ptq::cli::main()
}
