use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use libmimalloc_sys::mi_collect;
use mimalloc::MiMalloc;

/// HTTP workers and database writers often free memory that another thread has allocated, which mimalloc does fast.
/// docs/profile.md has the figures.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const RETURN_INTERVAL: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let started = thread::Builder::new().name("memory".to_owned()).spawn(return_free_memory);
    drop(started.expect("a process that starts is given a thread"));
    hapax::cli::run().unwrap_or_else(|error| {
        eprintln!("hapax: {}", hapax::cli::explain(&error));
        ExitCode::FAILURE
    })
}

/// Returns free memory to the operating system every second. By default, mimalloc returns it only when a thread
/// allocates again, so the memory of a burst of requests would stay with an idle process. To return it as soon as it is
/// free costs up to a fifth of a replay's CPU time, because most of it is soon used again (docs/profile.md).
#[expect(unsafe_code, reason = "mimalloc's interface has C functions")]
fn return_free_memory() {
    loop {
        thread::sleep(RETURN_INTERVAL);
        // SAFETY: The function may be called at any time, from any thread.
        unsafe { mi_collect(true) }
    }
}
