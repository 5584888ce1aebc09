use std::process::ExitCode;

use libmimalloc_sys::{mi_option_set, mi_option_t};
use mimalloc::MiMalloc;

/// What one thread has allocated is often another's to free, between the HTTP workers and those who write. docs/profile.md
/// has the figures.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h, which the bindings do not name.
const PURGE_DELAY: mi_option_t = 15;

fn main() -> ExitCode {
    give_memory_back_at_once();
    hapax::cli::run().unwrap_or_else(|error| {
        eprintln!("hapax: {}", hapax::cli::explain(&error));
        ExitCode::FAILURE
    })
}

/// What a burst of requests has taken goes back to the system, and not only when a thread happens to allocate again.
/// Set here, because an image or a unit file would forget the environment variable.
#[expect(unsafe_code, reason = "mimalloc's options are C functions")]
fn give_memory_back_at_once() {
    // SAFETY: it stores a number. The option exists in every version of mimalloc that the bindings can be built with.
    unsafe { mi_option_set(PURGE_DELAY, 0) }
}
