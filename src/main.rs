//! The `tfdev` program: see the library's [`tfdev::cli`].

fn main() -> std::process::ExitCode {
    tfdev::cli::main()
}
