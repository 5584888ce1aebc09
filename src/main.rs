use std::process::ExitCode;

use mimalloc::MiMalloc;

/// What one thread has allocated is often another's to free, between the HTTP workers and those who write. docs/profile.md
/// has the figures.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    hapax::cli::run().unwrap_or_else(|error| {
        eprintln!("hapax: {error:#}");
        ExitCode::FAILURE
    })
}
