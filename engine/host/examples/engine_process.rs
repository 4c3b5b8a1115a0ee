//! A program that is nothing but an engine's process, for tests: test programs cannot be one.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(host::engine_process().unwrap_or(2))
}
