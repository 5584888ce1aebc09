use std::process::ExitCode;

fn main() -> ExitCode {
    hapax::cli::run().unwrap_or_else(|error| {
        eprintln!("hapax: {error:#}");
        ExitCode::FAILURE
    })
}
