use std::process::ExitCode;

use libmimalloc_sys::{mi_option_set, mi_option_t};
use mimalloc::MiMalloc;

/// HTTP workers and database writers often free memory that another thread has allocated, which mimalloc does fast.
/// docs/profile.md has the figures.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h. The bindings have no name for it.
const PURGE_DELAY: mi_option_t = 15;

fn main() -> ExitCode {
    return_free_memory_immediately();
    hapax::cli::run().unwrap_or_else(|error| {
        eprintln!("hapax: {}", hapax::cli::explain(&error));
        ExitCode::FAILURE
    })
}

/// Returns freed memory to the operating system immediately. By default, mimalloc returns it only when a thread
/// allocates again, so the memory of a burst of requests stays with an idle process. Set in code, because an
/// environment variable is easily missing in a container image or a unit file.
#[expect(unsafe_code, reason = "mimalloc's options are C functions")]
fn return_free_memory_immediately() {
    // SAFETY: The call stores a number. Every version of mimalloc that the bindings can be built with has the option.
    unsafe { mi_option_set(PURGE_DELAY, 0) }
}
